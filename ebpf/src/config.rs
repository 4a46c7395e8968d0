//! The node's own settings.

use aya_ebpf::{macros::map, maps::Array};
use weft_ebpf_common::{NodeConfig, Reason};

use crate::packet::in_words;

#[map]
static CONFIG_V1: Array<NodeConfig> = Array::pinned(1, 0);

/// This node, once the agent has configured it.
#[inline(always)]
pub(crate) fn node() -> Result<&'static NodeConfig, Reason> {
    match CONFIG_V1.get(0) {
        Some(config) if config.overlay_ifindex != 0 => Ok(config),
        _ => Err(Reason::NotConfigured),
    }
}

/// The last four bytes of an address that is a mapped IPv4 one.
#[inline(always)]
pub(crate) fn v4_of(address: &[u8; 16]) -> u32 {
    let [.., v4] = in_words::<[u32; 4], 16>(address);
    v4
}
