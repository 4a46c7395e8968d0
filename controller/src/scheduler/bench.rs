//! How fast decisions are, without any API: for the benchmark suite.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::score::{Decision, Sampling, Scratch, decide};
use super::snapshot::{PodInfo, Snapshot};
use super::testing::{node, pod};

/// What a run of decisions took.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Pods placed.
    pub placed: usize,
    /// Time for all of them.
    pub elapsed: Duration,
}

impl Run {
    /// Decisions per second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn per_second(&self) -> f64 {
        self.placed as f64 / self.elapsed.as_secs_f64()
    }
}

/// Places `pods` pods of `owners` controllers on `nodes` nodes with zones, taking turns between the controllers; every
/// pod prefers one of the zones if `affinity` is set.
pub fn decisions(nodes: usize, pods: usize, owners: usize, affinity: bool) -> Run {
    let mut snapshot = Snapshot::default();
    for i in 0..nodes {
        let mut node = node(&format!("node-{i}"), 32);
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert("topology.kubernetes.io/zone".into(), format!("zone-{}", i % 3));
        snapshot.upsert_node(&node);
    }
    let made: Vec<Arc<PodInfo>> = (0..pods)
        .map(|i| {
            let mut pod = pod(&format!("pod-{i}"))
                .cpu("100m")
                .request("memory", "128Mi")
                .owner(&format!("rs-{}", i % owners.max(1)));
            if affinity {
                let zone = format!("zone-{}", i % 3);
                pod = pod.preferred(
                    serde_json::json!([{ "weight": 10, "preference": { "matchExpressions":
                    [{ "key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone] }] } }]),
                );
            }
            Arc::new(pod.build())
        })
        .collect();
    let (mut start, mut scratch, mut placed) = (0, Scratch::default(), 0);
    let began = Instant::now();
    for pod in &made {
        if let Decision::Node(index) = decide(&snapshot, pod, Sampling::default(), &mut start, &mut scratch) {
            let name = snapshot.node(index).name.clone();
            snapshot.place(pod, &name);
            placed += 1;
        }
    }
    Run {
        placed,
        elapsed: began.elapsed(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_pod_is_placed() {
        let run = super::decisions(50, 500, 5, true);
        assert_eq!(run.placed, 500);
        assert!(run.per_second() > 0.0);
    }

    /// Figures for a person: `cargo test --release -p weft-controller --lib decision_rates -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, run by hand"]
    fn decision_rates() {
        for (nodes, pods, owners, affinity) in [
            (1000, 5000, 1, false),
            (1000, 20000, 20, true),
            (5000, 20000, 20, true),
        ] {
            let run = super::decisions(nodes, pods, owners, affinity);
            eprintln!(
                "{nodes} nodes, {pods} pods: {:.0} decisions/s ({} placed)",
                run.per_second(),
                run.placed
            );
        }
    }
}
