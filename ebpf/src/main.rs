//! Weft's BPF programs: the entry points, one per hook.
//!
//! Each hook lives in a file of its name and returns what becomes of the packet and why. The reason is counted here, in
//! one place, so that every packet is counted exactly once per hook it meets.
//!
//! Built for the BPF target only; for any other this is an empty program.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![allow(
    clippy::cast_ptr_alignment,
    reason = "the kernel refuses unaligned access where it matters"
)]
#![allow(clippy::unused_self, reason = "what is done to a packet reads as such")]
#![allow(
    clippy::inline_always,
    reason = "each hook is one function: BPF calls cost, and pass few arguments"
)]
#![allow(
    clippy::cast_possible_wrap,
    reason = "lengths of headers and the kernel's small constants"
)]

#[cfg(target_arch = "bpf")]
mod config;
#[cfg(target_arch = "bpf")]
mod endpoints;
#[cfg(target_arch = "bpf")]
mod family;
#[cfg(target_arch = "bpf")]
mod from_container;
#[cfg(target_arch = "bpf")]
mod from_overlay;
#[cfg(target_arch = "bpf")]
mod from_underlay;
#[cfg(target_arch = "bpf")]
mod gateway;
#[cfg(target_arch = "bpf")]
mod metrics;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod peers;
#[cfg(target_arch = "bpf")]
mod to_overlay;
#[cfg(target_arch = "bpf")]
mod tunnel;

#[cfg(target_arch = "bpf")]
#[expect(
    unreachable_pub,
    reason = "entry points are exported by name, not used by path"
)]
mod programs {
    use aya_ebpf::{bindings::TC_ACT_SHOT, macros::classifier, programs::TcContext};
    use weft_ebpf_common::Reason;

    use crate::{
        from_container, from_overlay, from_underlay, metrics,
        packet::{Packet, Verdict},
        to_overlay,
    };

    /// Ingress of the host veths: what pods send.
    #[classifier]
    pub fn from_container(ctx: TcContext) -> i32 {
        run(&ctx, from_container::handle)
    }

    /// Ingress of the underlay device: what other nodes send.
    #[classifier]
    pub fn from_underlay(ctx: TcContext) -> i32 {
        run(&ctx, from_underlay::handle)
    }

    /// Ingress of the overlay device: what the kernel decapsulated, and local pods' packets for the node's stack.
    #[classifier]
    pub fn from_overlay(ctx: TcContext) -> i32 {
        run(&ctx, from_overlay::handle)
    }

    /// Egress of the overlay device: what the node's stack sends to pods.
    #[classifier]
    pub fn to_overlay(ctx: TcContext) -> i32 {
        run(&ctx, to_overlay::handle)
    }

    #[inline(always)]
    fn run(ctx: &TcContext, handle: impl FnOnce(Packet) -> Result<Verdict, Reason>) -> i32 {
        let packet = Packet::new(ctx);
        // As it arrived: a tunnel header added or taken off does not count.
        let length = packet.length();
        let (reason, action) = match handle(packet) {
            Ok(verdict) => (verdict.reason, verdict.action),
            Err(drop_reason) => (drop_reason, TC_ACT_SHOT),
        };
        metrics::count(reason, length);
        action
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        // No panic path survives optimisation; the verifier refuses a program in which one does.
        loop {}
    }

    /// Helpers marked GPL-only are offered to no other licence.
    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
