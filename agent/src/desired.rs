//! What the node's tables and routes should be. Pure: from the cluster's nodes and the node's underlay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::datapath::{
    maps::{PeerEntry, PeerKind},
    netlink::route::Route,
};

/// What is known of a node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
}

/// The nodes of the cluster by name, this one included.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cluster {
    /// The nodes.
    pub nodes: BTreeMap<String, NodeRecord>,
}

/// This node's place on the underlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Underlay {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, at most one of each family.
    pub node_ips: Vec<IpAddr>,
    /// The address that tunnel packets come from and go to.
    pub tunnel_source: IpAddr,
    /// The networks that are reached without Weft.
    pub networks: Vec<IpNetwork>,
    /// The way to each other node's tunnel address: next hop and device.
    pub ways: BTreeMap<IpAddr, (IpAddr, u32)>,
    /// The overlay device.
    pub overlay_ifindex: u32,
    /// The cluster CIDRs that the operator gave.
    pub cluster_cidrs: Vec<IpNetwork>,
}

/// A pod CIDR that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// Whose it is.
    pub node: String,
    /// The pod CIDR.
    pub cidr: IpNetwork,
    /// What it collides with.
    pub with: Collision,
}

/// What a pod CIDR collides with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Collision {
    /// A network that this node reaches by the underlay.
    Underlay(IpNetwork),
    /// Another node's pod CIDR.
    Node(String, IpNetwork),
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, cidr, with } = self;
        match with {
            Collision::Underlay(network) => write!(
                f,
                "pod CIDR {cidr} of node {node} overlaps the underlay network {network}; choose another --cluster-cidr of \
                 the controller"
            ),
            Collision::Node(other, network) => write!(
                f,
                "pod CIDR {cidr} of node {node} overlaps {network} of node {other}; delete one of the two nodes so that it \
                 gets another"
            ),
        }
    }
}

/// What the node's tables and routes should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Other nodes' prefixes.
    pub peers: BTreeMap<IpNetwork, PeerEntry>,
    /// The node's routes to the overlay, by destination.
    pub routes: BTreeMap<IpNetwork, Route>,
    /// What belongs to the cluster.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// Whose traffic to the outside is masqueraded.
    pub masquerade: Vec<IpNetwork>,
    /// What is left out.
    pub conflicts: Vec<Conflict>,
    /// Nodes that cannot be reached, and why.
    pub unreachable: Vec<(String, &'static str)>,
}

/// Whether two networks have an address in common.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// The conflicts of this node's own pod CIDRs: with any, the node must not serve pods.
pub fn own_conflicts(cluster: &Cluster, underlay: &Underlay) -> Vec<Conflict> {
    let Some(own) = cluster.nodes.get(&underlay.node_name) else {
        return Vec::new();
    };
    own.pod_cidrs
        .iter()
        .filter_map(|cidr| {
            let with_network = underlay
                .networks
                .iter()
                .find(|network| overlap(*cidr, **network))
                .map(|network| Collision::Underlay(*network));
            let with = with_network.or_else(|| collision_with_nodes(cluster, &underlay.node_name, *cidr))?;
            Some(Conflict {
                node: underlay.node_name.clone(),
                cidr: *cidr,
                with,
            })
        })
        .collect()
}

fn collision_with_nodes(cluster: &Cluster, node: &str, cidr: IpNetwork) -> Option<Collision> {
    cluster
        .nodes
        .iter()
        .filter(|(name, _)| *name != node)
        .find_map(|(name, record)| {
            let other = record.pod_cidrs.iter().find(|other| overlap(cidr, **other))?;
            Some(Collision::Node(name.clone(), *other))
        })
}

/// The address of a node to which its tunnel packets go: of the family that this node tunnels over.
pub fn tunnel_endpoint(record: &NodeRecord, tunnel_source: IpAddr) -> Option<IpAddr> {
    record
        .ips
        .iter()
        .find(|ip| ip.is_ipv4() == tunnel_source.is_ipv4())
        .copied()
}

