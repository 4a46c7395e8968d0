//! One pod's turn: the decision, and what it comes to.

use std::sync::Arc;
use tokio::time::Instant;

use tracing::debug;

use super::{Kind, Owner, REFUSALS, Refusal};
use crate::scheduler::decide::{Decision, Nowhere, decide};
use crate::scheduler::effects::{BindError, Binding, Effects, Nominated};
use crate::scheduler::plan::Plan;
use crate::scheduler::pod::PodInfo;
use crate::scheduler::preempt::{Preemption, preempt};
use crate::scheduler::queue::Blockers;
use crate::scheduler::volumes::VolumePlan;
use crate::scheduler::watches::Message;

impl Owner {
    /// Decides about a pod, and does what follows.
    pub(super) fn schedule(&mut self, pod: &Arc<PodInfo>) {
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

    /// Takes in the answer to a binding.
    pub(super) fn bound(&mut self, binding: &Binding, result: Result<(), BindError>) {
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
