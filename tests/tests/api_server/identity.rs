//! Who may do what: strangers, machines with a join token, nodes.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::server::{Server, get, json, send};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

#[tokio::test]
async fn strangers_reach_health_and_version_only() -> Result<()> {
    let server = Server::api_only()?;
    let stranger = server.stranger(None).await?;
    for path in ["/version", "/healthz", "/livez", "/readyz"] {
        get(&stranger, path).await?;
    }
    for path in ["/api", "/apis", "/api/v1/namespaces", "/metrics", "/openapi/v3"] {
        let (status, answer) = send(&stranger, "GET", path, "application/json", "").await?;
        assert_eq!(
            (status.as_u16(), &answer["reason"]),
            (401, &json!("Unauthorized")),
            "{path}"
        );
    }
    for token in ["abc", "aaaaaa.bbbbbbbbbbbbbbbb"] {
        let liar = server.stranger(Some(token)).await?;
        let (status, answer) = send(&liar, "GET", "/version", "application/json", "").await?;
        assert_eq!(
            (status.as_u16(), &answer["message"]),
            (401, &json!("Unauthorized"))
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_join_token_yields_a_node_certificate_and_nothing_else() -> Result<()> {
    let server = Server::api_only()?;
    let machine = server.stranger(Some(&server.token()?)).await?;
    let (status, answer) = json(&machine, "GET", "/api/v1/nodes", &Value::Null).await?;
    assert_eq!(status, 403, "{answer}");

    let (key, request) = certificate_request("system:node:n1", "system:nodes")?;
    let (status, answer) = json(&machine, "POST", REQUESTS, &signing_request("n1", &request)).await?;
    assert_eq!(status, 201, "{answer}");
    let signed = get(&machine, &format!("{REQUESTS}/n1")).await?;
    let certificate = signed["status"]["certificate"].as_str().context("not signed")?;
    let certificate = String::from_utf8(STANDARD.decode(certificate)?)?;

    let node = server.with_certificate(&certificate, &key).await?;
    let own = json!({"metadata": {"name": "n1"}});
    let other = json!({"metadata": {"name": "n2"}});
    assert_eq!(json(&node, "POST", "/api/v1/nodes", &own).await?.0, 201);
    let (status, answer) = json(&node, "POST", "/api/v1/nodes", &other).await?;
    assert_eq!((status.as_u16(), &answer["reason"]), (403, &json!("Forbidden")));
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    assert_eq!(json(&node, "POST", leases, &own).await?.0, 201);
    assert_eq!(json(&node, "POST", leases, &other).await?.0, 403);
    for path in ["/api/v1/secrets", "/api/v1/configmaps"] {
        assert_eq!(json(&node, "GET", path, &Value::Null).await?.0, 403, "{path}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_becomes_more_than_a_node_by_asking() -> Result<()> {
    let server = Server::api_only()?;
    let machine = server.stranger(Some(&server.token()?)).await?;
    for (name, user, group) in [
        ("master", "system:node:n1", "system:masters"),
        ("user", "admin", "system:nodes"),
        ("nameless", "system:node:", "system:nodes"),
    ] {
        let (_, request) = certificate_request(user, group)?;
        let (status, answer) = json(&machine, "POST", REQUESTS, &signing_request(name, &request)).await?;
        assert_eq!(status, 201, "{answer}");
        assert!(answer["status"]["certificate"].is_null(), "{name}: {answer}");
    }
    // What is checked of a request is what is signed, however it is written.
    let (_, master) = certificate_request("x", "system:masters")?;
    let (_, node) = certificate_request("system:node:n1", "system:nodes")?;
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in [
        (rcgen::DnType::OrganizationName, "system:nodes"),
        (rcgen::DnType::CommonName, "system:node:n1"),
        (
            rcgen::DnType::CustomDnType(vec![2, 5, 4, 3]),
            "system:kube-controller-manager",
        ),
    ] {
        params.distinguished_name.push(kind, value);
    }
    let two_names = params.serialize_request(&key)?.pem()?;
    for (name, request) in [
        ("indented", format!(" {master}{node}")),
        ("two", format!("{node}{master}")),
        ("preface", format!("x{master}{node}")),
        ("names", two_names),
        ("renamed", node.replace("CERTIFICATE REQUEST", "CERTIFICATE")),
    ] {
        let (status, answer) = json(&machine, "POST", REQUESTS, &signing_request(name, &request)).await?;
        assert_eq!(status, 201, "{answer}");
        assert!(answer["status"]["certificate"].is_null(), "{name}: {answer}");
    }
    let tried = format!("{REQUESTS}?dryRun=All");
    let (_, answer) = json(&machine, "POST", &tried, &signing_request("tried", &node)).await?;
    assert!(answer["status"]["certificate"].is_null(), "{answer}");

    let (_, request) = certificate_request("system:node:n1", "system:nodes")?;
    let mut forged = signing_request("forged", &request);
    forged["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}], "certificate": "eA=="});
    forged["spec"]["usages"] = json!(["server auth"]);
    forged["spec"]["username"] = json!("system:admin");
    let (_, answer) = json(&machine, "POST", REQUESTS, &forged).await?;
    assert!(answer["status"]["certificate"].is_null(), "{answer}");
    assert!(
        answer["spec"]["username"]
            .as_str()
            .unwrap_or_default()
            .starts_with("system:bootstrap:")
    );
    Ok(())
}

#[tokio::test]
async fn masters_may_act_as_someone_else() -> Result<()> {
    let server = Server::api_only()?;
    assert!(server.kubectl(&["auth", "whoami"])?.contains("kubernetes-admin"));
    assert_eq!(
        server.kubectl(&["auth", "can-i", "delete", "nodes"])?.trim(),
        "yes"
    );
    let output = server.try_kubectl(&["get", "pods", "--as", "bob"])?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains(
            "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace"
        ),
        "{text}"
    );
    Ok(())
}

#[tokio::test]
async fn a_node_renews_its_certificate_and_goes_on_with_it() -> Result<()> {
    use weft_agent::config::{ControlPlane, Join, Trust};
    use weft_agent::join;

    let server = Server::api_only()?;
    let state = tempfile::tempdir()?;
    let control_plane = ControlPlane::Join(Join {
        server: server.url(),
        token: Some(server.token()?),
        trust: Trust::CaFile(server.path("data/pki/ca.crt")),
    });
    let join::Connection { client, renewal } = join::connect(&control_plane, "n1", state.path()).await?;
    let mut renewal = renewal.context("nothing renews the certificate")?;
    let own = json!({"metadata": {"name": "n1"}});
    assert_eq!(json(&client, "POST", "/api/v1/nodes", &own).await?.0, 201);
    let kept = || std::fs::read_to_string(join::credentials_path(state.path()));
    let first = kept()?;
    renewal.renew().await?;
    assert_ne!(kept()?, first);
    // The client of before goes on, and the next agent begins with what was kept.
    get(&client, "/api/v1/nodes/n1").await?;
    let again = join::connect(&control_plane, "n1", state.path()).await?.client;
    get(&again, "/api/v1/nodes/n1").await?;
    let requests = get(&server.client().await?, REQUESTS).await?;
    let requests = requests["items"].as_array().context("no requests")?;
    let by_itself = requests
        .iter()
        .filter(|request| request["spec"]["username"] == "system:node:n1");
    assert_eq!((requests.len(), by_itself.count()), (2, 1));
    Ok(())
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need_and_writes_what_is_its_own() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let n1 = server.user("system:node:n1", Some("system:nodes")).await?;
    let secrets = "/api/v1/namespaces/default/secrets";
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["mine", "other"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        assert_eq!(json(&master, "POST", secrets, &secret).await?.0, 201);
    }
    for name in ["n1", "n2"] {
        let node = json!({"metadata": {"name": name}});
        assert_eq!(json(&master, "POST", "/api/v1/nodes", &node).await?.0, 201);
        let pod = json!({
            "metadata": {"name": format!("on-{name}")},
            "spec": {
                "nodeName": name, "containers": [{"name": "c", "image": "i"}],
                "volumes": [{"name": "v", "secret": {"secretName": if name == "n1" { "mine" } else { "other" }}}],
            },
        });
        assert_eq!(json(&master, "POST", pods, &pod).await?.0, 201);
    }
    get(&n1, &format!("{secrets}/mine")).await?;
    get(&n1, &format!("{secrets}?fieldSelector=metadata.name%3Dmine")).await?;
    // It may be asked for, although no controller is there to make it.
    let authority = "/api/v1/namespaces/default/configmaps/kube-root-ca.crt";
    assert_eq!(json(&n1, "GET", authority, &Value::Null).await?.0, 404);
    let before = get(&master, pods).await?["metadata"]["resourceVersion"].clone();
    let label = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let status = json!({"status": {"message": "x"}});
    let mirror = json!({"metadata": {"name": "m"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    for (method, path, body, text) in [
        (
            "GET",
            &format!("{secrets}/other"),
            &Value::Null,
            "no relationship found between node 'n1' and this object",
        ),
        ("GET", &secrets.to_owned(), &Value::Null, "No Object name found"),
        (
            "PUT",
            &format!("{secrets}/mine"),
            &label,
            "can only read resources of this type",
        ),
        (
            "DELETE",
            &format!("{pods}/on-n2"),
            &Value::Null,
            "can only delete pods with spec.nodeName set to itself",
        ),
        (
            "PATCH",
            &format!("{pods}/on-n2/status"),
            &status,
            "can only update pod status for pods with spec.nodeName",
        ),
        ("POST", &pods.to_owned(), &mirror, "can only create mirror pods"),
        (
            "PATCH",
            &"/api/v1/nodes/n1".to_owned(),
            &label,
            "is not allowed to modify labels: node-role.kubernetes.io",
        ),
        (
            "PATCH",
            &"/api/v1/nodes/n1".to_owned(),
            &taint,
            "is not allowed to modify taints",
        ),
        (
            "PATCH",
            &"/api/v1/nodes/n2".to_owned(),
            &taint,
            "is not allowed to modify node",
        ),
        (
            "DELETE",
            &"/api/v1/nodes/n1".to_owned(),
            &Value::Null,
            "cannot delete resource \"nodes\"",
        ),
    ] {
        let kind = if method == "PATCH" {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let (code, answer) = send(&n1, method, path, kind, body.to_string()).await?;
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(code == 403 && message.contains(text), "{method} {path}: {answer}");
    }
    assert_eq!(get(&master, pods).await?["metadata"]["resourceVersion"], before);
    // What a node runs of its own accord has no account, and is told to the API by the node.
    let mut mirror = mirror;
    mirror["metadata"]["annotations"] = json!({"kubernetes.io/config.mirror": "x"});
    let (code, answer) = json(&n1, "POST", pods, &mirror).await?;
    assert!(
        code == 201 && answer["spec"]["serviceAccountName"].is_null(),
        "{answer}"
    );
    let kind = "application/merge-patch+json";
    let own = format!("{pods}/on-n1");
    let (code, answer) = send(&n1, "PATCH", &format!("{own}/status"), kind, status.to_string()).await?;
    assert_eq!(code, 200, "{answer}");
    let now = json!({"gracePeriodSeconds": 0});
    assert_eq!(json(&n1, "DELETE", &own, &now).await?.0, 200);
    assert_eq!(
        json(&n1, "GET", &format!("{secrets}/mine"), &Value::Null)
            .await?
            .0,
        403
    );
    Ok(())
}

#[tokio::test]
async fn a_user_gets_the_certificate_that_someone_who_may_approves() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    let request = async |name: &str, group: &str, usage: &str| -> Result<(String, u16, Value)> {
        let (key, pem) = certificate_request("dora", group)?;
        let mut object = signing_request(name, &pem);
        object["spec"]["signerName"] = json!("kubernetes.io/kube-apiserver-client");
        object["spec"]["usages"] = json!([usage]);
        let (code, answer) = json(&master, "POST", REQUESTS, &object).await?;
        Ok((key, code.as_u16(), answer))
    };
    let (_, code, answer) = request("masters", "system:masters", "client auth").await?;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(
        code == 403 && message.contains("with system:masters group is not allowed"),
        "{answer}"
    );

    let (key, code, answer) = request("dora", "devs", "client auth").await?;
    assert_eq!(code, 201, "{answer}");
    // Who may write approvals may not approve for every signer.
    let clerk = server.user("clerk", None).await?;
    server.kubectl(&[
        "create",
        "clusterrole",
        "clerk",
        "--verb=update",
        "--resource=certificatesigningrequests/approval",
    ])?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "clerk",
        "--clusterrole=clerk",
        "--user=clerk",
    ])?;
    let mut approved = get(&master, &format!("{REQUESTS}/dora")).await?;
    approved["status"] = json!({"conditions": [{"type": "Approved", "status": "True"}]});
    let approval = format!("{REQUESTS}/dora/approval");
    let (code, answer) = json(&clerk, "PUT", &approval, &approved).await?;
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(
        code == 403 && message.contains("user not permitted to approve requests with signerName"),
        "{answer}"
    );

    server.kubectl(&["certificate", "approve", "dora"])?;
    let signed = get(&master, &format!("{REQUESTS}/dora")).await?;
    let certificate = STANDARD.decode(signed["status"]["certificate"].as_str().context("not signed")?)?;
    let dora = server
        .with_certificate(&String::from_utf8(certificate)?, &key)
        .await?;
    let who = json(
        &dora,
        "POST",
        "/apis/authentication.k8s.io/v1/selfsubjectreviews",
        &json!({}),
    )
    .await?
    .1;
    assert_eq!(
        who["status"]["userInfo"]["groups"],
        json!(["devs", "system:authenticated"]),
        "{who}"
    );

    request("server", "devs", "server auth").await?;
    server.kubectl(&["certificate", "approve", "server"])?;
    let failed = get(&master, &format!("{REQUESTS}/server")).await?;
    assert!(failed["status"]["certificate"].is_null(), "{failed}");
    assert_eq!(
        failed["status"]["conditions"][1]["reason"], "SignerValidationFailure",
        "{failed}"
    );
    request("no", "devs", "client auth").await?;
    server.kubectl(&["certificate", "deny", "no"])?;
    assert!(server.kubectl(&["get", "csr", "no"])?.contains("Denied"));
    Ok(())
}

fn signing_request(name: &str, request: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "request": STANDARD.encode(request), "signerName": "kubernetes.io/kube-apiserver-client-kubelet",
            "usages": ["digital signature", "client auth"],
        },
    })
}

/// A key and a request for a certificate, as PEM.
fn certificate_request(user: &str, group: &str) -> Result<(String, String)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::OrganizationName, group);
    params.distinguished_name.push(rcgen::DnType::CommonName, user);
    let request = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), request))
}

