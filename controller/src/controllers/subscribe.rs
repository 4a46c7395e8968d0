//! Which keys of a controller's queue a change concerns: the object's own, or its owner's.

use crate::informer::{Cached, ObjectKey, Store, controller_of};
use crate::queue::Queue;

/// The controller of an object, if it is of this kind.
pub(crate) fn owner_key(object: &impl Cached, kind: &str) -> Option<ObjectKey> {
    let meta = object.metadata();
    let owner = controller_of(meta).filter(|owner| owner.kind == kind)?;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    Some(ObjectKey::new(namespace, &owner.name))
}

/// An object that is new, other or gone is looked at.
pub(crate) fn to_objects<V: Cached>(queue: &Queue<ObjectKey>, objects: &Store<V>) {
    let keys = queue.clone();
    objects.subscribe(move |change| {
        if let Some(object) = change.latest() {
            keys.add(ObjectKey::of(object.metadata()));
        }
    });
}

/// The owner, of this kind, of an object that is new, other or gone is looked at; so is the one before.
pub(crate) fn to_owners<V: Cached>(queue: &Queue<ObjectKey>, objects: &Store<V>, kind: &'static str) {
    let keys = queue.clone();
    objects.subscribe(move |change| {
        for object in [change.old, change.new].into_iter().flatten() {
            if let Some(key) = owner_key(&**object, kind) {
                keys.add(key);
            }
        }
    });
}
