//! `bench net`: what pods get of the network, beside what the node itself gets and what others make of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};

use super::case::{Case, Reach};
use super::load::{Link, Measure};
use super::peers::{self, PlainNode, Reference};
use super::report::{Row, WEFT};
use super::shuffle::Shuffle;
use crate::cluster::{Cluster, ClusterOptions};
use crate::fabric::{Fabric, FabricOptions};
use crate::lab::Lab;
use crate::node::Encap;
use crate::pods::Attachment;
use crate::process::Process;

/// How large segments may be where the fabric allows BIG TCP.
const BIG_BYTES: u32 = 185_000;

/// The column of another build of Weft.
const OTHER_BUILD: &str = "other";

/// The peers' columns, in order.
pub const PEERS: [&str; 8] = [
    OTHER_BUILD,
    "host",
    "host+big",
    "veth",
    "flannel",
    "flannel-kp",
    "bridge",
    "ptp",
];

/// What `bench net` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cases.
    pub cases: Vec<Case>,
    /// How many rounds.
    pub rounds: usize,
    /// How each sample is taken.
    pub measure: Measure,
    /// Who encapsulates.
    pub encap: Encap,
    /// Whether Weft itself is measured; without it the peers can be looked at alone.
    pub with_weft: bool,
    /// The programs of another build of Weft, to be measured beside this one.
    pub other_build: Option<PathBuf>,
    /// The peers that are measured; all of them if none is named.
    pub peers: Vec<String>,
    /// The order's seed.
    pub seed: u64,
}

impl Options {
    fn measures(&self, column: &str) -> bool {
        let named = self.peers.iter().any(|peer| peer == column);
        self.peers.is_empty() || named || [WEFT, OTHER_BUILD].contains(&column)
    }
}

/// One fabric's part in the comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// Weft and all peers.
    Plain,
    /// Weft and the nodes themselves where BIG TCP is allowed.
    Big,
    /// The other build of Weft alone.
    Other { big: bool },
}

impl Scene {
    fn is_big(self) -> bool {
        matches!(self, Self::Big | Self::Other { big: true })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "bench",
            Self::Big => "bench-big",
            Self::Other { big: false } => "bench-other",
            Self::Other { big: true } => "bench-other-big",
        }
    }
}

/// One column: its links, and the servers at their ends.
struct Variant {
    name: &'static str,
    /// Whether its underlay allows BIG TCP.
    big: bool,
    same: Option<Link>,
    cross: Option<Link>,
}

impl Variant {
    fn link(&self, reach: Reach) -> Option<&Link> {
        match reach {
            Reach::Same => self.same.as_ref(),
            Reach::Cross => self.cross.as_ref(),
        }
    }

    /// The column that it fills in a case's row, if any.
    fn column(&self, case: Case) -> Option<&'static str> {
        self.link(case.reach)?;
        match (self.name, self.big, case.big) {
            // In a row without BIG TCP nothing of the raised fabric is shown, and in a row with it only Weft has it.
            (_, true, false) | (WEFT | OTHER_BUILD, false, true) => None,
            ("host", true, true) => Some("host+big"),
            (name, ..) => Some(name),
        }
    }
}

/// A fabric with everything on it. The fields are dropped in their order: traffic first, then the nodes.
struct World {
    variants: Vec<Variant>,
    servers: Vec<Process>,
    attachments: Vec<Attachment>,
    nodes: Vec<PlainNode>,
    cluster: Option<Cluster>,
    fabric: Option<Fabric>,
}

/// Measures; `say` is told what happens.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Vec<Row>> {
    say("setting up nodes, pods and peers");
    let mut worlds = vec![World::new(options, Scene::Plain)?];
    let any_big = options.cases.iter().any(|case| case.big);
    if any_big {
        say("setting up nodes and pods on a fabric that allows BIG TCP");
        worlds.push(World::new(options, Scene::Big)?);
    }
    if options.other_build.is_some() {
        say("setting up nodes and pods of the other build");
        worlds.push(World::new(options, Scene::Other { big: false })?);
        if any_big {
            worlds.push(World::new(options, Scene::Other { big: true })?);
        }
    }
    let variants: Vec<&Variant> = worlds.iter().flat_map(|world| &world.variants).collect();
    for variant in &variants {
        for link in [&variant.same, &variant.cross].into_iter().flatten() {
            link.wait(options.measure)
                .with_context(|| format!("the path of {}", variant.name))?;
        }
    }

    let mut shuffle = Shuffle::new(options.seed);
    let mut samples: BTreeMap<Case, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
    let started = Instant::now();
    for round in 1..=options.rounds {
        let mut plan: Vec<(Case, &Variant, &str)> = options
            .cases
            .iter()
            .flat_map(|case| {
                variants
                    .iter()
                    .filter_map(|v| Some((*case, *v, v.column(*case)?)))
                    .filter(|(.., column)| options.measures(column))
            })
            .collect();
        shuffle.apply(&mut plan);
        for (case, variant, column) in &plan {
            let link = variant.link(case.reach).context("a column has a link")?;
            let value = link
                .sample(case.load, options.measure)
                .with_context(|| format!("{case} of {}", variant.name))?;
            samples
                .entry(*case)
                .or_default()
                .entry((*column).to_owned())
                .or_default()
                .push(value);
        }
        let took = started.elapsed().as_secs_f64();
        say(&format!(
            "round {round} of {}: {} samples, {took:.0} s",
            options.rounds,
            plan.len()
        ));
    }
    Ok(options
        .cases
        .iter()
        .filter_map(|case| Some(row(*case, options.encap, samples.remove(case)?)))
        .collect())
}

