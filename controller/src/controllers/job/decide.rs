//! How far a Job is, and whether it is over: without any IO.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{JobCondition, JobStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::FINALIZER;
use super::indexes::Indexes;
use super::terms::{Action, Terms, index_failures};
use crate::controllers::pod::{Phase, PodView};

/// The condition that says that the outcome is certain, and the one that says that all pods are gone, too.
pub const SUCCESS: (&str, &str) = ("SuccessCriteriaMet", "Complete");
/// The same for a failure.
pub const FAILURE: (&str, &str) = ("FailureTarget", "Failed");
/// Condition: no pods are made.
pub const SUSPENDED: &str = "Suspended";

/// How a Job ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it has done what it should.
    pub success: bool,
    /// In a word.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

impl Verdict {
    fn failure(reason: &str, message: impl Into<String>) -> Self {
        Verdict {
            success: false,
            reason: reason.into(),
            message: message.into(),
        }
    }

    fn success(reason: &str, message: impl Into<String>) -> Self {
        Verdict {
            success: true,
            ..Verdict::failure(reason, message)
        }
    }

    /// The two conditions that stand for it.
    pub fn conditions(&self) -> (&'static str, &'static str) {
        if self.success { SUCCESS } else { FAILURE }
    }
}

/// A condition that is true.
pub fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind && condition.status == "True")
}

/// When a Job was over, if it is.
pub fn finished_at(status: &JobStatus) -> Option<Timestamp> {
    let end = condition(status, SUCCESS.1).or_else(|| condition(status, FAILURE.1))?;
    Some(
        end.last_transition_time
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
    )
}

/// Sets a condition, unless it says so already; returns whether it changed.
pub fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> bool {
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter_mut().find(|condition| condition.type_ == kind);
    if known
        .as_ref()
        .is_some_and(|known| known.status == value && known.reason.as_deref() == Some(reason))
    {
        return false;
    }
    let fresh = JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    match known {
        Some(known) => *known = fresh,
        None => conditions.push(fresh),
    }
    true
}

/// A Job's pods, counted.
#[derive(Debug, Default)]
pub struct Tally {
    /// Neither ended nor on their way out.
    pub active: Vec<Arc<PodView>>,
    /// Of those, ready ones.
    pub ready: i32,
    /// On their way out and not ended.
    pub leaving: Vec<Arc<PodView>>,
    /// Not counted in the status so far, or counted there as not counted: they carry the finalizer.
    pub tracked: Vec<Arc<PodView>>,
    /// All that ever succeeded; of an Indexed Job, the indexes.
    pub succeeded: i32,
    /// All that ever failed and count.
    pub failed: i32,
    /// Indexes that succeeded.
    pub succeeded_indexes: Indexes,
    /// Indexes that are not tried again.
    pub failed_indexes: Indexes,
    /// The last failed pod of each index that is to be tried again: it knows how often it was.
    pub kept_back: BTreeMap<i32, Arc<PodView>>,
}

impl Tally {
    /// Counts. Of the pods in `released` the finalizer was taken, even if they seem to have it still.
    pub fn of(terms: &Terms, status: &JobStatus, pods: &[Arc<PodView>], released: &BTreeSet<String>) -> Self {
        let completions = terms.completions.unwrap_or(0);
        let parse = |text: &Option<String>| Indexes::parse(text.as_deref().unwrap_or_default(), completions);
        let uncounted = Uncounted::of(status);
        let mut tally = Tally {
            succeeded_indexes: parse(&status.completed_indexes),
            failed_indexes: parse(&status.failed_indexes),
            succeeded: status.succeeded.unwrap_or(0) + size(uncounted.succeeded.len()),
            failed: status.failed.unwrap_or(0) + size(uncounted.failed.len()),
            ..Tally::default()
        };
        for pod in pods {
            if pod.is_active() {
                tally.ready += i32::from(pod.ready);
                tally.active.push(pod.clone());
            } else if !pod.is_finished() {
                tally.leaving.push(pod.clone());
            }
            let finalizers = pod.metadata.finalizers.iter().flatten();
            let tracked = finalizers.into_iter().any(|name| name == FINALIZER);
            if tracked && !released.contains(pod.uid()) {
                tally.tracked.push(pod.clone());
            }
        }
        for pod in &tally.tracked {
            let index = terms.index(pod);
            if pod.phase == Phase::Succeeded {
                match index {
                    Some(index) if terms.indexed => tally.succeeded_indexes.insert(index),
                    _ if terms.indexed => {}
                    _ => tally.succeeded += i32::from(!uncounted.succeeded.contains(pod.uid())),
                }
            } else if terms.failed(pod) {
                let counts = terms.action(pod) != Action::Ignore && (!terms.indexed || index.is_some());
                tally.failed += i32::from(counts && !uncounted.failed.contains(pod.uid()));
                if let Some(index) = index.filter(|_| terms.fails_index(pod)) {
                    tally.failed_indexes.insert(index);
                }
            }
        }
        if terms.indexed {
            tally.succeeded = tally.succeeded_indexes.len();
        }
        if terms.per_index.is_some() {
            tally.keep_back(terms);
        }
        tally
    }

