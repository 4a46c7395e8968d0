//! Moves pods off nodes with NoExecute taints: at once those that do not tolerate them, after their time those that do so
//! for a while. A taint that goes in time cancels this.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;

use super::events::Kind;
use super::node_lifecycle::{NOT_READY, UNREACHABLE};
use super::pod::PodView;
use super::pod_control::{Disruption, delete_pod, disrupt};
use super::{Context, ControllerError, Outcome, spawn_workers};
use crate::informer::{IndexKey, ObjectKey};
use crate::queue::{Backoff, Queue};
use crate::scheduler::filter::tolerates;

/// Pods told to leave a node at a time.
const PODS_AT_ONCE: usize = 32;

/// When a pod has to leave a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Eviction {
    Never,
    At(Timestamp),
}

/// When a pod with these tolerations has to leave a node with these taints, which concern it since `since` unless they say
/// otherwise. Pods that say nothing about nodes which are not ready or unreachable get `default`, which Kubernetes writes
/// into every pod at admission.
fn eviction(
    taints: &[Taint],
    tolerations: &[Toleration],
    default: Duration,
    since: impl Fn(&Taint) -> Timestamp,
) -> Eviction {
    let mut due: Option<Timestamp> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        // As in Kubernetes the first that matches counts.
        let seconds = match tolerations.iter().find(|t| tolerates(t, taint)) {
            Some(toleration) => {
                let limit = toleration.toleration_seconds;
                limit.map(|seconds| SignedDuration::from_secs(seconds.max(0)))
            }
            None if [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()) => {
                Some(SignedDuration::try_from(default).unwrap_or(SignedDuration::MAX))
            }
            None => return Eviction::At(Timestamp::MIN),
        };
        if let Some(seconds) = seconds {
            let at = since(taint).checked_add(seconds).unwrap_or(Timestamp::MAX);
            due = Some(due.map_or(at, |earlier| earlier.min(at)));
        }
    }
    due.map_or(Eviction::Never, Eviction::At)
}

/// Since when taints concern a pod: since they were put on the node, if that is written, but not before the pod was made;
/// else since they were first seen with it.
fn concerned_since(taint: &Taint, pod: &PodView, first_seen: Timestamp) -> Timestamp {
    let created = pod.metadata.creation_timestamp.as_ref();
    match (&taint.time_added, created) {
        (Some(added), Some(created)) => added.0.max(created.0),
        (Some(added), None) => added.0,
        (None, _) => first_seen,
    }
}

/// Pods that will have to leave, by uid, with the time at which that was first seen.
#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<String, Timestamp>>);

impl Waiting {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<String, Timestamp>) -> R) -> R {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.nodes.subscribe(move |change| {
        let taints = |node: Option<&Arc<Node>>| node.map(|node| no_execute(node)).unwrap_or_default();
        if taints(change.old) != taints(change.new)
            && let Some(node) = change.latest()
        {
            keys.add(ObjectKey::of(&node.metadata));
        }
    });
    let waiting = Arc::new(Waiting::default());
    let (keys, nodes, known) = (queue.clone(), context.nodes.clone(), waiting.clone());
    context.pods.subscribe(move |change| {
        let Some(pod) = change.new else {
            if let Some(gone) = change.old {
                known.with(|all| all.remove(gone.uid()));
            }
            return;
        };
        let same = |old: &Arc<PodView>| old.node == pod.node && old.tolerations == pod.tolerations;
        if change.old.is_some_and(same) {
            return;
        }
        let node = pod.node.as_deref().map(ObjectKey::cluster);
        if let Some(key) = node
            && nodes.get(&key).is_some_and(|node| !no_execute(&node).is_empty())
        {
            keys.add(key);
        }
    });
    let (nodes, pods) = (context.nodes.clone(), context.pods.clone());
    let ready = async move {
        nodes.wait_synced().await;
        pods.wait_synced().await;
    };
    let shared = context.clone();
    let workers = context.config.workers;
    spawn_workers(context, "taint-eviction", &queue, workers, ready, move |key| {
        let (context, waiting) = (shared.clone(), waiting.clone());
        async move { reconcile(&context, &waiting, &key).await }
    });
}

