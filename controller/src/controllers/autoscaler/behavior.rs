//! How fast and how far the number of replicas may go: stabilization windows, policies, bounds. Without any IO.

use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscalerBehavior};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// How long recommendations hold back a decrease where nothing else is said, as in Kubernetes.
const DOWN_WINDOW: SignedDuration = SignedDuration::from_mins(5);
/// Without rules, the number at most doubles, but may always become this.
const FREE_INCREASE: i32 = 4;
/// Longest period of a policy: older changes are forgotten.
const LONGEST_PERIOD: SignedDuration = SignedDuration::from_mins(30);
/// Longest stabilization window: older recommendations are forgotten.
const LONGEST_WINDOW: SignedDuration = SignedDuration::from_hours(1);

/// What has been recommended and done; kept for each autoscaler while the controller runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    recommendations: Vec<(Timestamp, i32)>,
    /// Changes of the number of replicas, down below zero.
    changes: Vec<(Timestamp, i32)>,
}

impl History {
    /// The history of what nobody looked at before.
    pub(crate) fn since_now(current: i32, now: Timestamp) -> Self {
        Self {
            recommendations: vec![(now, current)],
            changes: Vec::new(),
        }
    }

    /// Notes a change that was made.
    pub(crate) fn changed(&mut self, by: i32, now: Timestamp) {
        self.changes
            .retain(|(at, _)| now.duration_since(*at) < LONGEST_PERIOD);
        self.changes.push((now, by));
    }

    fn recommended(&mut self, replicas: i32, now: Timestamp) {
        self.recommendations
            .retain(|(at, _)| now.duration_since(*at) < LONGEST_WINDOW);
        self.recommendations.push((now, replicas));
    }

    fn since(&self, window: SignedDuration, now: Timestamp) -> impl Iterator<Item = i32> {
        let recent = move |at: Timestamp| now.duration_since(at) < window;
        self.recommendations
            .iter()
            .filter(move |(at, _)| recent(*at))
            .map(|(_, replicas)| *replicas)
    }

    /// How many replicas there were a period ago, if nothing else than these changes happened.
    fn before(&self, current: i32, seconds: i32, now: Timestamp) -> i32 {
        let period = SignedDuration::from_secs(i64::from(seconds));
        let recent = self
            .changes
            .iter()
            .filter(|(at, _)| now.duration_since(*at) < period);
        current - recent.map(|(_, by)| by).sum::<i32>()
    }
}

/// Why the number is what it is: a condition's reason and message.
pub(crate) type Why = (&'static str, &'static str);

/// What comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Normal {
    pub(crate) replicas: i32,
    /// For condition AbleToScale.
    pub(crate) able: Why,
    /// For condition ScalingLimited: whether it is, and why.
    pub(crate) limited: (bool, Why),
}

const READY: Why = ("ReadyForNewScale", "recommended size matches current size");
const HELD_DOWN: Why = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const HELD_UP: Why = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const WITHIN: Why = (
    "DesiredWithinRange",
    "the desired count is within the acceptable range",
);
const TOO_FEW: Why = (
    "TooFewReplicas",
    "the desired replica count is less than the minimum replica count",
);
const TOO_MANY: Why = (
    "TooManyReplicas",
    "the desired replica count is more than the maximum replica count",
);
const TOO_FAST_UP: Why = (
    "ScaleUpLimit",
    "the desired replica count is increasing faster than the maximum scale rate",
);
const TOO_FAST_DOWN: Why = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

/// Bounds of the number of replicas.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) least: i32,
    pub(crate) most: i32,
}

