//! Chooses a node for every pod that has none.
//!
//! One task owns the snapshot and the queue. It applies the changes that two informers report, decides pod after pod, and
//! counts each decided pod at once (it is *assumed*), so that the next decision need not wait for the API. Bindings are
//! written concurrently; one that fails is taken back and its pod tried again.

pub mod bench;
pub mod filter;
pub mod queue;
pub mod resources;
pub mod score;
pub mod snapshot;
pub mod testing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use self::queue::PendingQueue;
use self::score::{Decision, Sampling, Scratch, decide};
use self::snapshot::{PodInfo, Snapshot};
use crate::controllers::events::{Kind, Recorder};
use crate::informer::{Store, slim};

/// Decisions made before the changes that arrived meanwhile are looked at.
const DECISIONS_PER_TURN: usize = 64;
/// Changes taken in before deciding goes on.
const CHANGES_PER_TURN: usize = 1024;
/// A binding that has no answer after this time counts as failed.
const BIND_TIMEOUT: Duration = Duration::from_secs(30);

/// Settings of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// The name pods ask for in `spec.schedulerName`.
    pub name: String,
    /// Binding requests in flight at a time.
    pub bind_concurrency: usize,
    /// How many nodes are compared for one pod.
    pub sampling: Sampling,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            name: "default-scheduler".into(),
            bind_concurrency: 128,
            sampling: Sampling::default(),
        }
    }
}

/// Why the scheduler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration cannot work.
    #[error("invalid scheduler configuration: {0}")]
    Config(String),
}

/// What the owner task is told.
enum Message {
    Pod {
        old: Option<Arc<PodInfo>>,
        new: Option<Arc<PodInfo>>,
    },
    Node {
        old: Option<Arc<Node>>,
        new: Option<Arc<Node>>,
    },
    Bound {
        pod: Arc<PodInfo>,
        node: Arc<str>,
        result: Result<(), kube::Error>,
    },
}

/// Runs the scheduler until `shutdown`.
///
/// # Errors
/// [`SchedulerError::Config`] if the configuration cannot work. Failures of the API are retried for ever.
pub async fn run(
    client: Client,
    config: SchedulerConfig,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    if config.bind_concurrency == 0 {
        return Err(SchedulerError::Config(
            "bind_concurrency must be at least 1".into(),
        ));
    }
    let tracker = TaskTracker::new();
    let (messages, inbox) = mpsc::unbounded_channel();

    let pods: Arc<Store<PodInfo>> = Store::new();
    let tell = messages.clone();
    pods.subscribe(move |change| {
        let _ = tell.send(Message::Pod {
            old: change.old.cloned(),
            new: change.new.cloned(),
        });
    });
    let nodes: Arc<Store<Node>> = Store::new();
    let tell = messages.clone();
    nodes.subscribe(move |change| {
        let _ = tell.send(Message::Node {
            old: change.old.cloned(),
            new: change.new.cloned(),
        });
    });
    let (store, api, stop) = (pods.clone(), Api::<Pod>::all(client.clone()), shutdown.clone());
    tracker.spawn(async move {
        store
            .follow(api, watcher::Config::default(), PodInfo::from, stop)
            .await;
    });
    let (store, api, stop) = (nodes.clone(), Api::<Node>::all(client.clone()), shutdown.clone());
    tracker.spawn(async move {
        store
            .follow(api, watcher::Config::default(), slim_node, stop)
            .await;
    });
    let recorder = Recorder::start(client.clone(), "default-scheduler", &tracker, shutdown.clone());
    let mut owner = Owner {
        client,
        recorder,
        config,
        snapshot: Snapshot::default(),
        pending: PendingQueue::default(),
        scratch: Scratch::default(),
        start: 0,
        in_flight: 0,
        messages,
        tracker: tracker.clone(),
    };
    // Deciding before everything is known would overfill nodes.
    tokio::select! {
        () = async { pods.wait_synced().await; nodes.wait_synced().await } => {
            info!(nodes = nodes.len(), pods = pods.len(), "scheduler started");
            owner.run(inbox, &shutdown).await;
        }
        () = shutdown.cancelled() => {}
    }
    tracker.close();
    tracker.wait().await;
    Ok(())
}

fn slim_node(mut node: Node) -> Node {
    slim(&mut node.metadata);
    if let Some(status) = &mut node.status {
        status.images = None;
        status.conditions = None;
    }
    node
}

struct Owner {
    client: Client,
    recorder: Recorder,
    config: SchedulerConfig,
    snapshot: Snapshot,
    pending: PendingQueue,
    scratch: Scratch,
    start: usize,
    in_flight: usize,
    messages: mpsc::UnboundedSender<Message>,
    tracker: TaskTracker,
}

