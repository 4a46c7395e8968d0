//! Tells who wants to know that objects of any kind are gone; whoever watches all kinds says so.

use std::sync::{PoisonError, RwLock};

/// Takes the group and plural of what is gone, and its namespace.
type Listener = Box<dyn Fn(&str, &str, &str) + Send + Sync>;

/// The listeners.
#[derive(Default)]
pub(crate) struct Departures(RwLock<Vec<Listener>>);

impl Departures {
    /// Adds a listener.
    pub(crate) fn subscribe(&self, listener: impl Fn(&str, &str, &str) + Send + Sync + 'static) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(listener));
    }

    /// Tells all listeners.
    pub(crate) fn tell(&self, group: &str, plural: &str, namespace: &str) {
        for listener in self.0.read().unwrap_or_else(PoisonError::into_inner).iter() {
            listener(group, plural, namespace);
        }
    }
}
