//! CHECK: what differs between the kernel and what ADD made.

use std::path::Path;

use super::{
    EndpointError,
    attach::{Kernel, entry_of},
    checkpoint::Checkpoint,
};
use crate::datapath::netlink::{Netlink, NetlinkError, route::Route};

impl Kernel {
    /// Compares all of an attachment with the kernel.
    ///
    /// Other plugins of a chain may add to what is there; only what is missing or changed counts.
    pub(super) fn check(&self, checkpoint: &Checkpoint, netns: Option<&Path>) -> Result<(), EndpointError> {
        let (_, pod) = self.open_pod(netns.unwrap_or(&checkpoint.netns), checkpoint)?;
        let mut differences = Vec::new();
        compare_pod_side(checkpoint, &pod, &mut differences)?;
        self.compare_node_side(checkpoint, &mut differences)?;
        if differences.is_empty() {
            Ok(())
        } else {
            Err(EndpointError::Differs {
                key: checkpoint.key.clone(),
                differences,
            })
        }
    }

    fn compare_node_side(
        &self,
        checkpoint: &Checkpoint,
        differences: &mut Vec<String>,
    ) -> Result<(), EndpointError> {
        let attached = &checkpoint.attached;
        let name = &attached.host_ifname;
        let netlink = &self.datapath.netlink;
        match netlink.link_by_name(name)? {
            None => differences.push(format!("host interface {name} is missing")),
            Some(link) => {
                if link.index != attached.host_ifindex {
                    differences.push(format!("host interface {name} is another one"));
                }
                if !link.up {
                    differences.push(format!("host interface {name} is down"));
                }
                if link.mac != Some(attached.host_mac) {
                    differences.push(format!(
                        "host interface {name} has another address than {}",
                        attached.host_mac
                    ));
                }
                let block = self.datapath.dataplane.filter_block();
                if !netlink.clsact_blocks()?.contains(&(link.index, block)) {
                    differences.push(format!("host interface {name} is not on filter block {block}"));
                }
            }
        }
        let wanted = entry_of(checkpoint);
        let entries = self.datapath.dataplane.endpoints()?;
        for ip in &attached.ips {
            match entries.iter().find(|(entry, _)| *entry == ip.ip()) {
                None => differences.push(format!("address {} is not in the datapath", ip.ip())),
                Some((_, entry)) if *entry != wanted => {
                    differences.push(format!("address {} leads elsewhere in the datapath", ip.ip()));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn compare_pod_side(
    checkpoint: &Checkpoint,
    netlink: &Netlink,
    differences: &mut Vec<String>,
) -> Result<(), NetlinkError> {
    let attached = &checkpoint.attached;
    let name = &checkpoint.key.ifname;
    let Some(link) = netlink.link_by_name(name)? else {
        differences.push(format!("interface {name} is missing"));
        return Ok(());
    };
    if link.index != checkpoint.pod_ifindex || link.peer != Some(attached.host_ifindex) {
        differences.push(format!("interface {name} is another one"));
    }
    if link.mac != Some(attached.pod_mac) {
        differences.push(format!(
            "interface {name} has another address than {}",
            attached.pod_mac
        ));
    }
    if link.mtu != attached.mtu {
        differences.push(format!(
            "interface {name} has MTU {} and not {}",
            link.mtu, attached.mtu
        ));
    }
    if !link.up {
        differences.push(format!("interface {name} is down"));
    }
    let addresses = netlink.addresses()?;
    for ip in &attached.ips {
        if !addresses
            .iter()
            .any(|found| found.ifindex == link.index && found.network == *ip)
        {
            differences.push(format!("interface {name} lacks address {ip}"));
        }
    }
    let routes = netlink.routes()?;
    for wanted in &attached.routes {
        let is_wanted = |found: &&Route| {
            found.ifindex == link.index
                && found.destination == wanted.destination
                && found.gateway == wanted.gateway
                && found.mtu == wanted.mtu
                && found.advmss == wanted.advmss
        };
        if routes.iter().find(is_wanted).is_none() {
            differences.push(format!(
                "the route to {} is missing or changed",
                wanted.destination
            ));
        }
    }
    Ok(())
}
