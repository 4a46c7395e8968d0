//! How many replicas a metric asks for: without any IO.
//!
//! Pods that say nothing, or are not ready, are taken for what makes the least change: idle when there is to be more, busy when
//! there is to be less.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use crate::quantity::Quantity;

/// A pod's CPU counts only some time after its start, because starting is work.
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_mins(5);
/// A pod that was not ready by then has never been.
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// A pod's value of a metric, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) value: i64,
    pub(crate) at: Timestamp,
    pub(crate) window: SignedDuration,
}

/// Samples by the name of their pod.
pub(crate) type Samples = BTreeMap<String, Sample>;

/// How far from its target a metric may be without any consequence.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tolerance {
    pub(crate) down: f64,
    pub(crate) up: f64,
}

impl Default for Tolerance {
    fn default() -> Self {
        Self { down: 0.1, up: 0.1 }
    }
}

impl Tolerance {
    fn holds(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a metric asks for, and its current value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Proposal {
    pub(crate) replicas: i32,
    /// Percent of the request, where the target is one.
    pub(crate) utilization: Option<i32>,
    /// Thousandths, the average over pods or the whole.
    pub(crate) value: i64,
}

/// The pods by what their samples are worth.
#[derive(Debug, Default)]
struct Groups {
    ready: usize,
    unready: BTreeSet<String>,
    missing: BTreeSet<String>,
    ignored: BTreeSet<String>,
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

fn group(pods: &[Pod], samples: &Samples, resource: &str, now: Timestamp) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let status = pod.status.as_ref();
        let phase = status
            .and_then(|status| status.phase.as_deref())
            .unwrap_or_default();
        let own = name(pod).to_owned();
        if pod.metadata.deletion_timestamp.is_some() || phase == "Failed" {
            groups.ignored.insert(own);
        } else if phase == "Pending" {
            groups.unready.insert(own);
        } else {
            match samples.get(&own) {
                None => _ = groups.missing.insert(own),
                Some(sample) if resource == "cpu" && is_unready(pod, sample, now) => {
                    groups.unready.insert(own);
                }
                Some(_) => groups.ready += 1,
            }
        }
    }
    groups
}

fn is_unready(pod: &Pod, sample: &Sample, now: Timestamp) -> bool {
    let status = pod.status.as_ref();
    let condition = status.and_then(|status| status.conditions.iter().flatten().find(|c| c.type_ == "Ready"));
    let started = status.and_then(|status| status.start_time.as_ref());
    let (Some(condition), Some(started)) = (condition, started) else {
        return true;
    };
    let changed = condition
        .last_transition_time
        .as_ref()
        .map_or(started.0, |time| time.0);
    let not_ready = condition.status == "False";
    if started.0 + CPU_INITIALIZATION > now {
        not_ready || sample.at < changed + sample.window
    } else {
        not_ready && started.0 + INITIAL_READINESS > changed
    }
}

/// What is asked of a metric of pods.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PodTarget<'a> {
    /// Percent of what the pods request, of one container or of all.
    Utilization {
        percent: i32,
        container: Option<&'a str>,
    },
    /// Thousandths for each pod.
    Average(i64),
}

/// The replicas that a metric of each pod asks for.
pub(crate) fn for_pods(
    current: i32,
    resource: &str,
    target: PodTarget<'_>,
    pods: &[Pod],
    mut samples: Samples,
    tolerance: Tolerance,
    now: Timestamp,
) -> Result<Proposal, String> {
    if pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let groups = group(pods, &samples, resource, now);
    samples.retain(|pod, _| !groups.ignored.contains(pod) && !groups.unready.contains(pod));
    if samples.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = match target {
        PodTarget::Utilization { container, .. } => requests(pods, resource, container)?,
        PodTarget::Average(_) => BTreeMap::new(),
    };
    let (ratio, mut proposal) = measure(target, &samples, &requests)?;
    let more_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    proposal.replicas = current;
    if !more_with_unready && groups.missing.is_empty() {
        if !tolerance.holds(ratio) {
            proposal.replicas = ceil(ratio * count(groups.ready));
        }
        return Ok(proposal);
    }
    let blank = |value: i64| Sample {
        value,
        at: now,
        window: SignedDuration::ZERO,
    };
    for pod in &groups.missing {
        let value = match target {
            _ if ratio > 1.0 => 0,
            _ if (ratio - 1.0).abs() < f64::EPSILON => continue,
            PodTarget::Utilization { percent, .. } => {
                requests.get(pod).copied().unwrap_or_default() * i64::from(percent.max(100)) / 100
            }
            PodTarget::Average(value) => value,
        };
        samples.insert(pod.clone(), blank(value));
    }
    if more_with_unready {
        samples.extend(groups.unready.iter().map(|pod| (pod.clone(), blank(0))));
    }
    let (again, _) = measure(target, &samples, &requests)?;
    let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
    if tolerance.holds(again) || turned {
        return Ok(proposal);
    }
    let replicas = ceil(again * count(samples.len()));
    let backwards = (again < 1.0 && replicas > current) || (again > 1.0 && replicas < current);
    if !backwards {
        proposal.replicas = replicas;
    }
    Ok(proposal)
}

