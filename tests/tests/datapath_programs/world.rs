//! A node of its own for one test: namespaces, bpffs, devices, the loaded programs.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    process::Command,
    thread,
};

use ipnetwork::IpNetwork;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use weft_agent::datapath::{
    maps::{EncapMode, EndpointEntry, NodeSettings, PeerEntry, PeerKind},
    programs::{
        DEFAULT_FILTER_BLOCK, Dataplane, DataplaneOptions, Device,
        trial::{Action, Hook, Outcome, Trial},
    },
};
use weft_ebpf_common::Reason;

/// The device made packets are on: the loopback device.
pub(crate) const LOOPBACK: u32 = 1;

pub(crate) const NODE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const NODE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(crate) const PEER_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const PEER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// The pod whose packets the tests make.
pub(crate) const POD: [&str; 2] = ["10.244.1.10", "fd00:1::10"];
/// Another pod of this node.
pub(crate) const NEIGHBOR: [&str; 2] = ["10.244.1.11", "fd00:1::11"];
/// A pod of the peer.
pub(crate) const REMOTE: [&str; 2] = ["10.244.2.10", "fd00:2::10"];
/// A cluster address that nobody has.
pub(crate) const NOBODY: [&str; 2] = ["10.244.9.9", "fd00:9::9"];
pub(crate) const OUTSIDE: [&str; 2] = ["198.51.100.7", "2001:db8:ffff::7"];

pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x10];
pub(crate) const POD_HOST_MAC: [u8; 6] = [2, 1, 0, 0, 0, 0x10];
pub(crate) const NEIGHBOR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
pub(crate) const NEIGHBOR_HOST_MAC: [u8; 6] = [2, 1, 0, 0, 0, 0x11];

pub(crate) const VNI: u32 = 0x00ab_cdef;
pub(crate) const PORT: u16 = 4789;
/// How often a packet is sent again at most because others were counted beside it.
const TRIES: usize = 2;

/// Runs a test on a thread with namespaces of its own: they, and all that is in them, end with the thread.
pub(crate) fn in_namespaces(test: impl FnOnce() + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare: these tests need root");
        mount(
            None::<&str>,
            "/",
            None::<&str>,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            None::<&str>,
        )
        .expect("make mounts private");
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) struct World {
    pub(crate) dataplane: Dataplane,
    pub(crate) options: DataplaneOptions,
    pub(crate) scratch: Scratch,
}

