//! What is refused at the front door must not come in by a side door: subresources, tokens of lists, nulls, old names.

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::server::{Server, get, json, send};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const PODS: &str = "/api/v1/namespaces/default/pods";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const MERGE: &str = "application/merge-patch+json";
const APPLY: &str = "application/apply-patch+yaml";

fn deployment(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

fn pod(name: &str, cpu: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": "web"}}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}})
}

/// Sends a request that must be refused with this code and text.
async fn refused(
    client: &Client,
    (method, path, kind): (&str, &str, &str),
    body: &Value,
    code: u16,
    text: &str,
) -> Result<()> {
    let (status, answer) = send(client, method, path, kind, body.to_string()).await?;
    let message = answer["message"].as_str().unwrap_or_default();
    ensure!(
        status.as_u16() == code && message.contains(text),
        "{method} {path} {body}: {status} {answer}, wanted {code} with {text:?}"
    );
    Ok(())
}

/// Sends a request that must succeed.
async fn done(client: &Client, (method, path, kind): (&str, &str, &str), body: &Value) -> Result<Value> {
    let (status, answer) = send(client, method, path, kind, body.to_string()).await?;
    ensure!(status.is_success(), "{method} {path} {body}: {status} {answer}");
    Ok(answer)
}

async fn create(client: &Client, path: &str, body: &Value) -> Result<Value> {
    done(client, ("POST", path, "application/json"), body).await
}

#[tokio::test]
async fn the_token_of_one_list_shows_nothing_of_another() -> Result<()> {
    let server = Server::api_only()?;
    let master = server.client().await?;
    for name in ["a", "b"] {
        let secret =
            json!({"metadata": {"name": name, "labels": {"l": name}}, "stringData": {"k": "hidden"}});
        create(&master, SECRETS, &secret).await?;
        create(&master, CONFIG_MAPS, &json!({"metadata": {"name": name}})).await?;
    }
    server.kubectl(&["create", "role", "reader", "--verb=list", "--resource=configmaps"])?;
    server.kubectl(&["create", "rolebinding", "readers", "--role=reader", "--user=eve"])?;
    let eve = server.user("eve", None).await?;
    let page = get(&master, &format!("{SECRETS}?limit=1")).await?;
    let given = page["metadata"]["continue"].as_str().context("no token")?;
    let decoded: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(given)?)?;
    let forged = json!({"v": 1, "rv": decoded["rv"], "id": decoded["id"], "last": ""});
    for token in [given.to_owned(), URL_SAFE_NO_PAD.encode(forged.to_string())] {
        let path = format!("{CONFIG_MAPS}?continue={token}");
        refused(
            &eve,
            ("GET", &path, ""),
            &Value::Null,
            410,
            "continue parameter is too old",
        )
        .await?;
        // Nor does it get round a selector or out of a namespace.
        for other in [
            format!("{SECRETS}?labelSelector=l%3Da&continue={token}"),
            format!("{SECRETS}?fieldSelector=metadata.name%3Da&continue={token}"),
            format!("/api/v1/namespaces/kube-system/secrets?continue={token}"),
        ] {
            refused(&master, ("GET", &other, ""), &Value::Null, 410, "too old").await?;
        }
        get(&master, &format!("{SECRETS}?continue={token}")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_stored_that_typed_clients_cannot_read() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let mut odd = deployment("odd");
    let container = &mut odd["spec"]["template"]["spec"]["containers"][0];
    container["args"] = json!([null, "a"]);
    container["resources"] = json!({"limits": {"cpu": null}});
    create(&client, DEPLOYMENTS, &odd).await?;
    let path = format!("{DEPLOYMENTS}/odd");
    let huge = json!({"metadata": {"name": "odd"}, "spec": {"replicas": 1_i64 << 40}});
    let scale = format!("{path}/scale");
    for (method, kind) in [("PUT", "application/json"), ("PATCH", MERGE)] {
        refused(
            &client,
            (method, &scale, kind),
            &huge,
            400,
            "cannot unmarshal number",
        )
        .await?;
    }
    done(
        &client,
        ("PATCH", &format!("{path}/status"), MERGE),
        &json!({"status": {"conditions": [null]}}),
    )
    .await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments.list(&ListParams::default()).await?;

    create(&client, PODS, &pod("p", "1")).await?;
    let binding = format!("{PODS}/p/binding");
    for (metadata, target, code) in [
        (json!({"annotations": {"a": 1}}), json!({"name": "n"}), 400),
        (json!({}), json!({"name": 1}), 400),
        (json!({}), json!({"name": "No Node"}), 422),
    ] {
        let mut body = json!({"metadata": metadata, "target": target});
        refused(&client, ("POST", &binding, "application/json"), &body, code, "").await?;
        body["metadata"]["name"] = json!("p");
        let collection = "/api/v1/namespaces/default/bindings";
        refused(&client, ("POST", collection, "application/json"), &body, code, "").await?;
    }
    let pods: Api<Pod> = Api::default_namespaced(client);
    pods.list(&ListParams::default()).await?;
    Ok(())
}

#[tokio::test]
async fn a_scale_is_of_the_object_that_was_read() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    create(&client, DEPLOYMENTS, &deployment("d")).await?;
    let scale = format!("{DEPLOYMENTS}/d/scale");
    let other = json!({"metadata": {"name": "d", "uid": "another"}, "spec": {"replicas": 2}});
    refused(
        &client,
        ("PUT", &scale, "application/json"),
        &other,
        409,
        "UID in precondition",
    )
    .await?;
    assert_eq!(get(&client, &scale).await?["spec"]["replicas"], 1);
    Ok(())
}

#[tokio::test]
async fn who_applies_means_the_object_of_the_path() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let path = format!("{CONFIG_MAPS}/here?fieldManager=m");
    let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "there"}});
    let text = "the name of the object (there) does not match the name on the URL (here)";
    refused(&client, ("PATCH", &path, APPLY), &body, 400, text).await
}