/// Computes what should be.
pub fn desired(cluster: &Cluster, underlay: &Underlay) -> Desired {
    let mut desired = Desired::default();
    let own = cluster
        .nodes
        .get(&underlay.node_name)
        .cloned()
        .unwrap_or_default();
    let mut served: Vec<(String, IpNetwork)> = own
        .pod_cidrs
        .iter()
        .map(|cidr| (underlay.node_name.clone(), *cidr))
        .collect();
    desired.masquerade.clone_from(&own.pod_cidrs);
    for (name, record) in &cluster.nodes {
        if *name == underlay.node_name {
            continue;
        }
        let Some(tunnel_endpoint) = tunnel_endpoint(record, underlay.tunnel_source) else {
            desired
                .unreachable
                .push((name.clone(), "it has no address of this node's tunnel family"));
            continue;
        };
        let Some((next_hop, ifindex)) = underlay.ways.get(&tunnel_endpoint).copied() else {
            desired
                .unreachable
                .push((name.clone(), "there is no route to it"));
            continue;
        };
        let entry = |kind| PeerEntry {
            tunnel_endpoint,
            next_hop,
            ifindex,
            kind,
        };
        for cidr in &record.pod_cidrs {
            if let Some(with) = collision(&served, &underlay.networks, *cidr) {
                desired.conflicts.push(Conflict {
                    node: name.clone(),
                    cidr: *cidr,
                    with,
                });
                continue;
            }
            served.push((name.clone(), *cidr));
            desired.peers.insert(*cidr, entry(PeerKind::Pods));
        }
        for ip in &record.ips {
            // An address that this node claims for itself cannot be another's.
            if !underlay.node_ips.contains(ip) {
                desired.peers.insert(IpNetwork::from(*ip), entry(PeerKind::Node));
            }
        }
    }
    let cidrs: BTreeSet<IpNetwork> = if underlay.cluster_cidrs.is_empty() {
        served.into_iter().map(|(_, cidr)| cidr).collect()
    } else {
        underlay.cluster_cidrs.iter().copied().collect()
    };
    for cidr in &cidrs {
        let source = underlay.node_ips.iter().find(|ip| ip.is_ipv4() == cidr.is_ipv4());
        if let Some(source) = source {
            let mut route = Route::on_link(*cidr, underlay.overlay_ifindex);
            route.source = Some(*source);
            desired.routes.insert(*cidr, route);
        }
    }
    desired.cluster_cidrs = cidrs.into_iter().collect();
    desired
}

