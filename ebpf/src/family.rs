//! What differs between IPv4 and IPv6, so that the hooks are written once.

use weft_ebpf_common::{
    Endpoint, GATEWAY_V4, NodeConfig, Peer, Reason, checksum,
    headers::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ipv4, Ipv6, PROTOCOL_TCP},
};

use crate::{
    endpoints,
    packet::{Packet, in_words},
    peers,
};

/// An IP packet's header, as far as forwarding needs it.
#[derive(Clone, Copy)]
pub(crate) struct Ip<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) traffic_class: u8,
}

/// One of the two families of inner packets.
pub(crate) trait Family {
    type Address: Copy;
    const ETHERTYPE: u16;
    /// Whether an aggregate of more than 64 KB may be tunnelled as it is.
    const BIG_AGGREGATES: bool;

    /// Reads and checks the header at an offset.
    fn parse(packet: Packet, at: usize) -> Result<Ip<Self::Address>, Reason>;
    /// The length of a TCP segment's headers, from the IP header at an offset on; `None` where finding out takes more than a
    /// glance.
    fn tcp_headers(packet: Packet, at: usize) -> Option<u32>;
    fn endpoint(address: Self::Address) -> Option<&'static Endpoint>;
    fn peer(address: Self::Address) -> Option<&'static Peer>;
    fn is_node(config: &NodeConfig, address: Self::Address) -> bool;
    fn in_cluster(address: Self::Address) -> bool;
    /// Why a packet with a source that is not the pod's was dropped: most are noise that any pod's stack makes.
    fn foreign_source(ip: &Ip<Self::Address>) -> Reason;
    /// A reason not to let a packet to this destination into the node's stack.
    fn unroutable(destination: Self::Address) -> Option<Reason>;
    /// Rewrites the traffic class in the header at an offset.
    fn set_traffic_class(packet: Packet, at: usize, class: u8) -> Result<(), Reason>;
}

pub(crate) enum V4 {}
pub(crate) enum V6 {}

#[inline(always)]
fn octets(address: u32) -> [u8; 4] {
    address.to_ne_bytes()
}

impl Family for V4 {
    type Address = u32;
    const ETHERTYPE: u16 = ETHERTYPE_IPV4;
    // Their total length is zero, here and in the outer header: the true one is the buffer's.
    const BIG_AGGREGATES: bool = true;

    #[inline(always)]
    fn parse(packet: Packet, at: usize) -> Result<Ip<u32>, Reason> {
        let header: Ipv4 = packet.read_or_pull(at).ok_or(Reason::Truncated)?;
        let header_len = u32::from(header.version_ihl & 0xf) * 4;
        if header.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4>() as u32 {
            return Err(Reason::BadIpv4Header);
        }
        let total = u32::from(u16::from_be(header.total_length));
        if total > packet.length() - at as u32
            || (total < header_len && !(total == 0 && packet.is_aggregate()))
        {
            return Err(Reason::BadIpv4Length);
        }
        Ok(Ip {
            source: header.source,
            destination: header.destination,
            traffic_class: header.tos,
        })
    }

    #[inline(always)]
    fn tcp_headers(packet: Packet, at: usize) -> Option<u32> {
        let header: Ipv4 = packet.read(at)?;
        let plain = header.version_ihl == 0x45 && header.protocol == PROTOCOL_TCP;
        if plain {
            tcp_headers(packet, at, size_of::<Ipv4>())
        } else {
            None
        }
    }

    #[inline(always)]
    fn endpoint(address: u32) -> Option<&'static Endpoint> {
        endpoints::v4(address)
    }

    #[inline(always)]
    fn peer(address: u32) -> Option<&'static Peer> {
        peers::v4(address)
    }

    #[inline(always)]
    fn is_node(config: &NodeConfig, address: u32) -> bool {
        u32::from_ne_bytes(config.node_ipv4) == address && address != 0
    }

    #[inline(always)]
    fn in_cluster(address: u32) -> bool {
        peers::in_cluster(mapped(address))
    }

    #[inline(always)]
    fn foreign_source(ip: &Ip<u32>) -> Reason {
        match (octets(ip.source), octets(ip.destination)) {
            (_, [224..=239, ..] | [255, 255, 255, 255]) => Reason::Multicast,
            ([0, 0, 0, 0] | [169, 254, ..], _) => Reason::LinkLocal,
            _ => Reason::SpoofedSource,
        }
    }

    #[inline(always)]
    fn unroutable(destination: u32) -> Option<Reason> {
        match octets(destination) {
            [224..=239, ..] | [255, 255, 255, 255] => Some(Reason::Multicast),
            // Only the gateway: the rest of the range holds services that clouds and nodes offer to pods.
            GATEWAY_V4 => Some(Reason::LinkLocal),
            _ => None,
        }
    }

    #[inline(always)]
    fn set_traffic_class(packet: Packet, at: usize, class: u8) -> Result<(), Reason> {
        let header: Ipv4 = packet.read(at).ok_or(Reason::RewriteFailed)?;
        let from = u16::from_ne_bytes([header.version_ihl, header.tos]);
        let to = u16::from_ne_bytes([header.version_ihl, class]);
        packet.write(at, to)?;
        // The header sums up to the same, so a full checksum of the packet stays right.
        packet.write(at + 10, checksum::replace(header.checksum, from, to))
    }
}