#[tokio::test]
async fn an_eviction_of_a_pod_that_is_gone_costs_its_successor_nothing() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let budget = json!({"metadata": {"name": "b"}, "spec": {
        "maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    create(&client, BUDGETS, &budget).await?;
    let path = format!("{BUDGETS}/b");
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2,
        "desiredHealthy": 1, "expectedPods": 2}});
    let before = done(&client, ("PATCH", &format!("{path}/status"), MERGE), &status).await?;
    create(&client, PODS, &pod("web-0", "1")).await?;
    let running = json!({"status": {"phase": "Running"}});
    let status = format!("{PODS}/web-0/status");
    let there = done(&client, ("PATCH", &status, MERGE), &running).await?;
    let evict = format!("{PODS}/web-0/eviction");
    for preconditions in [json!({"uid": "former"}), json!({"resourceVersion": "1"})] {
        let eviction =
            json!({"metadata": {"name": "web-0"}, "deleteOptions": {"preconditions": preconditions}});
        refused(
            &client,
            ("POST", &evict, "application/json"),
            &eviction,
            409,
            "Precondition failed",
        )
        .await?;
        assert_eq!(get(&client, &path).await?, before);
        assert_eq!(get(&client, &format!("{PODS}/web-0")).await?, there);
    }
    // A node has no say about pods elsewhere, and takes nothing out of their budgets.
    let node = server.user("system:node:n1", Some("system:nodes")).await?;
    let eviction = json!({"metadata": {"name": "web-0"}});
    refused(
        &node,
        ("POST", &evict, "application/json"),
        &eviction,
        403,
        "can only evict pods",
    )
    .await?;
    assert_eq!(get(&client, &path).await?, before);
    Ok(())
}

#[tokio::test]
async fn what_a_cluster_needs_is_not_deleted() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    for name in ["default", "kube-system", "kube-public"] {
        let path = format!("/api/v1/namespaces/{name}");
        let text = "this namespace may not be deleted";
        refused(&client, ("DELETE", &path, ""), &Value::Null, 403, text).await?;
        assert!(get(&client, &path).await?["metadata"]["deletionTimestamp"].is_null());
    }
    // Nor does a namespace lose what holds it but through `finalize`.
    create(&client, "/api/v1/namespaces", &json!({"metadata": {"name": "n"}})).await?;
    json(&client, "DELETE", "/api/v1/namespaces/n", &Value::Null).await?;
    let without = json!({"spec": {"finalizers": null}});
    let path = "/api/v1/namespaces/n";
    let kept = done(&client, ("PATCH", path, MERGE), &without).await?;
    assert_eq!(kept["spec"]["finalizers"], json!(["kubernetes"]));
    get(&client, path).await?;
    Ok(())
}

#[tokio::test]
async fn what_is_fixed_is_not_changed_in_steps() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    for path in [CONFIG_MAPS, SECRETS] {
        create(
            &client,
            path,
            &json!({"metadata": {"name": "m"}, "immutable": true}),
        )
        .await?;
        let open = json!({"immutable": null});
        let text = "immutable: Forbidden: field is immutable when `immutable` is set";
        refused(&client, ("PATCH", &format!("{path}/m"), MERGE), &open, 422, text).await?;
    }
    let mut made = pod("p", "1");
    made["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    made["spec"]["activeDeadlineSeconds"] = json!(60);
    let made = create(&client, PODS, &made).await?;
    let path = format!("{PODS}/p");
    let spec = |spec: Value| json!({"spec": spec});
    for (change, text) in [
        (
            spec(json!({"nodeName": "n1"})),
            "pod updates may not change fields other than",
        ),
        (
            spec(json!({"terminationGracePeriodSeconds": 1})),
            "pod updates may not change fields other than",
        ),
        (
            spec(json!({"schedulingGates": [{"name": "a.b/c"}]})),
            "only deletion is allowed, but found new scheduling gate 'a.b/c'",
        ),
        (
            spec(json!({"tolerations": null})),
            "existing toleration can not be modified except its tolerationSeconds",
        ),
        (
            spec(json!({"activeDeadlineSeconds": 61})),
            "must be less than or equal to previous value",
        ),
        (
            spec(json!({"activeDeadlineSeconds": null})),
            "must not update from a positive integer to nil value",
        ),
    ] {
        refused(&client, ("PATCH", &path, MERGE), &change, 422, text).await?;
    }
    let mut tolerations = made["spec"]["tolerations"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    tolerations.push(json!({"key": "b", "operator": "Exists"}));
    let more = spec(json!({"tolerations": tolerations, "activeDeadlineSeconds": 30}));
    done(&client, ("PATCH", &path, MERGE), &more).await?;
    // A status says nothing about whose the object is.
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "m", "uid": "nobody"}]}, "status": {"phase": "Running"}});
    let written = done(&client, ("PATCH", &format!("{path}/status"), MERGE), &owned).await?;
    assert_eq!(
        (
            &written["status"]["phase"],
            &written["metadata"]["ownerReferences"]
        ),
        (&json!("Running"), &Value::Null)
    );
    Ok(())
}

