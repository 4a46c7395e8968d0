//! How many pods to make, which to delete, and what the status says: without any IO.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use super::kinds::Replicated;
use crate::controllers::pod::{DELETION_COST, PodView};
use crate::controllers::{ControllerError, chain, said};
use crate::informer::remembering;

/// What to do to the pods.
#[derive(Debug)]
pub enum Plan {
    /// Nothing.
    Keep,
    /// Make so many.
    Create(usize),
    /// Delete these.
    Delete(Vec<Arc<PodView>>),
}

/// Compares what is asked for with the active pods. `related` is asked only when pods have to go.
pub fn plan(
    replicas: i32,
    pods: &[Arc<PodView>],
    burst: usize,
    related: impl FnOnce(&[Arc<PodView>]) -> Vec<Arc<PodView>>,
    now: Timestamp,
) -> Plan {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match pods.len().cmp(&wanted) {
        Ordering::Equal => Plan::Keep,
        Ordering::Less => Plan::Create((wanted - pods.len()).min(burst)),
        Ordering::Greater => {
            let surplus = (pods.len() - wanted).min(burst);
            Plan::Delete(victims(pods, &related(pods), surplus, now))
        }
    }
}

/// The `count` pods that are missed least, in the order of Kubernetes: not scheduled, not running, not ready, cheap, on a
/// node with many of their like, ready for a short time, often restarted, young.
pub fn victims(
    pods: &[Arc<PodView>],
    related: &[Arc<PodView>],
    count: usize,
    now: Timestamp,
) -> Vec<Arc<PodView>> {
    let mut crowd: HashMap<&str, usize> = HashMap::new();
    for node in related.iter().filter_map(|pod| pod.node.as_deref()) {
        *crowd.entry(node).or_default() += 1;
    }
    let mut ranked: Vec<(VictimRank<'_>, &Arc<PodView>)> =
        pods.iter().map(|pod| (rank(pod, &crowd, now), pod)).collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0));
    ranked
        .into_iter()
        .take(count)
        .map(|(_, pod)| pod.clone())
        .collect()
}

/// Smaller goes first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct VictimRank<'a> {
    scheduled: bool,
    phase: crate::controllers::pod::Phase,
    ready: bool,
    cost: i32,
    crowd: Reverse<usize>,
    ready_for: u32,
    restarts: Reverse<i32>,
    age: u32,
    uid: &'a str,
}

fn rank<'a>(pod: &'a PodView, crowd: &HashMap<&str, usize>, now: Timestamp) -> VictimRank<'a> {
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DELETION_COST));
    VictimRank {
        scheduled: pod.node.is_some(),
        phase: pod.phase,
        ready: pod.ready,
        cost: cost.and_then(|cost| cost.parse().ok()).unwrap_or(0),
        crowd: Reverse(
            pod.node
                .as_deref()
                .and_then(|node| crowd.get(node))
                .copied()
                .unwrap_or(0),
        ),
        ready_for: if pod.ready {
            magnitude(pod.ready_changed, now)
        } else {
            0
        },
        restarts: Reverse(pod.restarts),
        age: magnitude(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now),
        uid: pod.uid(),
    }
}

/// How long ago, as a power of two of seconds: a small difference of age says nothing, and the pods of one failed
/// zone should not always be the youngest.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let Some(since) = since else { return 0 };
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    u64::BITS - seconds.leading_zeros()
}

/// Why pods could not be made or deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: String,
    /// What the API said.
    pub message: String,
    /// Since when.
    pub since: Option<Timestamp>,
}

impl Failure {
    /// What to say about a failed action.
    pub fn of(error: &ControllerError) -> Self {
        let deleting = match error {
            ControllerError::Batch { source, .. } => {
                matches!(&**source, ControllerError::Api { verb: "delete", .. })
            }
            _ => false,
        };
        Failure {
            reason: if deleting { "FailedDelete" } else { "FailedCreate" }.into(),
            message: match error {
                ControllerError::Batch { source, .. } => match &**source {
                    ControllerError::Api { source, .. } => said(source),
                    other => chain(other),
                },
                other => chain(other),
            },
            since: None,
        }
    }
}

/// The status of an owner of pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Active pods.
    pub replicas: i32,
    /// Active pods with all labels of the template.
    pub fully_labeled: i32,
    /// Ready pods.
    pub ready: i32,
    /// Pods that have been ready for long enough.
    pub available: i32,
    /// Generation this is about.
    pub observed_generation: i64,
    /// Condition ReplicaFailure.
    pub failure: Option<Failure>,
}