impl Family for V6 {
    type Address = [u32; 4];
    const ETHERTYPE: u16 = ETHERTYPE_IPV6;
    // They carry a hop-by-hop option that segmentation inside a tunnel does not take out.
    const BIG_AGGREGATES: bool = false;

    #[inline(always)]
    fn parse(packet: Packet, at: usize) -> Result<Ip<[u32; 4]>, Reason> {
        let header: Ipv6 = packet.read_or_pull(at).ok_or(Reason::Truncated)?;
        if header.version() != 6 {
            return Err(Reason::BadIpv6Header);
        }
        let total = u32::from(u16::from_be(header.payload_length)) + size_of::<Ipv6>() as u32;
        if total > packet.length() - at as u32 {
            return Err(Reason::BadIpv6Length);
        }
        Ok(Ip {
            source: header.source,
            destination: header.destination,
            traffic_class: header.traffic_class(),
        })
    }

    #[inline(always)]
    fn tcp_headers(packet: Packet, at: usize) -> Option<u32> {
        let header: Ipv6 = packet.read(at)?;
        if header.next_header == PROTOCOL_TCP {
            tcp_headers(packet, at, size_of::<Ipv6>())
        } else {
            None
        }
    }

    #[inline(always)]
    fn endpoint(address: [u32; 4]) -> Option<&'static Endpoint> {
        endpoints::v6(address)
    }

    #[inline(always)]
    fn peer(address: [u32; 4]) -> Option<&'static Peer> {
        peers::v6(address)
    }

    #[inline(always)]
    fn is_node(config: &NodeConfig, address: [u32; 4]) -> bool {
        same(&words(&config.node_ipv6), &address) && !same(&address, &[0; 4])
    }

    #[inline(always)]
    fn in_cluster(address: [u32; 4]) -> bool {
        peers::in_cluster(address)
    }

    #[inline(always)]
    fn foreign_source(ip: &Ip<[u32; 4]>) -> Reason {
        if is_multicast(ip.destination) {
            Reason::Multicast
        } else if is_link_local(ip.source) || same(&ip.source, &[0; 4]) {
            Reason::LinkLocal
        } else {
            Reason::SpoofedSource
        }
    }

    #[inline(always)]
    fn unroutable(destination: [u32; 4]) -> Option<Reason> {
        if is_multicast(destination) {
            Some(Reason::Multicast)
        } else if is_link_local(destination) {
            Some(Reason::LinkLocal)
        } else {
            None
        }
    }

    #[inline(always)]
    fn set_traffic_class(packet: Packet, at: usize, class: u8) -> Result<(), Reason> {
        let header: Ipv6 = packet.read(at).ok_or(Reason::RewriteFailed)?;
        let changed = u32::from_be(header.version_class_flow) & !(0xff << 20) | (u32::from(class) << 20);
        packet.amend(at, changed.to_be())
    }
}

/// With TCP right after an IP header of this length.
#[inline(always)]
fn tcp_headers(packet: Packet, at: usize, ip: usize) -> Option<u32> {
    /// The word with TCP's own header length in its upper four bits.
    const DATA_OFFSET: usize = 12;
    let word: u16 = packet.read(at + ip + DATA_OFFSET)?;
    Some(ip as u32 + u32::from(u16::from_be(word) >> 12) * 4)
}

/// An address in the words that headers hold.
#[inline(always)]
pub(crate) fn words(a: &[u8; 16]) -> [u32; 4] {
    in_words(a)
}

/// An IPv4 address in the form both families share.
#[inline(always)]
pub(crate) fn mapped(v4: u32) -> [u32; 4] {
    [0, 0, 0xffffu32.to_be(), v4]
}

#[inline(always)]
pub(crate) fn same(a: &[u32; 4], b: &[u32; 4]) -> bool {
    // Spelt out: an array's own comparison becomes a call that BPF cannot make.
    ((a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3])) == 0
}

#[inline(always)]
fn is_multicast(address: [u32; 4]) -> bool {
    u32::from_be(address[0]) >> 24 == 0xff
}

#[inline(always)]
pub(crate) fn is_link_local(address: [u32; 4]) -> bool {
    u32::from_be(address[0]) >> 22 == 0xfe80 >> 6
}
