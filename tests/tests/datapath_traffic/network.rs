//! Two nodes and their pods, without an agent: devices and routes by `ip`, programs by the agent's own `Dataplane`.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::PathBuf,
    process::Command,
    thread,
};

use ipnetwork::IpNetwork;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};
use weft_agent::datapath::{
    maps::{EncapMode, EndpointEntry, NodeSettings, PeerEntry, PeerKind},
    programs::{DEFAULT_FILTER_BLOCK, Dataplane, DataplaneOptions, Device},
};
use weft_ebpf_common::Reason;

/// What the tunnel goes over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Underlay {
    V4,
    V6,
}

/// How the two nodes are set up.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    pub(crate) underlay: Underlay,
    pub(crate) encap: EncapMode,
    pub(crate) decap: EncapMode,
    /// The segment size limit of every device, where it is not the kernel's own 64 KB.
    pub(crate) big_tcp: Option<u32>,
    /// Whether the pods' routes carry the tunnel's MTU, as the agent makes them.
    pub(crate) route_mtu: bool,
}

pub(crate) const PROGRAM: Setup = Setup {
    underlay: Underlay::V4,
    encap: EncapMode::Program,
    decap: EncapMode::Program,
    big_tcp: None,
    route_mtu: true,
};

pub(crate) const DEVICE: Setup = Setup {
    encap: EncapMode::Device,
    decap: EncapMode::Device,
    ..PROGRAM
};

pub(crate) struct Network {
    nodes: Vec<Dataplane>,
    setup: Setup,
}

/// A pod: on node 1 or 2, and its letter.
#[derive(Clone, Copy)]
pub(crate) struct Pod(pub(crate) u8, pub(crate) char);

impl Pod {
    pub(crate) fn netns(self) -> String {
        format!("p{}{}", self.0, self.1)
    }

    fn number(self) -> u8 {
        self.1 as u8 - b'a' + 10
    }

    pub(crate) fn addresses(self) -> [IpAddr; 2] {
        let (node, number) = (self.0, self.number());
        [
            IpAddr::from([10, 244, node, number]),
            format!("fd00:{node}::{number}").parse().expect("address"),
        ]
    }
}

pub(crate) fn node_addresses(node: u8) -> [IpAddr; 2] {
    [
        IpAddr::from([192, 0, 2, node]),
        format!("2001:db8::{node}").parse().expect("address"),
    ]
}

/// Runs a test on a thread whose namespaces end with it.
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
        // The namespaces' names, and the nodes' bpffs, are this thread's alone.
        fs::create_dir_all("/run/netns").expect("/run/netns");
        mount(
            Some("tmpfs"),
            "/run/netns",
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("mount tmpfs");
        test();
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs something on a thread of its own in a namespace.
pub(crate) fn inside<T: Send + 'static>(
    netns: &str,
    f: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
    let netns = File::open(format!("/run/netns/{netns}")).expect("open netns");
    thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("enter netns");
        f()
    })
}

pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Network {
    pub(crate) fn new(setup: Setup) -> Self {
        shell(
            "ip netns attach fabric $$
             ip link set lo up
             ip link add br0 type bridge mcast_snooping 0
             ip link set br0 addrgenmode none up
             for f in /proc/sys/net/bridge/bridge-nf-call-*; do [ ! -e $f ] || echo 0 > $f; done",
        );
        let mut network = Self {
            nodes: Vec::new(),
            setup,
        };
        for node in [1, 2] {
            let dataplane = network.make_node(node);
            network.nodes.push(dataplane);
        }
        for pod in [Pod(1, 'a'), Pod(1, 'b'), Pod(2, 'a')] {
            network.make_pod(pod);
        }
        network
    }

    /// Does what a new agent does on a node that has the datapath already.
    pub(crate) fn replace_programs(&mut self, node: u8) {
        let (setup, mtu) = (self.setup, self.tunnel_mtu());
        let new = inside(&format!("n{node}"), move || open(node, &setup, bpffs(node), mtu));
        self.nodes[usize::from(node) - 1] = new.join().expect("node");
    }

    /// What a node has counted.
    pub(crate) fn counted(&self, node: u8, reason: Reason) -> u64 {
        let metrics = self.nodes[usize::from(node) - 1].metrics().expect("metrics");
        metrics
            .iter()
            .find(|m| m.reason == reason)
            .expect("every reason is listed")
            .packets
    }

    /// All drops of all nodes, but for the noise that any stack makes.
    pub(crate) fn drops(&self) -> Vec<(Reason, u64)> {
        let noise = [Reason::Multicast, Reason::LinkLocal, Reason::UnhandledArp];
        self.nodes
            .iter()
            .flat_map(|n| n.metrics().expect("metrics"))
            .filter(|m| m.packets > 0 && m.reason.is_drop() && !noise.contains(&m.reason))
            .map(|m| (m.reason, m.packets))
            .collect()
    }

    /// Raises the segment limits of a device, where this set-up has any.
    fn raise(&self, netns: &str, device: &str) {
        if let Some(limit) = self.setup.big_tcp {
            let index = ifindex(netns, device);
            let netns = File::open(format!("/run/netns/{netns}")).expect("open netns");
            weft_lab::big_tcp::raise_in(netns, index, limit).expect("raise the limits");
        }
    }

    fn tunnel_mtu(&self) -> u32 {
        if self.setup.underlay == Underlay::V4 {
            1450
        } else {
            1430
        }
    }

    fn make_node(&self, node: u8) -> Dataplane {
        let [v4, v6] = node_addresses(node);
        let mtu = self.tunnel_mtu();
        shell(&format!(
            "ip netns add n{node}
             ip link add f{node} type veth peer name eth0 netns n{node}
             ip link set f{node} addrgenmode none master br0 up
             ip netns exec n{node} sh -ec '
               echo 1 > /proc/sys/net/ipv4/ip_forward
               echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
               ip link set lo up
               ip link set eth0 up
               ip address add {v4}/24 dev eth0
               ip address add {v6}/64 dev eth0 nodad
               ip link add weft0 address 02:77:65:66:74:00 mtu {mtu} type vxlan external dstport 4789 \
                 nolearning noudpcsum udp6zerocsumtx udp6zerocsumrx
               ip link set weft0 addrgenmode none arp off up
               echo 0 > /proc/sys/net/ipv4/conf/weft0/send_redirects
               echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter
               ip route add 10.244.0.0/16 dev weft0 src {v4}
               ip route add fd00::/16 dev weft0 src {v6}
             '"
        ));
        self.raise(&format!("n{node}"), "eth0");
        self.raise("fabric", &format!("f{node}"));
        self.raise("fabric", "br0");
        let bpffs = bpffs(node);
        fs::create_dir(&bpffs).expect("bpffs directory");
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>).expect("mount bpffs");
        let setup = self.setup;
        inside(&format!("n{node}"), move || open(node, &setup, bpffs, mtu))
            .join()
            .expect("node")
    }

    fn make_pod(&self, pod: Pod) {
        let Pod(node, letter) = pod;
        let netns = pod.netns();
        let number = pod.number();
        let [v4, v6] = pod.addresses();
        let block = DEFAULT_FILTER_BLOCK;
        let (pod_mac, host_mac) = (
            format!("02:00:00:00:0{node}:{number:02x}"),
            format!("02:01:00:00:0{node}:{number:02x}"),
        );
        shell(&format!(
            "ip netns add {netns}
             ip -n n{node} link add wv{letter} address {host_mac} type veth peer name eth0 address {pod_mac} netns {netns}
             ip netns exec n{node} tc qdisc add dev wv{letter} ingress_block {block} clsact
             ip -n n{node} link set wv{letter} addrgenmode none up"
        ));
        let ifindex: u32 = shell(&format!(
            "ip netns exec n{node} cat /sys/class/net/wv{letter}/ifindex"
        ))
        .trim()
        .parse()
        .expect("ifindex");
        self.raise(&format!("n{node}"), &format!("wv{letter}"));
        self.raise(&netns, "eth0");
        let dataplane = &self.nodes[usize::from(node) - 1];
        // The filter's message must come from the node's own namespace.
        thread::scope(|scope| {
            scope.spawn(|| {
                let netns = File::open(format!("/run/netns/n{node}")).expect("open netns");
                setns(netns, CloneFlags::CLONE_NEWNET).expect("enter netns");
                dataplane.ensure_filter().expect("filter");
            });
        });
        let entry = EndpointEntry {
            ifindex,
            endpoint_id: u32::from(number),
            pod_mac: [2, 0, 0, 0, node, number],
            host_mac: [2, 1, 0, 0, node, number],
        };
        for address in [v4, v6] {
            dataplane.upsert_endpoint(address, &entry).expect("endpoint");
        }
        let mtu = self.tunnel_mtu();
        let route = if self.setup.route_mtu {
            [
                format!("mtu {mtu} advmss {}", mtu - 40),
                format!("mtu {mtu} advmss {}", mtu - 60),
            ]
        } else {
            [String::new(), String::new()]
        };
        shell(&format!(
            "ip netns exec {netns} sh -ec '
               ip link set lo up
               ip link set eth0 up
               ip address add {v4}/32 dev eth0
               ip address add {v6}/128 dev eth0 nodad
               ip neighbor add 169.254.1.1 dev eth0 lladdr {host_mac} nud permanent
               ip neighbor add fe80::1 dev eth0 lladdr {host_mac} nud permanent
               ip route add 169.254.1.1 dev eth0 scope link
               ip route add default via 169.254.1.1 dev eth0 {}
               ip route add default via fe80::1 dev eth0 {}
             '",
            route[0], route[1]
        ));
    }
}