fn row(case: Case, encap: Encap, samples: BTreeMap<String, Vec<f64>>) -> Row {
    let promised = samples
        .keys()
        .filter_map(|peer| Some((peer.clone(), floor(case, encap, peer)?)))
        .collect();
    Row {
        case: case.to_string(),
        unit: case.load.unit(),
        more_is_better: true,
        samples,
        promised,
    }
}

/// The promise of a row; of the kernel's device less is promised than of the programs.
fn floor(case: Case, encap: Encap, peer: &str) -> Option<f64> {
    const DEVICE: f64 = 1.1;
    match (encap, case.reach) {
        (Encap::Device, Reach::Cross) => (peer == "flannel" && !case.big).then_some(DEVICE),
        _ => case.floor(peer),
    }
}

impl World {
    fn new(options: &Options, scene: Scene) -> Result<Self> {
        let (big, name) = (scene.is_big(), scene.name());
        let is_other = matches!(scene, Scene::Other { .. });
        let fabric_options = FabricOptions {
            big_tcp: big.then_some(BIG_BYTES),
            ..FabricOptions::default()
        };
        let mut world = Self {
            variants: Vec::new(),
            servers: Vec::new(),
            attachments: Vec::new(),
            nodes: Vec::new(),
            cluster: None,
            fabric: None,
        };
        let cluster;
        let own_fabric;
        let fabric = if options.with_weft || is_other {
            let mut wanted = ClusterOptions::new(name);
            wanted.fabric = fabric_options;
            wanted.agent.encap = options.encap;
            if is_other {
                wanted.agent.bin_dir.clone_from(&options.other_build);
            }
            cluster = Some(Cluster::start(wanted)?);
            own_fabric = None;
            &cluster.as_ref().context("it was started")?.fabric
        } else {
            cluster = None;
            own_fabric = Some(Fabric::new(&Lab::new(name)?, fabric_options)?);
            own_fabric.as_ref().context("it was made")?
        };
        if let Some(cluster) = &cluster {
            let column = if is_other { OTHER_BUILD } else { WEFT };
            world.add_weft(cluster, column, big)?;
        }
        if !is_other {
            world.add_peers(fabric, big)?;
        }
        world.cluster = cluster;
        world.fabric = own_fabric;

        let mut served: Vec<(String, String)> = Vec::new();
        for variant in &world.variants {
            for link in [&variant.same, &variant.cross].into_iter().flatten() {
                let place = (link.server.machine.name().to_owned(), link.server.name.clone());
                if !served.contains(&place) {
                    world.servers.push(link.serve(options.measure)?);
                    served.push(place);
                }
            }
        }
        Ok(world)
    }

    fn add_weft(&mut self, cluster: &Cluster, name: &'static str, big: bool) -> Result<()> {
        let [a, b, ..] = cluster.nodes.as_slice() else {
            anyhow::bail!("the cluster has fewer than two nodes");
        };
        let first = Attachment::add(a, "weft-1")?;
        let beside = Attachment::add(a, "weft-2")?;
        let remote = Attachment::add(b, "weft-3")?;
        self.variants.push(Variant {
            name,
            big,
            same: Some(Link::between(&first.place, &beside.place)?),
            cross: Some(Link::between(&first.place, &remote.place)?),
        });
        self.attachments.extend([first, beside, remote]);
        Ok(())
    }

    fn add_peers(&mut self, fabric: &Fabric, big: bool) -> Result<()> {
        let a = PlainNode::new(fabric, "plain-a")?;
        let b = PlainNode::new(fabric, "plain-b")?;
        let mut host = Link::between(&a.place(), &a.place())?;
        host.target = std::net::Ipv4Addr::LOCALHOST.into();
        let cross = Link::between(&a.place(), &b.place())?;
        self.variants.push(Variant {
            name: "host",
            big,
            same: Some(host),
            cross: Some(cross),
        });
        if big {
            self.nodes.extend([a, b]);
            return Ok(());
        }
        let (first, second) = peers::veth(&a)?;
        self.variants.push(Variant {
            name: "veth",
            big,
            same: Some(Link::between(&first, &second)?),
            cross: None,
        });
        for reference in [Reference::Bridge, Reference::Ptp] {
            let first = reference.pod(&a, &format!("{}-1", reference.name()))?;
            let second = reference.pod(&a, &format!("{}-2", reference.name()))?;
            self.variants.push(Variant {
                name: reference.name(),
                big,
                same: Some(Link::between(&first, &second)?),
                cross: None,
            });
        }
        let clean = peers::flannel(&a, &b)?;
        let (c, d) = (
            PlainNode::new(fabric, "kube-proxy-a")?,
            PlainNode::new(fabric, "kube-proxy-b")?,
        );
        let ruled = peers::flannel(&c, &d)?;
        peers::kube_proxy_rules(&c)?;
        peers::kube_proxy_rules(&d)?;
        for (name, pods) in [("flannel", clean), ("flannel-kp", ruled)] {
            self.variants.push(Variant {
                name,
                big,
                same: Some(Link::between(&pods.first, &pods.beside)?),
                cross: Some(Link::between(&pods.first, &pods.remote)?),
            });
        }
        self.nodes.extend([a, b, c, d]);
        Ok(())
    }
}
