//! Judges nodes by their heartbeats, and taints those that are not well. Who has to leave because of a taint is for
//! [`taint_eviction`](super::taint_eviction) to say.
//!
//! A heartbeat is a change of the node's Lease (or of its status) *as seen here*: clocks of nodes are not trusted. After a
//! restart every node therefore has its full grace period again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info, warn};

use super::events::Kind;
use super::pod::PodView;
use super::{Context, ControllerError, chain, is_not_found};
use crate::informer::{Change, IndexKey};

/// Taint of a node that says it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// Taint of a node that says nothing.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const CORDONED: &str = "node.kubernetes.io/unschedulable";

/// Conditions that a node reports, and that become unknown with it.
const CONDITIONS: &[&str] = &["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];
/// Conditions whose being true keeps new pods away.
const PRESSURE: &[(&str, &str)] = &[
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
];
/// Pods written to at a time when a node goes down.
const PODS_AT_ONCE: usize = 32;

/// Condition Ready of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Ready,
    NotReady,
    Unknown,
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .find(|c| c.type_ == kind)
}

fn readiness(node: &Node) -> Readiness {
    match condition(node, "Ready").map(|c| c.status.as_str()) {
        Some("True") => Readiness::Ready,
        Some("False") => Readiness::NotReady,
        _ => Readiness::Unknown,
    }
}

/// The conditions of a node that has been silent for too long; `None` if they say so already.
fn silenced(node: &Node, now: Timestamp) -> Option<Vec<NodeCondition>> {
    let mut conditions: Vec<NodeCondition> = node
        .status
        .as_ref()
        .and_then(|s| s.conditions.clone())
        .unwrap_or_default();
    let mut changed = false;
    for kind in CONDITIONS {
        match conditions.iter_mut().find(|c| c.type_ == *kind) {
            Some(condition) if condition.status == "Unknown" => {}
            Some(condition) => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(Time(now));
                changed = true;
            }
            None => {
                conditions.push(NodeCondition {
                    type_: (*kind).into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(Time(now)),
                });
                changed = true;
            }
        }
    }
    changed.then_some(conditions)
}

/// The taints the node should have; `None` if it has them. Taints of others are kept; `evict` allows NoExecute.
fn tainted(node: &Node, readiness: Readiness, evict: bool, now: Timestamp) -> Option<Vec<Taint>> {
    let current = node
        .spec
        .as_ref()
        .and_then(|s| s.taints.clone())
        .unwrap_or_default();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    let bad = match readiness {
        Readiness::Ready => None,
        Readiness::NotReady => Some(NOT_READY),
        Readiness::Unknown => Some(UNREACHABLE),
    };
    if let Some(key) = bad {
        wanted.push((key, "NoSchedule"));
        if evict {
            wanted.push((key, "NoExecute"));
        }
    }
    for (kind, key) in PRESSURE {
        if condition(node, kind).is_some_and(|c| c.status == "True") {
            wanted.push((key, "NoSchedule"));
        }
    }
    if node
        .spec
        .as_ref()
        .and_then(|s| s.unschedulable)
        .unwrap_or_default()
    {
        wanted.push((CORDONED, "NoSchedule"));
    }
    let ours = |taint: &Taint| {
        let key = taint.key.as_str();
        [NOT_READY, UNREACHABLE, CORDONED].contains(&key)
            || PRESSURE.iter().any(|(_, pressure)| *pressure == key)
    };
    let is_wanted = |taint: &Taint| wanted.iter().any(|(k, e)| *k == taint.key && *e == taint.effect);
    let mut next: Vec<Taint> = current
        .iter()
        .filter(|taint| !ours(taint) || is_wanted(taint))
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !next
            .iter()
            .any(|taint| taint.key == key && taint.effect == effect)
        {
            next.push(Taint {
                key: key.into(),
                effect: effect.into(),
                time_added: Some(Time(now)),
                value: None,
            });
        }
    }
    (next != current).then_some(next)
}

#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    at: Instant,
}

#[derive(Debug, Default)]
struct Heartbeats {
    by_node: Mutex<HashMap<String, Heartbeat>>,
}

