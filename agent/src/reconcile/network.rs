//! The node's own side of the pod network: overlay device, routes, settings, peers, masquerading. Everything here blocks.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use ipnetwork::IpNetwork;

use super::{
    diff,
    place::{NodePlace, find_place, survey, tunnel_source},
};
use crate::{
    config::{Config, Encap},
    datapath::{
        Datapath, DatapathError,
        bpffs::{self, BpffsError},
        maps::{EncapMode, NodeSettings},
        mtu::{Limits, MIN_MTU},
        netlink::{Netlink, NetlinkError, link::Link, overlay::OverlaySpec},
        nftables::{Masquerade, NftablesError},
        programs::{Dataplane, DataplaneError, DataplaneOptions, Device},
        selftest::{SelfTest, self_test},
        sysctl::{self, Former, SysctlError, Sysctls},
    },
    desired::{self, Cluster, Conflict, Desired},
};

/// Why the node's network is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The underlay cannot be told.
    #[error("no default route tells which device is the underlay; name it with --underlay-interface")]
    NoUnderlay,
    /// The named underlay device is not there.
    #[error("underlay interface {0} does not exist")]
    UnderlayMissing(String),
    /// The node has no address.
    #[error("interface {0} has no address for the node; give one with --node-ip")]
    NoAddress(String),
    /// The given address is on no device.
    #[error("no interface has the node's address {0}")]
    AddressMissing(IpAddr),
    /// Another device has the overlay's name.
    #[error(
        "interface {0} exists and is no overlay of Weft; remove it or choose another --overlay-interface"
    )]
    OverlayTaken(String),
    /// Packets on the underlay are too small for a tunnel.
    #[error("underlay interface {name} has MTU {mtu}, which leaves less than {MIN_MTU} bytes in the tunnel")]
    UnderlayMtu {
        /// The device.
        name: String,
        /// Its MTU.
        mtu: u32,
    },
    /// The node's own pod CIDR cannot be served.
    #[error("{0}")]
    Conflict(Box<Conflict>),
    /// The kernel refused.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// No BPF file system.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// The programs cannot be loaded or their tables written.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The datapath cannot be set up.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// A setting cannot be made.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The masquerading cannot be set up.
    #[error(transparent)]
    Nftables(#[from] NftablesError),
}

/// What the network is set up with.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// The node's name.
    pub node_name: String,
    /// The node's addresses, if they were given.
    pub node_ips: Vec<IpAddr>,
    /// The underlay device, if it was given.
    pub underlay: Option<String>,
    /// The overlay device.
    pub overlay: String,
    /// The network identifier.
    pub vni: u32,
    /// The tunnel's port.
    pub tunnel_port: u16,
    /// Who writes the tunnel header.
    pub encap: Encap,
    /// The shared filter block.
    pub filter_block: u32,
    /// Cluster CIDRs, if they were given.
    pub cluster_cidrs: Vec<IpNetwork>,
    /// The BPF file system.
    pub bpffs: PathBuf,
    /// Where former settings are recorded.
    pub sysctl_record: PathBuf,
}

impl From<&Config> for NetworkOptions {
    fn from(config: &Config) -> Self {
        Self {
            node_name: config.node_name.clone(),
            node_ips: [
                config.node_ipv4.map(IpAddr::from),
                config.node_ipv6.map(IpAddr::from),
            ]
            .into_iter()
            .flatten()
            .collect(),
            underlay: config.underlay_interface.clone(),
            overlay: config.overlay_interface.clone(),
            vni: config.vni,
            tunnel_port: config.tunnel_port,
            encap: config.encap,
            filter_block: config.filter_block,
            cluster_cidrs: config.cluster_cidrs.clone(),
            bpffs: config.bpffs_root.clone(),
            sysctl_record: sysctl_record(&config.state_dir),
        }
    }
}

/// Where former settings are recorded, under the state directory.
pub fn sysctl_record(state_dir: &Path) -> PathBuf {
    state_dir.join("sysctl.json")
}

/// What one pass found and did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// What was put right, one line each.
    pub repairs: Vec<String>,
    /// Pod CIDRs that are left out.
    pub conflicts: Vec<Conflict>,
    /// Nodes that cannot be reached, and why.
    pub unreachable: Vec<(String, &'static str)>,
    /// Whether pods' sizes changed.
    pub resized: bool,
}

/// The owner of the node's side.
pub struct Network {
    options: NetworkOptions,
    datapath: Arc<Datapath>,
    sysctls: Sysctls,
    mode: SelfTest,
    settings: NodeSettings,
    place: NodePlace,
}

