//! The kernel's side of an attachment: making it, mending it, undoing it. Everything here blocks.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    Attached, AttachmentKey, EndpointError, EndpointId, PodRef, PodRoute,
    checkpoint::{Checkpoint, Checkpoints, Phase, host_ifname},
    reaper::Reaper,
};
use crate::{
    datapath::{
        Datapath, POD_GROUP,
        maps::EndpointEntry,
        mtu::{Limits, MIN_MTU},
        netlink::{
            Netlink,
            pod::{PodSide, gateway_of, pod_routes},
            veth::VethSpec,
        },
        netns::{Netns, NetnsError},
    },
    mac::MacAddress,
};

/// What making and mending attachments needs.
pub(super) struct Kernel {
    pub(super) datapath: Arc<Datapath>,
    pub(super) checkpoints: Checkpoints,
    pub(super) reaper: Reaper,
    pub(super) boot_id: String,
}

/// An attachment that is to be made, its addresses leased.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) id: EndpointId,
    pub(super) key: AttachmentKey,
    pub(super) pod: Option<PodRef>,
    pub(super) network: Option<String>,
    pub(super) netns: PathBuf,
    pub(super) ips: Vec<IpAddr>,
    pub(super) mtu: Option<u32>,
}

/// What mending came to.
#[derive(Debug)]
pub(super) enum Mended {
    /// It is as it should be.
    Whole(Box<Checkpoint>),
    /// Its netns is gone, and so is it.
    Gone,
}

impl Kernel {
    /// Makes an attachment, or nothing.
    pub(super) fn attach(&self, plan: Plan) -> Result<Checkpoint, EndpointError> {
        let limits = self.datapath.limits();
        let mtu = device_mtu(plan.mtu, limits)?;
        let netns = self.datapath.netns.open(&plan.netns)?;
        let mut checkpoint = self.planned(plan, &netns, mtu, limits);
        self.checkpoints.save(&checkpoint)?;
        let outcome = self.build(&mut checkpoint, netns, limits).and_then(|()| {
            checkpoint.phase = Phase::Ready;
            Ok(self.checkpoints.save(&checkpoint)?)
        });
        match outcome {
            Ok(()) => Ok(checkpoint),
            Err(error) => {
                self.undo(&checkpoint);
                Err(error)
            }
        }
    }

    fn planned(&self, plan: Plan, netns: &Netns, mtu: u32, limits: Limits) -> Checkpoint {
        let Plan {
            id,
            key,
            pod,
            network,
            netns: path,
            ips,
            mtu: wanted_mtu,
        } = plan;
        // The Ethernet addresses derive from the first IP address: a pod with two keeps one device.
        let first = ips.first().copied().unwrap_or(IpAddr::from([0, 0, 0, 0]));
        let attached = Attached {
            id,
            ifname: key.ifname.clone(),
            ips: ips.iter().map(|ip| IpNetwork::from(*ip)).collect(),
            gateways: ips.iter().map(|ip| gateway_of(*ip)).collect(),
            host_ifname: host_ifname(&key),
            host_ifindex: 0,
            host_mac: MacAddress::of_host_end(first),
            pod_mac: MacAddress::of_pod(first),
            mtu,
            routes: routes(&ips, route_mtu(mtu, limits)),
        };
        Checkpoint {
            boot_id: self.boot_id.clone(),
            phase: Phase::Creating,
            key,
            pod,
            network,
            netns: path,
            netns_id: netns.id(),
            wanted_mtu,
            pod_ifindex: 0,
            attached,
        }
    }

    /// Makes all that the checkpoint says, noting the indexes in it.
    fn build(&self, checkpoint: &mut Checkpoint, netns: Netns, limits: Limits) -> Result<(), EndpointError> {
        let (netns, pod_netlink, ipv6_is_off) = self.datapath.netns.survey(netns)?;
        self.create_veth(checkpoint, &netns, limits)?;
        self.guard(checkpoint)?;
        self.announce(checkpoint)?;
        if ipv6_is_off && checkpoint.attached.ips.iter().any(IpNetwork::is_ipv6) {
            let name = format!("net/ipv6/conf/{}/disable_ipv6", checkpoint.key.ifname);
            self.datapath.netns.write_sysctl(netns, &name, "0")?;
        }
        pod_netlink.configure_pod(&pod_side(checkpoint, route_mtu(checkpoint.attached.mtu, limits)))?;
        Ok(())
    }

    fn create_veth(
        &self,
        checkpoint: &mut Checkpoint,
        netns: &Netns,
        limits: Limits,
    ) -> Result<(), EndpointError> {
        use std::os::fd::AsFd as _;
        let netlink = &self.datapath.netlink;
        let spec = VethSpec {
            host_ifname: &checkpoint.attached.host_ifname,
            pod_ifname: &checkpoint.key.ifname,
            host_mac: checkpoint.attached.host_mac,
            pod_mac: checkpoint.attached.pod_mac,
            mtu: checkpoint.attached.mtu,
            group: POD_GROUP,
            offload: limits.offload,
        };
        let mut made = netlink.create_veth(&spec, netns.as_fd());
        if matches!(&made, Err(error) if error.is_existing()) {
            // What is there may be on its way out.
            self.reaper.flush();
            self.remove_own_link(spec.host_ifname)?;
            made = netlink.create_veth(&spec, netns.as_fd());
        }
        let pair = made.map_err(|error| match error {
            error if error.is_existing() => EndpointError::InterfaceExists {
                netns: checkpoint.netns.clone(),
                ifname: checkpoint.key.ifname.clone(),
            },
            error => error.into(),
        })?;
        checkpoint.attached.host_ifindex = pair.host_ifindex;
        checkpoint.pod_ifindex = pair.pod_ifindex;
        Ok(())
    }

