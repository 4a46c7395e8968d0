//! What a pod's constraints come down to in the counts that the snapshot keeps.
//!
//! Pods of one controller ask the same questions, so the answers are kept up for all of them: a [`Plan`] names the counts to
//! look at. Plans that are not used for long are dropped, and the counts with them.

use std::collections::HashMap;
use std::sync::Arc;

use super::census::{ClassId, InUse, NodeSetId, NodeTest, TallyId};
use super::filter::node_affinity;
use super::pod::{NearTo, PodInfo, Signature, Spread};
use super::selection::{ClassKey, PodSet};
use super::snapshot::Snapshot;

/// Plans kept. Each may keep up counts for every node, which at 5,000 nodes is some 40 KB.
const PLANS: usize = 1024;
/// Classes without pods that may wait to be forgotten.
const EMPTIED: usize = 4096;

const ZONE: &str = "topology.kubernetes.io/zone";
const HOSTNAME: &str = "kubernetes.io/hostname";
/// By how much kube-scheduler lets zones and nodes differ before it minds, for pods that say nothing.
const DEFAULT_SPREADS: [(&str, i32); 2] = [(ZONE, 3), (HOSTNAME, 5)];

/// A required spread.
#[derive(Debug, Clone)]
pub(super) struct Limit {
    pub(super) tally: TallyId,
    pub(super) max_skew: i32,
    pub(super) min_domains: Option<i32>,
    /// Whether the pod is one of those that are spread.
    pub(super) counts_itself: bool,
}

/// A spread that is wished for.
#[derive(Debug, Clone)]
pub(super) struct Evenness {
    pub(super) tally: TallyId,
    pub(super) max_skew: i32,
    /// Whether each node is a value of its own.
    pub(super) by_node: bool,
}

/// Which counts decide about a pod.
#[derive(Debug)]
pub struct Plan {
    pub(super) class: ClassId,
    /// Nodes that selectors, affinity, taints and the cordon allow.
    pub(super) feasible: NodeSetId,
    /// The only nodes that can match, sorted by name.
    pub(super) named: Option<Vec<String>>,
    pub(super) spreads: Vec<Limit>,
    pub(super) evenness: Vec<Evenness>,
    /// Whether a node needs all the labels by which pods are spread to score at all.
    pub(super) needs_all_keys: bool,
    pub(super) near: Vec<TallyId>,
    pub(super) near_itself: bool,
    pub(super) away: Vec<TallyId>,
    pub(super) leanings: Vec<(i64, TallyId)>,
}

#[derive(Debug)]
struct Kept {
    plan: Arc<Plan>,
    used: u64,
}

/// The plans that are kept.
#[derive(Debug, Default)]
pub(super) struct Plans {
    by_signature: HashMap<Signature, Kept>,
    clock: u64,
}

impl Snapshot {
    /// What the pod's constraints come down to. Afterwards the counts it names are kept up to date.
    pub fn plan(&mut self, pod: &PodInfo) -> Arc<Plan> {
        self.refresh_order();
        self.plans.clock += 1;
        let clock = self.plans.clock;
        if let Some(kept) = self.plans.by_signature.get_mut(&pod.signature()) {
            kept.used = clock;
            return kept.plan.clone();
        }
        if self.plans.by_signature.len() >= PLANS || self.census.emptied() >= EMPTIED {
            self.drop_plans();
        }
        let plan = Arc::new(self.make_plan(pod));
        let kept = Kept {
            plan: plan.clone(),
            used: clock,
        };
        self.plans.by_signature.insert(pod.signature(), kept);
        plan
    }

    /// Drops the half of the plans that was not used for longest, and what only they needed.
    fn drop_plans(&mut self) {
        let mut uses: Vec<u64> = self.plans.by_signature.values().map(|kept| kept.used).collect();
        uses.sort_unstable();
        let oldest = uses.get(uses.len() / 2).copied().unwrap_or(0);
        self.plans.by_signature.retain(|_, kept| kept.used > oldest);
        let mut used = InUse::default();
        for Kept { plan, .. } in self.plans.by_signature.values() {
            used.classes.insert(plan.class);
            used.node_sets.insert(plan.feasible);
            used.tallies.extend(
                (plan.spreads.iter().map(|limit| limit.tally))
                    .chain(plan.evenness.iter().map(|wish| wish.tally))
                    .chain(plan.near.iter().copied())
                    .chain(plan.away.iter().copied())
                    .chain(plan.leanings.iter().map(|(_, tally)| *tally)),
            );
        }
        self.census.collect(&used);
    }

