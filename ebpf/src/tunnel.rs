//! VXLAN: written and stripped by the program, or described to the overlay device.

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_DONT_FRAGMENT, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX,
        bpf_redir_neigh, bpf_tunnel_key,
    },
    helpers::generated::{bpf_skb_get_tunnel_key, bpf_skb_set_tunnel_key},
};
use weft_ebpf_common::{
    INNER_SOURCE_MAC, NodeConfig, OVERLAY_MAC, Peer, Reason, checksum, config as flags,
    headers::{
        Ethernet, IPV4_DF, Ipv4, Ipv6, PROTOCOL_UDP, TUNNEL_V4_LEN, TUNNEL_V6_LEN, Udp, VXLAN_VALID_VNI,
        Vxlan, flow_port,
    },
};

use crate::{
    config::v4_of,
    family::{Family, V4, mapped, words},
    packet::{ETHERNET_LEN, Packet, Verdict},
};

pub(crate) const V4_LEN: usize = TUNNEL_V4_LEN;
pub(crate) const V6_LEN: usize = TUNNEL_V6_LEN;

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
    // SAFETY: integers and a union of integers: all zero is a value.
    let mut neighbor: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    neighbor.nh_family = AF_INET;
    neighbor.__bindgen_anon_1.ipv4_nh = v4_of(&peer.next_hop);
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
    // SAFETY: integers and a union of integers: all zero is a value.
    let mut neighbor: bpf_redir_neigh = unsafe { core::mem::zeroed() };
    neighbor.nh_family = AF_INET6;
    neighbor.__bindgen_anon_1.ipv6_nh = words(&peer.next_hop);
    Ok(packet.redirect_to_neighbor(peer.ifindex, neighbor, Reason::Encapsulated))
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
            vni: u32::from_ne_bytes(node.vni_word),
        },
    )?;
    packet.write(
        at + 16,
        Ethernet {
            destination: OVERLAY_MAC,
            source: INNER_SOURCE_MAC,
            ethertype,
        },
    )
}

/// Takes the tunnel header off. The outer link header stays, to be rewritten.
#[inline(always)]
pub(crate) fn decapsulate<F: Family>(packet: Packet, header_len: usize) -> Result<(), Reason> {
    let inner = if F::ETHERTYPE == V4::ETHERTYPE {
        BPF_F_ADJ_ROOM_DECAP_L3_IPV4
    } else {
        BPF_F_ADJ_ROOM_DECAP_L3_IPV6
    };
    if packet.adjust_room(
        -(header_len as i32),
        u64::from(BPF_F_ADJ_ROOM_FIXED_GSO) | u64::from(inner),
    ) {
        Ok(())
    } else {
        Err(Reason::DecapFailed)
    }
}

/// Where a packet came from, by the overlay device's account.
pub(crate) struct Origin {
    pub(crate) remote: [u32; 4],
    pub(crate) vni_word: [u8; 4],
}

/// The tunnel a packet arrived through, or `None` for one that came through none.
#[inline(always)]
pub(crate) fn origin(packet: Packet, node: &NodeConfig) -> Option<Origin> {
    // SAFETY: integers and unions of integers: all zero is a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let v6 = node.flags & flags::UNDERLAY_V6 != 0;
    let flags = if v6 { u64::from(BPF_F_TUNINFO_IPV6) } else { 0 };
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is on this stack and of the size given.
    if unsafe { bpf_skb_get_tunnel_key(packet.context(), &raw mut key, size, flags) } != 0 {
        return None;
    }
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
    // SAFETY: integers and unions of integers: all zero is a value.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    let [a, b, c, _] = node.vni_word;
    key.tunnel_id = u32::from_be_bytes([0, a, b, c]);
    // The device derives the congestion bits from the inner header by itself.
    key.tunnel_tos = class & !0b11;
    key.tunnel_ttl = TTL;
    let mut flags = u64::from(BPF_F_ZERO_CSUM_TX);
    if node.flags & flags::UNDERLAY_V6 == 0 {
        key.__bindgen_anon_1.remote_ipv4 = u32::from_be(v4_of(&peer.tunnel_endpoint));
        key.__bindgen_anon_3.local_ipv4 = u32::from_be(v4_of(&node.tunnel_source));
        flags |= u64::from(BPF_F_DONT_FRAGMENT);
    } else {
        key.__bindgen_anon_1.remote_ipv6 = words(&peer.tunnel_endpoint);
        key.__bindgen_anon_3.local_ipv6 = words(&node.tunnel_source);
        flags |= u64::from(BPF_F_TUNINFO_IPV6);
    }
    let size = size_of::<bpf_tunnel_key>() as u32;
    // SAFETY: `key` is on this stack and of the size given.
    match unsafe { bpf_skb_set_tunnel_key(packet.context(), &raw mut key, size, flags) } {
        0 => Ok(()),
        _ => Err(Reason::EncapFailed),
    }
}
