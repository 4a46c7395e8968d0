//! The embedded engine: one file. A single thread takes all writes that wait, puts them into one transaction with one
//! `fsync` (group commit), makes them visible, and only then answers.

mod records;

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use redb::{Database, TableDefinition};
use tokio::sync::oneshot;

use self::records::{encode, load};
use super::memory::{Changes, Memory};
use super::sealing::Sealer;
use super::{
    CommitFuture, Committed, Event, Expect, Listing, Meta, Object, Operation, Revision, Store, StoreError,
    Watch, Write,
};
use crate::metrics::{self, Counter, Histogram};

/// `resource NUL key` → record.
const OBJECTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("objects");
/// Resource → revision of its last change, so that watches can resume over a restart.
const CHANGES: TableDefinition<'_, &str, u64> = TableDefinition::new("changes");

/// Transactions that may wait; more are refused, so that callers hear it and memory stays bounded.
const QUEUE: usize = 8192;
/// Transactions that share one `fsync` at most, so that the first of them does not wait for ever.
const BATCH: usize = 1024;
/// How long a commit is put off at most for those that are likely to join it, and how often they are looked for.
const GATHERING: Duration = Duration::from_millis(1);
const GLANCE: Duration = Duration::from_micros(100);
/// The engine's page cache. Reads come from our own map, so it only has to hold the inner pages.
const CACHE_BYTES: usize = 16 << 20;

/// Finds what selectors ask about in an object's text: called for every record at start.
pub type Indexer = fn(resource: &str, text: &[u8]) -> Result<Meta, serde_json::Error>;

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
        if !file.exists() {
            make(file)?;
        }
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .open(file)
            .map_err(engine)?;
        Self::on(database, index, sealer)
    }

    fn on(database: Database, index: Indexer, sealer: Option<Sealer>) -> Result<Self, StoreError> {
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

/// Makes an empty store, all of it or nothing: the engine does not open a file whose making was cut short.
fn make(file: &Path) -> Result<(), StoreError> {
    let io = |error| engine(redb::StorageError::Io(error));
    let scratch = file.with_extension("new");
    match fs::remove_file(&scratch) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io(error)),
        _ => {}
    }
    let database = Database::create(&scratch).map_err(engine)?;
    make_tables(&database)?;
    drop(database);
    fs::rename(&scratch, file).map_err(io)?;
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
    let directory = File::open(directory.unwrap_or(Path::new("."))).map_err(io)?;
    directory.sync_all().map_err(io)
}

fn make_tables(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_write().map_err(engine)?;
    transaction.open_table(OBJECTS).map_err(engine)?;
    transaction.open_table(CHANGES).map_err(engine)?;
    transaction.commit().map_err(engine)
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
        // How many transactions the last commit had, and how long it took.
        let (mut company, mut cost) = (0, Duration::ZERO);
        while let Ok(first) = jobs.recv() {
            let mut batch = Batch {
                revision: self.memory.revision(),
                ..Batch::default()
            };
            self.take(&mut batch, first);
            self.take_waiting(&mut batch, jobs);
            // Those who wrote together will write together again. To wait for them as long as they keep coming, and no longer
            // than a commit takes, saves a busy store commits; whoever writes alone never waits.
            let began = Instant::now();
            while batch.accepted.len() < company && began.elapsed() < cost.min(GATHERING) {
                thread::sleep(GLANCE);
                let before = batch.accepted.len();
                self.take_waiting(&mut batch, jobs);
                if batch.accepted.len() == before {
                    break;
                }
            }
            company = batch.accepted.len();
            if company > 0 {
                let began = Instant::now();
                self.finish(batch);
                cost = began.elapsed();
            }
        }
    }

    fn take_waiting(&self, batch: &mut Batch, jobs: &Receiver<Job>) {
        while batch.accepted.len() < BATCH {
            let Ok(job) = jobs.try_recv() else { break };
            self.take(batch, job);
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
mod power;
#[cfg(test)]
mod tests;
