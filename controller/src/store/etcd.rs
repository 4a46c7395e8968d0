//! etcd as the store of several controllers. Each keeps all objects in memory, as the embedded engine does, and follows
//! etcd's changes; a write is one transaction there, acknowledged once it is also visible here. A read that has to know of
//! everything acknowledged by anyone waits at the [barrier](Store::barrier).
//!
//! Layout: key `<prefix>/<resource>:<key>`, value the place of the resource version (4 bytes, big-endian) and the object's JSON
//! text without its resource version, which is the key's `mod_revision`. The key `<prefix>/barrier` holds nothing.

mod api;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use self::api::{Api, Change, KeyValue, until_it_works};
use super::embedded::Indexer;
use super::memory::{Changes, Memory, Objects};
use super::sealing::Sealer;
use super::{
    BarrierFuture, CommitFuture, Committed, Encoded, Event, Expect, Listing, Object, Operation, Revision,
    Store, StoreError, Watch, Write,
};

pub use self::api::EtcdError;

/// Keys read at a time when everything is read.
const PAGE: usize = 2000;
/// Transactions at etcd at a time: enough to fill its batches.
const IN_FLIGHT: usize = 128;
/// Transactions that may wait for their turn; more are refused.
const QUEUE: usize = 8192;
/// A transaction's writes, as etcd limits them by default.
const MAX_WRITES: usize = 128;
/// How long a change that etcd has acknowledged may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);
/// After this time without news a barrier makes some itself: others may write to the same etcd outside our prefix.
const NUDGE: Duration = Duration::from_millis(100);
/// How often a silent watch is doubted.
const DOUBT: Duration = Duration::from_secs(5);
/// How much history etcd keeps: more than a watch may need that goes on after an interruption.
const COMPACTION: Duration = Duration::from_mins(5);

/// Where etcd is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `host:port` of each server.
    pub addresses: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    /// The authority of the servers' certificates, PEM; without it the connection is plain.
    pub ca_file: Option<PathBuf>,
    /// Our own certificate, PEM.
    pub certificate_file: Option<PathBuf>,
    /// Its key, PEM.
    pub key_file: Option<PathBuf>,
}

/// The store.
#[derive(Debug)]
pub struct Etcd {
    shared: Arc<Shared>,
    barriers: mpsc::UnboundedSender<oneshot::Sender<Result<(), StoreError>>>,
    _stop: DropGuard,
}

#[derive(Debug)]
struct Shared {
    api: Api,
    prefix: String,
    form: Form,
    memory: Memory,
    /// The revision up to which changes have arrived.
    arrived: watch::Sender<Revision>,
    turns: Semaphore,
    places: Semaphore,
}

impl Etcd {
    /// Reads everything that is there into memory and begins to follow it.
    ///
    /// # Errors
    /// [`StoreError::Etcd`] if no server can be reached, [`StoreError::Damaged`] if a value is not ours.
    pub async fn open(settings: &Settings, index: Indexer) -> Result<Self, StoreError> {
        Self::open_sealed(settings, index, None).await
    }

    /// The same with values that `sealer` seals on their way to etcd.
    ///
    /// # Errors
    /// As [`Etcd::open`].
    pub async fn open_sealed(
        settings: &Settings,
        index: Indexer,
        sealer: Option<Sealer>,
    ) -> Result<Self, StoreError> {
        let form = Form { index, sealer };
        let api = Api::new(settings).map_err(failed)?;
        let prefix = settings.prefix.trim_end_matches('/').to_owned();
        let (revision, resources) = load(&api, &prefix, &form).await?;
        info!(revision, servers = ?api, prefix, "everything was read from etcd");
        let memory = Memory::since(
            revision,
            resources
                .into_iter()
                .map(|(name, objects)| (name, objects, revision)),
        );
        let shared = Arc::new(Shared {
            api,
            prefix,
            form,
            memory,
            arrived: watch::Sender::new(revision),
            turns: Semaphore::new(IN_FLIGHT),
            places: Semaphore::new(QUEUE),
        });
        let stop = CancellationToken::new();
        let (barriers, waiting) = mpsc::unbounded_channel();
        let tasks = Arc::clone(&shared);
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = tasks.follow() => {}
                () = tasks.serve_barriers(waiting) => {}
                () = tasks.compact() => {}
            }
        });
        Ok(Self {
            shared,
            barriers,
            _stop: stop.drop_guard(),
        })
    }
}

