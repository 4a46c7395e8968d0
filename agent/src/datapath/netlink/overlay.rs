//! The overlay device: a VXLAN device that takes its tunnel keys from the programs.

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    Netlink, NetlinkError, Operation, Request,
    link::{Link, set_up, without_link_local},
};
use crate::mac::MacAddress;

/// What the overlay device must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverlaySpec<'a> {
    /// Its name.
    pub name: &'a str,
    /// The UDP port that it owns.
    pub port: u16,
    /// Its MTU: the largest packet that fits the tunnel.
    pub mtu: u32,
}

impl OverlaySpec<'_> {
    /// Whether a link is the wanted device in all that cannot be changed later.
    pub fn matches(&self, link: &Link) -> bool {
        link.name == self.name
            && link.mac == Some(MacAddress::OVERLAY)
            && link
                .vxlan
                .is_some_and(|vxlan| vxlan.collect_metadata && vxlan.port == self.port && !vxlan.learning)
    }
}

impl Netlink {
    /// Makes the overlay device, down.
    pub fn create_overlay(&self, spec: &OverlaySpec<'_>) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.flags = LinkFlags::Noarp;
        message.header.change_mask = LinkFlags::Noarp;
        message.attributes = vec![
            LinkAttribute::IfName(spec.name.to_owned()),
            LinkAttribute::Mtu(spec.mtu),
            // An address that is given at creation is one that udev and systemd leave alone.
            LinkAttribute::Address(MacAddress::OVERLAY.octets().to_vec()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::CollectMetadata(true),
                    InfoVxlan::Learning(false),
                    InfoVxlan::Port(spec.port),
                    InfoVxlan::UDPZeroCsumTX(true),
                    InfoVxlan::UDPZeroCsumRX(true),
                ])),
            ]),
        ];
        self.request(Request::new(
            Operation::new(
                "create overlay device",
                format_args!("{} on UDP port {}", spec.name, spec.port),
            ),
            NLM_F_CREATE | NLM_F_EXCL,
            RouteNetlinkMessage::NewLink(message),
        ))
    }

    /// Sets the overlay device up, without neighbour resolution.
    pub fn set_overlay_up(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut noarp = LinkMessage::default();
        noarp.header.index = index;
        noarp.header.flags = LinkFlags::Noarp;
        noarp.header.change_mask = LinkFlags::Noarp;
        let noarp = Request::new(
            Operation::new("turn off neighbour resolution of link", name),
            0,
            RouteNetlinkMessage::SetLink(noarp),
        );
        self.batch(&[noarp, without_link_local(name), set_up(index, name)])
            .map(drop)
    }
}
