//! Packets by hand: what the tests send, and what they expect to see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::world::{PORT, VNI};

pub(crate) const ETHERNET: usize = 14;
pub(crate) const TUNNEL: usize = 50;

/// An IP packet inside an Ethernet frame, with fields open to be spoilt.
#[derive(Clone)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) class: u8,
    pub(crate) protocol: u8,
    pub(crate) options: usize,
    pub(crate) payload: Vec<u8>,
    pub(crate) fragment: u16,
}

impl Packet {
    pub(crate) fn new(source: &str, destination: &str) -> Self {
        Self::between(
            source.parse().expect("address"),
            destination.parse().expect("address"),
        )
    }

    pub(crate) fn between(source: IpAddr, destination: IpAddr) -> Self {
        Self {
            source,
            destination,
            class: 0,
            protocol: 17,
            options: 0,
            payload: udp(1234, 5678, b"hello"),
            fragment: 0,
        }
    }

    pub(crate) fn class(self, class: u8) -> Self {
        Self { class, ..self }
    }

    pub(crate) fn payload(self, payload: Vec<u8>) -> Self {
        Self { payload, ..self }
    }

    pub(crate) fn options(self, options: usize) -> Self {
        Self { options, ..self }
    }

    /// From the IP header on.
    pub(crate) fn ip(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(s), IpAddr::V4(d)) => self.v4(s, d),
            (IpAddr::V6(s), IpAddr::V6(d)) => self.v6(s, d),
            _ => panic!("both ends of one family"),
        }
    }

    /// With an Ethernet header, as from a pod to its gateway.
    pub(crate) fn frame(&self) -> Vec<u8> {
        ethernet(
            [2, 1, 0, 0, 0, 0x10],
            [2, 0, 0, 0, 0, 0x10],
            self.ethertype(),
            &self.ip(),
        )
    }

    pub(crate) fn ethertype(&self) -> u16 {
        if self.source.is_ipv4() { 0x0800 } else { 0x86dd }
    }

    fn v4(&self, s: Ipv4Addr, d: Ipv4Addr) -> Vec<u8> {
        let header = 20 + self.options;
        let mut p = vec![0x40 | (header / 4) as u8, self.class];
        p.extend(((header + self.payload.len()) as u16).to_be_bytes());
        p.extend([0, 0]);
        p.extend(self.fragment.to_be_bytes());
        p.extend([64, self.protocol, 0, 0]);
        p.extend(s.octets());
        p.extend(d.octets());
        p.extend(std::iter::repeat_n(1, self.options));
        let sum = checksum(&p);
        p[10..12].copy_from_slice(&sum.to_be_bytes());
        p.extend(&self.payload);
        p
    }

    fn v6(&self, s: Ipv6Addr, d: Ipv6Addr) -> Vec<u8> {
        let mut p = ((6 << 28) | (u32::from(self.class) << 20) | 0x12345)
            .to_be_bytes()
            .to_vec();
        p.extend((self.payload.len() as u16).to_be_bytes());
        p.extend([self.protocol, 64]);
        p.extend(s.octets());
        p.extend(d.octets());
        p.extend(&self.payload);
        p
    }
}

/// The Internet checksum of whole bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub(crate) fn udp(source: u16, destination: u16, data: &[u8]) -> Vec<u8> {
    let mut p = source.to_be_bytes().to_vec();
    p.extend(destination.to_be_bytes());
    p.extend(((8 + data.len()) as u16).to_be_bytes());
    p.extend([0, 0]);
    p.extend(data);
    p
}

pub(crate) fn ethernet(destination: [u8; 6], source: [u8; 6], ethertype: u16, inside: &[u8]) -> Vec<u8> {
    let mut p = destination.to_vec();
    p.extend(source);
    p.extend(ethertype.to_be_bytes());
    p.extend(inside);
    p
}

/// A VXLAN header and the frame in it.
pub(crate) fn vxlan(flags: u8, vni: u32, frame: &[u8]) -> Vec<u8> {
    let mut p = vec![flags, 0, 0, 0];
    p.extend((vni << 8).to_be_bytes());
    p.extend(frame);
    p
}

/// A tunnel packet as a peer would send it.
#[derive(Clone)]
pub(crate) struct Tunnelled {
    pub(crate) outer: Packet,
    pub(crate) flags: u8,
    pub(crate) vni: u32,
    pub(crate) port: u16,
    pub(crate) inner: Vec<u8>,
}

impl Tunnelled {
    pub(crate) fn new(from: IpAddr, to: IpAddr, inner: &Packet) -> Self {
        let inner = ethernet(
            [2, 0x77, 0x65, 0x66, 0x74, 0],
            [2, 0x77, 0x65, 0x66, 0x74, 1],
            inner.ethertype(),
            &inner.ip(),
        );
        Self {
            outer: Packet::between(from, to),
            flags: 8,
            vni: VNI,
            port: PORT,
            inner,
        }
    }

    pub(crate) fn frame(&self) -> Vec<u8> {
        let inside = udp(40000, self.port, &vxlan(self.flags, self.vni, &self.inner));
        self.outer.clone().payload(inside).frame()
    }
}
