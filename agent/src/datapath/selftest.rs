//! Finds out, before any pod depends on it, which of the two ways of tunnelling this kernel can do.
//!
//! The real programs get made packets and must turn them into the right bytes, and back. A version number would say less:
//! distributions carry features back, and leave some out.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process,
};

use aya::{Ebpf, EbpfLoader};
use weft_ebpf_common::headers::TUNNEL_V4_LEN;

use super::{
    maps::{EncapMode, EndpointEntry, NodeSettings, PeerEntry, PeerKind, Tables},
    programs::{
        self, DataplaneError, OBJECT,
        trial::{self, Action, Hook, Outcome, Trial},
    },
};
use crate::telemetry::chain;

/// What the kernel can do, and why that was concluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// How packets are to get their tunnel header.
    pub encap: EncapMode,
    /// How they are to lose it.
    pub decap: EncapMode,
    /// One line for `weft status`.
    pub reason: String,
}

/// Runs the real programs on made packets and looks at what comes out.
///
/// `bpffs` is the node's, mounted; what the test puts there is gone when it returns. Pods' traffic does not meet it.
pub fn self_test(bpffs: &Path) -> SelfTest {
    match Bench::new(bpffs).and_then(|mut bench| bench.run()) {
        Ok((encap, decap)) => conclude(encap, decap),
        Err(e) => SelfTest {
            encap: EncapMode::Device,
            decap: EncapMode::Device,
            reason: format!("the self-test could not run: {}", chain(&e)),
        },
    }
}

/// What was wrong with a direction; `Ok` if nothing was.
type Finding = Result<(), String>;

fn conclude(encap: Finding, decap: Finding) -> SelfTest {
    let mode = |finding: &Finding| {
        if finding.is_ok() {
            EncapMode::Program
        } else {
            EncapMode::Device
        }
    };
    let reason = match (&encap, &decap) {
        (Ok(()), Ok(())) => "the programs write and strip tunnel headers here".to_owned(),
        (Err(out), Ok(())) => format!("the program cannot write tunnel headers here: {out}"),
        (Ok(()), Err(into)) => format!("the program cannot strip tunnel headers here: {into}"),
        (Err(out), Err(_)) => format!("the programs can neither write nor strip tunnel headers here: {out}"),
    };
    SelfTest {
        encap: mode(&encap),
        decap: mode(&decap),
        reason,
    }
}

/// Made packets are on the loopback device, which every namespace has under this number.
const LOOPBACK: u32 = 1;
const SENDER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const RECEIVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const POD_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
const POD_V6: [Ipv6Addr; 2] = [
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2),
];
const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETHERNET_LEN: usize = 14;

/// The programs with tables of their own, in a corner of the bpffs.
struct Bench {
    ebpf: Ebpf,
    tables: Tables,
    directory: PathBuf,
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left would only take memory; the next test on this bpffs has another name.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

impl Bench {
    fn new(bpffs: &Path) -> Result<Self, DataplaneError> {
        let directory = bpffs.join(format!("selftest-{}", process::id()));
        let pin = |source: io::Error| DataplaneError::Pin {
            path: directory.clone(),
            source,
        };
        match fs::remove_dir_all(&directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(pin(e)),
            _ => {}
        }
        fs::create_dir_all(&directory).map_err(pin)?;
        let mut ebpf = EbpfLoader::new()
            .default_map_pin_directory(&directory)
            .load(OBJECT)?;
        for hook in [Hook::FromContainer, Hook::FromUnderlay] {
            programs::load(&mut ebpf, hook.program())?;
        }
        let tables = Tables::take(&mut ebpf)?;
        Ok(Self {
            ebpf,
            tables,
            directory,
        })
    }

    fn run(&mut self) -> Result<(Finding, Finding), DataplaneError> {
        let (mut encap, mut decap) = (Ok(()), Ok(()));
        for inner in [packet_v4(), packet_v6()] {
            self.be(SENDER, RECEIVER, 0)?;
            let out = self.put(Hook::FromContainer, &inner)?;
            encap = encap.and_then(|()| check_encapsulated(&inner, &out));
            // From what should have come out, so that the two directions are judged apart.
            self.be(RECEIVER, SENDER, 1)?;
            let back = self.put(Hook::FromUnderlay, &tunnelled(&inner))?;
            decap = decap.and_then(|()| check_decapsulated(&inner, &back));
        }
        Ok((encap, decap))
    }

    /// Fills the tables as those of a node that has the pod with that index; the other pod is behind the peer.
    fn be(&mut self, node: Ipv4Addr, peer: Ipv4Addr, own: usize) -> Result<(), DataplaneError> {
        self.tables.configure(&NodeSettings {
            node_ipv4: Some(node),
            node_ipv6: None,
            tunnel_source: node.into(),
            vni: 1,
            tunnel_port: 4789,
            tunnel_mtu: 1450,
            underlay_ifindex: LOOPBACK,
            overlay_ifindex: LOOPBACK,
            encap: EncapMode::Program,
            decap: EncapMode::Program,
            cluster_cidrs: vec![],
        })?;
        let endpoint = EndpointEntry {
            ifindex: LOOPBACK,
            endpoint_id: 1,
            pod_mac: POD_MAC,
            host_mac: HOST_MAC,
        };
        let entry = PeerEntry {
            tunnel_endpoint: peer.into(),
            next_hop: peer.into(),
            ifindex: LOOPBACK,
            kind: PeerKind::Pods,
        };
        let other = 1 - own;
        for (mine, theirs) in [
            (IpAddr::from(POD_V4[own]), IpAddr::from(POD_V4[other])),
            (IpAddr::from(POD_V6[own]), IpAddr::from(POD_V6[other])),
        ] {
            self.tables.remove_endpoint(theirs)?;
            self.tables.upsert_endpoint(mine, &endpoint)?;
            self.tables.remove_peer(mine.into())?;
            self.tables.upsert_peer(theirs.into(), &entry)?;
        }
        Ok(())
    }

