//! Watches: each reads the resource's history at its own pace.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use std::vec;

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::stream;
use http::{HeaderValue, Response, header};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::limits::Seat;
use super::negotiate::Form;
use super::read::{Filter, wait_for_version};
use super::status::ApiError;
use super::table::{self, Include};
use super::{Call, Server};
use crate::store::{Event, Object, Revision, StoreError, Watch, WatchBatch};

/// How often a watcher that asked for it hears the revision it has reached.
const BOOKMARK_INTERVAL: Duration = Duration::from_mins(1);
/// How long a watch lasts that does not say: at least, and up to twice as long.
const DEFAULT_LIFETIME_SECONDS: u64 = 1800;
/// Size at which initial objects are cut into chunks; each is made when the one before is on its way.
const CHUNK: usize = 64 << 10;

/// What is written around an object, at most.
const FRAME: usize = 40;

/// GET of a collection with `watch`.
pub(crate) async fn watch(call: Arc<Call>, seat: Option<Seat>) -> Result<Response<Body>, ApiError> {
    let body = match Watcher::new(call, seat).await {
        Ok(watcher) => Body::from_stream(stream::unfold(watcher, |mut watcher| async {
            let chunk = watcher.next().await?;
            Some((Ok::<_, Infallible>(chunk), watcher))
        })),
        // Told as an event: watchers look for it there, and some ask for the same version for ever otherwise.
        Err(error) if error.code == 410 => Body::from(frame("ERROR", error.status().to_string().as_bytes())),
        Err(error) => return Err(error),
    };
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    Ok(response)
}

/// One watcher.
struct Watcher {
    server: Arc<Server>,
    encoder: Encoder,
    /// What was there at the start and is still to be told.
    initial: vec::IntoIter<Arc<Object>>,
    /// What follows it.
    initial_end: Option<Bytes>,
    changes: Watch,
    // Waited for as long as the watch lasts, not anew for each change.
    shutdown: Pin<Box<WaitForCancellationFutureOwned>>,
    deadline: Pin<Box<Sleep>>,
    redefined: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    bookmark: Option<Pin<Box<Sleep>>>,
    ended: bool,
    _seat: Option<Seat>,
}

/// What a future gives that may not be there.
async fn if_any<F: Future + Unpin>(future: &mut Option<F>) -> F::Output {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

/// Why a watcher woke up.
enum Wake {
    Changes(Result<WatchBatch, StoreError>),
    Bookmark,
    End,
}

impl Watcher {
    async fn new(call: Arc<Call>, seat: Option<Seat>) -> Result<Self, ApiError> {
        let filter = Filter::of(&call)?;
        let bookmarks = call.query.flag("allowWatchBookmarks");
        let initial_events = call.query.flag("sendInitialEvents");
        let version = wait_for_version(&call).await?.filter(|version| *version > 0);
        let encoder = Encoder {
            call,
            filter,
            headings: true,
        };
        let (after, initial) = match version {
            Some(version) if !initial_events => (version, Vec::new()),
            _ => {
                let listing = encoder.filter.list(&encoder.call.server);
                (listing.revision, listing.items)
            }
        };
        let server = Arc::clone(&encoder.call.server);
        let changes = server.store.watch(encoder.call.resource.storage, after)?;
        let changes = match encoder.filter.interest() {
            Some(interest) => changes.narrowed(interest),
            None => changes,
        };
        let lifetime = encoder.call.query.timeout()?.unwrap_or_else(|| {
            let extra = rand::rng().random_range(0..DEFAULT_LIFETIME_SECONDS);
            Duration::from_secs(DEFAULT_LIFETIME_SECONDS + extra)
        });
        let now = Instant::now();
        let custom = encoder.call.resource.custom();
        let bookmark = now + BOOKMARK_INTERVAL.min(lifetime.mul_f32(0.9));
        Ok(Self {
            shutdown: Box::pin(server.shutdown.clone().cancelled_owned()),
            deadline: Box::pin(sleep_until(now + lifetime)),
            redefined: custom.map(|custom| Box::pin(custom.ended().clone().cancelled_owned())),
            bookmark: bookmarks.then(|| Box::pin(sleep_until(bookmark))),
            server,
            initial: initial.into_iter(),
            initial_end: (initial_events && bookmarks).then(|| encoder.bookmark(after, true)),
            encoder,
            changes,
            ended: false,
            _seat: seat,
        })
    }

    /// What to send next; `None` ends the answer.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let chunk = self.encoder.initial(&mut self.initial);
            if !chunk.is_empty() {
                return Some(chunk);
            }
            if let Some(end) = self.initial_end.take() {
                return Some(end);
            }
            if self.ended {
                return None;
            }
            let wake = tokio::select! {
                biased;
                () = &mut self.shutdown => Wake::End,
                () = &mut self.deadline => Wake::End,
                batch = self.changes.next() => Wake::Changes(batch),
                // The client comes back and is served by the new definition, or hears that there is none.
                () = if_any(&mut self.redefined) => Wake::End,
                () = if_any(&mut self.bookmark) => Wake::Bookmark,
            };
            match wake {
                Wake::End | Wake::Changes(Err(StoreError::Closed)) => return None,
                Wake::Changes(Ok(batch)) => {
                    let chunk = self.encoder.changes(&batch);
                    if !chunk.is_empty() {
                        return Some(chunk);
                    }
                }
                Wake::Changes(Err(error)) => {
                    self.ended = true;
                    let status = ApiError::from(error).status();
                    return Some(frame("ERROR", status.to_string().as_bytes()));
                }
                Wake::Bookmark => {
                    self.bookmark = Some(Box::pin(sleep_until(Instant::now() + BOOKMARK_INTERVAL)));
                    // All changes up to this revision are visible, so if none is waiting, the watcher has seen them.
                    let revision = self.server.store.revision();
                    match self.changes.ready() {
                        Ok(batch) if batch.is_empty() => return Some(self.encoder.bookmark(revision, false)),
                        Ok(batch) => {
                            let chunk = self.encoder.changes(&batch);
                            if !chunk.is_empty() {
                                return Some(chunk);
                            }
                        }
                        Err(_) => {}
                    }
                }
            }
        }
    }
}

