//! Deletes pods that nobody else will: of nodes that are gone, unscheduled ones that are terminating, the oldest finished
//! ones beyond a limit, terminating ones of a node that is shut down, and, if configured, those evicted from a silent node.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use tokio::time::MissedTickBehavior;
use tracing::{debug, info};

use super::node_lifecycle::{NOT_READY, UNREACHABLE};
use super::pod::PodView;
use super::pod_control::{Disruption, delete_pod, disrupt};
use super::{Context, chain, is_not_found};
use crate::informer::{IndexKey, ObjectKey};

/// A node must be missing this long before its pods go: one that joins again under its name keeps them.
const QUARANTINE: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 16;
/// Taint by which a person says that a node is shut down and its pods do not run.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Why a pod is garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Garbage {
    /// Its node is gone.
    Orphaned,
    /// It was to be deleted and never got a node.
    Unscheduled,
    /// Too many finished pods are kept.
    Finished,
    /// Its node stays silent and will not confirm the deletion.
    Unreachable,
    /// Someone has said that its node is shut down, so it cannot run any more.
    OutOfService,
}

impl Garbage {
    /// What the pod says of its end, where it did not come to one by itself.
    fn disruption(self) -> Option<Disruption> {
        let message = match self {
            Garbage::Orphaned => "PodGC: node no longer exists",
            Garbage::OutOfService => "PodGC: node is out-of-service",
            Garbage::Unscheduled | Garbage::Finished | Garbage::Unreachable => return None,
        };
        Some(Disruption {
            reason: "DeletionByPodGC",
            message,
            failed: true,
        })
    }
}

/// Nodes whose pods may be garbage.
#[derive(Debug, Default)]
struct Lost {
    /// Gone for good.
    missing: HashSet<Arc<str>>,
    /// Unreachable.
    silent: HashSet<Arc<str>>,
    /// Not ready, and out of service as someone has said.
    out_of_service: HashSet<Arc<str>>,
}

/// The pods to delete.
fn garbage(
    pods: &[Arc<PodView>],
    lost: &Lost,
    threshold: usize,
    force_after: Option<Duration>,
    now: Timestamp,
) -> Vec<(Arc<PodView>, Garbage)> {
    let mut out = Vec::new();
    let mut finished: Vec<&Arc<PodView>> = Vec::new();
    for pod in pods {
        let overdue = |after: Duration| {
            let deleted = pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
            let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
            deleted.is_some_and(|deleted| now.duration_since(deleted) >= after)
        };
        match &pod.node {
            Some(node) if lost.missing.contains(node) => out.push((pod.clone(), Garbage::Orphaned)),
            Some(node) if lost.out_of_service.contains(node) && pod.is_terminating() => {
                out.push((pod.clone(), Garbage::OutOfService));
            }
            Some(node) if lost.silent.contains(node) && force_after.is_some_and(overdue) => {
                out.push((pod.clone(), Garbage::Unreachable));
            }
            None if pod.is_terminating() => out.push((pod.clone(), Garbage::Unscheduled)),
            _ if pod.is_finished() && !pod.is_terminating() => finished.push(pod),
            _ => {}
        }
    }
    let surplus = finished.len().saturating_sub(threshold);
    if surplus > 0 {
        finished.sort_by_key(|pod| (pod.metadata.creation_timestamp.clone(), pod.name()));
        out.extend(
            finished
                .into_iter()
                .take(surplus)
                .map(|pod| (pod.clone(), Garbage::Finished)),
        );
    }
    out
}

pub(crate) fn start(context: &Arc<Context>) {
    let context = context.clone();
    context.tracker.clone().spawn(async move {
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = async { context.pods.wait_synced().await; context.nodes.wait_synced().await } => {}
        }
        let mut ticks = tokio::time::interval(context.config.pod_gc_period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = context.shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            collect(&context).await;
        }
    });
}