impl Network {
    /// Sets up what pods need, up to the programs. An existing datapath is adopted.
    pub fn bring_up(options: NetworkOptions, cluster: &Cluster) -> Result<Self, NetworkError> {
        let netlink = Netlink::open()?;
        let place = find_place(&netlink, &options)?;
        let limits = limits(&place)?;
        let underlay = survey(&netlink, &options, &place, 0, cluster)?;
        if let Some(conflict) = desired::own_conflicts(cluster, &underlay).into_iter().next() {
            return Err(NetworkError::Conflict(Box::new(conflict)));
        }
        bpffs::ensure(&options.bpffs)?;
        let overlay = ensure_overlay(&netlink, &options, limits)?.0;
        let mode = choose_mode(options.encap, &options.bpffs);
        let limits = limits.carried_by(mode.encap);
        let settings = settings(&options, &place, &overlay, limits, &mode, Vec::new());
        let dataplane = Dataplane::open(&DataplaneOptions {
            bpffs: options.bpffs.clone(),
            underlay: Device {
                name: place.underlay.name.clone(),
                ifindex: place.underlay.index,
            },
            overlay: Device {
                name: overlay.name.clone(),
                ifindex: overlay.index,
            },
            filter_block: options.filter_block,
            settings: settings.clone(),
        })?;
        Ok(Self {
            sysctls: Sysctls::open(&options.sysctl_record),
            datapath: Arc::new(Datapath::new(dataplane, limits)?),
            options,
            mode,
            settings,
            place,
        })
    }

    /// The datapath that attachments are made with.
    pub fn datapath(&self) -> Arc<Datapath> {
        Arc::clone(&self.datapath)
    }

    /// The way of tunnelling, and why.
    pub fn mode(&self) -> &SelfTest {
        &self.mode
    }

    /// Where the node is.
    pub fn place(&self) -> &NodePlace {
        &self.place
    }

    /// Compares all of the node's side with what it should be and puts right what is not.
    pub fn reconcile(&mut self, cluster: &Cluster) -> Result<Report, NetworkError> {
        let mut report = Report::default();
        let datapath = Arc::clone(&self.datapath);
        let netlink = &datapath.netlink;
        self.place = find_place(netlink, &self.options)?;
        let limits = limits(&self.place)?.carried_by(self.mode.encap);
        if limits != datapath.limits() {
            report.repairs.push(format!(
                "underlay MTU {}, tunnel MTU {}",
                limits.device_mtu, limits.tunnel_mtu
            ));
            report.resized = true;
            datapath.set_limits(limits);
        }
        let (overlay, repaired) = ensure_overlay(netlink, &self.options, limits)?;
        report.repairs.extend(repaired);
        self.ensure_settings(cluster, &overlay, &mut report)?;

        let underlay = survey(netlink, &self.options, &self.place, overlay.index, cluster)?;
        let desired = desired::desired(cluster, &underlay);
        let cidrs = desired.cluster_cidrs.clone();
        let settings = settings(&self.options, &self.place, &overlay, limits, &self.mode, cidrs);
        if settings != self.settings {
            datapath.dataplane.configure(&settings)?;
            self.settings = settings;
        }
        for repair in datapath.dataplane.verify()? {
            report.repairs.push(format!("{repair:?}"));
        }
        self.apply(&desired, &mut report)?;
        report.conflicts = desired.conflicts;
        report.unreachable = desired.unreachable;
        Ok(report)
    }

    fn apply(&self, desired: &Desired, report: &mut Report) -> Result<(), NetworkError> {
        let dataplane = &self.datapath.dataplane;
        let actual: BTreeMap<_, _> = dataplane.peers()?.into_iter().collect();
        let peers = diff(&desired.peers, &actual);
        for (cidr, entry) in peers.upsert {
            dataplane.upsert_peer(cidr, &entry)?;
            report
                .repairs
                .push(format!("peer {cidr} by {}", entry.tunnel_endpoint));
        }
        for (cidr, _) in peers.remove {
            dataplane.remove_peer(cidr)?;
            report.repairs.push(format!("no peer {cidr}"));
        }

        let netlink = &self.datapath.netlink;
        let actual = netlink
            .own_routes()?
            .into_iter()
            .map(|route| (route.destination, route))
            .collect();
        let routes = diff(&desired.routes, &actual);
        for (cidr, route) in routes.remove {
            netlink.delete_route(&route)?;
            report.repairs.push(format!("no route {cidr}"));
        }
        for (cidr, route) in routes.upsert {
            netlink.replace_route(&route)?;
            report.repairs.push(format!("route {cidr}"));
        }

        let masquerade = Masquerade {
            sources: desired.masquerade.clone(),
            except_device: self.options.overlay.clone(),
        };
        if masquerade.ensure()? {
            report.repairs.push("masquerading".to_owned());
        }
        Ok(())
    }

