//! The task that owns the snapshot: changes in, decisions out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::SchedulerConfig;
use super::decide::{Decision, Nowhere, Scratch, decide};
use super::effects::{BindError, Binding, Effects, Nominated};
use super::plan::Plan;
use super::pod::{PodInfo, Signature};
use super::preempt::{Budgets, Preemption, preempt};
use super::queue::{Blockers, PendingQueue};
use super::snapshot::{Snapshot, Version};
use super::volumes::{VolumePlan, Volumes};
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

    fn schedule(&mut self, pod: &Arc<PodInfo>) {
        if self.snapshot.placement(pod.uid()).is_some() {
            // Assumed already; its binding is under way.
            return;
        }
        let kind = (pod.signature(), pod.priority, pod.preempts);
        // What is true of one pod is true of its fellows, unless volumes of its own or room kept for it tell them apart.
        let alike = pod.constraints.claims.is_empty() && self.snapshot.nomination(pod.uid()).is_none();
        let plan = self.snapshot.plan(pod);
        if alike
            && let Some(refusal) = self.refusals.get(&kind)
            && refusal.holds(self.snapshot.version())
        {
            let refusal = refusal.clone();
            self.park(pod, refusal.message, refusal.blockers, Nominated::AsBefore);
            return;
        }
        let nodes = self.snapshot.order().len();
        let began = Instant::now();
        let (volumes, decision) = match self.volumes.plan(pod) {
            Ok(volumes) => {
                let decision = decide(
                    &self.snapshot,
                    pod,
                    &plan,
                    &volumes,
                    self.config.sampling,
                    &mut self.start,
                    &mut self.scratch,
                );
                (volumes, decision)
            }
            Err(why) => {
                let nowhere = Nowhere::because(nodes, why, Blockers::VOLUMES);
                (VolumePlan::default(), Decision::Nowhere(nowhere))
            }
        };
        self.figures.seconds.observe(began.elapsed());
        match decision {
            Decision::Node(index) => {
                self.figures.scheduled.increment();
                let node = self.snapshot.node(index);
                let binding = Binding {
                    pod: pod.clone(),
                    node: node.name.clone(),
                    acts: volumes.settle(node).unwrap_or_default(),
                };
                self.volumes.take(&binding.acts);
                self.snapshot.place(pod, &binding.node);
                self.pending.changed(Blockers::PODS);
                self.bind(binding);
            }
            Decision::Nowhere(nowhere) => {
                self.figures.unschedulable.increment();
                self.refused(pod, kind, alike, &plan, &volumes, &nowhere);
            }
        }
    }

    fn refused(
        &mut self,
        pod: &Arc<PodInfo>,
        kind: Kind,
        alike: bool,
        plan: &Plan,
        volumes: &VolumePlan,
        nowhere: &Nowhere,
    ) {
        let why = nowhere.explain();
        if nowhere.nodes == 0 || self.preempting.contains(pod.uid()) {
            self.park(pod, why, nowhere.blockers, Nominated::AsBefore);
            return;
        }
        let preemption = preempt(
            &mut self.snapshot,
            pod,
            plan,
            volumes,
            nowhere,
            &self.budgets,
            self.start,
        );
        match preemption {
            Preemption::Victims { node, pods } => {
                let node = self.snapshot.node(node).name.clone();
                let displaced = self.nominate(pod, &node);
                self.park(
                    pod,
                    why,
                    nowhere.blockers | Blockers::ROOM,
                    Nominated::For(node.clone()),
                );
                self.preempt(pod.clone(), node, pods, displaced);
            }
            Preemption::Waiting(reason) => {
                self.park(
                    pod,
                    format!("{why} preemption: {reason}"),
                    nowhere.blockers,
                    Nominated::AsBefore,
                );
            }
            Preemption::Useless(reason) => {
                let message = format!("{why} preemption: {reason}");
                let withdrawn = self.snapshot.withdraw(pod.uid());
                let nominated = if withdrawn {
                    Nominated::NoMore
                } else {
                    Nominated::AsBefore
                };
                if withdrawn {
                    self.pending.changed(Blockers::ROOM);
                }
                if alike {
                    if self.refusals.len() >= REFUSALS {
                        self.refusals.clear();
                    }
                    let refusal = Refusal {
                        at: self.snapshot.version(),
                        blockers: nowhere.blockers,
                        message: message.clone(),
                    };
                    self.refusals.insert(kind, refusal);
                }
                self.park(pod, message, nowhere.blockers, nominated);
            }
        }
    }

    /// Keeps room for the pod; less important ones for which room was kept there have to look elsewhere.
    fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) -> Vec<Arc<PodInfo>> {
        self.snapshot.nominate(pod, node);
        let displaced: Vec<Arc<PodInfo>> = self
            .snapshot
            .find_node(node)
            .into_iter()
            .flat_map(|index| &self.snapshot.node(index).nominees)
            .map(|nominee| nominee.pod.clone())
            .filter(|other| other.priority < pod.priority)
            .collect();
        for other in &displaced {
            self.snapshot.withdraw(other.uid());
            self.pending.changed(Blockers::ROOM);
        }
        displaced
    }

    fn preempt(
        &mut self,
        pod: Arc<PodInfo>,
        node: Arc<str>,
        victims: Vec<Arc<PodInfo>>,
        displaced: Vec<Arc<PodInfo>>,
    ) {
        debug!(pod = %pod.key(), %node, victims = victims.len(), "pods have to leave for a more important one");
        self.preempting.insert(pod.uid().to_owned());
        let (effects, messages) = (self.effects.clone(), self.messages.clone());
        self.tracker.spawn(async move {
            for other in displaced {
                effects.report(&other, None, Nominated::NoMore).await;
            }
            let result = effects.preempt(&pod, &node, victims).await;
            if let Err(error) = &result {
                debug!(pod = %pod.key(), %error, "victims not told to leave");
                effects.report(&pod, None, Nominated::NoMore).await;
            }
            let told = result.is_ok();
            let _ = messages.send(Message::Preempted { pod, told });
        });
    }

    fn park(&mut self, pod: &Arc<PodInfo>, message: String, blockers: Blockers, nominated: Nominated) {
        debug!(pod = %pod.key(), message, "pod fits nowhere");
        let news = self.pending.park(pod.uid(), &message, blockers, Instant::now());
        if news {
            self.effects.tell_unschedulable(pod, message.clone());
        }
        if news || !matches!(nominated, Nominated::AsBefore) {
            let (effects, pod) = (self.effects.clone(), pod.clone());
            self.tracker.spawn(async move {
                effects.report(&pod, news.then_some(message), nominated).await;
            });
        }
    }

    fn bind(&mut self, binding: Binding) {
        // Those that wait for volumes may wait long, and must not hold up the others.
        let counted = binding.acts.is_empty();
        self.in_flight += usize::from(counted);
        let (effects, messages, stop) = (self.effects.clone(), self.messages.clone(), self.shutdown.clone());
        self.tracker.spawn(async move {
            let result = tokio::select! {
                result = effects.bind(&binding) => result,
                () = stop.cancelled(), if !counted => return,
            };
            let _ = messages.send(Message::Bound { binding, result });
        });
    }

    fn bound(&mut self, binding: &Binding, result: Result<(), BindError>) {
        let (pod, node) = (&binding.pod, &binding.node);
        self.in_flight -= usize::from(binding.acts.is_empty());
        let Err(error) = result else {
            debug!(pod = %pod.key(), %node, "bound");
            self.effects.tell_scheduled(binding);
            return;
        };
        Effects::tell_unbound(binding, &error);
        self.volumes.give_back(&binding.acts);
        // If the watch has said meanwhile where the pod is, that stands and the pod no longer waits.
        if self.pending.contains(pod.uid()) || error.is_gone() {
            self.snapshot.unplace(pod.uid());
        }
        if error.is_gone() {
            self.pending.remove(pod.uid());
        } else {
            self.pending.retry(pod.uid(), Instant::now());
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