impl Store for Etcd {
    fn revision(&self) -> Revision {
        self.shared.memory.revision()
    }

    fn get(&self, resource: &'static str, key: &str) -> Option<Arc<Object>> {
        self.shared.memory.resource(resource).get(key)
    }

    fn list(&self, resource: &'static str, prefix: &str) -> Listing {
        self.shared.memory.list(resource, prefix)
    }

    fn count(&self, resource: &'static str) -> usize {
        self.shared.memory.resource(resource).len()
    }

    fn commit(&self, writes: Vec<Write>) -> CommitFuture {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Ok(_place) = shared.places.try_acquire() else {
                return Err(StoreError::Busy);
            };
            let _turn = shared.turns.acquire().await.map_err(|_| StoreError::Closed)?;
            shared.commit(writes).await
        })
    }

    fn barrier(&self) -> BarrierFuture {
        let (answer, answered) = oneshot::channel();
        let asked = self.barriers.send(answer);
        Box::pin(async move {
            asked.map_err(|_| StoreError::Closed)?;
            answered.await.unwrap_or(Err(StoreError::Closed))
        })
    }

    fn watch(&self, resource: &'static str, after: Revision) -> Result<Watch, StoreError> {
        Watch::new(&self.shared.memory.resource(resource), after)
    }
}

impl Shared {
    fn key(&self, write: &Write) -> String {
        format!("{}/{}:{}", self.prefix, write.resource, write.key)
    }

    fn barrier_key(&self) -> Vec<u8> {
        format!("{}/barrier", self.prefix).into_bytes()
    }

    async fn commit(&self, writes: Vec<Write>) -> Committed {
        if writes.len() > MAX_WRITES {
            return Err(failed(EtcdError::Answer {
                operation: "write",
                why: format!("{} writes in one transaction, at most {MAX_WRITES}", writes.len()),
            }));
        }
        let done = self
            .api
            .transaction(&self.request(&writes)?)
            .await
            .map_err(failed)?;
        let (revision, succeeded) = (done.revision(), done.succeeded);
        self.arrival(revision).await?;
        let found = done.found();
        if !succeeded {
            return Err(self.conflict(&writes, found));
        }
        let mut objects = Vec::with_capacity(writes.len());
        for (write, found) in writes.into_iter().zip(found) {
            match write.operation {
                Operation::Put(encoded) => objects.push(Arc::new(encoded.seal(revision))),
                Operation::Delete => {
                    if let Some(last) = found {
                        let last = self.object(write.resource, &last)?;
                        objects.push(Arc::new(last.at_revision(revision)));
                    }
                }
            }
        }
        Ok(objects)
    }

    fn request(&self, writes: &[Write]) -> Result<Value, StoreError> {
        let (mut compare, mut success, mut failure) = (Vec::new(), Vec::new(), Vec::new());
        for write in writes {
            let plain = self.key(write);
            let key = STANDARD.encode(&plain);
            compare.push(match write.expect {
                Expect::Absent => {
                    json!({"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"})
                }
                Expect::Revision(revision) => json!({
                    "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision.to_string(),
                }),
            });
            success.push(match &write.operation {
                Operation::Put(encoded) => {
                    let value = self.form.encode(write.resource, &plain, encoded)?;
                    json!({"request_put": {"key": key, "value": STANDARD.encode(value)}})
                }
                Operation::Delete => json!({"request_delete_range": {"key": key, "prev_kv": true}}),
            });
            failure.push(json!({"request_range": {"key": key}}));
        }
        Ok(json!({"compare": compare, "success": success, "failure": failure}))
    }

    /// The first write that found something else than it expected.
    fn conflict(&self, writes: &[Write], found: impl Iterator<Item = Option<KeyValue>>) -> StoreError {
        for (write, found) in writes.iter().zip(found) {
            let holds = match write.expect {
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found.as_ref().is_some_and(|kv| kv.mod_revision == revision),
            };
            if !holds {
                let found = found.and_then(|kv| self.object(write.resource, &kv).ok());
                return StoreError::Conflict {
                    resource: write.resource,
                    key: write.key.clone(),
                    found: found.map(Arc::new),
                };
            }
        }
        failed(EtcdError::Answer {
            operation: "write",
            why: "a comparison failed that holds".to_owned(),
        })
    }

    fn object(&self, resource: &str, kv: &KeyValue) -> Result<Object, StoreError> {
        self.form.decode(resource, kv)
    }

