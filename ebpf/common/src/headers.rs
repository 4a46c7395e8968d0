//! Wire formats. Multi-byte fields hold network byte order.

macro_rules! header {
    ($t:ty, $size:expr) => {
        const _: () = assert!(size_of::<$t>() == $size);
        // SAFETY: `repr(C)` integers without padding: every bit pattern is valid.
        unsafe impl Wire for $t {}
    };
}

/// A type that may be read from any bytes and written as such.
///
/// # Safety
/// Every bit pattern is valid and the type has no padding.
pub unsafe trait Wire: Copy {}

// SAFETY: plain integers.
unsafe impl Wire for u8 {}
// SAFETY: plain integers.
unsafe impl Wire for u16 {}
// SAFETY: plain integers.
unsafe impl Wire for u32 {}
// SAFETY: an array of plain values has no padding either.
unsafe impl<T: Wire, const N: usize> Wire for [T; N] {}

/// What the length fields of IPv4 and UDP headers can hold.
pub const MAX_LENGTH: u32 = 65_535;

/// `ETH_P_IP` in network byte order.
pub const ETHERTYPE_IPV4: u16 = 0x0800u16.to_be();
/// `ETH_P_IPV6` in network byte order.
pub const ETHERTYPE_IPV6: u16 = 0x86ddu16.to_be();
/// `ETH_P_ARP` in network byte order.
pub const ETHERTYPE_ARP: u16 = 0x0806u16.to_be();
/// TCP's protocol number.
pub const PROTOCOL_TCP: u8 = 6;
/// UDP's protocol number.
pub const PROTOCOL_UDP: u8 = 17;
/// ICMPv6's protocol number.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Ethernet II.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ethernet {
    pub destination: [u8; 6],
    pub source: [u8; 6],
    pub ethertype: u16,
}
header!(Ethernet, 14);

/// IPv4 without options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    pub version_ihl: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub checksum: u16,
    pub source: u32,
    pub destination: u32,
}
header!(Ipv4, 20);

/// "Don't fragment", network byte order.
pub const IPV4_DF: u16 = 0x4000u16.to_be();
/// "More fragments" and the offset, network byte order: zero in a whole packet.
pub const IPV4_FRAGMENT: u16 = 0x3fffu16.to_be();

/// IPv6's fixed header.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_class_flow: u32,
    pub payload_length: u16,
    pub next_header: u8,
    pub hop_limit: u8,
    pub source: [u32; 4],
    pub destination: [u32; 4],
}
header!(Ipv6, 40);

impl Ipv6 {
    /// The version field.
    #[inline(always)]
    #[must_use]
    pub const fn version(&self) -> u8 {
        (u32::from_be(self.version_class_flow) >> 28) as u8
    }

    /// The traffic class: DSCP and ECN.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_class(&self) -> u8 {
        (u32::from_be(self.version_class_flow) >> 20) as u8
    }
}

/// UDP.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    pub source: u16,
    pub destination: u16,
    pub length: u16,
    pub checksum: u16,
}
header!(Udp, 8);

/// VXLAN (RFC 7348).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vxlan {
    pub flags: u32,
    /// The identifier and a reserved byte.
    pub vni: u32,
}
header!(Vxlan, 8);

/// The flag that says the identifier is valid, network byte order.
pub const VXLAN_VALID_VNI: u32 = 0x0800_0000u32.to_be();

/// ARP for Ethernet and IPv4.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Arp {
    /// Hardware type 1, protocol 0x0800, lengths 6 and 4: see [`ARP_ETHERNET_IPV4`].
    pub format: [u16; 3],
    pub operation: u16,
    pub sender_mac: [u8; 6],
    pub sender_ip: [u8; 4],
    pub target_mac: [u8; 6],
    pub target_ip: [u8; 4],
}
header!(Arp, 28);

/// What [`Arp::format`] must be.
pub const ARP_ETHERNET_IPV4: [u16; 3] = [1u16.to_be(), 0x0800u16.to_be(), 0x0604u16.to_be()];
/// ARP request, network byte order.
pub const ARP_REQUEST: u16 = 1u16.to_be();
/// ARP reply, network byte order.
pub const ARP_REPLY: u16 = 2u16.to_be();

/// Neighbour solicitation or advertisement, up to its options.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NeighborMessage {
    /// Type and code.
    pub type_code: u16,
    pub checksum: u16,
    /// Router, solicited, override.
    pub flags: u32,
    pub target: [u32; 4],
}
header!(NeighborMessage, 24);

/// A link-layer address option of neighbour discovery.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LinkAddressOption {
    /// Type and length in units of 8 bytes.
    pub kind_length: u16,
    pub mac: [u8; 6],
}
header!(LinkAddressOption, 8);

/// Neighbour solicitation, code 0, network byte order.
pub const NEIGHBOR_SOLICITATION: u16 = 0x8700u16.to_be();
/// Neighbour advertisement, code 0, network byte order.
pub const NEIGHBOR_ADVERTISEMENT: u16 = 0x8800u16.to_be();
/// Router, solicited, override.
pub const ADVERTISEMENT_FLAGS: u32 = 0xe000_0000u32.to_be();
/// Target link-layer address option, 8 bytes long.
pub const TARGET_LINK_ADDRESS: u16 = 0x0201u16.to_be();

/// Bytes the tunnel adds over IPv4: IP, UDP, VXLAN and the inner Ethernet header.
pub const TUNNEL_V4_LEN: usize = 20 + 8 + 8 + 14;
/// Bytes the tunnel adds over IPv6.
pub const TUNNEL_V6_LEN: usize = 40 + 8 + 8 + 14;

/// The outer UDP source port of a flow: of the dynamic range, so that paths spread and no service is met.
#[inline(always)]
#[must_use]
pub const fn flow_port(hash: u32) -> u16 {
    (((hash ^ (hash >> 16)) as u16) | 0x8000).to_be()
}
