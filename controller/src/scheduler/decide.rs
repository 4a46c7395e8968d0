//! The decision about one pod: which node, or why none.

use std::collections::BTreeMap;

use super::filter::{Checks, Rejection};
use super::node::NodeIndex;
use super::plan::Plan;
use super::pod::PodInfo;
use super::queue::Blockers;
use super::score::{Candidate, Criteria};
use super::snapshot::Snapshot;
use super::volumes::VolumePlan;

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

/// Why a pod fits nowhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nowhere {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes were passed over for each reason.
    pub reasons: BTreeMap<String, usize>,
    /// Nodes that would do if other pods left them.
    pub resolvable: Vec<NodeIndex>,
    /// What has to change for the pod to fit.
    pub blockers: Blockers,
    /// Why no node was looked at.
    pub before: Option<String>,
}

impl Nowhere {
    /// The pod fits nowhere, whatever the node.
    pub fn because(nodes: usize, why: String, blockers: Blockers) -> Self {
        Nowhere {
            nodes,
            before: Some(why),
            blockers,
            ..Nowhere::default()
        }
    }

    /// The sentence that users know from kube-scheduler, without what it says of preemption.
    pub fn explain(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        match &self.before {
            Some(why) => format!("0/{} nodes are available: {why}.", self.nodes),
            None => tell(self.nodes, &self.reasons),
        }
    }
}

/// How many nodes are out for which reason.
pub(super) fn tell(nodes: usize, reasons: &BTreeMap<String, usize>) -> String {
    let mut parts: Vec<String> = reasons
        .iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    format!("0/{nodes} nodes are available: {}.", parts.join(", "))
}

/// What became of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It goes to this node.
    Node(NodeIndex),
    /// It fits nowhere.
    Nowhere(Nowhere),
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
    plan: &Plan,
    volumes: &VolumePlan,
    sampling: Sampling,
    start: &mut usize,
    scratch: &mut Scratch,
) -> Decision {
    let order = snapshot.order();
    let checks = Checks::new(snapshot, pod, plan, volumes);
    // Room was made for it there.
    if let Some(node) = snapshot.nomination(pod.uid()).filter(|node| checks.fits(*node)) {
        return Decision::Node(node);
    }
    let criteria = Criteria::new(snapshot, pod, plan);
    let candidates = &mut scratch.candidates;
    candidates.clear();
    if let Some(names) = &plan.named {
        let named = names.iter().filter_map(|name| snapshot.find_node(name));
        for index in named.filter(|index| checks.fits(*index)) {
            candidates.push(criteria.look_at(index, *start));
        }
    } else {
        let wanted = sampling.wanted(order.len());
        let first = if order.is_empty() { 0 } else { *start % order.len() };
        let (before, after) = order.split_at(first);
        let positions = (first..).zip(after).chain((0..).zip(before));
        for (position, &index) in positions {
            if checks.fits(index) {
                candidates.push(criteria.look_at(index, position));
                if candidates.len() >= wanted {
                    break;
                }
            }
        }
    }
    let best = match candidates.as_slice() {
        [only] => Some(*only),
        _ => criteria.best(candidates),
    };
    match best {
        Some(best) => {
            *start = best.position + 1;
            Decision::Node(best.node)
        }
        None => Decision::Nowhere(nowhere(snapshot, &checks)),
    }
}

fn nowhere(snapshot: &Snapshot, checks: &Checks<'_>) -> Nowhere {
    let mut counts: BTreeMap<Rejection, usize> = BTreeMap::new();
    let mut out = Nowhere {
        nodes: snapshot.order().len(),
        // A node that comes may always do.
        blockers: Blockers::NODES,
        ..Nowhere::default()
    };
    for &index in snapshot.order() {
        let rejections = checks.rejections(index);
        if !rejections.is_empty() && rejections.iter().all(Rejection::is_resolvable) {
            out.resolvable.push(index);
        }
        for rejection in rejections {
            out.blockers = out.blockers | rejection.blocker();
            *counts.entry(rejection).or_insert(0) += 1;
        }
    }
    for (rejection, count) in counts {
        *out.reasons.entry(rejection.to_string()).or_insert(0) += count;
    }
    out
}

#[cfg(test)]
mod tests;
