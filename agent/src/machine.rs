//! Facts about the machine that the agent runs on.

use std::{fs, time::Duration};

use nix::time::{ClockId, clock_gettime};

use crate::ipam::BootTime;

/// What tells this boot of the machine from all others.
pub fn boot_id() -> String {
    // A kernel always has one; a sandbox that hides it has no other boots either.
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

/// Time since the boot, suspension included.
pub fn boot_time() -> BootTime {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .unwrap_or_default()
}

/// The machine's name.
pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_lowercase())
        .unwrap_or_default()
}
