//! VXLAN: written and stripped by the program, or described to the overlay device.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_DONT_FRAGMENT, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, bpf_tunnel_key, bpf_tunnel_key__bindgen_ty_1,
        bpf_tunnel_key__bindgen_ty_2, bpf_tunnel_key__bindgen_ty_3,
    },
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use weft_ebpf_common::{
    Address, INNER_SOURCE_MAC, Macs, NodeConfig, OVERLAY_MAC, Peer, Reason, checksum, config as flags,
    headers::{
        IPV4_DF, Ipv4, Ipv6, PROTOCOL_UDP, TUNNEL_V4_LEN, TUNNEL_V6_LEN, Udp, VXLAN_VALID_VNI, Vxlan,
        flow_port,
    },
    macs,
};

use crate::{
    config::v4_of,
    family::{Family, V4, mapped, words},
    packet::{ETHERNET_LEN, Packet, Verdict, in_words},
};

pub(crate) const V4_LEN: usize = TUNNEL_V4_LEN;
pub(crate) const V6_LEN: usize = TUNNEL_V6_LEN;

/// The link-layer addresses of every frame in the tunnel.
pub(crate) const TUNNEL_MACS: Macs = macs(OVERLAY_MAC, INNER_SOURCE_MAC);

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const TTL: u8 = 64;

const ENCAP_COMMON: u64 = BPF_F_ADJ_ROOM_FIXED_GSO as u64
    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP as u64
    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH as u64
    // BPF_F_ADJ_ROOM_ENCAP_L2(length): the inner link header is part of the room.
    | (ETHERNET_LEN as u64) << 56;
const ENCAP_V4: u64 = ENCAP_COMMON | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 as u64;
const ENCAP_V6: u64 = ENCAP_COMMON | BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 as u64;

/// Puts the tunnel header before an IP packet and sends it on its way to the peer.
///
/// `None` if the kernel makes no room, and the packet is as it was.
#[inline(always)]
pub(crate) fn encapsulate(
    packet: Packet,
    node: &NodeConfig,
    peer: &Peer,
    class: u8,
) -> Option<Result<Verdict, Reason>> {
    let ethertype = packet.ethertype();
    let length = packet.length() - ETHERNET_LEN as u32;
    let port = flow_port(packet.flow_hash());
    if node.flags & flags::UNDERLAY_V6 == 0 {
        if !packet.adjust_room(V4_LEN as i32, ENCAP_V4) {
            return None;
        }
        Some(write_v4(packet, node, peer, class, length, port, ethertype))
    } else {
        if !packet.adjust_room(V6_LEN as i32, ENCAP_V6) {
            return None;
        }
        Some(write_v6(packet, node, peer, class, length, port, ethertype))
    }
}

/// A length field, zero where the length is beyond it: then the packet is an aggregate, and whoever cuts it writes the
/// segments' lengths.
#[inline(always)]
fn length_field(length: u32) -> u16 {
    if length > 0xffff {
        0
    } else {
        (length as u16).to_be()
    }
}

#[inline(always)]
fn write_v4(
    packet: Packet,
    node: &NodeConfig,
    peer: &Peer,
    class: u8,
    length: u32,
    port: u16,
    ethertype: u16,
) -> Result<Verdict, Reason> {
    let total = length + V4_LEN as u32;
    let mut ip = Ipv4 {
        version_ihl: 0x45,
        tos: class,
        total_length: length_field(total),
        id: 0,
        fragment: IPV4_DF,
        ttl: TTL,
        protocol: PROTOCOL_UDP,
        checksum: 0,
        source: v4_of(&node.tunnel_source),
        destination: v4_of(&peer.tunnel_endpoint),
    };
    ip.checksum = checksum::ipv4_header(&ip);
    // The outer link header is the kernel's to write, once it knows the neighbour.
    packet.write(ETHERNET_LEN, ip)?;
    write_inside(
        packet,
        node,
        ETHERNET_LEN + size_of::<Ipv4>(),
        total - size_of::<Ipv4>() as u32,
        port,
        ethertype,
    )?;
    let [.., v4] = words(&peer.next_hop);
    let neighbor = neighbor(AF_INET, [v4, 0, 0, 0]);
    Ok(packet.redirect_to_neighbor(peer.ifindex, neighbor, Reason::Encapsulated))
}

#[inline(always)]
fn write_v6(
    packet: Packet,
    node: &NodeConfig,
    peer: &Peer,
    class: u8,
    length: u32,
    port: u16,
    ethertype: u16,
) -> Result<Verdict, Reason> {
    let payload = length + (V6_LEN - size_of::<Ipv6>()) as u32;
    let ip = Ipv6 {
        version_class_flow: ((6 << 28) | (u32::from(class) << 20)).to_be(),
        payload_length: length_field(payload),
        next_header: PROTOCOL_UDP,
        hop_limit: TTL,
        source: words(&node.tunnel_source),
        destination: words(&peer.tunnel_endpoint),
    };
    packet.write(ETHERNET_LEN, ip)?;
    write_inside(
        packet,
        node,
        ETHERNET_LEN + size_of::<Ipv6>(),
        payload,
        port,
        ethertype,
    )?;
    let neighbor = neighbor(AF_INET6, words(&peer.next_hop));
    Ok(packet.redirect_to_neighbor(peer.ifindex, neighbor, Reason::Encapsulated))
}