/// Counts the pods. `failure` is `None` if nothing was tried, and the condition stays as it is.
pub fn status<K: Replicated>(
    owner: &K,
    pods: &[Arc<PodView>],
    failure: Option<Option<Failure>>,
    now: Timestamp,
) -> ReplicaStatus {
    let count = |test: &dyn Fn(&PodView) -> bool| {
        i32::try_from(pods.iter().filter(|pod| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let wanted_labels = owner
        .template()
        .and_then(|t| t.metadata.as_ref()?.labels.as_ref());
    let mut labelled = remembering(|labels| {
        wanted_labels.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)))
    });
    let fully_labeled = pods.iter().filter(|pod| labelled(&pod.labels)).count();
    let before = owner.status();
    let failure = match failure {
        None => before.failure,
        Some(None) => None,
        Some(Some(fresh)) => Some(match before.failure {
            // Said already: the time stays, and so does a message that differs only in the made-up name of the pod.
            Some(known) if known.reason == fresh.reason => Failure {
                since: known.since,
                ..fresh
            },
            _ => Failure {
                since: Some(now),
                ..fresh
            },
        }),
    };
    ReplicaStatus {
        replicas: count(&|_| true),
        fully_labeled: i32::try_from(fully_labeled).unwrap_or(i32::MAX),
        ready: count(&|pod| pod.ready),
        available: count(&|pod| pod.is_available(owner.min_ready_seconds(), now)),
        observed_generation: owner.metadata().generation.unwrap_or(0),
        failure,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::SignedDuration;

    use super::*;
    use crate::controllers::pod::Phase;

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn ago(seconds: i64) -> Timestamp {
        now() - SignedDuration::from_secs(seconds)
    }

    fn pod(uid: &str, node: Option<&str>) -> PodView {
        PodView {
            metadata: ObjectMeta {
                name: Some(uid.into()),
                uid: Some(uid.into()),
                creation_timestamp: Some(Time(ago(1000))),
                ..ObjectMeta::default()
            },
            labels: Arc::new([("app".to_owned(), "web".to_owned())].into()),
            node: node.map(Into::into),
            phase: Phase::Running,
            ready: true,
            ready_changed: Some(ago(900)),
            ..PodView::default()
        }
    }

    fn arcs(pods: Vec<PodView>) -> Vec<Arc<PodView>> {
        pods.into_iter().map(Arc::new).collect()
    }

    fn order(pods: Vec<PodView>) -> Vec<String> {
        let pods = arcs(pods);
        victims(&pods, &pods, pods.len(), now())
            .iter()
            .map(|pod| pod.uid().to_owned())
            .collect()
    }

    #[test]
    fn makes_what_is_missing_and_no_more() {
        let none = |_: &[Arc<PodView>]| Vec::new();
        let three = arcs(vec![pod("a", None), pod("b", None), pod("c", None)]);
        assert!(matches!(plan(3, &three, 500, none, now()), Plan::Keep));
        assert!(matches!(plan(5, &three, 500, none, now()), Plan::Create(2)));
        assert!(matches!(plan(5000, &three, 500, none, now()), Plan::Create(500)));
        assert!(matches!(plan(1, &three, 500, none, now()), Plan::Delete(v) if v.len() == 2));
        assert!(matches!(plan(0, &three, 2, none, now()), Plan::Delete(v) if v.len() == 2));
        assert!(matches!(plan(-1, &three, 500, none, now()), Plan::Delete(v) if v.len() == 3));
    }

    #[test]
    fn those_missed_least_go_first() {
        let cheap = PodView {
            metadata: ObjectMeta {
                annotations: Some([(DELETION_COST.to_owned(), "-5".to_owned())].into()),
                ..pod("cheap", Some("n1")).metadata
            },
            ..pod("cheap", Some("n1"))
        };
        let pods = vec![
            pod("old", Some("n1")),
            PodView {
                ready_changed: Some(ago(10)),
                ..pod("just-ready", Some("n2"))
            },
            PodView {
                restarts: 4,
                ..pod("restarting", Some("n3"))
            },
            cheap,
            PodView {
                ready: false,
                ..pod("unready", Some("n4"))
            },
            PodView {
                phase: Phase::Pending,
                ready: false,
                ..pod("pending", Some("n5"))
            },
            PodView {
                phase: Phase::Pending,
                ready: false,
                ..pod("unscheduled", None)
            },
            pod("crowd-a", Some("n6")),
            pod("crowd-b", Some("n6")),
            pod("crowd-c", Some("n6")),
        ];
        // `old` shares its node with `cheap`, so its node counts as crowded too.
        assert_eq!(
            order(pods),
            [
                "unscheduled",
                "pending",
                "unready",
                "cheap",
                "crowd-a",
                "crowd-b",
                "crowd-c",
                "old",
                "just-ready",
                "restarting",
            ]
        );
    }

    #[test]
    fn counts_and_conditions() {
        let set: ReplicaSet = serde_json::from_value(serde_json::json!({
            "metadata": { "generation": 7 },
            "spec": {
                "replicas": 3, "minReadySeconds": 30, "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web", "tier": "x" } } },
            },
        }))
        .unwrap();
        let mut labelled = pod("a", None);
        Arc::make_mut(&mut labelled.labels).insert("tier".into(), "x".into());
        let pods = arcs(vec![
            labelled,
            PodView {
                ready_changed: Some(ago(29)),
                ..pod("b", None)
            },
            PodView {
                ready: false,
                ..pod("c", None)
            },
        ]);
        let seen = status(&set, &pods, Some(None), now());
        assert_eq!(
            (seen.replicas, seen.fully_labeled, seen.ready, seen.available),
            (3, 1, 2, 1)
        );
        assert_eq!(seen.observed_generation, 7);

        let failure = Failure {
            reason: "FailedCreate".into(),
            message: "quota".into(),
            since: None,
        };
        let failed = status(&set, &pods, Some(Some(failure.clone())), ago(50));
        assert_eq!(failed.failure.as_ref().unwrap().since, Some(ago(50)));
        let mut set = set;
        set.set_status(&failed);
        let again = status(&set, &pods, Some(Some(failure)), now());
        assert_eq!(
            again.failure.unwrap().since,
            Some(ago(50)),
            "the time of the first failure stays"
        );
        assert!(
            status(&set, &pods, None, now()).failure.is_some(),
            "nothing tried, nothing learnt"
        );
        assert!(status(&set, &pods, Some(None), now()).failure.is_none());
    }
}