    /// Makes the pod's packets meet the programs. Before its end goes up: the first packet must meet them.
    fn guard(&self, checkpoint: &Checkpoint) -> Result<(), EndpointError> {
        let Attached {
            host_ifindex,
            host_ifname,
            ..
        } = &checkpoint.attached;
        let block = self.datapath.dataplane.filter_block();
        self.datapath
            .netlink
            .add_clsact(*host_ifindex, host_ifname, block)?;
        Ok(self.datapath.dataplane.ensure_filter()?)
    }

    /// Puts the pod's addresses in the tables of the programs.
    fn announce(&self, checkpoint: &Checkpoint) -> Result<(), EndpointError> {
        let entry = entry_of(checkpoint);
        for ip in &checkpoint.attached.ips {
            self.datapath.dataplane.upsert_endpoint(ip.ip(), &entry)?;
        }
        Ok(())
    }

    /// Takes back what there is of an attachment, in reverse, going on after failures. Whether all is gone.
    pub(super) fn undo(&self, checkpoint: &Checkpoint) -> bool {
        let mut steps: Vec<Result<(), EndpointError>> = Vec::new();
        steps.push(self.withdraw(checkpoint));
        let Attached {
            host_ifindex,
            host_ifname,
            ..
        } = &checkpoint.attached;
        steps.push(if *host_ifindex == 0 {
            self.remove_own_link(host_ifname)
        } else {
            self.datapath
                .netlink
                .delete_link(*host_ifindex, host_ifname)
                .map_err(Into::into)
        });
        if steps.iter().all(Result::is_ok) {
            // Last: while it is there, another agent will try again.
            steps.push(self.checkpoints.remove(&checkpoint.key).map_err(Into::into));
        }
        let mut clean = true;
        for error in steps.into_iter().filter_map(Result::err) {
            clean = false;
            let error = &error as &dyn std::error::Error;
            tracing::error!(attachment = %checkpoint.key, error, "attachment could not be undone whole");
        }
        clean
    }

    /// Takes an attachment's addresses from the tables: nothing flows from here on.
    fn withdraw(&self, checkpoint: &Checkpoint) -> Result<(), EndpointError> {
        for ip in &checkpoint.attached.ips {
            self.datapath.dataplane.remove_endpoint(ip.ip())?;
        }
        Ok(())
    }

    /// Ends an attachment. Its link goes later.
    pub(super) fn detach(&self, checkpoint: &Checkpoint) -> Result<(), EndpointError> {
        self.withdraw(checkpoint)?;
        self.checkpoints.remove(&checkpoint.key)?;
        self.reaper
            .delete(checkpoint.attached.host_ifindex, &checkpoint.attached.host_ifname);
        Ok(())
    }

    fn remove_own_link(&self, name: &str) -> Result<(), EndpointError> {
        let netlink = &self.datapath.netlink;
        match netlink.link_by_name(name)? {
            Some(link) if link.group == POD_GROUP => Ok(netlink.delete_link(link.index, name)?),
            _ => Ok(()),
        }
    }

    /// Makes an attachment what it should be, wherever it is not.
    pub(super) fn mend(&self, mut checkpoint: Checkpoint) -> Result<Mended, EndpointError> {
        let netlink = &self.datapath.netlink;
        let limits = self.datapath.limits();
        let mtu = device_mtu(checkpoint.wanted_mtu, limits).unwrap_or(limits.device_mtu);
        let Attached {
            host_ifname,
            host_ifindex,
            ..
        } = &checkpoint.attached;
        let link = netlink.link_by_name(host_ifname)?;
        let Some(link) = link.filter(|link| link.group == POD_GROUP && link.index == *host_ifindex) else {
            return self.rebuild(checkpoint, mtu, limits);
        };
        if !link.up {
            netlink.set_link_up(link.index, host_ifname)?;
        }
        let block = self.datapath.dataplane.filter_block();
        if !netlink.clsact_blocks()?.contains(&(link.index, block)) {
            netlink.delete_clsact(link.index, host_ifname)?;
            self.guard(&checkpoint)?;
        }
        self.announce(&checkpoint)?;
        if checkpoint.attached.mtu != mtu || sizes_differ(&checkpoint, route_mtu(mtu, limits)) {
            self.resize(&mut checkpoint, mtu, limits)?;
            self.checkpoints.save(&checkpoint)?;
        }
        Ok(Mended::Whole(Box::new(checkpoint)))
    }

