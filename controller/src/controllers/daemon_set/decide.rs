//! Which of a DaemonSet's pods to make, which to delete, and what its status says: without any IO.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use super::placement::Fitness;
use crate::controllers::history::HASH_LABEL;
use crate::controllers::pod::{Phase, PodView};
use crate::controllers::share::{Round, share};

/// How pods of an old template are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// When someone deletes them.
    OnDelete,
    /// Some at a time; with a surge the new pod comes before the old one goes.
    Rolling {
        /// Nodes that may have both.
        surge: i32,
        /// Nodes that may have none.
        unavailable: i32,
    },
}

impl Update {
    /// Resolves percentages of the nodes that should have a pod, upwards.
    pub fn of(set: &DaemonSet, desired: i32) -> Self {
        let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
            return Update::OnDelete;
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let resolve = |value: Option<&IntOrString>, default| {
            value.map_or(default, |value| share(value, desired, Round::Up))
        };
        let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), 0);
        let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), 1);
        Update::Rolling {
            surge,
            // Both zero would never move.
            unavailable: if surge == 0 {
                unavailable.max(1)
            } else {
                unavailable
            },
        }
    }

    fn surges(self) -> bool {
        matches!(self, Update::Rolling { surge, .. } if surge > 0)
    }
}

/// What the decisions are about.
#[derive(Debug)]
pub struct Situation<'a> {
    /// Every node, with what it is to the set.
    pub nodes: &'a BTreeMap<String, Fitness>,
    /// The set's pods by the node they run on or are meant for, terminated ones that are being deleted left out.
    pub pods: &'a BTreeMap<String, Vec<Arc<PodView>>>,
    /// Hash of the template.
    pub hash: &'a str,
    /// How long a pod must be ready to be available.
    pub min_ready_seconds: i32,
    /// How to replace pods.
    pub strategy: Update,
    /// The time.
    pub now: Timestamp,
}

/// What to do.
#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that need a pod.
    pub create: Vec<String>,
    /// Pods that must go.
    pub delete: Vec<Arc<PodView>>,
    /// Which of those failed, with their node: they are replaced after a back-off.
    pub failed: Vec<(String, Arc<PodView>)>,
    /// Which ended, though they should run for ever.
    pub succeeded: Vec<(String, Arc<PodView>)>,
}

impl Plan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty()
            && self.delete.is_empty()
            && self.failed.is_empty()
            && self.succeeded.is_empty()
    }
}

/// The pods that should be known by their place: bound first, then the oldest.
fn oldest_first(pods: &mut [Arc<PodView>]) {
    pods.sort_by_key(|pod| {
        (
            pod.node.is_none(),
            pod.metadata.creation_timestamp.clone(),
            pod.metadata.name.clone(),
        )
    });
}

/// A new and an old pod.
type Pair = (Option<Arc<PodView>>, Option<Arc<PodView>>);

