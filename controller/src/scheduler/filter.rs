//! Whether a pod can run on a node, and if not, why, in the words of kube-scheduler.

pub(super) mod node_affinity;
pub mod taints;

#[cfg(test)]
mod tests;

use std::fmt;

pub use node_affinity::requirement_matches;
pub use taints::tolerates;

use super::census::{Carrier, Wish};
use super::node::{NodeIndex, NodeInfo};
use super::plan::Plan;
use super::pod::PodInfo;
use super::queue::Blockers;
use super::resources::Resources;
use super::snapshot::Snapshot;
use super::tally::{Counts, TopologyKey};
use super::volumes::VolumePlan;

/// Why a node was passed over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// The node is cordoned.
    Unschedulable,
    /// A taint is not tolerated.
    Taint {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Node selector or required affinity do not match.
    Affinity,
    /// The pod names the nodes it wants, and this is none of them.
    NotNamed,
    /// A host port is taken.
    Ports,
    /// The node takes no more pods.
    TooManyPods,
    /// Not enough of a resource is left.
    Insufficient {
        /// Its name.
        resource: String,
        /// Whether the node never has so much.
        ever: bool,
    },
    /// A volume keeps the pod away.
    Volume(&'static str),
    /// Another pod uses a claim that one pod alone may use.
    ClaimInUse,
    /// Pods would not be spread as asked.
    Spread,
    /// The node has no value for a label by which pods are spread.
    SpreadLabel,
    /// Pods that must be near are not.
    PodAffinity,
    /// Pods that must not be near are.
    PodAntiAffinity,
    /// A pod that is near does not want this one.
    ExistingAntiAffinity,
}

impl Rejection {
    /// Whether the node might do if other pods left it.
    pub fn is_resolvable(&self) -> bool {
        match self {
            Rejection::Ports
            | Rejection::TooManyPods
            | Rejection::Insufficient { ever: true, .. }
            | Rejection::ClaimInUse
            | Rejection::Spread
            | Rejection::PodAntiAffinity
            | Rejection::ExistingAntiAffinity => true,
            Rejection::Unschedulable
            | Rejection::Taint { .. }
            | Rejection::Affinity
            | Rejection::NotNamed
            | Rejection::Insufficient { ever: false, .. }
            | Rejection::Volume(_)
            | Rejection::SpreadLabel
            | Rejection::PodAffinity => false,
        }
    }

    /// What has to change for the pod to fit.
    pub fn blocker(&self) -> Blockers {
        match self {
            Rejection::Unschedulable
            | Rejection::Taint { .. }
            | Rejection::Affinity
            | Rejection::NotNamed
            | Rejection::SpreadLabel => Blockers::NODES,
            Rejection::Ports
            | Rejection::TooManyPods
            | Rejection::Insufficient { .. }
            | Rejection::ClaimInUse
            | Rejection::PodAntiAffinity
            | Rejection::ExistingAntiAffinity => Blockers::NODES | Blockers::ROOM,
            Rejection::Volume(_) => Blockers::NODES | Blockers::VOLUMES,
            Rejection::Spread => Blockers::NODES | Blockers::ROOM | Blockers::PODS,
            Rejection::PodAffinity => Blockers::NODES | Blockers::PODS,
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Unschedulable => f.write_str("node(s) were unschedulable"),
            Rejection::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Rejection::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Rejection::NotNamed => f.write_str("node(s) didn't satisfy plugin(s) [NodeAffinity]"),
            Rejection::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Rejection::TooManyPods => f.write_str("Too many pods"),
            Rejection::Insufficient { resource, .. } => write!(f, "Insufficient {resource}"),
            Rejection::Volume(why) => f.write_str(why),
            Rejection::ClaimInUse => f.write_str(
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode",
            ),
            Rejection::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Rejection::SpreadLabel => {
                f.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Rejection::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
            Rejection::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Rejection::ExistingAntiAffinity => {
                f.write_str("node(s) didn't satisfy existing pods anti-affinity rules")
            }
        }
    }
}

/// A limit on the pods of a value.
struct AtMost<'a> {
    counts: &'a Counts,
    key: &'a TopologyKey,
    most: i64,
}

/// All the tests of one pod, with what they look at made ready.
pub(super) struct Checks<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    plan: &'a Plan,
    volumes: &'a VolumePlan,
    claim_in_use: bool,
    spreads: Vec<AtMost<'a>>,
    near: Vec<(&'a Counts, &'a TopologyKey)>,
    /// There is no pod yet to be near to but this one: it may go first.
    founds: bool,
    away: Vec<(&'a Counts, &'a TopologyKey)>,
    unwanted_by: Vec<(&'a Carrier, &'a TopologyKey)>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        plan: &'a Plan,
        volumes: &'a VolumePlan,
    ) -> Self {
        let census = &snapshot.census;
        let tally = |id| {
            let tally = census.tally(id);
            (&tally.counts, census.key(tally.key))
        };
        let spreads = plan
            .spreads
            .iter()
            .map(|spread| {
                let (counts, key) = tally(spread.tally);
                let enough = spread
                    .min_domains
                    .is_none_or(|least| i64::from(counts.values()) >= i64::from(least));
                let least = if enough { i64::from(counts.least()) } else { 0 };
                AtMost {
                    counts,
                    key,
                    most: i64::from(spread.max_skew) + least - i64::from(spread.counts_itself),
                }
            })
            .collect();
        let near: Vec<_> = plan.near.iter().map(|id| tally(*id)).collect();
        let founds = plan.near_itself && near.iter().all(|(counts, _)| counts.pods() == 0);
        Checks {
            snapshot,
            pod,
            plan,
            volumes,
            claim_in_use: volumes
                .exclusive()
                .iter()
                .any(|claim| snapshot.is_used(pod.namespace(), claim)),
            spreads,
            near,
            founds,
            away: plan.away.iter().map(|id| tally(*id)).collect(),
            unwanted_by: census
                .wishes_about(plan.class)
                .filter(|carrier| carrier.wish == Wish::Away)
                .map(|carrier| (carrier, census.key(carrier.key)))
                .collect(),
        }
    }

    /// Whether the pod can run on the node. Cheap tests first; they allocate nothing.
    pub(super) fn fits(&self, index: NodeIndex) -> bool {
        if !self.snapshot.census.node_set_contains(self.plan.feasible, index) {
            return false;
        }
        let node = self.snapshot.node(index);
        room_for(self.pod, node)
            && ports_free(self.pod, node)
            && !self.claim_in_use
            && self.volumes.rejection(node).is_none()
            && self.among_pods(index).is_none()
    }

    /// Every reason of the first test that the node fails, in kube-scheduler's order; empty if it fits.
    pub(super) fn rejections(&self, index: NodeIndex) -> Vec<Rejection> {
        let node = self.snapshot.node(index);
        let place = &self.pod.constraints;
        if let Some(names) = &self.plan.named
            && names
                .binary_search_by(|name| name.as_str().cmp(&node.name))
                .is_err()
        {
            return vec![Rejection::NotNamed];
        }
        if taints::cordoned(&place.tolerations, node) {
            return vec![Rejection::Unschedulable];
        }
        if let Some(taint) = taints::untolerated(&place.tolerations, node) {
            return vec![Rejection::Taint {
                key: taint.key.clone(),
                value: taint.value.clone().unwrap_or_default(),
            }];
        }
        if !node_affinity::matches(&place.selector, place.required.as_deref(), node) {
            return vec![Rejection::Affinity];
        }
        if !ports_free(self.pod, node) {
            return vec![Rejection::Ports];
        }
        let lacking = lacking(self.pod, node);
        if !lacking.is_empty() {
            return lacking;
        }
        if self.claim_in_use {
            return vec![Rejection::ClaimInUse];
        }
        self.volumes
            .rejection(node)
            .map(Rejection::Volume)
            .or_else(|| self.among_pods(index))
            .into_iter()
            .collect()
    }

    /// What other pods have against this place.
    fn among_pods(&self, index: NodeIndex) -> Option<Rejection> {
        for spread in &self.spreads {
            let Some(value) = spread.key.of(index) else {
                return Some(Rejection::SpreadLabel);
            };
            if i64::from(spread.counts.at(value)) > spread.most {
                return Some(Rejection::Spread);
            }
        }
        for (counts, key) in &self.near {
            let Some(value) = key.of(index) else {
                return Some(Rejection::PodAffinity);
            };
            if !self.founds && counts.at(value) == 0 {
                return Some(Rejection::PodAffinity);
            }
        }
        let there =
            |counts: &Counts, key: &TopologyKey| key.of(index).is_some_and(|value| counts.at(value) > 0);
        if self.away.iter().any(|(counts, key)| there(counts, key)) {
            return Some(Rejection::PodAntiAffinity);
        }
        if self
            .unwanted_by
            .iter()
            .any(|(carrier, key)| there(&carrier.counts, key))
        {
            return Some(Rejection::ExistingAntiAffinity);
        }
        None
    }
}

