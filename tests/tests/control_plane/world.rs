//! A control plane in this process (or in one of its own, to be killed) and nodes that only pretend to run pods.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft_controller::controllers::ControllersConfig;
use weft_controller::pki::Authority;
use weft_lab::simulated;
pub(crate) use weft_lab::simulated::{deployment, pod_template};

pub(crate) const DEADLINE: Duration = Duration::from_mins(1);

/// Short times, so that tests need not wait as long as users may.
fn controllers() -> ControllersConfig {
    ControllersConfig {
        cluster_cidrs: vec![
            "10.244.0.0/16".parse().unwrap(),
            "fd00:10:244::/56".parse().unwrap(),
        ],
        node_monitor_period: Duration::from_millis(200),
        // But this one: a simulated node that stalls with this process is not dead.
        node_monitor_grace_period: Duration::from_mins(2),
        pod_eviction_timeout: Duration::from_secs(1),
        pod_gc_period: Duration::from_millis(500),
        ..ControllersConfig::default()
    }
}

/// What simulated nodes share.
#[derive(Default)]
struct Fleet {
    /// Name → whether it is alive.
    nodes: Mutex<BTreeMap<String, bool>>,
}

impl Fleet {
    fn alive(&self, name: &str) -> bool {
        self.nodes.lock().unwrap().get(name).copied().unwrap_or(false)
    }
}

enum Plane {
    Here {
        stop: CancellationToken,
        done: Option<JoinHandle<()>>,
    },
    Process {
        child: Child,
        port: u16,
        flags: Vec<String>,
    },
}

/// One cluster per test.
pub(crate) struct World {
    pub(crate) client: Client,
    dir: tempfile::TempDir,
    plane: Plane,
    fleet: Arc<Fleet>,
    stop: CancellationToken,
}

impl World {
    /// A control plane in this process.
    pub(crate) async fn start() -> Result<World> {
        Self::with(|_| ()).await
    }

