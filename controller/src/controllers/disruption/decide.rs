//! How many pods of a PodDisruptionBudget may be taken away: without any IO.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::policy::v1::{PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::controllers::pod::PodView;

/// An eviction that has not shown by then has failed.
const EVICTION_LIMIT: SignedDuration = SignedDuration::from_mins(2);
/// The condition that says whether a disruption is allowed.
pub const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// What has to be counted before the budget can be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The pods that are there.
    Pods,
    /// The pods that there should be, as their controllers say.
    Scales,
}

/// What the budget is a part of.
pub fn basis(spec: &PodDisruptionBudgetSpec) -> Basis {
    match (&spec.max_unavailable, &spec.min_available) {
        (None, Some(IntOrString::Int(_)) | None) => Basis::Pods,
        _ => Basis::Scales,
    }
}

/// How many pods must stay healthy of `expected`. Shares are rounded up.
pub fn desired_healthy(spec: &PodDisruptionBudgetSpec, expected: i32) -> Result<i32, String> {
    if let Some(unavailable) = &spec.max_unavailable {
        return Ok((expected - share(unavailable, expected)?).max(0));
    }
    spec.min_available
        .as_ref()
        .map_or(Ok(0), |least| share(least, expected))
}

fn share(value: &IntOrString, of: i32) -> Result<i32, String> {
    match value {
        IntOrString::Int(count) => Ok(*count),
        IntOrString::String(text) => {
            let percent = text
                .strip_suffix('%')
                .and_then(|digits| digits.parse::<i64>().ok());
            let percent = percent.ok_or_else(|| {
                format!("invalid value for IntOrString: invalid type: string is not a percentage: {text:?}")
            })?;
            let count = (percent * i64::from(of)).div_euclid(100)
                + i64::from((percent * i64::from(of)).rem_euclid(100) > 0);
            Ok(i32::try_from(count).unwrap_or(i32::MAX))
        }
    }
}

/// The evictions that were let through and whose pods are not seen to go yet, and when the next of them is given up.
pub fn awaited(
    pods: &[Arc<PodView>],
    status: Option<&PodDisruptionBudgetStatus>,
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<SignedDuration>) {
    let noted = status.and_then(|status| status.disrupted_pods.as_ref());
    let (mut awaited, mut next) = (BTreeMap::new(), None);
    for pod in pods.iter().filter(|pod| !pod.is_terminating()) {
        let Some(time) = noted.and_then(|noted| noted.get(pod.name())) else {
            continue;
        };
        let left = EVICTION_LIMIT - now.duration_since(time.0);
        if left > SignedDuration::ZERO {
            awaited.insert(pod.name().to_owned(), time.clone());
            next = Some(next.map_or(left, |next: SignedDuration| next.min(left)));
        }
    }
    (awaited, next)
}

/// The pods that work and are not about to go.
pub fn healthy(pods: &[Arc<PodView>], awaited: &BTreeMap<String, Time>) -> i32 {
    let healthy = pods
        .iter()
        .filter(|pod| pod.ready && !pod.is_terminating() && !awaited.contains_key(pod.name()));
    i32::try_from(healthy.count()).unwrap_or(i32::MAX)
}

/// The status of a budget.
pub fn status(
    old: Option<&PodDisruptionBudgetStatus>,
    generation: Option<i64>,
    counts: [i32; 3],
    awaited: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let [expected, current, desired] = counts;
    // With nothing expected there is nothing to guard, and nothing to give away either.
    let allowed = if expected <= 0 {
        0
    } else {
        (current - desired).max(0)
    };
    let (state, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(old, state, reason, "", generation, now)),
        current_healthy: current,
        desired_healthy: desired,
        disrupted_pods: (!awaited.is_empty()).then_some(awaited),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: generation,
    }
}

/// The status of a budget that could not be decided: nothing is allowed.
pub fn failed(
    old: Option<&PodDisruptionBudgetStatus>,
    generation: Option<i64>,
    why: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        conditions: Some(conditions(old, "False", "SyncFailed", why, generation, now)),
        disruptions_allowed: 0,
        ..old.cloned().unwrap_or_default()
    }
}

