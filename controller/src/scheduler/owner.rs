//! The task that owns the snapshot: changes in, decisions out.

mod decisions;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use tokio::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::SchedulerConfig;
use super::decide::Scratch;
use super::effects::Effects;
use super::pod::{PodInfo, Signature};
use super::preempt::Budgets;
use super::queue::{Blockers, PendingQueue};
use super::snapshot::{Snapshot, Version};
use super::volumes::Volumes;
use super::watches::{Changed, Message};
use crate::informer::{Cached, ObjectKey};
use crate::metrics::{self, Counter, Histogram};

/// Decisions made before the changes that arrived meanwhile are looked at.
const DECISIONS_PER_TURN: usize = 64;
/// Changes taken in before deciding goes on.
const CHANGES_PER_TURN: usize = 1024;
/// Refusals remembered; the table is cleared when full.
const REFUSALS: usize = 1024;

/// Pods that are refused together: signature, priority, and whether others have to leave for them.
type Kind = (Signature, i32, bool);

/// Why pods of one kind were refused, which holds for all of them until something changes.
#[derive(Clone)]
struct Refusal {
    at: Version,
    blockers: Blockers,
    message: String,
}

impl Refusal {
    fn holds(&self, now: Version) -> bool {
        self.at.relieved == now.relieved
            && (self.at.placed == now.placed || !self.blockers.meet(Blockers::PODS))
    }
}

/// What `/metrics` tells of decisions.
struct Figures {
    seconds: Arc<Histogram>,
    scheduled: Arc<Counter>,
    unschedulable: Arc<Counter>,
}

impl Default for Figures {
    fn default() -> Self {
        Figures {
            seconds: metrics::DECISION_SECONDS.with(&[]),
            scheduled: metrics::DECISIONS.with(&[("result", "scheduled")]),
            unschedulable: metrics::DECISIONS.with(&[("result", "unschedulable")]),
        }
    }
}

pub(super) struct Owner {
    config: SchedulerConfig,
    figures: Figures,
    effects: Effects,
    snapshot: Snapshot,
    volumes: Volumes,
    budgets: Budgets,
    pending: PendingQueue,
    /// Pods whose victims are being told to leave.
    preempting: HashSet<String>,
    refusals: HashMap<Kind, Refusal>,
    scratch: Scratch,
    start: usize,
    in_flight: usize,
    messages: mpsc::UnboundedSender<Message>,
    tracker: TaskTracker,
    shutdown: CancellationToken,
}

impl Owner {
    pub(super) fn new(
        config: SchedulerConfig,
        effects: Effects,
        messages: mpsc::UnboundedSender<Message>,
        tracker: TaskTracker,
        shutdown: CancellationToken,
    ) -> Self {
        Owner {
            config,
            figures: Figures::default(),
            effects,
            snapshot: Snapshot::default(),
            volumes: Volumes::default(),
            budgets: Budgets::default(),
            pending: PendingQueue::default(),
            preempting: HashSet::new(),
            refusals: HashMap::new(),
            scratch: Scratch::default(),
            start: 0,
            in_flight: 0,
            messages,
            tracker,
            shutdown,
        }
    }

    pub(super) async fn run(&mut self, mut inbox: mpsc::UnboundedReceiver<Message>) {
        let shutdown = self.shutdown.clone();
        self.take_stock(&mut inbox);
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
                    Some(due) => tokio::time::sleep_until(due).await,
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

    /// Takes in all that was there at the start, before the first decision: a node of which half the pods are known looks free.
    fn take_stock(&mut self, inbox: &mut mpsc::UnboundedReceiver<Message>) {
        let waiting = std::iter::from_fn(|| inbox.try_recv().ok());
        // Room is kept for pods on nodes that are known.
        let (nodes, others): (Vec<_>, Vec<_>) =
            waiting.partition(|message| matches!(message, Message::Node(_)));
        nodes
            .into_iter()
            .chain(others)
            .for_each(|message| self.take(message));
    }

    fn take(&mut self, message: Message) {
        let before = self.snapshot.version();
        match message {
            Message::Pod(Changed { old, new: None }) => {
                if let Some(pod) = old {
                    self.forget(&pod);
                }
            }
            Message::Pod(Changed { new: Some(pod), .. }) => self.take_pod(pod),
            Message::Node(Changed { old, new }) => {
                if let Some(node) = &new {
                    if self.snapshot.upsert_node(node) {
                        self.pending.changed(Blockers::NODES);
                    }
                } else if let Some(name) = old.as_ref().and_then(|node| node.metadata.name.as_deref()) {
                    self.snapshot.remove_node(name);
                }
            }
            Message::Namespace(change) => {
                let labels = change
                    .new
                    .as_ref()
                    .map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
                if self.snapshot.set_namespace(&key_of(&change).name, labels) {
                    self.pending.changed(Blockers::ROOM | Blockers::PODS);
                }
            }
            Message::Budget(change) => {
                let key = key_of(&change);
                let budgets = self.budgets.entry(key.namespace.to_string()).or_default();
                match change.new {
                    Some(budget) => budgets.insert(key.name.to_string(), budget),
                    None => budgets.remove(&*key.name),
                };
                if budgets.is_empty() {
                    self.budgets.remove(&*key.namespace);
                }
                self.refusals.clear();
            }
            Message::Claim(change) => {
                self.volumes.set_claim(key_of(&change), change.new);
                self.pending.changed(Blockers::VOLUMES);
            }
            Message::Volume(change) => {
                self.volumes.set_volume(&key_of(&change).name, change.new);
                self.pending.changed(Blockers::VOLUMES);
            }
            Message::Class(change) => {
                self.volumes.set_class(&key_of(&change).name, change.new);
                self.pending.changed(Blockers::VOLUMES);
            }
            Message::Bound { binding, result } => self.bound(&binding, result),
            Message::Preempted { pod, told } => {
                self.preempting.remove(pod.uid());
                if !told {
                    self.snapshot.withdraw(pod.uid());
                    self.pending.retry(pod.uid(), Instant::now());
                }
            }
        }
        let after = self.snapshot.version();
        if after.relieved != before.relieved {
            self.pending.changed(Blockers::ROOM);
        }
        if after.placed != before.placed {
            self.pending.changed(Blockers::PODS);
        }
    }

    fn forget(&mut self, pod: &PodInfo) {
        self.pending.remove(pod.uid());
        self.snapshot.withdraw(pod.uid());
        self.snapshot.unplace(pod.uid());
    }

    fn take_pod(&mut self, pod: Arc<PodInfo>) {
        if pod.finished {
            self.forget(&pod);
        } else if let Some(node) = &pod.node {
            self.pending.remove(pod.uid());
            self.snapshot.place(&pod, node);
        } else if pod.terminating || pod.gated || pod.scheduler != self.config.name {
            self.pending.remove(pod.uid());
            self.snapshot.withdraw(pod.uid());
        } else {
            // From the second time on, it is known better here on which node room is made for it.
            if let Some(node) = pod
                .nominated
                .as_ref()
                .filter(|_| !self.pending.contains(pod.uid()))
            {
                self.snapshot.nominate(&pod, node);
            }
            self.pending.upsert(pod);
        }
    }
}

fn key_of<V: Cached>(change: &Changed<V>) -> ObjectKey {
    let latest = change.new.as_ref().or(change.old.as_ref());
    latest.map_or_else(
        || ObjectKey::cluster(""),
        |object| ObjectKey::of(object.metadata()),
    )
}
