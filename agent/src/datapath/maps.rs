//! The tables that the programs read, in the words of the network: endpoints, peers, cluster CIDRs, this node.
//!
//! The types here are what the agent speaks; how they lie in a BPF map is `weft_ebpf_common`'s business and stays
//! behind [`Tables`].

mod slots;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aya::{
    Ebpf,
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
};
use ipnetwork::IpNetwork;
use weft_ebpf_common::{
    Address, Counter, Endpoint, NodeConfig, Peer, Reason, config, macs, mapped_v4, maps, peer,
};

use self::slots::Slots;
use super::programs::DataplaneError;

/// How packets get their tunnel header, or lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncapMode {
    /// The BPF program writes and strips it: the fast path.
    Program,
    /// The kernel's VXLAN device does, told the remote end by the program.
    Device,
}

impl EncapMode {
    /// The name in configuration and status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Program => "program",
            Self::Device => "device",
        }
    }
}

/// What the programs must know of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSettings {
    /// This node's address as pods and peers know it (its InternalIP).
    pub node_ipv4: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub node_ipv6: Option<Ipv6Addr>,
    /// The address tunnel packets leave from and arrive at.
    pub tunnel_source: IpAddr,
    /// The 24-bit network identifier.
    pub vni: u32,
    /// The tunnel's UDP port.
    pub tunnel_port: u16,
    /// The longest inner packet: the underlay's MTU less 50, or less 70 over IPv6.
    pub tunnel_mtu: u32,
    /// The device that carries the tunnel.
    pub underlay_ifindex: u32,
    /// The VXLAN device in collect-metadata mode.
    pub overlay_ifindex: u32,
    /// How packets get their tunnel header.
    pub encap: EncapMode,
    /// How they lose it.
    pub decap: EncapMode,
    /// The cluster's CIDRs: what no peer has of them is dropped and not sent outside. An empty list means that they are
    /// not known yet, and leaves those of an earlier agent.
    pub cluster_cidrs: Vec<IpNetwork>,
}

impl NodeSettings {
    fn to_config(&self) -> NodeConfig {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let [_, a, b, c] = self.vni.to_be_bytes();
        NodeConfig {
            flags: flag(self.encap == EncapMode::Program, config::PROGRAM_ENCAP)
                | flag(self.decap == EncapMode::Program, config::PROGRAM_DECAP)
                | flag(self.tunnel_source.is_ipv6(), config::UNDERLAY_V6),
            vni_word: [a, b, c, 0],
            underlay_ifindex: self.underlay_ifindex,
            overlay_ifindex: self.overlay_ifindex,
            tunnel_mtu: self.tunnel_mtu,
            tunnel_port: self.tunnel_port.to_be_bytes(),
            tunnel_source: mapped(self.tunnel_source),
            node_ipv4: self.node_ipv4.map(|a| a.octets()).unwrap_or_default(),
            node_ipv6: self.node_ipv6.map(|a| a.octets()).unwrap_or_default(),
            ..NodeConfig::default()
        }
    }
}

/// A pod's interface on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointEntry {
    /// The host veth's interface index.
    pub ifindex: u32,
    /// The agent's number for the endpoint.
    pub endpoint_id: u32,
    /// The pod veth's address.
    pub pod_mac: [u8; 6],
    /// The host veth's address: the pod's gateway.
    pub host_mac: [u8; 6],
}

/// What a peer's prefix stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A pod CIDR.
    Pods,
    /// An address of the node itself (/32 or /128).
    Node,
}

/// Where a prefix behind another node is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerEntry {
    /// The other node's tunnel address. Tunnelled packets from the prefix are accepted from there only.
    pub tunnel_endpoint: IpAddr,
    /// The neighbour on the underlay: the tunnel address itself where it is on the link, else the router to it.
    pub next_hop: IpAddr,
    /// The underlay device on the way there.
    pub ifindex: u32,
    /// What the prefix stands for.
    pub kind: PeerKind,
}

