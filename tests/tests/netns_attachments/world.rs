use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ipnetwork::IpNetwork;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_agent::{
    config::Encap,
    datapath::programs::DEFAULT_FILTER_BLOCK,
    desired::{Cluster, NodeRecord},
    endpoint::{AddRequest, Attached, AttachmentKey, EndpointError, Endpoints, EndpointsOptions},
    reconcile::network::{Network, NetworkError, NetworkOptions},
};

pub(crate) const NODE: &str = "node-a";
pub(crate) const NODE_V4: &str = "192.0.2.1";
pub(crate) const NODE_V6: &str = "2001:db8::1";
pub(crate) const POD_CIDRS: [&str; 2] = ["10.7.1.0/24", "fd07:0:0:1::/64"];
/// The kernel does much of this some time after it was asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on a thread with namespaces of its own, which has an underlay device.
pub(crate) fn in_namespaces<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("unshare: these tests need root");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("make mounts private");
        for line in [
            "link set lo up",
            "link add under0 type veth peer name under1",
            "addr add 192.0.2.1/24 dev under0",
            "addr add 2001:db8::1/64 dev under0 nodad",
            "link set under0 up",
            "link set under1 up",
        ] {
            ip(line);
        }
        // The kernel hears of the carrier some time after, and adds an address and a route to the device then.
        weft_lab::wait_for("the carrier of under0", PATIENCE, || {
            let routes = ip("-6 route show dev under0");
            routes.contains("fe80::/64").then_some(())
        })
        .unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` in the node's netns and expects success.
pub(crate) fn ip(line: &str) -> String {
    run(Command::new("ip").args(line.split_whitespace()))
}

/// What `ip -j` says, in the node's netns.
pub(crate) fn ip_json(line: &str) -> Vec<Value> {
    let text = run(Command::new("ip")
        .arg("-j")
        .arg("-d")
        .args(line.split_whitespace()));
    if text.trim().is_empty() {
        Vec::new()
    } else {
        serde_json::from_str(&text).unwrap()
    }
}

pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The names of the node's links but for the test's own.
pub(crate) fn links() -> Vec<String> {
    ip_json("link show")
        .iter()
        .map(|link| link["ifname"].as_str().unwrap().to_owned())
        .filter(|name| !["lo", "under0", "under1"].contains(&name.as_str()))
        .collect()
}

/// The pods' veths that the node has.
pub(crate) fn host_ends() -> Vec<String> {
    links()
        .into_iter()
        .filter(|name| name.starts_with("wv"))
        .collect()
}

pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A node without an API server: the agent's library, told what the API would tell.
pub(crate) struct TestNode {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cluster: Cluster,
    pub(crate) rest: Duration,
    pub(crate) network: Network,
    pub(crate) endpoints: Endpoints,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

pub(crate) fn cluster(pod_cidrs: &[&str]) -> Cluster {
    let own = NodeRecord {
        ips: vec![NODE_V4.parse().unwrap(), NODE_V6.parse().unwrap()],
        pod_cidrs: pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
    };
    Cluster {
        nodes: [(NODE.to_owned(), own)].into(),
    }
}

pub(crate) fn options(dir: &Path) -> NetworkOptions {
    NetworkOptions {
        node_name: NODE.to_owned(),
        node_ips: Vec::new(),
        underlay: Some("under0".to_owned()),
        overlay: "weft0".to_owned(),
        vni: 7,
        tunnel_port: 4789,
        encap: Encap::Program,
        filter_block: DEFAULT_FILTER_BLOCK,
        cluster_cidrs: Vec::new(),
        bpffs: dir.join("bpf"),
        sysctl_record: dir.join("state/sysctl.json"),
    }
}

pub(crate) fn bring_up(dir: &Path, cluster: &Cluster) -> Result<Network, NetworkError> {
    fs::create_dir_all(dir.join("state")).unwrap();
    let mut network = Network::bring_up(options(dir), cluster)?;
    network.reconcile(cluster)?;
    Ok(network)
}

impl TestNode {
    pub(crate) async fn new() -> Self {
        Self::with_cidrs(&POD_CIDRS).await
    }

    pub(crate) async fn with_cidrs(pod_cidrs: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::start(dir, cluster(pod_cidrs), Duration::from_secs(30)).await
    }

    async fn start(dir: tempfile::TempDir, cluster: Cluster, rest: Duration) -> Self {
        let network = bring_up(dir.path(), &cluster).unwrap();
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let options = EndpointsOptions {
            datapath: network.datapath(),
            state_dir: dir.path().join("state"),
            pod_cidrs: cluster.nodes[NODE].pod_cidrs.clone(),
            address_rest: rest,
        };
        let endpoints = Endpoints::start(options, &tasks, shutdown.clone()).await.unwrap();
        Self {
            dir,
            cluster,
            rest,
            network,
            endpoints,
            tasks,
            shutdown,
        }
    }

    /// Ends the agent's part and starts another on what it left. `between` does what happens meanwhile.
    pub(crate) async fn restart(self, between: impl FnOnce(&Path)) -> Self {
        let Self {
            dir,
            cluster,
            rest,
            network,
            endpoints,
            tasks,
            shutdown,
        } = self;
        shutdown.cancel();
        drop(endpoints);
        tasks.close();
        tasks.wait().await;
        drop(network);
        between(dir.path());
        Self::start(dir, cluster, rest).await
    }

    /// Ends the agent's part.
    pub(crate) async fn stop(self) -> tempfile::TempDir {
        let Self {
            dir,
            network,
            endpoints,
            tasks,
            shutdown,
            ..
        } = self;
        shutdown.cancel();
        drop((endpoints, network));
        tasks.close();
        tasks.wait().await;
        dir
    }

    pub(crate) fn pod(&self, name: &str) -> Pod {
        Pod::new(self.dir.path().join(format!("netns-{name}")))
    }

    pub(crate) async fn add(&self, container: &str, pod: &Pod) -> Result<Attached, EndpointError> {
        self.endpoints
            .add(AddRequest::new(key(container), &pod.path))
            .await
    }

    /// One pass of the reconciler, as after an event.
    pub(crate) async fn reconcile(&mut self) {
        self.network.reconcile(&self.cluster).unwrap();
        self.endpoints.repair().await.unwrap();
        // A request for each attachment waits for its mending.
        for summary in self.endpoints.list().await.unwrap() {
            let _ = self.endpoints.check(summary.key, None).await;
        }
    }

    /// The addresses in the datapath's tables.
    pub(crate) fn entries(&self) -> Vec<IpAddr> {
        let entries = self.network.datapath().dataplane.endpoints().unwrap();
        entries.into_iter().map(|(ip, _)| ip).collect()
    }

    pub(crate) fn checkpoints(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir.path().join("state/endpoints")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    pub(crate) async fn leased(&self) -> usize {
        self.endpoints
            .usage()
            .await
            .unwrap()
            .pools
            .iter()
            .map(|pool| pool.leased)
            .sum()
    }

    /// Nothing of any attachment is anywhere.
    pub(crate) async fn assert_nothing_left(&self) {
        assert_eq!(host_ends(), Vec::<String>::new(), "links");
        assert_eq!(self.entries(), Vec::<IpAddr>::new(), "entries");
        assert_eq!(self.checkpoints(), Vec::<PathBuf>::new(), "checkpoints");
        assert_eq!(self.leased().await, 0, "leases");
    }
}

pub(crate) fn key(container: &str) -> AttachmentKey {
    AttachmentKey::new(container, "eth0")
}

/// A netns for a pod, kept by a bind mount.
pub(crate) struct Pod {
    pub(crate) path: PathBuf,
}

impl Pod {
    fn new(path: PathBuf) -> Self {
        File::create(&path).unwrap();
        let target = path.clone();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let bind = MsFlags::MS_BIND;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                None::<&str>,
                bind,
                None::<&str>,
            )
            .unwrap();
        })
        .join()
        .unwrap();
        Self { path }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path.display())).arg(program);
        command
    }

    /// Runs a program in the pod's netns and expects success.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        run(self.command(program).args(args))
    }

    pub(crate) fn ip(&self, line: &str) -> String {
        run(self.command("ip").args(line.split_whitespace()))
    }

    pub(crate) fn ip_json(&self, line: &str) -> Vec<Value> {
        let text = run(self.command("ip").arg("-j").args(line.split_whitespace()));
        if text.trim().is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(&text).unwrap()
        }
    }

    pub(crate) fn links(&self) -> Vec<String> {
        self.ip_json("link show")
            .iter()
            .map(|link| link["ifname"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The addresses of its interface that reach beyond the link.
    pub(crate) fn addresses(&self) -> Vec<IpNetwork> {
        let infos = self.ip_json("addr show dev eth0 scope global");
        infos
            .iter()
            .flat_map(|info| info["addr_info"].as_array().cloned().unwrap_or_default())
            .filter(|info| info["local"].is_string())
            .map(|info| {
                format!("{}/{}", info["local"].as_str().unwrap(), info["prefixlen"])
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    /// Drops the netns.
    pub(crate) fn remove(&self) {
        nix::mount::umount2(&self.path, nix::mount::MntFlags::MNT_DETACH).unwrap();
        fs::remove_file(&self.path).unwrap();
    }
}
