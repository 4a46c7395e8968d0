//! What lies behind the tunnel.

use crate::{Address, layout};

/// The prefix is an address of the node itself: what arrives for it goes through the receiver's overlay device.
pub const PEER_IS_NODE: u32 = 1 << 0;

/// Where a prefix of the overlay is reached.
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
pub struct Peer {
    /// The other node's tunnel endpoint; tunnelled packets from this prefix come from there and from nowhere else.
    pub tunnel_endpoint: Address,
    /// The underlay neighbour on the way there: the endpoint itself where it is on the link, else a router.
    pub next_hop: Address,
    /// The underlay device on the way there.
    pub ifindex: u32,
    /// [`PEER_IS_NODE`].
    pub flags: u32,
}

layout!(Peer, 40);
