//! Asks each metric of an autoscaler how many replicas it wants; the greatest number wins.

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerBehavior,
    HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client};

use super::metrics::Metrics;
use super::replicas::{PodTarget, Proposal, Tolerance, WholeTarget, for_pods, for_whole, ready_count};
use crate::quantity::{Notation, Quantity};

/// What the metrics come to.
pub(super) struct Evaluation {
    pub(super) replicas: i32,
    /// The metric that asks for so many, as people read it.
    pub(super) metric: String,
    pub(super) statuses: Vec<MetricStatus>,
    /// What is wrong with some of them, where the others suffice.
    pub(super) failure: Option<String>,
}

/// Why nothing could be computed.
pub(super) struct Failure {
    pub(super) reason: &'static str,
    /// The message of condition `ScalingActive`.
    pub(super) condition: String,
    /// What events say.
    pub(super) error: String,
}

/// One metric's answer.
struct Answer {
    replicas: i32,
    metric: String,
    status: MetricStatus,
}

/// What metrics are asked about.
struct Subject<'a> {
    metrics: Metrics<'a>,
    selector: &'a str,
    pods: Vec<Pod>,
    current: i32,
    status: i32,
    tolerance: Tolerance,
    now: Timestamp,
}

pub(super) async fn evaluate(
    client: &Client,
    namespace: &str,
    spec: &HorizontalPodAutoscalerSpec,
    scale: &Scale,
    now: Timestamp,
) -> Result<Evaluation, Failure> {
    let invalid_selector = |condition: &str, error: &str| Failure {
        reason: "InvalidSelector",
        condition: condition.to_owned(),
        error: error.to_owned(),
    };
    let status = scale.status.as_ref();
    let selector = status
        .and_then(|status| status.selector.as_deref())
        .unwrap_or_default();
    if selector.is_empty() {
        let condition = "the HPA target's scale is missing a selector";
        return Err(invalid_selector(condition, "selector is required"));
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = api
        .list(&ListParams::default().labels(selector))
        .await
        .map_err(|error| {
            let why = format!("unable to get pods while calculating replica count: {error}");
            Failure {
                reason: "FailedGetResourceMetric",
                condition: format!("the HPA was unable to compute the replica count: {why}"),
                error: why,
            }
        })?;
    let subject = Subject {
        metrics: Metrics { client, namespace },
        selector,
        pods: pods.items,
        current: scale
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or_default(),
        status: status.map(|status| status.replicas).unwrap_or_default(),
        tolerance: tolerance(spec.behavior.as_ref()),
        now,
    };
    let specs = spec.metrics.as_deref().unwrap_or_default();
    let mut answers = Vec::with_capacity(specs.len());
    let mut failures = Vec::new();
    for metric in specs {
        match subject.ask(metric).await {
            Ok(answer) => answers.push(answer),
            Err(why) => failures.push(why),
        }
    }
    settle(answers, failures, subject.current)
}

/// Decides over the answers: fewer replicas are made only if every metric could be read.
fn settle(
    answers: Vec<Answer>,
    failures: Vec<(&'static str, String)>,
    current: i32,
) -> Result<Evaluation, Failure> {
    let all = answers.len() + failures.len();
    let greatest = answers.iter().max_by_key(|answer| answer.replicas);
    let failure = failures.first().map(|(reason, why)| {
        let invalid = failures.len();
        let error = format!("invalid metrics ({invalid} invalid out of {all}), first error is: {why}");
        (*reason, why.clone(), error)
    });
    match (greatest, failure) {
        (Some(greatest), failure) if failure.is_none() || greatest.replicas >= current => Ok(Evaluation {
            replicas: greatest.replicas,
            metric: greatest.metric.clone(),
            failure: failure.map(|(_, _, error)| error),
            statuses: answers.into_iter().map(|answer| answer.status).collect(),
        }),
        (_, Some((reason, why, error))) => Err(Failure {
            reason,
            condition: format!("the HPA was unable to compute the replica count: {why}"),
            error,
        }),
        (_, None) => Err(Failure {
            reason: "InvalidMetricSourceType",
            condition: "the HPA was unable to compute the replica count: no metric is given".to_owned(),
            error: "no metric is given".to_owned(),
        }),
    }
}

fn tolerance(behavior: Option<&HorizontalPodAutoscalerBehavior>) -> Tolerance {
    let default = Tolerance::default();
    let given = |text: Option<&ApiQuantity>, default| {
        let parsed = text.and_then(|text| text.0.parse::<Quantity>().ok());
        parsed.map_or(default, Quantity::as_f64)
    };
    let (up, down) = behavior.map_or((None, None), |behavior| {
        (behavior.scale_up.as_ref(), behavior.scale_down.as_ref())
    });
    Tolerance {
        down: given(down.and_then(|rules| rules.tolerance.as_ref()), default.down),
        up: given(up.and_then(|rules| rules.tolerance.as_ref()), default.up),
    }
}

fn milli(quantity: Option<&ApiQuantity>) -> Option<i64> {
    Some(quantity?.0.parse::<Quantity>().ok()?.milli_value())
}

fn printed(milli: i64, like: Option<&ApiQuantity>) -> ApiQuantity {
    let like = like.and_then(|like| like.0.parse::<Quantity>().ok());
    // Bytes stay readable as bytes.
    let quantity = match like.map(Quantity::notation) {
        Some(Notation::BinarySi) if milli % 1000 == 0 => Quantity::from_bytes(milli / 1000),
        _ => Quantity::from_millis(milli),
    };
    ApiQuantity(quantity.to_string())
}

fn current_of(proposal: Proposal, target: &MetricTarget) -> MetricValueStatus {
    let like = target.average_value.as_ref().or(target.value.as_ref());
    let whole = target.average_value.is_none() && target.value.is_some();
    let value = printed(proposal.value, like);
    MetricValueStatus {
        average_utilization: proposal.utilization,
        average_value: (!whole).then(|| value.clone()),
        value: whole.then_some(value),
    }
}

impl Subject<'_> {
    /// One metric's answer, or the condition's reason and what is wrong.
    async fn ask(&self, metric: &MetricSpec) -> Result<Answer, (&'static str, String)> {
        let mut status = MetricStatus {
            type_: metric.type_.clone(),
            ..MetricStatus::default()
        };
        let (proposal, name) = if let Some(source) = &metric.resource {
            let name = resource_name(&source.name, "resource", &source.target);
            let failed = |why| ("FailedGetResourceMetric", why);
            let proposal = self
                .resource(&source.name, None, &source.target)
                .await
                .map_err(failed)?;
            status.resource = Some(ResourceMetricStatus {
                name: source.name.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, name)
        } else if let Some(source) = &metric.container_resource {
            let name = resource_name(&source.name, "container resource", &source.target);
            let failed = |why| ("FailedGetContainerResourceMetric", why);
            let container = Some(source.container.as_str());
            let proposal = self
                .resource(&source.name, container, &source.target)
                .await
                .map_err(failed)?;
            status.container_resource = Some(ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, name)
        } else if let Some(source) = &metric.pods {
            let failed = |why| {
                (
                    "FailedGetPodsMetric",
                    format!("failed to get pods metric value: {why}"),
                )
            };
            let wanted = milli(source.target.average_value.as_ref()).unwrap_or_default();
            let samples = self.metrics.pods(&source.metric, self.selector).await;
            let samples = samples
                .map_err(|why| failed(format!("unable to get metric {}: {why}", source.metric.name)))?;
            let proposal = self
                .pods("", PodTarget::Average(wanted), samples)
                .map_err(failed)?;
            status.pods = Some(PodsMetricStatus {
                metric: source.metric.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, format!("pods metric {}", source.metric.name))
        } else if let Some(source) = &metric.object {
            let described = &source.described_object;
            let failed = |why| {
                (
                    "FailedGetObjectMetric",
                    format!(
                        "failed to get object metric value: unable to get metric {}: {why}",
                        source.metric.name
                    ),
                )
            };
            let value = self
                .metrics
                .object(described, &source.metric)
                .await
                .map_err(failed)?;
            let proposal = self.whole(&source.target, value);
            status.object = Some(ObjectMetricStatus {
                described_object: described.clone(),
                metric: source.metric.clone(),
                current: current_of(proposal, &source.target),
            });
            (
                proposal,
                format!("{} metric {}", described.kind, source.metric.name),
            )
        } else if let Some(source) = &metric.external {
            let failed = |why| {
                (
                    "FailedGetExternalMetric",
                    format!(
                        "failed to get {} external metric value: {why}",
                        source.metric.name
                    ),
                )
            };
            let value = self.metrics.external(&source.metric).await.map_err(failed)?;
            let proposal = self.whole(&source.target, value);
            status.external = Some(ExternalMetricStatus {
                metric: source.metric.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, format!("external metric {}", source.metric.name))
        } else {
            let why = format!("unknown metric source type {:?}", metric.type_);
            return Err(("InvalidMetricSourceType", why));
        };
        Ok(Answer {
            replicas: proposal.replicas,
            metric: name,
            status,
        })
    }

    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<Proposal, String> {
        let failed = |why: String| format!("failed to get {resource} utilization: {why}");
        let samples = self.metrics.resource(resource, self.selector, container).await;
        let samples =
            samples.map_err(|why| failed(format!("unable to get metrics for resource {resource}: {why}")))?;
        let target = match (milli(target.average_value.as_ref()), target.average_utilization) {
            (Some(value), _) => PodTarget::Average(value),
            (None, Some(percent)) => PodTarget::Utilization { percent, container },
            (None, None) => {
                return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".to_owned());
            }
        };
        self.pods(resource, target, samples).map_err(failed)
    }

    fn pods(
        &self,
        resource: &str,
        target: PodTarget<'_>,
        samples: super::replicas::Samples,
    ) -> Result<Proposal, String> {
        for_pods(
            self.current,
            resource,
            target,
            &self.pods,
            samples,
            self.tolerance,
            self.now,
        )
    }

    fn whole(&self, target: &MetricTarget, value: i64) -> Proposal {
        let wanted = match (milli(target.value.as_ref()), milli(target.average_value.as_ref())) {
            (Some(whole), None) => WholeTarget::Value(whole),
            (_, average) => WholeTarget::Average(average.unwrap_or_default()),
        };
        for_whole(
            self.current,
            self.status,
            ready_count(&self.pods),
            wanted,
            value,
            self.tolerance,
        )
    }
}

fn resource_name(resource: &str, noun: &str, target: &MetricTarget) -> String {
    if target.average_value.is_some() {
        format!("{resource} {noun}")
    } else {
        format!("{resource} {noun} utilization (percentage of request)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(replicas: i32) -> Answer {
        Answer {
            replicas,
            metric: format!("m{replicas}"),
            status: MetricStatus::default(),
        }
    }

    #[test]
    fn the_greatest_wish_wins_and_a_silent_metric_forbids_less() {
        let broken = || ("FailedGetResourceMetric", "why".to_owned());
        let both = settle(vec![answer(3), answer(5)], vec![], 4).ok().unwrap();
        assert_eq!(
            (both.replicas, both.metric.as_str(), both.failure),
            (5, "m5", None)
        );
        let more = settle(vec![answer(5)], vec![broken()], 4).ok().unwrap();
        let said = "invalid metrics (1 invalid out of 2), first error is: why";
        assert_eq!((more.replicas, more.failure.as_deref()), (5, Some(said)));
        let less = settle(vec![answer(3)], vec![broken()], 4).err().unwrap();
        assert_eq!(
            (less.reason, less.error.as_str()),
            ("FailedGetResourceMetric", said)
        );
        assert_eq!(
            less.condition,
            "the HPA was unable to compute the replica count: why"
        );
        assert!(settle(vec![], vec![broken()], 4).is_err());
    }
}
