//! Pods on this node, by address: a slot that mostly decides, and a hash behind it.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap},
};
use weft_ebpf_common::{
    Endpoint, SlotV4, SlotV6,
    maps::MAX_ENDPOINTS,
    slot::{self, SLOTS},
};

use crate::{
    family::{same, words},
    packet::in_words,
};

#[map]
static ENDPOINTS4_V1: HashMap<u32, Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
static ENDPOINTS6_V1: HashMap<[u32; 4], Endpoint> = HashMap::pinned(MAX_ENDPOINTS, BPF_F_NO_PREALLOC);
#[map]
static SLOTS4_V1: Array<SlotV4> = Array::pinned(SLOTS, 0);
#[map]
static SLOTS6_V1: Array<SlotV6> = Array::pinned(SLOTS, 0);

#[inline(always)]
pub(crate) fn v4(address: u32) -> Option<&'static Endpoint> {
    let slot = SLOTS4_V1.get(slot::index(address))?;
    if in_words::<u32, 4>(&slot.address) == address && slot.endpoint.ifindex != 0 {
        return Some(&slot.endpoint);
    }
    if slot.shared == 0 {
        return None;
    }
    // SAFETY: entries are replaced as a whole and freed after a grace period that the running program holds up.
    unsafe { ENDPOINTS4_V1.get(address) }
}

#[inline(always)]
pub(crate) fn v6(address: [u32; 4]) -> Option<&'static Endpoint> {
    let slot = SLOTS6_V1.get(slot::index(address[3]))?;
    if same(&words(&slot.address), &address) && slot.endpoint.ifindex != 0 {
        return Some(&slot.endpoint);
    }
    if slot.shared == 0 {
        return None;
    }
    // SAFETY: as in `v4`.
    unsafe { ENDPOINTS6_V1.get(address) }
}
