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
