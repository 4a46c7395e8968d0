//! Which of the nodes that fit is best, and the decision as a whole.

use std::collections::BTreeMap;

use super::filter::{fits, rejections, term_matches, unwelcome};
use super::snapshot::{Group, NodeIndex, NodeInfo, PodInfo, Snapshot};

/// Best score of one criterion.
const MAX: i64 = 100;
// Weights, as kube-scheduler has them.
const WEIGHT_FIT: i64 = 1;
const WEIGHT_BALANCE: i64 = 1;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_AFFINITY: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;
/// A pod more in the zone counts as this many hundredths of a pod more on the node.
const ZONE_SHARE: i64 = 25;

/// How many nodes that fit are compared: the search for more would cost more than it gains.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// All nodes are looked at up to this number.
    pub at_least: usize,
    /// Beyond it, this share of them in per cent.
    pub percent: usize,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            at_least: 400,
            percent: 10,
        }
    }
}

impl Sampling {
    fn wanted(self, nodes: usize) -> usize {
        self.at_least.max(nodes * self.percent / 100)
    }
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Node(NodeIndex),
    /// It fits nowhere.
    Nowhere {
        /// How many nodes there are.
        nodes: usize,
        /// How many nodes were passed over for each reason.
        reasons: BTreeMap<String, usize>,
    },
}

impl Decision {
    /// The sentence that users know from kube-scheduler.
    pub fn explain(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
        if nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut parts: Vec<String> = reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        parts.sort();
        // Preemption can only help where the node is right and full.
        let full = reasons
            .iter()
            .filter(|(reason, _)| {
                reason.starts_with("Insufficient")
                    || *reason == "Too many pods"
                    || reason.contains("free ports")
            })
            .map(|(_, count)| *count)
            .max()
            .unwrap_or(0)
            .min(nodes);
        let mut preemption = Vec::new();
        if full > 0 {
            preemption.push(format!("{full} No preemption victims found for incoming pod"));
        }
        if full < nodes {
            preemption.push(format!(
                "{} Preemption is not helpful for scheduling",
                nodes - full
            ));
        }
        preemption.sort();
        format!(
            "0/{nodes} nodes are available: {}. preemption: 0/{nodes} nodes are available: {}.",
            parts.join(", "),
            preemption.join(", ")
        )
    }
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    node: NodeIndex,
    own: i64,
    spread: i64,
    affinity: i64,
    unwelcome: i64,
}

/// Room for the candidates of one decision, kept between decisions.
#[derive(Debug, Default)]
pub struct Scratch {
    candidates: Vec<Candidate>,
}

/// Chooses a node for `pod`. `start` is where the search begins in the node order; it is moved on, so that equal nodes take
/// turns and every node is looked at in time.
pub fn decide(
    snapshot: &Snapshot,
    pod: &PodInfo,
    sampling: Sampling,
    start: &mut usize,
    scratch: &mut Scratch,
) -> Decision {
    let order = snapshot.order();
    let wanted = sampling.wanted(order.len());
    let group = pod.owner.as_deref().and_then(|owner| snapshot.group(owner));
    let candidates = &mut scratch.candidates;
    candidates.clear();
    let first = if order.is_empty() { 0 } else { *start % order.len() };
    for &index in order[first..].iter().chain(&order[..first]) {
        let node = snapshot.node(index);
        if !fits(pod, node) {
            continue;
        }
        candidates.push(Candidate {
            node: index,
            own: WEIGHT_FIT * least_allocated(pod, node) + WEIGHT_BALANCE * balanced(pod, node),
            spread: group.map_or(0, |group| crowding(group, index, node)),
            affinity: preference(pod, node),
            unwelcome: if node.taints.is_empty() {
                0
            } else {
                unwelcome(pod, node)
            },
        });
        if candidates.len() >= wanted {
            break;
        }
    }
    let Some(best) = best(candidates) else {
        return Decision::Nowhere {
            nodes: order.len(),
            reasons: reasons(snapshot, pod),
        };
    };
    *start = order.binary_search(&best).map_or(0, |position| position + 1);
    Decision::Node(best)
}

fn reasons(snapshot: &Snapshot, pod: &PodInfo) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for &index in snapshot.order() {
        for rejection in rejections(pod, snapshot.node(index)) {
            *counts.entry(rejection).or_insert(0) += 1;
        }
    }
    counts
        .into_iter()
        .map(|(rejection, count)| (rejection.to_string(), count))
        .collect()
}

