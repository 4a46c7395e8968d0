//! Ingress of the underlay device: tunnel packets for pods on this node are unwrapped and delivered here; all else is left
//! to the stack, which has the overlay device for tunnel packets that are not for a pod.

use weft_ebpf_common::{
    NodeConfig, Reason, config as flags, ecn,
    headers::{
        ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPV4_FRAGMENT, Ipv4, Ipv6, MAX_LENGTH, PROTOCOL_UDP, Udp,
        VXLAN_VALID_VNI, Vxlan,
    },
};

use crate::{
    config::{self, v4_of},
    family::{Family, V4, V6, mapped, same, words},
    packet::{ETHERNET_LEN, Packet, Verdict},
    tunnel,
};

#[inline(always)]
pub(crate) fn handle(packet: Packet) -> Result<Verdict, Reason> {
    // Before the agent has configured the node nothing here is a tunnel packet, and the node's own traffic must go on.
    let Ok(node) = config::node() else {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    };
    // What is longer than UDP can say the overlay device does not get to see: the stack drops it.
    if node.flags & flags::PROGRAM_DECAP == 0 && packet.length() <= MAX_LENGTH {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    }
    let v6 = node.flags & flags::UNDERLAY_V6 != 0;
    match packet.ethertype() {
        ETHERTYPE_IPV4 if !v6 => over_v4(packet, node),
        ETHERTYPE_IPV6 if v6 => over_v6(packet, node),
        _ => Ok(Verdict::not_ours(Reason::NotTunnel)),
    }
}

/// The outer header of a tunnel packet, as far as it matters inside.
struct Outer {
    remote: [u32; 4],
    class: u8,
    /// The length of UDP by the IP header; zero in an aggregate that is longer than the field.
    length: u32,
}

#[inline(always)]
fn over_v4(packet: Packet, node: &NodeConfig) -> Result<Verdict, Reason> {
    const UDP: usize = ETHERNET_LEN + size_of::<Ipv4>();
    let Some(ip) = packet.read_or_pull::<Ipv4>(ETHERNET_LEN) else {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    };
    // With options, or in fragments, it is the stack's to put together and the overlay device's to unwrap.
    if ip.protocol != PROTOCOL_UDP
        || ip.version_ihl != 0x45
        || ip.fragment & IPV4_FRAGMENT != 0
        || ip.destination != v4_of(&node.tunnel_source)
    {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    }
    let total = u32::from(u16::from_be(ip.total_length));
    let outer = Outer {
        remote: mapped(ip.source),
        class: ip.tos,
        length: total.saturating_sub(size_of::<Ipv4>() as u32),
    };
    unwrap(packet, node, &outer, UDP)
}

#[inline(always)]
fn over_v6(packet: Packet, node: &NodeConfig) -> Result<Verdict, Reason> {
    const UDP: usize = ETHERNET_LEN + size_of::<Ipv6>();
    let Some(ip) = packet.read_or_pull::<Ipv6>(ETHERNET_LEN) else {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    };
    if ip.next_header != PROTOCOL_UDP || ip.version() != 6 || ip.destination != words(&node.tunnel_source) {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    }
    let outer = Outer {
        remote: ip.source,
        class: ip.traffic_class(),
        length: u32::from(u16::from_be(ip.payload_length)),
    };
    unwrap(packet, node, &outer, UDP)
}

/// From UDP to the inner IP header.
const HEADERS: usize = size_of::<Udp>() + size_of::<Vxlan>() + ETHERNET_LEN;

#[inline(always)]
fn unwrap(packet: Packet, node: &NodeConfig, outer: &Outer, at: usize) -> Result<Verdict, Reason> {
    let Some(udp) = packet.read_or_pull::<Udp>(at) else {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    };
    if udp.destination != u16::from_ne_bytes(node.tunnel_port) {
        return Ok(Verdict::not_ours(Reason::NotTunnel));
    }
    // From here on it is a packet for our tunnel, and what is wrong with it is counted.
    let vxlan: Vxlan = packet
        .read_or_pull(at + size_of::<Udp>())
        .ok_or(Reason::TruncatedTunnel)?;
    let inner: Ethernet = packet
        .read_or_pull(at + size_of::<Udp>() + size_of::<Vxlan>())
        .ok_or(Reason::TruncatedTunnel)?;
    let length = u32::from(u16::from_be(udp.length));
    if outer.length > packet.length() - at as u32
        || length > outer.length
        || (length < HEADERS as u32 && !(length == 0 && packet.is_aggregate()))
    {
        return Err(Reason::TruncatedTunnel);
    }
    if vxlan.flags & VXLAN_VALID_VNI == 0 {
        return Err(Reason::BadVxlanHeader);
    }
    if vxlan.vni != u32::from_ne_bytes(node.vni_word) {
        // Another overlay's packet: the overlay device takes every identifier and its hook counts the foreign ones.
        return Ok(Verdict::not_ours(Reason::TunnelToStack));
    }
    match inner.ethertype {
        ETHERTYPE_IPV4 => deliver::<V4>(packet, outer, at + HEADERS),
        ETHERTYPE_IPV6 => deliver::<V6>(packet, outer, at + HEADERS),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn deliver<F: Family>(packet: Packet, outer: &Outer, at: usize) -> Result<Verdict, Reason> {
    let ip = F::parse(packet, at)?;
    match F::peer(ip.source) {
        None => return Err(Reason::UnknownTunnelSource),
        Some(peer) if !same(&words(&peer.tunnel_endpoint), &outer.remote) => {
            return Err(Reason::SpoofedTunnelSource);
        }
        Some(_) => {}
    }
    let Some(pod) = F::endpoint(ip.destination) else {
        return Ok(Verdict::not_ours(Reason::TunnelToStack));
    };
    let class = ecn::decapsulate(outer.class, ip.traffic_class).ok_or(Reason::EcnViolation)?;
    if !tunnel::decapsulate::<F>(packet, at - ETHERNET_LEN) {
        return Ok(Verdict::not_ours(Reason::TunnelToStack));
    }
    if class != ip.traffic_class {
        F::set_traffic_class(packet, ETHERNET_LEN, class)?;
    }
    packet.set_macs(&pod.macs)?;
    packet.write(ETHERNET_LEN - size_of_val(&F::ETHERTYPE), F::ETHERTYPE)?;
    Ok(packet.redirect_to_pod(pod.ifindex, Reason::Decapsulated))
}