/// One verdict or drop reason and what was counted under it, over all processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metric {
    /// The verdict or drop reason.
    pub reason: Reason,
    /// Packets; an aggregate counts once.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(a) => mapped_v4(a.octets()),
        IpAddr::V6(a) => a.octets(),
    }
}

fn unmapped(address: Address) -> IpAddr {
    let address = Ipv6Addr::from(address);
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}

impl From<&EndpointEntry> for Endpoint {
    fn from(e: &EndpointEntry) -> Self {
        Self {
            ifindex: e.ifindex,
            endpoint_id: e.endpoint_id,
            macs: macs(e.pod_mac, e.host_mac),
            flags: 0,
        }
    }
}

impl From<Endpoint> for EndpointEntry {
    fn from(e: Endpoint) -> Self {
        Self {
            ifindex: e.ifindex,
            endpoint_id: e.endpoint_id,
            pod_mac: e.pod_mac(),
            host_mac: e.host_mac(),
        }
    }
}

impl From<&PeerEntry> for Peer {
    fn from(p: &PeerEntry) -> Self {
        Self {
            tunnel_endpoint: mapped(p.tunnel_endpoint),
            next_hop: mapped(p.next_hop),
            ifindex: p.ifindex,
            flags: if p.kind == PeerKind::Node {
                peer::PEER_IS_NODE
            } else {
                0
            },
        }
    }
}

impl From<Peer> for PeerEntry {
    fn from(p: Peer) -> Self {
        Self {
            tunnel_endpoint: unmapped(p.tunnel_endpoint),
            next_hop: unmapped(p.next_hop),
            ifindex: p.ifindex,
            kind: if p.flags & peer::PEER_IS_NODE == 0 {
                PeerKind::Pods
            } else {
                PeerKind::Node
            },
        }
    }
}

/// The programs' maps, typed.
pub(super) struct Tables {
    config: Array<MapData, NodeConfig>,
    endpoints_v4: HashMap<MapData, [u8; 4], Endpoint>,
    endpoints_v6: HashMap<MapData, [u8; 16], Endpoint>,
    slots: Slots,
    peers_v4: LpmTrie<MapData, [u8; 4], Peer>,
    peers_v6: LpmTrie<MapData, [u8; 16], Peer>,
    cluster: LpmTrie<MapData, [u8; 16], u32>,
    metrics: PerCpuArray<MapData, Counter>,
}

impl Tables {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, DataplaneError> {
        let endpoints_v4 = take(ebpf, maps::ENDPOINTS_V4)?;
        let endpoints_v6 = take(ebpf, maps::ENDPOINTS_V6)?;
        let slots = Slots::take(ebpf, all_endpoints(&endpoints_v4, &endpoints_v6)?)?;
        Ok(Self {
            config: take(ebpf, maps::CONFIG)?,
            endpoints_v4,
            endpoints_v6,
            slots,
            peers_v4: take(ebpf, maps::PEERS_V4)?,
            peers_v6: take(ebpf, maps::PEERS_V6)?,
            cluster: take(ebpf, maps::CLUSTER)?,
            metrics: take(ebpf, maps::METRICS)?,
        })
    }

    pub(super) fn configure(&mut self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        // Before the node's own record: what the cluster owns must not leave it for one packet.
        self.set_cluster_cidrs(&settings.cluster_cidrs)?;
        let config = settings.to_config();
        // An array's entry is written in place while programs read it, so not without need.
        if self.config.get(&0, 0).is_ok_and(|present| present == config) {
            return Ok(());
        }
        self.config
            .set(0, config, 0)
            .map_err(|e| DataplaneError::write(maps::CONFIG, "", e))
    }