    /// The same with other settings.
    pub(crate) async fn with(adjust: impl FnOnce(&mut ControllersConfig)) -> Result<World> {
        let dir = tempfile::tempdir()?;
        let mut settings = controllers();
        adjust(&mut settings);
        let config = weft_controller::Config {
            limits: weft_controller::api::Limits::default(),
            audit: None,
            encryption_key_file: dir.path().join("encryption.key"),
            data_dir: dir.path().to_owned(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertise_address: Ipv4Addr::LOCALHOST.into(),
            names: Vec::new(),
            addresses: Vec::new(),
            service_cidrs: vec![
                "10.96.0.0/16".parse().unwrap(),
                "fd00:10:96::/112".parse().unwrap(),
            ],
            controllers: settings,
            etcd: None,
            api_only: false,
            ready_file: Some(dir.path().join("ready")),
        };
        let stop = CancellationToken::new();
        let shutdown = stop.clone();
        let done = tokio::spawn(async move {
            if let Err(error) = weft_controller::run(config, shutdown).await {
                panic!("the control plane ended: {error:?}");
            }
        });
        Self::connect(
            dir,
            Plane::Here {
                stop,
                done: Some(done),
            },
        )
        .await
    }

    /// A control plane in a process of its own, which can be killed.
    pub(crate) async fn in_process() -> Result<World> {
        Self::in_process_with(&[]).await
    }

    /// The same with these flags.
    pub(crate) async fn in_process_with(flags: &[&str]) -> Result<World> {
        let dir = tempfile::tempdir()?;
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let flags: Vec<String> = flags.iter().map(ToString::to_string).collect();
        let child = spawn(dir.path(), port, &flags)?;
        Self::connect(dir, Plane::Process { child, port, flags }).await
    }

    /// A client with a node's certificate.
    pub(crate) async fn node_client(&self, node: &str) -> Result<Client> {
        let authority = Authority::open(&self.path("pki"))?;
        let credentials = authority.client(&format!("system:node:{node}"), Some("system:nodes"))?;
        let mut config = settings(self.dir.path()).await?;
        config.auth_info = kube::config::AuthInfo {
            client_certificate_data: Some(STANDARD.encode(credentials.certificate)),
            client_key_data: Some(STANDARD.encode(credentials.key).into()),
            ..kube::config::AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    async fn connect(dir: tempfile::TempDir, plane: Plane) -> Result<World> {
        let ready = dir.path().join("ready");
        eventually("the API to be ready", || async { ready.exists().then_some(()) }).await?;
        let client = client(dir.path()).await?;
        let world = World {
            client,
            dir,
            plane,
            fleet: Arc::default(),
            stop: CancellationToken::new(),
        };
        world.run_fleet();
        Ok(world)
    }

    /// Kills the control plane's process as a crash would, and starts it again on the same data.
    pub(crate) async fn crash(&mut self) -> Result<()> {
        let Plane::Process { child, port, flags } = &mut self.plane else {
            bail!("it runs in this process")
        };
        child.kill()?;
        child.wait()?;
        let _ = std::fs::remove_file(self.dir.path().join("ready"));
        *child = spawn(self.dir.path(), *port, flags)?;
        let ready = self.dir.path().join("ready");
        eventually("the API to be back", || async { ready.exists().then_some(()) }).await
    }

    /// Adds nodes that are alive, and waits until they have their pod CIDRs and no taint: a new node is not heard of at first.
    pub(crate) async fn join(&self, names: &[&str]) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        for name in names {
            self.fleet.nodes.lock().unwrap().insert((*name).to_owned(), true);
            nodes
                .create(&PostParams::default(), &node(name))
                .await
                .with_context(|| format!("create node {name}"))?;
            let status = json!({ "status": node_status("True") });
            nodes
                .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
                .await?;
        }
        for name in names {
            eventually(&format!("{name} to have pod CIDRs and no taint"), || async {
                let spec = nodes.get(name).await.ok()?.spec?;
                let has_cidrs = spec.pod_cidrs.is_some_and(|cidrs| !cidrs.is_empty());
                let is_untainted = spec.taints.is_none_or(|taints| taints.is_empty());
                (has_cidrs && is_untainted).then_some(())
            })
            .await?;
        }
        Ok(())
    }

    /// The node falls silent.
    pub(crate) fn kill_node(&self, name: &str) {
        self.fleet.nodes.lock().unwrap().insert(name.to_owned(), false);
    }

    /// The node is heard again.
    pub(crate) async fn heal_node(&self, name: &str) -> Result<()> {
        self.fleet.nodes.lock().unwrap().insert(name.to_owned(), true);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let status = json!({ "status": node_status("True") });
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
        // What was to be deleted while it was away goes now.
        let pods = self.pods("").await?;
        for pod in pods
            .iter()
            .filter(|pod| on(pod, name) && pod.metadata.deletion_timestamp.is_some())
        {
            delete_now(&self.client, pod).await;
        }
        Ok(())
    }

    /// Runs `kubectl` as the administrator; fails if it fails.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = tokio::process::Command::new("timeout")
            .args(["90", "kubectl"])
            .args(arguments)
            .env("KUBECONFIG", self.dir.path().join("admin.kubeconfig"))
            .env("HOME", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .await
            .context("kubectl is not installed")?;
        if !output.status.success() {
            let (out, error) = (output.stdout, output.stderr);
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            bail!("kubectl {arguments:?}: {}{}", text(&error), text(&out));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Where a file of the cluster is.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that `kubectl -f` can read.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Pods of the namespace `default` with a label selector.
    pub(crate) async fn pods(&self, selector: &str) -> Result<Vec<Pod>> {
        Ok(self
            .api::<Pod>()
            .list(&ListParams::default().labels(selector))
            .await?
            .items)
    }

    /// Pods with a label selector that are ready and not on their way out.
    pub(crate) async fn ready(&self, selector: &str) -> Result<Vec<Pod>> {
        let mut pods = self.pods(selector).await?;
        pods.retain(|pod| is_ready(pod) && pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    pub(crate) async fn wait_ready(&self, selector: &str, count: usize) -> Result<Vec<Pod>> {
        let what = format!("{count} ready pods with {selector}");
        let waited = eventually(&what, || async {
            self.ready(selector).await.ok().filter(|pods| pods.len() == count)
        });
        match waited.await {
            Ok(pods) => Ok(pods),
            Err(error) => Err(error.context(format!("there are {:#?}", self.summary(selector).await?))),
        }
    }

    /// One line for each pod, for failures.
    async fn summary(&self, selector: &str) -> Result<Vec<String>> {
        let pods = self.pods(selector).await?;
        let line = |pod: &Pod| {
            let node = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.node_name.clone())
                .unwrap_or_default();
            let leaving = pod.metadata.deletion_timestamp.is_some();
            format!(
                "{:?} on {node:?} ready {} leaving {leaving}",
                pod.metadata.name,
                is_ready(pod)
            )
        };
        Ok(pods.iter().map(line).collect())
    }

    pub(crate) async fn create<K>(&self, object: Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + DeserializeOwned,
    {
        let object: K = serde_json::from_value(object)?;
        Ok(self.api::<K>().create(&PostParams::default(), &object).await?)
    }

    pub(crate) async fn merge<K>(&self, name: &str, patch: Value) -> Result<K>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned,
    {
        Ok(self
            .api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?)
    }

    /// Messages of events about an object.
    pub(crate) async fn events(&self, name: &str, reason: &str) -> Result<Vec<String>> {
        let selector = format!("involvedObject.name={name},reason={reason}");
        let events: Api<Event> = Api::all(self.client.clone());
        let list = events.list(&ListParams::default().fields(&selector)).await?;
        Ok(list.items.into_iter().filter_map(|event| event.message).collect())
    }

    pub(crate) async fn deployment(&self, name: &str) -> Result<Deployment> {
        Ok(self.api::<Deployment>().get(name).await?)
    }

    pub(crate) async fn sets(&self) -> Result<Vec<ReplicaSet>> {
        Ok(self.api::<ReplicaSet>().list(&ListParams::default()).await?.items)
    }

    /// The nodes' half: pods of nodes that are alive run and end, and leases are renewed.
    fn run_fleet(&self) {
        let (client, fleet, stop) = (self.client.clone(), self.fleet.clone(), self.stop.clone());
        tokio::spawn(async move {
            let pods: Api<Pod> = Api::all(client.clone());
            let events = watcher(pods, watcher::Config::default())
                .default_backoff()
                .applied_objects();
            let mut events = Box::pin(events);
            while let Some(event) =
                tokio::select! { () = stop.cancelled() => None, event = events.next() => event }
            {
                let Ok(pod) = event else { continue };
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                if node.is_some_and(|node| fleet.alive(&node)) {
                    let client = client.clone();
                    tokio::spawn(async move { run_pod(&client, &pod).await });
                }
            }
        });
        let (client, fleet, stop) = (self.client.clone(), self.fleet.clone(), self.stop.clone());
        tokio::spawn(async move {
            let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
                Api::namespaced(client, "kube-node-lease");
            while !stop.is_cancelled() {
                let alive: Vec<String> = {
                    let nodes = fleet.nodes.lock().unwrap();
                    nodes
                        .iter()
                        .filter(|(_, alive)| **alive)
                        .map(|(name, _)| name.clone())
                        .collect()
                };
                for name in alive {
                    let lease = simulated::lease(&name, &format!("{:.6}", jiff::Timestamp::now()));
                    let patch = Patch::Merge(json!({ "spec": lease["spec"] }));
                    if leases
                        .patch(&name, &PatchParams::default(), &patch)
                        .await
                        .is_err()
                        && let Ok(lease) = serde_json::from_value(lease)
                    {
                        let _ = leases.create(&PostParams::default(), &lease).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
        // A node keeps trying what it could not report while the API was away; its heart does not wait for that.
        let (client, fleet, stop) = (self.client.clone(), self.fleet.clone(), self.stop.clone());
        tokio::spawn(async move {
            let pods: Api<Pod> = Api::all(client.clone());
            while !stop.is_cancelled() {
                if let Ok(list) = pods.list(&ListParams::default()).await {
                    for pod in list.items {
                        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                        if node.is_some_and(|node| fleet.alive(&node)) {
                            run_pod(&client, &pod).await;
                        }
                    }
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        match &mut self.plane {
            Plane::Here { stop, done } => {
                stop.cancel();
                if let Some(done) = done.take() {
                    done.abort();
                }
            }
            Plane::Process { child, .. } => {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

fn spawn(dir: &Path, port: u16, flags: &[String]) -> Result<Child> {
    let weft: PathBuf = weft_lab::binaries::find("weft")?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(dir.join("controller.log"))?;
    Ok(Command::new(weft)
        .args([
            "controller",
            "--listen",
            &format!("127.0.0.1:{port}"),
            "--advertise-address",
            "127.0.0.1",
        ])
        .args(["--cluster-cidr", "10.244.0.0/16"])
        .arg("--data-dir")
        .arg(dir)
        .arg("--ready-file")
        .arg(dir.join("ready"))
        .args(flags)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?)
}

async fn settings(dir: &Path) -> Result<kube::Config> {
    let kubeconfig = Kubeconfig::read_from(dir.join("admin.kubeconfig"))?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // Tests see each answer as it is; an eviction that is refused would be asked for again for minutes.
    config.default_retry = false;
    Ok(config)
}

async fn client(dir: &Path) -> Result<Client> {
    Ok(Client::try_from(settings(dir).await?)?)
}

fn node(name: &str) -> Node {
    serde_json::from_value(simulated::node(name)).unwrap()
}

fn node_status(ready: &str) -> Value {
    simulated::node_status(ready, &format!("{:.0}", jiff::Timestamp::now()))
}

async fn run_pod(client: &Client, pod: &Pod) {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() {
        delete_now(client, pod).await;
    } else if matches!(phase, Some("Succeeded" | "Failed")) {
        // Its end was told.
    } else if let Some(code) = exit_code(pod) {
        end_pod(client, pod, code).await;
    } else if !is_ready(pod)
        && pod
            .metadata
            .annotations
            .as_ref()
            .is_none_or(|all| !all.contains_key("test/never-ready"))
    {
        let (namespace, name) = (
            pod.metadata.namespace.as_deref().unwrap(),
            pod.metadata.name.as_deref().unwrap(),
        );
        let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let now = format!("{:.0}", jiff::Timestamp::now());
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let ips = [
            format!("10.244.{}", last_bytes(uid)),
            format!("fd00:10:244::{}", &uid[..4]),
        ];
        let mut status = simulated::running(uid, &ips[0], &now);
        status["status"]["podIPs"] = ips.map(|ip| json!({ "ip": ip })).into_iter().collect();
        let _ = api
            .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await;
    }
}

/// With what a pod ends, if it does: annotation `test/exit`, or for one index of a Job `test/exit-<index>`.
fn exit_code(pod: &Pod) -> Option<i32> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let index = annotations.get("batch.kubernetes.io/job-completion-index");
    let own = index.and_then(|index| annotations.get(&format!("test/exit-{index}")));
    own.or_else(|| annotations.get("test/exit"))?.parse().ok()
}

async fn end_pod(client: &Client, pod: &Pod, code: i32) {
    let namespace = pod.metadata.namespace.as_deref().unwrap();
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let now = format!("{:.0}", jiff::Timestamp::now());
    let ended = json!({ "exitCode": code, "reason": if code == 0 { "Completed" } else { "Error" }, "finishedAt": now });
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let containers: Vec<Value> = containers
        .map(|container| {
            json!({ "name": container.name, "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": { "terminated": ended } })
        })
        .collect();
    let status = json!({ "metadata": { "uid": pod.metadata.uid }, "status": {
        "phase": if code == 0 { "Succeeded" } else { "Failed" }, "containerStatuses": containers,
        "conditions": [{ "type": "Ready", "status": "False", "reason": "PodCompleted", "lastTransitionTime": now }],
    } });
    let name = pod.metadata.name.as_deref().unwrap();
    let _ = api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await;
}

/// The last two bytes of an address, made from a uid so that pods differ.
fn last_bytes(uid: &str) -> String {
    let bytes = u16::from_str_radix(&uid[..4], 16).unwrap_or(1).to_be_bytes();
    format!("{}.{}", bytes[0], bytes[1])
}

async fn delete_now(client: &Client, pod: &Pod) {
    let (namespace, name) = (
        pod.metadata.namespace.as_deref().unwrap(),
        pod.metadata.name.as_deref().unwrap(),
    );
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let _ = api.delete(name, &DeleteParams::default().grace_period(0)).await;
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) fn on(pod: &Pod, node: &str) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(node)
}

/// How many pods each node has.
pub(crate) fn by_node(pods: &[Pod]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for node in pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()) {
        *counts.entry(node).or_default() += 1;
    }
    counts
}

/// Waits until `condition` yields a value.
pub(crate) async fn eventually<T, F>(what: &str, condition: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if start.elapsed() > DEADLINE {
            bail!("timed out waiting for {what}");
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}