    /// Waits until the changes up to `revision` are visible.
    async fn arrival(&self, revision: Revision) -> Result<(), StoreError> {
        let mut arrived = self.arrived.subscribe();
        let waited = timeout(ARRIVAL, arrived.wait_for(|arrived| *arrived >= revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(StoreError::Closed),
            Err(_) => Err(failed(EtcdError::Behind(revision))),
        }
    }

    /// Follows etcd's changes for ever.
    async fn follow(&self) {
        loop {
            match self.follow_once().await {
                Ok(()) => {}
                Err(StoreError::Etcd(error)) if matches!(*error, EtcdError::Compacted(_)) => {
                    warn!(%error, "too far behind etcd: everything is read again");
                    self.reload().await;
                }
                Err(error) => {
                    warn!(error = %crate::controllers::chain(&error), "etcd's changes stopped, watching anew");
                    self.api.turn_away();
                    tokio::time::sleep(NUDGE).await;
                }
            }
        }
    }

    /// Follows etcd's changes until the watch breaks or falls silent while others write.
    async fn follow_once(&self) -> Result<(), StoreError> {
        let (start, end) = bounds(&self.prefix);
        let from = self.memory.revision() + 1;
        let mut changes = self.api.watch(&start, &end, from).await.map_err(failed)?;
        debug!(from, "following etcd");
        loop {
            if let Ok(changes) = timeout(DOUBT, changes.next()).await {
                self.take(changes.map_err(failed)?);
                continue;
            }
            let revision = self.api.revision(&self.barrier_key()).await.map_err(failed)?;
            if revision > self.memory.revision() {
                return Ok(());
            }
        }
    }

    /// Makes changes visible. A value that is not ours is passed over: it must not keep the others.
    fn take(&self, changes: Vec<Change>) {
        let mut by_resource: BTreeMap<String, Changes> = BTreeMap::new();
        let mut overlay: HashMap<(String, Box<str>), Option<Arc<Object>>> = HashMap::new();
        let mut last = self.memory.revision();
        for change in changes {
            let revision = change.kv.mod_revision;
            last = last.max(revision);
            let Some((resource, key)) = split(&self.prefix, &change.kv.key) else {
                continue;
            };
            let slot = (resource.to_owned(), Box::<str>::from(key));
            let previous = match overlay.get(&slot) {
                Some(previous) => previous.clone(),
                None => self.memory.resource(resource).get(key),
            };
            let deleted = change.is_deletion();
            let object = match (&previous, deleted) {
                (Some(previous), true) => Arc::new(previous.at_revision(revision)),
                (None, true) => continue,
                (_, false) => match self.object(resource, &change.kv) {
                    Ok(object) => Arc::new(object),
                    Err(error) => {
                        tracing::error!(%error, "somebody else wrote below our prefix");
                        continue;
                    }
                },
            };
            overlay.insert(slot, (!deleted).then(|| Arc::clone(&object)));
            let event = Event {
                object,
                previous,
                deleted,
            };
            by_resource
                .entry(resource.to_owned())
                .or_default()
                .push((key.into(), Arc::new(event)));
        }
        self.memory.apply(by_resource, last);
        self.arrived.send_replace(last);
    }

    async fn reload(&self) {
        let (revision, resources) = loop {
            match load(&self.api, &self.prefix, &self.form).await {
                Ok(loaded) => break loaded,
                Err(error) => {
                    warn!(error = %crate::controllers::chain(&error), "etcd cannot be read, will retry");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        self.memory.replace(resources, revision);
        self.arrived.send_replace(revision);
    }

    /// Answers barriers; those that come while one is under way share the next.
    async fn serve_barriers(
        &self,
        mut waiting: mpsc::UnboundedReceiver<oneshot::Sender<Result<(), StoreError>>>,
    ) {
        let mut round = Vec::new();
        while waiting.recv_many(&mut round, usize::MAX).await > 0 {
            let result = self.reach_barrier().await;
            for answer in round.drain(..) {
                let copy = match &result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(StoreError::Etcd(Arc::clone(error))),
                };
                let _ = answer.send(copy);
            }
        }
    }

    async fn reach_barrier(&self) -> Result<(), Arc<EtcdError>> {
        let key = self.barrier_key();
        let revision = self.api.revision(&key).await?;
        let mut arrived = self.arrived.subscribe();
        if timeout(NUDGE, arrived.wait_for(|arrived| *arrived >= revision))
            .await
            .is_ok()
        {
            return Ok(());
        }
        let revision = self.api.touch(&key).await?;
        match timeout(ARRIVAL, arrived.wait_for(|arrived| *arrived >= revision)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Arc::new(EtcdError::Behind(revision))),
        }
    }

    /// Lets etcd forget what is old, for ever.
    async fn compact(&self) {
        loop {
            let old = self.memory.revision();
            tokio::time::sleep(COMPACTION).await;
            until_it_works(|| self.api.compact(old)).await;
            debug!(revision = old, "etcd's history was compacted");
        }
    }
}

fn failed(error: EtcdError) -> StoreError {
    StoreError::Etcd(Arc::new(error))
}

/// The range of all keys below the prefix.
fn bounds(prefix: &str) -> (Vec<u8>, Vec<u8>) {
    (
        format!("{prefix}/").into_bytes(),
        // '0' follows '/'.
        format!("{prefix}0").into_bytes(),
    )
}

/// A key's resource and its key there; `None` for keys that are no object's.
fn split<'a>(prefix: &str, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
    let key = std::str::from_utf8(key).ok()?;
    key.strip_prefix(prefix)?.strip_prefix('/')?.split_once(':')
}

/// How objects become values, and values objects.
#[derive(Debug)]
struct Form {
    index: Indexer,
    sealer: Option<Sealer>,
}

impl Form {
    fn encode(&self, resource: &str, key: &str, object: &Encoded) -> Result<Vec<u8>, StoreError> {
        let record = object.record();
        let sealer = self.sealer.as_ref().filter(|_| Sealer::seals(resource));
        let sealed = sealer.map(|sealer| sealer.seal(key.as_bytes(), &record));
        sealed.unwrap_or(Ok(record)).map_err(|error| StoreError::Damaged {
            key: key.to_owned(),
            why: error.to_string(),
        })
    }

