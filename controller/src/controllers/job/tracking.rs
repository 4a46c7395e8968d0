//! How ended pods get into a Job's counters exactly once.
//!
//! A pod carries a finalizer until it is counted. Its uid is first noted in the status, then the finalizer goes, then the
//! counter grows and the uid goes; a crash between any two of these loses nothing and counts nothing twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{JobStatus, UncountedTerminatedPods};

use super::decide::{Tally, Uncounted, Verdict};
use super::indexes::Indexes;
use super::terms::{Action, Terms};
use crate::controllers::pod::{Phase, PodView};

/// Pods that the status names at a time, so that it stays small.
const AT_ONCE: usize = 500;

/// Moves the uids of pods that have no finalizer any more into the counters.
pub fn count_released(status: &mut JobStatus, indexed: bool, tracked: &BTreeSet<&str>) {
    let uncounted = status.uncounted_terminated_pods.take().unwrap_or_default();
    let settle = |uids: Option<Vec<String>>, counter: &mut Option<i32>, counts: bool| {
        let (stay, gone): (Vec<_>, Vec<_>) = uids
            .unwrap_or_default()
            .into_iter()
            .partition(|uid| tracked.contains(uid.as_str()));
        if counts && !gone.is_empty() {
            *counter = Some(counter.unwrap_or(0) + i32::try_from(gone.len()).unwrap_or(i32::MAX));
        }
        Some(stay).filter(|stay| !stay.is_empty())
    };
    let succeeded = settle(uncounted.succeeded, &mut status.succeeded, !indexed);
    let failed = settle(uncounted.failed, &mut status.failed, true);
    status.uncounted_terminated_pods = Some(UncountedTerminatedPods { failed, succeeded });
}

/// What the status notes of pods that ended, and the pods whose finalizers may go once it is written.
#[derive(Debug, Default)]
pub struct Release {
    /// Those pods.
    pub pods: Vec<Arc<PodView>>,
    /// Whether there are more than fit.
    pub more: bool,
}