    fn ensure_settings(
        &mut self,
        cluster: &Cluster,
        overlay: &Link,
        report: &mut Report,
    ) -> Result<(), NetworkError> {
        let own = cluster.nodes.get(&self.options.node_name);
        let serves = |v4: bool| own.is_some_and(|own| own.pod_cidrs.iter().any(|cidr| cidr.is_ipv4() == v4));
        let mut wanted = Vec::new();
        if serves(true) {
            wanted.push(("net/ipv4/ip_forward".to_owned(), "1", Former::Recorded));
            // The kernel redirects when either of the two says so; packets that are too big for the tunnel come in and
            // go out by the overlay device, which is no reason to.
            wanted.push((
                "net/ipv4/conf/all/send_redirects".to_owned(),
                "0",
                Former::Recorded,
            ));
            let of_overlay = format!("net/ipv4/conf/{}/send_redirects", overlay.name);
            wanted.push((of_overlay, "0", Former::Dropped));
        }
        if serves(false) {
            // A node that forwards must be told to go on listening to its routers.
            let accept = format!("net/ipv6/conf/{}/accept_ra", self.place.underlay.name);
            if sysctl::read(&accept).is_ok_and(|value| value == "1") {
                wanted.push((accept, "2", Former::Recorded));
            }
            wanted.push(("net/ipv6/conf/all/forwarding".to_owned(), "1", Former::Recorded));
        }
        for (name, value, keep) in wanted {
            if self.sysctls.ensure(&name, value, keep)? {
                report.repairs.push(format!("{name} = {value}"));
            }
        }
        Ok(())
    }
}

fn limits(place: &NodePlace) -> Result<Limits, NetworkError> {
    let Link { name, mtu, .. } = &place.underlay;
    let limits = Limits::of_underlay(&place.underlay, tunnel_source(place));
    if limits.tunnel_mtu < MIN_MTU {
        return Err(NetworkError::UnderlayMtu {
            name: name.clone(),
            mtu: *mtu,
        });
    }
    Ok(limits)
}

/// The flag is about who writes the tunnel header. Who strips it follows from the self-test: the two ends of a tunnel need
/// not agree, and a program that strips it is worth a third of the throughput.
fn choose_mode(encap: Encap, bpffs: &Path) -> SelfTest {
    let mut test = self_test(bpffs);
    let chosen = match encap {
        Encap::Auto => return test,
        Encap::Program => EncapMode::Program,
        Encap::Device => EncapMode::Device,
    };
    test.reason = format!("chosen with --encap; by itself: {}", test.reason);
    test.encap = chosen;
    test
}

fn settings(
    options: &NetworkOptions,
    place: &NodePlace,
    overlay: &Link,
    limits: Limits,
    mode: &SelfTest,
    cluster_cidrs: Vec<IpNetwork>,
) -> NodeSettings {
    NodeSettings {
        node_ipv4: place
            .ips
            .iter()
            .find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }),
        node_ipv6: place
            .ips
            .iter()
            .find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }),
        tunnel_source: tunnel_source(place),
        vni: options.vni,
        tunnel_port: options.tunnel_port,
        tunnel_mtu: limits.tunnel_mtu,
        underlay_ifindex: place.underlay.index,
        overlay_ifindex: overlay.index,
        encap: mode.encap,
        decap: mode.decap,
        cluster_cidrs,
    }
}

/// Makes sure that the overlay device is there, up and of the right size. The second value says what had to be done.
fn ensure_overlay(
    netlink: &Netlink,
    options: &NetworkOptions,
    limits: Limits,
) -> Result<(Link, Vec<String>), NetworkError> {
    let spec = OverlaySpec {
        name: &options.overlay,
        port: options.tunnel_port,
        mtu: limits.tunnel_mtu,
    };
    let mut repairs = Vec::new();
    let taken = || NetworkError::OverlayTaken(options.overlay.clone());
    let mut link = netlink.link_by_name(spec.name)?;
    if let Some(old) = &link
        && !spec.matches(old)
    {
        // One that Weft made for another port; anybody else's stays.
        if old.mac != Some(crate::mac::MacAddress::OVERLAY) || old.vxlan.is_none() {
            return Err(taken());
        }
        netlink.delete_link(old.index, spec.name)?;
        link = None;
    }
    let link = if let Some(link) = link {
        link
    } else {
        netlink.create_overlay(&spec)?;
        repairs.push(format!("overlay device {}", spec.name));
        netlink.link_by_name(spec.name)?.ok_or_else(taken)?
    };
    if link.mtu != spec.mtu {
        netlink.set_link_mtu(link.index, spec.name, spec.mtu)?;
        repairs.push(format!("MTU {} of {}", spec.mtu, spec.name));
    }
    if !link.up || !link.noarp {
        netlink.set_overlay_up(link.index, spec.name)?;
        repairs.push(format!("{} up", spec.name));
    }
    Ok((link, repairs))
}
