//! What of etcd's API the store uses, as the JSON that etcd's gRPC gateway speaks (etcd 3.4 and later, below `/v3`): no code
//! generated from protocol files, no second HTTP stack.

use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use http::Request;
use http_body_util::BodyExt as _;
use kube::Client;
use kube::client::Body;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Settings;
use crate::store::Revision;

/// How long a request may take; etcd's own elections take about a second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is taken in: a page of large objects.
const MAX_ANSWER: usize = 256 << 20;

/// Why etcd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// An address is none.
    #[error("{address:?} is no etcd address; give host:port")]
    Address {
        /// As it was given.
        address: String,
    },
    /// The connection cannot be set up: a certificate is missing or wrong.
    #[error("cannot set up a connection to etcd at {address}")]
    SetUp {
        /// The server.
        address: String,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The server cannot be reached.
    #[error("etcd at {address} cannot be reached to {operation}")]
    Unreachable {
        /// The server.
        address: String,
        /// What was to be done.
        operation: &'static str,
        /// Why.
        #[source]
        source: Box<kube::Error>,
    },
    /// The server did not answer in time.
    #[error("etcd at {address} took more than {REQUEST_TIMEOUT:?} to {operation}")]
    Timeout {
        /// The server.
        address: String,
        /// What was to be done.
        operation: &'static str,
    },
    /// The server refused.
    #[error("etcd at {address} refused to {operation}: {message}")]
    Refused {
        /// The server.
        address: String,
        /// What was to be done.
        operation: &'static str,
        /// What the server says.
        message: String,
    },
    /// The answer is not what etcd answers.
    #[error("etcd's answer to {operation} makes no sense: {why}")]
    Answer {
        /// What was to be done.
        operation: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The history that a watch asked for was compacted.
    #[error("etcd has compacted its history up to {0}")]
    Compacted(Revision),
    /// A change that etcd acknowledged does not arrive.
    #[error("etcd's changes up to {0} do not arrive")]
    Behind(Revision),
}

/// A key with its value.
#[derive(Debug, Deserialize)]
pub(super) struct KeyValue {
    /// The key.
    #[serde(deserialize_with = "base64")]
    pub(super) key: Vec<u8>,
    /// The value; empty for a deletion.
    #[serde(default, deserialize_with = "base64")]
    pub(super) value: Vec<u8>,
    /// The revision of the last change.
    #[serde(default, deserialize_with = "number")]
    pub(super) mod_revision: Revision,
}

#[derive(Debug, Default, Deserialize)]
struct Header {
    #[serde(default, deserialize_with = "number")]
    revision: Revision,
}

/// Part of a key range.
#[derive(Debug, Deserialize)]
pub(super) struct Range {
    #[serde(default)]
    header: Header,
    /// The keys that are there.
    #[serde(default)]
    pub(super) kvs: Vec<KeyValue>,
    /// Whether there are more.
    #[serde(default)]
    pub(super) more: bool,
}

impl Range {
    /// The store's revision when it was read.
    pub(super) fn revision(&self) -> Revision {
        self.header.revision
    }
}

/// What became of a transaction.
#[derive(Debug, Deserialize)]
pub(super) struct Transaction {
    header: Header,
    /// Whether all comparisons held.
    #[serde(default)]
    pub(super) succeeded: bool,
    #[serde(default)]
    responses: Vec<Response>,
}

#[derive(Debug, Deserialize)]
struct Response {
    #[serde(alias = "responseRange")]
    response_range: Option<Range>,
    #[serde(alias = "responseDeleteRange")]
    response_delete_range: Option<Deleted>,
}

#[derive(Debug, Deserialize)]
struct Deleted {
    #[serde(default, alias = "prevKvs")]
    prev_kvs: Vec<KeyValue>,
}

impl Transaction {
    /// The revision that it made, or found.
    pub(super) fn revision(&self) -> Revision {
        self.header.revision
    }

    /// What each operation found under its key: for a deletion what was deleted.
    pub(super) fn found(self) -> impl Iterator<Item = Option<KeyValue>> {
        self.responses.into_iter().map(|response| {
            let range = response.response_range.map(|range| range.kvs);
            let kvs = range.or(response.response_delete_range.map(|deleted| deleted.prev_kvs));
            kvs.into_iter().flatten().next()
        })
    }
}

#[derive(Debug, Deserialize)]
struct Written {
    header: Header,
}

/// One change.
#[derive(Debug, Deserialize)]
pub(super) struct Change {
    #[serde(default, rename = "type")]
    kind: String,
    /// The key and its new value.
    pub(super) kv: KeyValue,
}

impl Change {
    /// Whether the key is gone.
    pub(super) fn is_deletion(&self) -> bool {
        self.kind == "DELETE"
    }
}

#[derive(Debug, Deserialize)]
struct WatchMessage {
    result: Option<WatchResult>,
    error: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct WatchResult {
    #[serde(default)]
    canceled: bool,
    #[serde(default, deserialize_with = "number")]
    compact_revision: Revision,
    #[serde(default, alias = "cancelReason")]
    cancel_reason: String,
    #[serde(default)]
    events: Vec<Change>,
}

/// The servers of one etcd cluster. Requests go to one of them, until it fails.
pub(super) struct Api {
    servers: Vec<(String, Client)>,
    current: AtomicUsize,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses = self.servers.iter().map(|(address, _)| address);
        f.debug_list().entries(addresses).finish()
    }
}

impl Api {
    pub(super) fn new(settings: &Settings) -> Result<Self, EtcdError> {
        let scheme = if settings.ca_file.is_some() {
            "https"
        } else {
            "http"
        };
        let mut servers = Vec::new();
        for address in &settings.addresses {
            let uri = format!("{scheme}://{address}")
                .parse()
                .map_err(|_| EtcdError::Address {
                    address: address.clone(),
                })?;
            let path =
                |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
            let mut config = kube::Config::new(uri);
            config.root_cert_file.clone_from(&settings.ca_file);
            config.auth_info.client_certificate = path(&settings.certificate_file);
            config.auth_info.client_key = path(&settings.key_file);
            config.default_retry = false;
            let client = Client::try_from(config).map_err(|source| EtcdError::SetUp {
                address: address.clone(),
                source: Box::new(source),
            })?;
            servers.push((address.clone(), client));
        }
        Ok(Self {
            servers,
            current: AtomicUsize::new(0),
        })
    }

    /// Lets later requests go to the next server.
    pub(super) fn turn_away(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn server(&self) -> &(String, Client) {
        &self.servers[self.current.load(Ordering::Relaxed) % self.servers.len()]
    }

    /// The store's revision: no write that was acknowledged before is later.
    pub(super) async fn revision(&self, key: &[u8]) -> Result<Revision, EtcdError> {
        let body = json!({"key": STANDARD.encode(key), "count_only": true});
        let range: Range = self.read("tell its revision", &body).await?;
        Ok(range.revision())
    }

    /// Keys from `start` up to `end`, as they were at `revision`; 0: as they are.
    pub(super) async fn range(
        &self,
        start: &[u8],
        end: &[u8],
        revision: Revision,
        limit: usize,
    ) -> Result<Range, EtcdError> {
        let body = json!({
            "key": STANDARD.encode(start), "range_end": STANDARD.encode(end),
            "revision": revision.to_string(), "limit": limit.to_string(),
        });
        self.read("list its keys", &body).await
    }

    /// A read; another server is asked if the first fails.
    async fn read<T: DeserializeOwned>(&self, operation: &'static str, body: &Value) -> Result<T, EtcdError> {
        let mut left = self.servers.len();
        loop {
            left -= 1;
            match self.post("/v3/kv/range", operation, body).await {
                Err(EtcdError::Unreachable { .. } | EtcdError::Timeout { .. }) if left > 0 => {}
                other => return other,
            }
        }
    }

    /// A transaction. Not tried again: nobody knows whether one without an answer was done.
    pub(super) async fn transaction(&self, body: &Value) -> Result<Transaction, EtcdError> {
        self.post("/v3/kv/txn", "write", body).await
    }

    /// Writes an empty value, and says at which revision.
    pub(super) async fn touch(&self, key: &[u8]) -> Result<Revision, EtcdError> {
        let body = json!({"key": STANDARD.encode(key), "value": ""});
        let written: Written = self.post("/v3/kv/put", "write", &body).await?;
        Ok(written.header.revision)
    }

    /// Forgets the history before `revision`. That it was forgotten already is no error.
    pub(super) async fn compact(&self, revision: Revision) -> Result<(), EtcdError> {
        let body = json!({"revision": revision.to_string()});
        match self
            .post::<Value>("/v3/kv/compaction", "compact its history", &body)
            .await
        {
            Err(EtcdError::Refused { message, .. }) if message.contains("compacted") => Ok(()),
            other => other.map(drop),
        }
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &'static str,
        operation: &'static str,
        body: &Value,
    ) -> Result<T, EtcdError> {
        let (address, client) = self.server();
        let result = async {
            let response = self.send(address, client, path, operation, body).await?;
            let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER);
            let body = body.collect().await.map_err(|error| EtcdError::Answer {
                operation,
                why: error.to_string(),
            })?;
            Ok(body.to_bytes())
        };
        let answer = match tokio::time::timeout(REQUEST_TIMEOUT, result).await {
            Ok(answer) => answer,
            Err(_) => Err(EtcdError::Timeout {
                address: address.clone(),
                operation,
            }),
        };
        if matches!(
            answer,
            Err(EtcdError::Timeout { .. } | EtcdError::Unreachable { .. })
        ) {
            self.turn_away();
        }
        serde_json::from_slice(&answer?).map_err(|error| EtcdError::Answer {
            operation,
            why: error.to_string(),
        })
    }

    async fn send(
        &self,
        address: &str,
        client: &Client,
        path: &str,
        operation: &'static str,
        body: &Value,
    ) -> Result<http::Response<Body>, EtcdError> {
        let unreachable = |source| EtcdError::Unreachable {
            address: address.to_owned(),
            operation,
            source: Box::new(source),
        };
        let request = Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string().into_bytes()))
            .map_err(|error| unreachable(kube::Error::HttpError(error)))?;
        let response = client.send(request).await.map_err(unreachable)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return Err(unreachable(error)),
        };
        let said: Value = serde_json::from_slice(&text).unwrap_or_default();
        let message = said["message"].as_str().or(said["error"].as_str());
        Err(EtcdError::Refused {
            address: address.to_owned(),
            operation,
            message: message.map_or_else(|| status.to_string(), str::to_owned),
        })
    }

    /// The changes of all keys from `start` up to `end`, from a revision on.
    pub(super) async fn watch(&self, start: &[u8], end: &[u8], from: Revision) -> Result<Changes, EtcdError> {
        let (address, client) = self.server();
        let body = json!({"create_request": {
            "key": STANDARD.encode(start), "range_end": STANDARD.encode(end),
            "start_revision": from.to_string(),
        }});
        let answer = self.send(address, client, "/v3/watch", "watch its keys", &body);
        let response = match tokio::time::timeout(REQUEST_TIMEOUT, answer).await {
            Ok(response) => response?,
            Err(_) => {
                return Err(EtcdError::Timeout {
                    address: address.clone(),
                    operation: "watch its keys",
                });
            }
        };
        Ok(Changes {
            body: response.into_body(),
            text: BytesMut::new(),
        })
    }
}

