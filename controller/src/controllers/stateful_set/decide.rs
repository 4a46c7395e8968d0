//! The next steps of a StatefulSet, and what its status says: without any IO.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::jiff::Timestamp;

use super::identity;
use crate::controllers::history::HASH_LABEL;
use crate::controllers::pod::{Phase, PodView};
use crate::controllers::share::{Round, share};

/// How pods of an old template are replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Update {
    /// When someone deletes them.
    OnDelete,
    /// From the highest ordinal down.
    Rolling {
        /// So many of the lowest pods keep the old template.
        partition: i32,
        /// Pods that may be missing because of the update.
        unavailable: i32,
    },
}

/// What of a StatefulSet the decisions need.
#[derive(Debug, Clone, Copy)]
pub struct Wishes {
    /// Pods asked for.
    pub replicas: i32,
    /// Ordinal of the first.
    pub start: i32,
    /// Whether pods come and go without waiting for each other.
    pub parallel: bool,
    /// How long a pod must be ready to be available.
    pub min_ready_seconds: i32,
    /// How pods are replaced.
    pub update: Update,
}

impl Wishes {
    /// Reads them.
    pub fn of(set: &StatefulSet) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let strategy = spec.update_strategy.unwrap_or_default();
        let rolling = strategy.rolling_update.unwrap_or_default();
        let unavailable = rolling
            .max_unavailable
            .map_or(1, |value| share(&value, replicas, Round::Up));
        Wishes {
            replicas,
            start: spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0),
            parallel: spec.pod_management_policy.as_deref() == Some("Parallel"),
            min_ready_seconds: spec.min_ready_seconds.unwrap_or(0),
            update: if strategy.type_.as_deref() == Some("OnDelete") {
                Update::OnDelete
            } else {
                Update::Rolling {
                    partition: rolling.partition.unwrap_or(0),
                    unavailable: unavailable.max(1),
                }
            },
        }
    }

    /// Whether a new pod of this ordinal is made from the template before the update.
    pub fn keeps_current(&self, ordinal: i32) -> bool {
        match self.update {
            Update::OnDelete => false,
            Update::Rolling { partition, .. } => ordinal < self.start.saturating_add(partition),
        }
    }

    /// Whether a pod of this ordinal is asked for.
    pub fn wants(&self, ordinal: i32) -> bool {
        ordinal >= self.start && ordinal - self.start < self.replicas
    }
}

/// Why a pod is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It failed, and is made anew.
    Failed,
    /// It ended, and is made anew.
    Succeeded,
    /// There are fewer replicas now.
    Condemned,
    /// Its template is old.
    Outdated,
}

/// One step. Steps of one plan may be taken in any order.
#[derive(Debug, Clone)]
pub enum Step {
    /// Make the pod of an ordinal.
    Create(i32),
    /// Delete a pod.
    Delete(Arc<PodView>, Why),
    /// See to it that the claims of a pod that does not start exist.
    Claims(i32),
    /// Put the labels of its identity on a pod.
    Identify(Arc<PodView>, i32),
}

/// What the decisions are about.
#[derive(Debug)]
pub struct Situation<'a> {
    /// Name of the set.
    pub name: &'a str,
    /// What is asked for.
    pub wishes: Wishes,
    /// Its pods.
    pub pods: &'a [Arc<PodView>],
    /// Name of the revision before the update.
    pub current: &'a str,
    /// Name of the revision of the template.
    pub update: &'a str,
    /// The time.
    pub now: Timestamp,
}