/// A neighbour by its address, which IPv4 has in the first word. Whole words: a partly set union is zeroed by a call.
#[inline(always)]
fn neighbor(family: u32, address: [u32; 4]) -> bpf_redir_neigh {
    bpf_redir_neigh {
        nh_family: family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: address },
    }
}

/// UDP, VXLAN and the inner link header.
#[inline(always)]
fn write_inside(
    packet: Packet,
    node: &NodeConfig,
    at: usize,
    length: u32,
    port: u16,
    ethertype: u16,
) -> Result<(), Reason> {
    let udp = Udp {
        source: port,
        destination: u16::from_ne_bytes(node.tunnel_port),
        length: length_field(length),
        // Zero: the inner packet has its own. Receivers accept that over IPv4, and over IPv6 where told to (RFC 6935).
        checksum: 0,
    };
    packet.write(at, udp)?;
    packet.write(
        at + 8,
        Vxlan {
            flags: VXLAN_VALID_VNI,
            vni: in_words(&node.vni_word),
        },
    )?;
    packet.write_macs(at + 16, &TUNNEL_MACS)?;
    packet.write(at + 16 + size_of_val(&TUNNEL_MACS), ethertype)
}

/// Takes the tunnel header off. The outer link header stays, to be rewritten.
///
/// `false` if the kernel does not, and the packet is as it was: it refuses aggregates of anything but TCP and UDP.
#[inline(always)]
pub(crate) fn decapsulate<F: Family>(packet: Packet, header_len: usize) -> bool {
    let inner = if F::ETHERTYPE == V4::ETHERTYPE {
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4
    } else {
        BPF_F_ADJ_ROOM_DECAP_L3_IPV6
    };
    packet.adjust_room(
        -(header_len as i32),
        u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | u64::from(inner),
    )
}

/// Where a packet came from, by the overlay device's account.
pub(crate) struct Origin {
    pub(crate) remote: [u32; 4],
    pub(crate) vni_word: [u8; 4],
}

/// The tunnel a packet arrived through, or `None` for one that came through none.
#[inline(always)]
pub(crate) fn origin(packet: Packet, node: &NodeConfig) -> Option<Origin> {
    let mut key = MaybeUninit::<bpf_tunnel_key>::uninit();
    let v6 = node.flags & flags::UNDERLAY_V6 != 0;
    let flags = if v6 { u64::from(BPF_F_TUNINFO_IPV6) } else { 0 };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is on this stack and of the size given.
    if unsafe { bpf_skb_get_tunnel_key(packet.context(), key.as_mut_ptr(), size, flags) } != 0 {
        return None;
    }
    // SAFETY: the helper has filled all of it.
    let key = unsafe { key.assume_init() };
    let [_, a, b, c] = key.tunnel_id.to_be_bytes();
    let remote = if v6 {
        // SAFETY: the helper filled the union's IPv6 side, as the flag asked.
        unsafe { key.__bindgen_anon_1.remote_ipv6 }
    } else {
        // SAFETY: the helper filled the union's IPv4 side.
        let v4 = unsafe { key.__bindgen_anon_1.remote_ipv4 };
        mapped(v4.to_be())
    };
    Some(Origin {
        remote,
        vni_word: [a, b, c, 0],
    })
}

/// Tells the overlay device where the packet is to go.
#[inline(always)]
pub(crate) fn describe(packet: Packet, node: &NodeConfig, peer: &Peer, class: u8) -> Result<(), Reason> {
    let [a, b, c, _] = node.vni_word;
    let mut flags = u64::from(BPF_F_ZERO_CSUM_TX);
    let (remote, local) = if node.flags & flags::UNDERLAY_V6 == 0 {
        flags |= u64::from(BPF_F_DONT_FRAGMENT);
        (
            host_order_v4(&peer.tunnel_endpoint),
            host_order_v4(&node.tunnel_source),
        )
    } else {
        flags |= u64::from(BPF_F_TUNINFO_IPV6);
        (words(&peer.tunnel_endpoint), words(&node.tunnel_source))
    };
    let mut key = bpf_tunnel_key {
        tunnel_id: u32::from_be_bytes([0, a, b, c]),
        __bindgen_anon_1: bpf_tunnel_key__bindgen_ty_1 { remote_ipv6: remote },
        // The device derives the congestion bits from the inner header by itself.
        tunnel_tos: class & !0b11,
        tunnel_ttl: TTL,
        __bindgen_anon_2: bpf_tunnel_key__bindgen_ty_2 { tunnel_ext: 0 },
        tunnel_label: 0,
        __bindgen_anon_3: bpf_tunnel_key__bindgen_ty_3 { local_ipv6: local },
    };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is on this stack and of the size given.
    match unsafe { bpf_skb_set_tunnel_key(packet.context(), &raw mut key, size, flags) } {
        0 => Ok(()),
        _ => Err(Reason::RewriteFailed),
    }
}

/// An IPv4 address as tunnel keys hold it: in the first word, in the processor's byte order.
#[inline(always)]
fn host_order_v4(address: &Address) -> [u32; 4] {
    [u32::from_be(v4_of(address)), 0, 0, 0]
}
