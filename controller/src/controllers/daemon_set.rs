//! Keeps one pod of every DaemonSet on each node that it selects and tolerates, and replaces pods of an old template.
//!
//! The scheduler binds the pods; each is pinned to its node by name, so all rules of scheduling hold for it too.

pub mod decide;
pub mod placement;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::{Api, ResourceExt};
use tracing::debug;

use self::decide::{Plan, Situation, Update};
use self::placement::Fitness;
use super::claim::{claims, controller_reference, settle, strict, suitors};
use super::events::Kind;
use super::expectations::Expectations;
use super::history::{HASH_LABEL, Subject};
use super::pod::PodView;
use super::pod_control::{PodControl, observe, pod_of};
use super::{Context, ControllerError, Outcome, spawn_workers, subscribe, write_status};
use crate::informer::{Change, ObjectKey};
use crate::queue::{Backoff, Queue};

const KIND: &str = "DaemonSet";
/// Pods created or deleted in one go; the rest follows when these were seen.
const BURST: usize = 250;
/// How long a node waits for the next pod after its pods failed.
const FAILED_POD: Backoff = Backoff {
    first: Duration::from_secs(1),
    last: Duration::from_mins(15),
};
/// Annotation that counts the templates, and label of the pods that repeats it.
const GENERATION: (&str, &str) = (
    "deprecated.daemonset.template.generation",
    "pod-template-generation",
);

struct DaemonSets {
    context: Arc<Context>,
    expectations: Expectations,
    failures: Failures,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let sets = Arc::new(DaemonSets {
        context: context.clone(),
        expectations: Expectations::default(),
        failures: Failures::default(),
    });
    subscribe::to_objects(&queue, &context.daemon_sets);
    subscribe::to_owners(&queue, &context.revisions, KIND);
    let (keys, told) = (queue.clone(), sets.clone());
    context
        .pods
        .subscribe(move |change| told.pod_changed(&keys, change));
    let (keys, all) = (queue.clone(), context.daemon_sets.clone());
    context.nodes.subscribe(move |change| {
        if matters(change) {
            for set in all.all() {
                keys.add(ObjectKey::of(&set.metadata));
            }
        }
    });
    let waited = context.clone();
    let ready = async move {
        waited.daemon_sets.wait_synced().await;
        waited.pods.wait_synced().await;
        waited.nodes.wait_synced().await;
        waited.revisions.wait_synced().await;
    };
    spawn_workers(
        context,
        "daemonset",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let sets = sets.clone();
            async move { Box::pin(sets.reconcile(&key)).await }
        },
    );
}

/// Whether a node's change can change where pods belong; heartbeats cannot.
fn matters(change: &Change<'_, Node>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return true;
    };
    let taints = |node: &Node| node.spec.as_ref().and_then(|spec| spec.taints.clone());
    old.metadata.labels != new.metadata.labels || taints(old) != taints(new)
}

