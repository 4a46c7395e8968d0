//! `bench cni`: what attaching and detaching a container costs, beside Debian's plugins, and what Weft itself weighs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::attach::{self, Job, Outcome, Phase};
use super::peers::{PLUGIN_DIR, PlainNode, Reference};
use super::report::{Figure, Row, WEFT};
use super::shuffle::Shuffle;
use crate::binaries;
use crate::cluster::{Cluster, ClusterOptions};
use crate::fabric::{Fabric, FabricOptions};
use crate::lab::Lab;
use crate::machine::{Machine, feed_output};
use crate::pods::Attachment;

/// The columns after Weft's.
pub const PEERS: [&str; 4] = ["bridge", "ptp", "spawn", LIMIT];

/// The column of absolute promises.
const LIMIT: &str = "limit";

/// The program that does nothing, for the floor.
const NOTHING: &str = "/bin/true";

/// How often the floor is measured in a round.
const FLOOR_CALLS: usize = 20;

/// What `bench cni` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many rounds.
    pub rounds: usize,
    /// How many attachments one after the other in a round.
    pub sequential: usize,
    /// How many at once.
    pub parallel: usize,
    /// Parts of the names of cases to show; all if empty.
    pub filters: Vec<String>,
    /// Whether Weft itself is measured.
    pub with_weft: bool,
    /// The order's seed.
    pub seed: u64,
}

struct Subject {
    name: &'static str,
    machine: Machine,
    job: Job,
}

/// The samples of every row, by case and column.
type Samples = BTreeMap<&'static str, BTreeMap<String, Vec<f64>>>;

/// The cases in order: name, unit, and the promised ratio to `bridge` and `ptp` wherever there is one.
fn cases(options: &Options) -> Vec<(&'static str, String, &'static str, Option<f64>)> {
    let many = options.parallel;
    let mut all = Vec::new();
    for (add, add_cpu, parallel, parallel_cpu) in [
        ("cni/add", "cni/add:cpu", "add", "add:cpu"),
        ("cni/del", "cni/del:cpu", "del", "del:cpu"),
    ] {
        let verb = parallel.trim_end_matches(":cpu");
        all.push((add, add.to_owned(), "ms", Some(1.0 / 3.0)));
        all.push((add_cpu, add_cpu.to_owned(), "CPU ms", None));
        all.push((parallel, format!("cni/{verb}-{many}"), "ms", Some(0.25)));
        all.push((parallel_cpu, format!("cni/{verb}-{many}:cpu"), "CPU ms", None));
    }
    all.push(("floor", "cni/start-to-exit".to_owned(), "ms", None));
    all.push(("rss", "cni/agent-rss".to_owned(), "MB", None));
    all.push(("size", "cni/weft-size".to_owned(), "MB", None));
    all
}

/// Measures; `say` is told what happens.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Vec<Row>> {
    say("setting up nodes");
    let mut cluster = None;
    let mut plain_fabric = None;
    if options.with_weft {
        cluster = Some(Cluster::start(ClusterOptions {
            nodes: 1,
            ..ClusterOptions::new("bench-cni")
        })?);
    } else {
        plain_fabric = Some(Fabric::new(&Lab::new("bench-cni")?, FabricOptions::default())?);
    }
    let fabric = match (&cluster, &plain_fabric) {
        (Some(cluster), _) => &cluster.fabric,
        (None, Some(fabric)) => fabric,
        (None, None) => anyhow::bail!("there is no fabric"),
    };
    let plain = PlainNode::new(fabric, "plain")?;
    let mut subjects: Vec<Subject> = [Reference::Bridge, Reference::Ptp]
        .into_iter()
        .map(|reference| Subject {
            name: reference.name(),
            machine: plain.machine.clone(),
            job: job(
                &plain.machine,
                Path::new(PLUGIN_DIR).join(reference.name()),
                reference.conf(&plain.machine),
                options,
                false,
            ),
        })
        .collect();
    if let Some(node) = cluster.as_ref().and_then(|cluster| cluster.nodes.first()) {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni",
            "agentSocket": node.socket(), "queueDir": node.queue_dir(),
        });
        let machine = node.machine().clone();
        let job = job(&machine, binaries::find("weft-cni")?, conf, options, true);
        subjects.push(Subject {
            name: WEFT,
            machine,
            job,
        });
    }

    let socket = plain.machine.dir().join("idle.sock");
    attach::idle_agent(&socket)?;
    let mut shuffle = Shuffle::new(options.seed);
    let mut samples = Samples::new();
    for round in 1..=options.rounds {
        shuffle.apply(&mut subjects);
        for subject in &subjects {
            let outcome =
                measure(subject, round).with_context(|| format!("round {round} of {}", subject.name))?;
            collect(&mut samples, subject.name, &outcome);
        }
        floor(&mut samples, &socket)?;
        say(&format!("round {round} of {}", options.rounds));
    }
    drop(subjects);
    drop(plain);
    drop(cluster);
    if options.with_weft {
        say("weighing the agents of a cluster of 3 nodes with 30 pods");
        weigh(&mut samples)?;
    }
    Ok(rows(options, &samples))
}