impl Heartbeats {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Heartbeat>) -> R) -> R {
        act(&mut self.by_node.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn seen(&self, node: &str) {
        self.with(|all| all.insert(node.to_owned(), Heartbeat { at: Instant::now() }));
    }

    fn silent_for(&self, node: &str) -> Duration {
        self.with(|all| {
            let now = Instant::now();
            now.duration_since(all.entry(node.to_owned()).or_insert(Heartbeat { at: now }).at)
        })
    }
}

/// Whether the node itself has written its status, not this controller.
fn is_status_heartbeat(change: &Change<'_, Node>) -> bool {
    let (Some(old), Some(new)) = (change.old, change.new) else {
        return change.new.is_some();
    };
    let beat = |node: &Node| condition(node, "Ready").and_then(|c| c.last_heartbeat_time.clone());
    beat(old) != beat(new) && beat(new).is_some()
}

pub(crate) fn start(context: &Arc<Context>) {
    let beats = Arc::new(Heartbeats::default());
    let seen = beats.clone();
    let wake = Arc::new(tokio::sync::Notify::new());
    let waker = wake.clone();
    context.nodes.subscribe(move |change| {
        let Some(name) = change.latest().and_then(|node| node.metadata.name.as_deref()) else {
            return;
        };
        if change.new.is_none() {
            seen.with(|all| all.remove(name));
            return;
        }
        if is_status_heartbeat(change) {
            seen.seen(name);
        }
        // Someone's change of readiness or of the cordon is answered now, not at the next tick.
        let judged = |node: &Node| {
            (
                readiness(node),
                node.spec
                    .as_ref()
                    .and_then(|s| s.unschedulable)
                    .unwrap_or_default(),
            )
        };
        if change
            .old
            .zip(change.new)
            .is_none_or(|(old, new)| judged(old) != judged(new))
        {
            waker.notify_one();
        }
    });
    let seen = beats.clone();
    context.leases.subscribe(move |change| {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|s| s.renew_time.clone());
        if let Some(lease) = change.new
            && change.old.is_none_or(|old| renewed(old) != renewed(lease))
            && let Some(name) = lease.metadata.name.as_deref()
        {
            seen.seen(name);
        }
    });
    let shared = context.clone();
    context.tracker.spawn(async move {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = async {
                shared.nodes.wait_synced().await;
                shared.leases.wait_synced().await;
                shared.pods.wait_synced().await;
            } => {}
        }
        let mut ticks = tokio::time::interval(shared.config.node_monitor_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shared.shutdown.cancelled() => return,
                _ = ticks.tick() => {}
                () = wake.notified() => {}
            }
            monitor(&shared, &beats).await;
        }
    });
}

/// Whether so many nodes are not well that the fault is more likely here, or between here and them: pods then stay where they
/// are, for those that are left could not take them all. The share is Kubernetes' `--unhealthy-zone-threshold`; two nodes are
/// never an outage unless they are all.
fn is_outage(nodes: usize, unwell: usize) -> bool {
    unwell == nodes || (unwell > 2 && unwell * 100 >= nodes * 55)
}

async fn monitor(context: &Context, beats: &Heartbeats) {
    let grace = context.config.node_monitor_grace_period;
    let nodes = context.nodes.all();
    let silent = |node: &Node| beats.silent_for(node.metadata.name.as_deref().unwrap_or_default()) > grace;
    let unwell = |node: &&Arc<Node>| silent(node) || readiness(node) != Readiness::Ready;
    let may_evict = !is_outage(nodes.len(), nodes.iter().filter(unwell).count());
    for node in &nodes {
        if let Err(error) = judge(context, node, silent(node), may_evict).await {
            debug!(node = node.metadata.name, error = %chain(&error), "node not judged, will retry");
        }
    }
}

async fn judge(
    context: &Context,
    node: &Arc<Node>,
    silent: bool,
    may_evict: bool,
) -> Result<(), ControllerError> {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Node> = Api::all(context.client.clone());
    let now = Timestamp::now();
    let before = readiness(node);
    let mut node = Node::clone(node);
    if silent && let Some(conditions) = silenced(&node, now) {
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "status": { "conditions": conditions },
        });
        node = api
            .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(ControllerError::api("patch status of", format!("node {name}")))?;
        if before == Readiness::Ready {
            warn!(node = name, "node is silent, its state is unknown");
            context.recorder.event(
                &node,
                Kind::Normal,
                "NodeNotReady",
                format!("Node {name} status is now: NodeNotReady"),
            );
        }
    }
    let after = readiness(&node);
    if let Some(taints) = tainted(&node, after, may_evict, now) {
        let patch = json!({
            "metadata": { "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": taints },
        });
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(ControllerError::api("patch", format!("node {name}")))?;
        info!(node = name, readiness = ?after, taints = taints.len(), "node taints changed");
    }
    // A node that speaks reports its pods itself.
    if after == Readiness::Unknown {
        mark_pods_not_ready(context, name).await;
    }
    Ok(())
}

