//! Attachments of pods to the node's network, and the handle through which everyone asks for them.
//!
//! An *endpoint* is one pod interface on this node; the *attachment* `(container id, interface name)` is its key. The
//! types here are pure; `owner` holds the table and hands the kernel work out.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    datapath::{netlink::NetlinkError, netns::NetnsError, programs::DataplaneError},
    ipam::{IpamError, PoolUse, ledger::LedgerError},
    mac::MacAddress,
};

mod attach;
mod audit;
mod check;
pub mod checkpoint;
mod handle;
mod owner;
mod reaper;
mod takeover;

pub use checkpoint::CheckpointError;
pub use handle::{Endpoints, EndpointsOptions, checkpoints_dir, ledger_path};

/// The longest name that the kernel gives an interface.
pub const MAX_IFNAME_BYTES: usize = 15;

/// The longest container id that is taken. Runtimes use 64 hexadecimal digits.
pub const MAX_CONTAINER_ID_BYTES: usize = 256;

/// The key of an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// The runtime's name for the container.
    pub container_id: String,
    /// The interface in the container's netns.
    pub ifname: String,
}

impl AttachmentKey {
    /// A key, unchecked; [`Endpoints`] refuses a bad one.
    pub fn new(container_id: impl Into<String>, ifname: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    /// Checks the names as the CNI specification and the kernel do.
    pub fn validate(&self) -> Result<(), EndpointError> {
        let Self { container_id, ifname } = self;
        let id_ok = container_id.len() <= MAX_CONTAINER_ID_BYTES
            && container_id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && container_id
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
        if !id_ok {
            return Err(EndpointError::InvalidContainerId(container_id.clone()));
        }
        let reason = if ifname.is_empty() {
            "it is empty"
        } else if ifname.len() > MAX_IFNAME_BYTES {
            "it is longer than 15 bytes; use a shorter name"
        } else if ifname == "." || ifname == ".." {
            "the kernel reserves it"
        } else if ifname == "lo" {
            "it is the loopback device's"
        } else if ifname
            .contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control())
        {
            "it contains '/', ':', '%' or white space"
        } else {
            return Ok(());
        };
        Err(EndpointError::InvalidInterfaceName {
            ifname: ifname.clone(),
            reason,
        })
    }
}

impl fmt::Display for AttachmentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.container_id, self.ifname)
    }
}

/// The pod that an attachment belongs to, as far as the runtime said.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its UID.
    #[serde(default)]
    pub uid: String,
}

/// The node's number for an endpoint. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EndpointId(pub u32);

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What ADD asks for.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// The attachment to make.
    pub key: AttachmentKey,
    /// The netns that gets the interface.
    pub netns: PathBuf,
    /// The pod it is for.
    pub pod: Option<PodRef>,
    /// The network of the runtime that asks, within which GC works. None is never garbage to anyone.
    pub network: Option<String>,
    /// An MTU for the pod's device, not above the underlay's.
    pub mtu: Option<u32>,
}

impl AddRequest {
    /// A request with no wishes.
    pub fn new(key: AttachmentKey, netns: impl Into<PathBuf>) -> Self {
        Self {
            key,
            netns: netns.into(),
            pod: None,
            network: None,
            mtu: None,
        }
    }
}

/// A route in the pod's netns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRoute {
    /// Where it leads.
    pub destination: IpNetwork,
    /// The next hop; none for a destination on the link.
    pub gateway: Option<IpAddr>,
    /// The largest packet that may take it.
    pub mtu: Option<u32>,
    /// The segment size that TCP announces over it.
    pub advmss: Option<u32>,
}

/// What ADD made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The number of the endpoint.
    pub id: EndpointId,
    /// The pod's interface.
    pub ifname: String,
    /// The pod's addresses, one of each family that the node has pod CIDRs of, IPv4 first.
    pub ips: Vec<IpNetwork>,
    /// The gateway of each of `ips`, in the same order.
    pub gateways: Vec<IpAddr>,
    /// The node's end of the veth.
    pub host_ifname: String,
    /// Its index in the node's netns.
    pub host_ifindex: u32,
    /// Its address.
    pub host_mac: MacAddress,
    /// The address of the pod's end.
    pub pod_mac: MacAddress,
    /// The MTU of both ends.
    pub mtu: u32,
    /// The routes of the pod.
    pub routes: Vec<PodRoute>,
}

/// One line of the table of attachments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSummary {
    /// The attachment.
    pub key: AttachmentKey,
    /// The pod it is for.
    pub pod: Option<PodRef>,
    /// The network of the runtime that asked.
    pub network: Option<String>,
    /// The netns it is in.
    pub netns: PathBuf,
    /// What was made.
    pub attached: Attached,
}

/// Why an attachment could not be made, checked or taken away.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The container id breaks the CNI specification.
    #[error(
        "container id {0:?} is not valid: it must begin with a letter or digit and go on with these and '_', '.', '-'"
    )]
    InvalidContainerId(String),
    /// The kernel would not take the interface name.
    #[error("interface name {ifname:?} is not valid: {reason}")]
    InvalidInterfaceName {
        /// The name.
        ifname: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The attachment is there and ready.
    #[error("attachment {0} exists already; delete it before adding it again")]
    AlreadyAttached(AttachmentKey),
    /// The container has an interface of that name which is not this attachment's.
    #[error("netns {netns} already has an interface {ifname}; remove it or ask for another name")]
    InterfaceExists {
        /// The netns.
        netns: PathBuf,
        /// The interface.
        ifname: String,
    },
    /// The wanted MTU does not fit the underlay.
    #[error("MTU {wanted} is not between 1280 and the underlay's {underlay}")]
    InvalidMtu {
        /// What was asked for.
        wanted: u32,
        /// The underlay's.
        underlay: u32,
    },
    /// There is no such attachment.
    #[error("attachment {0} is not known; it was never added, or deleted")]
    NotAttached(AttachmentKey),
    /// The kernel is not as ADD left it.
    #[error("attachment {key} is not as it was made: {}", .differences.join("; "))]
    Differs {
        /// The attachment.
        key: AttachmentKey,
        /// What differs.
        differences: Vec<String>,
    },
    /// No address is left.
    #[error(transparent)]
    Ipam(#[from] IpamError),
    /// The leases cannot be written down.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The checkpoint cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The netns cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The programs' tables cannot be written.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The agent is stopping.
    #[error("the agent is stopping; try again")]
    Stopping,
}

/// How full the node is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EndpointsUse {
    /// Attachments that are ready.
    pub ready: usize,
    /// Attachments that are being made, taken away or mended.
    pub busy: usize,
    /// The pod CIDRs.
    pub pools: Vec<PoolUse>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_the_kernel_and_the_specification_do() {
        let long = "a".repeat(MAX_CONTAINER_ID_BYTES + 1);
        for (id, ifname) in [
            ("", "eth0"),
            ("-a", "eth0"),
            ("a/b", "eth0"),
            (long.as_str(), "eth0"),
            ("a", ""),
            ("a", "."),
            ("a", ".."),
            ("a", "lo"),
            ("a", "sixteen-byte-nam"),
            ("a", "a/b"),
            ("a", "a:b"),
            ("a", "a b"),
            ("a", "eth%d"),
        ] {
            assert!(
                AttachmentKey::new(id, ifname).validate().is_err(),
                "{id:?} {ifname:?}"
            );
        }
        AttachmentKey::new("4f.A_-", "fifteen-bytes-n")
            .validate()
            .unwrap();
    }
}