fn ifindex(netns: &str, device: &str) -> u32 {
    shell(&format!(
        "ip netns exec {netns} cat /sys/class/net/{device}/ifindex"
    ))
    .trim()
    .parse()
    .expect("ifindex")
}

fn bpffs(node: u8) -> PathBuf {
    PathBuf::from(format!("/run/netns/bpf{node}"))
}

/// In the node's namespace.
fn open(node: u8, setup: &Setup, bpffs: PathBuf, tunnel_mtu: u32) -> Dataplane {
    let device = |name: &str| Device {
        name: name.to_owned(),
        ifindex: nix::net::if_::if_nametoindex(name).expect("device"),
    };
    let (underlay, overlay) = (device("eth0"), device("weft0"));
    let family = usize::from(setup.underlay == Underlay::V6);
    let [v4, v6] = node_addresses(node);
    let (IpAddr::V4(node_ipv4), IpAddr::V6(node_ipv6)) = (v4, v6) else {
        panic!("families")
    };
    let settings = NodeSettings {
        node_ipv4: Some(node_ipv4),
        node_ipv6: Some(node_ipv6),
        tunnel_source: [v4, v6][family],
        vni: 42,
        tunnel_port: 4789,
        tunnel_mtu,
        underlay_ifindex: underlay.ifindex,
        overlay_ifindex: overlay.ifindex,
        encap: setup.encap,
        decap: setup.decap,
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().expect("cidr"),
            "fd00::/16".parse().expect("cidr"),
        ],
    };
    let ifindex = underlay.ifindex;
    let options = DataplaneOptions {
        bpffs,
        underlay,
        overlay,
        filter_block: DEFAULT_FILTER_BLOCK,
        settings,
    };
    let dataplane = Dataplane::open(&options).expect("open");
    let other = 3 - node;
    let remote = node_addresses(other)[family];
    let peer = PeerEntry {
        tunnel_endpoint: remote,
        next_hop: remote,
        ifindex,
        kind: PeerKind::Pods,
    };
    for cidr in [format!("10.244.{other}.0/24"), format!("fd00:{other}::/64")] {
        dataplane
            .upsert_peer(cidr.parse().expect("cidr"), &peer)
            .expect("peer");
    }
    for address in node_addresses(other) {
        let peer = PeerEntry {
            kind: PeerKind::Node,
            ..peer
        };
        dataplane
            .upsert_peer(IpNetwork::from(address), &peer)
            .expect("peer");
    }
    dataplane
}