/// What becomes of a recommendation.
pub(crate) fn normalize(
    behavior: Option<&HorizontalPodAutoscalerBehavior>,
    history: &mut History,
    current: i32,
    desired: i32,
    bounds: Bounds,
    now: Timestamp,
) -> Normal {
    let window = |rules: Option<&HPAScalingRules>, default| {
        let seconds = rules.and_then(|rules| rules.stabilization_window_seconds);
        seconds.map_or(default, |seconds| SignedDuration::from_secs(i64::from(seconds)))
    };
    let up_rules = behavior.and_then(|behavior| behavior.scale_up.as_ref());
    let down_rules = behavior.and_then(|behavior| behavior.scale_down.as_ref());
    let up = history
        .since(window(up_rules, SignedDuration::ZERO), now)
        .fold(desired, i32::min);
    let down = history
        .since(window(down_rules, DOWN_WINDOW), now)
        .fold(desired, i32::max);
    let stable = if behavior.is_some() {
        current.max(up).min(down)
    } else {
        down
    };
    history.recommended(desired, now);
    let able = match stable {
        _ if stable == desired => READY,
        _ if behavior.is_some() && desired >= current => HELD_DOWN,
        _ => HELD_UP,
    };
    let (replicas, why) = match behavior {
        None => limit_by_default(current, stable, bounds),
        Some(_) => limit_by_rules([up_rules, down_rules], history, current, stable, bounds, now),
    };
    Normal {
        replicas,
        able,
        limited: (replicas != stable, why),
    }
}

fn limit_by_default(current: i32, desired: i32, bounds: Bounds) -> (i32, Why) {
    let fastest = current.saturating_mul(2).max(FREE_INCREASE);
    if desired < bounds.least {
        (bounds.least, TOO_FEW)
    } else if desired > bounds.most.min(fastest) {
        (
            bounds.most.min(fastest),
            if bounds.most > fastest {
                TOO_FAST_UP
            } else {
                TOO_MANY
            },
        )
    } else {
        (desired, WITHIN)
    }
}

fn limit_by_rules(
    [up, down]: [Option<&HPAScalingRules>; 2],
    history: &History,
    current: i32,
    desired: i32,
    bounds: Bounds,
    now: Timestamp,
) -> (i32, Why) {
    if desired > current {
        let fastest = furthest(up, history, current, 1, now).max(current);
        let most = bounds.most.min(fastest);
        if desired > most {
            return (
                most,
                if bounds.most > fastest {
                    TOO_FAST_UP
                } else {
                    TOO_MANY
                },
            );
        }
    } else if desired < current {
        let fastest = furthest(down, history, current, -1, now).min(current);
        let least = bounds.least.max(fastest);
        if desired < least {
            return (
                least,
                if bounds.least < fastest {
                    TOO_FAST_DOWN
                } else {
                    TOO_FEW
                },
            );
        }
    }
    (desired, WITHIN)
}

