//! The demo: three nodes on this machine, pods that reach each other, a node that dies and comes back.

mod screen;
mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::binaries;
use crate::cluster::{Cluster, ClusterOptions, condition};
use crate::image::ImageBuilder;
use crate::lab::Lab;
use crate::leaks;
use crate::pods::Place;
use crate::probe::check::{Outcome, Protocol};
use crate::process::Process;
use crate::wait::wait_until;

use screen::Screen;
use table::Matrix;

/// The image's name in `demo.yaml`.
pub const IMAGE: &str = "weft.local/probe:demo";

/// What is applied.
const YAML: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/demo.yaml");

/// How many replicas `demo.yaml` asks for.
const REPLICAS: usize = 6;

/// Where the pods serve, and where a node's own server does, which is not a pod.
const POD_PORT: u16 = 8080;
const NODE_PORT: u16 = 9000;

/// All pods have to be ready this soon after they were applied.
const READY_TARGET: Duration = Duration::from_secs(5);

/// How long each step may take before the demo has failed.
const DEADLINE: Duration = Duration::from_mins(1);

const ALL: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

/// Writes the demo's image, made of the project's own probe, as an OCI archive.
///
/// # Errors
/// If the probe is not built or the file cannot be written.
pub fn write_image(path: &Path) -> Result<()> {
    ImageBuilder::new(IMAGE)
        .program("/weft-probe", binaries::find("weft-probe")?)
        .directory("/tmp", 0o1777)
        .entrypoint(["/weft-probe"])
        .write(path)
}

