//! Nodes that pretend: each watches its own pods over a connection of its own, turns them Running, lets go of those that are
//! deleted, and renews its Lease.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::http::{Connection, JSON, MERGE, Pool, Target, Watch};
use crate::simulated;

/// Connections over which the nodes write.
const WRITERS: usize = 32;
/// How often a node renews its Lease: as the kubelet does.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
/// How often a node repeats its status.
const STATUS_PERIOD: Duration = Duration::from_mins(1);
/// A watch that broke is begun again after this time.
const RETRY: Duration = Duration::from_millis(200);

/// What of a pod matters here.
#[derive(Deserialize)]
struct PodEvent<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    object: PodFacts<'a>,
}

#[derive(Deserialize)]
struct PodFacts<'a> {
    #[serde(borrow)]
    metadata: PodMeta<'a>,
    #[serde(borrow, default)]
    spec: PodSpec<'a>,
    #[serde(borrow, default)]
    status: PodStatus<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodMeta<'a> {
    #[serde(default)]
    name: &'a str,
    #[serde(default)]
    namespace: &'a str,
    #[serde(default)]
    uid: &'a str,
    deletion_timestamp: Option<&'a str>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec<'a> {
    node_name: Option<&'a str>,
}

#[derive(Default, Deserialize)]
struct PodStatus<'a> {
    phase: Option<&'a str>,
}

struct SimulatedNode {
    name: String,
    alive: AtomicBool,
}

/// The nodes; they end when this is dropped.
pub(super) struct Fleet {
    nodes: Vec<Arc<SimulatedNode>>,
    pool: Pool,
    _stop: DropGuard,
}

impl Fleet {
    /// Joins so many nodes and waits until all are ready to take pods.
    pub(super) async fn join(target: &Target, count: usize) -> Result<Self> {
        let stop = CancellationToken::new();
        let pool = Pool::new(target, WRITERS);
        let nodes: Vec<_> = (0..count)
            .map(|index| {
                Arc::new(SimulatedNode {
                    name: format!("node-{index}"),
                    alive: AtomicBool::new(true),
                })
            })
            .collect();
        stream::iter(&nodes)
            .map(|node| register(&pool, &node.name))
            .buffer_unordered(WRITERS)
            .try_collect::<Vec<()>>()
            .await?;
        for node in &nodes {
            tokio::spawn(stop.clone().run_until_cancelled_owned(run(
                target.clone(),
                pool.clone(),
                Arc::clone(node),
            )));
        }
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(renew(pool.clone(), nodes.clone())),
        );
        wait_schedulable(target, count).await?;
        Ok(Self {
            nodes,
            pool,
            _stop: stop.drop_guard(),
        })
    }

    /// Every tenth node falls silent; yields their names.
    pub(super) fn lose_a_tenth(&self) -> Vec<String> {
        let lost = self.nodes.iter().step_by(10);
        lost.map(|node| {
            node.alive.store(false, Ordering::Relaxed);
            node.name.clone()
        })
        .collect()
    }

    /// Creates a Deployment.
    pub(super) async fn deploy(&self, name: &str, replicas: usize) -> Result<()> {
        let path = "/apis/apps/v1/namespaces/default/deployments".to_owned();
        let deployment = simulated::deployment(name, replicas, "registry.example/app:1");
        self.pool.expect(Method::POST, path, JSON, &deployment).await?;
        Ok(())
    }
}

fn second() -> String {
    format!("{:.0}", jiff::Timestamp::now())
}

fn microsecond() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

async fn register(pool: &Pool, name: &str) -> Result<()> {
    let nodes = "/api/v1/nodes".to_owned();
    pool.expect(Method::POST, nodes, JSON, &simulated::node(name))
        .await?;
    report(pool, name).await?;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases".to_owned();
    pool.expect(
        Method::POST,
        leases,
        JSON,
        &simulated::lease(name, &microsecond()),
    )
    .await?;
    Ok(())
}

async fn report(pool: &Pool, name: &str) -> Result<()> {
    let path = format!("/api/v1/nodes/{name}/status");
    let patch = json!({ "status": simulated::node_status("True", &second()) });
    pool.expect(Method::PATCH, path, MERGE, &patch).await?;
    Ok(())
}

