//! The Internet checksum (RFC 1071), over words as they lie in memory: the sum is the same in either byte order.

use crate::headers::{Ipv4, LinkAddressOption, NeighborMessage, PROTOCOL_ICMPV6};

/// Folds a sum of 16-bit words into the checksum field's value.
#[inline(always)]
#[must_use]
pub const fn finish(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The two halves of a word, for the sum.
#[inline(always)]
#[must_use]
pub const fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// The checksum of an IPv4 header without options; its checksum field is taken as zero.
#[inline(always)]
#[must_use]
pub const fn ipv4_header(h: &Ipv4) -> u16 {
    let first = u16::from_ne_bytes([h.version_ihl, h.tos]) as u32;
    let fifth = u16::from_ne_bytes([h.ttl, h.protocol]) as u32;
    finish(
        first
            + h.total_length as u32
            + h.id as u32
            + h.fragment as u32
            + fifth
            + halves(h.source)
            + halves(h.destination),
    )
}

/// The checksum after one 16-bit word that it covers has changed (RFC 1624).
#[inline(always)]
#[must_use]
pub const fn replace(checksum: u16, from: u16, to: u16) -> u16 {
    finish((!checksum) as u32 + (!from) as u32 + to as u32)
}

/// The checksum of a neighbour advertisement with one option; its checksum field is taken as zero.
#[inline(always)]
#[must_use]
pub const fn neighbor_advertisement(
    message: &NeighborMessage,
    option: &LinkAddressOption,
    source: &[u32; 4],
    destination: &[u32; 4],
) -> u16 {
    const LENGTH: u32 = (size_of::<NeighborMessage>() + size_of::<LinkAddressOption>()) as u32;
    let [a, b, c, d, e, f] = option.mac;
    finish(
        address(source)
            + address(destination)
            + halves(LENGTH.to_be())
            + halves((PROTOCOL_ICMPV6 as u32).to_be())
            + message.type_code as u32
            + halves(message.flags)
            + address(&message.target)
            + option.kind_length as u32
            + u16::from_ne_bytes([a, b]) as u32
            + u16::from_ne_bytes([c, d]) as u32
            + u16::from_ne_bytes([e, f]) as u32,
    )
}

#[inline(always)]
const fn address(a: &[u32; 4]) -> u32 {
    halves(a[0]) + halves(a[1]) + halves(a[2]) + halves(a[3])
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    const HEADER: Ipv4 = Ipv4 {
        version_ihl: 0x45,
        tos: 0,
        total_length: 0x73u16.to_be(),
        id: 0,
        fragment: 0x4000u16.to_be(),
        ttl: 64,
        protocol: 17,
        checksum: 0,
        source: u32::from_ne_bytes([192, 168, 0, 1]),
        destination: u32::from_ne_bytes([192, 168, 0, 199]),
    };

    #[test]
    fn matches_a_known_header() {
        assert_eq!(ipv4_header(&HEADER), 0xb861u16.to_be());
    }

    #[test]
    fn replacing_a_word_equals_computing_anew() {
        for tos in 0..=255u8 {
            let changed = Ipv4 { tos, ..HEADER };
            let from = u16::from_ne_bytes([0x45, 0]);
            let to = u16::from_ne_bytes([0x45, tos]);
            assert_eq!(
                replace(ipv4_header(&HEADER), from, to),
                ipv4_header(&changed),
                "tos {tos}"
            );
        }
    }

    #[test]
    fn a_header_with_its_checksum_sums_to_zero() {
        let check = ipv4_header(&HEADER);
        let sum = ipv4_header(&HEADER);
        assert_eq!(replace(check, 0, 0), sum);
        assert_eq!(finish(u32::from(!sum) + u32::from(check)), 0);
    }
}
