//! The veth pair of an attachment, its far end made in the pod's netns at once.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    Netlink, NetlinkError, Operation, Request,
    link::{Link, OffloadLimits, get_by_name, without_link_local},
};
use crate::mac::MacAddress;

/// A veth pair to be made.
#[derive(Debug, Clone)]
pub struct VethSpec<'a> {
    /// The name of the node's end.
    pub host_ifname: &'a str,
    /// The name of the pod's end.
    pub pod_ifname: &'a str,
    /// The address of the node's end.
    pub host_mac: MacAddress,
    /// The address of the pod's end.
    pub pod_mac: MacAddress,
    /// The MTU of both.
    pub mtu: u32,
    /// The group of the node's end.
    pub group: u32,
    /// The offload limits of both.
    pub offload: OffloadLimits,
}

/// The ends of a veth pair that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VethPair {
    /// Index of the node's end, in the node's netns.
    pub host_ifindex: u32,
    /// Index of the pod's end, in the pod's netns.
    pub pod_ifindex: u32,
}

impl Netlink {
    /// Makes a veth pair with the pod's end in `netns`. The node's end is up, the pod's is down.
    pub fn create_veth(&self, spec: &VethSpec<'_>, netns: BorrowedFd<'_>) -> Result<VethPair, NetlinkError> {
        let mut peer = LinkMessage::default();
        peer.attributes = vec![
            LinkAttribute::IfName(spec.pod_ifname.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Address(spec.pod_mac.octets().to_vec()),
            LinkAttribute::NetNsFd(netns.as_raw_fd()),
        ];
        peer.attributes.extend(spec.offload.attributes());

        let mut host = LinkMessage::default();
        host.header.flags = LinkFlags::Up;
        host.header.change_mask = LinkFlags::Up;
        host.attributes = vec![
            LinkAttribute::IfName(spec.host_ifname.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            LinkAttribute::Address(spec.host_mac.octets().to_vec()),
            LinkAttribute::Group(spec.group),
        ];
        host.attributes.extend(spec.offload.attributes());
        host.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));

        let operation = Operation::new(
            "create veth",
            format_args!("{} with peer {}", spec.host_ifname, spec.pod_ifname),
        );
        let create = Request::new(
            operation,
            NLM_F_CREATE | NLM_F_EXCL,
            RouteNetlinkMessage::NewLink(host),
        );
        // The pod's end is down, so there is no carrier and no address is made yet. The answer to the look-up names both ends: a veth's link is its peer.
        let answers = self.batch(&[
            create,
            without_link_local(spec.host_ifname),
            get_by_name(spec.host_ifname),
        ])?;
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        });
        match link {
            Some(Link {
                index,
                peer: Some(peer),
                ..
            }) => Ok(VethPair {
                host_ifindex: index,
                pod_ifindex: peer,
            }),
            _ => Err(NetlinkError::Malformed {
                operation: Operation::new("look up link", spec.host_ifname),
                reason: "it names no peer".to_owned(),
            }),
        }
    }
}
