//! A real runtime calls the plugin: Debian's containerd by `ctr run --cni`.
//!
//! `ctr` takes plugins and configuration from fixed directories, so the machine gets its own view of `/etc` and `/opt`;
//! nothing outside of its mount namespace changes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_lab::image::ImageBuilder;
use weft_lab::leaks::Snapshot;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Machine, Node, Process, binaries};

const IMAGE: &str = "weft.test/probe:1";

#[test]
fn ctr_run_attaches_and_detaches() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new("containerd")
    })?;
    let node = &cluster.nodes[0];
    let containerd = Containerd::start(node)?;
    let before = snapshot(node)?;

    // The container reaches the node, which sees the container's own address.
    let node_ip = node.port().ipv4;
    let server = node.place().serve(8099)?;
    let text = containerd.ctr(&format!(
        "run --rm --cni --snapshotter native --cgroup /{}/ctr {IMAGE} one /weft-probe check {node_ip}:8099 --protocols tcp,udp",
        node.machine().lab().cgroup().display()
    ))?;
    let outcomes: serde_json::Value =
        serde_json::from_str(text.trim()).with_context(|| format!("{text:?}"))?;
    for outcome in outcomes.as_array().context("a list")? {
        let seen = outcome["seen"].as_str().unwrap_or_default();
        ensure!(
            seen.starts_with("10.244."),
            "the node sees the container's own address: {outcome}"
        );
    }
    drop(server);
    wait_until("the node to be as before", Duration::from_secs(20), || {
        before.assert_nothing_added(&snapshot(node)?)
    })
}

struct Containerd {
    machine: Machine,
    socket: String,
    _process: Process,
}

impl Containerd {
    fn start(node: &Node) -> Result<Self> {
        let machine = node.machine().clone();
        let dir = machine.dir().join("containerd");
        fs::create_dir_all(&dir)?;
        own_directories(&machine, &dir, node)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        fs::write(&config, configuration(&dir))?;
        let args = ["--config".to_owned(), config.display().to_string()];
        let process = machine.spawn("containerd", "containerd", &args)?;
        let this = Self {
            machine,
            socket: socket.display().to_string(),
            _process: process,
        };
        wait_until("containerd", Duration::from_secs(30), || {
            this.ctr("version").map(drop)
        })?;

        let archive = dir.join("image.tar");
        ImageBuilder::new(IMAGE)
            .program("/weft-probe", binaries::find("weft-probe")?)
            .write(&archive)?;
        this.ctr(&format!(
            "images import --snapshotter native {}",
            archive.display()
        ))?;
        Ok(this)
    }

    fn ctr(&self, args: &str) -> Result<String> {
        self.machine
            .run(&format!("timeout 60 ctr -a {} -n weft-test {args}", self.socket))
    }
}

/// Gives the machine a view of its own of the directories that are fixed in `ctr`.
fn own_directories(machine: &Machine, dir: &Path, node: &Node) -> Result<()> {
    let (upper, work) = (dir.join("etc"), dir.join("etc.work"));
    fs::create_dir_all(upper.join("cni/net.d"))?;
    fs::create_dir_all(&work)?;
    let plugin = json!({
        "type": "weft-cni", "agentSocket": node.socket(), "queueDir": node.queue_dir(),
    });
    // containerd 1.6 takes lists up to 1.0.0.
    let list = json!({"cniVersion": "1.0.0", "name": "weft", "plugins": [plugin]});
    fs::write(upper.join("cni/net.d/10-weft.conflist"), list.to_string())?;
    machine.run(&format!(
        "mount -t overlay overlay -o lowerdir=/etc,upperdir={},workdir={} /etc",
        upper.display(),
        work.display()
    ))?;
    machine.run("mount -t tmpfs none /opt")?;
    machine.run("mkdir -p /opt/cni/bin")?;
    machine.run(&format!(
        "ln -s {} /opt/cni/bin/weft-cni",
        binaries::find("weft-cni")?.display()
    ))?;
    Ok(())
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{dir}/containerd.sock"
[ttrpc]
  address = "{dir}/containerd.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
"#
    )
}

fn snapshot(node: &Node) -> Result<Snapshot> {
    Ok(Snapshot::take(node.machine(), &[])?.filtered(|kind, _| matches!(kind, "link" | "route")))
}
