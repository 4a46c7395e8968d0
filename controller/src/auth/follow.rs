//! A local view of stored objects that is never behind an acknowledged write: whoever reads it first takes in what changed.

use crate::store::{Object, Store, Watch};

/// What happened to the objects that are followed.
pub(super) enum Change<'a> {
    /// Everything known is void; what is there follows.
    Reset,
    /// An object is there, new or changed.
    Put(&'a Object),
    /// An object is gone.
    Gone(&'a Object),
}

/// A place in the history of one resource.
#[derive(Debug, Default)]
pub(super) struct Follower {
    watch: Option<Watch>,
}

impl Follower {
    /// Whether there is something to take in.
    pub(super) fn is_behind(&self) -> bool {
        self.watch.as_ref().is_none_or(Watch::is_behind)
    }

    /// Takes in what happened since the last time.
    pub(super) fn catch_up(
        &mut self,
        store: &dyn Store,
        storage: &'static str,
        mut take: impl FnMut(Change<'_>),
    ) {
        loop {
            let Some(watch) = &mut self.watch else {
                let listing = store.list(storage, "");
                take(Change::Reset);
                for object in &listing.items {
                    take(Change::Put(object));
                }
                self.watch = store.watch(storage, listing.revision).ok();
                // The history moves on while a list is read; one that is gone already is read again next time.
                if self.watch.is_none() {
                    return;
                }
                continue;
            };
            match watch.ready() {
                Ok(batch) if batch.is_empty() => return,
                Ok(batch) => {
                    for event in batch {
                        if event.deleted {
                            take(Change::Gone(&event.object));
                        } else {
                            take(Change::Put(&event.object));
                        }
                    }
                }
                Err(_) => self.watch = None,
            }
        }
    }
}
