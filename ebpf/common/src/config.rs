//! What the programs know of their own node.

use crate::{Address, layout};

/// The program writes the tunnel header itself; without it the overlay device does.
pub const PROGRAM_ENCAP: u32 = 1 << 0;
/// The program strips the tunnel header itself; without it the overlay device does.
pub const PROGRAM_DECAP: u32 = 1 << 1;
/// Tunnel endpoints are IPv6 addresses.
pub const UNDERLAY_V6: u32 = 1 << 2;

/// This node, as the programs see it. All zero means "not configured": nothing is forwarded.
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
pub struct NodeConfig {
    /// [`PROGRAM_ENCAP`] and its kin.
    pub flags: u32,
    /// The 24-bit network identifier as the header's last word, in network byte order (identifier, zero byte).
    pub vni_word: [u8; 4],
    /// The device that tunnel packets leave by and arrive on.
    pub underlay_ifindex: u32,
    /// The VXLAN device in collect-metadata mode.
    pub overlay_ifindex: u32,
    /// The longest inner IP packet that fits the tunnel.
    pub tunnel_mtu: u32,
    /// The tunnel's UDP port, network byte order.
    pub tunnel_port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// This node's tunnel endpoint.
    pub tunnel_source: Address,
    /// This node's own IPv4 address as pods and peers know it; zero if it has none.
    pub node_ipv4: [u8; 4],
    /// Zero.
    pub pad2: [u8; 4],
    /// This node's own IPv6 address; zero if it has none.
    pub node_ipv6: Address,
}

layout!(NodeConfig, 64);
