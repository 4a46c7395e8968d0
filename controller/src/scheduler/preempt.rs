//! Which pods have to leave so that a more important one can run.
//!
//! The question is asked of the snapshot itself: pods are taken out of it one by one, and all of them put back before the
//! answer is given, so that every constraint counts as it would.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use super::decide::{Nowhere, tell};
use super::filter::Checks;
use super::node::NodeIndex;
use super::plan::Plan;
use super::pod::PodInfo;
use super::snapshot::Snapshot;
use super::volumes::VolumePlan;
use crate::informer::{Cached, IndexKey};
use crate::selector::LabelSelector;

/// Nodes that are tried for one pod: a tenth of them, but so many at least.
const TRIED_AT_LEAST: usize = 100;
const TRIED_PERCENT: usize = 10;

/// A disruption budget as the scheduler sees it.
#[derive(Debug, Clone)]
pub struct BudgetView {
    /// Its name and namespace.
    pub metadata: ObjectMeta,
    /// Pods it protects.
    pub selector: LabelSelector,
    /// How many of them may be disrupted.
    pub allowed: i32,
    /// Pods whose disruption is counted in `allowed` already.
    pub disrupted: HashSet<String>,
}

impl From<PodDisruptionBudget> for BudgetView {
    fn from(budget: PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
        let status = budget.status.unwrap_or_default();
        BudgetView {
            selector: LabelSelector::from_object(selector).unwrap_or_else(|_| LabelSelector::nothing()),
            allowed: status.disruptions_allowed,
            disrupted: status
                .disrupted_pods
                .into_iter()
                .flatten()
                .map(|(pod, _)| pod)
                .collect(),
            metadata: ObjectMeta {
                name: budget.metadata.name,
                namespace: budget.metadata.namespace,
                ..ObjectMeta::default()
            },
        }
    }
}

impl Cached for BudgetView {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        Vec::new()
    }
}

/// Disruption budgets by namespace and name.
pub type Budgets = HashMap<String, BTreeMap<String, Arc<BudgetView>>>;

/// What preemption comes to.
#[derive(Debug, Clone)]
pub enum Preemption {
    /// These have to leave the node.
    Victims {
        /// The node.
        node: NodeIndex,
        /// The pods, the most important first.
        pods: Vec<Arc<PodInfo>>,
    },
    /// It helps nowhere, for the reason that follows "preemption: ".
    Useless(String),
    /// The pod has to wait for those that are leaving already.
    Waiting(String),
}

#[derive(Debug)]
struct Candidate {
    node: NodeIndex,
    /// The most important first.
    victims: Vec<Arc<PodInfo>>,
    violations: usize,
}

/// The more important comes first: by priority, then by age.
fn importance(pod: &PodInfo) -> (Reverse<i32>, Timestamp, &str) {
    (
        Reverse(pod.priority),
        pod.since.unwrap_or(Timestamp::MAX),
        pod.uid(),
    )
}

/// Whom `pod`, which fits `nowhere`, could take the place of. The snapshot is the same afterwards.
pub fn preempt(
    snapshot: &mut Snapshot,
    pod: &PodInfo,
    plan: &Plan,
    volumes: &VolumePlan,
    nowhere: &Nowhere,
    budgets: &Budgets,
    start: usize,
) -> Preemption {
    if !pod.preempts {
        return Preemption::Useless("not eligible due to preemptionPolicy=Never.".into());
    }
    if let Some(index) = snapshot.nomination(pod.uid())
        && nowhere.resolvable.contains(&index)
        && snapshot
            .node(index)
            .pods
            .iter()
            .any(|placed| placed.pod.terminating && placed.pod.priority < pod.priority)
    {
        return Preemption::Waiting("not eligible due to a terminating pod on the nominated node.".into());
    }
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let hopeless = nowhere.nodes - nowhere.resolvable.len();
    if hopeless > 0 {
        reasons.insert("Preemption is not helpful for scheduling".into(), hopeless);
    }
    let many = nowhere.resolvable.len();
    let wanted = TRIED_AT_LEAST.max(nowhere.nodes * TRIED_PERCENT / 100);
    let first = if many == 0 { 0 } else { start % many };
    let (before, after) = nowhere.resolvable.split_at(first);
    let mut candidates = Vec::new();
    let version = snapshot.version();
    for &node in after.iter().chain(before) {
        match victims_on(snapshot, pod, plan, volumes, node, budgets) {
            Ok(candidate) => candidates.push(candidate),
            Err(why) => {
                for why in why {
                    *reasons.entry(why).or_default() += 1;
                }
            }
        }
        if candidates.len() >= wanted {
            break;
        }
    }
    snapshot.set_version(version);
    match candidates.into_iter().min_by(|a, b| cost(a).cmp(&cost(b))) {
        Some(best) => Preemption::Victims {
            node: best.node,
            pods: best.victims,
        },
        None => Preemption::Useless(tell(nowhere.nodes, &reasons)),
    }
}

