//! IP addresses of links.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
};

use super::{Netlink, NetlinkError, Operation, Request};

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkAddress {
    /// The link.
    pub ifindex: u32,
    /// The address and the prefix that it is in.
    pub network: IpNetwork,
    /// Whether it may be used beyond the link.
    pub global: bool,
}

/// The kernel's family of an address.
pub(super) fn family_of(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(super) fn add(ifindex: u32, ip: IpNetwork) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = family_of(ip.ip());
    message.header.prefix_len = ip.prefix();
    message.header.index = ifindex;
    // Nobody else can have a pod's address, and a pod must not wait a second for the kernel to find that out.
    message.header.flags = AddressHeaderFlags::Nodad;
    message.attributes.push(AddressAttribute::Local(ip.ip()));
    message.attributes.push(AddressAttribute::Address(ip.ip()));
    message
        .attributes
        .push(AddressAttribute::Flags(AddressFlags::Nodad));
    let operation = Operation::new("add address", ip);
    Request::new(
        operation,
        NLM_F_CREATE | NLM_F_EXCL,
        RouteNetlinkMessage::NewAddress(message),
    )
}

impl Netlink {
    /// All addresses of the netns.
    pub fn addresses(&self) -> Result<Vec<LinkAddress>, NetlinkError> {
        let request = Request::new(
            Operation::new("list addresses", ""),
            0,
            RouteNetlinkMessage::GetAddress(AddressMessage::default()),
        );
        Ok(self
            .dump(&request)?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewAddress(message) => parse(&message),
                _ => None,
            })
            .collect())
    }
}

fn parse(message: &AddressMessage) -> Option<LinkAddress> {
    let mut address = None;
    let mut local = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            _ => {}
        }
    }
    // On a point-to-point link `address` is the far end; `local` is always this one.
    Some(LinkAddress {
        ifindex: message.header.index,
        network: IpNetwork::new(local.or(address)?, message.header.prefix_len).ok()?,
        global: message.header.scope == AddressScope::Universe,
    })
}
