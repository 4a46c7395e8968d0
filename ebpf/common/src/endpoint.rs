//! A pod's interface on this node.

use crate::layout;

/// What it takes to deliver to a pod, and to recognise its packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(
    feature = "user",
    derive(
        zerocopy::FromBytes,
        zerocopy::IntoBytes,
        zerocopy::Immutable,
        zerocopy::KnownLayout
    )
)]
pub struct Endpoint {
    /// The host veth.
    pub ifindex: u32,
    /// The number the agent gave the endpoint.
    pub endpoint_id: u32,
    /// The pod veth's MAC address.
    pub pod_mac: [u8; 6],
    /// The host veth's MAC address: the pod's gateway.
    pub host_mac: [u8; 6],
    /// None defined; zero.
    pub flags: u32,
}

layout!(Endpoint, 24);
