//! A pod's interface on this node.

use crate::{Macs, layout};

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
    /// The addresses of a frame to the pod: the pod veth's, and the host veth's, which is the pod's gateway.
    pub macs: Macs,
    /// None defined; zero.
    pub flags: u32,
}

layout!(Endpoint, 24);

impl Endpoint {
    /// The pod veth's address.
    #[must_use]
    pub const fn pod_mac(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.macs;
        [a, b, c, d, e, f]
    }

    /// The host veth's address.
    #[inline(always)]
    #[must_use]
    pub const fn host_mac(&self) -> [u8; 6] {
        let [.., a, b, c, d, e, f] = self.macs;
        [a, b, c, d, e, f]
    }
}