fn ports_free(pod: &PodInfo, node: &NodeInfo) -> bool {
    let nominees = node
        .nominees
        .iter()
        .filter(|nominee| goes_before(&nominee.pod, pod));
    pod.constraints.host_ports.is_empty()
        || pod.constraints.host_ports.iter().all(|wanted| {
            !node
                .host_ports
                .iter()
                .chain(
                    nominees
                        .clone()
                        .flat_map(|nominee| &nominee.pod.constraints.host_ports),
                )
                .any(|used| wanted.conflicts(used))
        })
}

/// Whether room that is being made for one pod is not for the other.
fn goes_before(nominee: &PodInfo, pod: &PodInfo) -> bool {
    nominee.priority >= pod.priority && nominee.uid() != pod.uid()
}

fn used_before(pod: &PodInfo, node: &NodeInfo, of: impl Fn(&Resources) -> i64) -> i64 {
    let reserved: i64 = node
        .nominees
        .iter()
        .filter(|nominee| goes_before(&nominee.pod, pod))
        .map(|nominee| of(&nominee.pod.demand.requests))
        .sum();
    of(&node.requested) + reserved
}

/// Whether a node with `has` of which `used` is taken cannot give `want`. A resource that is not asked for may be
/// overcommitted already without concerning this pod.
fn short(want: i64, used: i64, has: i64) -> bool {
    want != 0 && want > has - used
}