impl Owner {
    async fn run(&mut self, mut inbox: mpsc::UnboundedReceiver<Message>, shutdown: &CancellationToken) {
        loop {
            for _ in 0..CHANGES_PER_TURN {
                let Ok(message) = inbox.try_recv() else { break };
                self.take(message);
            }
            let room = self.config.bind_concurrency.saturating_sub(self.in_flight);
            for _ in 0..room.min(DECISIONS_PER_TURN) {
                let Some(pod) = self.pending.pop(Instant::now()) else {
                    break;
                };
                self.schedule(&pod);
            }
            if self.pending.has_active() && self.in_flight < self.config.bind_concurrency {
                tokio::task::yield_now().await;
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            let due = self
                .pending
                .next_due()
                .filter(|_| self.in_flight < self.config.bind_concurrency);
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                message = inbox.recv() => {
                    let Some(message) = message else { return };
                    self.take(message);
                }
                () = timer => {}
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Node { new: Some(node), .. } => {
                if self.snapshot.upsert_node(&node) {
                    self.pending.something_changed();
                }
            }
            Message::Node { old, new: None } => {
                if let Some(name) = old.as_ref().and_then(|node| node.metadata.name.as_deref()) {
                    self.snapshot.remove_node(name);
                }
            }
            Message::Pod { new: Some(pod), .. } => self.take_pod(pod),
            Message::Pod { old, new: None } => {
                if let Some(pod) = old {
                    self.pending.remove(pod.uid());
                    if self.snapshot.unplace(pod.uid()) {
                        self.pending.something_changed();
                    }
                }
            }
            Message::Bound { pod, node, result } => self.bound(&pod, &node, result),
        }
    }

    fn take_pod(&mut self, pod: Arc<PodInfo>) {
        if pod.finished {
            self.pending.remove(pod.uid());
            if self.snapshot.unplace(pod.uid()) {
                self.pending.something_changed();
            }
        } else if let Some(node) = pod.node.clone() {
            self.pending.remove(pod.uid());
            self.snapshot.place(&pod, &node);
        } else if pod.terminating || pod.gated || pod.scheduler != self.config.name {
            self.pending.remove(pod.uid());
        } else {
            self.pending.upsert(pod);
        }
    }

    fn schedule(&mut self, pod: &Arc<PodInfo>) {
        if self.snapshot.placement(pod.uid()).is_some() {
            // Assumed already; its binding is under way.
            return;
        }
        match decide(
            &self.snapshot,
            pod,
            self.config.sampling,
            &mut self.start,
            &mut self.scratch,
        ) {
            Decision::Node(index) => {
                let node = self.snapshot.node(index).name.clone();
                self.snapshot.place(pod, &node);
                self.bind(pod.clone(), node);
            }
            Decision::Nowhere { nodes, reasons } => {
                let message = Decision::explain(nodes, &reasons);
                debug!(pod = %pod.key(), message, "pod fits nowhere");
                if self.pending.park(pod.uid(), &message, Instant::now()) {
                    self.recorder.about(
                        "Pod",
                        "v1",
                        &pod.metadata,
                        Kind::Warning,
                        "FailedScheduling",
                        message.clone(),
                    );
                    self.report_unschedulable(pod, message);
                }
            }
        }
    }

    fn bind(&mut self, pod: Arc<PodInfo>, node: Arc<str>) {
        self.in_flight += 1;
        let (client, messages) = (self.client.clone(), self.messages.clone());
        self.tracker.spawn(async move {
            let binding = Binding {
                // The uid keeps a new pod of the same name from being bound by this decision.
                metadata: pod.metadata.clone(),
                target: ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    name: Some(node.to_string()),
                    ..ObjectReference::default()
                },
            };
            let key = pod.key();
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            let params = PostParams::default();
            let request =
                api.create_subresource::<_, serde_json::Value>("binding", &key.name, &params, &binding);
            let result = match tokio::time::timeout(BIND_TIMEOUT, request).await {
                Ok(result) => result.map(|_| ()),
                Err(_) => Err(kube::Error::Service("binding timed out".into())),
            };
            let _ = messages.send(Message::Bound { pod, node, result });
        });
    }

    fn bound(&mut self, pod: &Arc<PodInfo>, node: &Arc<str>, result: Result<(), kube::Error>) {
        self.in_flight -= 1;
        match result {
            Ok(()) => {
                debug!(pod = %pod.key(), %node, "bound");
                let key = pod.key();
                self.recorder.about(
                    "Pod",
                    "v1",
                    &pod.metadata,
                    Kind::Normal,
                    "Scheduled",
                    format!("Successfully assigned {key} to {node}"),
                );
            }
            Err(error) => {
                let gone = matches!(&error, kube::Error::Api(status) if status.code == 404);
                if !gone {
                    warn!(pod = %pod.key(), %node, %error, "binding failed");
                }
                // If the watch has said meanwhile where the pod is, that stands and the pod no longer waits.
                if self.pending.contains(pod.uid()) || gone {
                    self.snapshot.unplace(pod.uid());
                    self.pending.something_changed();
                }
                if gone {
                    self.pending.remove(pod.uid());
                } else {
                    self.pending.retry(pod.uid(), Instant::now());
                }
            }
        }
    }

    /// Says on the pod itself that it cannot be placed.
    fn report_unschedulable(&self, pod: &Arc<PodInfo>, message: String) {
        let (client, pod) = (self.client.clone(), pod.clone());
        self.tracker.spawn(async move {
            let key = pod.key();
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            let patch = json!({
                "metadata": { "uid": pod.uid() },
                "status": { "conditions": [{
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": message,
                    "lastProbeTime": null,
                    "lastTransitionTime": Time(Timestamp::now()),
                }] },
            });
            let params = PatchParams::default();
            if let Err(error) = api
                .patch_status(&key.name, &params, &Patch::Strategic(patch))
                .await
            {
                debug!(pod = %key, %error, "condition not written");
            }
        });
    }
}
