//! Requests that must be refused: each gets its `Status`, and the store stays as it was.

use anyhow::{Context as _, Result};
use kube::Client;
use serde_json::{Value, json};

use crate::server::{Server, get, json, send};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

async fn revision(client: &Client) -> Result<String> {
    let list = get(client, CONFIG_MAPS).await?;
    Ok(list["metadata"]["resourceVersion"]
        .as_str()
        .context("no revision")?
        .to_owned())
}

#[tokio::test]
async fn bad_requests_get_their_status_and_change_nothing() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let map = json!({"metadata": {"name": "there"}, "data": {"a": "1"}});
    let (_, there) = json(&client, "POST", CONFIG_MAPS, &map).await?;
    let stale = json!({"metadata": {"name": "there", "resourceVersion": "1"}});
    let other_uid = json!({"metadata": {"name": "there", "uid": "nobody"}});
    let there_path = format!("{CONFIG_MAPS}/there");
    let before = revision(&client).await?;

    let big = format!("{{\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(4 << 20));
    let json_type = "application/json";
    let merge = "application/merge-patch+json";
    let json_patch = "application/json-patch+json";
    let apply = "application/apply-patch+yaml";
    let named = |name: &str| json!({"metadata": {"name": name}}).to_string();
    let strict = format!("{DEPLOYMENTS}?fieldValidation=Strict");
    let unknown_field = json!({"metadata": {"name": "d"}, "spec": {"replicaz": 1}}).to_string();
    let wrong_type = json!({"metadata": {"name": "d"}, "spec": {"replicas": "many"}}).to_string();
    let elsewhere = json!({"metadata": {"name": "a", "namespace": "other"}}).to_string();
    let options = json!({"preconditions": {"uid": "nobody"}}).to_string();
    let bad_test = json!([{"op": "test", "path": "/data/a", "value": "2"}]).to_string();
    let dry = format!("{CONFIG_MAPS}?dryRun=Some");
    let rows: &[(&str, &str, &str, &str, String, u16, &str)] = &[
        (
            "not JSON",
            "POST",
            CONFIG_MAPS,
            json_type,
            "{".into(),
            400,
            "BadRequest",
        ),
        (
            "not an object",
            "POST",
            CONFIG_MAPS,
            json_type,
            "[]".into(),
            400,
            "BadRequest",
        ),
        (
            "no body",
            "POST",
            CONFIG_MAPS,
            json_type,
            String::new(),
            400,
            "BadRequest",
        ),
        (
            "another kind",
            "POST",
            CONFIG_MAPS,
            json_type,
            json!({"kind": "Pod", "metadata": {"name": "a"}}).to_string(),
            400,
            "BadRequest",
        ),
        (
            "another version",
            "POST",
            CONFIG_MAPS,
            json_type,
            json!({"apiVersion": "v2", "metadata": {"name": "a"}}).to_string(),
            400,
            "BadRequest",
        ),
        (
            "another namespace",
            "POST",
            CONFIG_MAPS,
            json_type,
            elsewhere,
            400,
            "BadRequest",
        ),
        (
            "unknown field",
            "POST",
            &strict,
            json_type,
            unknown_field,
            400,
            "BadRequest",
        ),
        (
            "wrong type",
            "POST",
            DEPLOYMENTS,
            json_type,
            wrong_type,
            400,
            "BadRequest",
        ),
        (
            "broken protobuf",
            "POST",
            CONFIG_MAPS,
            "application/vnd.kubernetes.protobuf",
            "k8s\0\u{ff}".into(),
            400,
            "BadRequest",
        ),
        (
            "no name",
            "POST",
            CONFIG_MAPS,
            json_type,
            "{}".into(),
            422,
            "Invalid",
        ),
        (
            "bad name",
            "POST",
            CONFIG_MAPS,
            json_type,
            named("A_b"),
            422,
            "Invalid",
        ),
        (
            "empty key",
            "POST",
            CONFIG_MAPS,
            json_type,
            json!({"metadata": {"name": "a"}, "data": {"": "1"}}).to_string(),
            422,
            "Invalid",
        ),
        (
            "no spec",
            "POST",
            DEPLOYMENTS,
            json_type,
            named("d"),
            422,
            "Invalid",
        ),
        (
            "no such namespace",
            "POST",
            "/api/v1/namespaces/nowhere/configmaps",
            json_type,
            named("a"),
            404,
            "NotFound",
        ),
        (
            "no such object",
            "GET",
            "/api/v1/namespaces/default/configmaps/none",
            json_type,
            String::new(),
            404,
            "NotFound",
        ),
        (
            "no such resource",
            "GET",
            "/api/v1/unicorns",
            json_type,
            String::new(),
            404,
            "NotFound",
        ),
        (
            "no such path",
            "GET",
            "/unicorns",
            json_type,
            String::new(),
            404,
            "NotFound",
        ),
        (
            "no such subresource",
            "GET",
            &format!("{there_path}/scale"),
            json_type,
            String::new(),
            404,
            "NotFound",
        ),
        (
            "method",
            "PUT",
            CONFIG_MAPS,
            json_type,
            named("a"),
            405,
            "MethodNotAllowed",
        ),
        (
            "exists",
            "POST",
            CONFIG_MAPS,
            json_type,
            named("there"),
            409,
            "AlreadyExists",
        ),
        (
            "stale",
            "PUT",
            &there_path,
            json_type,
            stale.to_string(),
            409,
            "Conflict",
        ),
        (
            "another uid",
            "PUT",
            &there_path,
            json_type,
            other_uid.to_string(),
            409,
            "Conflict",
        ),
        (
            "precondition",
            "DELETE",
            &there_path,
            json_type,
            options,
            409,
            "Conflict",
        ),
        (
            "too large",
            "POST",
            CONFIG_MAPS,
            json_type,
            big,
            413,
            "RequestEntityTooLarge",
        ),
        (
            "media type",
            "POST",
            CONFIG_MAPS,
            "text/plain",
            "x".into(),
            415,
            "UnsupportedMediaType",
        ),
        (
            "patch type",
            "PATCH",
            &there_path,
            json_type,
            "{}".into(),
            415,
            "UnsupportedMediaType",
        ),
        (
            "patch test",
            "PATCH",
            &there_path,
            json_patch,
            bad_test,
            422,
            "Invalid",
        ),
        (
            "patch form",
            "PATCH",
            &there_path,
            json_patch,
            "{}".into(),
            400,
            "BadRequest",
        ),
        (
            "merge form",
            "PATCH",
            &there_path,
            merge,
            "[]".into(),
            400,
            "BadRequest",
        ),
        (
            "apply without manager",
            "PATCH",
            &there_path,
            apply,
            named("there"),
            422,
            "Invalid",
        ),
        ("dry run", "POST", &dry, json_type, named("a"), 422, "Invalid"),
        (
            "label selector",
            "GET",
            &format!("{CONFIG_MAPS}?labelSelector=a%20b"),
            json_type,
            String::new(),
            400,
            "BadRequest",
        ),
        (
            "field selector",
            "GET",
            &format!("{CONFIG_MAPS}?fieldSelector=data.a%3D1"),
            json_type,
            String::new(),
            400,
            "BadRequest",
        ),
        (
            "continue token",
            "GET",
            &format!("{CONFIG_MAPS}?limit=1&continue=x"),
            json_type,
            String::new(),
            400,
            "BadRequest",
        ),
        (
            "version",
            "GET",
            &format!("{CONFIG_MAPS}?resourceVersion=x"),
            json_type,
            String::new(),
            400,
            "BadRequest",
        ),
        (
            "log",
            "GET",
            "/api/v1/namespaces/default/pods/p/log",
            json_type,
            String::new(),
            404,
            "NotFound",
        ),
    ];
    for (what, method, path, kind, body, code, reason) in rows {
        // A server may close the connection on which it refused a body, so each request has its own.
        let client = server.client().await?;
        let (status, answer) = send(&client, method, path, kind, body.as_bytes())
            .await
            .context(*what)?;
        assert_eq!(status.as_u16(), *code, "{what}: {answer}");
        assert_eq!(answer["kind"], "Status", "{what}: {answer}");
        assert_eq!(answer["reason"], *reason, "{what}: {answer}");
        assert_eq!(answer["code"], *code, "{what}: {answer}");
        assert_eq!(answer["status"], "Failure", "{what}: {answer}");
    }
    assert_eq!(
        revision(&client).await?,
        before,
        "a refused request wrote something"
    );
    assert_eq!(get(&client, &there_path).await?, there);
    Ok(())
}

