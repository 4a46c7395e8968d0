//! The programs: loading, adopting what an earlier agent left, attaching, keeping them attached.
//!
//! Everything that must outlive the agent is pinned under the node's bpffs: `maps/<NAME>` and `links/<hook>`. A new
//! agent reuses maps whose layout it knows, and replaces the program behind a pinned link in one atomic step, so no
//! packet meets a hook without a program.
//!
//! `from_container` hangs on a filter block shared by all host veths, not on each of them (see [`block_filter`]).

use std::{
    collections::BTreeMap,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapError, MapInfo, MapType},
    programs::{
        LinkOrder, ProgramError, SchedClassifier, TcAttachType,
        links::{FdLink, LinkError, PinnedLink},
        tc::TcAttachOptions,
    },
};
use ipnetwork::IpNetwork;
use weft_ebpf_common::{Counter, Endpoint, NodeConfig, Peer, SlotV4, SlotV6, maps as names, reason, slot};

use super::maps::{EndpointEntry, Metric, NodeSettings, PeerEntry, Tables};

pub mod block_filter;
pub mod trial;

use trial::{Outcome, Trial};

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weft-ebpf"));

/// The program on the shared block of all host veths.
const BLOCK_PROGRAM: &str = "from_container";

/// What went wrong between the agent and the kernel's BPF.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// The bpffs could not be written to.
    #[error("prepare {}", path.display())]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The object does not load.
    #[error("load the BPF object")]
    Object(#[from] EbpfError),
    /// The object lacks something this code needs: they were built apart.
    #[error("the BPF object has no {name}")]
    ObjectLacks {
        /// A map or program.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("load program {name}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("attach {name} to {device}")]
    Attach {
        /// The program.
        name: &'static str,
        /// The device or block.
        device: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A table could not be read.
    #[error("read table {table}")]
    Read {
        /// Which.
        table: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A table could not be changed.
    #[error("write {table} {key}")]
    Write {
        /// Which.
        table: &'static str,
        /// The entry.
        key: String,
        /// Why.
        #[source]
        source: MapError,
    },
}

impl DataplaneError {
    pub(super) fn read(table: &'static str, source: MapError) -> Self {
        Self::Read { table, source }
    }

    pub(super) fn write(table: &'static str, key: impl ToString, source: MapError) -> Self {
        Self::Write {
            table,
            key: key.to_string(),
            source,
        }
    }

    fn attach(
        name: &'static str,
        device: impl ToString,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Attach {
            name,
            device: device.to_string(),
            source: source.into(),
        }
    }
}

/// A network device by both its names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The interface name.
    pub name: String,
    /// The kernel's number for it.
    pub ifindex: u32,
}

/// What [`Dataplane::open`] needs.
#[derive(Clone, Debug)]
pub struct DataplaneOptions {
    /// The root of this node's bpffs, mounted.
    pub bpffs: PathBuf,
    /// The device that carries the tunnel.
    pub underlay: Device,
    /// The VXLAN device in collect-metadata mode.
    pub overlay: Device,
    /// The index of the shared filter block for host veths: any number that nothing else in this netns uses.
    pub filter_block: u32,
    /// What the programs must know before they see a packet.
    pub settings: NodeSettings,
}

/// The block index to use unless the operator says otherwise.
pub const DEFAULT_FILTER_BLOCK: u32 = 0x7766;

/// Something [`Dataplane::verify`] found amiss and put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// A program was no longer attached to its device.
    Reattached {
        /// The program.
        program: &'static str,
        /// The device.
        device: String,
    },
    /// A program was attached, but would not have outlived this process.
    Repinned {
        /// The program.
        program: &'static str,
    },
    /// The shared block had lost its filter, or had another's.
    FilterReplaced {
        /// The block.
        block: u32,
    },
}

/// One of the hooks on a long-lived device.
struct Hook {
    program: &'static str,
    attach: fn() -> TcAttachType,
    on_overlay: bool,
}

const HOOKS: [Hook; 3] = [
    Hook {
        program: "from_underlay",
        attach: || TcAttachType::Ingress,
        on_overlay: false,
    },
    Hook {
        program: "from_overlay",
        attach: || TcAttachType::Ingress,
        on_overlay: true,
    },
    Hook {
        program: "to_overlay",
        attach: || TcAttachType::Egress,
        on_overlay: true,
    },
];

/// The node's programs and tables.
///
/// All methods take `&self`; writers of one table wait for each other for the length of a system call.
/// Dropping it leaves the datapath in place.
pub struct Dataplane {
    inner: Mutex<Inner>,
    filter_block: u32,
    underlay: Device,
    overlay: Device,
    links: PathBuf,
}

struct Inner {
    ebpf: Ebpf,
    tables: Tables,
    /// By program. Held beside the pins, so that a pin that another tool removes costs nothing.
    links: BTreeMap<&'static str, FdLink>,
}

impl Dataplane {
    /// Loads the programs, adopts pinned maps and links, attaches what is not attached.
    ///
    /// The filter block exists only while a host veth refers to it. If it does, its filter is replaced here; if not,
    /// [`Dataplane::ensure_filter`] makes it with the first pod.
    pub fn open(opts: &DataplaneOptions) -> Result<Self, DataplaneError> {
        let maps = opts.bpffs.join("maps");
        let links = opts.bpffs.join("links");
        for dir in [&maps, &links] {
            fs::create_dir_all(dir).map_err(|source| DataplaneError::Pin {
                path: dir.clone(),
                source,
            })?;
        }
        discard_foreign_layouts(&maps)?;
        let mut ebpf = EbpfLoader::new().default_map_pin_directory(&maps).load(OBJECT)?;
        for name in [BLOCK_PROGRAM].into_iter().chain(HOOKS.iter().map(|h| h.program)) {
            load(&mut ebpf, name)?;
        }
        let mut tables = Tables::take(&mut ebpf)?;
        // Before the programs are attached: the first packet must meet a configured node.
        tables.configure(&opts.settings)?;
        let dataplane = Self {
            inner: Mutex::new(Inner {
                ebpf,
                tables,
                links: BTreeMap::new(),
            }),
            filter_block: opts.filter_block,
            underlay: opts.underlay.clone(),
            overlay: opts.overlay.clone(),
            links,
        };
        {
            let mut inner = dataplane.lock();
            for hook in &HOOKS {
                dataplane.attach(&mut inner, hook)?;
            }
            dataplane.replace_filter(&mut inner.ebpf)?;
        }
        Ok(dataplane)
    }

    /// Rewrites what the programs know of this node.
    pub fn configure(&self, settings: &NodeSettings) -> Result<(), DataplaneError> {
        self.lock().tables.configure(settings)
    }

    /// The index to give as ingress block of a new host veth's clsact qdisc (`TCA_INGRESS_BLOCK`).
    pub fn filter_block(&self) -> u32 {
        self.filter_block
    }

    /// Makes sure that the shared block has its filter.
    ///
    /// To be called for each new host veth, after its clsact qdisc names the block and before the pod's end goes up: the
    /// block lives as long as a qdisc refers to it, so the first pod, and the first after the last went, find it empty. One
    /// netlink exchange; nothing changes where the filter is there.
    pub fn ensure_filter(&self) -> Result<(), DataplaneError> {
        let mut inner = self.lock();
        let fd = program_fd(&mut inner.ebpf, BLOCK_PROGRAM)?;
        block_filter::ensure(self.filter_block, &fd, BLOCK_PROGRAM)
            .map_err(|e| DataplaneError::attach(BLOCK_PROGRAM, format!("block {}", self.filter_block), e))
    }

    /// Lets packets to and from a pod pass.
    pub fn upsert_endpoint(&self, ip: IpAddr, entry: &EndpointEntry) -> Result<(), DataplaneError> {
        self.lock().tables.upsert_endpoint(ip, entry)
    }

    /// Stops packets to and from a pod. Whether it was there.
    pub fn remove_endpoint(&self, ip: IpAddr) -> Result<bool, DataplaneError> {
        self.lock().tables.remove_endpoint(ip)
    }

    /// All endpoints in the datapath.
    pub fn endpoints(&self) -> Result<Vec<(IpAddr, EndpointEntry)>, DataplaneError> {
        self.lock().tables.endpoints()
    }

    /// Routes a prefix through the tunnel to a peer, and accepts it from there.
    pub fn upsert_peer(&self, cidr: IpNetwork, entry: &PeerEntry) -> Result<(), DataplaneError> {
        self.lock().tables.upsert_peer(cidr, entry)
    }

    /// Removes a peer's prefix. Whether it was there.
    pub fn remove_peer(&self, cidr: IpNetwork) -> Result<bool, DataplaneError> {
        self.lock().tables.remove_peer(cidr)
    }

    /// All peers' prefixes in the datapath.
    pub fn peers(&self) -> Result<Vec<(IpNetwork, PeerEntry)>, DataplaneError> {
        self.lock().tables.peers()
    }

    /// What was counted so far, one entry per reason.
    pub fn metrics(&self) -> Result<Vec<Metric>, DataplaneError> {
        self.lock().tables.metrics()
    }

    /// Runs a made packet through a program as it is loaded, with the tables as they are. It is counted like any other.
    pub fn try_packet(&self, hook: trial::Hook, trial: &Trial<'_>) -> Result<Outcome, DataplaneError> {
        trial::run(&mut self.lock().ebpf, hook, trial)
    }

    /// Checks that every program is still where it belongs and puts back what another tool removed.
    pub fn verify(&self) -> Result<Vec<Repair>, DataplaneError> {
        let mut inner = self.lock();
        let mut repairs = Vec::new();
        for hook in &HOOKS {
            let device = self.device(hook);
            let id = program_id(&mut inner.ebpf, hook.program)?;
            if !is_attached(&device.name, hook, id)? {
                self.attach(&mut inner, hook)?;
                repairs.push(Repair::Reattached {
                    program: hook.program,
                    device: device.name.clone(),
                });
            } else if !self.links.join(hook.program).exists() {
                self.repin(&mut inner, hook)?;
                repairs.push(Repair::Repinned {
                    program: hook.program,
                });
            }
        }
        let id = program_id(&mut inner.ebpf, BLOCK_PROGRAM)?;
        let block = self.filter_block;
        let found = block_filter::program_id(block)
            .map_err(|e| DataplaneError::attach(BLOCK_PROGRAM, format!("block {block}"), e))?;
        // A block that nothing refers to has no filter and needs none.
        if found != Some(id) && self.replace_filter(&mut inner.ebpf)? {
            repairs.push(Repair::FilterReplaced { block });
        }
        Ok(repairs)
    }

    /// Takes everything off: links, filter, maps. For uninstalling; pods lose their network.
    pub fn detach_all(bpffs: &Path, filter_block: u32) -> Result<(), DataplaneError> {
        block_filter::remove(filter_block)
            .map_err(|e| DataplaneError::attach(BLOCK_PROGRAM, format!("block {filter_block}"), e))?;
        for hook in &HOOKS {
            remove_if_there(&bpffs.join("links").join(hook.program))?;
        }
        for name in names::ALL {
            remove_if_there(&bpffs.join("maps").join(name))?;
        }
        for dir in ["links", "maps"] {
            let path = bpffs.join(dir);
            match fs::remove_dir(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(DataplaneError::Pin { path, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere leaves the kernel's tables as they are, and those are the state.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device(&self, hook: &Hook) -> &Device {
        if hook.on_overlay {
            &self.overlay
        } else {
            &self.underlay
        }
    }

    /// Attaches a hook's program: behind the pinned link if that is alive on the device, else by a new link.
    fn attach(&self, inner: &mut Inner, hook: &Hook) -> Result<(), DataplaneError> {
        let device = &self.device(hook).name;
        let error = |e: ProgramError| DataplaneError::attach(hook.program, device, e);
        let link_error = |e: LinkError| DataplaneError::attach(hook.program, device, e);
        let pin = self.links.join(hook.program);
        let classifier = program(&mut inner.ebpf, hook.program)?;
        inner.links.remove(hook.program);

        if let Some(link) = pinned_link(&pin).map_err(link_error)? {
            let old = link.info().map_err(link_error)?.program_id();
            // The link of a device that is gone stays pinned but does nothing.
            if is_attached(device, hook, old)? {
                let id = classifier
                    .attach_to_link(link.try_into().map_err(link_error)?)
                    .map_err(error)?;
                // Taken out of the program, whose drop would detach it.
                let link = classifier
                    .take_link(id)
                    .map_err(error)?
                    .try_into()
                    .map_err(link_error)?;
                inner.links.insert(hook.program, link);
                return Ok(());
            }
        }
        remove_if_there(&pin)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let id = classifier
            .attach_with_options(device, (hook.attach)(), options)
            .map_err(error)?;
        let link = classifier
            .take_link(id)
            .map_err(error)?
            .try_into()
            .map_err(link_error)?;
        inner.links.insert(hook.program, link);
        self.repin(inner, hook)
    }

    /// Pins the link that this process holds.
    fn repin(&self, inner: &mut Inner, hook: &Hook) -> Result<(), DataplaneError> {
        if let Some(link) = inner.links.remove(hook.program) {
            let pinned = link
                .pin(self.links.join(hook.program))
                .map_err(|e| DataplaneError::attach(hook.program, &self.device(hook).name, e))?;
            inner.links.insert(hook.program, pinned.into());
        }
        Ok(())
    }

    /// Whether there was a block to put the filter on.
    fn replace_filter(&self, ebpf: &mut Ebpf) -> Result<bool, DataplaneError> {
        let fd = program_fd(ebpf, BLOCK_PROGRAM)?;
        block_filter::replace(self.filter_block, &fd, BLOCK_PROGRAM)
            .map_err(|e| DataplaneError::attach(BLOCK_PROGRAM, format!("block {}", self.filter_block), e))
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &'static str) -> Result<&'e mut SchedClassifier, DataplaneError> {
    ebpf.program_mut(name)
        .ok_or(DataplaneError::ObjectLacks { name })?
        .try_into()
        .map_err(|source: ProgramError| DataplaneError::Program {
            name,
            source: Box::new(source),
        })
}

/// Has the kernel verify a program and take it in.
pub(super) fn load(ebpf: &mut Ebpf, name: &'static str) -> Result<(), DataplaneError> {
    program(ebpf, name)?
        .load()
        .map_err(|source| DataplaneError::Program {
            name,
            source: Box::new(source),
        })
}

fn program_fd(ebpf: &mut Ebpf, name: &'static str) -> Result<aya::programs::ProgramFd, DataplaneError> {
    let program = program(ebpf, name)?;
    let error = |source: ProgramError| DataplaneError::Program {
        name,
        source: Box::new(source),
    };
    program
        .fd()
        .map_err(error)?
        .try_clone()
        .map_err(|e| error(ProgramError::IOError(e)))
}

fn program_id(ebpf: &mut Ebpf, name: &'static str) -> Result<u32, DataplaneError> {
    let error = |source: ProgramError| DataplaneError::Program {
        name,
        source: Box::new(source),
    };
    Ok(program(ebpf, name)?.info().map_err(error)?.id())
}

fn is_attached(device: &str, hook: &Hook, program_id: u32) -> Result<bool, DataplaneError> {
    let (_, attached) = SchedClassifier::query_tcx(device, (hook.attach)())
        .map_err(|e| DataplaneError::attach(hook.program, device, e))?;
    Ok(attached.iter().any(|info| info.id() == program_id))
}

fn pinned_link(pin: &Path) -> Result<Option<FdLink>, LinkError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(e)) if e.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn remove_if_there(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DataplaneError::Pin {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// The layout of a map: kind, key size, value size, entries.
type Layout = (MapType, usize, usize, u32);

fn expected_layout(name: &str) -> Option<Layout> {
    const LPM_PREFIX: usize = size_of::<u32>();
    Some(match name {
        names::CONFIG => (MapType::Array, 4, size_of::<NodeConfig>(), 1),
        names::ENDPOINTS_V4 => (MapType::Hash, 4, size_of::<Endpoint>(), names::MAX_ENDPOINTS),
        names::ENDPOINTS_V6 => (MapType::Hash, 16, size_of::<Endpoint>(), names::MAX_ENDPOINTS),
        names::SLOTS_V4 => (MapType::Array, 4, size_of::<SlotV4>(), slot::SLOTS),
        names::SLOTS_V6 => (MapType::Array, 4, size_of::<SlotV6>(), slot::SLOTS),
        names::PEERS_V4 => (
            MapType::LpmTrie,
            LPM_PREFIX + 4,
            size_of::<Peer>(),
            names::MAX_PEERS,
        ),
        names::PEERS_V6 => (
            MapType::LpmTrie,
            LPM_PREFIX + 16,
            size_of::<Peer>(),
            names::MAX_PEERS,
        ),
        names::CLUSTER => (
            MapType::LpmTrie,
            LPM_PREFIX + 16,
            size_of::<u32>(),
            names::MAX_CLUSTER_CIDRS,
        ),
        names::METRICS => (MapType::PerCpuArray, 4, size_of::<Counter>(), reason::MAX_REASONS),
        _ => return None,
    })
}

/// Unpins maps that another version left with another shape: the loader would adopt them unseen. The agent's first
/// reconcile fills the new ones.
fn discard_foreign_layouts(maps: &Path) -> Result<(), DataplaneError> {
    for name in names::ALL {
        let path = maps.join(name);
        if !path.exists() {
            continue;
        }
        let info: MapInfo = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(|e| DataplaneError::read(name, e))?;
        let found: Layout = (
            info.map_type().map_err(|e| DataplaneError::read(name, e))?,
            info.key_size() as usize,
            info.value_size() as usize,
            info.max_entries(),
        );
        if expected_layout(name) != Some(found) {
            tracing::warn!(
                map = name,
                ?found,
                "pinned map has another layout, starting it anew"
            );
            remove_if_there(&path)?;
        }
    }
    Ok(())
}