    /// Makes the links anew: someone deleted them, or the netns is gone and they with it.
    fn rebuild(&self, mut checkpoint: Checkpoint, mtu: u32, limits: Limits) -> Result<Mended, EndpointError> {
        self.withdraw(&checkpoint)?;
        let netns = match self.datapath.netns.open(&checkpoint.netns) {
            Ok(netns) if netns.id() == checkpoint.netns_id => netns,
            Ok(_) | Err(NetnsError::Open(..) | NetnsError::NotNetns(_) | NetnsError::Own(_)) => {
                self.undo(&checkpoint);
                return Ok(Mended::Gone);
            }
            Err(error) => return Err(error.into()),
        };
        checkpoint.attached.mtu = mtu;
        checkpoint.attached.routes = routes(&ips(&checkpoint), route_mtu(mtu, limits));
        self.build(&mut checkpoint, netns, limits)?;
        self.checkpoints.save(&checkpoint)?;
        Ok(Mended::Whole(Box::new(checkpoint)))
    }

    /// Gives both ends and the pod's routes another size.
    fn resize(&self, checkpoint: &mut Checkpoint, mtu: u32, limits: Limits) -> Result<(), EndpointError> {
        let (_, pod_netlink) = self.open_pod(&checkpoint.netns, checkpoint)?;
        pod_netlink.set_link_mtu(checkpoint.pod_ifindex, &checkpoint.key.ifname, mtu)?;
        let Attached {
            host_ifname,
            host_ifindex,
            ..
        } = &checkpoint.attached;
        self.datapath
            .netlink
            .set_link_mtu(*host_ifindex, host_ifname, mtu)?;
        let route_mtu = route_mtu(mtu, limits);
        pod_netlink.refresh_pod_routes(&pod_side(checkpoint, route_mtu))?;
        checkpoint.attached.mtu = mtu;
        checkpoint.attached.routes = routes(&ips(checkpoint), route_mtu);
        Ok(())
    }

    /// A netlink socket in an attachment's netns, if that is still the one.
    pub(super) fn open_pod(
        &self,
        path: &Path,
        checkpoint: &Checkpoint,
    ) -> Result<(Netns, Netlink), EndpointError> {
        let netns = self.datapath.netns.open(path)?;
        if netns.id() != checkpoint.netns_id {
            return Err(EndpointError::Differs {
                key: checkpoint.key.clone(),
                differences: vec![format!("{} is another netns than at ADD", path.display())],
            });
        }
        Ok(self.datapath.netns.netlink(netns)?)
    }
}

/// The addresses of an attachment.
pub(super) fn ips(checkpoint: &Checkpoint) -> Vec<IpAddr> {
    checkpoint.attached.ips.iter().map(IpNetwork::ip).collect()
}

/// What the tables must hold of an attachment.
pub(super) fn entry_of(checkpoint: &Checkpoint) -> EndpointEntry {
    EndpointEntry {
        ifindex: checkpoint.attached.host_ifindex,
        endpoint_id: checkpoint.attached.id.0,
        pod_mac: checkpoint.attached.pod_mac.octets(),
        host_mac: checkpoint.attached.host_mac.octets(),
    }
}

/// Whether an attachment's sizes are not those of the node.
pub(super) fn is_outsized(checkpoint: &Checkpoint, limits: Limits) -> bool {
    device_mtu(checkpoint.wanted_mtu, limits)
        .is_ok_and(|mtu| checkpoint.attached.mtu != mtu || sizes_differ(checkpoint, route_mtu(mtu, limits)))
}

fn sizes_differ(checkpoint: &Checkpoint, route_mtu: u32) -> bool {
    checkpoint
        .attached
        .routes
        .iter()
        .any(|route| route.mtu.is_some_and(|mtu| mtu != route_mtu))
}

fn device_mtu(wanted: Option<u32>, limits: Limits) -> Result<u32, EndpointError> {
    match wanted {
        None => Ok(limits.device_mtu),
        Some(mtu) if (MIN_MTU..=limits.device_mtu).contains(&mtu) => Ok(mtu),
        Some(wanted) => Err(EndpointError::InvalidMtu {
            wanted,
            underlay: limits.device_mtu,
        }),
    }
}

/// A pod with a small device has no larger packets for its routes either.
fn route_mtu(device_mtu: u32, limits: Limits) -> u32 {
    limits.tunnel_mtu.min(device_mtu)
}

fn pod_side(checkpoint: &Checkpoint, route_mtu: u32) -> PodSide<'_> {
    PodSide {
        ifname: &checkpoint.key.ifname,
        ifindex: checkpoint.pod_ifindex,
        ips: &checkpoint.attached.ips,
        gateway_mac: checkpoint.attached.host_mac,
        route_mtu,
    }
}

fn routes(ips: &[IpAddr], route_mtu: u32) -> Vec<PodRoute> {
    ips.iter()
        .flat_map(|ip| pod_routes(*ip, 0, route_mtu))
        .map(|route| PodRoute {
            destination: route.destination,
            gateway: route.gateway,
            mtu: route.mtu,
            advmss: route.advmss,
        })
        .collect()
}
