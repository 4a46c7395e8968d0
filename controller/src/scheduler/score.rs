//! How good a node that fits is, by kube-scheduler's criteria and weights.

use std::borrow::Cow;

use super::census::{Carrier, Wish};
use super::filter::{node_affinity, taints};
use super::node::{NodeIndex, NodeInfo};
use super::plan::Plan;
use super::pod::PodInfo;
use super::snapshot::Snapshot;
use super::tally::{Counts, TopologyKey};

/// Best score of one criterion.
const MAX: i64 = 100;
// Weights, as kube-scheduler has them.
const WEIGHT_FIT: i64 = 1;
const WEIGHT_BALANCE: i64 = 1;
const WEIGHT_IMAGES: i64 = 1;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_NODE_AFFINITY: i64 = 2;
const WEIGHT_POD_AFFINITY: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;

/// Images smaller than this are no reason to prefer a node.
const SMALL_IMAGE: i64 = 23 * 1024 * 1024;
/// More than this for each container makes no difference.
const LARGE_IMAGE: i64 = 1000 * 1024 * 1024;

/// A node that fits, and what can be said of it alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) node: NodeIndex,
    /// Where it stands in the order of nodes.
    pub(super) position: usize,
    own: i64,
    /// How crowded it is; `None` if it lacks a label by which pods are spread.
    spread: Option<i64>,
    node_affinity: i64,
    pod_affinity: i64,
    unwelcome: i64,
}

/// The criteria, for one pod.
pub(super) struct Criteria<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    plan: &'a Plan,
    leanings: Vec<(i64, &'a Counts, &'a TopologyKey)>,
    /// The pod's images that some node holds, by the name under which nodes report them, and how many nodes do.
    images: Vec<(Cow<'a, str>, u32)>,
}

impl<'a> Criteria<'a> {
    pub(super) fn new(snapshot: &'a Snapshot, pod: &'a PodInfo, plan: &'a Plan) -> Self {
        let census = &snapshot.census;
        let own = plan.leanings.iter().map(|(weight, tally)| {
            let tally = census.tally(*tally);
            (*weight, &tally.counts, census.key(tally.key))
        });
        let of_others = census
            .wishes_about(plan.class)
            .filter_map(|carrier: &Carrier| match carrier.wish {
                Wish::Leaning(weight) => Some((weight, &carrier.counts, census.key(carrier.key))),
                Wish::Away => None,
            });
        Criteria {
            snapshot,
            pod,
            plan,
            leanings: own.chain(of_others).collect(),
            images: (pod.constraints.images.iter())
                .map(|image| with_tag(image))
                .map(|name| {
                    let holders = snapshot.holders(&name);
                    (name, holders)
                })
                .filter(|(_, holders)| *holders > 0)
                .collect(),
        }
    }

    /// What can be said of a node alone.
    pub(super) fn look_at(&self, index: NodeIndex, position: usize) -> Candidate {
        let (pod, node) = (self.pod, self.snapshot.node(index));
        Candidate {
            node: index,
            position,
            own: WEIGHT_FIT * least_allocated(pod, node)
                + WEIGHT_BALANCE * balanced(pod, node)
                + WEIGHT_IMAGES * self.images(node),
            spread: None,
            node_affinity: preference(pod, node),
            pod_affinity: self
                .leanings
                .iter()
                .filter_map(|(weight, counts, key)| Some(weight * i64::from(counts.at(key.of(index)?))))
                .sum(),
            unwelcome: if node.taints.is_empty() {
                0
            } else {
                taints::unwelcome(&pod.constraints.tolerations, node)
            },
        }
    }

