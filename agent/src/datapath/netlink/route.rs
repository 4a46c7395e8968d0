//! Routes, and the question where a packet would go.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
        RouteType,
    },
};

use super::{Netlink, NetlinkError, Operation, Request, absent_is_fine, address::family_of};

/// The number by which Weft's routes on the node are known: whoever looks can see whose they are.
pub const PROTOCOL: u8 = 119;
/// The number of routes made at boot or by a tool; what a pod's routes carry, as other plugins' do.
const PROTOCOL_BOOT: u8 = 3;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNetwork,
    /// The device.
    pub ifindex: u32,
    /// The next hop; none for a destination on the link.
    pub gateway: Option<IpAddr>,
    /// The address that the node uses as source.
    pub source: Option<IpAddr>,
    /// The largest packet.
    pub mtu: Option<u32>,
    /// TCP's announced segment size.
    pub advmss: Option<u32>,
}

impl Route {
    /// A route to what is on the link.
    pub fn on_link(destination: IpNetwork, ifindex: u32) -> Self {
        Self {
            destination,
            ifindex,
            gateway: None,
            source: None,
            mtu: None,
            advmss: None,
        }
    }

    fn message(&self, protocol: u8) -> RouteMessage {
        let mut message = RouteMessage::default();
        let scope = match (self.gateway, self.destination) {
            (None, IpNetwork::V4(_)) => RouteScope::Link,
            _ => RouteScope::Universe,
        };
        message.header = RouteHeader {
            address_family: family_of(self.destination.ip()),
            destination_prefix_length: self.destination.prefix(),
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::from(protocol),
            scope,
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if self.destination.prefix() > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(self.destination.network().into()));
        }
        message.attributes.push(RouteAttribute::Oif(self.ifindex));
        message
            .attributes
            .extend(self.gateway.map(|ip| RouteAttribute::Gateway(ip.into())));
        message
            .attributes
            .extend(self.source.map(|ip| RouteAttribute::PrefSource(ip.into())));
        let metrics: Vec<_> = [
            self.mtu.map(RouteMetric::Mtu),
            self.advmss.map(RouteMetric::Advmss),
        ]
        .into_iter()
        .flatten()
        .collect();
        if !metrics.is_empty() {
            message.attributes.push(RouteAttribute::Metrics(metrics));
        }
        message
    }

    fn parse(message: &RouteMessage) -> Option<Self> {
        let mut route = Self::on_link(unspecified(message.header.address_family)?, 0);
        let mut destination = route.destination.ip();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(ip) => destination = ip_of(ip)?,
                RouteAttribute::Oif(index) => route.ifindex = *index,
                RouteAttribute::Gateway(ip) => route.gateway = ip_of(ip),
                RouteAttribute::PrefSource(ip) => route.source = ip_of(ip),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(mtu) => route.mtu = Some(*mtu),
                            RouteMetric::Advmss(advmss) => route.advmss = Some(*advmss),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        route.destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
        Some(route)
    }
}

fn unspecified(family: AddressFamily) -> Option<IpNetwork> {
    let ip = match family {
        AddressFamily::Inet => Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    IpNetwork::new(ip, 0).ok()
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

/// A route in a pod's netns; it must not be there yet.
pub(super) fn add_in_pod(route: &Route) -> Request {
    Request::new(
        Operation::new("add route to", route.destination),
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewRoute(route.message(PROTOCOL_BOOT)),
    )
}

/// A route in a pod's netns whose metrics may differ.
pub(super) fn replace_in_pod(route: &Route) -> Request {
    Request::new(
        Operation::new("change route to", route.destination),
        NLM_F_CREATE | NLM_F_REPLACE,
        RouteNetlinkMessage::NewRoute(route.message(PROTOCOL_BOOT)),
    )
}

impl Netlink {
    /// Adds a route of the node, or makes the existing one to this destination so.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.request(Request::new(
            Operation::new("set route to", route.destination),
            NLM_F_CREATE | NLM_F_REPLACE,
            RouteNetlinkMessage::NewRoute(route.message(PROTOCOL)),
        ))
    }

    /// Deletes a route of the node that Weft made.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let operation = Operation::new("delete route to", route.destination);
        let message = RouteNetlinkMessage::DelRoute(route.message(PROTOCOL));
        absent_is_fine(self.request(Request::new(operation, 0, message)))
    }

    /// The node's routes that Weft made.
    pub fn own_routes(&self) -> Result<Vec<Route>, NetlinkError> {
        self.main_table(|protocol| protocol == RouteProtocol::from(PROTOCOL))
    }

    /// The unicast routes of the main table, of both families.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        self.main_table(|_| true)
    }

    fn main_table(&self, wanted: impl Fn(RouteProtocol) -> bool) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let request = Request::new(
                Operation::new("list routes", ""),
                0,
                RouteNetlinkMessage::GetRoute(message),
            );
            routes.extend(
                self.dump(&request)?
                    .into_iter()
                    .filter_map(|answer| match answer {
                        RouteNetlinkMessage::NewRoute(message)
                            if message.header.table == RouteHeader::RT_TABLE_MAIN
                                && message.header.kind == RouteType::Unicast
                                && wanted(message.header.protocol) =>
                        {
                            Route::parse(&message)
                        }
                        _ => None,
                    }),
            );
        }
        Ok(routes)
    }

    /// The route that a packet of the node to this address would take.
    pub fn route_to(&self, ip: IpAddr) -> Result<Route, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family_of(ip);
        message.header.destination_prefix_length = if ip.is_ipv4() { 32 } else { 128 };
        message.attributes.push(RouteAttribute::Destination(ip.into()));
        let operation = Operation::new("look up the route to", ip);
        let answer = self.get(Request::new(
            operation.clone(),
            0,
            RouteNetlinkMessage::GetRoute(message),
        ))?;
        let route = match answer {
            RouteNetlinkMessage::NewRoute(message) => Route::parse(&message),
            _ => None,
        };
        route.ok_or(NetlinkError::Malformed {
            operation,
            reason: "it is no route".to_owned(),
        })
    }
}