    fn put(&mut self, hook: Hook, frame: &[u8]) -> Result<Outcome, DataplaneError> {
        trial::run(&mut self.ebpf, hook, &Trial::new(frame))
    }
}

fn check_encapsulated(inner: &[u8], out: &Outcome) -> Finding {
    let expected = tunnelled(inner);
    if out.action != Action::Redirect {
        return Err(format!("the verdict on a pod's packet is {:?}", out.action));
    }
    // The link header is written later, and the source port is the kernel's hash of the flow.
    const PORT: usize = ETHERNET_LEN + 20;
    let same = out.frame.len() == expected.len()
        && out.frame[ETHERNET_LEN..PORT] == expected[ETHERNET_LEN..PORT]
        && out.frame[PORT + 2..] == expected[PORT + 2..];
    if same {
        Ok(())
    } else {
        Err("a pod's packet comes out wrong".to_owned())
    }
}

fn check_decapsulated(inner: &[u8], out: &Outcome) -> Finding {
    if out.action != Action::Redirect {
        return Err(format!("the verdict on a tunnel packet is {:?}", out.action));
    }
    let same = out.frame.get(ETHERNET_LEN..) == inner.get(ETHERNET_LEN..)
        && out.frame.get(12..ETHERNET_LEN) == inner.get(12..ETHERNET_LEN);
    if same {
        Ok(())
    } else {
        Err("a tunnel packet comes out wrong".to_owned())
    }
}

fn frame(ethertype: [u8; 2], header: &[u8]) -> Vec<u8> {
    // UDP from port 1 to port 2, with four bytes and no checksum.
    let udp = [0, 1, 0, 2, 0, 12, 0, 0, b'w', b'e', b'f', b't'];
    [&HOST_MAC[..], &POD_MAC, &ethertype, header, &udp].concat()
}

fn packet_v4() -> Vec<u8> {
    frame([0x08, 0x00], &header_v4(POD_V4[0], POD_V4[1], 12, 0))
}

fn packet_v6() -> Vec<u8> {
    let fixed = [0x60, 0, 0, 0, 0, 12, 17, 64];
    let header = [&fixed[..], &POD_V6[0].octets(), &POD_V6[1].octets()].concat();
    frame([0x86, 0xdd], &header)
}

fn header_v4(source: Ipv4Addr, destination: Ipv4Addr, payload: usize, flags: u8) -> Vec<u8> {
    let [a, b] = ((20 + payload) as u16).to_be_bytes();
    let mut header = vec![0x45, 0, a, b, 0, 0, flags, 0, 64, 17, 0, 0];
    header.extend(source.octets());
    header.extend(destination.octets());
    let sum: u32 = header
        .chunks(2)
        .map(|w| u32::from(w[0]) << 8 | u32::from(w[1]))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let check = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&check.to_be_bytes());
    header
}

/// The tunnel packet that must become of a pod's packet.
fn tunnelled(inner: &[u8]) -> Vec<u8> {
    const DONT_FRAGMENT: u8 = 0x40;
    let payload = inner.len() - ETHERNET_LEN + TUNNEL_V4_LEN - 20;
    let [a, b] = (payload as u16).to_be_bytes();
    let udp_and_vxlan = [0x80, 0, 0x12, 0xb5, a, b, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0];
    [
        &inner[..12],
        &[0x08, 0x00],
        &header_v4(SENDER, RECEIVER, payload, DONT_FRAGMENT)[..],
        &udp_and_vxlan,
        &weft_ebpf_common::OVERLAY_MAC,
        &weft_ebpf_common::INNER_SOURCE_MAC,
        &inner[12..],
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_direction_is_judged_by_itself() {
        let bad = || Err("it is old".to_owned());
        let test = conclude(Ok(()), Ok(()));
        assert_eq!((test.encap, test.decap), (EncapMode::Program, EncapMode::Program));
        let test = conclude(bad(), Ok(()));
        assert_eq!((test.encap, test.decap), (EncapMode::Device, EncapMode::Program));
        assert!(test.reason.contains("it is old"));
        let test = conclude(Ok(()), bad());
        assert_eq!((test.encap, test.decap), (EncapMode::Program, EncapMode::Device));
        let test = conclude(bad(), bad());
        assert_eq!((test.encap, test.decap), (EncapMode::Device, EncapMode::Device));
    }

    #[test]
    fn a_wrong_byte_is_found() {
        let inner = packet_v4();
        let good = Outcome {
            action: Action::Redirect,
            frame: tunnelled(&inner),
        };
        assert_eq!(check_encapsulated(&inner, &good), Ok(()));
        for at in ETHERNET_LEN..good.frame.len() {
            let mut bad = good.clone();
            bad.frame[at] ^= 1;
            let source_port = ETHERNET_LEN + 20..ETHERNET_LEN + 22;
            assert_eq!(
                check_encapsulated(&inner, &bad).is_ok(),
                source_port.contains(&at),
                "byte {at}"
            );
        }
        let passed = Outcome {
            action: Action::Drop,
            ..good
        };
        assert!(check_encapsulated(&inner, &passed).is_err());
    }
}
