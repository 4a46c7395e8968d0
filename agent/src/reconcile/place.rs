//! Where the node is on the underlay, and how it reaches the others from there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::network::{NetworkError, NetworkOptions};
use crate::{
    datapath::{
        POD_GROUP,
        netlink::{Netlink, link::Link},
    },
    desired::{Cluster, Underlay, tunnel_endpoint},
};

/// The node's place on the underlay, as far as it does not depend on other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlace {
    /// The underlay device.
    pub underlay: Link,
    /// The node's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
}

/// Finds the underlay device and the node's addresses.
pub fn find_place(netlink: &Netlink, options: &NetworkOptions) -> Result<NodePlace, NetworkError> {
    let addresses = netlink.addresses()?;
    let missing = |name: &str| NetworkError::UnderlayMissing(name.to_owned());
    let underlay = if let Some(name) = &options.underlay {
        netlink.link_by_name(name)?.ok_or_else(|| missing(name))?
    } else if let Some(ip) = options.node_ips.first() {
        let address = addresses.iter().find(|address| address.network.ip() == *ip);
        let address = address.ok_or(NetworkError::AddressMissing(*ip))?;
        netlink
            .link_by_index(address.ifindex)?
            .ok_or_else(|| missing(&ip.to_string()))?
    } else {
        let routes = netlink.routes()?;
        let default = routes
            .iter()
            .find(|route| route.destination.prefix() == 0 && route.ifindex != 0);
        let default = default.ok_or(NetworkError::NoUnderlay)?;
        netlink
            .link_by_index(default.ifindex)?
            .ok_or(NetworkError::NoUnderlay)?
    };
    for ip in &options.node_ips {
        if !addresses.iter().any(|address| address.network.ip() == *ip) {
            return Err(NetworkError::AddressMissing(*ip));
        }
    }
    let mut ips = options.node_ips.clone();
    for v4 in [true, false] {
        let found = addresses.iter().find(|address| {
            address.ifindex == underlay.index && address.global && address.network.is_ipv4() == v4
        });
        if !ips.iter().any(|ip| ip.is_ipv4() == v4) {
            ips.extend(found.map(|address| address.network.ip()));
        }
    }
    ips.sort_by_key(IpAddr::is_ipv6);
    if ips.is_empty() {
        return Err(NetworkError::NoAddress(underlay.name));
    }
    Ok(NodePlace { underlay, ips })
}

/// The address that tunnel packets come from.
pub(super) fn tunnel_source(place: &NodePlace) -> IpAddr {
    // IPv4 first: its header is the shorter one. A place has at least one address.
    place.ips.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

/// Looks at the underlay: what is reached by it, and how each other node is.
pub(super) fn survey(
    netlink: &Netlink,
    options: &NetworkOptions,
    place: &NodePlace,
    overlay_ifindex: u32,
    cluster: &Cluster,
) -> Result<Underlay, NetworkError> {
    let source = tunnel_source(place);
    let pods: BTreeSet<u32> = netlink
        .links()?
        .into_iter()
        .filter(|link| link.group == POD_GROUP)
        .map(|link| link.index)
        .collect();
    let networks = netlink
        .addresses()?
        .into_iter()
        .filter(|address| {
            address.global
                && !address.network.ip().is_loopback()
                && address.ifindex != overlay_ifindex
                && !pods.contains(&address.ifindex)
        })
        .map(|address| address.network)
        .collect();
    let mut ways = BTreeMap::new();
    for (name, record) in &cluster.nodes {
        let Some(endpoint) = tunnel_endpoint(record, source) else {
            continue;
        };
        if *name == options.node_name {
            continue;
        }
        match netlink.route_to(endpoint) {
            // A way through the overlay would lead a tunnel into itself.
            Ok(route) if route.ifindex != overlay_ifindex => {
                ways.insert(endpoint, (route.gateway.unwrap_or(endpoint), route.ifindex));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(peer = name, error = %error, "no route to a peer"),
        }
    }
    Ok(Underlay {
        node_name: options.node_name.clone(),
        node_ips: place.ips.clone(),
        tunnel_source: source,
        networks,
        ways,
        overlay_ifindex,
        cluster_cidrs: options.cluster_cidrs.clone(),
    })
}
