//! The rules of objects: what the server sets, what writes change, how things end.

use anyhow::Result;
use serde_json::{Value, json};

use crate::server::{Server, get, json, send};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const PODS: &str = "/api/v1/namespaces/default/pods";
const MERGE: &str = "application/merge-patch+json";

fn deployment() -> Value {
    json!({
        "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "i:1"}]},
            },
        },
    })
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn creation_fills_in_what_only_the_server_knows() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let mut object = deployment();
    object["metadata"]["uid"] = json!("mine");
    object["metadata"]["creationTimestamp"] = Value::Null;
    object["status"] = json!({"replicas": 9});
    let (_, made) = json(&client, "POST", DEPLOYMENTS, &object).await?;
    assert_ne!(made["metadata"]["uid"], "mine");
    assert_eq!(made["metadata"]["generation"], 1);
    assert!(made["metadata"]["creationTimestamp"].is_string());
    assert!(
        made["status"]["replicas"].is_null(),
        "a client cannot make a status"
    );
    assert_eq!(made["spec"]["replicas"], 1);
    assert_eq!(made["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(made["spec"]["template"]["spec"]["restartPolicy"], "Always");
    let generated = json!({"metadata": {"generateName": "m-"}});
    let (_, made) = json(&client, "POST", CONFIG_MAPS, &generated).await?;
    let name = made["metadata"]["name"].as_str().unwrap_or_default();
    assert!(name.starts_with("m-") && name.len() == 7, "{name}");
    Ok(())
}

#[tokio::test]
async fn generation_counts_the_spec_and_status_is_written_apart() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    json(&client, "POST", DEPLOYMENTS, &deployment()).await?;
    let path = format!("{DEPLOYMENTS}/web");
    let (_, labelled) = send(
        &client,
        "PATCH",
        &path,
        MERGE,
        r#"{"metadata":{"labels":{"a":"b"}}}"#,
    )
    .await?;
    assert_eq!(labelled["metadata"]["generation"], 1);
    let both = r#"{"spec":{"replicas":3},"status":{"replicas":3}}"#;
    let (_, scaled) = send(&client, "PATCH", &path, MERGE, both).await?;
    assert_eq!(
        (&scaled["metadata"]["generation"], &scaled["spec"]["replicas"]),
        (&json!(2), &json!(3))
    );
    assert!(scaled["status"]["replicas"].is_null());
    let (_, reported) = send(
        &client,
        "PATCH",
        &format!("{path}/status"),
        MERGE,
        r#"{"spec":{"replicas":4},"status":{"replicas":3}}"#,
    )
    .await?;
    assert_eq!(reported["status"]["replicas"], 3);
    assert_eq!(
        (&reported["metadata"]["generation"], &reported["spec"]["replicas"]),
        (&json!(2), &json!(3))
    );
    let (_, same) = send(&client, "PATCH", &path, MERGE, r#"{"spec":{"replicas":3}}"#).await?;
    assert_eq!(
        same["metadata"]["resourceVersion"], reported["metadata"]["resourceVersion"],
        "nothing changed"
    );
    Ok(())
}

#[tokio::test]
async fn the_status_of_a_pod_is_written_and_the_rest_of_it_stays() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let mut sent = pod("a");
    sent["spec"]["nodeName"] = json!("n1");
    sent["spec"]["hostNetwork"] = json!(true);
    sent["spec"]["containers"][0]["env"] = json!([{"name": "odd", "value": "\u{e9}\\\"\n"}]);
    let (_, made) = json(&client, "POST", PODS, &sent).await?;
    let path = format!("{PODS}/a");
    let below = format!("{path}/status");
    let strategic = "application/strategic-merge-patch+json";
    let mut whole = made.clone();
    whole["spec"]["nodeName"] = json!("n3");
    whole["spec"]["containers"] = json!([]);
    whole["status"]["phase"] = json!("Succeeded");
    whole["metadata"]["labels"] = json!({"ended": "yes"});
    for absent in ["resourceVersion", "managedFields"] {
        whole["metadata"][absent] = Value::Null;
    }
    let writes = [
        ("PATCH", MERGE, r#"{"spec":{"nodeName":"n2"},"status":{"phase":"Running"}}"#.to_owned(), "Running"),
        ("PATCH", strategic, r#"{"spec":null,"status":{"phase":"Failed"}}"#.to_owned(), "Failed"),
        ("PATCH", "application/json-patch+json",
         r#"[{"op":"test","path":"/spec/nodeName","value":"n1"},{"op":"replace","path":"/status/phase","value":"Unknown"}]"#
             .to_owned(), "Unknown"),
        ("PUT", "application/json", whole.to_string(), "Succeeded"),
    ];
    for (method, kind, body, phase) in &writes {
        let (status, answer) = send(&client, method, &below, kind, body.as_str()).await?;
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["status"]["phase"], *phase);
        assert_eq!(answer["spec"], made["spec"], "after {method} of {kind}");
        let (_, again) = send(&client, method, &below, kind, body.as_str()).await?;
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        assert_eq!(version(&again), version(&answer), "{method} of {kind} twice");
        for (selector, count) in [
            (
                format!("spec.nodeName=n1,spec.hostNetwork=true,status.phase={phase}"),
                1,
            ),
            ("spec.nodeName!=n1".to_owned(), 0),
        ] {
            let list = get(&client, &format!("{PODS}?fieldSelector={selector}")).await?;
            assert_eq!(list["items"].as_array().map(Vec::len), Some(count), "{selector}");
        }
    }
    let kept = get(&client, &path).await?;
    assert_eq!(kept["metadata"]["labels"]["ended"], "yes");
    assert_eq!(kept["metadata"]["generation"], made["metadata"]["generation"]);
    let managers = kept["metadata"]["managedFields"].to_string();
    assert!(
        managers.contains("f:containers") && managers.contains("f:phase"),
        "{managers}"
    );
    Ok(())
}

#[tokio::test]
async fn dry_runs_say_what_would_be_and_leave_no_trace() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let before = get(&client, CONFIG_MAPS).await?;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    let (status, made) = json(&client, "POST", &format!("{CONFIG_MAPS}?dryRun=All"), &map).await?;
    assert_eq!((status.as_u16(), &made["data"]["a"]), (201, &json!("1")));
    assert_eq!(get(&client, CONFIG_MAPS).await?, before);
    json(&client, "POST", CONFIG_MAPS, &map).await?;
    let path = format!("{CONFIG_MAPS}/m");
    let stored = get(&client, &path).await?;
    let (_, patched) = send(
        &client,
        "PATCH",
        &format!("{path}?dryRun=All"),
        MERGE,
        r#"{"data":{"a":"2"}}"#,
    )
    .await?;
    assert_eq!(patched["data"]["a"], "2");
    let (status, _) = json(&client, "DELETE", &path, &json!({"dryRun": ["All"]})).await?;
    assert_eq!(status, 200);
    assert_eq!(get(&client, &path).await?, stored);
    Ok(())
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let map = json!({"metadata": {"name": "m", "finalizers": ["example.com/a"]}});
    json(&client, "POST", CONFIG_MAPS, &map).await?;
    let path = format!("{CONFIG_MAPS}/m");
    let (_, marked) = json(&client, "DELETE", &path, &Value::Null).await?;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let more = r#"{"metadata":{"finalizers":["example.com/a","example.com/b"]}}"#;
    let (status, answer) = send(&client, "PATCH", &path, MERGE, more).await?;
    assert_eq!((status.as_u16(), &answer["reason"]), (422, &json!("Invalid")));
    let (status, _) = send(
        &client,
        "PATCH",
        &path,
        MERGE,
        r#"{"metadata":{"finalizers":null}}"#,
    )
    .await?;
    assert_eq!(status, 200);
    assert_eq!(json(&client, "GET", &path, &Value::Null).await?.0, 404);
    Ok(())
}

