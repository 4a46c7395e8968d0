//! One counter per verdict and drop reason, per processor.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use weft_ebpf_common::{Counter, Reason, reason::MAX_REASONS};

#[map]
static METRICS_V1: PerCpuArray<Counter> = PerCpuArray::pinned(MAX_REASONS, 0);

/// Counts a packet.
#[inline(always)]
pub(crate) fn count(reason: Reason, bytes: u32) {
    if let Some(counter) = METRICS_V1.get_ptr_mut(reason.code()) {
        // SAFETY: the entry is this processor's own, and a program is not preempted by another on the same hook path.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }
}