/// A watch's answer: a message a line.
pub(super) struct Changes {
    body: Body,
    text: BytesMut,
}

impl Changes {
    /// The next changes, all those of a revision together; none if the message was about something else.
    pub(super) async fn next(&mut self) -> Result<Vec<Change>, EtcdError> {
        let operation = "watch its keys";
        let broken = |why: String| EtcdError::Answer { operation, why };
        loop {
            if let Some(line) = self.line() {
                let message: WatchMessage =
                    serde_json::from_slice(&line).map_err(|error| broken(error.to_string()))?;
                if let Some(error) = message.error {
                    return Err(broken(error.to_string()));
                }
                let Some(result) = message.result else {
                    continue;
                };
                if result.compact_revision > 0 {
                    return Err(EtcdError::Compacted(result.compact_revision));
                }
                if result.canceled {
                    return Err(broken(format!("cancelled: {}", result.cancel_reason)));
                }
                return Ok(result.events);
            }
            let frame = self
                .body
                .frame()
                .await
                .ok_or_else(|| broken("ended".to_owned()))?;
            let frame = frame.map_err(|error| broken(error.to_string()))?;
            if let Ok(data) = frame.into_data() {
                if self.text.len() + data.len() > MAX_ANSWER {
                    return Err(broken("a message is too long".to_owned()));
                }
                self.text.extend_from_slice(&data);
            }
        }
    }