impl Situation<'_> {
    fn available(&self, pod: &PodView) -> bool {
        pod.is_available(self.min_ready_seconds, self.now)
    }

    fn is_new(&self, pod: &PodView) -> bool {
        pod.label(HASH_LABEL) == Some(self.hash)
    }

    /// How many nodes should have a pod.
    pub fn desired(nodes: &BTreeMap<String, Fitness>) -> i32 {
        let count = nodes.values().filter(|node| node.should_run).count();
        i32::try_from(count).unwrap_or(i32::MAX)
    }

    /// The next step of an update, for when every node has what it should have.
    pub fn update(&self) -> Plan {
        match self.strategy {
            Update::OnDelete => Plan::default(),
            Update::Rolling {
                surge: 0,
                unavailable,
            } => self.replace(unavailable),
            Update::Rolling { surge, .. } => self.surge(surge),
        }
    }

    /// That every node has what it should have.
    pub fn place(&self) -> Plan {
        let mut plan = Plan::default();
        for (node, fitness) in self.nodes {
            match self.pods.get(node) {
                None if fitness.should_run => plan.create.push(node.clone()),
                None => {}
                Some(pods) if !fitness.may_stay => {
                    plan.delete
                        .extend(pods.iter().filter(|pod| !pod.is_terminating()).cloned());
                }
                Some(pods) => self.tidy(node, *fitness, pods, &mut plan),
            }
        }
        // Pods that wait for a node which is gone; those that ran there are the pod collector's.
        for (node, pods) in self.pods {
            if !self.nodes.contains_key(node) {
                let waiting = pods
                    .iter()
                    .filter(|pod| pod.node.is_none() && !pod.is_terminating());
                plan.delete.extend(waiting.cloned());
            }
        }
        plan
    }

    /// A node that may have a pod: pods that ended are replaced, and of several one stays.
    fn tidy(&self, node: &str, fitness: Fitness, pods: &[Arc<PodView>], plan: &mut Plan) {
        let mut running = Vec::new();
        for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
            match pod.phase {
                Phase::Failed => plan.failed.push((node.to_owned(), pod.clone())),
                Phase::Succeeded => plan.succeeded.push((node.to_owned(), pod.clone())),
                Phase::Pending | Phase::Unknown | Phase::Running => running.push(pod.clone()),
            }
        }
        if running.is_empty() && fitness.should_run && self.strategy.surges() {
            // Beside one that goes or has failed there is room for another.
            plan.create.push(node.to_owned());
        }
        if running.len() <= 1 {
            return;
        }
        oldest_first(&mut running);
        if !self.strategy.surges() {
            plan.delete.extend(running.drain(1..));
            return;
        }
        let (mut new, mut old) = (None, None);
        for pod in running {
            let place = if self.is_new(&pod) { &mut new } else { &mut old };
            if place.is_none() {
                *place = Some(pod);
            } else {
                plan.delete.push(pod);
            }
        }
        if let (Some(new), Some(old)) = (new, old)
            && (!old.ready || self.available(&new))
        {
            plan.delete.push(old);
        }
    }

    /// The one new and the one old pod of a node; `None` if there are several of a sort.
    fn pair(&self, pods: &[Arc<PodView>]) -> Option<Pair> {
        let (mut new, mut old) = (None, None);
        for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
            let place = if self.is_new(pod) { &mut new } else { &mut old };
            if place.replace(pod.clone()).is_some() {
                return None;
            }
        }
        Some((new, old))
    }

    /// Deletes old pods, as many as may be missing at a time; those that are not available are not missed.
    fn replace(&self, unavailable: i32) -> Plan {
        let (mut missing, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        for pods in self.pods.values() {
            match self.pair(pods) {
                Some((None, Some(old))) if !self.available(&old) => broken.push(old),
                Some((None, Some(old))) => candidates.push(old),
                Some((Some(new), None)) if self.available(&new) => {}
                // Whatever else there is on a node is being put right already.
                _ => missing += 1,
            }
        }
        let spare = unavailable - missing - i32::try_from(broken.len()).unwrap_or(i32::MAX);
        candidates.truncate(usize::try_from(spare).unwrap_or(0));
        broken.extend(candidates);
        Plan {
            delete: broken,
            ..Plan::default()
        }
    }

    /// Makes new pods beside old ones, and deletes old ones whose successor is available.
    fn surge(&self, surge: i32) -> Plan {
        let (mut surged, mut broken, mut candidates) = (0, Vec::new(), Vec::new());
        let mut plan = Plan::default();
        for (node, pods) in self.pods {
            match self.pair(pods) {
                None => surged += 1,
                Some((_, None)) => {}
                Some((None, Some(old))) if !self.available(&old) => broken.push(node.clone()),
                Some((None, Some(_))) => candidates.push(node.clone()),
                Some((Some(new), Some(_))) if !self.available(&new) => surged += 1,
                Some((Some(_), Some(old))) => plan.delete.push(old),
            }
        }
        candidates.truncate(usize::try_from(surge - surged).unwrap_or(0));
        plan.create = broken;
        plan.create.extend(candidates);
        plan.create
            .retain(|node| self.nodes.get(node).is_some_and(|fitness| fitness.should_run));
        plan
    }

    /// What the pods come to.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for (node, fitness) in self.nodes {
            let pods = self.pods.get(node).filter(|pods| !pods.is_empty());
            if !fitness.should_run {
                counts.misscheduled += i32::from(pods.is_some());
                continue;
            }
            counts.desired += 1;
            let Some(pods) = pods else { continue };
            counts.current += 1;
            let mut pods = pods.clone();
            oldest_first(&mut pods);
            let Some(pod) = pods.first() else { continue };
            counts.ready += i32::from(pod.ready);
            counts.available += i32::from(pod.ready && self.available(pod));
            counts.updated += i32::from(self.is_new(pod));
        }
        counts
    }
}

