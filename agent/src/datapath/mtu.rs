//! The sizes of packets, all derived from the underlay device.

use std::net::IpAddr;

use super::{
    maps::EncapMode,
    netlink::link::{Link, OffloadLimits},
};

/// The smallest MTU with which IPv6 works.
pub const MIN_MTU: u32 = 1280;

/// What a tunnel header adds to a packet: outer IP, UDP, VXLAN and inner Ethernet headers.
pub fn tunnel_overhead(tunnel_source: IpAddr) -> u32 {
    match tunnel_source {
        IpAddr::V4(_) => 20 + 8 + 8 + 14,
        IpAddr::V6(_) => 40 + 8 + 8 + 14,
    }
}

/// IPv6 aggregates above this carry a hop-by-hop option, which segmentation inside a tunnel does not take out; so the
/// overlay device would have to cut them, and a pod is faster without.
const IPV6_IN_TUNNEL: u32 = 65_536;

/// What the kernel's tunnel device takes at once. It cuts larger ones in software: a twentieth of the throughput.
const TUNNEL_DEVICE: u32 = 65_536;

/// The sizes that pods' devices and routes get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Of pods' devices: the underlay's, since pods of one node need no tunnel.
    pub device_mtu: u32,
    /// Of pods' routes and of the overlay device: what fits the tunnel.
    pub tunnel_mtu: u32,
    /// Of pods' devices: every device of a path must agree, or large packets are cut.
    pub offload: OffloadLimits,
}

impl Limits {
    /// From the underlay device.
    pub fn of_underlay(underlay: &Link, tunnel_source: IpAddr) -> Self {
        Self {
            device_mtu: underlay.mtu,
            tunnel_mtu: underlay.mtu.saturating_sub(tunnel_overhead(tunnel_source)),
            offload: OffloadLimits {
                gso: underlay.offload.gso.map(|bytes| bytes.min(IPV6_IN_TUNNEL)),
                ..underlay.offload
            },
        }
    }

    /// The same for pods whose packets leave through who writes the tunnel header.
    #[must_use]
    pub fn carried_by(mut self, encap: EncapMode) -> Self {
        let cap = |bytes: Option<u32>| bytes.map(|bytes| bytes.min(TUNNEL_DEVICE));
        if encap == EncapMode::Device {
            self.offload.gso = cap(self.offload.gso);
            self.offload.gso_ipv4 = cap(self.offload.gso_ipv4);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_the_underlay() {
        let underlay = Link {
            mtu: 1500,
            ..Link::default()
        };
        assert_eq!(
            Limits::of_underlay(&underlay, IpAddr::from([192, 0, 2, 1])).tunnel_mtu,
            1450
        );
        assert_eq!(
            Limits::of_underlay(&underlay, "fd00::1".parse().unwrap()).tunnel_mtu,
            1430
        );
    }

    #[test]
    fn only_ipv4_aggregates_may_exceed_64_kilobytes() {
        let underlay = Link {
            mtu: 1500,
            offload: OffloadLimits {
                gso: Some(185_000),
                gro: Some(185_000),
                gso_ipv4: Some(185_000),
                gro_ipv4: Some(185_000),
            },
            ..Link::default()
        };
        let limits = Limits::of_underlay(&underlay, IpAddr::from([192, 0, 2, 1]));
        assert_eq!(limits.offload.gso, Some(65_536));
        assert_eq!(limits.offload.gso_ipv4, Some(185_000));
        assert_eq!(limits.carried_by(EncapMode::Program), limits);
        let offload = limits.carried_by(EncapMode::Device).offload;
        assert_eq!(
            (offload.gso_ipv4, offload.gro_ipv4),
            (Some(65_536), Some(185_000))
        );
    }
}