fn best(candidates: &[Candidate]) -> Option<NodeIndex> {
    let most = |of: fn(&Candidate) -> i64| candidates.iter().map(of).max().unwrap_or(0);
    let least_crowded = candidates.iter().map(|c| c.spread).min().unwrap_or(0);
    let (crowded, preferred, unwelcome) = (most(|c| c.spread), most(|c| c.affinity), most(|c| c.unwelcome));
    let score = |c: &Candidate| {
        let spread = if crowded > 0 {
            MAX * (crowded + least_crowded - c.spread) / crowded
        } else {
            MAX
        };
        let affinity = if preferred > 0 {
            MAX * c.affinity / preferred
        } else {
            0
        };
        let taints = if unwelcome > 0 {
            MAX - MAX * c.unwelcome / unwelcome
        } else {
            MAX
        };
        c.own + WEIGHT_SPREAD * spread + WEIGHT_AFFINITY * affinity + WEIGHT_TAINTS * taints
    };
    let mut best: Option<(i64, NodeIndex)> = None;
    for candidate in candidates {
        let score = score(candidate);
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, candidate.node));
        }
    }
    best.map(|(_, node)| node)
}

/// Hundredths of pods of the same controller on the node and in its zone.
fn crowding(group: &Group, index: NodeIndex, node: &NodeInfo) -> i64 {
    let here = i64::from(group.by_node.get(&index).copied().unwrap_or(0));
    let zone = node
        .zone
        .as_ref()
        .and_then(|zone| group.by_zone.get(zone))
        .copied()
        .unwrap_or(0);
    here * MAX + i64::from(zone) * ZONE_SHARE
}

/// The share that stays free, in per cent, of CPU and memory on average.
fn least_allocated(pod: &PodInfo, node: &NodeInfo) -> i64 {
    let free = |used: i64, has: i64| {
        if has <= 0 || used > has {
            0
        } else {
            (has - used) * MAX / has
        }
    };
    let cpu = free(
        node.scored_cpu + pod.demand.scored_cpu,
        node.allocatable.milli_cpu,
    );
    let memory = free(
        node.scored_memory + pod.demand.scored_memory,
        node.allocatable.memory,
    );
    i64::midpoint(cpu, memory)
}

/// How evenly CPU and memory are used.
fn balanced(pod: &PodInfo, node: &NodeInfo) -> i64 {
    const SCALE: i64 = 1000;
    let used = |used: i64, has: i64| {
        if has <= 0 {
            SCALE
        } else {
            (used.saturating_mul(SCALE) / has).min(SCALE)
        }
    };
    let cpu = used(
        node.scored_cpu + pod.demand.scored_cpu,
        node.allocatable.milli_cpu,
    );
    let memory = used(
        node.scored_memory + pod.demand.scored_memory,
        node.allocatable.memory,
    );
    (SCALE - (cpu - memory).abs() / 2) * MAX / SCALE
}