/// A machine joins with a token until it is deleted.
#[tokio::test]
async fn a_join_token_is_listed_and_deleted() -> Result<()> {
    let server = Server::api_only()?;
    let (first, second) = (server.token()?, server.weft_token(&["create", "--ttl=0"])?);
    let list = server.weft_token(&["list"])?;
    assert!(
        list.lines().any(|line| line.starts_with(&format!("{first}\t2"))),
        "{list}"
    );
    assert!(
        list.lines().any(|line| line == format!("{second}\tnever")),
        "{list}"
    );
    let review = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let machine = server.stranger(Some(&first)).await?;
    assert!(json(&machine, "POST", review, &json!({})).await?.0.is_success());

    let (id, _) = second.split_once('.').context("a dot")?;
    let said = server.weft_token(&["delete", &first, id])?;
    let (first_id, _) = first.split_once('.').context("a dot")?;
    assert_eq!(
        said,
        format!("bootstrap token {first_id:?} deleted\nbootstrap token {id:?} deleted")
    );
    assert_eq!(server.weft_token(&["list"])?, "");
    assert_eq!(json(&machine, "POST", review, &json!({})).await?.0, 401);
    let error = server
        .weft_token(&["delete", id])
        .err()
        .context("it was there")?
        .to_string();
    assert!(
        error.contains(&format!("there is no bootstrap token {id:?}: `weft token list`")),
        "{error}"
    );
    let error = server
        .weft_token(&["delete", "a.b"])
        .err()
        .context("it was a token")?
        .to_string();
    assert!(error.contains("6 characters of a-z and 0-9"), "{error}");
    Ok(())
}
