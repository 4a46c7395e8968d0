//! How fast decisions are, without any API: for the benchmark suite.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::decide::{Decision, Sampling, Scratch, decide};
use super::pod::PodInfo;
use super::snapshot::Snapshot;
use super::testing::{node, pod};
use super::volumes::VolumePlan;

/// What the pods of a run ask for.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Number of controllers that the pods belong to, taking turns.
    pub owners: usize,
    /// Whether pods must be spread over zones, would like to be over nodes, and keep away from some of their kind and near
    /// others; otherwise they are spread as pods are that say nothing.
    pub constrained: bool,
}

/// What a run of decisions took.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// Pods placed.
    pub placed: usize,
    /// Time for all of them.
    pub elapsed: Duration,
}

impl Report {
    /// Decisions per second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.placed as f64 / self.elapsed.as_secs_f64()
    }
}

/// Places `pods` pods on `nodes` nodes in three zones.
pub fn run(nodes: usize, pods: usize, options: Options) -> Report {
    let mut snapshot = Snapshot::default();
    for i in 0..nodes {
        let mut node = node(&format!("node-{i}"), 32);
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert("topology.kubernetes.io/zone".into(), format!("zone-{}", i % 3));
        snapshot.upsert_node(&node);
    }
    let made: Vec<Arc<PodInfo>> = (0..pods).map(|i| Arc::new(make(i, options))).collect();
    let (mut start, mut scratch, mut placed) = (0, Scratch::default(), 0);
    let volumes = VolumePlan::default();
    let began = Instant::now();
    for pod in &made {
        let plan = snapshot.plan(pod);
        let decision = decide(
            &snapshot,
            pod,
            &plan,
            &volumes,
            Sampling::default(),
            &mut start,
            &mut scratch,
        );
        if let Decision::Node(index) = decision {
            let name = snapshot.node(index).name.clone();
            snapshot.place(pod, &name);
            placed += 1;
        }
    }
    Report {
        placed,
        elapsed: began.elapsed(),
    }
}

/// Of five controllers, one gives each of its pods a node of its own, one puts them into zones where the first one's are,
/// and two would like to be near to another's, or away from them.
fn make(i: usize, options: Options) -> PodInfo {
    let owner = i % options.owners.max(1);
    let app = format!("app-{owner}");
    let mut pod = pod(&format!("pod-{i}"))
        .cpu("100m")
        .request("memory", "128Mi")
        .owner(&format!("rs-{owner}"))
        .label("app", &app);
    if !options.constrained {
        return pod.build();
    }
    let term = |key: &str, app: &str| json!({ "topologyKey": key, "labelSelector": { "matchLabels": { "app": app } } });
    let spread = |key: &str, skew: i32, when: &str| {
        json!({ "maxSkew": skew, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": { "matchLabels": { "app": app } } })
    };
    let (zone, host) = ("topology.kubernetes.io/zone", "kubernetes.io/hostname");
    pod = pod.spread(json!([
        spread(zone, 5, "DoNotSchedule"),
        spread(host, 1, "ScheduleAnyway")
    ]));
    let fellow = format!("app-{}", (owner + 1) % options.owners.max(1));
    match owner % 5 {
        0 => pod = pod.away(json!([term(host, &app)])),
        1 => pod = pod.near(json!([term(zone, &format!("app-{}", owner - 1))])),
        2 => pod = pod.rather_near(json!([{ "weight": 50, "podAffinityTerm": term(zone, &fellow) }])),
        3 => pod = pod.rather_away(json!([{ "weight": 50, "podAffinityTerm": term(host, &fellow) }])),
        _ => {}
    }
    pod.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_is_placed() {
        for constrained in [false, true] {
            let owners = 10;
            let report = run(50, 500, Options { owners, constrained });
            assert_eq!(report.placed, 500);
            assert!(report.per_second() > 0.0);
        }
    }
}
