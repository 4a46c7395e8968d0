//! Ingress of the host veths: every packet a pod sends.

use weft_ebpf_common::{
    NodeConfig, Peer, Reason, config as flags,
    headers::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, MAX_LENGTH},
    peer::PEER_IS_NODE,
};

use crate::{
    config,
    family::{Family, V4, V6},
    gateway,
    packet::{ETHERNET_LEN, Packet, Verdict},
    tunnel,
};

#[inline(always)]
pub(crate) fn handle(packet: Packet) -> Result<Verdict, Reason> {
    if packet.has_vlan_tag() {
        return Err(Reason::UnsupportedProtocol);
    }
    match packet.ethertype() {
        ETHERTYPE_IPV4 => forward::<V4>(packet),
        ETHERTYPE_IPV6 => match gateway::answer_solicitation(packet) {
            Some(answer) => answer,
            None => forward::<V6>(packet),
        },
        ETHERTYPE_ARP => gateway::answer_arp(packet),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn forward<F: Family>(packet: Packet) -> Result<Verdict, Reason> {
    let ip = F::parse(packet, ETHERNET_LEN)?;
    match F::endpoint(ip.source) {
        Some(own) if own.ifindex == packet.ifindex() => {}
        _ => return Err(F::foreign_source(&ip)),
    }
    if let Some(pod) = F::endpoint(ip.destination) {
        packet.set_macs(&pod.macs)?;
        return Ok(packet.redirect_to_pod(pod.ifindex, Reason::LocalDelivery));
    }
    let node = config::node()?;
    if let Some(peer) = F::peer(ip.destination) {
        return to_peer::<F>(packet, node, peer, ip.traffic_class);
    }
    if let Some(reason) = F::unroutable(ip.destination) {
        return Err(reason);
    }
    if F::in_cluster(ip.destination) {
        return Err(Reason::NoPeer);
    }
    packet.redirect_to_stack(node.overlay_ifindex, Reason::ToStack)
}

#[inline(always)]
fn to_peer<F: Family>(packet: Packet, node: &NodeConfig, peer: &Peer, class: u8) -> Result<Verdict, Reason> {
    let beyond_length_fields = packet.length() > MAX_LENGTH - tunnel::V6_LEN as u32;
    if beyond_length_fields && !F::BIG_AGGREGATES {
        // Cut by the overlay device. Segments that are too big show when TCP repeats them one by one.
        return Ok(packet.redirect_out(node.overlay_ifindex, Reason::ToOverlayDevice));
    }
    if exceeds::<F>(packet, node) {
        // The stack's route has the tunnel's MTU: it fragments, or answers "too big", as for any router.
        return packet.redirect_to_stack(node.overlay_ifindex, Reason::TooBig);
    }
    // An aggregate of more than 64 KB reaches a pod by way of the receiver's program, whereas UDP in the receiver's stack
    // knows no such length; so what that stack is to take is cut by the overlay device, too.
    if node.flags & flags::PROGRAM_ENCAP != 0
        && !(beyond_length_fields && peer.flags & PEER_IS_NODE != 0)
        && let Some(verdict) = tunnel::encapsulate(packet, node, peer, class)
    {
        return verdict;
    }
    Ok(packet.redirect_out(node.overlay_ifindex, Reason::ToOverlayDevice))
}

/// Whether the packet, or a segment of it, is longer than the tunnel allows.
#[inline(always)]
fn exceeds<F: Family>(packet: Packet, node: &NodeConfig) -> bool {
    if packet.length() <= node.tunnel_mtu + ETHERNET_LEN as u32 {
        return false;
    }
    if !packet.is_aggregate() {
        return true;
    }
    match F::tcp_headers(packet, ETHERNET_LEN) {
        Some(headers) => headers + packet.segment_size() > node.tunnel_mtu,
        None => packet.segments_exceed_mtu_of(node.overlay_ifindex),
    }
}