impl DaemonSets {
    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: &Change<'_, PodView>) {
        for key in observe(&self.expectations, KIND, change).into_iter().flatten() {
            // Judging all nodes costs time in proportion; changes come in crowds and are taken together.
            let delay = Duration::from_millis((self.context.nodes.len() as u64 / 20).min(100));
            if delay.is_zero() {
                queue.add(key);
            } else {
                queue.add_after(key, delay);
            }
        }
        let selector = |set: &DaemonSet| strict(set.spec.as_ref()?.selector.clone()).ok();
        for key in suitors(&self.context.daemon_sets, change, selector) {
            queue.add(key);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let context = &*self.context;
        let Some(set) = context.daemon_sets.get(key) else {
            self.expectations.forget(key);
            self.failures.forget(key);
            return Ok(None);
        };
        let Some(spec) = &set.spec else { return Ok(None) };
        let Ok(selector) = strict(spec.selector.clone()) else {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            context
                .recorder
                .event(&*set, Kind::Warning, "SelectingAll", message.into());
            return Ok(None);
        };
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let may_act = self.expectations.satisfied(key, Instant::now());
        let api: Api<DaemonSet> = Api::namespaced(context.client.clone(), &key.namespace);
        let pods_api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
        let subject = Subject {
            context,
            owner: &*set,
            owners: &api,
            selector: &selector,
            template: &spec.template,
            collisions: set
                .status
                .as_ref()
                .and_then(|status| status.collision_count)
                .unwrap_or(0),
        };
        let history = subject.history().await?;
        let hash = history
            .update
            .labels()
            .get(HASH_LABEL)
            .cloned()
            .unwrap_or_default();
        let pods = claims(&context.pods, &set.metadata, &selector, |_| true);
        let pods = settle(pods, &*set, &api, &pods_api).await?;

        let nodes = judge(&context.nodes.all(), spec);
        let by_node = by_node(&pods);
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let situation = Situation {
            nodes: &nodes,
            pods: &by_node,
            hash: &hash,
            min_ready_seconds: min_ready,
            strategy: Update::of(&set, Situation::desired(&nodes)),
            now: Timestamp::now(),
        };
        let mut again = None;
        let mut acted = Ok(());
        if may_act {
            let mut plan = situation.place();
            again = self.replace_ended(&set, key, &mut plan);
            // A pod whose replacement waits is no reason to hold back what may mend it.
            if plan.is_empty() {
                plan = situation.update();
            }
            let control = PodControl {
                context,
                owner: &*set,
                key,
                expectations: &self.expectations,
                api: pods_api,
            };
            acted = self.carry_out(&control, spec, plan, &hash).await;
            let live: BTreeSet<String> = history
                .revisions
                .iter()
                .filter(|revision| {
                    let hash = revision.labels().get(HASH_LABEL).map(String::as_str);
                    revision.metadata.uid == history.update.metadata.uid
                        || pods.iter().any(|pod| pod.label(HASH_LABEL) == hash)
                })
                .map(|revision| revision.name_any())
                .collect();
            subject
                .trim(&history, &live, spec.revision_history_limit.unwrap_or(10))
                .await?;
        }
        let counts = situation.counts();
        let known = set.status.clone().unwrap_or_default();
        let fresh = DaemonSetStatus {
            current_number_scheduled: counts.current,
            desired_number_scheduled: counts.desired,
            number_misscheduled: counts.misscheduled,
            number_ready: counts.ready,
            number_available: Some(counts.available),
            number_unavailable: Some(counts.desired - counts.available),
            updated_number_scheduled: Some(counts.updated),
            observed_generation: if may_act {
                set.metadata.generation
            } else {
                known.observed_generation
            },
            collision_count: Some(history.collisions).filter(|count| *count > 0),
            conditions: known.conditions.clone(),
        };
        let written = match &set.status {
            Some(known) if *known == fresh => Ok(None),
            _ => {
                let object = DaemonSet {
                    status: Some(fresh),
                    ..DaemonSet::clone(&set)
                };
                write_status(&api, &object).await
            }
        };
        acted?;
        written?;
        let mut pods = by_node.values().flatten();
        if min_ready > 0 && pods.any(|pod| pod.ready && !pod.is_available(min_ready, situation.now)) {
            let settled = Duration::from_secs(min_ready.unsigned_abs().into());
            again = Some(again.map_or(settled, |again| settled.min(again)));
        }
        Ok(again)
    }

    /// Pods that ended are deleted, failed ones of a node after ever longer times; returns when to look again.
    fn replace_ended(&self, set: &DaemonSet, key: &ObjectKey, plan: &mut Plan) -> Option<Duration> {
        let recorder = &self.context.recorder;
        for (node, pod) in plan.succeeded.drain(..) {
            let message = format!(
                "Found succeeded daemon pod {}/{} on node {node}, will try to delete it",
                pod.namespace(),
                pod.name()
            );
            recorder.event(set, Kind::Normal, "SucceededDaemonPod", message);
            plan.delete.push(pod);
        }
        let mut again: Option<Duration> = None;
        for (node, pod) in plan.failed.drain(..) {
            if let Some(wait) = self.failures.wait(key, &node, Instant::now()) {
                again = Some(again.map_or(wait, |again| again.min(wait)));
                // Beside it another would fail as fast.
                plan.create.retain(|other| *other != node);
                continue;
            }
            let message = format!(
                "Found failed daemon pod {}/{} on node {node}, will try to kill it",
                pod.namespace(),
                pod.name()
            );
            recorder.event(set, Kind::Warning, "FailedDaemonPod", message);
            plan.delete.push(pod);
        }
        again
    }