fn conditions(
    old: Option<&PodDisruptionBudgetStatus>,
    state: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let before = conditions
        .iter()
        .position(|condition| condition.type_ == DISRUPTION_ALLOWED);
    let since = before
        .map(|index| &conditions[index])
        .filter(|condition| condition.status == state)
        .map_or(Time(now), |condition| condition.last_transition_time.clone());
    let fresh = Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: state.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: since,
    };
    match before {
        Some(index) => conditions[index] = fresh,
        None => conditions.push(fresh),
    }
    conditions
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn now() -> Timestamp {
        "2025-01-01T00:10:00Z".parse().unwrap()
    }

    fn pod(name: &str, ready: bool, going: bool) -> Arc<PodView> {
        Arc::new(PodView {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                deletion_timestamp: going.then(|| Time(now())),
                ..ObjectMeta::default()
            },
            ready,
            ..PodView::default()
        })
    }

    fn spec(least: Option<IntOrString>, away: Option<IntOrString>) -> PodDisruptionBudgetSpec {
        PodDisruptionBudgetSpec {
            min_available: least,
            max_unavailable: away,
            ..PodDisruptionBudgetSpec::default()
        }
    }

    fn percent(text: &str) -> IntOrString {
        IntOrString::String(text.to_owned())
    }

    #[test]
    fn budgets_are_shares_of_what_should_be_there() {
        for (least, away, expected, basis_is, desired) in [
            (Some(IntOrString::Int(2)), None, 3, Basis::Pods, 2),
            (Some(percent("50%")), None, 3, Basis::Scales, 2),
            (Some(percent("100%")), None, 3, Basis::Scales, 3),
            (None, Some(IntOrString::Int(1)), 3, Basis::Scales, 2),
            (None, Some(percent("30%")), 7, Basis::Scales, 4),
            (None, Some(IntOrString::Int(5)), 3, Basis::Scales, 0),
            (None, None, 3, Basis::Pods, 0),
        ] {
            let spec = spec(least, away);
            assert_eq!(basis(&spec), basis_is);
            assert_eq!(desired_healthy(&spec, expected), Ok(desired), "{spec:?}");
        }
        assert!(desired_healthy(&spec(Some(percent("many")), None), 1).is_err());
    }

    #[test]
    fn pods_on_their_way_out_are_not_counted_twice() {
        let pods = [
            pod("a", true, false),
            pod("b", true, false),
            pod("c", true, true),
            pod("d", false, false),
            pod("e", true, false),
        ];
        let noted = |minutes: i64| Time(now() - SignedDuration::from_mins(minutes));
        let status = PodDisruptionBudgetStatus {
            disrupted_pods: Some(
                [("a", 1), ("e", 3), ("gone", 1)]
                    .map(|(name, ago)| (name.to_owned(), noted(ago)))
                    .into(),
            ),
            ..PodDisruptionBudgetStatus::default()
        };
        let (awaited, next) = awaited(&pods, Some(&status), now());
        assert_eq!(
            awaited.keys().collect::<Vec<_>>(),
            ["a"],
            "e was not evicted in time, gone is gone"
        );
        assert_eq!(next, Some(SignedDuration::from_mins(1)));
        assert_eq!(healthy(&pods, &awaited), 2);
    }

    #[test]
    fn the_condition_keeps_its_time_while_it_holds() {
        let first = status(None, Some(1), [3, 3, 2], BTreeMap::new(), now());
        assert_eq!((first.disruptions_allowed, first.expected_pods), (1, 3));
        let later = now() + SignedDuration::from_mins(1);
        let second = status(Some(&first), Some(1), [3, 3, 2], BTreeMap::new(), later);
        assert_eq!(second, first);
        let third = status(Some(&second), Some(1), [3, 2, 2], BTreeMap::new(), later);
        let condition = &third.conditions.as_ref().unwrap()[0];
        assert_eq!(
            (condition.status.as_str(), condition.reason.as_str()),
            ("False", "InsufficientPods")
        );
        assert_eq!(condition.last_transition_time, Time(later));
        assert_eq!(
            status(None, Some(1), [0, 0, 0], BTreeMap::new(), now()).disruptions_allowed,
            0
        );
        let broken = failed(Some(&first), Some(2), "why", later);
        assert_eq!(
            (
                broken.disruptions_allowed,
                broken.observed_generation,
                broken.current_healthy
            ),
            (0, Some(1), 3)
        );
        assert_eq!(broken.conditions.unwrap()[0].reason, "SyncFailed");
    }
}
