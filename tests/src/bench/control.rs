//! `bench control`: the control plane at scale. The server is the program as it is shipped, in a process of its own; this
//! process is its clients: the nodes, the users, the watchers, each over TLS on loopback.
//!
//! The figures of Kubernetes are recorded, not measured in the same run: its API server, scheduler, controller manager and
//! etcd, version 1.36.2 and 3.5, on two cores of the same class with every client limit lifted.

mod fleet;
mod http;
mod load;
mod plane;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use weft_controller::scheduler::bench as decisions;

use self::fleet::{Fleet, Observer};
use self::load::Work;
use self::plane::Plane;
use super::report::{Row, WEFT};

/// The columns after Weft's.
pub const PEERS: [&str; 2] = [KUBERNETES, LIMIT];

/// Recorded figures.
const KUBERNETES: &str = "kubernetes";
/// Absolute promises.
const LIMIT: &str = "limit";

/// Pods of a Deployment.
const PODS: usize = 5000;
/// What the pods of the cases about decisions alone ask for.
const CONSTRAINED: decisions::Options = decisions::Options {
    owners: 20,
    constrained: true,
};
/// Nodes it is spread over.
const NODES: usize = 500;
/// How long anything may take before it has failed.
const PATIENCE: Duration = Duration::from_mins(3);
/// How long memory is given to settle before it is weighed.
const SETTLE: Duration = Duration::from_secs(3);

/// What `bench control` is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many rounds.
    pub rounds: usize,
    /// Parts of the names of cases; all if empty.
    pub filters: Vec<String>,
    /// Length of one sample of load.
    pub length: Duration,
    /// Nodes of the full cluster.
    pub nodes: usize,
    /// Pods of the full cluster.
    pub pods: usize,
}

/// A case: its name, unit, whether more is better, what Kubernetes does, what is promised.
struct Case {
    name: &'static str,
    unit: &'static str,
    more_is_better: bool,
    kubernetes: Option<f64>,
    limit: Option<f64>,
}

const fn more(name: &'static str, unit: &'static str, kubernetes: Option<f64>, limit: Option<f64>) -> Case {
    Case {
        name,
        unit,
        more_is_better: true,
        kubernetes,
        limit,
    }
}

const fn less(name: &'static str, unit: &'static str, kubernetes: Option<f64>, limit: Option<f64>) -> Case {
    Case {
        more_is_better: false,
        ..more(name, unit, kubernetes, limit)
    }
}

const CASES: &[Case] = &[
    less("start-empty", "ms", Some(3000.0), Some(300.0)),
    less("idle/rss", "MB", Some(535.0), Some(40.0)),
    less("disk/fsync", "ms", None, None),
    more("configmap/create", "ops/s", Some(1059.0), Some(5000.0)),
    more("configmap/get", "ops/s", Some(1726.0), Some(15000.0)),
    more("configmap/update", "ops/s", Some(814.0), Some(5000.0)),
    less("watch-1/p50", "ms", Some(4.6), None),
    less("watch-1/answer-p50", "ms", None, None),
    less("watch-1/beyond-fsync", "ms", None, Some(0.5)),
    // At 50 writes a second; ours is at 1,000.
    less("watch-100/p99", "ms", Some(20.0), Some(5.0)),
    less("watch-100/answer-p99", "ms", None, None),
    more("deploy-5000/created", "pods/s", Some(289.0), Some(1500.0)),
    more("deploy-5000/bound", "pods/s", Some(98.0), Some(1500.0)),
    more("deploy-5000/running", "pods/s", None, None),
    less("deploy-5000/cpu", "CPU s", None, None),
    less("list-5000-pods", "ms", Some(270.0), Some(60.0)),
    // All processes together, after 5,000 pods.
    less("full/rss", "MB", Some(1249.0), Some(400.0)),
    less("full/store", "MB", None, None),
    less("full/idle-cpu", "CPU %", None, None),
    less("node-loss", "s", None, None),
    less("start-full", "ms", None, Some(1000.0)),
    more("schedule-1000", "decisions/s", Some(745.0), Some(5000.0)),
    more("schedule-5000", "decisions/s", Some(745.0), Some(2000.0)),
];

/// The names of all cases.
pub fn names() -> Vec<&'static str> {
    CASES.iter().map(|case| case.name).collect()
}