/// Nodes, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// That should have a pod.
    pub desired: i32,
    /// That should and do.
    pub current: i32,
    /// That should not and do.
    pub misscheduled: i32,
    /// Whose pod is ready.
    pub ready: i32,
    /// Whose pod is available.
    pub available: i32,
    /// Whose pod is of the newest template.
    pub updated: i32,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::SignedDuration;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const RUN: Fitness = Fitness {
        should_run: true,
        may_stay: true,
    };

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, node: &str, hash: &str, ready: bool) -> Arc<PodView> {
        Arc::new(PodView {
            metadata: ObjectMeta {
                name: Some(name.into()),
                uid: Some(name.into()),
                creation_timestamp: Some(Time(now())),
                ..ObjectMeta::default()
            },
            labels: Arc::new([(HASH_LABEL.to_owned(), hash.to_owned())].into()),
            node: Some(node.into()),
            phase: Phase::Running,
            ready,
            ready_changed: Some(now() - SignedDuration::from_secs(100)),
            ..PodView::default()
        })
    }

    fn with(pod: &Arc<PodView>, change: impl FnOnce(&mut PodView)) -> Arc<PodView> {
        let mut changed = PodView::clone(pod);
        change(&mut changed);
        Arc::new(changed)
    }

    struct World {
        nodes: BTreeMap<String, Fitness>,
        pods: BTreeMap<String, Vec<Arc<PodView>>>,
    }

    impl World {
        fn of(nodes: &[(&str, Fitness)], pods: Vec<Arc<PodView>>) -> Self {
            let mut by_node: BTreeMap<String, Vec<Arc<PodView>>> = BTreeMap::new();
            for pod in pods {
                by_node
                    .entry(pod.target().unwrap().to_owned())
                    .or_default()
                    .push(pod);
            }
            World {
                nodes: nodes
                    .iter()
                    .map(|(name, fitness)| ((*name).to_owned(), *fitness))
                    .collect(),
                pods: by_node,
            }
        }

        fn situation(&self, strategy: Update) -> Situation<'_> {
            Situation {
                nodes: &self.nodes,
                pods: &self.pods,
                hash: "new",
                min_ready_seconds: 0,
                strategy,
                now: now(),
            }
        }

        fn plan(&self, strategy: Update) -> (Vec<String>, Vec<String>) {
            let plan = plan(&self.situation(strategy));
            let names = plan.delete.iter().map(|pod| pod.name().to_owned());
            (plan.create, names.collect())
        }
    }

    /// One pass, in which no back-off is waited for.
    fn plan(situation: &Situation<'_>) -> Plan {
        let plan = situation.place();
        if plan.is_empty() { situation.update() } else { plan }
    }

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn every_node_that_should_has_one_pod() {
        let out = Fitness {
            should_run: false,
            may_stay: false,
        };
        let stay = Fitness {
            should_run: false,
            may_stay: true,
        };
        let nodes = [
            ("a", RUN),
            ("b", RUN),
            ("c", out),
            ("d", stay),
            ("e", RUN),
            ("f", stay),
        ];
        let double = with(&pod("a2", "a", "new", true), |pod| {
            pod.metadata.creation_timestamp = Some(Time(now() + SignedDuration::from_secs(1)));
        });
        let leaving = with(&pod("e1", "e", "new", true), |pod| {
            pod.metadata.deletion_timestamp = Some(Time(now()));
        });
        let waiting = with(&pod("gone", "x", "new", false), |pod| {
            pod.node = None;
            pod.pinned = Some("x".into());
        });
        let pods = vec![
            double,
            pod("a1", "a", "new", true),
            pod("c1", "c", "new", true),
            pod("d1", "d", "new", true),
            pod("ran", "y", "new", true),
            leaving,
            waiting,
        ];
        let world = World::of(&nodes, pods);
        let (create, delete) = world.plan(Update::OnDelete);
        assert_eq!(create, ["b"], "the one of e is replaced when it is gone");
        assert_eq!(delete, ["a2", "c1", "gone"]);
        let counts = world.situation(Update::OnDelete).counts();
        assert_eq!((counts.desired, counts.current, counts.misscheduled), (3, 2, 2));
    }

    #[test]
    fn pods_that_ended_are_replaced() {
        let failed = with(&pod("failed", "a", "new", false), |pod| pod.phase = Phase::Failed);
        let done = with(&pod("done", "b", "new", false), |pod| {
            pod.phase = Phase::Succeeded;
        });
        let world = World::of(&[("a", RUN), ("b", RUN)], vec![failed, done]);
        let plan = plan(&world.situation(Update::OnDelete));
        assert_eq!(plan.failed[0].1.name(), "failed");
        assert_eq!(plan.succeeded[0].1.name(), "done");
    }

    #[test]
    fn a_rolling_update_takes_the_broken_first() {
        let nodes = [("a", RUN), ("b", RUN), ("c", RUN), ("d", RUN)];
        let rolling = |unavailable| Update::Rolling {
            surge: 0,
            unavailable,
        };
        let old = vec![
            pod("a", "a", "old", true),
            pod("b", "b", "old", false),
            pod("c", "c", "new", true),
            pod("d", "d", "old", true),
        ];
        let world = World::of(&nodes, old);
        assert_eq!(world.plan(rolling(1)).1, ["b"]);
        assert_eq!(world.plan(rolling(2)).1, ["b", "a"]);
        assert!(world.plan(Update::OnDelete).1.is_empty());
        let waiting = World::of(
            &nodes[..2],
            vec![pod("a", "a", "old", true), pod("b", "b", "new", false)],
        );
        assert!(
            waiting.plan(rolling(1)).1.is_empty(),
            "the new pod of b is missing already"
        );
    }

    #[test]
    fn a_surge_makes_the_new_pod_first() {
        let nodes = [("a", RUN), ("b", RUN), ("c", RUN)];
        let strategy = Update::Rolling {
            surge: 1,
            unavailable: 0,
        };
        let old = |name| pod(name, name, "old", true);
        let start = World::of(&nodes, vec![old("a"), old("b"), old("c")]);
        assert_eq!(start.plan(strategy), (strings(&["a"]), vec![]));
        let coming = World::of(
            &nodes,
            vec![old("a"), pod("a2", "a", "new", false), old("b"), old("c")],
        );
        assert_eq!(coming.plan(strategy), (vec![], vec![]));
        let come = World::of(
            &nodes,
            vec![old("a"), pod("a2", "a", "new", true), old("b"), old("c")],
        );
        assert_eq!(come.plan(strategy).1, ["a"]);
    }

    #[test]
    fn beside_one_that_goes_or_has_failed_a_surge_has_room() {
        let surge = Update::Rolling {
            surge: 1,
            unavailable: 0,
        };
        let failed = with(&pod("failed", "a", "old", false), |pod| pod.phase = Phase::Failed);
        let leaving = with(&pod("leaving", "b", "old", true), |pod| {
            pod.metadata.deletion_timestamp = Some(Time(now()));
        });
        let world = World::of(&[("a", RUN), ("b", RUN)], vec![failed.clone(), leaving]);
        assert_eq!(world.plan(surge).0, ["a", "b"]);
        assert!(world.plan(Update::OnDelete).0.is_empty());
        // While the replacement of one waits, the update goes on.
        let world = World::of(&[("a", RUN)], vec![failed]);
        let rolling = Update::Rolling {
            surge: 0,
            unavailable: 1,
        };
        assert_eq!(world.situation(rolling).update().delete.len(), 1);
    }

    #[test]
    fn the_strategy_is_resolved_over_the_nodes() {
        let of = |rolling: serde_json::Value, desired| {
            let set = serde_json::from_value(json!({ "spec": { "selector": {}, "template": {},
                "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": rolling } } }));
            Update::of(&set.unwrap(), desired)
        };
        let rolling = |surge, unavailable| Update::Rolling { surge, unavailable };
        assert_eq!(of(json!({}), 9), rolling(0, 1));
        assert_eq!(of(json!({ "maxUnavailable": "25%" }), 9), rolling(0, 3));
        assert_eq!(
            of(json!({ "maxUnavailable": 0, "maxSurge": "10%" }), 9),
            rolling(1, 0)
        );
        assert_eq!(of(json!({ "maxUnavailable": "0%" }), 9), rolling(0, 1));
    }

    proptest! {
        /// From any mixture of old and new pods, ready or not: an update ends, never has more nodes without an available pod than
        /// it may beyond those that had none, and never more than one pod too many on a node.
        #[test]
        fn an_update_keeps_its_promises(
            start in prop::collection::vec((any::<bool>(), any::<bool>()), 1..12),
            surge in 0i32..3, unavailable in 1i32..4,
        ) {
            let names: Vec<String> = (0..start.len()).map(|at| format!("n{at:02}")).collect();
            let nodes: Vec<(&str, Fitness)> = names.iter().map(|name| (name.as_str(), RUN)).collect();
            let pods = names.iter().zip(&start)
                .map(|(node, &(new, ready))| pod(&format!("{node}-0"), node, if new { "new" } else { "old" }, ready)).collect();
            let mut world = World::of(&nodes, pods);
            let strategy = Update::Rolling { surge, unavailable: if surge > 0 { 0 } else { unavailable } };
            let allowed = if surge > 0 { 0 } else { unavailable };
            let mut serial = 0;
            let mut worst = i32::try_from(start.iter().filter(|(_, ready)| !ready).count()).unwrap().max(allowed);
            for _ in 0..1000 {
                let plan = plan(&world.situation(strategy));
                if plan.create.is_empty() && plan.delete.is_empty() {
                    // One pod becomes ready; if none can, all is done.
                    let Some(sleeping) = world.pods.values_mut().flatten().find(|pod| !pod.ready) else {
                        let all_new = world.pods.values().flatten().all(|pod| pod.label(HASH_LABEL) == Some("new"));
                        prop_assert!(all_new, "ended early: {:?}", world.pods);
                        prop_assert_eq!(world.pods.len(), start.len());
                        return Ok(());
                    };
                    *sleeping = with(sleeping, |pod| pod.ready = true);
                }
                for gone in plan.delete {
                    for pods in world.pods.values_mut() {
                        pods.retain(|pod| pod.name() != gone.name());
                    }
                }
                world.pods.retain(|_, pods| !pods.is_empty());
                for node in plan.create {
                    serial += 1;
                    let fresh = pod(&format!("{node}-{serial}"), &node, "new", false);
                    world.pods.entry(node).or_default().push(fresh);
                }
                let covered = world.pods.values().filter(|pods| pods.iter().any(|pod| pod.ready)).count();
                let missing = i32::try_from(start.len() - covered).unwrap();
                prop_assert!(missing <= worst, "{missing} of at most {worst}");
                worst = missing.max(allowed);
                prop_assert!(world.pods.values().all(|pods| pods.len() <= 2));
            }
            prop_assert!(false, "never ended");
        }
    }
}