async fn reconcile(context: &Context, waiting: &Waiting, key: &ObjectKey) -> Outcome {
    let Some(node) = context.nodes.get(key) else {
        return Ok(None);
    };
    let taints = no_execute(&node);
    let pods = context.pods.by_index(&IndexKey::Node(key.name.clone()));
    let now = Timestamp::now();
    let (mut due, mut next) = (Vec::new(), None::<Timestamp>);
    for pod in pods.into_iter().filter(|pod| pod.is_active()) {
        let first_seen = waiting.with(|all| all.get(pod.uid()).copied());
        let since = |taint: &Taint| concerned_since(taint, &pod, first_seen.unwrap_or(now));
        match eviction(
            &taints,
            &pod.tolerations,
            context.config.pod_eviction_timeout,
            since,
        ) {
            Eviction::At(at) if at <= now => due.push(pod),
            Eviction::At(at) => {
                waiting.with(|all| *all.entry(pod.uid().to_owned()).or_insert(now));
                next = Some(next.map_or(at, |earlier| earlier.min(at)));
            }
            Eviction::Never => {
                if waiting.with(|all| all.remove(pod.uid())).is_some() {
                    tell(context, &pod, "Cancelling deletion of Pod");
                }
            }
        }
    }
    let tried = due.len();
    let evictions = due.into_iter().map(|pod| evict(context, pod));
    let failures: Vec<ControllerError> = futures::stream::iter(evictions)
        .buffer_unordered(PODS_AT_ONCE)
        .filter_map(async |result| result.err())
        .collect()
        .await;
    let failed = failures.len();
    if let Some(first) = failures.into_iter().next() {
        return Err(ControllerError::Batch {
            failed,
            tried,
            source: Box::new(first),
        });
    }
    Ok(next.map(|at| at.duration_since(now).try_into().unwrap_or(Duration::ZERO)))
}

fn tell(context: &Context, pod: &PodView, what: &str) {
    context.recorder.about(
        "Pod",
        "v1",
        &pod.metadata,
        Kind::Normal,
        "TaintManagerEviction",
        format!("{what} {}/{}", pod.namespace(), pod.name()),
    );
}

/// Deletes a pod; its condition says why before, so that its owner can count it as disrupted.
async fn evict(context: &Context, pod: Arc<PodView>) -> Result<(), ControllerError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), pod.namespace());
    tell(context, &pod, "Marking for deletion Pod");
    let disruption = Disruption {
        reason: "DeletionByTaintManager",
        message: "Taint manager: deleting due to NoExecute taint",
        failed: false,
    };
    disrupt(&api, &pod, disruption).await?;
    delete_pod(&api, &pod, None).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn taint(key: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            effect: effect.into(),
            time_added: None,
            value: None,
        }
    }

    #[test]
    fn when_pods_have_to_leave() {
        let toleration = |key: &str, seconds: Option<i64>| Toleration {
            key: Some(key.into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        };
        let default = Duration::from_mins(5);
        let at = |seconds| Eviction::At(now() + SignedDuration::from_secs(seconds));
        let down = [taint(UNREACHABLE, "NoExecute")];
        let two = [taint("a", "NoExecute"), taint("b", "NoExecute")];
        let at_once = Eviction::At(Timestamp::MIN);
        for (taints, tolerations, expected) in [
            (&down[..], vec![], at(300)),
            (&down[..], vec![toleration(UNREACHABLE, Some(30))], at(30)),
            (&down[..], vec![toleration(UNREACHABLE, Some(-1))], at(0)),
            (&down[..], vec![toleration(UNREACHABLE, None)], Eviction::Never),
            (
                &down[..],
                vec![toleration(UNREACHABLE, None), toleration(UNREACHABLE, Some(7))],
                Eviction::Never,
            ),
            (
                &down[..],
                vec![toleration(UNREACHABLE, Some(7)), toleration(UNREACHABLE, None)],
                at(7),
            ),
            (&down[..], vec![toleration(NOT_READY, None)], at(300)),
            (
                &two[..],
                vec![toleration("a", Some(9)), toleration("b", Some(5))],
                at(5),
            ),
            (&two[..], vec![toleration("a", Some(9))], at_once),
            (&[taint("other", "NoExecute")][..], vec![], at_once),
            (&[taint("other", "NoSchedule")][..], vec![], Eviction::Never),
            (&[][..], vec![], Eviction::Never),
        ] {
            assert_eq!(
                eviction(taints, &tolerations, default, |_| now()),
                expected,
                "{taints:?} {tolerations:?}"
            );
        }
    }

    #[test]
    fn time_runs_from_when_both_taint_and_pod_are_there() {
        let second = |n: i64| now() + SignedDuration::from_secs(n);
        let pod = |created: i64| {
            let mut view = PodView::default();
            view.metadata.creation_timestamp = Some(Time(second(created)));
            view
        };
        let added = Taint {
            time_added: Some(Time(second(10))),
            ..taint("a", "NoExecute")
        };
        assert_eq!(concerned_since(&added, &pod(0), second(99)), second(10));
        assert_eq!(concerned_since(&added, &pod(20), second(99)), second(20));
        assert_eq!(
            concerned_since(&taint("a", "NoExecute"), &pod(20), second(99)),
            second(99)
        );
    }
}