/// How the samples stand to the target.
fn measure(
    target: PodTarget<'_>,
    samples: &Samples,
    requests: &BTreeMap<String, i64>,
) -> Result<(f64, Proposal), String> {
    let many = i64::try_from(samples.len()).unwrap_or(i64::MAX);
    match target {
        PodTarget::Average(wanted) => {
            let sum: i64 = samples.values().map(|sample| sample.value).sum();
            let value = sum / many;
            let proposal = Proposal {
                replicas: 0,
                utilization: None,
                value,
            };
            Ok((float(value) / float(wanted), proposal))
        }
        PodTarget::Utilization { percent, .. } => {
            let known = samples
                .iter()
                .filter_map(|(pod, sample)| Some((sample.value, *requests.get(pod)?)));
            let (mut used, mut requested, mut pods) = (0, 0, 0);
            for (value, request) in known {
                used += value;
                requested += request;
                pods += 1;
            }
            if requested == 0 {
                return Err("no metrics returned matched known pods".to_owned());
            }
            let utilization = i32::try_from(used * 100 / requested).unwrap_or(i32::MAX);
            let proposal = Proposal {
                replicas: 0,
                utilization: Some(utilization),
                value: used / pods,
            };
            Ok((f64::from(utilization) / f64::from(percent), proposal))
        }
    }
}

/// What the pods request of a resource, in thousandths; all of their containers must say so.
fn requests(pods: &[Pod], resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
    let mut requests = BTreeMap::new();
    for pod in pods {
        let spec = pod.spec.iter();
        let sidecars = spec
            .clone()
            .flat_map(|spec| spec.init_containers.iter().flatten());
        let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
        let containers = spec.flat_map(|spec| &spec.containers).chain(sidecars);
        let mut sum = 0;
        for own in containers.filter(|own| container.is_none_or(|name| own.name == name)) {
            let requested = own
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.as_ref()?.get(resource));
            let Some(requested) = requested.and_then(|text| text.0.parse::<Quantity>().ok()) else {
                return Err(format!(
                    "missing request for {resource} in container {} of Pod {}",
                    own.name,
                    name(pod)
                ));
            };
            sum += requested.milli_value();
        }
        requests.insert(name(pod).to_owned(), sum);
    }
    Ok(requests)
}

/// What is asked of a metric that is not the pods'.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WholeTarget {
    /// Thousandths altogether.
    Value(i64),
    /// Thousandths for each pod.
    Average(i64),
}

/// The replicas that a metric of something else asks for; `value` in thousandths.
pub(crate) fn for_whole(
    current: i32,
    status: i32,
    ready: usize,
    target: WholeTarget,
    value: i64,
    tolerance: Tolerance,
) -> Proposal {
    let (ratio, wanted, shown) = match target {
        WholeTarget::Value(target) => {
            let ratio = float(value) / float(target);
            let pods = if current == 0 { 1.0 } else { count(ready) };
            (ratio, ratio * pods, value)
        }
        WholeTarget::Average(target) => {
            let each = float(target) * f64::from(status);
            let shown = if status > 0 {
                value / i64::from(status)
            } else {
                value
            };
            (float(value) / each, float(value) / float(target), shown)
        }
    };
    let replicas = if tolerance.holds(ratio) {
        current
    } else {
        ceil(wanted)
    };
    Proposal {
        replicas,
        utilization: None,
        value: shown,
    }
}

/// Pods that run and are ready.
pub(crate) fn ready_count(pods: &[Pod]) -> usize {
    let ready = |pod: &&Pod| {
        let status = pod.status.as_ref();
        let running = status.is_some_and(|status| status.phase.as_deref() == Some("Running"));
        let conditions = status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten());
        running
            && conditions
                .into_iter()
                .any(|c| c.type_ == "Ready" && c.status == "True")
    };
    pods.iter().filter(ready).count()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a ratio needs no more than a float has"
)]
fn float(value: i64) -> f64 {
    value as f64
}