/// What it would cost, the dearest aspect first: broken budgets, the most important victim, all their priorities together,
/// their number, and how long the most important have been running.
fn cost(candidate: &Candidate) -> impl Ord + use<> {
    let victims = &candidate.victims;
    let highest = victims.first().map_or(i32::MIN, |pod| pod.priority);
    // Shifted, so that two pods of a negative priority weigh more than one.
    let sum: i64 = victims
        .iter()
        .map(|pod| i64::from(pod.priority) - i64::from(i32::MIN))
        .sum();
    let oldest = victims
        .iter()
        .filter(|pod| pod.priority == highest)
        .filter_map(|pod| pod.since)
        .min();
    (candidate.violations, highest, sum, victims.len(), Reverse(oldest))
}

fn victims_on(
    snapshot: &mut Snapshot,
    pod: &PodInfo,
    plan: &Plan,
    volumes: &VolumePlan,
    node: NodeIndex,
    budgets: &Budgets,
) -> Result<Candidate, Vec<String>> {
    let name = snapshot.node(node).name.clone();
    let mut lower: Vec<Arc<PodInfo>> = snapshot
        .node(node)
        .pods
        .iter()
        .map(|placed| placed.pod.clone())
        .filter(|other| other.priority < pod.priority)
        .collect();
    if lower.is_empty() {
        return Err(vec!["No preemption victims found for incoming pod".into()]);
    }
    lower.sort_by(|a, b| importance(a).cmp(&importance(b)));
    for other in &lower {
        snapshot.unplace(other.uid());
    }
    let refused = Checks::new(snapshot, pod, plan, volumes).rejections(node);
    let mut victims = Vec::new();
    let mut violations = 0;
    if refused.is_empty() {
        // Those that a budget protects are kept before others, the more important before the less.
        let (protected, others) = by_budget(&lower, budgets);
        for (kept_for_budget, group) in [(true, protected), (false, others)] {
            for other in group {
                snapshot.place(&other, &name);
                if !Checks::new(snapshot, pod, plan, volumes).fits(node) {
                    snapshot.unplace(other.uid());
                    violations += usize::from(kept_for_budget);
                    victims.push(other);
                }
            }
        }
    }
    for other in &lower {
        if snapshot.placement(other.uid()).is_none() {
            snapshot.place(other, &name);
        }
    }
    if !refused.is_empty() {
        return Err(refused.iter().map(ToString::to_string).collect());
    }
    victims.sort_by(|a, b| importance(a).cmp(&importance(b)));
    Ok(Candidate {
        node,
        victims,
        violations,
    })
}

/// Pods whose disruption would break a budget, and the others, in the order given.
fn by_budget(pods: &[Arc<PodInfo>], budgets: &Budgets) -> (Vec<Arc<PodInfo>>, Vec<Arc<PodInfo>>) {
    let mut left: HashMap<(&str, &str), i32> = HashMap::new();
    pods.iter().cloned().partition(|pod| {
        let mut broken = false;
        let name = pod.name();
        let Some((namespace, all)) = budgets.get_key_value(pod.namespace()) else {
            return false;
        };
        for (of, budget) in all {
            let applies = !budget.selector.is_everything() && budget.selector.matches(&*pod.labels);
            if !applies || budget.disrupted.contains(name) {
                continue;
            }
            let left = left.entry((namespace, of)).or_insert(budget.allowed);
            *left -= 1;
            broken |= *left < 0;
        }
        broken
    })
}

#[cfg(test)]
mod tests;