impl Situation<'_> {
    fn available(&self, pod: &PodView) -> bool {
        pod.phase == Phase::Running && pod.is_available(self.wishes.min_ready_seconds, self.now)
    }

    fn healthy(&self, pod: &PodView) -> bool {
        self.available(pod) && !pod.is_terminating()
    }

    /// A pod for each ordinal asked for.
    fn slots(&self) -> Vec<Option<Arc<PodView>>> {
        let mut slots = vec![None; usize::try_from(self.wishes.replicas).unwrap_or(0)];
        for pod in self.pods {
            let Some(ordinal) = identity::ordinal(self.name, pod.name()) else {
                continue;
            };
            if self.wishes.wants(ordinal)
                && let Ok(at) = usize::try_from(ordinal - self.wishes.start)
            {
                slots[at] = Some(pod.clone());
            }
        }
        slots
    }

    /// Pods beyond those asked for, highest ordinal first.
    pub fn condemned(&self) -> Vec<Arc<PodView>> {
        let mut out: Vec<(i32, Arc<PodView>)> = self
            .pods
            .iter()
            .filter_map(|pod| Some((identity::ordinal(self.name, pod.name())?, pod.clone())))
            .filter(|(ordinal, _)| !self.wishes.wants(*ordinal))
            .collect();
        out.sort_by_key(|(ordinal, _)| -ordinal);
        out.into_iter().map(|(_, pod)| pod).collect()
    }

    fn ordinal_at(&self, at: usize) -> i32 {
        self.wishes.start + i32::try_from(at).unwrap_or(i32::MAX)
    }

    /// What to do. In order: a pod waits until all before it are available, goes when all after it are gone, and one step is
    /// taken at a time. In parallel: whatever is missing is made and whatever is too much goes. Updates wait for both.
    pub fn plan(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let slots = self.slots();
        for (at, slot) in slots.iter().enumerate() {
            let waits = self.fill(self.ordinal_at(at), slot.as_ref(), &mut steps);
            if waits && !self.wishes.parallel {
                return steps;
            }
        }
        if self.reduce(&slots, &mut steps) {
            return steps;
        }
        if let Update::Rolling {
            partition,
            unavailable,
        } = self.wishes.update
        {
            self.replace(&slots, partition, unavailable, &mut steps);
        }
        steps
    }

    /// Sees to one ordinal; returns whether those after it have to wait.
    fn fill(&self, ordinal: i32, pod: Option<&Arc<PodView>>, steps: &mut Vec<Step>) -> bool {
        let Some(pod) = pod else {
            steps.push(Step::Create(ordinal));
            return true;
        };
        if pod.is_finished() {
            if !pod.is_terminating() {
                let why = if pod.phase == Phase::Failed {
                    Why::Failed
                } else {
                    Why::Succeeded
                };
                steps.push(Step::Delete(pod.clone(), why));
            }
            return true;
        }
        if pod.phase == Phase::Pending && !pod.is_terminating() {
            steps.push(Step::Claims(ordinal));
        }
        if !identity::identified(pod, ordinal) && !pod.is_terminating() {
            steps.push(Step::Identify(pod.clone(), ordinal));
        }
        !self.healthy(pod)
    }

    /// Deletes what is too much; returns whether an update has to wait.
    fn reduce(&self, slots: &[Option<Arc<PodView>>], steps: &mut Vec<Step>) -> bool {
        let condemned = self.condemned();
        if self.wishes.parallel {
            let leaving = condemned.iter().filter(|pod| !pod.is_terminating());
            steps.extend(leaving.map(|pod| Step::Delete(pod.clone(), Why::Condemned)));
            return false;
        }
        let Some(last) = condemned.first() else {
            return false;
        };
        let first_unhealthy = slots
            .iter()
            .flatten()
            .chain(condemned.iter().rev())
            .find(|pod| !self.healthy(pod));
        let only_unhealthy = first_unhealthy.is_some_and(|pod| pod.uid() == last.uid());
        if !last.is_terminating() && (self.available(last) || only_unhealthy) {
            steps.push(Step::Delete(last.clone(), Why::Condemned));
        }
        true
    }

    fn outdated(&self, pod: &PodView) -> bool {
        pod.label(HASH_LABEL) != Some(self.update) && !pod.is_terminating()
    }

    fn replace(
        &self,
        slots: &[Option<Arc<PodView>>],
        partition: i32,
        unavailable: i32,
        steps: &mut Vec<Step>,
    ) {
        let partition = usize::try_from(partition).unwrap_or(0);
        let targets = || slots.iter().skip(partition).rev();
        if unavailable <= 1 {
            for slot in targets() {
                match slot {
                    Some(pod) if self.outdated(pod) => {
                        steps.push(Step::Delete(pod.clone(), Why::Outdated));
                        return;
                    }
                    Some(pod) if self.healthy(pod) => {}
                    _ => return,
                }
            }
            return;
        }
        let missing = slots
            .iter()
            .filter(|slot| slot.as_ref().is_none_or(|pod| !self.healthy(pod)))
            .count();
        let mut spare = unavailable - i32::try_from(missing).unwrap_or(i32::MAX);
        for pod in targets().flatten().filter(|pod| self.outdated(pod)) {
            // One that is not available is not missed.
            if self.healthy(pod) {
                if spare <= 0 {
                    continue;
                }
                spare -= 1;
            }
            steps.push(Step::Delete(pod.clone(), Why::Outdated));
        }
    }

    /// What the pods come to.
    pub fn counts(&self) -> Counts {
        let count = |test: &dyn Fn(&PodView) -> bool| {
            let pods = self
                .pods
                .iter()
                .filter(|pod| identity::ordinal(self.name, pod.name()).is_some() && test(pod));
            i32::try_from(pods.count()).unwrap_or(i32::MAX)
        };
        let of =
            |revision: &str| count(&|pod| pod.label(HASH_LABEL) == Some(revision) && !pod.is_terminating());
        let mut counts = Counts {
            replicas: count(&|_| true),
            ready: count(&|pod| pod.phase == Phase::Running && pod.ready),
            available: count(&|pod| self.available(pod)),
            current: of(self.current),
            updated: of(self.update),
            complete: false,
        };
        let all = [counts.updated, counts.ready, counts.replicas];
        let rolling = matches!(self.wishes.update, Update::Rolling { .. });
        if rolling && all.iter().all(|count| *count == self.wishes.replicas) {
            counts.complete = true;
            counts.current = counts.updated;
        }
        counts
    }
}

