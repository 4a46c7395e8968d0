//! What lies behind the tunnel, and what belongs to the cluster at all.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{LpmTrie, lpm_trie::Key},
};
use weft_ebpf_common::{
    Peer,
    maps::{MAX_CLUSTER_CIDRS, MAX_PEERS},
};

#[map]
static PEERS4_V1: LpmTrie<u32, Peer> = LpmTrie::pinned(MAX_PEERS, BPF_F_NO_PREALLOC);
#[map]
static PEERS6_V1: LpmTrie<[u32; 4], Peer> = LpmTrie::pinned(MAX_PEERS, BPF_F_NO_PREALLOC);
#[map]
static CLUSTER_V1: LpmTrie<[u32; 4], u32> = LpmTrie::pinned(MAX_CLUSTER_CIDRS, BPF_F_NO_PREALLOC);

#[inline(always)]
pub(crate) fn v4(address: u32) -> Option<&'static Peer> {
    PEERS4_V1.get(Key::new(32, address))
}

#[inline(always)]
pub(crate) fn v6(address: [u32; 4]) -> Option<&'static Peer> {
    PEERS6_V1.get(Key::new(128, address))
}

/// Whether the address is in one of the cluster's CIDRs.
#[inline(always)]
pub(crate) fn in_cluster(address: [u32; 4]) -> bool {
    CLUSTER_V1.get(Key::new(128, address)).is_some()
}