fn preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.constraints
        .preferred
        .iter()
        .filter(|(_, term)| term_matches(term, node))
        .map(|(weight, _)| i64::from(*weight))
        .sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::Taint;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::scheduler::testing::{node, pod};

    fn cluster(cpus: &[i64]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for (i, cpu) in cpus.iter().enumerate() {
            snapshot.upsert_node(&node(&format!("n{i}"), *cpu));
        }
        snapshot
    }

    fn schedule(snapshot: &mut Snapshot, pod: PodInfo, start: &mut usize) -> Option<String> {
        match decide(
            snapshot,
            &pod,
            Sampling::default(),
            start,
            &mut Scratch::default(),
        ) {
            Decision::Node(index) => {
                let name = snapshot.node(index).name.clone();
                snapshot.place(&Arc::new(pod), &name);
                Some(name.to_string())
            }
            Decision::Nowhere { .. } => None,
        }
    }

    #[test]
    fn the_emptier_node_wins() {
        let mut snapshot = cluster(&[4, 4]);
        snapshot.place(&Arc::new(pod("x").cpu("2").build()), "n0");
        assert_eq!(
            schedule(&mut snapshot, pod("p").cpu("1").build(), &mut 0).unwrap(),
            "n1"
        );
    }

    #[test]
    fn equal_nodes_take_turns() {
        let mut snapshot = cluster(&[4, 4, 4]);
        let mut start = 0;
        let first = schedule(&mut snapshot, pod("a").build(), &mut start).unwrap();
        let second = schedule(&mut snapshot, pod("b").build(), &mut start).unwrap();
        let third = schedule(&mut snapshot, pod("c").build(), &mut start).unwrap();
        let mut all = [first, second, third];
        all.sort();
        assert_eq!(all, ["n0", "n1", "n2"]);
    }

    #[test]
    fn preferences_and_soft_taints() {
        let mut snapshot = cluster(&[4, 4, 4]);
        let mut marked = node("n2", 4);
        marked
            .metadata
            .labels
            .get_or_insert_default()
            .insert("disk".into(), "ssd".into());
        snapshot.upsert_node(&marked);
        let wish = json!([{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]);
        assert_eq!(
            schedule(&mut snapshot, pod("p").preferred(wish).build(), &mut 0).unwrap(),
            "n2"
        );
        for i in 0..2 {
            let mut soft = node(&format!("n{i}"), 4);
            soft.spec.get_or_insert_default().taints = Some(vec![Taint {
                key: "k".into(),
                effect: "PreferNoSchedule".into(),
                ..Taint::default()
            }]);
            snapshot.upsert_node(&soft);
        }
        assert_eq!(schedule(&mut snapshot, pod("q").build(), &mut 0).unwrap(), "n2");
    }

    #[test]
    fn zones_are_spread_too() {
        let mut snapshot = Snapshot::default();
        for (name, zone) in [("n0", "a"), ("n1", "a"), ("n2", "b")] {
            let mut node = node(name, 64);
            node.metadata
                .labels
                .get_or_insert_default()
                .insert("topology.kubernetes.io/zone".into(), zone.into());
            snapshot.upsert_node(&node);
        }
        let mut start = 0;
        let mut take =
            |name: &str| schedule(&mut snapshot, pod(name).owner("o").build(), &mut start).unwrap();
        let (first, second) = (take("a"), take("b"));
        assert!(
            first == "n2" || second == "n2",
            "{first} {second}: one in each zone first"
        );
    }

    #[test]
    fn says_why_nothing_fits() {
        let mut snapshot = cluster(&[1, 4, 4]);
        for i in 1..3 {
            let mut tainted = node(&format!("n{i}"), 4);
            tainted.spec.get_or_insert_default().taints = Some(vec![Taint {
                key: "k".into(),
                value: Some("v".into()),
                effect: "NoSchedule".into(),
                time_added: None,
            }]);
            snapshot.upsert_node(&tainted);
        }
        let decision = decide(
            &snapshot,
            &pod("p").cpu("2").build(),
            Sampling::default(),
            &mut 0,
            &mut Scratch::default(),
        );
        let Decision::Nowhere { nodes, reasons } = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(
            Decision::explain(nodes, &reasons),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {k: v}. preemption: \
             0/3 nodes are available: 1 No preemption victims found for incoming pod, 2 Preemption is not helpful \
             for scheduling."
        );
        assert_eq!(
            Decision::explain(0, &BTreeMap::new()),
            "no nodes available to schedule pods"
        );
    }

    proptest! {
        /// One owner's pods on equal nodes never differ by more than one per node.
        #[test]
        fn an_owners_pods_are_spread_evenly(nodes in 1usize..12, pods in 1usize..60) {
            let mut snapshot = cluster(&vec![64; nodes]);
            let mut start = 0;
            for i in 0..pods {
                let placed = schedule(&mut snapshot, pod(&format!("p{i}")).cpu("10m").owner("o").build(), &mut start);
                prop_assert!(placed.is_some());
            }
            let counts: Vec<usize> = snapshot.order().iter().map(|&i| snapshot.node(i).pods).collect();
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{counts:?}");
        }

        /// No node is ever given more than it has, and a pod is refused only if it fits nowhere.
        #[test]
        fn nodes_are_never_overfilled(cpus in prop::collection::vec(1i64..5, 1..6), wants in prop::collection::vec(100i64..3000, 1..40)) {
            let mut snapshot = cluster(&cpus);
            let mut start = 0;
            for (i, want) in wants.iter().enumerate() {
                let fits_somewhere = snapshot.order().iter().any(|&n| {
                    let node = snapshot.node(n);
                    node.allocatable.milli_cpu - node.requested.milli_cpu >= *want
                });
                let placed = schedule(&mut snapshot, pod(&format!("p{i}")).cpu(&format!("{want}m")).build(), &mut start);
                prop_assert_eq!(placed.is_some(), fits_somewhere);
                for &n in snapshot.order() {
                    let node = snapshot.node(n);
                    prop_assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu);
                }
            }
        }
    }
}
