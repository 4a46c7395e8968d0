//! A store whose faults are drawn from a seed, for the simulation: commits take a while, are refused, or happen without the
//! writer hearing of it; histories are cut; a whole control plane dies between any two of its writes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::Notify;

use super::memory::{Changes, Memory};
use super::{
    CommitFuture, Committed, Event, Expect, Listing, Object, Operation, Revision, Store, StoreError, Watch,
    Write,
};

/// The longest that a commit takes.
const SLOWEST_COMMIT_MS: u64 = 20;

/// The store.
pub(crate) struct Simulated {
    memory: Memory,
    random: Mutex<StdRng>,
    faulty: AtomicBool,
    /// What the store saw that must not be.
    violations: Mutex<Vec<String>>,
    /// How often each fault was met.
    met: Mutex<BTreeMap<Fault, u32>>,
}

/// What befalls a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    None,
    /// It is refused.
    Refused,
    /// It happens, and the writer is told that it failed.
    Unheard,
    /// The histories of all resources are cut after it.
    Cut,
    /// The control plane that makes it has died.
    Death,
}

impl Simulated {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            memory: Memory::default(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            faulty: AtomicBool::new(false),
            violations: Mutex::default(),
            met: Mutex::default(),
        })
    }

    /// Whether faults happen.
    pub(crate) fn set_faulty(&self, faulty: bool) {
        self.faulty.store(faulty, Ordering::Release);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// How often each fault was met.
    pub(crate) fn met(&self) -> BTreeMap<Fault, u32> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn meet(&self, fault: Fault) {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        *met.entry(fault).or_default() += 1;
    }

    fn draw(&self) -> (Duration, Fault) {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let delay = Duration::from_millis(random.random_range(0..=SLOWEST_COMMIT_MS));
        let fault = match random.random_range(0..200) {
            _ if !self.faulty.load(Ordering::Acquire) => Fault::None,
            0..4 => Fault::Refused,
            4..8 => Fault::Unheard,
            8 => Fault::Cut,
            _ => Fault::None,
        };
        (delay, fault)
    }

    fn apply(&self, writes: Vec<Write>) -> Committed {
        let mut found = Vec::with_capacity(writes.len());
        for write in &writes {
            let object = self.memory.resource(write.resource).get(&write.key);
            let holds = match write.expect {
                Expect::Absent => object.is_none(),
                Expect::Revision(revision) => object.as_ref().is_some_and(|o| o.revision() == revision),
            };
            if !holds {
                return Err(StoreError::Conflict {
                    resource: write.resource,
                    key: write.key.clone(),
                    found: object,
                });
            }
            found.push(object);
        }
        let mut revision = self.memory.revision();
        let mut objects = Vec::new();
        let mut changes: BTreeMap<&str, Changes> = BTreeMap::new();
        for (write, previous) in writes.into_iter().zip(found) {
            revision += 1;
            let (object, deleted) = match (write.operation, &previous) {
                (Operation::Put(encoded), _) => (Arc::new(encoded.seal(revision)), false),
                (Operation::Delete, Some(last)) => (Arc::new(last.at_revision(revision)), true),
                (Operation::Delete, None) => continue,
            };
            if write.resource == "pods"
                && let Some(previous) = &previous
            {
                self.check_binding(&previous.value(), &object.value());
            }
            let event = Event {
                object: Arc::clone(&object),
                previous,
                deleted,
            };
            let of_resource = changes.entry(write.resource).or_default();
            of_resource.push((write.key.into(), Arc::new(event)));
            objects.push(object);
        }
        self.memory.apply(changes, revision);
        Ok(objects)
    }

    /// A pod that has a node keeps it.
    fn check_binding(&self, before: &Value, after: &Value) {
        let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
        let (old, new) = (node(before), node(after));
        if before["metadata"]["uid"] == after["metadata"]["uid"] && !old.is_empty() && old != new {
            let text = format!("{} was moved from {old} to {new:?}", after["metadata"]["name"]);
            self.violations
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(text);
        }
    }
}

/// The store as one control plane sees it, which dies with it.
pub(crate) struct Generation {
    store: Arc<Simulated>,
    writes_left: AtomicI64,
    died: Notify,
}

impl Generation {
    /// A view that dies after so many writes.
    pub(crate) fn new(store: &Arc<Simulated>, writes: i64) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            writes_left: AtomicI64::new(writes),
            died: Notify::new(),
        })
    }

    /// Waits for its death.
    pub(crate) async fn death(&self) {
        self.died.notified().await;
    }
}

/// A handle that can be a trait object.
pub(crate) struct View(pub(crate) Arc<Generation>);

impl Store for View {
    fn revision(&self) -> Revision {
        self.0.store.memory.revision()
    }

    fn get(&self, resource: &'static str, key: &str) -> Option<Arc<Object>> {
        self.0.store.memory.resource(resource).get(key)
    }

    fn list(&self, resource: &'static str, prefix: &str) -> Listing {
        self.0.store.memory.list(resource, prefix)
    }

    fn count(&self, resource: &'static str) -> usize {
        self.0.store.memory.resource(resource).len()
    }

    fn commit(&self, writes: Vec<Write>) -> CommitFuture {
        let generation = Arc::clone(&self.0);
        Box::pin(async move {
            let store = &generation.store;
            let (delay, fault) = store.draw();
            tokio::time::sleep(delay).await;
            if fault == Fault::Refused {
                store.meet(fault);
                return Err(StoreError::Busy);
            }
            if generation.writes_left.fetch_sub(1, Ordering::AcqRel) <= 0 {
                store.meet(Fault::Death);
                generation.died.notify_one();
                return Err(StoreError::Closed);
            }
            store.meet(fault);
            let committed = store.apply(writes)?;
            if fault == Fault::Cut {
                store.memory.cut();
            }
            if fault == Fault::Unheard {
                return Err(StoreError::Busy);
            }
            Ok(committed)
        })
    }

    fn watch(&self, resource: &'static str, after: Revision) -> Result<Watch, StoreError> {
        Watch::new(&self.0.store.memory.resource(resource), after)
    }
}