#[tokio::test]
async fn pods_on_a_node_end_gracefully_and_others_at_once() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    json(&client, "POST", PODS, &pod("pending")).await?;
    json(&client, "DELETE", &format!("{PODS}/pending"), &Value::Null).await?;
    assert_eq!(
        json(&client, "GET", &format!("{PODS}/pending"), &Value::Null)
            .await?
            .0,
        404
    );

    json(&client, "POST", PODS, &pod("bound")).await?;
    let binding = json!({"metadata": {"name": "bound"}, "target": {"kind": "Node", "name": "n1"}});
    let path = format!("{PODS}/bound");
    let (status, answer) = json(&client, "POST", &format!("{path}/binding"), &binding).await?;
    assert_eq!((status.as_u16(), &answer["status"]), (201, &json!("Success")));
    let (status, answer) = json(&client, "POST", &format!("{path}/binding"), &binding).await?;
    assert_eq!(
        (status.as_u16(), &answer["reason"]),
        (409, &json!("Conflict")),
        "bound once"
    );
    let bound = get(&client, &path).await?;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let (_, ending) = json(&client, "DELETE", &path, &Value::Null).await?;
    assert_eq!(ending["metadata"]["deletionGracePeriodSeconds"], 30);
    let (_, sooner) = json(&client, "DELETE", &path, &json!({"gracePeriodSeconds": 5})).await?;
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    let status = r#"{"status":{"phase":"Running"}}"#;
    send(&client, "PATCH", &format!("{path}/status"), MERGE, status).await?;
    get(&client, &path).await?;
    json(&client, "DELETE", &path, &json!({"gracePeriodSeconds": 0})).await?;
    assert_eq!(json(&client, "GET", &path, &Value::Null).await?.0, 404);
    Ok(())
}

#[tokio::test]
async fn scales_read_and_write_the_replicas() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    json(&client, "POST", DEPLOYMENTS, &deployment()).await?;
    let path = format!("{DEPLOYMENTS}/web/scale");
    let mut scale = get(&client, &path).await?;
    assert_eq!(
        (&scale["kind"], &scale["status"]["selector"]),
        (&json!("Scale"), &json!("app=web"))
    );
    scale["spec"]["replicas"] = json!(7);
    let (status, answer) = json(&client, "PUT", &path, &scale).await?;
    assert_eq!((status.as_u16(), &answer["spec"]["replicas"]), (200, &json!(7)));
    let (status, _) = json(&client, "PUT", &path, &scale).await?;
    assert_eq!(status, 409, "the scale's version is the object's");
    let (_, answer) = send(&client, "PATCH", &path, MERGE, r#"{"spec":{"replicas":0}}"#).await?;
    assert_eq!(answer["spec"]["replicas"], 0);
    Ok(())
}

#[tokio::test]
async fn events_are_one_store_in_two_versions() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let event = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "message": "hello", "reason": "Greeting", "type": "Normal",
    });
    let (status, answer) = json(&client, "POST", "/api/v1/namespaces/default/events", &event).await?;
    assert_eq!(status, 201, "{answer}");
    let other = get(&client, "/apis/events.k8s.io/v1/namespaces/default/events/e").await?;
    assert_eq!(
        (&other["note"], &other["regarding"]["name"]),
        (&json!("hello"), &json!("p"))
    );
    assert_eq!(other["apiVersion"], "events.k8s.io/v1");
    let found = get(&client, "/api/v1/events?fieldSelector=involvedObject.name%3Dp").await?;
    assert_eq!(found["items"].as_array().map(Vec::len), Some(1));
    Ok(())
}
