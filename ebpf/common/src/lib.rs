//! What Weft's BPF programs and user space must agree on: map layouts and names, reasons, wire formats and the pure
//! arithmetic on them.
//!
//! Map values are plain bytes: `repr(C)`, fixed-width fields, padding only as named zero fields. A change of layout is
//! a new map name (`_V2`), because a running node keeps its pinned maps over an upgrade.
#![no_std]
#![allow(
    clippy::inline_always,
    reason = "what programs use must end up inside them: BPF calls cost, and pass few arguments"
)]
#![allow(clippy::many_single_char_names, reason = "the bytes of an address")]

pub mod checksum;
pub mod config;
pub mod ecn;
pub mod endpoint;
pub mod headers;
pub mod maps;
pub mod metrics;
pub mod peer;
pub mod reason;
pub mod slot;

pub use config::NodeConfig;
pub use endpoint::Endpoint;
pub use metrics::Counter;
pub use peer::Peer;
pub use reason::Reason;
pub use slot::{SlotV4, SlotV6};

/// A network address as both families share it: IPv4 as `::ffff:a.b.c.d`, in network byte order.
pub type Address = [u8; 16];

/// The MAC address of every node's overlay device, so that an inner frame's destination is right wherever it goes.
pub const OVERLAY_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x00];

/// The source of inner frames. It differs from [`OVERLAY_MAC`] because the kernel drops a tunnelled frame whose source
/// is the receiving device's own address, as an echo of itself.
pub const INNER_SOURCE_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// The link-layer addresses of a frame as they stand in it: destination, source.
pub type Macs = [u8; 12];

/// Puts the addresses of a frame together.
#[inline(always)]
#[must_use]
pub const fn macs(destination: [u8; 6], source: [u8; 6]) -> Macs {
    let [a, b, c, d, e, f] = destination;
    let [g, h, i, j, k, l] = source;
    [a, b, c, d, e, f, g, h, i, j, k, l]
}

/// A pod's IPv4 gateway, on its link only.
pub const GATEWAY_V4: [u8; 4] = [169, 254, 1, 1];

/// A pod's IPv6 gateway: `fe80::1`.
pub const GATEWAY_V6: Address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// Maps an IPv4 address into the form both families share.
#[must_use]
pub const fn mapped_v4(a: [u8; 4]) -> Address {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// Marks a layout as plain bytes for aya. The size is asserted beside it: the size is part of the contract with
/// programs that may already be running.
macro_rules! layout {
    ($t:ty, $size:expr) => {
        const _: () = assert!(size_of::<$t>() == $size);
        // SAFETY: `repr(C)`, every bit pattern is valid, and zerocopy's `IntoBytes` derive refuses padding.
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $t {}
    };
}
pub(crate) use layout;