fn collision(served: &[(String, IpNetwork)], networks: &[IpNetwork], cidr: IpNetwork) -> Option<Collision> {
    let node = served.iter().find(|(_, other)| overlap(cidr, *other));
    node.map(|(name, other)| Collision::Node(name.clone(), *other))
        .or_else(|| {
            networks
                .iter()
                .find(|network| overlap(cidr, **network))
                .map(|network| Collision::Underlay(*network))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNetwork {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn node(ips: &[&str], cidrs: &[&str]) -> NodeRecord {
        NodeRecord {
            ips: ips.iter().map(|text| ip(text)).collect(),
            pod_cidrs: cidrs.iter().map(|text| net(text)).collect(),
        }
    }

    fn cluster(nodes: &[(&str, NodeRecord)]) -> Cluster {
        Cluster {
            nodes: nodes
                .iter()
                .map(|(name, record)| ((*name).to_owned(), record.clone()))
                .collect(),
        }
    }

    fn underlay() -> Underlay {
        Underlay {
            node_name: "a".to_owned(),
            node_ips: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            tunnel_source: ip("192.0.2.1"),
            networks: vec![net("192.0.2.0/24"), net("2001:db8::/64")],
            ways: [
                (ip("192.0.2.2"), (ip("192.0.2.2"), 2)),
                (ip("198.51.100.3"), (ip("192.0.2.254"), 2)),
            ]
            .into(),
            overlay_ifindex: 9,
            cluster_cidrs: Vec::new(),
        }
    }

    #[test]
    fn peers_are_pods_and_nodes_behind_their_next_hop() {
        let cluster = cluster(&[
            ("a", node(&["192.0.2.1"], &["10.0.0.0/24"])),
            (
                "b",
                node(&["192.0.2.2", "2001:db8::2"], &["10.0.1.0/24", "fd00:0:0:1::/64"]),
            ),
            ("c", node(&["198.51.100.3"], &["10.0.2.0/24"])),
        ]);
        let desired = desired(&cluster, &underlay());
        let prefixes: Vec<String> = desired.peers.keys().map(ToString::to_string).collect();
        assert_eq!(
            prefixes,
            [
                "10.0.1.0/24",
                "10.0.2.0/24",
                "192.0.2.2/32",
                "198.51.100.3/32",
                "2001:db8::2/128",
                "fd00:0:0:1::/64"
            ]
        );
        let c = desired.peers[&net("10.0.2.0/24")];
        assert_eq!(
            (c.tunnel_endpoint, c.next_hop),
            (ip("198.51.100.3"), ip("192.0.2.254"))
        );
        assert_eq!(desired.peers[&net("192.0.2.2/32")].kind, PeerKind::Node);
        assert_eq!(desired.masquerade, [net("10.0.0.0/24")]);
        let routes: Vec<_> = desired
            .routes
            .values()
            .map(|r| (r.destination, r.source.unwrap()))
            .collect();
        assert_eq!(
            routes,
            [
                (net("10.0.0.0/24"), ip("192.0.2.1")),
                (net("10.0.1.0/24"), ip("192.0.2.1")),
                (net("10.0.2.0/24"), ip("192.0.2.1")),
                (net("fd00:0:0:1::/64"), ip("2001:db8::1")),
            ]
        );
    }

    #[test]
    fn given_cluster_cidrs_replace_a_route_for_each_node() {
        let cluster = cluster(&[("b", node(&["192.0.2.2"], &["10.0.1.0/24"]))]);
        let underlay = Underlay {
            cluster_cidrs: vec![net("10.0.0.0/16")],
            ..underlay()
        };
        let desired = desired(&cluster, &underlay);
        assert_eq!(
            desired.routes.keys().copied().collect::<Vec<_>>(),
            [net("10.0.0.0/16")]
        );
        assert_eq!(desired.cluster_cidrs, [net("10.0.0.0/16")]);
    }

    #[test]
    fn overlapping_pod_cidrs_are_left_out_and_named() {
        let cluster = cluster(&[
            ("a", node(&["192.0.2.1"], &["10.0.0.0/24"])),
            ("b", node(&["192.0.2.2"], &["10.0.0.128/25"])),
            ("c", node(&["198.51.100.3"], &["192.0.0.0/16"])),
        ]);
        let desired = desired(&cluster, &underlay());
        assert_eq!(desired.conflicts.len(), 2);
        assert!(!desired.peers.contains_key(&net("10.0.0.128/25")));
        assert!(
            desired.peers.contains_key(&net("192.0.2.2/32")),
            "the node itself is still reached"
        );
        let text = desired.conflicts[0].to_string();
        assert!(
            text.starts_with("pod CIDR 10.0.0.128/25 of node b overlaps 10.0.0.0/24 of node a"),
            "{text}"
        );
        assert!(
            desired.conflicts[1]
                .to_string()
                .contains("underlay network 192.0.2.0/24")
        );
        assert_eq!(own_conflicts(&cluster, &underlay()).len(), 1);
    }

    #[test]
    fn nodes_without_a_way_are_named() {
        let cluster = cluster(&[
            ("b", node(&["2001:db8::2"], &[])),
            ("c", node(&["203.0.113.9"], &[])),
        ]);
        let desired = desired(&cluster, &underlay());
        assert_eq!(desired.unreachable.len(), 2);
        assert!(desired.peers.is_empty());
    }
}
