//! Egress of the overlay device: what the node itself sends to pods, what its stack forwards to them, and what pods send
//! where the device is to write the tunnel header.

use weft_ebpf_common::{
    Reason,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::{
    config,
    family::{Family, V4, V6},
    packet::{ETHERNET_LEN, Packet, Verdict},
    tunnel::{self, TUNNEL_MACS},
};

#[inline(always)]
pub(crate) fn handle(packet: Packet) -> Result<Verdict, Reason> {
    match packet.ethertype() {
        ETHERTYPE_IPV4 => send::<V4>(packet),
        ETHERTYPE_IPV6 => send::<V6>(packet),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn send<F: Family>(packet: Packet) -> Result<Verdict, Reason> {
    let ip = F::parse(packet, ETHERNET_LEN)?;
    if let Some(pod) = F::endpoint(ip.destination) {
        packet.set_macs(&pod.macs)?;
        // By the veth's own egress: a packet may only be handed to the pod's end directly from an ingress hook.
        return Ok(packet.redirect_out(pod.ifindex, Reason::NodeToPod));
    }
    let node = config::node()?;
    let Some(peer) = F::peer(ip.destination) else {
        return Err(F::unroutable(ip.destination).unwrap_or(Reason::NoPeer));
    };
    packet.set_macs(&TUNNEL_MACS)?;
    tunnel::describe(packet, node, peer, ip.traffic_class)?;
    Ok(Verdict::pass(Reason::DeviceEncapsulated))
}