    fn make_plan(&mut self, pod: &PodInfo) -> Plan {
        let place = pod.constraints.clone();
        let class_key = ClassKey::of(pod);
        let class = self.census.class(class_key.clone());
        let feasible = self.node_set(NodeTest {
            selector: place.selector.clone(),
            required: place.required.clone(),
            tolerations: Some(place.tolerations.to_vec()),
            keys: Vec::new(),
        });
        let (required, wished): (Vec<&Spread>, Vec<&Spread>) = place.spreads.iter().partition(|s| s.required);
        let keys = |spreads: &[&Spread]| spreads.iter().map(|s| s.topology_key.clone()).collect::<Vec<_>>();
        let (required_keys, wished_keys) = (keys(&required), keys(&wished));
        let spreads = required
            .iter()
            .map(|spread| Limit {
                tally: self.spread_tally(pod, spread, required_keys.clone()),
                max_skew: spread.max_skew,
                min_domains: spread.min_domains,
                counts_itself: spread.pods.contains(&class_key, None),
            })
            .collect();
        let mut evenness: Vec<Evenness> = wished
            .iter()
            .map(|spread| Evenness {
                tally: self.spread_tally(pod, spread, wished_keys.clone()),
                max_skew: spread.max_skew,
                by_node: spread.topology_key == HOSTNAME,
            })
            .collect();
        let needs_all_keys = !place.spreads.is_empty();
        if let Some(owner) = pod.owner.as_ref().filter(|_| !needs_all_keys) {
            evenness = self.default_spreads(pod, owner);
        }
        let everywhere = self.node_set(NodeTest::default());
        let mut tally_near = |near: &NearTo, set: PodSet| {
            let set = self.census.set(set);
            let key = self.census.topology_key(&near.topology_key, &self.nodes);
            self.census.tally_of(set, key, everywhere)
        };
        let one = |near: &NearTo| PodSet::matching(vec![near.pods.clone()]);
        // What counts as near is what every term means.
        let all = PodSet::matching(place.near.iter().map(|near| near.pods.clone()).collect());
        Plan {
            class,
            feasible,
            named: place.required.as_deref().and_then(node_affinity::named_nodes),
            spreads,
            evenness,
            needs_all_keys,
            near: place
                .near
                .iter()
                .map(|near| tally_near(near, all.clone()))
                .collect(),
            away: place
                .away
                .iter()
                .map(|near| tally_near(near, one(near)))
                .collect(),
            leanings: place
                .leanings
                .iter()
                .map(|(weight, near)| (*weight, tally_near(near, one(near))))
                .collect(),
            near_itself: !place.near.is_empty() && self.census.would_contain(&all, &class_key),
        }
    }

    fn node_set(&mut self, test: NodeTest) -> NodeSetId {
        self.census.node_set(test, &self.nodes)
    }

    fn spread_tally(&mut self, pod: &PodInfo, spread: &Spread, keys: Vec<String>) -> TallyId {
        let place = &pod.constraints;
        let nodes = self.node_set(NodeTest {
            selector: place
                .selector
                .clone()
                .into_iter()
                .filter(|_| spread.honor_affinity)
                .collect(),
            required: place.required.clone().filter(|_| spread.honor_affinity),
            tolerations: spread.honor_taints.then(|| place.tolerations.to_vec()),
            keys,
        });
        let set = self.census.set(spread.pods.clone());
        let key = self.census.topology_key(&spread.topology_key, &self.nodes);
        self.census.tally_of(set, key, nodes)
    }

    fn default_spreads(&mut self, pod: &PodInfo, owner: &Arc<str>) -> Vec<Evenness> {
        let spread = |(key, max_skew): (&str, i32)| Spread {
            max_skew,
            topology_key: key.into(),
            required: false,
            min_domains: None,
            honor_affinity: true,
            honor_taints: false,
            pods: PodSet::owned_by(owner.clone()),
        };
        DEFAULT_SPREADS
            .into_iter()
            .map(|wish| Evenness {
                tally: self.spread_tally(pod, &spread(wish), Vec::new()),
                max_skew: wish.1,
                by_node: wish.0 == HOSTNAME,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::{node, pod};

    #[test]
    fn what_nobody_uses_is_forgotten() {
        let mut snapshot = Snapshot::default();
        snapshot.upsert_node(&node("a", 64));
        for i in 0..3 * PLANS {
            let name = format!("p{i}");
            let away = serde_json::json!([{ "topologyKey": "kubernetes.io/hostname",
                "labelSelector": { "matchLabels": { "app": name } } }]);
            let pod = Arc::new(pod(&name).label("app", &name).away(away).owner(&name).build());
            snapshot.plan(&pod);
            snapshot.place(&pod, "a");
            snapshot.unplace(&name);
        }
        let [classes, sets, keys, node_sets, tallies, carriers] = snapshot.census.sizes();
        assert!(snapshot.plans.by_signature.len() <= PLANS);
        assert!(classes <= PLANS + EMPTIED, "{classes}");
        assert!(sets <= 4 * PLANS && tallies <= 4 * PLANS, "{sets} {tallies}");
        assert!(carriers <= PLANS + EMPTIED, "{carriers}");
        assert!(keys <= 2 && node_sets <= 3, "{keys} {node_sets}");
    }
}
