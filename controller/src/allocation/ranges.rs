//! The order in which free addresses and ports are looked for.
//!
//! The lower part of a range is left to Services that name their address or port, as in Kubernetes, so that the two rarely
//! meet: addresses and ports nobody asked for come from the upper part first, from a random place on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

/// Node ports of a cluster.
pub const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;
/// Longest part of a node port range that is left to those who name theirs.
const PORT_BAND: u64 = 128;
/// A range counts no more addresses than this: nobody has more Services, and the numbers stay small.
const MAX_SIZE: u64 = 1 << 62;

/// A range of addresses for Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange(IpNetwork);

impl ServiceRange {
    /// The range of a network.
    pub fn new(network: IpNetwork) -> Self {
        Self(network)
    }

    /// Its network.
    pub fn network(self) -> IpNetwork {
        self.0
    }

    /// Whether a Service may have the address: neither the network's own nor, in IPv4, the last one.
    pub fn allows(self, address: IpAddr) -> bool {
        self.0.contains(address)
            && address != self.0.network()
            && !(address.is_ipv4() && self.0.prefix() < 31 && address == self.0.broadcast())
    }

    /// The first address: the API server's.
    pub fn first(self) -> IpAddr {
        self.at(0)
    }

    /// How many addresses there are for Services.
    pub fn size(self) -> u64 {
        match self.0 {
            IpNetwork::V4(network) => u64::from(network.size()).saturating_sub(2),
            IpNetwork::V6(network) => {
                let bits = u32::from(128 - network.prefix());
                if bits >= 62 { MAX_SIZE } else { (1 << bits) - 1 }
            }
        }
    }

    /// The `index`th address.
    fn at(self, index: u64) -> IpAddr {
        match self.0.network() {
            IpAddr::V4(network) => {
                let offset = u32::try_from(index + 1).unwrap_or(u32::MAX);
                IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().saturating_add(offset)))
            }
            IpAddr::V6(network) => IpAddr::V6(Ipv6Addr::from_bits(
                network.to_bits().saturating_add(u128::from(index) + 1),
            )),
        }
    }

    /// Every address once, in the order in which to try them; `random` decides where it begins.
    pub fn candidates(self, random: u64) -> impl Iterator<Item = IpAddr> {
        let size = self.size();
        // As large as a 16th of the range, between 16 and 256; a small range has none.
        let band = if size < 16 { 0 } else { (size / 16).clamp(16, 256) };
        order(size, band.min(size.saturating_sub(1)), random).map(move |index| self.at(index))
    }
}

/// Every node port once, in the order in which to try them.
pub fn node_ports(random: u64) -> impl Iterator<Item = u16> {
    let first = *NODE_PORTS.start();
    let size = u64::from(*NODE_PORTS.end() - first) + 1;
    let band = (size / 32).clamp(16, PORT_BAND);
    order(size, band, random).filter_map(move |index| Some(first + u16::try_from(index).ok()?))
}

/// `0..size`, beginning at a place above `band`, round the part above it, then round the part below.
fn order(size: u64, band: u64, random: u64) -> impl Iterator<Item = u64> {
    let turn = move |from: u64, count: u64| {
        let start = if count == 0 { 0 } else { random % count };
        (0..count).map(move |step| {
            let place = start + step;
            from + if place >= count { place - count } else { place }
        })
    };
    turn(band, size.saturating_sub(band)).chain(turn(0, band))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(text: &str) -> ServiceRange {
        ServiceRange::new(text.parse().unwrap())
    }

    #[test]
    fn bounds() {
        let small = range("10.96.0.0/29");
        assert_eq!(small.first().to_string(), "10.96.0.1");
        assert_eq!(small.size(), 6);
        assert!(!small.allows("10.96.0.0".parse().unwrap()));
        assert!(!small.allows("10.96.0.7".parse().unwrap()));
        assert!(small.allows("10.96.0.6".parse().unwrap()));
        let six = range("fd00:10:96::/112");
        assert_eq!(six.first().to_string(), "fd00:10:96::1");
        assert!(six.allows("fd00:10:96::ffff".parse().unwrap()));
        assert_eq!(six.size(), 65_535);
        assert_eq!(range("fd00::/48").size(), MAX_SIZE);
    }

    #[test]
    fn named_addresses_have_the_lower_part() {
        let range = range("10.96.0.0/16");
        for random in [0, 1, 65_277, u64::MAX] {
            let IpAddr::V4(first) = range.candidates(random).next().unwrap() else {
                panic!("a family of its own")
            };
            assert!(first > Ipv4Addr::new(10, 96, 1, 0), "{first}");
        }
        assert!(node_ports(0).next().unwrap() > 30_080);
    }

    proptest! {
        /// Every address of a range comes up, and only once.
        #[test]
        fn nothing_is_missed(prefix in 22u8..=30, random: u64) {
            let range = range(&format!("10.96.0.0/{prefix}"));
            let seen: Vec<_> = range.candidates(random).collect();
            let distinct: BTreeSet<_> = seen.iter().copied().collect();
            prop_assert_eq!(distinct.len(), seen.len());
            prop_assert_eq!(seen.len() as u64, range.size());
            prop_assert!(seen.iter().all(|address| range.allows(*address)));
        }

        #[test]
        fn every_port_comes_up(random: u64) {
            let seen: BTreeSet<_> = node_ports(random).collect();
            prop_assert_eq!(seen, NODE_PORTS.collect::<BTreeSet<_>>());
        }
    }
}