    fn line(&mut self) -> Option<Bytes> {
        let end = self.text.iter().position(|byte| *byte == b'\n')?;
        let line = self.text.split_to(end).freeze();
        self.text.advance(1);
        Some(line)
    }
}

/// Keeps asking for the answer of `attempt`, with growing pauses, until there is one.
pub(super) async fn until_it_works<T, F>(attempt: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, EtcdError>>,
{
    let mut pause = Duration::from_millis(50);
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                tracing::warn!(error = %crate::controllers::chain(&error), "etcd does not do its work, will retry");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(2));
    }
}

fn base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
}

/// 64-bit numbers are strings in protobuf's JSON.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let text = r#"{"header":{"cluster_id":"1","revision":"7"},"succeeded":true,"responses":[
            {"response_put":{"header":{"revision":"7"}}},
            {"response_delete_range":{"deleted":"1","prev_kvs":[{"key":"YQ==","value":"Yg==","mod_revision":"5"}]}}]}"#;
        let done: Transaction = serde_json::from_str(text).unwrap();
        assert_eq!((done.revision(), done.succeeded), (7, true));
        let found: Vec<_> = done.found().collect();
        assert!(found[0].is_none());
        let deleted = found[1].as_ref().unwrap();
        assert_eq!(
            (&*deleted.key, &*deleted.value, deleted.mod_revision),
            (&b"a"[..], &b"b"[..], 5)
        );

        let text = r#"{"result":{"header":{"revision":"9"},"events":[
            {"kv":{"key":"YQ==","value":"Yg==","mod_revision":"8"}},
            {"type":"DELETE","kv":{"key":"YQ==","mod_revision":"9"}}]}}"#;
        let message: WatchMessage = serde_json::from_str(text).unwrap();
        let events = message.result.unwrap().events;
        assert!(!events[0].is_deletion() && events[1].is_deletion());
        assert_eq!(events[1].kv.mod_revision, 9);
    }
}
