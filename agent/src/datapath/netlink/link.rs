//! Links: what there is, and the changes that are not the making of one.

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
};

use super::{Netlink, NetlinkError, Operation, Request, absent_is_fine};
use crate::mac::MacAddress;

/// The largest packets that a device hands to the next one; devices on a path should agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadLimits {
    /// Send side, IPv6 and below 64 KiB also IPv4.
    pub gso: Option<u32>,
    /// Receive side.
    pub gro: Option<u32>,
    /// Send side, IPv4 above 64 KiB.
    pub gso_ipv4: Option<u32>,
    /// Receive side, IPv4.
    pub gro_ipv4: Option<u32>,
}

impl OffloadLimits {
    pub(super) fn attributes(self) -> impl Iterator<Item = LinkAttribute> {
        let Self {
            gso,
            gro,
            gso_ipv4,
            gro_ipv4,
        } = self;
        [
            gso.map(LinkAttribute::GsoMaxSize),
            gro.map(LinkAttribute::GroMaxSize),
            gso_ipv4.map(LinkAttribute::GsoIpv4MaxSize),
            gro_ipv4.map(LinkAttribute::GroIpv4MaxSize),
        ]
        .into_iter()
        .flatten()
    }
}

/// What a VXLAN device was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VxlanSettings {
    /// Whether tunnel keys come with each packet.
    pub collect_metadata: bool,
    /// Its UDP port.
    pub port: u16,
    /// Whether it learns addresses.
    pub learning: bool,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The kind of virtual device (`veth`, `vxlan`); none for a real one.
    pub kind: Option<String>,
    /// Its MTU.
    pub mtu: u32,
    /// Its Ethernet address.
    pub mac: Option<MacAddress>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it is set not to resolve neighbours.
    pub noarp: bool,
    /// Its group, the mark that Weft puts on pods' veths.
    pub group: u32,
    /// The other end's index, of a veth.
    pub peer: Option<u32>,
    /// Its offload limits.
    pub offload: OffloadLimits,
    /// Of a VXLAN device.
    pub vxlan: Option<VxlanSettings>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            noarp: message.header.flags.contains(LinkFlags::Noarp),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => {
                    link.mac = <[u8; 6]>::try_from(bytes).ok().map(MacAddress::new);
                }
                LinkAttribute::Group(group) => link.group = group,
                LinkAttribute::Link(peer) => link.peer = Some(peer),
                LinkAttribute::GsoMaxSize(bytes) => link.offload.gso = Some(bytes),
                LinkAttribute::GroMaxSize(bytes) => link.offload.gro = Some(bytes),
                LinkAttribute::GsoIpv4MaxSize(bytes) => link.offload.gso_ipv4 = Some(bytes),
                LinkAttribute::GroIpv4MaxSize(bytes) => link.offload.gro_ipv4 = Some(bytes),
                LinkAttribute::LinkInfo(infos) => link.note_infos(infos),
                _ => {}
            }
        }
        link
    }
}

impl Link {
    fn note_infos(&mut self, infos: Vec<LinkInfo>) {
        for info in infos {
            match info {
                LinkInfo::Kind(kind) => self.kind = Some(kind_name(&kind)),
                LinkInfo::Data(InfoData::Vxlan(data)) => {
                    let mut settings = VxlanSettings::default();
                    for item in data {
                        match item {
                            InfoVxlan::CollectMetadata(on) => settings.collect_metadata = on,
                            InfoVxlan::Port(port) => settings.port = port,
                            InfoVxlan::Learning(on) => settings.learning = on,
                            _ => {}
                        }
                    }
                    self.vxlan = Some(settings);
                }
                _ => {}
            }
        }
    }
}

fn kind_name(kind: &InfoKind) -> String {
    match kind {
        InfoKind::Veth => "veth".to_owned(),
        InfoKind::Vxlan => "vxlan".to_owned(),
        InfoKind::Other(name) => name.clone(),
        other => format!("{other:?}").to_lowercase(),
    }
}

pub(super) fn get_by_name(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Request::new(
        Operation::new("look up link", name),
        0,
        RouteNetlinkMessage::GetLink(message),
    )
}

fn found(answer: Result<RouteNetlinkMessage, NetlinkError>) -> Result<Option<Link>, NetlinkError> {
    match answer {
        Ok(RouteNetlinkMessage::NewLink(message)) => Ok(Some(message.into())),
        Ok(_) => Ok(None),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn change(index: u32, name: &str, verb: &'static str, attribute: LinkAttribute) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(attribute);
    Request::new(
        Operation::new(verb, name),
        0,
        RouteNetlinkMessage::SetLink(message),
    )
}

/// Keeps a device from giving itself a link-local address, which would only make noise where the node's IP stack has
/// no business. The kernel takes this only for a device that exists, and not at all without IPv6.
pub(super) fn without_link_local(name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]),
    ];
    let operation = Operation::new("turn off link-local addresses of link", name);
    Request::new(operation, 0, RouteNetlinkMessage::SetLink(message)).may_fail()
}

pub(super) fn set_up(index: u32, name: &str) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Request::new(
        Operation::new("set up link", name),
        0,
        RouteNetlinkMessage::SetLink(message),
    )
}

impl Netlink {
    /// The link of this name.
    pub fn link_by_name(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        found(self.get(get_by_name(name)))
    }

    /// The link with this index.
    pub fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let operation = Operation::new("look up link", index);
        found(self.get(Request::new(operation, 0, RouteNetlinkMessage::GetLink(message))))
    }

    /// All links of the netns.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.interface_family = AddressFamily::Unspec;
        let request = Request::new(
            Operation::new("list links", ""),
            0,
            RouteNetlinkMessage::GetLink(message),
        );
        Ok(self
            .dump(&request)?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(message.into()),
                _ => None,
            })
            .collect())
    }

    /// Sets a link up.
    pub fn set_link_up(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        self.request(set_up(index, name))
    }

    /// Changes the MTU of a link.
    pub fn set_link_mtu(&self, index: u32, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        self.request(change(
            index,
            name,
            "set the MTU of link",
            LinkAttribute::Mtu(mtu),
        ))
    }

    /// Deletes a link. One that is not there counts as deleted.
    pub fn delete_link(&self, index: u32, name: &str) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let operation = Operation::new("delete link", name);
        absent_is_fine(self.request(Request::new(operation, 0, RouteNetlinkMessage::DelLink(message))))
    }

    /// Moves links to a group, then deletes the group: the kernel waits for its readers once, not once a link.
    pub fn delete_links(&self, links: &[(u32, String)], group: u32) -> Result<(), NetlinkError> {
        for (index, name) in links {
            let request = change(
                *index,
                name,
                "mark for deletion link",
                LinkAttribute::Group(group),
            );
            absent_is_fine(self.request(request))?;
        }
        self.delete_link_group(group)
    }

    /// Deletes all links of a group.
    pub fn delete_link_group(&self, group: u32) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::Group(group));
        let operation = Operation::new("delete links of group", group);
        absent_is_fine(self.request(Request::new(operation, 0, RouteNetlinkMessage::DelLink(message))))
    }
}
