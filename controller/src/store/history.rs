//! One resource in memory: its objects in key order and the ring of its latest changes, which watchers read at their own
//! pace. Nobody waits for a watcher: one that falls behind the ring is told so and must list again.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

use super::{Object, Revision, StoreError};

/// Changes handed to a watcher at a time.
const BATCH: usize = 256;

/// How much a resource's ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// Leases and Events change all the time and nobody resumes a watch on them far back.
    pub(super) fn of(resource: &str) -> Self {
        match resource {
            "coordination.k8s.io/leases" | "events" => Self {
                events: 2048,
                bytes: 2 << 20,
            },
            _ => Self {
                events: 16384,
                bytes: 24 << 20,
            },
        }
    }
}

/// One change.
#[derive(Debug)]
pub struct Event {
    /// The new state; for a deletion the last state under the deletion's revision.
    pub object: Arc<Object>,
    /// The state before.
    pub previous: Option<Arc<Object>>,
    /// Whether the object is gone.
    pub deleted: bool,
}

impl Event {
    /// The change's revision.
    pub fn revision(&self) -> Revision {
        self.object.revision()
    }

    fn size(&self) -> usize {
        self.object.body().len() + self.previous.as_ref().map_or(0, |object| object.body().len())
    }
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Changes after this revision are all in the ring.
    floor: Revision,
    /// The last change.
    last: Revision,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Resource {
    limits: Limits,
    inner: RwLock<Inner>,
    changed: watch::Sender<Revision>,
}

impl Resource {
    /// A resource whose last change was at `last`; what happened up to then is not known any more.
    pub(super) fn new(limits: Limits, objects: BTreeMap<Box<str>, Arc<Object>>, last: Revision) -> Self {
        Self {
            limits,
            inner: RwLock::new(Inner {
                objects,
                floor: last,
                last,
                ..Inner::default()
            }),
            changed: watch::Sender::new(last),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// The objects under a prefix and the revision of the last change to the resource.
    pub(super) fn list(&self, prefix: &str) -> (Revision, Vec<Arc<Object>>) {
        let inner = self.read();
        let items = if prefix.is_empty() {
            inner.objects.values().cloned().collect()
        } else {
            inner
                .objects
                .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(_, object)| Arc::clone(object))
                .collect()
        };
        (inner.last, items)
    }

    /// The objects as they are at `revision`; what led there is not known.
    pub(super) fn replace(&self, objects: BTreeMap<Box<str>, Arc<Object>>, revision: Revision) {
        *self.inner.write().unwrap_or_else(PoisonError::into_inner) = Inner {
            objects,
            floor: revision,
            last: revision,
            ..Inner::default()
        };
        self.changed.send_replace(revision);
    }

    /// Takes in changes in the order of their revisions and wakes the watchers.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = (Box<str>, Arc<Event>)>) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        for (key, event) in changes {
            inner.last = event.revision();
            if event.deleted {
                inner.objects.remove(&key);
            } else {
                inner.objects.insert(key, Arc::clone(&event.object));
            }
            inner.ring_bytes += event.size();
            inner.ring.push_back(event);
        }
        while inner.ring.len() > self.limits.events || inner.ring_bytes > self.limits.bytes {
            let Some(oldest) = inner.ring.pop_front() else {
                break;
            };
            inner.ring_bytes -= oldest.size();
            inner.floor = oldest.revision();
        }
        let last = inner.last;
        drop(inner);
        self.changed.send_replace(last);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watcher gets at a time: changes in order, at least one.
pub type WatchBatch = Vec<Arc<Event>>;

/// A reader of one resource's changes.
#[derive(Debug)]
pub struct Watch {
    resource: Arc<Resource>,
    changed: watch::Receiver<Revision>,
    cursor: Revision,
}

impl Watch {
    pub(super) fn new(resource: &Arc<Resource>, after: Revision) -> Result<Self, StoreError> {
        let floor = resource.read().floor;
        if after < floor {
            return Err(StoreError::Expired {
                asked: after,
                oldest: floor,
            });
        }
        Ok(Self {
            changed: resource.changed.subscribe(),
            resource: Arc::clone(resource),
            cursor: after,
        })
    }

    /// The next changes; waits until there are some.
    ///
    /// # Errors
    /// [`StoreError::Expired`] if the watcher was too slow, [`StoreError::Closed`] if there will be no more.
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            self.changed.borrow_and_update();
            let batch = self.ready()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            self.changed.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }

    /// The changes that are there; none if the watcher has seen all.
    ///
    /// # Errors
    /// [`StoreError::Expired`] if the watcher was too slow.
    pub fn ready(&mut self) -> Result<WatchBatch, StoreError> {
        let inner = self.resource.read();
        if self.cursor < inner.floor {
            return Err(StoreError::Expired {
                asked: self.cursor,
                oldest: inner.floor,
            });
        }
        if self.cursor >= inner.last {
            return Ok(Vec::new());
        }
        let start = inner
            .ring
            .partition_point(|event| event.revision() <= self.cursor);
        let mut batch: WatchBatch = Vec::new();
        for event in inner.ring.iter().skip(start) {
            // The cursor is a revision, so the changes of one must not be parted.
            let is_full = batch.len() >= BATCH
                && batch
                    .last()
                    .is_some_and(|last| last.revision() < event.revision());
            if is_full {
                break;
            }
            batch.push(Arc::clone(event));
        }
        if let Some(last) = batch.last() {
            self.cursor = last.revision();
        }
        Ok(batch)
    }
}
