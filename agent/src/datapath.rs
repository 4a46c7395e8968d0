//! The one door to the kernel's network.

use std::sync::{Arc, PoisonError, RwLock};

pub mod bpffs;
pub mod maps;
pub mod mtu;
pub mod netlink;
pub mod netns;
pub mod nftables;
pub mod programs;
pub mod selftest;
pub mod sysctl;

use self::{
    mtu::Limits,
    netlink::{Netlink, NetlinkError},
    netns::{NetnsError, NetnsThread},
    programs::Dataplane,
};

/// The group of pods' veths: by it they are known as Weft's, and deleted at uninstalling.
pub const POD_GROUP: u32 = 0x7765_6674;
/// The group of links that are about to be deleted.
pub const DOOMED_GROUP: u32 = POD_GROUP + 1;

/// What attachments need of the node.
pub struct Datapath {
    /// A socket in the node's netns.
    pub netlink: Arc<Netlink>,
    /// The way into pods' namespaces.
    pub netns: NetnsThread,
    /// The programs and their tables.
    pub dataplane: Dataplane,
    limits: RwLock<Limits>,
}

/// Why the datapath could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// No socket.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No netns thread.
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

impl Datapath {
    /// Takes the node's programs; the calling thread's netns is the node's.
    pub fn new(dataplane: Dataplane, limits: Limits) -> Result<Self, DatapathError> {
        Ok(Self {
            netlink: Arc::new(Netlink::open()?),
            netns: NetnsThread::start()?,
            dataplane,
            limits: RwLock::new(limits),
        })
    }

    /// The sizes that pods' devices and routes get.
    pub fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the sizes for pods to come; [`crate::endpoint::Endpoints::repair`] brings them to those that are there.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
    }
}