    fn decode(&self, resource: &str, kv: &KeyValue) -> Result<Object, StoreError> {
        let damaged = |why: String| StoreError::Damaged {
            key: String::from_utf8_lossy(&kv.key).into_owned(),
            why,
        };
        let opened = self
            .sealer
            .as_ref()
            .map(|sealer| sealer.unseal(&kv.key, &kv.value));
        let opened = opened
            .transpose()
            .map_err(|error| damaged(error.to_string()))?
            .flatten();
        let record = opened.as_deref().unwrap_or(&kv.value);
        let encoded = Encoded::from_record(record, |text| (self.index)(resource, text));
        encoded
            .map(|encoded| encoded.seal(kv.mod_revision))
            .map_err(damaged)
    }
}

/// Reads everything as it is at one revision.
async fn load(
    api: &Api,
    prefix: &str,
    form: &Form,
) -> Result<(Revision, HashMap<Box<str>, Objects>), StoreError> {
    let (mut start, end) = bounds(prefix);
    let mut resources: HashMap<Box<str>, Objects> = HashMap::new();
    let mut revision = 0;
    loop {
        let page = api.range(&start, &end, revision, PAGE).await.map_err(failed)?;
        if revision == 0 {
            revision = page.revision();
        }
        let last = page.kvs.last().map(|kv| kv.key.clone());
        for kv in &page.kvs {
            if let Some((resource, key)) = split(prefix, &kv.key) {
                let object = form.decode(resource, kv)?;
                let objects = resources.entry(resource.into()).or_default();
                objects.insert(key.into(), Arc::new(object));
            }
        }
        match last {
            Some(mut last) if page.more => {
                last.push(0);
                start = last;
            }
            _ => return Ok((revision, resources)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_apart() {
        let at = |key: &'static str| split("/weft", key.as_bytes());
        assert_eq!(at("/weft/pods:a/b"), Some(("pods", "a/b")));
        assert_eq!(
            at("/weft/rbac.authorization.k8s.io/clusterroles:system:node"),
            Some(("rbac.authorization.k8s.io/clusterroles", "system:node"))
        );
        assert_eq!(at("/weft/barrier"), None);
        assert_eq!(at("/other/pods:a/b"), None);
        let (start, end) = bounds("/weft");
        assert!(start < b"/weft/pods:a".to_vec() && b"/weft/pods:a".to_vec() < end);
        assert!(end < b"/weft2/pods:a".to_vec());
    }
}