/// Notes pods that ended. When the Job is over, all pods are let go; if it failed, all of them count as failed.
pub fn note_ended(
    terms: &Terms,
    status: &mut JobStatus,
    tally: &Tally,
    verdict: Option<&Verdict>,
    deleting: bool,
) -> Release {
    let before = status.clone();
    let known = Uncounted::of(&before);
    let known: BTreeSet<&str> = known.succeeded.union(&known.failed).copied().collect();
    let mut completed = Indexes::parse(
        status.completed_indexes.as_deref().unwrap_or_default(),
        terms.completions.unwrap_or(0),
    );
    let uncounted = status.uncounted_terminated_pods.get_or_insert_default();
    let mut release = Release::default();
    let kept_back: BTreeSet<&str> = tally.kept_back.values().map(|pod| pod.uid()).collect();
    for pod in &tally.tracked {
        let (succeeded, failed) = (pod.phase == Phase::Succeeded, terms.failed(pod));
        if !(succeeded || failed || verdict.is_some() || deleting) {
            continue;
        }
        if verdict.is_none() && !deleting && kept_back.contains(pod.uid()) {
            continue;
        }
        if release.pods.len() == AT_ONCE {
            release.more = true;
            break;
        }
        release.pods.push(pod.clone());
        if known.contains(pod.uid()) {
            continue;
        }
        let index = terms.index(pod);
        if terms.indexed && index.is_none() {
            continue;
        }
        if succeeded {
            match index {
                Some(index) if terms.indexed => completed.insert(index),
                _ => uncounted.succeeded.get_or_insert_default().push(pod.uid().into()),
            }
        } else if (failed || verdict.is_some_and(|verdict| !verdict.success))
            && terms.action(pod) != Action::Ignore
        {
            uncounted.failed.get_or_insert_default().push(pod.uid().into());
        }
    }
    if terms.indexed {
        status.completed_indexes = Some(completed.to_string()).filter(|text| !text.is_empty());
        status.succeeded = Some(completed.len()).filter(|count| *count > 0);
    }
    if terms.per_index.is_some() {
        status.failed_indexes = Some(tally.failed_indexes.to_string());
    }
    release
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::Timestamp;
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::FINALIZER;
    use super::super::terms::tests::terms;
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fate {
        Runs,
        Succeeds,
        Fails,
        Deleted,
    }

    fn pod(at: usize, fate: Fate, finalizer: bool) -> Arc<PodView> {
        let deleted = (fate == Fate::Deleted).then_some(Time(Timestamp::UNIX_EPOCH));
        Arc::new(PodView {
            metadata: ObjectMeta {
                uid: Some(format!("u{at}")),
                finalizers: finalizer.then(|| vec![FINALIZER.to_owned()]),
                deletion_timestamp: deleted,
                ..ObjectMeta::default()
            },
            phase: match fate {
                Fate::Runs | Fate::Deleted => Phase::Running,
                Fate::Succeeds => Phase::Succeeded,
                Fate::Fails => Phase::Failed,
            },
            ..PodView::default()
        })
    }

    proptest! {
        /// Crashes between any two writes, and copies that lag: each pod that ended is counted once.
        #[test]
        fn every_end_is_counted_once(
            fates in prop::collection::vec(
                prop_oneof![Just(Fate::Runs), Just(Fate::Succeeds), Just(Fate::Fails), Just(Fate::Deleted)], 1..10),
            faults in prop::collection::vec(0u8..5, 0..30),
        ) {
            let terms = terms(json!({ "completions": 100, "parallelism": 100, "backoffLimit": 100 }));
            // What the API has, and what a restarted controller knows: nothing of its own.
            let mut status = JobStatus::default();
            let mut finalizers = vec![true; fates.len()];
            let mut released: BTreeSet<String> = BTreeSet::new();
            for fault in faults.into_iter().chain([9, 9, 9]) {
                if fault == 0 {
                    released.clear();
                }
                // A copy that lags shows finalizers that are gone; only what this process released itself may be seen so.
                let lags = fault == 1;
                let seen: Vec<_> = fates.iter().enumerate().map(|(at, &fate)| {
                    let stale = lags && released.contains(&format!("u{at}"));
                    pod(at, fate, finalizers[at] || stale)
                }).collect();
                let mut fresh = status.clone();
                let tally = Tally::of(&terms, &fresh, &seen, &released);
                let tracked: BTreeSet<&str> = tally.tracked.iter().map(|pod| pod.uid()).collect();
                count_released(&mut fresh, false, &tracked);
                let release = note_ended(&terms, &mut fresh, &tally, None, false);
                if fault == 2 {
                    continue;
                }
                status = fresh.clone();
                for (nth, pod) in release.pods.iter().enumerate() {
                    if fault == 3 && nth > 0 {
                        break;
                    }
                    released.insert(pod.uid().to_owned());
                    finalizers[pod.uid()[1..].parse::<usize>().unwrap()] = false;
                }
                if fault >= 3 {
                    let still: BTreeSet<&str> = tracked.into_iter().filter(|uid| !released.contains(*uid)).collect();
                    count_released(&mut fresh, false, &still);
                    status = fresh;
                }
            }
            let of = |wanted: &[Fate]| {
                let count = fates.iter().filter(|fate| wanted.contains(fate)).count();
                i32::try_from(count).unwrap()
            };
            prop_assert_eq!(status.succeeded.unwrap_or(0), of(&[Fate::Succeeds]));
            prop_assert_eq!(status.failed.unwrap_or(0), of(&[Fate::Fails, Fate::Deleted]));
            let left = status.uncounted_terminated_pods.unwrap_or_default();
            prop_assert!(left.failed.is_none() && left.succeeded.is_none());
        }
    }

    #[test]
    fn when_a_job_has_failed_all_its_pods_have() {
        let terms = terms(json!({ "completions": 3, "parallelism": 3 }));
        let pods = [pod(0, Fate::Runs, true), pod(1, Fate::Succeeds, true)];
        let mut status = JobStatus::default();
        let tally = Tally::of(&terms, &status, &pods, &BTreeSet::new());
        let verdict = |success| Verdict {
            success,
            reason: String::new(),
            message: String::new(),
        };
        let release = note_ended(&terms, &mut status, &tally, Some(&verdict(false)), false);
        assert_eq!(release.pods.len(), 2);
        let uncounted = status.uncounted_terminated_pods.unwrap();
        assert_eq!(
            (
                uncounted.failed.unwrap().len(),
                uncounted.succeeded.unwrap().len()
            ),
            (1, 1)
        );
        let mut status = JobStatus::default();
        note_ended(&terms, &mut status, &tally, Some(&verdict(true)), false);
        assert!(
            status.uncounted_terminated_pods.unwrap().failed.is_none(),
            "not those of a success"
        );
    }
}