#[tokio::test]
async fn a_pod_does_not_grow_out_of_its_quota() -> Result<()> {
    let server = Server::complete()?;
    let client = server.client().await?;
    let quotas = "/api/v1/namespaces/default/resourcequotas";
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "2"}}});
    create(&client, quotas, &quota).await?;
    server.kubectl(&[
        "wait",
        "--for=jsonpath={.status.hard}",
        "resourcequota/q",
        "--timeout=30s",
    ])?;
    create(&client, PODS, &pod("p", "1")).await?;
    let resize = format!("{PODS}/p/resize");
    let larger = |cpu: &str| {
        json!({"spec": {"containers": [
        {"name": "c", "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]}})
    };
    let strategic = "application/strategic-merge-patch+json";
    let text = "exceeded quota: q, requested: requests.cpu=2, used: requests.cpu=1, limited: requests.cpu=2";
    refused(&client, ("PATCH", &resize, strategic), &larger("3"), 403, text).await?;
    let range = json!({"metadata": {"name": "r"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1500m"}}]}});
    create(&client, "/api/v1/namespaces/default/limitranges", &range).await?;
    let text = "maximum cpu usage per Container is 1500m, but limit is 2";
    refused(&client, ("PATCH", &resize, strategic), &larger("2"), 403, text).await?;
    done(&client, ("PATCH", &resize, strategic), &larger("1500m")).await?;
    Ok(())
}

/// "False" and "nothing" are said like any other value.
#[tokio::test]
async fn what_is_applied_wins_even_if_it_is_nothing() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let mut web = deployment("web");
    web["spec"]["paused"] = json!(true);
    web["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["x"]);
    create(&client, DEPLOYMENTS, &web).await?;
    let mut applied = deployment("web");
    applied["apiVersion"] = json!("apps/v1");
    applied["kind"] = json!("Deployment");
    applied["spec"]["paused"] = json!(false);
    applied["spec"]["template"]["spec"]["containers"][0]["args"] = json!([]);
    let path = format!("{DEPLOYMENTS}/web?fieldManager=me");
    refused(
        &client,
        ("PATCH", &path, APPLY),
        &applied,
        409,
        "- .spec.paused\n- .spec.template.spec.containers[name=\"c\"].args",
    )
    .await?;
    let path = format!("{path}&force=true");
    let answer = done(&client, ("PATCH", &path, APPLY), &applied).await?;
    ensure!(answer["spec"].get("paused").is_none(), "{answer:#}");
    let container = &answer["spec"]["template"]["spec"]["containers"][0];
    ensure!(container.get("args").is_none(), "{answer:#}");
    // Applied again it changes nothing.
    let again = done(&client, ("PATCH", &path, APPLY), &applied).await?;
    ensure!(again == answer, "{again:#}");
    Ok(())
}

/// Manifests that are made by templates set a namespace everywhere, and people ask twice.
#[tokio::test]
async fn what_does_not_matter_is_no_error() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let role = json!({"metadata": {"name": "reader", "namespace": "default"}, "rules": []});
    let made = create(&client, roles, &role).await?;
    ensure!(made["metadata"].get("namespace").is_none(), "{made}");
    let path = format!("{roles}/reader");
    done(&client, ("PUT", &path, "application/json"), &role).await?;
    done(&client, ("PATCH", &path, MERGE), &role).await?;

    let spaces = "/api/v1/namespaces";
    create(&client, spaces, &json!({"metadata": {"name": "going"}})).await?;
    for _ in 0..2 {
        let path = format!("{spaces}/going");
        let answer = done(&client, ("DELETE", &path, "application/json"), &Value::Null).await?;
        ensure!(answer["status"]["phase"] == "Terminating", "{answer}");
    }
    // Both ways to name a class may name the same one.
    let ingress = json!({"metadata": {"name": "both", "annotations": {"kubernetes.io/ingress.class": "a"}},
        "spec": {"ingressClassName": "a", "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}});
    create(
        &client,
        "/apis/networking.k8s.io/v1/namespaces/default/ingresses",
        &ingress,
    )
    .await?;
    Ok(())
}
