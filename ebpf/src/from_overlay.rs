//! Ingress of the overlay device: what the kernel decapsulated, and what `from_container` gives to the node's stack.

use weft_ebpf_common::{
    NodeConfig, Reason,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6},
};

use crate::{
    config,
    family::{Family, V4, V6, same, words},
    packet::{ETHERNET_LEN, Packet, Verdict},
    tunnel::{self, Origin},
};

#[inline(always)]
pub(crate) fn handle(packet: Packet) -> Result<Verdict, Reason> {
    let node = config::node()?;
    let Some(origin) = tunnel::origin(packet, node) else {
        // Through no tunnel: a local pod's packet, which has passed `from_container`.
        return Ok(Verdict::not_ours(Reason::PodToNode));
    };
    if origin.vni_word != node.vni_word {
        return Err(Reason::ForeignVni);
    }
    match packet.ethertype() {
        ETHERTYPE_IPV4 => deliver::<V4>(packet, node, &origin),
        ETHERTYPE_IPV6 => deliver::<V6>(packet, node, &origin),
        _ => Err(Reason::UnsupportedProtocol),
    }
}

#[inline(always)]
fn deliver<F: Family>(packet: Packet, node: &NodeConfig, origin: &Origin) -> Result<Verdict, Reason> {
    let ip = F::parse(packet, ETHERNET_LEN)?;
    match F::peer(ip.source) {
        None => return Err(Reason::UnknownTunnelSource),
        Some(peer) if !same(&words(&peer.tunnel_endpoint), &origin.remote) => {
            return Err(Reason::SpoofedTunnelSource);
        }
        Some(_) => {}
    }
    if let Some(pod) = F::endpoint(ip.destination) {
        packet.set_macs(&pod.macs)?;
        return Ok(packet.redirect_to_pod(pod.ifindex, Reason::DeviceDecapsulated));
    }
    if F::is_node(node, ip.destination) {
        return Ok(Verdict::not_ours(Reason::TunnelToNode));
    }
    Err(Reason::NotLocal)
}
