//! The packet: the only place where offsets become pointers, and where the helpers that act on a packet are called.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_INGRESS, BPF_F_RECOMPUTE_CSUM, TC_ACT_OK, TC_ACT_UNSPEC,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS, bpf_redir_neigh,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_get_hash_recalc, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
        bpf_skb_adjust_room, bpf_skb_change_type, bpf_skb_pull_data, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use weft_ebpf_common::{
    Macs, OVERLAY_MAC, Reason,
    headers::{Ethernet, Wire},
};

/// Where the network header begins.
pub(crate) const ETHERNET_LEN: usize = size_of::<Ethernet>();

/// What becomes of a packet, and the reason to count it under.
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    pub(crate) action: i32,
}

impl Verdict {
    /// Passes the packet on, without another look by later programs on the hook.
    #[inline(always)]
    pub(crate) fn pass(reason: Reason) -> Self {
        Self {
            reason,
            action: TC_ACT_OK,
        }
    }

    /// Leaves the packet to whoever comes next on the hook, and to the stack.
    #[inline(always)]
    pub(crate) fn not_ours(reason: Reason) -> Self {
        Self {
            reason,
            action: TC_ACT_UNSPEC,
        }
    }
}

/// Bytes of a shared layout in the words of a header. Byte by byte, which is what the compiler makes of anything safer,
/// it takes four times the instructions.
#[inline(always)]
pub(crate) fn in_words<T: Wire, const N: usize>(bytes: &[u8; N]) -> T {
    const { assert!(size_of::<T>() == N) };
    // SAFETY: as many bytes as a `T` has, and any bytes are one; as to alignment see `Packet::read`.
    unsafe { *(&raw const *bytes).cast::<T>() }
}

/// [`Macs`] as they are copied.
#[repr(C)]
#[derive(Clone, Copy)]
struct MacWords {
    first: u32,
    second: u32,
    third: u32,
}
// SAFETY: integers without padding.
unsafe impl Wire for MacWords {}

/// The packet at a hook, with its Ethernet header.
#[derive(Clone, Copy)]
pub(crate) struct Packet {
    skb: *mut __sk_buff,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn new(ctx: &TcContext) -> Self {
        Self { skb: ctx.skb.skb }
    }

    /// The whole length, beyond what is linear.
    #[inline(always)]
    pub(crate) fn length(self) -> u32 {
        // SAFETY: the context pointer is the program's own argument, valid while it runs.
        unsafe { (*self.skb).len }
    }

    /// The protocol above Ethernet, network byte order.
    #[inline(always)]
    pub(crate) fn ethertype(self) -> u16 {
        // SAFETY: as in `length`.
        unsafe { (*self.skb).protocol as u16 }
    }

    /// The device whose hook this is.
    #[inline(always)]
    pub(crate) fn ifindex(self) -> u32 {
        // SAFETY: as in `length`.
        unsafe { (*self.skb).ifindex }
    }

    /// Whether a VLAN tag was taken off and is kept beside the packet.
    #[inline(always)]
    pub(crate) fn has_vlan_tag(self) -> bool {
        // SAFETY: as in `length`.
        unsafe { (*self.skb).vlan_present != 0 }
    }

    /// Whether this is an aggregate, to be cut into segments on its way out.
    #[inline(always)]
    pub(crate) fn is_aggregate(self) -> bool {
        self.segment_size() != 0
    }

    /// Whether the link header was addressed to another host.
    #[inline(always)]
    fn is_for_other_host(self) -> bool {
        // SAFETY: as in `length`.
        unsafe { (*self.skb).pkt_type != 0 }
    }

    /// The address of `size` bytes at an offset, if that many are linear.
    #[inline(always)]
    fn bytes(self, at: usize, size: usize) -> Option<usize> {
        // SAFETY: as in `length`.
        let start = unsafe { (*self.skb).data } as usize;
        // SAFETY: as in `length`.
        let end = unsafe { (*self.skb).data_end } as usize;
        // The verifier learns the packet's extent from this comparison.
        if start + at + size > end {
            None
        } else {
            Some(start + at)
        }
    }

    /// Reads a header, if all of it is linear.
    #[inline(always)]
    pub(crate) fn read<T: Wire>(self, at: usize) -> Option<T> {
        let address = self.bytes(at, size_of::<T>())?;
        // SAFETY: within the packet, as `bytes` and the verifier have checked, and any bytes are a `T`. Alignment is the
        // kernel's concern: it refuses programs with unaligned access on processors that cannot do it.
        Some(unsafe { *(address as *const T) })
    }

    /// Reads a header, making it linear first if it is not.
    #[inline(always)]
    pub(crate) fn read_or_pull<T: Wire>(self, at: usize) -> Option<T> {
        if let Some(header) = self.read(at) {
            return Some(header);
        }
        // SAFETY: the context is valid; the helper checks the length.
        if unsafe { bpf_skb_pull_data(self.skb, (at + size_of::<T>()) as u32) } != 0 {
            return None;
        }
        self.read(at)
    }

