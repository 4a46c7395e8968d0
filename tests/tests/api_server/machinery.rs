//! What every resource has in common: options, forms of answers, subresources that wait for the node, caching.

use anyhow::Result;
use http::{Request, StatusCode, header};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json as value};

use crate::server::{Server, get, json, send};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn options_that_cannot_be_are_named() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let map = value!({"metadata": {"name": "a"}});
    for (method, query, message) in [
        (
            "POST",
            "dryRun=Some",
            "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: \"Some\": supported values: \"All\"",
        ),
        (
            "POST",
            "fieldValidation=Maybe",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldValidation: Unsupported value: \"Maybe\": supported values: \
             \"\", \"Ignore\", \"Strict\", \"Warn\"",
        ),
        (
            "GET",
            "resourceVersionMatch=Exact",
            "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden \
             unless resourceVersion is provided",
        ),
        (
            "GET",
            "watch=1&sendInitialEvents=true",
            "ListOptions.meta.k8s.io \"\" is invalid: [resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
             resourceVersionMatch to NotOlderThan, sendInitialEvents: Forbidden: sendInitialEvents requires \
             allowWatchBookmarks]",
        ),
    ] {
        let (code, body) = json(&client, method, &format!("{CONFIG_MAPS}?{query}"), &map).await?;
        assert_eq!(
            (code.as_u16(), &body["reason"]),
            (422, &value!("Invalid")),
            "{query}"
        );
        assert_eq!(body["message"], message, "{query}");
    }
    Ok(())
}

#[tokio::test]
async fn what_needs_the_node_says_so() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let pod = value!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let (code, body) = json(&client, "POST", "/api/v1/namespaces/default/pods", &pod).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    let pod = "/api/v1/namespaces/default/pods/p";
    for (method, path) in [
        ("GET", format!("{pod}/proxy/some/where?x=y")),
        ("POST", format!("{pod}/proxy")),
        ("GET", "/api/v1/nodes/n:10250/proxy/healthz".to_owned()),
        (
            "DELETE",
            "/api/v1/namespaces/default/services/https:s:80/proxy/a".to_owned(),
        ),
    ] {
        let (code, body) = json(&client, method, &path, &Value::Null).await?;
        assert_eq!(code, StatusCode::NOT_IMPLEMENTED, "{method} {path}: {body}");
        assert_eq!(body["reason"], "NotImplemented");
    }
    let listed = get(&client, "/api/v1").await?;
    let listed = listed["resources"].as_array().cloned().unwrap_or_default();
    let kind = |name: &str| {
        listed
            .iter()
            .find(|r| r["name"] == name)
            .map(|r| r["kind"].clone())
    };
    assert_eq!(kind("nodes/proxy"), Some(value!("NodeProxyOptions")));
    assert_eq!(kind("pods/ephemeralcontainers"), Some(value!("Pod")));
    Ok(())
}

#[tokio::test]
async fn pods_change_through_their_subresources() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let pod = value!({"metadata": {"name": "p"}, "spec": {"containers": [
        {"name": "c", "image": "i:1", "resources": {"requests": {"cpu": "1"}}}]}});
    json(&client, "POST", "/api/v1/namespaces/default/pods", &pod).await?;
    let pod = "/api/v1/namespaces/default/pods/p";
    let strategic = "application/strategic-merge-patch+json";
    let debug = value!({"spec": {"ephemeralContainers": [{"name": "d", "image": "j:1"}]}}).to_string();
    let (code, body) = send(
        &client,
        "PATCH",
        &format!("{pod}/ephemeralcontainers"),
        strategic,
        debug.clone(),
    )
    .await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    assert_eq!(body["spec"]["ephemeralContainers"][0]["name"], "d");
    let (code, _) = send(&client, "PATCH", pod, strategic, debug.replace("j:1", "k:1")).await?;
    assert_eq!(
        code,
        StatusCode::UNPROCESSABLE_ENTITY,
        "not through the pod itself"
    );
    let (code, body) = send(
        &client,
        "PATCH",
        &format!("{pod}/ephemeralcontainers"),
        strategic,
        debug.replace("j:1", "k:1"),
    )
    .await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        body["message"],
        "Pod \"p\" is invalid: spec.ephemeralContainers: Forbidden: existing ephemeral containers \"d\" may not be changed"
    );
    let more = value!({"spec": {"containers": [{"name": "c", "image": "other", "resources": {"requests": {"cpu": "2"}}}]}});
    let (code, body) = send(
        &client,
        "PATCH",
        &format!("{pod}/resize"),
        strategic,
        more.to_string(),
    )
    .await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    let container = &body["spec"]["containers"][0];
    assert_eq!(
        (&container["resources"]["requests"]["cpu"], &container["image"]),
        (&value!("2"), &value!("i:1")),
        "resources change, nothing else does"
    );
    Ok(())
}

async fn headers(client: &Client, path: &str, accept: &str) -> Result<http::HeaderMap> {
    let request = Request::get(path)
        .header(header::ACCEPT, accept)
        .body(Body::empty())?;
    Ok(client.send(request).await?.headers().clone())
}

#[tokio::test]
async fn schemas_are_cached_and_discovery_has_its_forms() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let root = get(&client, "/openapi/v3").await?;
    let url = root["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap_or_default();
    let hashed = headers(&client, url, "application/json").await?;
    assert_eq!(hashed["cache-control"], "public, max-age=31536000, immutable");
    assert!(hashed.contains_key("expires") && hashed.contains_key("etag"));
    let plain = headers(&client, "/openapi/v3/apis/apps/v1", "application/json").await?;
    assert!(
        !plain.contains_key("cache-control"),
        "without its hash the document may change"
    );
    for version in ["v2", "v2beta1"] {
        let accept = format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList");
        let found = headers(&client, "/apis", &accept).await?;
        assert_eq!(found["content-type"], accept.as_str());
    }
    Ok(())
}
