//! The pods on a node by the low bits of their address: what the programs look at before they ask a hash.
//!
//! A node's addresses are given out from one range, so with no more pods than slots each has its own, and two loads tell
//! what a hash takes a call and a walk for. Where two addresses share a slot the hash decides.

use crate::{Address, Endpoint, layout};

/// How many there are per family; a power of two.
pub const SLOTS: u32 = 1024;

/// The slot of an IPv4 address, or of the last word of an IPv6 address, in network byte order.
#[inline(always)]
#[must_use]
pub const fn index(last_word: u32) -> u32 {
    u32::from_be(last_word) & (SLOTS - 1)
}

/// One of the IPv4 endpoints of a slot. All zero where there is none.
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
pub struct SlotV4 {
    /// The pod's address.
    pub address: [u8; 4],
    /// Not zero if other endpoints have this slot as well: they are in the hash alone.
    pub shared: u32,
    /// The endpoint.
    pub endpoint: Endpoint,
}

layout!(SlotV4, 32);

/// The same for IPv6.
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
pub struct SlotV6 {
    /// The pod's address.
    pub address: Address,
    /// The endpoint.
    pub endpoint: Endpoint,
    /// As in [`SlotV4`].
    pub shared: u32,
    /// Zero.
    pub pad: u32,
}

layout!(SlotV6, 48);