    fn set_cluster_cidrs(&mut self, cidrs: &[IpNetwork]) -> Result<(), DataplaneError> {
        if cidrs.is_empty() {
            return Ok(());
        }
        let wanted: Vec<Key<Address>> = cidrs.iter().map(|cidr| mapped_key(*cidr)).collect();
        for key in &wanted {
            self.cluster
                .insert(key, 1, 0)
                .map_err(|e| DataplaneError::write(maps::CLUSTER, "", e))?;
        }
        let same =
            |a: &Key<Address>, b: &Key<Address>| a.prefix_len() == b.prefix_len() && a.data() == b.data();
        let present: Vec<Key<Address>> = self
            .cluster
            .keys()
            .collect::<Result<_, _>>()
            .map_err(|e| DataplaneError::read(maps::CLUSTER, e))?;
        for key in present.iter().filter(|k| !wanted.iter().any(|w| same(w, k))) {
            absent_is_fine(self.cluster.remove(key))
                .map_err(|e| DataplaneError::write(maps::CLUSTER, "", e))?;
        }
        Ok(())
    }

    pub(super) fn upsert_endpoint(
        &mut self,
        ip: IpAddr,
        entry: &EndpointEntry,
    ) -> Result<(), DataplaneError> {
        let endpoint = Endpoint::from(entry);
        match ip {
            IpAddr::V4(ip) => self.endpoints_v4.insert(ip.octets(), endpoint, 0),
            IpAddr::V6(ip) => self.endpoints_v6.insert(ip.octets(), endpoint, 0),
        }
        .map_err(|e| DataplaneError::write("endpoint", ip, e))?;
        self.slots.upsert(ip, endpoint)
    }

    pub(super) fn remove_endpoint(&mut self, ip: IpAddr) -> Result<bool, DataplaneError> {
        self.slots.remove(ip)?;
        absent_is_fine(match ip {
            IpAddr::V4(ip) => self.endpoints_v4.remove(&ip.octets()),
            IpAddr::V6(ip) => self.endpoints_v6.remove(&ip.octets()),
        })
        .map_err(|e| DataplaneError::write("endpoint", ip, e))
    }

    pub(super) fn endpoints(&self) -> Result<Vec<(IpAddr, EndpointEntry)>, DataplaneError> {
        let all = all_endpoints(&self.endpoints_v4, &self.endpoints_v6)?;
        Ok(all
            .into_iter()
            .map(|(ip, endpoint)| (ip, endpoint.into()))
            .collect())
    }

    pub(super) fn upsert_peer(&mut self, cidr: IpNetwork, entry: &PeerEntry) -> Result<(), DataplaneError> {
        match cidr {
            IpNetwork::V4(c) => self.peers_v4.insert(
                &Key::new(u32::from(c.prefix()), c.network().octets()),
                Peer::from(entry),
                0,
            ),
            IpNetwork::V6(c) => self.peers_v6.insert(
                &Key::new(u32::from(c.prefix()), c.network().octets()),
                Peer::from(entry),
                0,
            ),
        }
        .map_err(|e| DataplaneError::write("peer", cidr, e))
    }

    pub(super) fn remove_peer(&mut self, cidr: IpNetwork) -> Result<bool, DataplaneError> {
        absent_is_fine(match cidr {
            IpNetwork::V4(c) => self
                .peers_v4
                .remove(&Key::new(u32::from(c.prefix()), c.network().octets())),
            IpNetwork::V6(c) => self
                .peers_v6
                .remove(&Key::new(u32::from(c.prefix()), c.network().octets())),
        })
        .map_err(|e| DataplaneError::write("peer", cidr, e))
    }

    pub(super) fn peers(&self) -> Result<Vec<(IpNetwork, PeerEntry)>, DataplaneError> {
        let v4 = self
            .peers_v4
            .iter()
            .map(|r| r.map(|(k, v)| (IpAddr::from(k.data()), k.prefix_len(), v)));
        let v6 = self
            .peers_v6
            .iter()
            .map(|r| r.map(|(k, v)| (IpAddr::from(k.data()), k.prefix_len(), v)));
        v4.chain(v6)
            .filter_map(|r| match r {
                Ok((ip, len, peer)) => {
                    // The kernel refuses longer prefixes, so there is always a network.
                    let cidr = IpNetwork::new(ip, u8::try_from(len).ok()?).ok()?;
                    Some(Ok((cidr, peer.into())))
                }
                Err(e) => Some(Err(e)),
            })
            .collect::<Result<_, _>>()
            .map_err(|e| DataplaneError::read("peers", e))
    }

