//! The queueing discipline that makes a pod's packets meet the node's shared filter block.

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL, Nla};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcHandle, TcMessage},
};

use super::{Netlink, NetlinkError, Operation, Request};

/// `TC_H_CLSACT`: the parent of a clsact qdisc.
const CLSACT_PARENT: u32 = 0xFFFF_FFF1;
/// The handle that the kernel gives every clsact qdisc.
const CLSACT_HANDLE: u32 = 0xFFFF_0000;
const CLSACT_KIND: &str = "clsact";
/// The attribute for the shared block of the ingress side, which `netlink-packet-route` does not know.
const TCA_INGRESS_BLOCK: u16 = 13;

fn clsact(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::default();
    message.header.index = ifindex.cast_signed();
    message.header.parent = TcHandle::from(CLSACT_PARENT);
    message.header.handle = TcHandle::from(CLSACT_HANDLE);
    message.attributes.push(TcAttribute::Kind(CLSACT_KIND.to_owned()));
    message
}

fn ingress_block(message: &TcMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Other(nla) if nla.kind() == TCA_INGRESS_BLOCK => {
            let mut bytes = vec![0; nla.value_len()];
            nla.emit_value(&mut bytes);
            Some(u32::from_ne_bytes(bytes.try_into().ok()?))
        }
        _ => None,
    })
}

impl Netlink {
    /// Puts a clsact qdisc on a device whose ingress side is the shared filter block.
    pub fn add_clsact(&self, ifindex: u32, name: &str, block: u32) -> Result<(), NetlinkError> {
        let mut message = clsact(ifindex);
        let block = DefaultNla::new(TCA_INGRESS_BLOCK, block.to_ne_bytes().to_vec());
        message.attributes.push(TcAttribute::Other(block));
        self.request(Request::new(
            Operation::new("add clsact to link", name),
            NLM_F_CREATE | NLM_F_EXCL,
            RouteNetlinkMessage::NewQueueDiscipline(message),
        ))
    }

    /// Takes the clsact qdisc off a device, and with it whatever filters it has.
    pub fn delete_clsact(&self, ifindex: u32, name: &str) -> Result<(), NetlinkError> {
        let operation = Operation::new("delete clsact of link", name);
        let message = RouteNetlinkMessage::DelQueueDiscipline(clsact(ifindex));
        match self.request(Request::new(operation, 0, message)) {
            // The kernel says "invalid" for a device that has none.
            Err(error) if error.is_absent() || error.errno() == Some(libc::EINVAL) => Ok(()),
            other => other,
        }
    }

    /// The devices with a clsact qdisc, and the filter block of its ingress side (0 for none).
    pub fn clsact_blocks(&self) -> Result<Vec<(u32, u32)>, NetlinkError> {
        let request = Request::new(
            Operation::new("list qdiscs", ""),
            0,
            RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()),
        );
        Ok(self
            .dump(&request)?
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewQueueDiscipline(message)
                    if message
                        .attributes
                        .contains(&TcAttribute::Kind(CLSACT_KIND.to_owned())) =>
                {
                    let ifindex = message.header.index.cast_unsigned();
                    Some((ifindex, ingress_block(&message).unwrap_or(0)))
                }
                _ => None,
            })
            .collect())
    }
}