/// What was measured, by case.
#[derive(Default)]
struct Samples(BTreeMap<&'static str, Vec<f64>>);

impl Samples {
    fn put(&mut self, case: &'static str, value: f64) {
        self.0.entry(case).or_default().push(value);
    }
}

impl Options {
    fn wants(&self, case: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| case.contains(filter.as_str()))
    }

    fn wants_any(&self, cases: &[&str]) -> bool {
        cases.iter().any(|case| self.wants(case))
    }
}

/// Measures; `say` is told what happens.
///
/// # Errors
/// If no case is named so, or the control plane does not do what is asked of it in time.
pub fn run(options: &Options, mut say: impl FnMut(&str)) -> Result<Vec<Row>> {
    ensure!(
        CASES.iter().any(|case| options.wants(case.name)),
        "no case is named so; the cases are {}",
        names().join(", ")
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let mut samples = Samples::default();
    for round in 1..=options.rounds {
        say(&format!("round {round} of {}", options.rounds));
        runtime.block_on(async {
            api(options, round, &mut samples, &mut say).await?;
            deploy(options, &mut samples, &mut say).await?;
            full(options, &mut samples, &mut say).await
        })?;
        if options.wants("schedule-1000") {
            samples.put(
                "schedule-1000",
                decisions::run(1000, PODS, CONSTRAINED).per_second(),
            );
        }
        if options.wants("schedule-5000") {
            samples.put(
                "schedule-5000",
                decisions::run(5000, 4 * PODS, CONSTRAINED).per_second(),
            );
        }
    }
    Ok(rows(options, &samples))
}

fn rows(options: &Options, samples: &Samples) -> Vec<Row> {
    let wanted = CASES.iter().filter(|case| options.wants(case.name));
    wanted
        .filter_map(|case| {
            let own = samples.0.get(case.name)?.clone();
            let mut all = BTreeMap::from([(WEFT.to_owned(), own)]);
            all.extend(case.kubernetes.map(|value| (KUBERNETES.to_owned(), vec![value])));
            all.extend(case.limit.map(|value| (LIMIT.to_owned(), vec![value])));
            Some(Row {
                case: case.name.to_owned(),
                unit: case.unit,
                more_is_better: case.more_is_better,
                samples: all,
                promised: case.limit.map(|_| (LIMIT.to_owned(), 1.0)).into_iter().collect(),
            })
        })
        .collect()
}

/// An empty server, and the API alone.
async fn api(
    options: &Options,
    round: usize,
    samples: &mut Samples,
    say: &mut impl FnMut(&str),
) -> Result<()> {
    const WORK: [(&str, Work); 3] = [
        ("configmap/create", Work::Create),
        ("configmap/get", Work::Get),
        ("configmap/update", Work::Update),
    ];
    let watching = options.wants_any(&[
        "disk/fsync",
        "watch-1/p50",
        "watch-1/answer-p50",
        "watch-1/beyond-fsync",
    ]);
    let load = WORK.iter().any(|(case, _)| options.wants(case));
    if !(watching
        || load
        || options.wants_any(&["start-empty", "idle/rss", "watch-100/p99", "watch-100/answer-p99"]))
    {
        return Ok(());
    }
    let plane = Plane::start().await?;
    samples.put("start-empty", ms(plane.start_up));
    if options.wants("idle/rss") {
        tokio::time::sleep(SETTLE).await;
        samples.put("idle/rss", plane.rss()?);
    }
    if watching {
        say("one watcher");
        let fsync = load::fsync(plane.dir())?;
        let single = load::watch_single(&plane.target, round).await?;
        samples.put("disk/fsync", fsync);
        samples.put("watch-1/p50", single.observed);
        samples.put("watch-1/answer-p50", single.answered);
        samples.put("watch-1/beyond-fsync", (single.observed - fsync).max(0.0));
    }
    if options.wants_any(&["watch-100/p99", "watch-100/answer-p99"]) {
        say("100 watchers, 1,000 writes a second");
        let length = options.length.max(Duration::from_secs(1));
        let crowd = load::watch_crowd(&plane.target, round, length).await?;
        samples.put("watch-100/p99", crowd.observed);
        samples.put("watch-100/answer-p99", crowd.answered);
    }
    if load {
        for (case, work) in WORK {
            say(&format!("16 clients: {case}"));
            let rate = load::config_maps(&plane.target, work, round, options.length).await?;
            samples.put(case, rate);
        }
    }
    Ok(())
}

/// A Deployment of 5,000 on 500 nodes, from nothing.
async fn deploy(options: &Options, samples: &mut Samples, say: &mut impl FnMut(&str)) -> Result<()> {
    if !options.wants_any(&[
        "deploy-5000/created",
        "deploy-5000/bound",
        "deploy-5000/running",
        "deploy-5000/cpu",
        "list-5000-pods",
    ]) {
        return Ok(());
    }
    let plane = Plane::start().await?;
    say(&format!("{NODES} nodes join"));
    let fleet = Fleet::join(&plane.target, NODES).await?;
    let observer = Observer::start(&plane.target).await?;
    say(&format!("a Deployment of {PODS}"));
    let cpu = plane.cpu()?;
    let began = Instant::now();
    fleet.deploy("bench", PODS).await?;
    let (created, bound, running) = tokio::try_join!(
        observer.wait("created", PATIENCE, |counts| counts.created >= PODS),
        observer.wait("bound", PATIENCE, |counts| counts.bound >= PODS),
        observer.wait("running", PATIENCE, |counts| counts.running >= PODS),
    )?;
    let rate = |at: Instant| 5000.0 / at.duration_since(began).as_secs_f64();
    samples.put("deploy-5000/created", rate(created));
    samples.put("deploy-5000/bound", rate(bound));
    samples.put("deploy-5000/running", rate(running));
    samples.put("deploy-5000/cpu", plane.cpu()? - cpu);
    if options.wants("list-5000-pods") {
        let path = "/api/v1/pods?resourceVersion=0";
        samples.put(
            "list-5000-pods",
            load::list(&plane.target, path, PODS * 500).await?,
        );
    }
    Ok(())
}

/// A full cluster: what it weighs, the loss of a tenth of its nodes, and a start over its store.
async fn full(options: &Options, samples: &mut Samples, say: &mut impl FnMut(&str)) -> Result<()> {
    if !options.wants_any(&[
        "full/rss",
        "full/store",
        "full/idle-cpu",
        "node-loss",
        "start-full",
    ]) {
        return Ok(());
    }
    let (nodes, pods) = (options.nodes, options.pods);
    let mut plane = Plane::start().await?;
    say(&format!("{nodes} nodes join"));
    let fleet = Fleet::join(&plane.target, nodes).await?;
    let observer = Observer::start(&plane.target).await?;
    say(&format!("{pods} pods"));
    // One Deployment after the other: clients and server share the machine's cores, and with all of them at once some nodes
    // would not get to say that they live.
    let mut there = 0;
    while there < pods {
        let replicas = (pods - there).min(PODS);
        fleet.deploy(&format!("full-{}", there / PODS), replicas).await?;
        there += replicas;
        observer
            .wait("running", PATIENCE, |counts| counts.running >= there)
            .await?;
    }
    if options.wants_any(&["full/rss", "full/store", "full/idle-cpu"]) {
        tokio::time::sleep(SETTLE).await;
        samples.put("full/rss", plane.rss()?);
        samples.put("full/store", plane.store_size()?);
        let (cpu, began) = (plane.cpu()?, Instant::now());
        tokio::time::sleep(SETTLE).await;
        samples.put(
            "full/idle-cpu",
            (plane.cpu()? - cpu) / began.elapsed().as_secs_f64() * 100.0,
        );
    }
    if options.wants("node-loss") {
        say("a tenth of the nodes falls silent");
        let began = Instant::now();
        let lost = fleet.lose_a_tenth();
        while observer.running_elsewhere(&lost) < pods {
            if began.elapsed() > PATIENCE {
                bail!(
                    "{} of {pods} pods run {PATIENCE:?} after the loss of nodes",
                    observer.running_elsewhere(&lost)
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        samples.put("node-loss", began.elapsed().as_secs_f64());
    }
    if options.wants("start-full") {
        say("a start over the full store");
        drop(observer);
        drop(fleet);
        plane.restart().await?;
        samples.put("start-full", ms(plane.start_up));
    }
    Ok(())
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
