//! The embedded engine: one file. A single thread takes all writes that wait, puts them into one transaction with one
//! `fsync` (group commit), makes them visible, and only then answers.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::Instant;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde_json::Value;
use tokio::sync::oneshot;

use super::memory::{Changes, Memory, Objects};
use super::sealing::{Sealer, SealingError};
use super::{
    CommitFuture, Committed, Event, Expect, Listing, Meta, Object, Operation, Revision, Store, StoreError,
    Watch, Write,
};
use crate::informer::Lean;
use crate::metrics::{self, Counter, Histogram};

/// `resource NUL key` → record.
const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
/// Resource → revision of its last change, so that watches can resume over a restart.
const CHANGES: TableDefinition<'_, &str, u64> = TableDefinition::new("changes");

/// Transactions that may wait; more are refused, so that callers hear it and memory stays bounded.
const QUEUE: usize = 8192;
/// Transactions that share one `fsync` at most, so that the first of them does not wait for ever.
const BATCH: usize = 1024;
/// Records decoded together at start: enough work for all processors, and little enough to pass through memory.
const READ: usize = 4096;
/// The engine's page cache. Reads come from our own map, so it only has to hold the inner pages.
const CACHE_BYTES: usize = 16 << 20;
/// The engine's records begin with the revision and the place of the resource version.
const HEADER: usize = 12;

/// Finds what selectors ask about in an object: called for every record at start.
pub type Indexer = fn(resource: &str, object: &Value) -> Meta;

/// The embedded store.
#[derive(Debug)]
pub struct Embedded {
    memory: Arc<Memory>,
    queue: SyncSender<Job>,
}

#[derive(Debug)]
struct Job {
    writes: Vec<Write>,
    answer: oneshot::Sender<Committed>,
}

impl Embedded {
    /// Opens or creates the store in `file` and reads it into memory.
    ///
    /// # Errors
    /// If the file cannot be opened, is in use, or holds a damaged record.
    pub fn open(file: &Path, index: Indexer) -> Result<Self, StoreError> {
        Self::open_sealed(file, index, None)
    }

    /// The same with records that `sealer` seals on their way to the disk.
    ///
    /// # Errors
    /// As [`Embedded::open`], and if a record cannot be opened.
    pub fn open_sealed(file: &Path, index: Indexer, sealer: Option<Sealer>) -> Result<Self, StoreError> {
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create(file)
            .map_err(engine)?;
        let memory = Arc::new(load(&database, index, sealer.as_ref())?);
        let (queue, jobs) = sync_channel(QUEUE);
        let writer = Writer {
            seconds: metrics::COMMIT_SECONDS.with(&[]),
            writes: metrics::WRITES.with(&[]),
            sealer,
            database,
            memory: Arc::clone(&memory),
        };
        thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&jobs))
            .map_err(|error| engine(redb::StorageError::Io(error)))?;
        Ok(Self { memory, queue })
    }
}

impl Store for Embedded {
    fn revision(&self) -> Revision {
        self.memory.revision()
    }

    fn get(&self, resource: &'static str, key: &str) -> Option<Arc<Object>> {
        self.memory.resource(resource).get(key)
    }

    fn list(&self, resource: &'static str, prefix: &str) -> Listing {
        self.memory.list(resource, prefix)
    }

    fn count(&self, resource: &'static str) -> usize {
        self.memory.resource(resource).len()
    }

    fn commit(&self, writes: Vec<Write>) -> CommitFuture {
        let (answer, answered) = oneshot::channel();
        let queued = self.queue.try_send(Job { writes, answer });
        Box::pin(async move {
            match queued {
                Ok(()) => answered.await.unwrap_or(Err(StoreError::Closed)),
                Err(TrySendError::Full(_)) => Err(StoreError::Busy),
                Err(TrySendError::Disconnected(_)) => Err(StoreError::Closed),
            }
        })
    }

    fn watch(&self, resource: &'static str, after: Revision) -> Result<Watch, StoreError> {
        Watch::new(&self.memory.resource(resource), after)
    }
}

