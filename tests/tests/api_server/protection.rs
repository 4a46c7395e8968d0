//! What is too much, what is written down, and what is kept secret.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_lab::wait::wait_for;

use crate::server::{Server, get, json, send, send_with};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn what_is_too_big_is_refused() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let before = get(&client, PODS).await?["metadata"]["resourceVersion"].clone();
    let body = json!({"metadata": {"name": "big"}, "data": {"k": "x".repeat(4 << 20)}});
    let path = "/api/v1/namespaces/default/configmaps";
    let (status, answer) = json(&client, "POST", path, &body).await?;
    ensure!(
        status == 413 && answer["reason"] == "RequestEntityTooLarge",
        "{answer}"
    );
    // A small text that aliases make a large one.
    let list = "0,".repeat(200_000);
    let bomb = format!("a: &a [{list}]\nb: [{}]\n", "*a,".repeat(200_000));
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (status, answer) = send(&client, "POST", review, "application/yaml", bomb).await?;
    ensure!(status == 400, "{answer}");
    // The limit is on what is buffered, and the read that reaches it may bring as much again.
    let long = "x".repeat(300 << 10);
    let headers = [("x-long", long.as_str())];
    // Over HTTP/2 the connection may end with the answer.
    if let Ok((status, _)) = send_with(&client, "GET", "/version", &headers, "").await {
        ensure!(status == 431, "{status}");
    }
    ensure!(get(&client, PODS).await?["metadata"]["resourceVersion"] == before);
    Ok(())
}

#[tokio::test]
async fn one_client_does_not_have_the_server_to_itself() -> Result<()> {
    let server = Server::start(&[
        "--api-only",
        "--client-burst",
        "20",
        "--client-qps",
        "1",
        "--client-watches",
        "2",
    ])?;
    let master = server.client().await?;
    server.kubectl(&[
        "create",
        "clusterrolebinding",
        "all",
        "--clusterrole=view",
        "--user=bob",
        "--user=carol",
    ])?;
    let bob = server.user("bob", None).await?;
    let mut refusal = Value::Null;
    for _ in 0..40 {
        let (status, answer) = send(&bob, "GET", PODS, "application/json", "").await?;
        if status == 429 {
            refusal = answer;
            break;
        }
        ensure!(status == 200, "{answer}");
    }
    ensure!(
        refusal["reason"] == "TooManyRequests" && refusal["kind"] == "Status",
        "{refusal}"
    );
    ensure!(refusal["details"]["retryAfterSeconds"] == 1, "{refusal}");
    // Others are not held up, and health is nobody's quota.
    get(&bob, "/healthz").await?;
    let carol = server.user("carol", None).await?;
    let watch = |client: &kube::Client| {
        let request = http::Request::get(format!("{PODS}?watch=1")).body(Vec::new());
        let client = client.clone();
        async move { anyhow::Ok(client.send(request?.map(kube::client::Body::from)).await?) }
    };
    let first = watch(&carol).await?;
    let second = watch(&carol).await?;
    ensure!(first.status() == 200 && second.status() == 200);
    let third = watch(&carol).await?;
    ensure!(third.status() == 429 && third.headers()["retry-after"] == "1");
    let metrics = get(&master, "/metrics").await?;
    ensure!(
        metrics
            .as_str()
            .unwrap_or_default()
            .contains("weft_api_watches 2"),
        "{metrics}"
    );
    drop(first);
    Ok(())
}

#[tokio::test]
async fn the_audit_log_says_who_did_what() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("audit.log");
    let server = Server::start(&["--api-only", "--audit-log", file.to_str().context("path")?])?;
    let bob = server.user("bob", None).await?;
    json(&bob, "DELETE", &format!("{PODS}/p"), &Value::Null).await?;
    server.try_kubectl(&["get", "--raw", PODS, "--as", "carol"])?;
    server.kubectl(&[
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=password=hunter2",
    ])?;
    let events = || -> Vec<Value> {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    };
    let event = |verb: &'static str, user: &'static str, resource: &'static str| {
        wait_for("the event", Duration::from_secs(10), || {
            events().into_iter().find(|event| {
                event["verb"] == verb
                    && event["user"]["username"] == user
                    && event["objectRef"]["resource"] == resource
            })
        })
    };
    let refused = event("delete", "bob", "pods")?;
    ensure!(
        refused["level"] == "Metadata" && refused["stage"] == "ResponseComplete",
        "{refused}"
    );
    ensure!(refused["responseStatus"]["code"] == 403 && refused["responseStatus"]["reason"] == "Forbidden");
    ensure!(
        refused["objectRef"]["name"] == "p" && refused["sourceIPs"] == json!(["127.0.0.1"]),
        "{refused}"
    );
    ensure!(refused["annotations"]["authorization.k8s.io/decision"] == "forbid");
    let as_carol = event("list", "kubernetes-admin", "pods")?;
    ensure!(as_carol["impersonatedUser"]["username"] == "carol", "{as_carol}");
    let created = event("create", "kubernetes-admin", "secrets")?;
    ensure!(
        created["responseStatus"]["code"] == 201 && created["userAgent"].as_str().is_some(),
        "{created}"
    );
    ensure!(!std::fs::read_to_string(&file)?.contains("hunter2"));
    Ok(())
}

#[tokio::test]
async fn secrets_are_not_plain_on_disk() -> Result<()> {
    let mut server = Server::api_only()?;
    server.kubectl(&[
        "create",
        "secret",
        "generic",
        "s",
        "--from-literal=password=correct-horse",
    ])?;
    server.kubectl(&[
        "create",
        "configmap",
        "c",
        "--from-literal=password=battery-staple",
    ])?;
    let stored = std::fs::read(server.path("data/store.redb"))?;
    let holds = |text: &str| stored.windows(text.len()).any(|part| part == text.as_bytes());
    // As the API has it, and as the record would.
    ensure!(holds("battery-staple") && !holds("correct-horse") && !holds("Y29ycmVjdC1ob3JzZQ"));
    server.crash_and_restart(&["--api-only"])?;
    let back = server.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.password}"])?;
    ensure!(back == "Y29ycmVjdC1ob3JzZQ==", "{back}");
    Ok(())
}
