//! Requests as they are, and answers as they come: for suites that look at what is on the wire.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::stream::BoxStream;
use futures::{AsyncBufReadExt as _, StreamExt as _};
use http::{Request, StatusCode};
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

/// How long an event of a watch may take to come.
const EVENT_DEADLINE: Duration = Duration::from_secs(10);

/// Sends a request and reads the answer, which is JSON or becomes a JSON string.
///
/// # Errors
/// If there is no answer.
pub async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: impl Into<Vec<u8>>,
) -> Result<(StatusCode, Value)> {
    send_with(client, method, path, &[("content-type", content_type)], body).await
}

/// The same with further headers.
///
/// # Errors
/// If there is no answer.
pub async fn send_with(
    client: &Client,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Vec<u8>>,
) -> Result<(StatusCode, Value)> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::from(body.into()))?;
    let response = client.send(request).await?;
    let status = response.status();
    let bytes = response.into_body().collect_bytes().await?;
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok((status, value))
}

/// Sends JSON.
///
/// # Errors
/// If there is no answer.
pub async fn json(client: &Client, method: &str, path: &str, body: &Value) -> Result<(StatusCode, Value)> {
    send(client, method, path, "application/json", body.to_string()).await
}

/// Reads.
///
/// # Errors
/// If there is no answer, or a refusal.
pub async fn get(client: &Client, path: &str) -> Result<Value> {
    let (status, value) = send(client, "GET", path, "application/json", Vec::new()).await?;
    if !status.is_success() {
        bail!("GET {path}: {value}");
    }
    Ok(value)
}

/// The events of a watch, one after the other; `path` holds the query.
///
/// # Errors
/// If the watch is refused.
pub async fn watch(client: &Client, path: &str) -> Result<BoxStream<'static, Value>> {
    let request = Request::get(path).body(Vec::new())?;
    let lines = client.request_stream(request).await?.lines();
    Ok(lines
        .map(|line| serde_json::from_str(&line.unwrap_or_default()).unwrap_or_default())
        .boxed())
}

/// The next event of a watch.
///
/// # Errors
/// If none comes.
pub async fn next(events: &mut BoxStream<'static, Value>) -> Result<Value> {
    let event = timeout(EVENT_DEADLINE, events.next())
        .await
        .context("no event came")?;
    event.context("the watch ended")
}