fn job(
    machine: &Machine,
    plugin: PathBuf,
    conf: serde_json::Value,
    options: &Options,
    has_agent: bool,
) -> Job {
    Job {
        plugin,
        plugin_dir: PLUGIN_DIR.into(),
        conf,
        netns_dir: machine.dir().join("bench-netns"),
        prefix: String::new(),
        sequential: options.sequential,
        parallel: options.parallel,
        has_agent,
    }
}

fn measure(subject: &Subject, round: usize) -> Result<Outcome> {
    let mut job = subject.job.clone();
    job.prefix = format!("{}-r{round}", subject.name);
    let mut command = subject.machine.command("timeout");
    command
        .arg("120")
        .arg(std::env::current_exe()?)
        .arg("attach-loop");
    let text = feed_output(command, &serde_json::to_string(&job)?)?;
    serde_json::from_str(&text).context("the outcome")
}

/// A round's sample is the median of its calls.
fn collect(samples: &mut Samples, name: &str, outcome: &Outcome) {
    let mut add = |case: &'static str, value: Option<f64>| {
        samples
            .entry(case)
            .or_default()
            .entry(name.to_owned())
            .or_default()
            .extend(value);
    };
    let median = |phase: &Phase| Figure::of(&phase.wall_ms).map(|figure| figure.median);
    for (wall, cpu, phase) in [
        ("cni/add", "cni/add:cpu", &outcome.add),
        ("cni/del", "cni/del:cpu", &outcome.del),
        ("add", "add:cpu", &outcome.add_parallel),
        ("del", "del:cpu", &outcome.del_parallel),
    ] {
        add(wall, median(phase));
        add(cpu, Some(phase.cpu_ms));
    }
}

/// The plugin with an agent that has nothing to do, and a program that does nothing.
fn floor(samples: &mut Samples, socket: &Path) -> Result<()> {
    let conf =
        json!({"cniVersion": "1.0.0", "name": "weft", "type": "weft-cni", "agentSocket": socket}).to_string();
    let plugin = binaries::find("weft-cni")?;
    for (name, program) in [(WEFT, plugin.as_path()), ("spawn", Path::new(NOTHING))] {
        let all = attach::spawn_ms(program, "ADD", conf.as_bytes(), FLOOR_CALLS)?;
        let median = Figure::of(&all).map(|figure| figure.median);
        samples
            .entry("floor")
            .or_default()
            .entry(name.to_owned())
            .or_default()
            .extend(median);
    }
    Ok(())
}

/// The largest agent of a cluster with three nodes and ten pods on each, and the program on disk.
fn weigh(samples: &mut Samples) -> Result<()> {
    const NODES: usize = 3;
    const PODS: usize = 10;
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: NODES,
        ..ClusterOptions::new("bench-weight")
    })?;
    let mut attachments = Vec::new();
    for node in &cluster.nodes {
        for pod in 0..PODS {
            attachments.push(Attachment::add(node, &format!("weight-{pod}"))?);
        }
    }
    let mut largest: f64 = 0.0;
    for node in &mut cluster.nodes {
        largest = largest.max(megabytes(node.agent()?.rss_kb()? * 1024));
    }
    let mut put = |case: &'static str, value: f64| {
        samples
            .entry(case)
            .or_default()
            .insert(WEFT.to_owned(), vec![value]);
    };
    put("rss", largest);
    put(
        "size",
        megabytes(std::fs::metadata(binaries::find("weft")?)?.len()),
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// What is promised of a case in its own unit.
fn limit(key: &str) -> Option<f64> {
    match key {
        "floor" => Some(3.0),
        "rss" => Some(30.0),
        "size" => Some(25.0),
        _ => None,
    }
}

fn rows(options: &Options, samples: &Samples) -> Vec<Row> {
    cases(options)
        .into_iter()
        .filter(|(_, name, ..)| {
            options.filters.is_empty()
                || options
                    .filters
                    .iter()
                    .any(|filter| name.contains(filter.as_str()))
        })
        .filter_map(|(key, case, unit, promise)| {
            let mut samples = samples.get(key)?.clone();
            if let Some(limit) = limit(key) {
                samples.insert(LIMIT.to_owned(), vec![limit]);
            }
            let promised = promise
                .map(|ratio| ("bridge".to_owned(), ratio))
                .into_iter()
                .chain(limit(key).map(|_| (LIMIT.to_owned(), 1.0)))
                .collect();
            Some(Row {
                case,
                unit,
                more_is_better: false,
                samples,
                promised,
            })
        })
        .collect()
}