/// How far rules let the number go now, up (`direction` 1) or down (-1).
fn furthest(
    rules: Option<&HPAScalingRules>,
    history: &History,
    current: i32,
    direction: i32,
    now: Timestamp,
) -> i32 {
    let select = rules.and_then(|rules| rules.select_policy.as_deref());
    if select == Some("Disabled") {
        return current;
    }
    let policies = rules
        .and_then(|rules| rules.policies.as_deref())
        .unwrap_or_default();
    let proposals = policies.iter().map(|policy| {
        let before = history.before(current, policy.period_seconds, now);
        if policy.type_ == "Pods" {
            return before.saturating_add(direction.saturating_mul(policy.value));
        }
        let change = i64::from(before) * i64::from(policy.value);
        // More is rounded up and less is rounded down, so that a small number is not stuck.
        let change = change.div_euclid(100) + i64::from(change.rem_euclid(100) > 0);
        i32::try_from(i64::from(before) + i64::from(direction) * change).unwrap_or(i32::MAX)
    });
    let greatest_change = select != Some("Min");
    let chosen = if greatest_change == (direction > 0) {
        proposals.max()
    } else {
        proposals.min()
    };
    // No policy at all limits nothing.
    chosen.unwrap_or(if direction > 0 { i32::MAX } else { 0 })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2025-01-01T01:00:00Z".parse().unwrap()
    }

    fn ago(seconds: i64) -> Timestamp {
        now() - SignedDuration::from_secs(seconds)
    }

    const WIDE: Bounds = Bounds { least: 1, most: 1000 };

    fn with(
        behavior: &Value,
        history: &mut History,
        current: i32,
        desired: i32,
    ) -> (i32, &'static str, &'static str) {
        let behavior: HorizontalPodAutoscalerBehavior = serde_json::from_value(behavior.clone()).unwrap();
        let normal = normalize(Some(&behavior), history, current, desired, WIDE, now());
        (normal.replicas, normal.able.0, normal.limited.1.0)
    }

    #[test]
    fn without_rules_the_number_doubles_at_most_and_falls_after_five_minutes() {
        let plain = |history: &mut History, current, desired, bounds| {
            let normal = normalize(None, history, current, desired, bounds, now());
            (normal.replicas, normal.able.0, normal.limited)
        };
        let fresh = || History::default();
        assert_eq!(
            plain(&mut fresh(), 3, 3, WIDE),
            (3, "ReadyForNewScale", (false, WITHIN))
        );
        assert_eq!(
            plain(&mut fresh(), 1, 10, WIDE),
            (4, "ReadyForNewScale", (true, TOO_FAST_UP))
        );
        assert_eq!(
            plain(&mut fresh(), 10, 100, WIDE),
            (20, "ReadyForNewScale", (true, TOO_FAST_UP))
        );
        let narrow = Bounds { least: 2, most: 5 };
        assert_eq!(
            plain(&mut fresh(), 3, 9, narrow),
            (5, "ReadyForNewScale", (true, TOO_MANY))
        );
        assert_eq!(
            plain(&mut fresh(), 3, 1, narrow),
            (2, "ReadyForNewScale", (true, TOO_FEW))
        );
        let mut history = History {
            recommendations: vec![(ago(301), 9), (ago(299), 5)],
            changes: vec![],
        };
        assert_eq!(
            plain(&mut history, 6, 2, WIDE),
            (5, "ScaleDownStabilized", (false, WITHIN))
        );
    }

    #[test]
    fn policies_limit_the_rate() {
        let percent = |value: i32| json!({"type": "Percent", "value": value, "periodSeconds": 60});
        let pods = |value: i32| json!({"type": "Pods", "value": value, "periodSeconds": 60});
        let up = |select: &str, policies: Vec<Value>| json!({"scaleUp": {"selectPolicy": select, "policies": policies, "stabilizationWindowSeconds": 0}});
        let down = |select: &str, policies: Vec<Value>| json!({"scaleDown": {"selectPolicy": select, "policies": policies, "stabilizationWindowSeconds": 0}});
        let mut fresh = History::default();
        assert_eq!(
            with(&up("Max", vec![percent(50), pods(4)]), &mut fresh, 10, 100),
            (15, "ReadyForNewScale", "ScaleUpLimit")
        );
        assert_eq!(
            with(&up("Min", vec![percent(50), pods(4)]), &mut fresh, 10, 100),
            (14, "ReadyForNewScale", "ScaleUpLimit")
        );
        assert_eq!(with(&up("Disabled", vec![pods(4)]), &mut fresh, 10, 100).0, 10);
        assert_eq!(
            with(&up("Max", vec![percent(10)]), &mut fresh, 1, 100).0,
            2,
            "rounded up"
        );
        assert_eq!(
            with(&down("Max", vec![percent(50), pods(4)]), &mut fresh, 10, 1),
            (5, "ReadyForNewScale", "ScaleDownLimit")
        );
        assert_eq!(
            with(&down("Min", vec![percent(50), pods(4)]), &mut fresh, 10, 1).0,
            6
        );
        assert_eq!(
            with(&down("Max", vec![percent(100)]), &mut fresh, 10, 1),
            (1, "ReadyForNewScale", "DesiredWithinRange")
        );
        // Changes within the period count against it.
        let mut busy = History {
            recommendations: vec![],
            changes: vec![(ago(30), 3), (ago(90), 5)],
        };
        assert_eq!(with(&up("Max", vec![pods(4)]), &mut busy, 13, 100).0, 14);
        busy.changed(1, now());
        assert_eq!(
            with(&up("Max", vec![pods(4)]), &mut busy, 14, 100).0,
            14,
            "nothing is left"
        );
    }

    #[test]
    fn windows_hold_the_number_back() {
        let mut history = History {
            recommendations: vec![(ago(20), 5), (ago(100), 2)],
            changes: vec![],
        };
        let up = json!({"scaleUp": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}]}});
        assert_eq!(
            with(&up, &mut history.clone(), 3, 9),
            (5, "ScaleUpStabilized", "DesiredWithinRange")
        );
        let down = json!({"scaleDown": {"stabilizationWindowSeconds": 60, "policies": [{"type": "Pods", "value": 100, "periodSeconds": 15}]}});
        assert_eq!(
            with(&down, &mut history, 8, 3),
            (5, "ScaleDownStabilized", "DesiredWithinRange")
        );
    }
}