#[expect(clippy::cast_precision_loss, reason = "nobody has 2^52 pods")]
fn count(pods: usize) -> f64 {
    pods as f64
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the cast saturates, and bounds follow"
)]
fn ceil(value: f64) -> i32 {
    value.ceil() as i32
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2025-01-01T01:00:00Z".parse().unwrap()
    }

    fn pod(name: &str, phase: &str, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": phase, "startTime": "2025-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2025-01-01T00:00:10Z"}]},
        }))
        .unwrap()
    }

    fn samples(values: &[(&str, i64)]) -> Samples {
        let sample = |value| Sample {
            value,
            at: now(),
            window: SignedDuration::from_secs(30),
        };
        values
            .iter()
            .map(|(name, value)| ((*name).to_owned(), sample(*value)))
            .collect()
    }

    fn cpu(current: i32, percent: i32, pods: &[Pod], values: &[(&str, i64)]) -> Result<i32, String> {
        let target = PodTarget::Utilization {
            percent,
            container: None,
        };
        let proposal = for_pods(
            current,
            "cpu",
            target,
            pods,
            samples(values),
            Tolerance::default(),
            now(),
        )?;
        Ok(proposal.replicas)
    }

    fn running(names: &[&str]) -> Vec<Pod> {
        names.iter().map(|name| pod(name, "Running", "True")).collect()
    }

    #[test]
    fn utilisation_asks_for_its_share() {
        let three = running(&["a", "b", "c"]);
        assert_eq!(cpu(3, 30, &three, &[("a", 300), ("b", 500), ("c", 700)]), Ok(5));
        assert_eq!(cpu(3, 50, &three, &[("a", 100), ("b", 300), ("c", 500)]), Ok(2));
        assert_eq!(
            cpu(3, 100, &three, &[("a", 1010), ("b", 1030), ("c", 1020)]),
            Ok(3),
            "within tolerance"
        );
        let target = PodTarget::Utilization {
            percent: 50,
            container: Some("c"),
        };
        let proposal = for_pods(
            1,
            "cpu",
            target,
            &running(&["a"]),
            samples(&[("a", 800)]),
            Tolerance::default(),
            now(),
        );
        assert_eq!(
            proposal,
            Ok(Proposal {
                replicas: 2,
                utilization: Some(80),
                value: 800
            })
        );
    }

    #[test]
    fn silent_pods_make_no_great_change() {
        let four = running(&["a", "b", "c", "d"]);
        // Up: the silent pod counts as idle. Down: it counts as busy.
        assert_eq!(cpu(4, 60, &four, &[("a", 1000), ("b", 1000), ("c", 1000)]), Ok(5));
        assert_eq!(cpu(4, 100, &four, &[("a", 100), ("b", 100), ("c", 100)]), Ok(2));
        assert_eq!(
            cpu(4, 90, &four, &[("a", 1000), ("b", 1000), ("c", 1000)]),
            Ok(4),
            "the change would turn round"
        );
        let mut some = running(&["a", "b"]);
        some.push(pod("c", "Pending", "False"));
        assert_eq!(
            cpu(3, 30, &some, &[("a", 600), ("b", 600)]),
            Ok(4),
            "pending pods count as idle on the way up"
        );
        some.push(pod("d", "Failed", "False"));
        assert_eq!(
            cpu(3, 30, &some, &[("a", 600), ("b", 600), ("d", 9000)]),
            Ok(4),
            "failed ones do not count"
        );
    }

    #[test]
    fn what_cannot_be_computed_is_said_in_kubernetes_words() {
        let one = running(&["a"]);
        assert_eq!(
            cpu(1, 30, &one, &[]).unwrap_err(),
            "did not receive metrics for targeted pods (pods might be unready)"
        );
        assert_eq!(
            cpu(1, 30, &[], &[]).unwrap_err(),
            "no pods returned by selector while calculating replica count"
        );
        let mut bare = one;
        bare[0].spec.as_mut().unwrap().containers[0].resources = None;
        assert_eq!(
            cpu(1, 30, &bare, &[("a", 1)]).unwrap_err(),
            "missing request for cpu in container c of Pod a"
        );
        let never = vec![pod("a", "Running", "False")];
        assert!(
            cpu(1, 30, &never, &[("a", 100)]).is_err(),
            "it has never been ready"
        );
    }

    #[test]
    fn averages_and_wholes_ask_for_their_share() {
        let average = |target, values: &[(&str, i64)]| {
            let pods = running(&["a", "b"]);
            for_pods(
                2,
                "",
                PodTarget::Average(target),
                &pods,
                samples(values),
                Tolerance::default(),
                now(),
            )
            .map(|p| p.replicas)
        };
        assert_eq!(average(10_000, &[("a", 20_000), ("b", 30_000)]), Ok(5));
        assert_eq!(average(10_000, &[("a", 10_000), ("b", 10_500)]), Ok(2));
        let whole = |target, value| for_whole(2, 2, 2, target, value, Tolerance::default()).replicas;
        assert_eq!(whole(WholeTarget::Value(100), 250), 5);
        assert_eq!(whole(WholeTarget::Value(100), 105), 2);
        assert_eq!(whole(WholeTarget::Average(100), 500), 5);
        assert_eq!(whole(WholeTarget::Average(100), 210), 2);
    }
}