/// The test's bpffs, in a temporary directory.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("temporary directory");
        let scratch = Self(directory);
        fs::create_dir(scratch.bpffs()).expect("bpffs directory");
        mount(
            Some("bpf"),
            &scratch.bpffs(),
            Some("bpf"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mount bpffs");
        scratch
    }

    pub(crate) fn bpffs(&self) -> PathBuf {
        self.0.path().join("bpf")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Else the directory cannot be removed.
        let _ = nix::mount::umount2(&self.bpffs(), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// What a packet led to.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) action: Action,
    pub(crate) frame: Vec<u8>,
    pub(crate) reason: Reason,
    /// Counted under the reason.
    pub(crate) bytes: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// A node whose settings differ from the ordinary.
    pub(crate) fn with(change: impl FnOnce(&mut NodeSettings)) -> Self {
        let scratch = Scratch::new();
        let options = options(scratch.bpffs(), change);
        let dataplane = Dataplane::open(&options).expect("open dataplane");
        let world = Self {
            dataplane,
            options,
            scratch,
        };
        world.fill();
        world
    }

    fn fill(&self) {
        for (pod, neighbor) in POD.into_iter().zip(NEIGHBOR) {
            let entry = EndpointEntry {
                ifindex: LOOPBACK,
                endpoint_id: 1,
                pod_mac: POD_MAC,
                host_mac: POD_HOST_MAC,
            };
            self.dataplane.upsert_endpoint(ip(pod), &entry).expect("endpoint");
            let entry = EndpointEntry {
                ifindex: 77,
                endpoint_id: 2,
                pod_mac: NEIGHBOR_MAC,
                host_mac: NEIGHBOR_HOST_MAC,
            };
            self.dataplane
                .upsert_endpoint(ip(neighbor), &entry)
                .expect("endpoint");
        }
        let tunnel_endpoint = if self.options.settings.tunnel_source.is_ipv4() {
            PEER_V4.into()
        } else {
            PEER_V6.into()
        };
        let peer = PeerEntry {
            tunnel_endpoint,
            next_hop: tunnel_endpoint,
            ifindex: self.options.underlay.ifindex,
            kind: PeerKind::Pods,
        };
        for cidr in ["10.244.2.0/24", "fd00:2::/64"] {
            self.dataplane
                .upsert_peer(cidr.parse().expect("cidr"), &peer)
                .expect("peer");
        }
        let node = PeerEntry {
            kind: PeerKind::Node,
            ..peer
        };
        for address in [IpAddr::V4(PEER_V4), IpAddr::V6(PEER_V6)] {
            self.dataplane
                .upsert_peer(IpNetwork::from(address), &node)
                .expect("peer");
        }
    }

    /// Runs a packet through a hook; exactly one reason must have counted it.
    pub(crate) fn send(&self, hook: Hook, frame: &[u8]) -> Seen {
        self.send_as(hook, Trial::new(frame))
    }

    pub(crate) fn send_as(&self, hook: Hook, trial: Trial<'_>) -> Seen {
        // What the kernel sends by itself through one of the devices is counted, too, but not again and again.
        let mut tries = 0;
        loop {
            let before = self.dataplane.metrics().expect("metrics");
            let Outcome { action, frame } = self.dataplane.try_packet(hook, &trial).expect("test run");
            let after = self.dataplane.metrics().expect("metrics");
            let counted: Vec<_> = before.iter().zip(&after).filter(|(b, a)| b != a).collect();
            match counted[..] {
                [(b, a)] if a.packets == b.packets + 1 => {
                    return Seen {
                        action,
                        frame,
                        reason: a.reason,
                        bytes: a.bytes - b.bytes,
                    };
                }
                [] => panic!("no reason counted the packet"),
                _ if tries < TRIES => tries += 1,
                _ => panic!("counted more than once: {counted:?}"),
            }
        }
    }

    /// The packet must be dropped for a reason, and counted with its length.
    pub(crate) fn must_drop(&self, hook: Hook, frame: &[u8], reason: Reason) {
        let seen = self.send(hook, frame);
        assert_eq!((seen.action, seen.reason), (Action::Drop, reason));
        assert_eq!(seen.bytes, frame.len() as u64);
        assert!(reason.is_drop());
    }

    /// The packet must be left alone, every byte of it, for a reason.
    pub(crate) fn must_leave(&self, hook: Hook, frame: &[u8], reason: Reason) {
        let seen = self.send(hook, frame);
        assert_eq!((seen.action, seen.reason), (Action::NotOurs, reason));
        assert_eq!(seen.frame, frame);
        assert!(!reason.is_drop());
    }
}

pub(crate) fn options(bpffs: PathBuf, change: impl FnOnce(&mut NodeSettings)) -> DataplaneOptions {
    command("ip link set lo up");
    command("ip link add under0 mtu 1500 type veth peer name under1");
    // Without link-local addresses there is no neighbour discovery among the devices, which would be counted as well.
    command("ip link set under0 addrgenmode none up");
    command("ip link set under1 addrgenmode none up");
    command(&format!(
        "ip link add weft0 mtu 1450 type vxlan external dstport {PORT} nolearning noudpcsum udp6zerocsumrx"
    ));
    command("ip link set weft0 addrgenmode none arp off up");
    let underlay = device("under0");
    let overlay = device("weft0");
    let mut settings = NodeSettings {
        node_ipv4: Some(NODE_V4),
        node_ipv6: Some(NODE_V6),
        tunnel_source: NODE_V4.into(),
        vni: VNI,
        tunnel_port: PORT,
        tunnel_mtu: 1450,
        underlay_ifindex: underlay.ifindex,
        overlay_ifindex: overlay.ifindex,
        encap: EncapMode::Program,
        decap: EncapMode::Program,
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().expect("cidr"),
            "fd00::/16".parse().expect("cidr"),
        ],
    };
    change(&mut settings);
    DataplaneOptions {
        bpffs,
        underlay,
        overlay,
        filter_block: DEFAULT_FILTER_BLOCK,
        settings,
    }
}

pub(crate) fn device(name: &str) -> Device {
    let ifindex = nix::net::if_::if_nametoindex(name).expect("device");
    Device {
        name: name.to_owned(),
        ifindex,
    }
}

/// Runs a command in this thread's namespaces.
pub(crate) fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("{line}: {e}"));
    assert!(
        output.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}