fn load(database: &Database, index: Indexer, sealer: Option<&Sealer>) -> Result<Memory, StoreError> {
    let transaction = database.begin_write().map_err(engine)?;
    transaction.open_table(OBJECTS).map_err(engine)?;
    transaction.open_table(CHANGES).map_err(engine)?;
    transaction.commit().map_err(engine)?;

    let transaction = database.begin_read().map_err(engine)?;
    let mut resources: HashMap<Box<str>, (Objects, Revision)> = HashMap::new();
    let mut revision = 0;
    for entry in transaction
        .open_table(CHANGES)
        .map_err(engine)?
        .iter()
        .map_err(engine)?
    {
        let (resource, last) = entry.map_err(engine)?;
        revision = revision.max(last.value());
        resources.insert(resource.value().into(), (BTreeMap::new(), last.value()));
    }
    let table = transaction.open_table(OBJECTS).map_err(engine)?;
    let mut records = table.iter().map_err(engine)?;
    loop {
        let some = records.by_ref().take(READ).map(|entry| {
            let (key, record) = entry.map_err(engine)?;
            Ok((key.value().to_vec(), record.value().to_vec()))
        });
        let some: Vec<Record> = some.collect::<Result<_, StoreError>>()?;
        if some.is_empty() {
            break;
        }
        for loaded in decode_all(&some, index, sealer) {
            let (resource, name, object) = loaded?;
            revision = revision.max(object.revision());
            let (objects, last) = resources.entry(resource).or_default();
            *last = (*last).max(object.revision());
            objects.insert(name, Arc::new(object));
        }
    }
    let resources = resources
        .into_iter()
        .map(|(name, (objects, last))| (name, objects, last));
    Ok(Memory::new(revision, resources))
}

/// A key and its record.
type Record = (Vec<u8>, Vec<u8>);
/// A resource, a key within it, and the object.
type Loaded = Result<(Box<str>, Box<str>, Object), StoreError>;

