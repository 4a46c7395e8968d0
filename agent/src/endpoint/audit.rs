//! Looks for what is amiss with all attachments at once: the cheap look before any mending.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    AttachmentKey, EndpointError,
    attach::{Kernel, entry_of, ips, is_outsized},
    checkpoint::Checkpoint,
};
use crate::datapath::{POD_GROUP, maps::EndpointEntry, mtu::Limits, netlink::link::Link};

/// What an audit found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Attachments to be mended.
    pub(super) broken: Vec<AttachmentKey>,
    /// Links that carry Weft's mark and are no attachment's.
    pub(super) orphan_links: Vec<(u32, String)>,
    /// Addresses in the tables that are no attachment's.
    pub(super) orphan_entries: Vec<IpAddr>,
}

impl Kernel {
    /// Compares the attachments that are ready with the node's links, qdiscs and tables.
    pub(super) fn audit(&self, ready: &[Checkpoint]) -> Result<Findings, EndpointError> {
        let links = self.datapath.netlink.links()?;
        let blocks = self.datapath.netlink.clsact_blocks()?.into_iter().collect();
        let entries = self.datapath.dataplane.endpoints()?.into_iter().collect();
        let block = self.datapath.dataplane.filter_block();
        Ok(compare(
            ready,
            &links,
            &blocks,
            block,
            &entries,
            self.datapath.limits(),
        ))
    }
}

fn compare(
    ready: &[Checkpoint],
    links: &[Link],
    blocks: &BTreeMap<u32, u32>,
    block: u32,
    entries: &BTreeMap<IpAddr, EndpointEntry>,
    limits: Limits,
) -> Findings {
    let links: BTreeMap<&str, &Link> = links
        .iter()
        .filter(|link| link.group == POD_GROUP)
        .map(|link| (link.name.as_str(), link))
        .collect();
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut findings = Findings::default();
    for checkpoint in ready {
        let attached = &checkpoint.attached;
        names.insert(attached.host_ifname.as_str());
        addresses.extend(ips(checkpoint));
        let wanted = entry_of(checkpoint);
        let link_is_whole = links
            .get(attached.host_ifname.as_str())
            .is_some_and(|link| link.index == attached.host_ifindex && link.up);
        let is_whole = link_is_whole
            && blocks.get(&attached.host_ifindex) == Some(&block)
            && ips(checkpoint).iter().all(|ip| entries.get(ip) == Some(&wanted))
            && !is_outsized(checkpoint, limits);
        if !is_whole {
            findings.broken.push(checkpoint.key.clone());
        }
    }
    findings.orphan_links = links
        .values()
        .filter(|link| !names.contains(link.name.as_str()))
        .map(|link| (link.index, link.name.clone()))
        .collect();
    findings.orphan_entries = entries
        .keys()
        .filter(|ip| !addresses.contains(ip))
        .copied()
        .collect();
    findings
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{
        endpoint::{Attached, EndpointId, checkpoint::Phase},
        mac::MacAddress,
    };

    const BLOCK: u32 = 7;
    const LIMITS: Limits = Limits {
        device_mtu: 1500,
        tunnel_mtu: 1450,
        offload: crate::datapath::netlink::link::OffloadLimits {
            gso: None,
            gro: None,
            gso_ipv4: None,
            gro_ipv4: None,
        },
    };

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            boot_id: String::new(),
            phase: Phase::Ready,
            key: AttachmentKey::new("a", "eth0"),
            pod: None,
            network: None,
            netns: PathBuf::from("/run/netns/a"),
            netns_id: serde_json::from_str(r#"{"device":1,"inode":2}"#).unwrap(),
            wanted_mtu: None,
            pod_ifindex: 2,
            attached: Attached {
                id: EndpointId(1),
                ifname: "eth0".to_owned(),
                ips: vec!["10.0.0.1/32".parse().unwrap()],
                gateways: vec!["169.254.1.1".parse().unwrap()],
                host_ifname: "wva".to_owned(),
                host_ifindex: 9,
                host_mac: MacAddress::default(),
                pod_mac: MacAddress::default(),
                mtu: 1500,
                routes: Vec::new(),
            },
        }
    }

    fn link() -> Link {
        Link {
            index: 9,
            name: "wva".to_owned(),
            up: true,
            group: POD_GROUP,
            ..Link::default()
        }
    }

    fn look(links: &[Link], blocks: &[(u32, u32)], entries: &[(IpAddr, EndpointEntry)]) -> Findings {
        let blocks = blocks.iter().copied().collect();
        let entries = entries.iter().copied().collect();
        compare(&[checkpoint()], links, &blocks, BLOCK, &entries, LIMITS)
    }

    fn entry() -> (IpAddr, EndpointEntry) {
        ("10.0.0.1".parse().unwrap(), entry_of(&checkpoint()))
    }

    #[test]
    fn what_is_whole_is_left_alone() {
        assert_eq!(look(&[link()], &[(9, BLOCK)], &[entry()]), Findings::default());
    }

    #[test]
    fn each_missing_part_is_found() {
        let broken = vec![checkpoint().key];
        assert_eq!(look(&[], &[(9, BLOCK)], &[entry()]).broken, broken, "link");
        assert_eq!(
            look(&[Link { index: 8, ..link() }], &[(9, BLOCK)], &[entry()]).broken,
            broken,
            "another link"
        );
        assert_eq!(
            look(&[Link { up: false, ..link() }], &[(9, BLOCK)], &[entry()]).broken,
            broken,
            "down"
        );
        assert_eq!(look(&[link()], &[], &[entry()]).broken, broken, "qdisc");
        assert_eq!(look(&[link()], &[(9, 0)], &[entry()]).broken, broken, "block");
        assert_eq!(look(&[link()], &[(9, BLOCK)], &[]).broken, broken, "entry");
        let elsewhere = EndpointEntry {
            ifindex: 3,
            ..entry().1
        };
        assert_eq!(
            look(&[link()], &[(9, BLOCK)], &[(entry().0, elsewhere)]).broken,
            broken,
            "wrong entry"
        );
    }

    #[test]
    fn what_is_nobodys_is_found_and_what_is_not_ours_is_not() {
        let stray = Link {
            index: 11,
            name: "wvb".to_owned(),
            group: POD_GROUP,
            ..Link::default()
        };
        let foreign = Link {
            index: 12,
            name: "wvc".to_owned(),
            ..Link::default()
        };
        let lost = ("10.0.0.9".parse().unwrap(), entry().1);
        let findings = look(&[link(), stray, foreign], &[(9, BLOCK)], &[entry(), lost]);
        assert_eq!(findings.broken, []);
        assert_eq!(findings.orphan_links, [(11, "wvb".to_owned())]);
        assert_eq!(findings.orphan_entries, [lost.0]);
    }
}