    fn keep_back(&mut self, terms: &Terms) {
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| terms.index(pod)).collect();
        for pod in self.tracked.iter().filter(|pod| terms.failed(pod)) {
            let Some(index) = terms.index(pod) else { continue };
            if active.contains(&index)
                || self.succeeded_indexes.contains(index)
                || self.failed_indexes.contains(index)
            {
                continue;
            }
            let rank = |pod: &PodView| {
                let (counted, ignored) = index_failures(terms, pod);
                (counted + ignored, pod.end.as_ref().and_then(|end| end.at))
            };
            let best = self.kept_back.entry(index).or_insert_with(|| pod.clone());
            if rank(best) <= rank(pod) {
                *best = pod.clone();
            }
        }
    }

    /// Whether nothing of the Job runs any more.
    pub fn is_quiet(&self) -> bool {
        self.active.is_empty() && self.leaving.is_empty()
    }
}

pub(super) fn size(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The uids in `uncountedTerminatedPods`: their pods ended, and the counters do not know.
#[derive(Debug, Default)]
pub struct Uncounted<'a> {
    /// Of pods that succeeded.
    pub succeeded: BTreeSet<&'a str>,
    /// Of pods that failed.
    pub failed: BTreeSet<&'a str>,
}

impl<'a> Uncounted<'a> {
    /// Reads them.
    pub fn of(status: &'a JobStatus) -> Self {
        let Some(uncounted) = &status.uncounted_terminated_pods else {
            return Uncounted::default();
        };
        let all = |list: &'a Option<Vec<String>>| list.iter().flatten().map(String::as_str).collect();
        Uncounted {
            succeeded: all(&uncounted.succeeded),
            failed: all(&uncounted.failed),
        }
    }
}

/// Whether the Job is over, and how. What was decided once stays.
pub fn judge(terms: &Terms, status: &JobStatus, tally: &Tally, now: Timestamp) -> Option<Verdict> {
    for (success, kind) in [(true, SUCCESS.0), (false, FAILURE.0)] {
        if let Some(known) = condition(status, kind) {
            return Some(Verdict {
                success,
                reason: known.reason.clone().unwrap_or_default(),
                message: known.message.clone().unwrap_or_default(),
            });
        }
    }
    let refused = tally
        .tracked
        .iter()
        .filter(|pod| terms.failed(pod))
        .find_map(|pod| match terms.action(pod) {
            Action::FailJob(why) => Some(why),
            Action::Count | Action::Ignore | Action::FailIndex => None,
        });
    if let Some(why) = refused {
        return Some(Verdict::failure("PodFailurePolicy", why));
    }
    let restarts: i32 = tally.active.iter().map(|pod| pod.total_restarts).sum();
    let restarted = terms.restarts
        && if terms.backoff_limit == 0 {
            restarts > 0
        } else {
            restarts >= terms.backoff_limit
        };
    if tally.failed > terms.backoff_limit || restarted {
        let message = "Job has reached the specified backoff limit";
        return Some(Verdict::failure("BackoffLimitExceeded", message));
    }
    if deadline_left(terms, status, now).is_some_and(|left| left.is_zero()) {
        let message = "Job was active longer than specified deadline";
        return Some(Verdict::failure("DeadlineExceeded", message));
    }
    if terms.per_index.is_some() {
        let failed = tally.failed_indexes.len();
        if terms.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Verdict::failure("MaxFailedIndexesExceeded", message));
        }
        let all = terms
            .completions
            .is_some_and(|all| failed + tally.succeeded >= all);
        if failed > 0 && all {
            return Some(Verdict::failure("FailedIndexes", "Job has failed indexes"));
        }
    }
    if let Some(rule) = terms.enough(&tally.succeeded_indexes) {
        return Some(Verdict::success(
            "SuccessPolicy",
            format!("Matched rules at index {rule}"),
        ));
    }
    let complete = match terms.completions {
        Some(all) => tally.succeeded >= all,
        None => tally.succeeded > 0,
    };
    (complete && tally.active.is_empty())
        .then(|| Verdict::success("CompletionsReached", "Reached expected number of succeeded pods"))
}

/// How long a Job may still be active; `None` without a deadline.
pub fn deadline_left(terms: &Terms, status: &JobStatus, now: Timestamp) -> Option<Duration> {
    let seconds = terms.deadline.filter(|_| !terms.suspended)?;
    let start = status.start_time.as_ref()?.0;
    let left = SignedDuration::from_secs(seconds) - now.duration_since(start);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