/// Runs the demo in `lab`, or, with `hold`, only its first part and then waits; whoever holds the lab may end it at any moment.
///
/// # Errors
/// If anything did not hold.
pub fn run(lab: Lab, hold: bool) -> Result<()> {
    let id = lab.id().to_owned();
    let screen = Screen::new();
    let start = Instant::now();
    let outcome = show(lab.clone(), screen, hold);
    if lab.is_ended() {
        return outcome; // whoever ended it says so
    }
    if outcome.is_err() {
        // Before the logs are removed.
        eprintln!("{}", lab.log_tails(20));
    }
    screen.during("cleaning up", || {
        lab.teardown();
        Ok(())
    })?;
    drop(lab);
    let left = leaks::of_lab(&id);
    outcome?;
    if !left.is_empty() {
        bail!("left behind on this machine:\n  {}", left.join("\n  "));
    }
    screen.good("nothing is left on this machine: no namespace, link, mount, cgroup, pin or process");
    screen.title(&format!(
        "everything held ({:.0} s)",
        start.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn show(lab: Lab, screen: Screen, hold: bool) -> Result<()> {
    screen.title("three nodes, one controller");
    let mut options = ClusterOptions::new("demo");
    options.nodes = 3;
    options.agent.runs_pods = true;
    let mut cluster = screen.during(
        "starting the controller and three agents, which join by token",
        || Cluster::start_in(lab, options),
    )?;
    for node in &mut cluster.nodes {
        let ips: Vec<String> = node.ips().iter().map(ToString::to_string).collect();
        let pid = node.agent()?.pid();
        screen.note(&format!("{}  {}  agent {pid}", node.name(), ips.join("  ")));
    }

    let archive = cluster.lab().root().join("probe.tar");
    screen.during(
        "building the image and loading it into every node's store",
        || {
            write_image(&archive)?;
            for node in &cluster.nodes {
                node.load_image(&archive)?;
            }
            Ok(())
        },
    )?;

    screen.title("a Deployment of 6 replicas and a pod on its node's network");
    let applied = Instant::now();
    apply(&cluster, screen)?;
    let pods = screen.during("waiting until all are ready", || wait_pods(&cluster, &[]))?;
    let took = applied.elapsed();
    let line = format!(
        "all {} pods ready {:.1} s after they were applied",
        pods.len(),
        took.as_secs_f64()
    );
    if took > READY_TARGET {
        bail!("{line}; the promise is {} s", READY_TARGET.as_secs());
    }
    screen.good(&line);
    show_pods(screen, &pods);
    if hold {
        look_around(&cluster, screen);
        return Ok(());
    }
    check_all(&cluster, screen, &pods, &[])?;

    // The pod on the node's network has no owner which would place it anew.
    let edge = pods
        .iter()
        .find(|pod| pod.is_host)
        .context("a pod on its node's network")?;
    let victim = (0..cluster.nodes.len())
        .rev()
        .find(|at| cluster.nodes[*at].name() != edge.node)
        .context("a node without it")?;
    lose_and_heal(&mut cluster, screen, victim)
}

/// Says how to enter the machines, and waits until a signal ends the lab.
fn look_around(cluster: &Cluster, screen: Screen) {
    screen.title("everything stays as it is until Ctrl-C");
    let control = cluster.control.machine();
    let machines = cluster
        .nodes
        .iter()
        .map(crate::node::Node::machine)
        .chain([control]);
    for machine in machines {
        screen.note(&format!(
            "{:8}  nsenter --target {} --all",
            machine.name(),
            machine.holder_pid()
        ));
    }
    screen.note(&format!(
        "on control: export KUBECONFIG={}",
        cluster.control.kubeconfig().display()
    ));
    while control.is_alive() {
        std::thread::park_timeout(Duration::from_secs(1));
    }
}

fn lose_and_heal(cluster: &mut Cluster, screen: Screen, victim: usize) -> Result<()> {
    let name = cluster.nodes[victim].name().to_owned();
    screen.title(&format!("{name} dies: its agent is killed and its links go down"));
    let died = Instant::now();
    cluster.nodes[victim].kill_agent()?;
    cluster.fabric.set_link(cluster.nodes[victim].port(), false)?;
    screen.during("waiting until the controller sees it", || {
        cluster.wait_node(&name, false, DEADLINE)
    })?;
    screen.good(&format!(
        "{name} is NotReady after {:.1} s",
        died.elapsed().as_secs_f64()
    ));
    let pods = screen.during("waiting until its replicas run elsewhere", || {
        wait_pods(cluster, &[&name])
    })?;
    screen.good(&format!(
        "{REPLICAS} replicas are ready again after {:.1} s, none of them on {name}",
        died.elapsed().as_secs_f64()
    ));
    show_pods(screen, &pods);
    check_all(cluster, screen, &pods, &[&name])?;

    screen.title(&format!("{name} comes back"));
    cluster.fabric.set_link(cluster.nodes[victim].port(), true)?;
    cluster.nodes[victim].start_agent()?;
    screen.during("waiting until it is ready", || {
        cluster.wait_node(&name, true, DEADLINE)
    })?;
    screen.good(&format!("{name} is Ready"));
    let node = &cluster.nodes[victim];
    screen.during("waiting until it has dropped the pods it lost", || {
        wait_until("its pods to be gone", DEADLINE, || {
            let kept = node.pod_netns()?;
            let wanted: Vec<&str> = pods
                .iter()
                .filter(|pod| pod.node == name)
                .map(|pod| pod.uid.as_str())
                .collect();
            match kept.iter().find(|uid| !wanted.contains(&uid.as_str())) {
                Some(uid) => bail!("it still has the pod {uid}"),
                None => Ok(()),
            }
        })
    })?;
    let pods = wait_pods(cluster, &[])?;
    check_all(cluster, screen, &pods, &[])
}

/// A pod as the API shows it.
#[derive(Clone, Debug)]
struct Pod {
    name: String,
    uid: String,
    node: String,
    ips: Vec<IpAddr>,
    is_host: bool,
}

fn apply(cluster: &Cluster, screen: Screen) -> Result<()> {
    if let Some(kubectl) = cluster.kubectl() {
        screen.note("kubectl apply -f tests/demo.yaml");
        for line in kubectl.run(&["apply", "-f", YAML])?.lines() {
            screen.note(line);
        }
        return Ok(());
    }
    screen.note("no kubectl on the PATH: applying tests/demo.yaml with the project's own client");
    let text = std::fs::read_to_string(YAML).with_context(|| format!("read {YAML}"))?;
    cluster.client.apply_yaml(&text)
}

/// Waits until every replica and the pod on its node's network are ready, and none of them is on a node of `without`.
fn wait_pods(cluster: &Cluster, without: &[&str]) -> Result<Vec<Pod>> {
    wait_until("all pods to be ready", DEADLINE, || {
        let mut ready = Vec::new();
        for object in cluster.client.list("Pod", "default", "")? {
            let pod = read_pod(&object)?;
            let is_deleted = !object["metadata"]["deletionTimestamp"].is_null();
            if is_deleted || without.contains(&pod.node.as_str()) {
                continue;
            }
            if condition(&object, "Ready").as_deref() == Some("True") {
                ready.push(pod);
            }
        }
        let replicas = ready.iter().filter(|pod| !pod.is_host).count();
        let edges = ready.len() - replicas;
        if (replicas, edges) != (REPLICAS, 1) {
            bail!(
                "{replicas} of {REPLICAS} replicas and {edges} of 1 pods on their node's network are ready"
            );
        }
        let deployment = cluster
            .client
            .get("Deployment", "default", "web")?
            .context("no Deployment web")?;
        if deployment["status"]["readyReplicas"] != REPLICAS {
            bail!("the Deployment says {}", deployment["status"]);
        }
        ready.sort_by(|a, b| (&a.node, &a.name).cmp(&(&b.node, &b.name)));
        Ok(ready)
    })
}

fn read_pod(object: &Value) -> Result<Pod> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut ips = Vec::new();
    for entry in object["status"]["podIPs"].as_array().into_iter().flatten() {
        let ip = entry["ip"].as_str().unwrap_or_default();
        ips.push(ip.parse().with_context(|| format!("a pod's address: {ip:?}"))?);
    }
    Ok(Pod {
        name: text(&object["metadata"]["name"]),
        uid: text(&object["metadata"]["uid"]),
        node: text(&object["spec"]["nodeName"]),
        ips,
        is_host: object["spec"]["hostNetwork"] == true,
    })
}

fn show_pods(screen: Screen, pods: &[Pod]) {
    let width = pods.iter().map(|pod| pod.name.len()).max().unwrap_or(0);
    for pod in pods {
        let ips: Vec<String> = pod.ips.iter().map(ToString::to_string).collect();
        let host = if pod.is_host { "  (host network)" } else { "" };
        screen.note(&format!(
            "{:width$}  {}  {}{host}",
            pod.name,
            pod.node,
            ips.join("  ")
        ));
    }
}

/// Every pod to every pod, every node to every pod, every pod to every node, over TCP, UDP and ICMP and both families.
fn check_all(cluster: &Cluster, screen: Screen, pods: &[Pod], without: &[&str]) -> Result<()> {
    let mut pod_places = Vec::new();
    for pod in pods {
        let node = &cluster.nodes[cluster.node_index(&pod.node)?];
        let netns: Option<PathBuf> = (!pod.is_host).then(|| node.netns_of_pod(&pod.uid));
        pod_places.push(Place {
            name: pod.name.clone(),
            machine: node.machine().clone(),
            netns,
            ips: pod.ips.clone(),
        });
    }
    let nodes: Vec<Place> = cluster
        .nodes
        .iter()
        .filter(|node| !without.contains(&node.name()))
        .map(crate::node::Node::place)
        .collect();
    let _servers: Vec<Process> = nodes
        .iter()
        .map(|node| node.serve(NODE_PORT))
        .collect::<Result<_>>()?;

    for (title, from, to, port) in [
        ("pod → pod", &pod_places, &pod_places, POD_PORT),
        ("node → pod", &nodes, &pod_places, POD_PORT),
        ("pod → node", &pod_places, &nodes, NODE_PORT),
    ] {
        let matrix = screen.during(&format!("asking: {title}"), || ask(title, from, to, port))?;
        for line in matrix.lines() {
            screen.plain(&line);
        }
        if !matrix.is_complete() {
            bail!("{title}: not everyone was reached with its source address kept");
        }
    }
    Ok(())
}

/// Asks from every place every place; a target may need a moment after its node's peers have learnt of it.
fn ask(title: &str, from: &[Place], to: &[Place], port: u16) -> Result<Matrix> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let mut answers: BTreeMap<usize, Vec<Outcome>> = BTreeMap::new();
        let targets: Vec<SocketAddr> = to.iter().flat_map(|place| place.sockets(port)).collect();
        for (row, place) in from.iter().enumerate() {
            answers.insert(row, place.check(&targets, ALL)?);
        }
        let matrix = Matrix::new(title, from, to, &answers);
        if matrix.is_complete() || Instant::now() > deadline {
            return Ok(matrix);
        }
    }
}