    async fn carry_out(
        &self,
        control: &PodControl<'_, DaemonSet>,
        spec: &DaemonSetSpec,
        mut plan: Plan,
        hash: &str,
    ) -> Result<(), ControllerError> {
        plan.create.truncate(BURST);
        plan.delete.truncate(BURST);
        if plan.create.is_empty() && plan.delete.is_empty() {
            return Ok(());
        }
        debug!(
            create = plan.create.len(),
            delete = plan.delete.len(),
            "pods change"
        );
        let uids = plan.delete.iter().map(|pod| pod.uid().to_owned());
        self.expectations
            .expect(control.key, plan.create.len(), uids, Instant::now());
        let generation = control.owner.annotations().get(GENERATION.0);
        let made = control
            .create(plan.create.len(), |at| {
                let key = control.key;
                let prefix = format!("{}-", key.name);
                let reference = controller_reference(control.owner);
                let mut pod = pod_of(&spec.template, &key.namespace, &prefix, reference);
                let labels = pod.metadata.labels.get_or_insert_default();
                labels.insert(HASH_LABEL.into(), hash.to_owned());
                if let Some(generation) = generation {
                    labels.insert(GENERATION.1.into(), generation.clone());
                }
                placement::pin(pod.spec.get_or_insert_default(), &plan.create[at]);
                pod
            })
            .await;
        let deleted = control.delete(&plan.delete).await;
        made.and(deleted)
    }
}

fn judge(nodes: &[Arc<Node>], spec: &DaemonSetSpec) -> BTreeMap<String, Fitness> {
    let default = k8s_openapi::api::core::v1::PodSpec::default();
    let template = spec.template.spec.as_ref().unwrap_or(&default);
    nodes
        .iter()
        .map(|node| (node.name_any(), placement::fitness(template, node)))
        .collect()
}

/// Pods that ended and are on their way out are as good as gone.
fn by_node(pods: &[Arc<PodView>]) -> BTreeMap<String, Vec<Arc<PodView>>> {
    let mut out: BTreeMap<String, Vec<Arc<PodView>>> = BTreeMap::new();
    for pod in pods {
        if pod.is_terminating() && pod.is_finished() {
            continue;
        }
        if let Some(node) = pod.target() {
            out.entry(node.to_owned()).or_default().push(pod.clone());
        }
    }
    out
}

/// How often pods failed on each node, and when last.
#[derive(Debug, Default)]
struct Failures {
    by_set: Mutex<HashMap<ObjectKey, ByNode>>,
}

type ByNode = HashMap<String, (u32, Instant)>;

impl Failures {
    /// How long a node still has to wait; `None` if its pod may be replaced, which counts as the next attempt.
    fn wait(&self, key: &ObjectKey, node: &str, now: Instant) -> Option<Duration> {
        let mut sets = self.by_set.lock().unwrap_or_else(PoisonError::into_inner);
        let nodes = sets.entry(key.clone()).or_default();
        nodes.retain(|_, (_, last)| now.duration_since(*last) < 2 * FAILED_POD.last);
        let (failures, last) = nodes.get(node).copied().unwrap_or((0, now));
        let due = last
            + if failures == 0 {
                Duration::ZERO
            } else {
                FAILED_POD.delay(failures)
            };
        if due > now {
            return Some(due - now);
        }
        nodes.insert(node.to_owned(), (failures + 1, now));
        None
    }

    fn forget(&self, key: &ObjectKey) {
        self.by_set
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_pods_fail_waits_ever_longer() {
        let (failures, key, start) = (Failures::default(), ObjectKey::new("a", "x"), Instant::now());
        assert_eq!(failures.wait(&key, "n1", start), None);
        assert_eq!(failures.wait(&key, "n1", start), Some(Duration::from_secs(1)));
        assert_eq!(failures.wait(&key, "n2", start), None, "each node for itself");
        let later = start + Duration::from_secs(1);
        assert_eq!(failures.wait(&key, "n1", later), None);
        assert_eq!(failures.wait(&key, "n1", later), Some(Duration::from_secs(2)));
        failures.forget(&key);
        assert_eq!(failures.wait(&key, "n1", later), None);
    }
}
