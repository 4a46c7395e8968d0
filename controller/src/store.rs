//! Where objects live: one revision counter, compare-and-swap transactions, ordered reads, and watches from a revision.
//!
//! Reads are served from memory and never wait for the disk; a write is acknowledged once it is durable and visible.

pub mod embedded;
pub mod etcd;
mod history;
mod memory;
mod object;
pub mod sealing;
#[cfg(test)]
pub(crate) mod simulated;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

pub use embedded::Embedded;
pub use etcd::Etcd;
pub use history::{Aspect, Event, Interest, Watch, WatchBatch};
pub use object::{Encoded, Meta, Object};

/// The store's clock: every write gets the next one.
pub type Revision = u64;

/// What a write expects to find under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No object.
    Absent,
    /// The object as it was last written at this revision.
    Revision(Revision),
}

/// What a write leaves under its key.
#[derive(Debug)]
pub enum Operation {
    /// This object; its resource version becomes the write's revision.
    Put(Encoded),
    /// Nothing.
    Delete,
}

/// One compare-and-swap.
#[derive(Debug)]
pub struct Write {
    /// The resource, as the store knows it: `pods`, `apps/deployments`.
    pub resource: &'static str,
    /// The key within the resource: `namespace/name`, or the name alone.
    pub key: String,
    /// What must be there for the write to happen.
    pub expect: Expect,
    /// What to do.
    pub operation: Operation,
}

/// Objects in key order, as they were at one revision.
#[derive(Debug)]
pub struct Listing {
    /// A watch from here misses nothing and repeats nothing.
    pub revision: Revision,
    /// The objects.
    pub items: Vec<Arc<Object>>,
}

/// Why the store refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A transaction found something else than it expected under the key; nothing was written.
    #[error("{resource} {key:?} is not as expected")]
    Conflict {
        /// The resource of the write.
        resource: &'static str,
        /// Its key.
        key: String,
        /// What is there.
        found: Option<Arc<Object>>,
    },
    /// The history a watch asked for is gone.
    #[error("too old resource version: {asked} ({oldest})")]
    Expired {
        /// The revision asked for.
        asked: Revision,
        /// The oldest from which a watch can start.
        oldest: Revision,
    },
    /// More writes are waiting than the queue holds.
    #[error("too many writes are waiting")]
    Busy,
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
    /// The engine failed; nothing of the transaction is visible.
    #[error("the store's engine failed: {0}")]
    Engine(Arc<redb::Error>),
    /// etcd failed; a write may or may not have been done.
    #[error(transparent)]
    Etcd(Arc<etcd::EtcdError>),
    /// A stored record cannot be read.
    #[error("the record of {key:?} is damaged: {why}")]
    Damaged {
        /// Its key in the engine.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// What a commit comes to: the written objects in the order of the writes; for a deletion the last state with the
/// deletion's revision.
pub type Committed = Result<Vec<Arc<Object>>, StoreError>;

/// A commit on its way.
pub type CommitFuture = Pin<Box<dyn Future<Output = Committed> + Send>>;

/// A barrier on its way.
pub type BarrierFuture = Pin<Box<dyn Future<Output = Result<(), StoreError>> + Send>>;

/// A store of objects.
pub trait Store: Send + Sync + 'static {
    /// The revision of the last write that is visible.
    fn revision(&self) -> Revision;
    /// The object under a key.
    fn get(&self, resource: &'static str, key: &str) -> Option<Arc<Object>>;
    /// The objects whose keys begin with `prefix`.
    fn list(&self, resource: &'static str, prefix: &str) -> Listing;
    /// How many objects a resource has.
    fn count(&self, resource: &'static str) -> usize;
    /// Does all writes or none; resolves when they are durable and visible. A transaction names a key once.
    fn commit(&self, writes: Vec<Write>) -> CommitFuture;
    /// Resolves when everything that was acknowledged to anyone before the call is visible here. Only an engine whose writes
    /// other processes make, too, has to wait.
    fn barrier(&self) -> BarrierFuture {
        Box::pin(std::future::ready(Ok(())))
    }
    /// The changes of a resource after a revision.
    ///
    /// # Errors
    /// [`StoreError::Expired`] if changes after `after` are no longer known.
    fn watch(&self, resource: &'static str, after: Revision) -> Result<Watch, StoreError>;
}