    /// The best of the candidates, the first among equals.
    pub(super) fn best(&self, candidates: &mut [Candidate]) -> Option<Candidate> {
        self.crowding(candidates);
        let most = |of: fn(&Candidate) -> i64| candidates.iter().map(of).max().unwrap_or(0);
        let least = |of: fn(&Candidate) -> i64| candidates.iter().map(of).min().unwrap_or(0);
        let crowds = || candidates.iter().filter_map(|candidate| candidate.spread);
        let (most_crowded, least_crowded) = (crowds().max().unwrap_or(0), crowds().min().unwrap_or(0));
        let (preferred, unwelcome) = (most(|c| c.node_affinity), most(|c| c.unwelcome));
        let (nearest, farthest) = (most(|c| c.pod_affinity), least(|c| c.pod_affinity));
        let score = |c: &Candidate| {
            let spread = match c.spread {
                None => 0,
                Some(_) if most_crowded == 0 => MAX,
                Some(crowded) => MAX * (most_crowded + least_crowded - crowded) / most_crowded,
            };
            let node_affinity = if preferred > 0 {
                MAX * c.node_affinity / preferred
            } else {
                0
            };
            let pod_affinity = if nearest > farthest {
                MAX * (c.pod_affinity - farthest) / (nearest - farthest)
            } else {
                0
            };
            let taints = if unwelcome > 0 {
                MAX - MAX * c.unwelcome / unwelcome
            } else {
                MAX
            };
            c.own
                + WEIGHT_SPREAD * spread
                + WEIGHT_NODE_AFFINITY * node_affinity
                + WEIGHT_POD_AFFINITY * pod_affinity
                + WEIGHT_TAINTS * taints
        };
        let mut best: Option<(i64, Candidate)> = None;
        for candidate in candidates.iter() {
            let score = score(candidate);
            if best.is_none_or(|(highest, _)| score > highest) {
                best = Some((score, *candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }

    /// Pods of the same kind that are near each candidate already, those of rarer values weighing more.
    fn crowding(&self, candidates: &mut [Candidate]) {
        let census = &self.snapshot.census;
        let wishes: Vec<_> = self
            .plan
            .evenness
            .iter()
            .map(|wish| {
                let tally = census.tally(wish.tally);
                let values = if wish.by_node {
                    candidates.len() as u32
                } else {
                    tally.counts.values()
                };
                let weight = f64::from(values + 2).ln();
                (
                    &tally.counts,
                    census.key(tally.key),
                    weight,
                    f64::from(wish.max_skew - 1),
                )
            })
            .collect();
        for candidate in candidates {
            let mut crowd = 0.0;
            let mut scores = true;
            for (counts, key, weight, slack) in &wishes {
                match key.of(candidate.node) {
                    Some(value) => crowd += f64::from(counts.at(value)) * weight + slack,
                    None => scores &= !self.plan.needs_all_keys,
                }
            }
            candidate.spread = scores.then(|| crowd.round() as i64);
        }
    }

    /// How much of the pod's images the node holds; images that few nodes hold count less, or all pods would go there.
    fn images(&self, node: &NodeInfo) -> i64 {
        if self.images.is_empty() {
            return 0;
        }
        let nodes = i64::try_from(self.snapshot.order().len().max(1)).unwrap_or(i64::MAX);
        let held: i64 = self
            .images
            .iter()
            .filter_map(|(name, holders)| Some((node.images.get(&**name)?, holders)))
            .map(|(size, holders)| size.saturating_mul(i64::from(*holders)) / nodes)
            .sum();
        let images = &self.pod.constraints.images;
        let most = LARGE_IMAGE.saturating_mul(i64::from(images.len() as u32));
        MAX * (held.clamp(SMALL_IMAGE, most) - SMALL_IMAGE) / (most - SMALL_IMAGE)
    }
}

/// The name of an image as nodes report it.
fn with_tag(image: &str) -> Cow<'_, str> {
    let name = image.rsplit('/').next().unwrap_or(image);
    if name.contains([':', '@']) {
        image.into()
    } else {
        format!("{image}:latest").into()
    }
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
    let (want, taken, has) = (&pod.demand.requests, &node.requested, &node.allocatable);
    let cpu = used(taken.milli_cpu + want.milli_cpu, has.milli_cpu);
    let memory = used(taken.memory + want.memory, has.memory);
    (SCALE - (cpu - memory).abs() / 2) * MAX / SCALE
}

fn preference(pod: &PodInfo, node: &NodeInfo) -> i64 {
    pod.constraints
        .preferred
        .iter()
        .filter(|(_, term)| node_affinity::term_matches(term, node))
        .map(|(weight, _)| i64::from(*weight))
        .sum()
}