/// Services must not send traffic to pods of a node that is not well.
async fn mark_pods_not_ready(context: &Context, node: &str) {
    let ready = context
        .pods
        .by_index(&IndexKey::Node(node.into()))
        .into_iter()
        .filter(|pod| pod.ready);
    let now = Time(Timestamp::now());
    for_each_pod(ready, |pod| {
        let api: Api<Pod> = Api::namespaced(context.client.clone(), pod.namespace());
        let patch = json!({
            "metadata": { "uid": pod.uid() },
            "status": { "conditions": [{ "type": "Ready", "status": "False", "lastTransitionTime": now }] },
        });
        context.recorder.about(
            "Pod",
            "v1",
            &pod.metadata,
            Kind::Warning,
            "NodeNotReady",
            "Node is not ready".into(),
        );
        async move {
            api.patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch))
                .await
                .map(|_| ())
        }
    })
    .await;
}

async fn for_each_pod<F>(pods: impl Iterator<Item = Arc<PodView>>, act: impl Fn(Arc<PodView>) -> F)
where
    F: Future<Output = Result<(), kube::Error>>,
{
    use futures::StreamExt;
    futures::stream::iter(pods)
        .for_each_concurrent(PODS_AT_ONCE, |pod| {
            let key = format!("{}/{}", pod.namespace(), pod.name());
            let work = act(pod);
            async move {
                if let Err(error) = work.await
                    && !is_not_found(&error)
                {
                    debug!(pod = key, %error, "pod of a node that is not well not written, will retry");
                }
            }
        })
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: Option<&str>, taints: &[(&str, &str)], cordoned: bool) -> Node {
        let conditions: Vec<_> = ready
            .iter()
            .map(|status| json!({ "type": "Ready", "status": status }))
            .collect();
        let taints: Vec<_> = taints
            .iter()
            .map(|(k, e)| json!({ "key": k, "effect": e }))
            .collect();
        serde_json::from_value(json!({
            "metadata": { "name": "n" },
            "spec": { "taints": taints, "unschedulable": cordoned },
            "status": { "conditions": conditions },
        }))
        .unwrap()
    }

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    #[test]
    fn an_outage_is_all_nodes_or_more_than_half_of_many() {
        let outages = [(1, 1), (2, 2), (3, 3), (4, 3), (5, 3), (9, 5), (100, 55)];
        let failures = [(3, 0), (2, 1), (3, 2), (6, 3), (10, 5), (100, 54)];
        assert!(outages.iter().all(|(nodes, unwell)| is_outage(*nodes, *unwell)));
        assert!(!failures.iter().any(|(nodes, unwell)| is_outage(*nodes, *unwell)));
    }

    #[test]
    fn a_silent_node_is_unknown_once() {
        let mut quiet = node(Some("True"), &[], false);
        let conditions = silenced(&quiet, now()).unwrap();
        assert_eq!(conditions[0].status, "Unknown");
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(conditions[1].reason.as_deref(), Some("NodeStatusNeverUpdated"));
        quiet.status.as_mut().unwrap().conditions = Some(conditions);
        assert!(silenced(&quiet, now()).is_none());
    }

    #[test]
    fn taints_follow_readiness_and_leave_others_alone() {
        let keys = |node: &Node, evict| {
            tainted(node, readiness(node), evict, now()).map(|taints| {
                taints
                    .into_iter()
                    .map(|t| format!("{}:{}", t.key, t.effect))
                    .collect::<Vec<_>>()
            })
        };
        let of = |key: &str, effect: &str| format!("{key}:{effect}");
        assert_eq!(keys(&node(Some("True"), &[], false), true), None);
        assert_eq!(
            keys(&node(Some("Unknown"), &[("mine", "NoSchedule")], false), true),
            Some(vec![
                of("mine", "NoSchedule"),
                of(UNREACHABLE, "NoSchedule"),
                of(UNREACHABLE, "NoExecute")
            ])
        );
        assert_eq!(
            keys(&node(Some("Unknown"), &[], false), false),
            Some(vec![of(UNREACHABLE, "NoSchedule")])
        );
        assert_eq!(
            keys(
                &node(
                    Some("False"),
                    &[(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")],
                    false
                ),
                true
            ),
            Some(vec![of(NOT_READY, "NoSchedule"), of(NOT_READY, "NoExecute")])
        );
        assert_eq!(
            keys(
                &node(
                    Some("True"),
                    &[(NOT_READY, "NoSchedule"), ("mine", "NoExecute")],
                    false
                ),
                true
            ),
            Some(vec![of("mine", "NoExecute")])
        );
        assert_eq!(
            keys(&node(Some("True"), &[], true), true),
            Some(vec![of(CORDONED, "NoSchedule")])
        );
        assert_eq!(
            keys(&node(None, &[], false), true).unwrap().len(),
            2,
            "never heard is unreachable"
        );
    }
}