async fn collect(context: &Context) {
    let pods = context.pods.all();
    let suspects = missing_nodes(context, &pods);
    let missing = if suspects.is_empty() {
        suspects
    } else {
        confirmed_missing(context, suspects).await
    };
    let mut lost = Lost {
        missing,
        ..Lost::default()
    };
    for node in context.nodes.all() {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
        let tainted = |key: &str| taints.unwrap_or_default().iter().any(|taint| taint.key == key);
        let Some(name) = node.metadata.name.as_deref() else {
            continue;
        };
        if tainted(UNREACHABLE) {
            lost.silent.insert(name.into());
        }
        if tainted(OUT_OF_SERVICE) && (tainted(UNREACHABLE) || tainted(NOT_READY)) {
            lost.out_of_service.insert(name.into());
        }
    }
    let config = &context.config;
    let due = garbage(
        &pods,
        &lost,
        config.terminated_pod_threshold,
        config.unreachable_force_delete_after,
        Timestamp::now(),
    );
    drop(pods);
    stream::iter(due)
        .for_each_concurrent(AT_ONCE, |(pod, why)| async move {
            let api: Api<Pod> = Api::namespaced(context.client.clone(), pod.namespace());
            if let Some(disruption) = why.disruption().filter(|_| !pod.is_finished())
                && let Err(error) = disrupt(&api, &pod, disruption).await
            {
                debug!(pod = pod.name(), error = %chain(&error), "pod not marked, will retry");
                return;
            }
            match delete_pod(&api, &pod, Some(0)).await {
                Ok(()) => info!(pod = pod.name(), namespace = pod.namespace(), ?why, "pod deleted"),
                Err(error) => debug!(pod = pod.name(), error = %chain(&error), "pod not deleted, will retry"),
            }
        })
        .await;
}

fn missing_nodes(context: &Context, pods: &[Arc<PodView>]) -> HashSet<Arc<str>> {
    let used: HashSet<&Arc<str>> = pods.iter().filter_map(|pod| pod.node.as_ref()).collect();
    used.into_iter()
        .filter(|node| context.nodes.get(&ObjectKey::cluster(node)).is_none())
        .cloned()
        .collect()
}

/// Of the nodes that seem to be gone, those that still are after a while and that the API does not know.
async fn confirmed_missing(context: &Context, suspects: HashSet<Arc<str>>) -> HashSet<Arc<str>> {
    tokio::select! {
        () = context.shutdown.cancelled() => return HashSet::new(),
        () = tokio::time::sleep(QUARANTINE.min(context.config.pod_gc_period)) => {}
    }
    let api: Api<Node> = Api::all(context.client.clone());
    let mut out = HashSet::new();
    for name in suspects {
        let unused = context.pods.by_index(&IndexKey::Node(name.clone())).is_empty();
        if unused || context.nodes.get(&ObjectKey::cluster(&name)).is_some() {
            continue;
        }
        if api.get(&name).await.is_err_and(|error| is_not_found(&error)) {
            out.insert(name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

    use super::*;
    use crate::controllers::pod::Phase;

    #[test]
    fn what_is_garbage() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let ago = |seconds| Time(now - SignedDuration::from_secs(seconds));
        let pod = |name: &str, node: Option<&str>, deleted: Option<i64>, phase, age| {
            Arc::new(PodView {
                metadata: ObjectMeta {
                    name: Some(name.into()),
                    creation_timestamp: Some(ago(age)),
                    deletion_timestamp: deleted.map(ago),
                    ..ObjectMeta::default()
                },
                node: node.map(Into::into),
                phase,
                ..PodView::default()
            })
        };
        let pods = [
            pod("fine", Some("up"), None, Phase::Running, 10),
            pod("orphan", Some("gone"), None, Phase::Running, 10),
            pod("unscheduled", None, Some(1), Phase::Pending, 10),
            pod("pending", None, None, Phase::Pending, 10),
            pod("evicted", Some("silent"), Some(61), Phase::Running, 10),
            pod("evicted-lately", Some("silent"), Some(59), Phase::Running, 10),
            pod("shut-down", Some("off"), Some(1), Phase::Running, 10),
            pod("not-deleted", Some("off"), None, Phase::Running, 10),
            pod("oldest", Some("up"), None, Phase::Succeeded, 30),
            pod("old", Some("up"), None, Phase::Failed, 20),
            pod("recent", Some("up"), None, Phase::Succeeded, 10),
        ];
        let names = |threshold, force: Option<u64>| {
            let set = |name: &str| HashSet::from([Arc::from(name)]);
            let lost = Lost {
                missing: set("gone"),
                silent: set("silent"),
                out_of_service: set("off"),
            };
            garbage(&pods, &lost, threshold, force.map(Duration::from_secs), now)
                .into_iter()
                .map(|(pod, why)| format!("{} {why:?}", pod.name()))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(10, None),
            [
                "orphan Orphaned",
                "unscheduled Unscheduled",
                "shut-down OutOfService"
            ]
        );
        assert_eq!(
            names(1, Some(60)),
            [
                "orphan Orphaned",
                "unscheduled Unscheduled",
                "evicted Unreachable",
                "shut-down OutOfService",
                "oldest Finished",
                "old Finished"
            ]
        );
    }
}