#[tokio::test]
async fn messages_are_those_that_people_know() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let (_, missing) = json(&client, "GET", &format!("{DEPLOYMENTS}/web"), &Value::Null).await?;
    assert_eq!(missing["message"], "deployments.apps \"web\" not found");
    assert_eq!(
        missing["details"],
        json!({"name": "web", "group": "apps", "kind": "deployments"})
    );
    let (_, missing) = json(
        &client,
        "POST",
        "/api/v1/namespaces/x/pods",
        &json!({
            "metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }),
    )
    .await?;
    assert_eq!(missing["message"], "namespaces \"x\" not found");
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
    let (_, invalid) = json(&client, "POST", "/api/v1/namespaces/default/pods", &pod).await?;
    assert_eq!(
        invalid["message"],
        "Pod \"p\" is invalid: spec.containers: Required value"
    );
    assert_eq!(invalid["details"]["causes"][0]["reason"], "FieldValueRequired");
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"replicaz": 1}});
    let (_, strict) = json(
        &client,
        "POST",
        &format!("{DEPLOYMENTS}?fieldValidation=Strict"),
        &deployment,
    )
    .await?;
    assert_eq!(
        strict["message"],
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: unknown field \
         \"spec.replicaz\""
    );
    Ok(())
}

#[tokio::test]
async fn a_stale_writer_loses_and_a_fresh_one_wins() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    let (_, first) = json(&client, "POST", CONFIG_MAPS, &map).await?;
    let path = format!("{CONFIG_MAPS}/m");
    let mut fresh = first.clone();
    fresh["data"]["a"] = json!("2");
    let (status, _) = json(&client, "PUT", &path, &fresh).await?;
    assert_eq!(status, 200);
    let (status, answer) = json(&client, "PUT", &path, &fresh).await?;
    assert_eq!(status, 409);
    assert_eq!(
        answer["message"],
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes to \
         the latest version and try again"
    );
    assert_eq!(get(&client, &path).await?["data"]["a"], "2");
    Ok(())
}

