//! The half of a store that all engines share: every resource's objects and recent changes in memory, from which reads and
//! watches are served.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::history::{Limits, Resource};
use super::{Event, Listing, Object, Revision};

/// Objects in key order.
pub(super) type Objects = BTreeMap<Box<str>, Arc<Object>>;
/// Changes of one resource in the order of their revisions, each with its key.
pub(super) type Changes = Vec<(Box<str>, Arc<Event>)>;

/// All resources.
#[derive(Debug, Default)]
pub(super) struct Memory {
    revision: AtomicU64,
    /// Of a resource that nothing is known of, changes up to here may have been missed.
    floor: AtomicU64,
    resources: RwLock<HashMap<Box<str>, Arc<Resource>>>,
}

impl Memory {
    /// What was there at `revision`: of each resource the objects and the revision of its last change.
    pub(super) fn new(
        revision: Revision,
        resources: impl IntoIterator<Item = (Box<str>, Objects, Revision)>,
    ) -> Self {
        let resources = resources.into_iter().map(|(name, objects, last)| {
            let resource = Resource::new(Limits::of(&name), objects, last);
            (name, Arc::new(resource))
        });
        Self {
            revision: AtomicU64::new(revision),
            floor: AtomicU64::new(0),
            resources: RwLock::new(resources.collect()),
        }
    }

    /// The same where nothing is known of what happened before `revision`, not even of resources without objects.
    pub(super) fn since(
        revision: Revision,
        resources: impl IntoIterator<Item = (Box<str>, Objects, Revision)>,
    ) -> Self {
        let memory = Self::new(revision, resources);
        memory.floor.store(revision, Ordering::Release);
        memory
    }

    /// Everything as it is at `revision`, to which the changes are not known. Watchers have to list again.
    pub(super) fn replace(&self, mut objects: HashMap<Box<str>, Objects>, revision: Revision) {
        self.floor.store(revision, Ordering::Release);
        for name in objects.keys() {
            self.resource(name);
        }
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        for (name, resource) in resources.iter() {
            resource.replace(objects.remove(name).unwrap_or_default(), revision);
        }
        self.revision.store(revision, Ordering::Release);
    }

    /// Forgets all histories: watchers that have not seen everything have to list again.
    #[cfg(test)]
    pub(super) fn cut(&self) {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        for resource in resources.values() {
            resource.cut();
        }
    }

    /// The revision up to which all changes are visible.
    pub(super) fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    /// One resource; an empty one if nothing is known of it.
    pub(super) fn resource(&self, name: &str) -> Arc<Resource> {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(resource) = resources.get(name) {
            return Arc::clone(resource);
        }
        drop(resources);
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        let floor = self.floor.load(Ordering::Acquire);
        Arc::clone(
            resources
                .entry(name.into())
                .or_insert_with(|| Arc::new(Resource::new(Limits::of(name), BTreeMap::new(), floor))),
        )
    }

    /// The objects whose keys begin with `prefix`.
    pub(super) fn list(&self, resource: &str, prefix: &str) -> Listing {
        let before = self.revision();
        let (last, items) = self.resource(resource).list(prefix);
        // All changes up to `before` were applied before it was published, so the list holds them.
        Listing {
            revision: before.max(last),
            items,
        }
    }

    /// Takes in changes, then publishes the revision that they lead to.
    pub(super) fn apply<N: AsRef<str>>(
        &self,
        changes: impl IntoIterator<Item = (N, Changes)>,
        revision: Revision,
    ) {
        for (name, changes) in changes {
            self.resource(name.as_ref()).apply(changes);
        }
        self.revision.store(revision, Ordering::Release);
    }
}