/// Writes events in the form the watcher asked for.
struct Encoder {
    call: Arc<Call>,
    filter: Filter,
    headings: bool,
}

impl Encoder {
    /// The next chunk of the objects that were there at the start; empty once there are no more.
    fn initial(&mut self, objects: &mut vec::IntoIter<Arc<Object>>) -> Bytes {
        let mut chunk = BytesMut::new();
        while chunk.len() < CHUNK
            && let Some(object) = objects.next()
        {
            self.put(&mut chunk, "ADDED", &object);
        }
        chunk.freeze()
    }

    /// The events of changes, as the selectors let them appear.
    fn changes(&mut self, batch: &[Arc<Event>]) -> Bytes {
        let mut chunk = BytesMut::new();
        for event in batch {
            let is = !event.deleted && self.filter.matches(&event.object);
            let was = event
                .previous
                .as_ref()
                .is_some_and(|object| self.filter.matches(object));
            match (was, is) {
                (false, true) => self.put(&mut chunk, "ADDED", &event.object),
                (true, true) => self.put(&mut chunk, "MODIFIED", &event.object),
                (true, false) => match &event.previous {
                    // It is as it was when it was selected: whoever knew it by that finds it.
                    Some(previous) if !event.deleted => {
                        let last = previous.at_revision(event.object.revision());
                        self.put(&mut chunk, "DELETED", &last);
                    }
                    _ => self.put(&mut chunk, "DELETED", &event.object),
                },
                (false, false) => {}
            }
        }
        chunk.freeze()
    }

    fn put(&mut self, chunk: &mut BytesMut, kind: &str, object: &Object) {
        match self.call.form {
            Form::Object => put_frame(chunk, kind, &self.call.served_text(object)),
            Form::Metadata => {
                put_frame(chunk, kind, &table::partial_text(&self.call.served_text(object)));
            }
            Form::Table => {
                let include = Include::parse(self.call.query.get("includeObject"));
                let metadata = json!({"resourceVersion": object.revision().to_string()});
                let value = [self.call.served(object)];
                let now = jiff::Timestamp::now();
                let table = table::table(&self.call.resource, &value, metadata, include, now, self.headings);
                self.headings = false;
                put_frame(chunk, kind, table.to_string().as_bytes());
            }
        }
    }

    fn bookmark(&self, revision: Revision, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": Value::Null});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.call.form {
            Form::Object => json!({
                "kind": self.call.resource.kind, "apiVersion": self.call.resource.api_version(),
                "metadata": metadata,
            }),
            Form::Metadata => json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            }),
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "columnDefinitions": [], "rows": [],
            }),
        };
        frame("BOOKMARK", object.to_string().as_bytes())
    }
}

fn frame(kind: &str, object: &[u8]) -> Bytes {
    let mut chunk = BytesMut::new();
    put_frame(&mut chunk, kind, object);
    chunk.freeze()
}

fn put_frame(chunk: &mut BytesMut, kind: &str, object: &[u8]) {
    chunk.reserve(object.len() + FRAME);
    chunk.put_slice(b"{\"type\":\"");
    chunk.put_slice(kind.as_bytes());
    chunk.put_slice(b"\",\"object\":");
    chunk.put_slice(object);
    chunk.put_slice(b"}\n");
}