async fn wait_schedulable(target: &Target, count: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut connection = Connection::open(target).await?;
    while Instant::now() < deadline {
        let list = connection.get("/api/v1/nodes").await?;
        let ready = |node: &&Value| {
            node["spec"]["podCIDR"].is_string() && node["spec"]["taints"].as_array().is_none_or(Vec::is_empty)
        };
        let items = list["items"].as_array().context("no list of nodes")?;
        if items.iter().filter(ready).count() == count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("the nodes are not ready to take pods after a minute")
}

/// A node's watch of its pods.
async fn run(target: Target, pool: Pool, node: Arc<SimulatedNode>) {
    let path = format!(
        "/api/v1/pods?watch=true&allowWatchBookmarks=true&fieldSelector=spec.nodeName%3D{}",
        node.name
    );
    loop {
        if let Ok(connection) = Connection::open(&target).await
            && let Ok(mut watch) = connection.watch(&path).await
        {
            while let Ok(Some(line)) = watch.next().await {
                if node.alive.load(Ordering::Relaxed) {
                    tend(&pool, &line);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Does what a node does about a change of one of its pods.
fn tend(pool: &Pool, line: &[u8]) {
    let Ok(event) = serde_json::from_slice::<PodEvent<'_>>(line) else {
        return;
    };
    if !matches!(event.kind, "ADDED" | "MODIFIED") {
        return;
    }
    let PodMeta {
        name,
        namespace,
        uid,
        deletion_timestamp,
    } = event.object.metadata;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let pool = pool.clone();
    if deletion_timestamp.is_some() {
        tokio::spawn(async move {
            let options = json!({"gracePeriodSeconds": 0});
            let _ = pool.send(Method::DELETE, path, JSON, &options).await;
        });
    } else if event.object.status.phase != Some("Running") {
        let patch = simulated::running(uid, "172.16.0.9", &second());
        tokio::spawn(async move {
            let _ = pool
                .send(Method::PATCH, format!("{path}/status"), MERGE, &patch)
                .await;
        });
    }
}

/// Renews all Leases, spread over the period, and repeats the nodes' status more rarely.
async fn renew(pool: Pool, nodes: Vec<Arc<SimulatedNode>>) {
    let count = u32::try_from(nodes.len()).unwrap_or(u32::MAX).max(1);
    let mut tick = tokio::time::interval(LEASE_PERIOD / count);
    let rounds = usize::try_from(STATUS_PERIOD.as_secs() / LEASE_PERIOD.as_secs()).unwrap_or(1);
    for round in 0_usize.. {
        for (index, node) in nodes.iter().enumerate() {
            tick.tick().await;
            if !node.alive.load(Ordering::Relaxed) {
                continue;
            }
            let (pool, node) = (pool.clone(), Arc::clone(node));
            tokio::spawn(async move {
                let path = format!(
                    "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{}",
                    node.name
                );
                let patch = json!({ "spec": { "renewTime": microsecond() } });
                let _ = pool.send(Method::PATCH, path, MERGE, &patch).await;
                if (round + index) % rounds == 0 {
                    let _ = report(&pool, &node.name).await;
                }
            });
        }
    }
}

#[derive(Clone, Debug, Default)]
struct Seen {
    node: Option<Box<str>>,
    running: bool,
    leaving: bool,
}

/// How many pods are how far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) created: usize,
    pub(super) bound: usize,
    pub(super) running: usize,
}

/// Follows all pods, as a client that wants to know how far things are.
pub(super) struct Observer {
    pods: Arc<Mutex<HashMap<Box<str>, Seen>>>,
    counts: tokio::sync::watch::Receiver<Counts>,
    _stop: DropGuard,
}

impl Observer {
    pub(super) async fn start(target: &Target) -> Result<Self> {
        let watch = Connection::open(target).await?;
        let watch = watch.watch("/api/v1/pods?watch=true").await?;
        let pods = Arc::default();
        let (tell, counts) = tokio::sync::watch::channel(Counts::default());
        let stop = CancellationToken::new();
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(observe(watch, Arc::clone(&pods), tell)),
        );
        Ok(Self {
            pods,
            counts,
            _stop: stop.drop_guard(),
        })
    }

    /// Waits until the counts are as wanted; yields when that was.
    pub(super) async fn wait(
        &self,
        what: &str,
        limit: Duration,
        wanted: impl FnMut(&Counts) -> bool,
    ) -> Result<Instant> {
        let mut counts = self.counts.clone();
        match tokio::time::timeout(limit, counts.wait_for(wanted)).await {
            Ok(Ok(_)) => Ok(Instant::now()),
            _ => bail!("{what}: {:?} after {limit:?}", *self.counts.borrow()),
        }
    }

    /// Pods that run, are not on their way out, and are on none of these nodes.
    pub(super) fn running_elsewhere(&self, lost: &[String]) -> usize {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.values()
            .filter(|pod| pod.running && !pod.leaving)
            .filter(|pod| {
                pod.node
                    .as_deref()
                    .is_some_and(|node| lost.iter().all(|lost| lost != node))
            })
            .count()
    }
}

async fn observe(
    mut watch: Watch,
    pods: Arc<Mutex<HashMap<Box<str>, Seen>>>,
    tell: tokio::sync::watch::Sender<Counts>,
) {
    let mut counts = Counts::default();
    while let Ok(Some(line)) = watch.next().await {
        let Ok(event) = serde_json::from_slice::<PodEvent<'_>>(&line) else {
            continue;
        };
        let object = event.object;
        let mut pods = pods.lock().unwrap_or_else(PoisonError::into_inner);
        if event.kind == "DELETED" {
            pods.remove(object.metadata.uid);
            continue;
        }
        let seen = pods.entry(object.metadata.uid.into()).or_insert_with(|| {
            counts.created += 1;
            Seen::default()
        });
        let node = object.spec.node_name.filter(|node| !node.is_empty());
        if seen.node.is_none()
            && let Some(node) = node
        {
            seen.node = Some(node.into());
            counts.bound += 1;
        }
        if !seen.running && object.status.phase == Some("Running") {
            seen.running = true;
            counts.running += 1;
        }
        seen.leaving = object.metadata.deletion_timestamp.is_some();
        tell.send_replace(counts);
    }
}