type Amount = fn(&Resources) -> i64;

/// What every pod is checked for, with the names that users know.
const AMOUNTS: [(&str, Amount); 4] = [
    ("", |r| r.pods),
    ("cpu", |r| r.milli_cpu),
    ("memory", |r| r.memory),
    ("ephemeral-storage", |r| r.ephemeral_storage),
];

fn room_for(pod: &PodInfo, node: &NodeInfo) -> bool {
    let want = &pod.demand.requests;
    if !node.nominees.is_empty() {
        return lacking(pod, node).is_empty();
    }
    let (used, has) = (&node.requested, &node.allocatable);
    !short(want.pods, used.pods, has.pods)
        && !short(want.milli_cpu, used.milli_cpu, has.milli_cpu)
        && !short(want.memory, used.memory, has.memory)
        && !short(
            want.ephemeral_storage,
            used.ephemeral_storage,
            has.ephemeral_storage,
        )
        && want
            .extended
            .iter()
            .all(|(name, want)| !short(*want, used.extended(name), has.extended(name)))
}

fn lacking(pod: &PodInfo, node: &NodeInfo) -> Vec<Rejection> {
    let (want, has) = (&pod.demand.requests, &node.allocatable);
    let mut out = Vec::new();
    for (name, of) in AMOUNTS {
        if short(of(want), used_before(pod, node, of), of(has)) {
            out.push(if name.is_empty() {
                Rejection::TooManyPods
            } else {
                Rejection::Insufficient {
                    resource: name.into(),
                    ever: of(want) <= of(has),
                }
            });
        }
    }
    for (name, &want) in &want.extended {
        if short(
            want,
            used_before(pod, node, |r| r.extended(name)),
            has.extended(name),
        ) {
            out.push(Rejection::Insufficient {
                resource: name.to_string(),
                ever: want <= has.extended(name),
            });
        }
    }
    out
}
