//! Lists and watches: nothing missed, one order, selectors, bookmarks, expiry.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::{StreamExt as _, stream::BoxStream};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::server::{self, Server, get, json, next};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// The events of a watch of ConfigMaps.
async fn watch(client: &Client, query: &str) -> Result<BoxStream<'static, Value>> {
    server::watch(client, &format!("{CONFIG_MAPS}?watch=true&{query}")).await
}

/// `TYPE name`.
async fn brief(events: &mut BoxStream<'static, Value>) -> Result<String> {
    let event = next(events).await?;
    let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
    Ok(format!("{} {name}", event["type"].as_str().unwrap_or_default()))
}

async fn put(client: &Client, name: &str, labels: Value, value: &str) -> Result<Value> {
    let object = json!({"metadata": {"name": name, "labels": labels}, "data": {"v": value}});
    let (status, answer) = json(client, "PUT", &format!("{CONFIG_MAPS}/{name}"), &object).await?;
    if status == 404 {
        return Ok(json(client, "POST", CONFIG_MAPS, &object).await?.1);
    }
    Ok(answer)
}

async fn revision(client: &Client) -> Result<String> {
    let list = get(client, CONFIG_MAPS).await?;
    Ok(list["metadata"]["resourceVersion"]
        .as_str()
        .context("no revision")?
        .to_owned())
}

#[tokio::test]
async fn a_watch_from_a_list_sees_every_change_in_order() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    put(&client, "before", json!({}), "1").await?;
    let start = revision(&client).await?;
    for round in 0..50 {
        put(&client, "a", json!({}), &round.to_string()).await?;
    }
    json(&client, "DELETE", &format!("{CONFIG_MAPS}/a"), &Value::Null).await?;
    let mut late = watch(&client, &format!("resourceVersion={start}")).await?;
    let mut last = start.parse::<u64>()?;
    for round in 0..50 {
        let event = next(&mut late).await?;
        assert_eq!(event["type"], if round == 0 { "ADDED" } else { "MODIFIED" });
        assert_eq!(event["object"]["data"]["v"], round.to_string());
        assert_eq!(event["object"]["kind"], "ConfigMap");
        let version: u64 = event["object"]["metadata"]["resourceVersion"]
            .as_str()
            .context("no version")?
            .parse()?;
        assert!(version > last, "versions go up");
        last = version;
    }
    let gone = next(&mut late).await?;
    assert_eq!(gone["type"], "DELETED");
    assert_eq!(gone["object"]["data"]["v"], "49", "the last state");
    let version: u64 = gone["object"]["metadata"]["resourceVersion"]
        .as_str()
        .context("no version")?
        .parse()?;
    assert!(version > last, "a deletion has a version of its own");
    Ok(())
}

#[tokio::test]
async fn without_a_version_a_watch_begins_with_what_is_there() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    put(&client, "a", json!({}), "1").await?;
    put(&client, "b", json!({}), "1").await?;
    for query in ["", "resourceVersion=0"] {
        let mut events = watch(&client, query).await?;
        assert_eq!(brief(&mut events).await?, "ADDED a");
        assert_eq!(brief(&mut events).await?, "ADDED b");
        put(&client, "b", json!({"q": query.len().to_string()}), "2").await?;
        assert_eq!(brief(&mut events).await?, "MODIFIED b");
    }
    let query =
        "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=0";
    let mut events = watch(&client, query).await?;
    assert_eq!(brief(&mut events).await?, "ADDED a");
    assert_eq!(brief(&mut events).await?, "ADDED b");
    let mark = next(&mut events).await?;
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(
        mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    Ok(())
}

