//! The gateway that pods believe in: ARP and neighbour discovery for it are answered in place.
//!
//! Pods have a permanent neighbour entry for it, so this is for those that lose or ignore it.

use weft_ebpf_common::{
    GATEWAY_V4, GATEWAY_V6, OVERLAY_MAC, Reason, checksum,
    headers::{
        ADVERTISEMENT_FLAGS, ARP_ETHERNET_IPV4, ARP_REPLY, ARP_REQUEST, Arp, Ethernet, Ipv6,
        LinkAddressOption, NEIGHBOR_ADVERTISEMENT, NEIGHBOR_SOLICITATION, NeighborMessage, PROTOCOL_ICMPV6,
        TARGET_LINK_ADDRESS,
    },
    macs,
};

use crate::{
    endpoints,
    family::{is_link_local, same, words},
    packet::{ETHERNET_LEN, Packet, Verdict},
};

/// Answers an ARP request for the gateway from the pod's own address; any other ARP is dropped.
#[inline(always)]
pub(crate) fn answer_arp(packet: Packet) -> Result<Verdict, Reason> {
    let arp: Arp = packet.read_or_pull(ETHERNET_LEN).ok_or(Reason::Truncated)?;
    if arp.format != ARP_ETHERNET_IPV4 || arp.operation != ARP_REQUEST || arp.target_ip != GATEWAY_V4 {
        return Err(Reason::UnhandledArp);
    }
    let gateway_mac = match endpoints::v4(u32::from_ne_bytes(arp.sender_ip)) {
        Some(own) if own.ifindex == packet.ifindex() => own.host_mac(),
        _ => return Err(Reason::UnhandledArp),
    };
    let reply = Arp {
        format: ARP_ETHERNET_IPV4,
        operation: ARP_REPLY,
        sender_mac: gateway_mac,
        sender_ip: GATEWAY_V4,
        target_mac: arp.sender_mac,
        target_ip: arp.sender_ip,
    };
    packet.write(ETHERNET_LEN, reply)?;
    packet.set_macs(&macs(arp.sender_mac, gateway_mac))?;
    Ok(packet.redirect_out(packet.ifindex(), Reason::GatewayReply))
}

const MESSAGE: usize = ETHERNET_LEN + size_of::<Ipv6>();
const OPTION: usize = MESSAGE + size_of::<NeighborMessage>();
/// A solicitation with the sender's link-layer address, which is what stacks send.
const LENGTH: u16 = (size_of::<NeighborMessage>() + size_of::<LinkAddressOption>()) as u16;

/// Answers a neighbour solicitation for the gateway; `None` for any other packet.
#[inline(always)]
pub(crate) fn answer_solicitation(packet: Packet) -> Option<Result<Verdict, Reason>> {
    let ip: Ipv6 = packet.read(ETHERNET_LEN)?;
    if ip.next_header != PROTOCOL_ICMPV6 || ip.payload_length != LENGTH.to_be() {
        return None;
    }
    let message: NeighborMessage = packet.read_or_pull(MESSAGE)?;
    if message.type_code != NEIGHBOR_SOLICITATION || !same(&message.target, &words(&GATEWAY_V6)) {
        return None;
    }
    Some(advertise(packet, &ip))
}

#[inline(always)]
fn advertise(packet: Packet, ip: &Ipv6) -> Result<Verdict, Reason> {
    let gateway_mac = match endpoints::v6(ip.source) {
        Some(own) if own.ifindex == packet.ifindex() => own.host_mac(),
        // A stack may ask from its link-local address; the overlay's address serves as well as the veth's.
        _ if is_link_local(ip.source) => OVERLAY_MAC,
        _ => return Err(Reason::LinkLocal),
    };
    let link: Ethernet = packet.read(0).ok_or(Reason::Truncated)?;
    let option = LinkAddressOption {
        kind_length: TARGET_LINK_ADDRESS,
        mac: gateway_mac,
    };
    let gateway = words(&GATEWAY_V6);
    let mut reply = NeighborMessage {
        type_code: NEIGHBOR_ADVERTISEMENT,
        checksum: 0,
        flags: ADVERTISEMENT_FLAGS,
        target: gateway,
    };
    reply.checksum = checksum::neighbor_advertisement(&reply, &option, &gateway, &ip.source);
    packet.write(OPTION, option)?;
    packet.write(MESSAGE, reply)?;
    packet.write(
        ETHERNET_LEN,
        Ipv6 {
            hop_limit: 255,
            source: gateway,
            destination: ip.source,
            ..*ip
        },
    )?;
    packet.set_macs(&macs(link.source, gateway_mac))?;
    Ok(packet.redirect_out(packet.ifindex(), Reason::GatewayReply))
}