/// Decodes records on all processors.
fn decode_all(records: &[Record], index: Indexer, sealer: Option<&Sealer>) -> Vec<Loaded> {
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = records.len().div_ceil(workers).max(1);
    thread::scope(|scope| {
        let decode_part = |part: &[Record]| -> Vec<Loaded> {
            part.iter()
                .map(|record| decode_one(record, index, sealer))
                .collect()
        };
        let parts: Vec<_> = records
            .chunks(share)
            .map(|part| scope.spawn(move || decode_part(part)))
            .collect();
        let joined = parts.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn decode_one((key, record): &Record, index: Indexer, sealer: Option<&Sealer>) -> Loaded {
    let text = String::from_utf8_lossy(key);
    let damaged = |why: String| StoreError::Damaged {
        key: text.clone().into_owned(),
        why,
    };
    let (resource, name) = text
        .split_once('\0')
        .ok_or_else(|| damaged("no resource".to_owned()))?;
    let object = decode(key, record, sealer, |object| index(resource, object)).map_err(damaged)?;
    Ok((resource.into(), name.into(), object))
}

fn encode(key: &[u8], object: &Object, sealer: Option<&Sealer>) -> Result<Vec<u8>, SealingError> {
    let sealed = sealer.map(|sealer| sealer.seal(key, object.body())).transpose()?;
    let body = sealed.as_deref().unwrap_or(object.body());
    let mut record = Vec::with_capacity(HEADER + body.len());
    record.extend_from_slice(&object.revision().to_be_bytes());
    record.extend_from_slice(&u32::try_from(object.version_at()).unwrap_or(0).to_be_bytes());
    record.extend_from_slice(body);
    Ok(record)
}

fn decode(
    key: &[u8],
    record: &[u8],
    sealer: Option<&Sealer>,
    index: impl FnOnce(&Value) -> Meta,
) -> Result<Object, String> {
    let (revision, rest) = record.split_first_chunk::<8>().ok_or("too short")?;
    let (version_at, body) = rest.split_first_chunk::<4>().ok_or("too short")?;
    let opened = sealer.map(|sealer| sealer.unseal(key, body)).transpose();
    let opened = opened.map_err(|error| error.to_string())?.flatten();
    let body = opened.map_or_else(|| Bytes::copy_from_slice(body), Bytes::from);
    // Nobody asks about managed fields, and they are half of a tree.
    let Lean(value): Lean<Value> = serde_json::from_slice(&body).map_err(|error| error.to_string())?;
    Ok(Object::from_record(
        u64::from_be_bytes(*revision),
        u32::from_be_bytes(*version_at) as usize,
        body,
        index(&value),
    ))
}

/// The owner of the engine's write side.
struct Writer {
    seconds: Arc<Histogram>,
    writes: Arc<Counter>,
    sealer: Option<Sealer>,
    database: Database,
    memory: Arc<Memory>,
}

/// A transaction whose expectations hold, waiting for the commit that it is part of.
struct Accepted {
    objects: Vec<Arc<Object>>,
    answer: oneshot::Sender<Committed>,
}

/// What the transactions of one batch have done so far.
#[derive(Default)]
struct Batch {
    revision: Revision,
    accepted: Vec<Accepted>,
    /// Whose expectations fail because of what the batch itself writes: they hear of it once they can see it, or they would
    /// read the old state and try in vain, over and over.
    overtaken: Vec<(oneshot::Sender<Committed>, StoreError)>,
    changes: BTreeMap<&'static str, Changes>,
    /// What later transactions of the batch find instead of what is visible.
    overlay: HashMap<(&'static str, Box<str>), Option<Arc<Object>>>,
}

impl Writer {
    fn run(self, jobs: &Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let mut batch = Batch {
                revision: self.memory.revision(),
                ..Batch::default()
            };
            self.take(&mut batch, first);
            while batch.accepted.len() < BATCH {
                let Ok(job) = jobs.try_recv() else { break };
                self.take(&mut batch, job);
            }
            if !batch.accepted.is_empty() {
                self.finish(batch);
            }
        }
    }

    /// Checks a transaction against what is there and gives its writes their revisions.
    fn take(&self, batch: &mut Batch, job: Job) {
        let mut before = Vec::with_capacity(job.writes.len());
        for write in &job.writes {
            let slot = (write.resource, Box::<str>::from(write.key.as_str()));
            let (found, pending) = match batch.overlay.get(&slot) {
                Some(found) => (found.clone(), true),
                None => (self.memory.resource(write.resource).get(&write.key), false),
            };
            let holds = match write.expect {
                Expect::Absent => found.is_none(),
                Expect::Revision(revision) => found.as_ref().is_some_and(|o| o.revision() == revision),
            };
            if !holds {
                let conflict = StoreError::Conflict {
                    resource: write.resource,
                    key: write.key.clone(),
                    found,
                };
                if pending {
                    batch.overtaken.push((job.answer, conflict));
                } else {
                    let _ = job.answer.send(Err(conflict));
                }
                return;
            }
            before.push(found);
        }
        let mut objects = Vec::with_capacity(job.writes.len());
        for (write, previous) in job.writes.into_iter().zip(before) {
            let revision = batch.revision + 1;
            let (object, deleted) = match (write.operation, &previous) {
                (Operation::Put(encoded), _) => (Arc::new(encoded.seal(revision)), false),
                (Operation::Delete, Some(last)) => (Arc::new(last.at_revision(revision)), true),
                (Operation::Delete, None) => continue,
            };
            batch.revision = revision;
            let key: Box<str> = write.key.into();
            let visible = (!deleted).then(|| Arc::clone(&object));
            batch.overlay.insert((write.resource, key.clone()), visible);
            let event = Event {
                object: Arc::clone(&object),
                previous,
                deleted,
            };
            batch
                .changes
                .entry(write.resource)
                .or_default()
                .push((key, Arc::new(event)));
            objects.push(object);
        }
        batch.accepted.push(Accepted {
            objects,
            answer: job.answer,
        });
    }

    /// Makes the batch durable, then visible, then answers.
    fn finish(&self, batch: Batch) {
        let began = Instant::now();
        let writes = batch.changes.values().map(Vec::len).sum::<usize>();
        if let Err(error) = self.persist(&batch) {
            let error = Arc::new(error);
            tracing::error!(%error, "the store's engine refused a commit");
            for accepted in batch.accepted {
                let _ = accepted.answer.send(Err(StoreError::Engine(Arc::clone(&error))));
            }
            for (answer, _) in batch.overtaken {
                let _ = answer.send(Err(StoreError::Engine(Arc::clone(&error))));
            }
            return;
        }
        self.memory.apply(batch.changes, batch.revision);
        self.seconds.observe(began.elapsed());
        self.writes.add(writes as u64);
        for accepted in batch.accepted {
            let _ = accepted.answer.send(Ok(accepted.objects));
        }
        for (answer, conflict) in batch.overtaken {
            let _ = answer.send(Err(conflict));
        }
    }

    fn persist(&self, batch: &Batch) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut objects = transaction.open_table(OBJECTS)?;
            // Only the last state of a key within the batch reaches the disk.
            for ((resource, key), object) in &batch.overlay {
                let key = [resource.as_bytes(), b"\0", key.as_bytes()].concat();
                match object {
                    Some(object) => {
                        let sealer = self.sealer.as_ref().filter(|_| Sealer::seals(resource));
                        let record = encode(&key, object, sealer)
                            .map_err(|error| redb::Error::Io(std::io::Error::other(error)))?;
                        objects.insert(key.as_slice(), record.as_slice())?;
                    }
                    None => drop(objects.remove(key.as_slice())?),
                }
            }
            let mut last_changes = transaction.open_table(CHANGES)?;
            for (resource, changes) in &batch.changes {
                if let Some((_, last)) = changes.last() {
                    last_changes.insert(resource, last.revision())?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

fn engine(error: impl Into<redb::Error>) -> StoreError {
    StoreError::Engine(Arc::new(error.into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::store::Encoded;

    const RESOURCE: &str = "configmaps";

    fn index(_: &str, object: &Value) -> Meta {
        Meta {
            name: object["metadata"]["name"].as_str().unwrap_or_default().into(),
            ..Meta::default()
        }
    }

    fn put(key: &str, expect: Expect, value: u32) -> Write {
        let object = json!({"metadata": {"name": key}, "data": {"v": value.to_string()}});
        let meta = index(RESOURCE, &object);
        Write {
            resource: RESOURCE,
            key: key.to_owned(),
            expect,
            operation: Operation::Put(Encoded::new(&object, meta)),
        }
    }

    fn commit(store: &Embedded, writes: Vec<Write>) -> Committed {
        futures::executor::block_on(store.commit(writes))
    }

    fn value(object: &Object) -> u32 {
        object.value()["data"]["v"].as_str().unwrap().parse().unwrap()
    }

    /// One write of the model: a key, what is expected (`None`: absence; else the current revision or a wrong one) and the
    /// new value (`None`: deletion).
    type Step = (u8, Option<bool>, Option<u32>);

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The store agrees with a map, its watch tells every change in order, and a reopened store is the same.
        #[test]
        fn behaves_as_a_map_and_remembers(transactions in prop::collection::vec(
            prop::collection::vec((0u8..4, prop::option::of(any::<bool>()), prop::option::of(0u32..100)), 1..4),
            1..20,
        )) {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("store");
            let store = Embedded::open(&file, index).unwrap();
            let mut watch = store.watch(RESOURCE, 0).unwrap();
            let mut model: BTreeMap<String, (u64, u32)> = BTreeMap::new();
            let mut revision = 0;
            let mut told: BTreeMap<String, (u64, u32)> = BTreeMap::new();
            for transaction in &transactions {
                let mut keys: Vec<_> = transaction.iter().map(|step: &Step| step.0).collect();
                keys.sort_unstable();
                keys.dedup();
                if keys.len() != transaction.len() {
                    continue; // A transaction names a key once.
                }
                let mut holds = true;
                let mut after = model.clone();
                let mut next = revision;
                let mut writes = Vec::new();
                for (key, expect, new) in transaction {
                    let key = format!("ns/{key}");
                    let current = model.get(&key).map(|(revision, _)| *revision);
                    let expect = match expect {
                        None => Expect::Absent,
                        Some(true) => Expect::Revision(current.unwrap_or(9999)),
                        Some(false) => Expect::Revision(current.unwrap_or(0) + 1000),
                    };
                    holds &= match expect {
                        Expect::Absent => current.is_none(),
                        Expect::Revision(revision) => current == Some(revision),
                    };
                    if let Some(value) = new {
                        next += 1;
                        after.insert(key.clone(), (next, *value));
                        writes.push(put(&key, expect, *value));
                    } else {
                        if current.is_some() {
                            next += 1;
                        }
                        after.remove(&key);
                        writes.push(Write { resource: RESOURCE, key, expect, operation: Operation::Delete });
                    }
                }
                let result = commit(&store, writes);
                prop_assert_eq!(result.is_ok(), holds);
                if holds {
                    model = after;
                    revision = next;
                }
                prop_assert_eq!(store.revision(), revision);
                let mut last = 0;
                for event in watch.ready().unwrap() {
                    prop_assert!(event.revision() > last);
                    last = event.revision();
                    let key = event.object.meta().name.to_string();
                    if event.deleted {
                        told.remove(&key);
                    } else {
                        told.insert(key, (event.revision(), value(&event.object)));
                    }
                }
                prop_assert_eq!(&told, &model);
            }
            let state = |store: &Embedded| -> BTreeMap<String, (u64, u32)> {
                let listing = store.list(RESOURCE, "");
                let items = listing.items.iter();
                items.map(|o| (o.meta().name.to_string(), (o.revision(), value(o)))).collect()
            };
            prop_assert_eq!(&state(&store), &model);
            drop(watch);
            let memory = Arc::downgrade(&store.memory);
            drop(store);
            while memory.strong_count() > 0 {
                thread::yield_now(); // The writer closes the file.
            }
            let store = Embedded::open(&file, index).unwrap();
            prop_assert_eq!(&state(&store), &model);
            prop_assert_eq!(store.revision(), revision);
        }
    }

    #[test]
    fn secrets_are_sealed_on_disk_and_plain_ones_of_old_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let (file, key) = (directory.path().join("store"), directory.path().join("key"));
        let write = |key: &str, text: &str| Write {
            resource: "secrets",
            key: key.to_owned(),
            expect: Expect::Absent,
            operation: Operation::Put(Encoded::new(&json!({"data": text}), Meta::default())),
        };
        let closed = |store: Embedded| {
            let memory = Arc::downgrade(&store.memory);
            drop(store);
            while memory.strong_count() > 0 {
                thread::yield_now();
            }
            String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned()
        };
        let plain = Embedded::open(&file, index).unwrap();
        commit(&plain, vec![write("old", "plainly-visible")]).unwrap();
        assert!(closed(plain).contains("plainly-visible"));
        let open = || Embedded::open_sealed(&file, index, Some(Sealer::open(&key).unwrap()));
        let sealed = open().unwrap();
        assert!(sealed.get("secrets", "old").is_some());
        commit(&sealed, vec![write("new", "well-hidden")]).unwrap();
        assert!(!closed(sealed).contains("well-hidden"));
        let again = open().unwrap();
        assert_eq!(
            again.get("secrets", "new").unwrap().value()["data"],
            "well-hidden"
        );
        closed(again);
        // Without the key the store does not pretend that there is nothing.
        std::fs::remove_file(&key).unwrap();
        assert!(matches!(open(), Err(StoreError::Damaged { .. })));
    }

    #[test]
    fn many_writers_share_commits_and_one_of_each_race_wins() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Embedded::open(&directory.path().join("store"), index).unwrap());
        let wins: usize = thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    let store = Arc::clone(&store);
                    scope.spawn(move || {
                        let created =
                            |n: u32| commit(&store, vec![put(&n.to_string(), Expect::Absent, n)]).is_ok();
                        (0..50).filter(|n| created(*n)).count()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(wins, 50);
        assert_eq!(store.revision(), 50);
    }

    #[test]
    fn whoever_is_told_of_a_conflict_can_see_what_it_is_with() {
        let directory = tempfile::tempdir().unwrap();
        let store = Embedded::open(&directory.path().join("store"), index).unwrap();
        commit(&store, vec![put("n", Expect::Absent, 0)]).unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for value in 0..100 {
                        let known = store.get(RESOURCE, "n").unwrap().revision();
                        let written = commit(&store, vec![put("n", Expect::Revision(known), value)]);
                        if let Err(StoreError::Conflict { found, .. }) = written {
                            let visible = store.get(RESOURCE, "n").unwrap().revision();
                            assert!(found.unwrap().revision() <= visible);
                        }
                    }
                });
            }
        });
    }

    /// Pages that a commit sets free are used again, so the file needs no compaction while it is in use.
    #[test]
    fn a_file_that_is_rewritten_over_and_over_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("store");
        let store = Embedded::open(&file, index).unwrap();
        let mut revisions = vec![None; 100];
        let mut rewrite = |value| {
            let writes: Vec<Write> = revisions
                .iter()
                .enumerate()
                .map(|(place, known)| {
                    let expect = known.map_or(Expect::Absent, Expect::Revision);
                    put(&format!("object-{place}"), expect, value)
                })
                .collect();
            let written = commit(&store, writes).unwrap();
            for (known, object) in revisions.iter_mut().zip(written) {
                *known = Some(object.revision());
            }
            std::fs::metadata(&file).unwrap().len()
        };
        let settled = (0..50).map(&mut rewrite).max().unwrap();
        let later = (50..250).map(rewrite).max().unwrap();
        assert!(later <= settled * 5 / 4, "{settled} bytes grew to {later}");
    }

    #[test]
    fn a_watch_from_before_the_ring_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store");
        let store = Embedded::open(&file, index).unwrap();
        commit(&store, vec![put("a", Expect::Absent, 1)]).unwrap();
        commit(&store, vec![put("b", Expect::Absent, 1)]).unwrap();
        let memory = Arc::downgrade(&store.memory);
        drop(store);
        while memory.strong_count() > 0 {
            thread::yield_now();
        }
        let store = Embedded::open(&file, index).unwrap();
        assert!(store.watch(RESOURCE, 2).is_ok());
        assert!(matches!(
            store.watch(RESOURCE, 1),
            Err(StoreError::Expired { asked: 1, oldest: 2 })
        ));
    }
}
