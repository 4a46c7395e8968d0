//! All of the pod's side in one message: devices up, addresses, routes, and the gateway's address, which never has to be
//! asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{
    Netlink, NetlinkError, Operation, Request,
    address::{self, family_of},
    link::set_up,
    route::{Route, add_in_pod, replace_in_pod},
};
use crate::mac::MacAddress;

/// The gateway of every pod. It is the node's end of the veth and no address of any interface.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// The same for IPv6.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Index of the loopback device in every netns.
const LOOPBACK_IFINDEX: u32 = 1;

/// The gateway for a pod's address.
pub fn gateway_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

/// What a pod's interface gets.
#[derive(Debug, Clone)]
pub struct PodSide<'a> {
    /// The interface's name.
    pub ifname: &'a str,
    /// Its index in the pod's netns.
    pub ifindex: u32,
    /// Its addresses.
    pub ips: &'a [IpNetwork],
    /// The Ethernet address of the gateway.
    pub gateway_mac: MacAddress,
    /// The largest packet that may leave the node.
    pub route_mtu: u32,
}

impl PodSide<'_> {
    /// The routes for one address: the gateway is on the link, the rest behind it.
    pub fn routes(&self, ip: IpAddr) -> [Route; 2] {
        pod_routes(ip, self.ifindex, self.route_mtu)
    }

    fn neighbour(&self, ip: IpAddr) -> Request {
        let gateway = gateway_of(ip);
        let mut message = NeighbourMessage::default();
        message.header.family = family_of(gateway);
        message.header.ifindex = self.ifindex;
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::Destination(match gateway {
                IpAddr::V4(ip) => NeighbourAddress::Inet(ip),
                IpAddr::V6(ip) => NeighbourAddress::Inet6(ip),
            }));
        let mac = self.gateway_mac.octets().to_vec();
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac));
        Request::new(
            Operation::new("add neighbour", gateway),
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewNeighbour(message),
        )
    }
}

/// The routes that a pod with this address has.
pub fn pod_routes(ip: IpAddr, ifindex: u32, route_mtu: u32) -> [Route; 2] {
    let gateway = gateway_of(ip);
    let (default, headers) = match ip {
        IpAddr::V4(_) => (IpAddr::from(Ipv4Addr::UNSPECIFIED), 40),
        IpAddr::V6(_) => (IpAddr::from(Ipv6Addr::UNSPECIFIED), 60),
    };
    let mut default = Route::on_link(network(default, 0), ifindex);
    default.gateway = Some(gateway);
    default.mtu = Some(route_mtu);
    default.advmss = Some(route_mtu - headers);
    let host_bits = if gateway.is_ipv4() { 32 } else { 128 };
    [Route::on_link(network(gateway, host_bits), ifindex), default]
}

fn network(ip: IpAddr, prefix: u8) -> IpNetwork {
    IpNetwork::new(ip, prefix).unwrap_or_else(|_| ip.into())
}

/// Whether a route's destination is everything.
pub fn is_default(route: &Route) -> bool {
    route.destination.prefix() == 0
}

impl Netlink {
    /// Configures a pod's interface and sets it up. The socket is one of the pod's netns.
    pub fn configure_pod(&self, side: &PodSide<'_>) -> Result<(), NetlinkError> {
        let mut requests = vec![set_up(LOOPBACK_IFINDEX, "lo"), set_up(side.ifindex, side.ifname)];
        for ip in side.ips {
            requests.push(address::add(side.ifindex, *ip));
            requests.extend(side.routes(ip.ip()).iter().map(add_in_pod));
            requests.push(side.neighbour(ip.ip()));
        }
        self.batch(&requests).map(drop)
    }

    /// Gives the routes of a pod's interface a changed MTU, and puts back what is missing.
    pub fn refresh_pod_routes(&self, side: &PodSide<'_>) -> Result<(), NetlinkError> {
        let routes = side.ips.iter().flat_map(|ip| side.routes(ip.ip()));
        let mut requests: Vec<_> = routes.map(|route| replace_in_pod(&route)).collect();
        requests.extend(side.ips.iter().map(|ip| side.neighbour(ip.ip())));
        self.batch(&requests).map(drop)
    }
}
