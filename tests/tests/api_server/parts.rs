//! How the control plane's parts are, as `kubectl get componentstatuses` asks.

use anyhow::{Context as _, Result};
use http::StatusCode;
use serde_json::json;
use weft_controller::leader;

use crate::server::{Server, json as send};

fn rows(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[test]
fn parts_are_healthy_where_they_run() -> Result<()> {
    let server = Server::start(&["--controllers=*,-scheduler"])?;
    let output = server.try_kubectl(&["get", "cs"])?;
    let warning = String::from_utf8(output.stderr)?;
    assert_eq!(warning, "Warning: v1 ComponentStatus is deprecated in v1.19+\n");
    let table = String::from_utf8(output.stdout)?;
    let nobody = "nobody holds a Lease for it in namespace kube-system";
    let unhealthy: Vec<&str> = ["scheduler", "Unhealthy"]
        .into_iter()
        .chain(nobody.split(' '))
        .chain(nobody.split(' '))
        .collect();
    assert_eq!(
        rows(&table),
        [
            vec!["NAME", "STATUS", "MESSAGE", "ERROR"],
            vec!["controller-manager", "Healthy", "ok"],
            unhealthy,
            vec!["store", "Healthy", "ok"],
        ]
    );
    let one = server.kubectl(&[
        "get",
        "componentstatuses",
        "store",
        "--output=jsonpath={.conditions[*].type}",
    ])?;
    assert_eq!(one, "Healthy");
    let missing = server.try_kubectl(&["get", "cs", "etcd-0"])?;
    assert!(
        String::from_utf8(missing.stderr)?.ends_with("(NotFound): componentstatuses \"etcd-0\" not found\n")
    );
    Ok(())
}

#[tokio::test]
async fn a_held_lease_says_that_a_part_runs_elsewhere() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let status = |name: &'static str| {
        let client = client.clone();
        async move {
            let path = format!("/api/v1/componentstatuses/{name}");
            let found = crate::server::get(&client, &path).await?;
            let status = found["conditions"][0]["status"].as_str().context("a condition")?;
            anyhow::Ok(status.to_owned())
        }
    };
    assert_eq!(status("controller-manager").await?, "False");
    assert_eq!(status("scheduler").await?, "False");
    let now = format!("{:.6}", jiff::Timestamp::now());
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "kube-scheduler"},
        "spec": {"holderIdentity": "it", "leaseDurationSeconds": 600, "renewTime": now},
    });
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/{}/leases",
        leader::NAMESPACE
    );
    assert_eq!(send(&client, "POST", &path, &lease).await?.0, StatusCode::CREATED);
    assert_eq!(status("scheduler").await?, "True");
    assert_eq!(status("controller-manager").await?, "False");

    let path = "/api/v1/componentstatuses";
    for (method, path) in [
        ("POST", path.to_owned()),
        ("DELETE", path.to_owned()),
        ("GET", format!("{path}?watch=true")),
        ("PUT", format!("{path}/store")),
        ("DELETE", format!("{path}/store")),
    ] {
        let (code, _) = send(&client, method, &path, &json!({})).await?;
        assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
    }
    Ok(())
}