    /// Writes a header into what is linear.
    #[inline(always)]
    pub(crate) fn write<T: Wire>(self, at: usize, value: T) -> Result<(), Reason> {
        let address = self.bytes(at, size_of::<T>()).ok_or(Reason::RewriteFailed)?;
        // SAFETY: as in `read`; the kernel has made the linear part private to this packet.
        unsafe { *(address as *mut T) = value };
        Ok(())
    }

    /// Overwrites bytes that a full checksum of the packet may cover, and corrects that.
    #[inline(always)]
    pub(crate) fn amend<T: Wire>(self, at: usize, value: T) -> Result<(), Reason> {
        let from = (&raw const value).cast::<c_void>();
        let flags = u64::from(BPF_F_RECOMPUTE_CSUM);
        // SAFETY: `from` is `size_of::<T>()` bytes on this stack; the helper checks the offset.
        match unsafe {
            bpf_skb_store_bytes(self.skb, at as u32, from.cast_mut(), size_of::<T>() as u32, flags)
        } {
            0 => Ok(()),
            _ => Err(Reason::RewriteFailed),
        }
    }

    /// Sets the link-layer addresses.
    #[inline(always)]
    pub(crate) fn set_macs(self, macs: &Macs) -> Result<(), Reason> {
        self.write_macs(0, macs)
    }

    /// Sets the link-layer addresses of a frame that begins at an offset.
    #[inline(always)]
    pub(crate) fn write_macs(self, at: usize, macs: &Macs) -> Result<(), Reason> {
        let from = (&raw const *macs).cast::<MacWords>();
        // Word by word: of the whole the compiler makes a call that copies bytes.
        // SAFETY: twelve bytes on either side; alignment as in `read`.
        let first = unsafe { (*from).first };
        // SAFETY: as above.
        let second = unsafe { (*from).second };
        // SAFETY: as above.
        let third = unsafe { (*from).third };
        self.write(at, MacWords { first, second, third })
    }

    /// The size of the segments' payload; zero unless this is an aggregate.
    #[inline(always)]
    pub(crate) fn segment_size(self) -> u32 {
        // SAFETY: as in `length`.
        unsafe { (*self.skb).gso_size }
    }

    /// Whether segments of this aggregate are longer than the device's MTU allows, by the headers that the kernel parsed.
    #[inline(always)]
    pub(crate) fn segments_exceed_mtu_of(self, ifindex: u32) -> bool {
        let mut unused = 0u32;
        // SAFETY: `unused` is on this stack, zero as the flag demands.
        unsafe {
            bpf_check_mtu(
                self.skb.cast(),
                ifindex,
                &raw mut unused,
                0,
                u64::from(BPF_MTU_CHK_SEGS),
            ) != 0
        }
    }

    /// A hash of the flow.
    #[inline(always)]
    pub(crate) fn flow_hash(self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { bpf_get_hash_recalc(self.skb) }
    }

    /// Makes or takes away room between the Ethernet header and what follows it.
    #[inline(always)]
    pub(crate) fn adjust_room(self, by: i32, flags: u64) -> bool {
        // SAFETY: the context is valid; the helper checks the rest.
        unsafe { bpf_skb_adjust_room(self.skb, by, BPF_ADJ_ROOM_MAC, flags) == 0 }
    }

    /// Hands the packet to the pod behind a host veth, past the host's stack. From an ingress hook only.
    #[inline(always)]
    pub(crate) fn redirect_to_pod(self, ifindex: u32, reason: Reason) -> Verdict {
        if self.is_for_other_host() {
            // SAFETY: the context is valid. A failure would leave the packet for the pod's stack to drop.
            unsafe { bpf_skb_change_type(self.skb, 0) };
        }
        // SAFETY: takes plain values.
        let action = unsafe { bpf_redirect_peer(ifindex, 0) } as i32;
        Verdict { reason, action }
    }

    /// Sends the packet out of a device.
    #[inline(always)]
    pub(crate) fn redirect_out(self, ifindex: u32, reason: Reason) -> Verdict {
        // SAFETY: takes plain values.
        let action = unsafe { bpf_redirect(ifindex, 0) } as i32;
        Verdict { reason, action }
    }

    /// Lets the packet into the node's stack as if it had arrived on the overlay device.
    #[inline(always)]
    pub(crate) fn redirect_to_stack(self, overlay_ifindex: u32, reason: Reason) -> Result<Verdict, Reason> {
        self.write::<[u16; 3]>(0, in_words(&OVERLAY_MAC))?;
        // SAFETY: takes plain values.
        let action = unsafe { bpf_redirect(overlay_ifindex, u64::from(BPF_F_INGRESS)) } as i32;
        Ok(Verdict { reason, action })
    }

    /// Sends the packet out of a device to a neighbour, whose link-layer address the kernel finds.
    #[inline(always)]
    pub(crate) fn redirect_to_neighbor(
        self,
        ifindex: u32,
        mut neighbor: bpf_redir_neigh,
        reason: Reason,
    ) -> Verdict {
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: `neighbor` is on this stack and of the size given.
        let action = unsafe { bpf_redirect_neigh(ifindex, &raw mut neighbor, size, 0) } as i32;
        Verdict { reason, action }
    }

    /// The context, for the tunnel key's helpers.
    #[inline(always)]
    pub(crate) fn context(self) -> *mut __sk_buff {
        self.skb
    }
}