    pub(super) fn metrics(&self) -> Result<Vec<Metric>, DataplaneError> {
        Reason::ALL
            .iter()
            .map(|&reason| {
                let counters = self.metrics.get(&reason.code(), 0)?;
                let (packets, bytes) = counters
                    .iter()
                    .fold((0, 0), |(p, b), c| (p + c.packets, b + c.bytes));
                Ok(Metric {
                    reason,
                    packets,
                    bytes,
                })
            })
            .collect::<Result<_, MapError>>()
            .map_err(|e| DataplaneError::read(maps::METRICS, e))
    }
}

fn all_endpoints(
    v4: &HashMap<MapData, [u8; 4], Endpoint>,
    v6: &HashMap<MapData, [u8; 16], Endpoint>,
) -> Result<Vec<(IpAddr, Endpoint)>, DataplaneError> {
    let v4 = v4.iter().map(|r| r.map(|(k, v)| (IpAddr::from(k), v)));
    let v6 = v6.iter().map(|r| r.map(|(k, v)| (IpAddr::from(k), v)));
    v4.chain(v6)
        .collect::<Result<_, _>>()
        .map_err(|e| DataplaneError::read("endpoints", e))
}

fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, DataplaneError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).ok_or(DataplaneError::ObjectLacks { name })?;
    T::try_from(map).map_err(|e| DataplaneError::read(name, e))
}

fn mapped_key(cidr: IpNetwork) -> Key<Address> {
    let shift = if cidr.is_ipv4() { 96 } else { 0 };
    Key::new(u32::from(cidr.prefix()) + shift, mapped(cidr.network()))
}

/// Whether something was removed.
fn absent_is_fine(result: Result<(), MapError>) -> Result<bool, MapError> {
    match result {
        Ok(()) => Ok(true),
        Err(MapError::KeyNotFound) => Ok(false),
        Err(MapError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> NodeSettings {
        NodeSettings {
            node_ipv4: Some(Ipv4Addr::new(192, 0, 2, 1)),
            node_ipv6: None,
            tunnel_source: IpAddr::from([192, 0, 2, 1]),
            vni: 0x0001_2345,
            tunnel_port: 4789,
            tunnel_mtu: 1450,
            underlay_ifindex: 2,
            overlay_ifindex: 3,
            encap: EncapMode::Program,
            decap: EncapMode::Device,
            cluster_cidrs: vec![],
        }
    }

    #[test]
    fn settings_become_what_stands_in_the_header() {
        let config = settings().to_config();
        assert_eq!(config.vni_word, [0x01, 0x23, 0x45, 0]);
        assert_eq!(config.tunnel_port, [0x12, 0xb5]);
        assert_eq!(config.flags, config::PROGRAM_ENCAP);
        assert_eq!(config.tunnel_source, mapped_v4([192, 0, 2, 1]));
    }

    #[test]
    fn a_peer_survives_the_way_into_the_map_and_back() {
        for (endpoint, kind) in [("192.0.2.7", PeerKind::Node), ("2001:db8::7", PeerKind::Pods)] {
            let endpoint: IpAddr = endpoint.parse().unwrap();
            let entry = PeerEntry {
                tunnel_endpoint: endpoint,
                next_hop: endpoint,
                ifindex: 4,
                kind,
            };
            assert_eq!(PeerEntry::from(Peer::from(&entry)), entry);
        }
    }

    #[test]
    fn cluster_cidrs_of_both_families_share_one_key_space() {
        let key = mapped_key("10.244.0.0/16".parse().unwrap());
        assert_eq!((key.prefix_len(), key.data()), (112, mapped_v4([10, 244, 0, 0])));
        let key = mapped_key("fd00::/56".parse().unwrap());
        assert_eq!(key.prefix_len(), 56);
    }
}
