//! Pods on this node, by address.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap};
use weft_ebpf_common::{Endpoint, maps::MAX_ENDPOINTS};

#[map]
static ENDPOINTS4_V1: HashMap<u32, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
static ENDPOINTS6_V1: HashMap<[u32; 4], Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

#[inline(always)]
pub(crate) fn v4(address: u32) -> Option<&'static Endpoint> {
    // SAFETY: entries are replaced as a whole and freed after a grace period that the running program holds up.
    unsafe { ENDPOINTS4_V1.get(address) }
}

#[inline(always)]
pub(crate) fn v6(address: [u32; 4]) -> Option<&'static Endpoint> {
    // SAFETY: as in `v4`.
    unsafe { ENDPOINTS6_V1.get(address) }
}