#[tokio::test]
async fn a_patch_that_leaves_fields_as_they_must_not_be_is_unprocessable() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let deployment = json!({"metadata": {"name": "d", "uid": "u"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    let (status, made) = json(&client, "POST", DEPLOYMENTS, &deployment).await?;
    assert_eq!(status, 201, "{made}");
    let path = format!("{DEPLOYMENTS}/d");
    let strategic = "application/strategic-merge-patch+json";
    let merge = "application/merge-patch+json";
    let by_operations = "application/json-patch+json";
    let replicas = json!({"spec": {"replicas": "many"}});
    let odd = json!({"spec": {"replicaz": 1}});
    let operations = json!([{"op": "add", "path": "/spec/replicas", "value": "many"}]);
    let strict = "?fieldValidation=Strict";
    let cases = [
        (
            strategic,
            "",
            &replicas,
            "patch: Invalid value: \"map[spec:map[replicas:many]]\": unrecognized type: int32",
        ),
        (
            strategic,
            strict,
            &odd,
            "patch: Invalid value: \"map[spec:map[replicaz:1]]\": strict decoding error: unknown field \"spec.replicaz\"",
        ),
        (
            merge,
            "",
            &replicas,
            "Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            merge,
            strict,
            &odd,
            "strict decoding error: unknown field \"spec.replicaz\"",
        ),
        (
            by_operations,
            "",
            &operations,
            "Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
    ];
    for (kind, query, patch, expected) in cases {
        let (status, answer) = send(
            &client,
            "PATCH",
            &format!("{path}{query}"),
            kind,
            patch.to_string(),
        )
        .await?;
        assert_eq!(
            (status.as_u16(), &answer["reason"]),
            (422, &json!("Invalid")),
            "{kind}: {answer}"
        );
        let message = answer["message"].as_str().unwrap_or_default();
        assert!(
            message.starts_with(" \"\" is invalid: patch: Invalid value: \"") && message.ends_with(expected),
            "{kind}: {message}"
        );
        let details = &answer["details"];
        assert_eq!(
            details.as_object().map(serde_json::Map::len),
            Some(1),
            "{details}"
        );
        assert_eq!(details["causes"][0]["field"], "patch");
    }
    let (_, kept) = json(&client, "GET", &path, &Value::Null).await?;
    assert_eq!(
        kept["metadata"]["resourceVersion"],
        made["metadata"]["resourceVersion"]
    );
    let output = server.try_kubectl(&["patch", "deployment", "d", "-p", &replicas.to_string()])?;
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "The request is invalid: patch: Invalid value: \"map[spec:map[replicas:many]]\": unrecognized type: int32\n"
    );
    Ok(())
}
