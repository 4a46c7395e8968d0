//! Attachments of pods to the node's network, and the handle through which everyone asks for them.
//!
//! An *endpoint* is one pod interface on this node; the *attachment* `(container id, interface name)` is its key. The
//! types here are pure; `owner` holds the table and hands the kernel work out.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::mac::MacAddress;

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
    /// An MTU for the pod's device, below the underlay's.
    pub mtu: Option<u32>,
}

impl AddRequest {
    /// A request with no wishes.
    pub fn new(key: AttachmentKey, netns: impl Into<PathBuf>) -> Self {
        Self {
            key,
            netns: netns.into(),
            pod: None,
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
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// The handle to the table of attachments; clones are cheap and share it.
#[derive(Clone)]
pub struct Endpoints {}

#[expect(
    clippy::unused_async,
    reason = "the signatures stand before the owner task does"
)]
impl Endpoints {
    /// Attaches a container.
    pub async fn add(&self, request: AddRequest) -> Result<Attached, EndpointError> {
        request.key.validate()?;
        Err(EndpointError::Stopping)
    }

    /// Detaches a container. What is gone is a success.
    pub async fn del(&self, key: AttachmentKey) -> Result<(), EndpointError> {
        key.validate()?;
        Err(EndpointError::Stopping)
    }

    /// Compares the kernel with what ADD made, and returns that.
    pub async fn check(&self, key: AttachmentKey) -> Result<Attached, EndpointError> {
        key.validate()?;
        Err(EndpointError::Stopping)
    }

    /// Detaches all that is not in `valid`.
    pub async fn gc(&self, valid: Vec<AttachmentKey>) -> Result<(), EndpointError> {
        drop(valid);
        Err(EndpointError::Stopping)
    }

    /// Says whether ADD would be served.
    pub async fn status(&self) -> Result<(), EndpointError> {
        Err(EndpointError::Stopping)
    }

    /// All attachments that are ready, by key.
    pub async fn list(&self) -> Result<Vec<EndpointSummary>, EndpointError> {
        Err(EndpointError::Stopping)
    }
}