#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let start = revision(&client).await?;
    let mut last = 0;
    let mut events = watch(&client, &format!("resourceVersion={start}&labelSelector=app%3Dx")).await?;
    put(&client, "a", json!({"app": "y"}), "1").await?;
    put(&client, "a", json!({"app": "x"}), "2").await?;
    put(&client, "a", json!({"app": "x"}), "3").await?;
    put(&client, "a", json!({"app": "y"}), "4").await?;
    put(&client, "a", json!({"app": "x"}), "5").await?;
    json(&client, "DELETE", &format!("{CONFIG_MAPS}/a"), &Value::Null).await?;
    for (kind, value) in [
        ("ADDED", "2"),
        ("MODIFIED", "3"),
        // As it was when it was selected, at the version of its departure.
        ("DELETED", "3"),
        ("ADDED", "5"),
        ("DELETED", "5"),
    ] {
        let event = next(&mut events).await?;
        assert_eq!(
            (&event["type"], &event["object"]["data"]["v"]),
            (&json!(kind), &json!(value))
        );
        assert_eq!(
            event["object"]["metadata"]["labels"]["app"], "x",
            "{kind} {value}"
        );
        let version: u64 = event["object"]["metadata"]["resourceVersion"]
            .as_str()
            .context("no version")?
            .parse()?;
        assert!(version > last, "{kind} {value}");
        last = version;
    }
    Ok(())
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_after_a_bookmark() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let start = revision(&client).await?;
    let query = format!("resourceVersion={start}&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut events = watch(&client, &query).await?;
    let mark = next(&mut events).await?;
    assert_eq!(
        (&mark["type"], &mark["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("ConfigMap"))
    );
    let end = timeout(Duration::from_secs(5), events.next()).await?;
    assert_eq!(end, None);
    Ok(())
}

#[tokio::test]
async fn a_watcher_that_cannot_keep_up_is_told_and_holds_nobody_up() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let start = revision(&client).await?;
    let mut slow = watch(&client, &format!("resourceVersion={start}")).await?;
    // More than the history and all buffers on the way to the watcher hold.
    let filler = "x".repeat(700 << 10);
    for round in 0..60 {
        put(&client, "big", json!({}), &format!("{round}{filler}")).await?;
    }
    let mut quick = watch(&client, &format!("resourceVersion={}", revision(&client).await?)).await?;
    put(&client, "small", json!({}), "1").await?;
    assert_eq!(brief(&mut quick).await?, "ADDED small");
    loop {
        let event = next(&mut slow).await?;
        if event["type"] == "ERROR" {
            assert_eq!(event["object"]["code"], 410);
            assert_eq!(event["object"]["reason"], "Expired");
            return Ok(());
        }
        assert_ne!(
            event["object"]["metadata"]["name"], "small",
            "an event was skipped silently"
        );
    }
}

#[tokio::test]
async fn pages_show_one_moment_and_old_tokens_expire_usefully() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    for index in 0..10 {
        put(&client, &format!("m{index}"), json!({}), "1").await?;
    }
    let mut path = format!("{CONFIG_MAPS}?limit=4");
    let (mut names, mut versions) = (Vec::new(), Vec::new());
    let mut remaining = Vec::new();
    loop {
        let page = get(&client, &path).await?;
        for item in page["items"].as_array().context("no items")? {
            names.push(item["metadata"]["name"].as_str().unwrap_or_default().to_owned());
        }
        versions.push(page["metadata"]["resourceVersion"].clone());
        remaining.push(page["metadata"]["remainingItemCount"].as_u64());
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        path = format!("{CONFIG_MAPS}?limit=4&continue={token}");
        // What happens between the pages does not show.
        json(&client, "DELETE", &format!("{CONFIG_MAPS}/m9"), &Value::Null).await?;
        put(&client, "m55", json!({}), "1").await?;
    }
    let expected: Vec<_> = (0..10).map(|index| format!("m{index}")).collect();
    assert_eq!(names, expected);
    assert!(versions.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(remaining, [Some(6), Some(2), None]);

    // After a restart the moment is gone; the answer says how to go on without it.
    let page = get(&client, &format!("{CONFIG_MAPS}?limit=4")).await?;
    let token = page["metadata"]["continue"]
        .as_str()
        .context("no token")?
        .to_owned();
    let mut server = server;
    server.crash_and_restart(&["--api-only"])?;
    let client = server.client().await?;
    let (status, answer) = json(
        &client,
        "GET",
        &format!("{CONFIG_MAPS}?limit=100&continue={token}"),
        &Value::Null,
    )
    .await?;
    assert_eq!((status.as_u16(), &answer["reason"]), (410, &json!("Expired")));
    let fresh = answer["metadata"]["continue"]
        .as_str()
        .context("no fresh token")?;
    let rest = get(&client, &format!("{CONFIG_MAPS}?limit=100&continue={fresh}")).await?;
    assert_eq!(rest["items"][0]["metadata"]["name"], "m4");
    Ok(())
}

#[tokio::test]
async fn a_watch_resumes_over_a_restart_or_is_told_that_it_cannot() -> Result<()> {
    let mut server = Server::api_only()?;
    let client = server.client().await?;
    put(&client, "a", json!({}), "1").await?;
    let old = revision(&client).await?;
    put(&client, "a", json!({}), "2").await?;
    let latest = revision(&client).await?;
    server.crash_and_restart(&["--api-only"])?;
    let client = server.client().await?;
    let mut events = watch(&client, &format!("resourceVersion={latest}")).await?;
    put(&client, "a", json!({}), "3").await?;
    assert_eq!(next(&mut events).await?["object"]["data"]["v"], "3");
    let mut events = watch(&client, &format!("resourceVersion={old}")).await?;
    let told = next(&mut events).await?;
    assert_eq!(
        (&told["type"], &told["object"]["code"], &told["object"]["reason"]),
        (&json!("ERROR"), &json!(410), &json!("Expired"))
    );
    Ok(())
}