/// Pods, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub replicas: i32,
    /// Ready ones.
    pub ready: i32,
    /// Available ones.
    pub available: i32,
    /// Of the revision before the update.
    pub current: i32,
    /// Of the newest revision.
    pub updated: i32,
    /// Whether the update is over: the newest revision is the current one.
    pub complete: bool,
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn pod(ordinal: i32, revision: &str, ready: bool) -> PodView {
        let name = format!("web-{ordinal}");
        PodView {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                uid: Some(format!("{name}-{revision}")),
                ..ObjectMeta::default()
            },
            labels: Arc::new(
                identity::labels("web", ordinal)
                    .into_iter()
                    .chain([(HASH_LABEL.to_owned(), revision.to_owned())])
                    .collect(),
            ),
            phase: if ready { Phase::Running } else { Phase::Pending },
            ready,
            ready_changed: Some(now() - SignedDuration::from_secs(100)),
            ..PodView::default()
        }
    }

    fn leaving(mut pod: PodView) -> PodView {
        pod.metadata.deletion_timestamp = Some(Time(now()));
        pod
    }

    const ORDERED: Wishes = Wishes {
        replicas: 3,
        start: 0,
        parallel: false,
        min_ready_seconds: 0,
        update: Update::Rolling {
            partition: 0,
            unavailable: 1,
        },
    };
    const PARALLEL: Wishes = Wishes {
        parallel: true,
        ..ORDERED
    };

    fn arcs(pods: Vec<PodView>) -> Vec<Arc<PodView>> {
        pods.into_iter().map(Arc::new).collect()
    }

    fn situation(wishes: Wishes, pods: &[Arc<PodView>]) -> Situation<'_> {
        Situation {
            name: "web",
            wishes,
            pods,
            current: "old",
            update: "new",
            now: now(),
        }
    }

    /// `+2` creates, `-2` deletes, `=2` labels, of pods; claims are left out.
    fn steps(wishes: Wishes, pods: Vec<PodView>) -> Vec<String> {
        let pods = arcs(pods);
        let steps = situation(wishes, &pods).plan();
        let number = |pod: &PodView| identity::ordinal("web", pod.name()).unwrap();
        steps
            .iter()
            .filter_map(|step| match step {
                Step::Create(ordinal) => Some(format!("+{ordinal}")),
                Step::Delete(pod, _) => Some(format!("-{}", number(pod))),
                Step::Identify(_, ordinal) => Some(format!("={ordinal}")),
                Step::Claims(_) => None,
            })
            .collect()
    }

    #[test]
    fn pods_come_in_order_and_wait_for_each_other() {
        assert_eq!(steps(ORDERED, vec![]), ["+0"]);
        assert!(steps(ORDERED, vec![pod(0, "new", false)]).is_empty());
        assert_eq!(steps(ORDERED, vec![pod(0, "new", true)]), ["+1"]);
        let settling = Wishes {
            min_ready_seconds: 101,
            ..ORDERED
        };
        assert!(
            steps(settling, vec![pod(0, "new", true)]).is_empty(),
            "ready, not available"
        );
        assert_eq!(
            steps(ORDERED, vec![pod(0, "new", true), pod(2, "new", true)]),
            ["+1"],
            "a gap is filled"
        );
        assert!(steps(ORDERED, vec![leaving(pod(0, "new", true)), pod(1, "new", true)]).is_empty());
        assert_eq!(steps(PARALLEL, vec![pod(1, "new", false)]), ["+0", "+2"]);
        let from_five = Wishes { start: 5, ..PARALLEL };
        assert_eq!(steps(from_five, vec![]), ["+5", "+6", "+7"]);
    }

    #[test]
    fn pods_go_in_reverse_order() {
        let two = Wishes {
            replicas: 1,
            ..ORDERED
        };
        let three = |last| vec![pod(0, "new", true), pod(1, "new", true), last];
        assert_eq!(steps(two, three(pod(2, "new", true))), ["-2"]);
        assert_eq!(
            steps(two, three(pod(2, "new", false))),
            ["-2"],
            "the only unhealthy one"
        );
        assert!(steps(two, three(leaving(pod(2, "new", true)))).is_empty());
        let blocked = vec![pod(0, "new", true), pod(1, "new", false), pod(2, "new", false)];
        assert!(steps(two, blocked).is_empty(), "1 is unhealthy and not its turn");
        let parallel = Wishes {
            replicas: 1,
            ..PARALLEL
        };
        assert_eq!(steps(parallel, three(pod(2, "new", false))), ["-2", "-1"]);
        let moved = Wishes {
            replicas: 2,
            start: 1,
            ..ORDERED
        };
        assert_eq!(
            steps(moved, three(pod(2, "new", true))),
            ["-0"],
            "below the first ordinal"
        );
    }

    #[test]
    fn an_update_goes_from_the_highest_down() {
        let pods = |revisions: [&str; 3]| {
            (0..3)
                .zip(revisions)
                .map(|(n, revision)| pod(n, revision, true))
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(ORDERED, pods(["old", "old", "old"])), ["-2"]);
        assert_eq!(steps(ORDERED, pods(["old", "old", "new"])), ["-1"]);
        let rolling = |partition, unavailable| Wishes {
            update: Update::Rolling {
                partition,
                unavailable,
            },
            ..ORDERED
        };
        assert!(steps(rolling(2, 1), pods(["old", "old", "new"])).is_empty());
        assert_eq!(steps(rolling(0, 2), pods(["old", "old", "old"])), ["-2", "-1"]);
        assert_eq!(steps(rolling(1, 5), pods(["old", "old", "old"])), ["-2", "-1"]);
        let on_delete = Wishes {
            update: Update::OnDelete,
            ..ORDERED
        };
        assert!(steps(on_delete, pods(["old", "old", "old"])).is_empty());
        let coming = vec![pod(0, "old", true), pod(1, "old", true), pod(2, "new", false)];
        assert!(
            steps(ORDERED, coming.clone()).is_empty(),
            "the new pod is waited for"
        );
        assert!(steps(PARALLEL, coming).is_empty());
        assert!(
            !ORDERED.keeps_current(0) && rolling(2, 1).keeps_current(1) && !rolling(2, 1).keeps_current(2)
        );
        assert!(!on_delete.keeps_current(0));
    }

    #[test]
    fn pods_that_ended_are_made_anew() {
        let mut failed = pod(0, "new", false);
        failed.phase = Phase::Failed;
        let pods = arcs(vec![failed]);
        let plan = situation(ORDERED, &pods).plan();
        assert!(matches!(&plan[..], [Step::Delete(_, Why::Failed)]));
        let mut strange = pod(0, "new", true);
        strange.labels = Arc::default();
        assert_eq!(
            steps(
                Wishes {
                    replicas: 1,
                    ..ORDERED
                },
                vec![strange]
            )[0],
            "=0"
        );
    }

    #[test]
    fn counts_and_the_end_of_an_update() {
        let pods = arcs(vec![
            pod(0, "old", true),
            pod(1, "new", false),
            leaving(pod(2, "new", true)),
        ]);
        let counts = situation(ORDERED, &pods).counts();
        assert_eq!(
            (
                counts.replicas,
                counts.ready,
                counts.available,
                counts.current,
                counts.updated
            ),
            (3, 2, 2, 1, 1)
        );
        assert!(!counts.complete);
        let pods = arcs((0..3).map(|n| pod(n, "new", true)).collect());
        let counts = situation(ORDERED, &pods).counts();
        assert!(counts.complete);
        assert_eq!(counts.current, 3);
    }

    proptest! {
        /// In order: from any state the set ends with exactly its pods, all new, and no step is taken beside one under way.
        #[test]
        fn it_ends_with_what_was_asked_for(
            replicas in 0i32..5, start in 0i32..3, parallel: bool, unavailable in 1i32..4,
            found in prop::collection::btree_map(0i32..8, (any::<bool>(), any::<bool>()), 0..7),
        ) {
            let update = Update::Rolling { partition: 0, unavailable };
            let wishes = Wishes { replicas, start, parallel, update, ..ORDERED };
            let mut pods: Vec<PodView> = found.iter()
                .map(|(&ordinal, &(new, ready))| pod(ordinal, if new { "new" } else { "old" }, ready)).collect();
            for _ in 0..200 {
                let seen = arcs(pods.clone());
                let plan = situation(wishes, &seen).plan();
                let moves = plan.iter().filter(|step| matches!(step, Step::Create(_) | Step::Delete(..))).count();
                prop_assert!(parallel || moves <= usize::try_from(unavailable).unwrap());
                if moves == 0 {
                    // A pod becomes ready; if none can, all is done.
                    let Some(sleeping) = pods.iter_mut().find(|pod| !pod.ready) else { break };
                    *sleeping = PodView { ready: true, phase: Phase::Running, ..sleeping.clone() };
                    continue;
                }
                for step in plan {
                    match step {
                        Step::Create(ordinal) => pods.push(pod(ordinal, "new", false)),
                        Step::Delete(gone, _) => pods.retain(|pod| pod.uid() != gone.uid()),
                        Step::Claims(_) | Step::Identify(..) => {}
                    }
                }
            }
            let mut ordinals: Vec<i32> = pods.iter().map(|pod| identity::ordinal("web", pod.name()).unwrap()).collect();
            ordinals.sort_unstable();
            prop_assert_eq!(ordinals, (start..start + replicas).collect::<Vec<_>>());
            prop_assert!(pods.iter().all(|pod| pod.ready && pod.label(HASH_LABEL) == Some("new")));
        }
    }
}
