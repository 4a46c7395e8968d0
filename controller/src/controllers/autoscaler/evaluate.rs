//! Asks each metric of an autoscaler how many replicas it wants; the greatest number wins.

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerBehavior,
    HorizontalPodAutoscalerSpec, MetricSpec, MetricStatus, MetricTarget, MetricValueStatus,
    ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
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
}

/// Why nothing could be computed.
pub(super) struct Failure {
    pub(super) reason: &'static str,
    /// The message of condition `ScalingActive`.
    pub(super) condition: String,
    /// What the event about the whole says.
    pub(super) error: String,
}

/// Why a metric gives no answer.
#[derive(Debug)]
pub(super) struct Unread {
    /// The reason of the event and, if it stands in the way, of the condition.
    pub(super) reason: &'static str,
    /// What happened.
    pub(super) why: String,
    /// What was wanted, for the event about the whole.
    wanted: String,
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

/// Tells `unread` of each metric that gives no answer.
pub(super) async fn evaluate(
    client: &Client,
    namespace: &str,
    spec: &HorizontalPodAutoscalerSpec,
    scale: &Scale,
    now: Timestamp,
    unread: impl Fn(&Unread),
) -> Result<Evaluation, Failure> {
    let failed = |reason, condition: String, why: String| {
        let failure = Unread {
            reason,
            why,
            wanted: String::new(),
        };
        unread(&failure);
        Failure {
            reason,
            condition,
            error: failure.why,
        }
    };
    let status = scale.status.as_ref();
    let selector = status
        .and_then(|status| status.selector.as_deref())
        .unwrap_or_default();
    if selector.is_empty() {
        let condition = "the HPA target's scale is missing a selector".to_owned();
        let why = "selector is required".to_owned();
        return Err(failed("InvalidSelector", condition, why));
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = api.list(&ListParams::default().labels(selector)).await;
    let pods = pods.map_err(|error| {
        let why = format!("unable to get pods while calculating replica count: {error}");
        let condition = format!("the HPA was unable to compute the replica count: {why}");
        failed("FailedGetResourceMetric", condition, why)
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
            Err(failure) => {
                unread(&failure);
                failures.push(failure);
            }
        }
    }
    settle(answers, failures, subject.current)
}

/// Decides over the answers: fewer replicas are made only if every metric could be read.
fn settle(answers: Vec<Answer>, failures: Vec<Unread>, current: i32) -> Result<Evaluation, Failure> {
    let (invalid, all) = (failures.len(), answers.len() + failures.len());
    let greatest = answers.iter().max_by_key(|answer| answer.replicas);
    match (greatest, failures.into_iter().next()) {
        (Some(greatest), failure) if failure.is_none() || greatest.replicas >= current => Ok(Evaluation {
            replicas: greatest.replicas,
            metric: greatest.metric.clone(),
            statuses: answers.into_iter().map(|answer| answer.status).collect(),
        }),
        (_, Some(Unread { reason, why, wanted })) => Err(Failure {
            reason,
            condition: format!("the HPA was unable to compute the replica count: {why}"),
            error: format!(
                "invalid metrics ({invalid} invalid out of {all}), first error is: failed to get {wanted}: {why}"
            ),
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
    async fn ask(&self, metric: &MetricSpec) -> Result<Answer, Unread> {
        let unread = |reason, wanted: String| move |why| Unread { reason, why, wanted };
        let mut status = MetricStatus {
            type_: metric.type_.clone(),
            ..MetricStatus::default()
        };
        let (proposal, name) = if let Some(source) = &metric.resource {
            let name = resource_name(&source.name, "resource", &source.target);
            let wanted = format!("{} resource metric value", source.name);
            let proposal = self.resource(&source.name, None, &source.target).await;
            let proposal = proposal.map_err(unread("FailedGetResourceMetric", wanted))?;
            status.resource = Some(ResourceMetricStatus {
                name: source.name.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, name)
        } else if let Some(source) = &metric.container_resource {
            let name = resource_name(&source.name, "container resource", &source.target);
            let wanted = format!("{} container metric value", source.name);
            let container = Some(source.container.as_str());
            let proposal = self.resource(&source.name, container, &source.target).await;
            let proposal = proposal.map_err(unread("FailedGetContainerResourceMetric", wanted))?;
            status.container_resource = Some(ContainerResourceMetricStatus {
                name: source.name.clone(),
                container: source.container.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, name)
        } else if let Some(source) = &metric.pods {
            let wanted = milli(source.target.average_value.as_ref()).unwrap_or_default();
            let samples = self.metrics.pods(&source.metric, self.selector).await;
            let samples =
                samples.map_err(|why| format!("unable to get metric {}: {why}", source.metric.name));
            let proposal = samples.and_then(|samples| self.pods("", PodTarget::Average(wanted), samples));
            let wanted = "pods metric value".to_owned();
            let proposal = proposal.map_err(unread("FailedGetPodsMetric", wanted))?;
            status.pods = Some(PodsMetricStatus {
                metric: source.metric.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, format!("pods metric {}", source.metric.name))
        } else if let Some(source) = &metric.object {
            let described = &source.described_object;
            let value = self.metrics.object(described, &source.metric).await;
            // The order of words is Kubernetes'.
            let said = |why| {
                format!(
                    "unable to get metric {}: {} on {} {}/{why}",
                    source.metric.name, described.kind, self.metrics.namespace, described.name
                )
            };
            let wanted = "object metric value".to_owned();
            let value = value
                .map_err(said)
                .map_err(unread("FailedGetObjectMetric", wanted))?;
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
            let name = &source.metric.name;
            let value = self.metrics.external(&source.metric).await;
            let said = |why| {
                format!(
                    "unable to get external metric {}/{name}/{}: {why}",
                    self.metrics.namespace,
                    printed_selector(source.metric.selector.as_ref())
                )
            };
            let wanted = format!("{name} external metric value: failed to get {name} external metric");
            let value = value
                .map_err(said)
                .map_err(unread("FailedGetExternalMetric", wanted))?;
            let proposal = self.whole(&source.target, value);
            status.external = Some(ExternalMetricStatus {
                metric: source.metric.clone(),
                current: current_of(proposal, &source.target),
            });
            (proposal, format!("external metric {}", source.metric.name))
        } else {
            let why = format!("unknown metric source type {:?}", metric.type_);
            return Err(unread("InvalidMetricSourceType", "a metric".to_owned())(why));
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

/// A selector as Go prints it.
fn printed_selector(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else {
        return "nil".to_owned();
    };
    let labels = selector.match_labels.iter().flatten();
    let labels: Vec<_> = labels.map(|(key, value)| format!("{key}: {value},")).collect();
    let requirements = selector.match_expressions.iter().flatten();
    let requirements: Vec<_> = requirements
        .map(|requirement| {
            format!(
                "LabelSelectorRequirement{{Key:{},Operator:{},Values:[{}],}},",
                requirement.key,
                requirement.operator,
                requirement.values.as_deref().unwrap_or_default().join(" ")
            )
        })
        .collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{}}},MatchExpressions:[]LabelSelectorRequirement{{{}}},}}",
        labels.concat(),
        requirements.concat()
    )
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
        let broken = || Unread {
            reason: "FailedGetResourceMetric",
            why: "why".to_owned(),
            wanted: "cpu resource metric value".to_owned(),
        };
        let both = settle(vec![answer(3), answer(5)], vec![], 4).ok().unwrap();
        assert_eq!((both.replicas, both.metric.as_str()), (5, "m5"));
        let more = settle(vec![answer(5)], vec![broken()], 4).ok().unwrap();
        assert_eq!(more.replicas, 5);
        let said = "invalid metrics (1 invalid out of 2), first error is: failed to get cpu resource metric value: why";
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

    #[test]
    fn selectors_are_printed_as_go_prints_them() {
        assert_eq!(printed_selector(None), "nil");
        let selector = serde_json::from_value(serde_json::json!({
            "matchLabels": {"type": "prometheus"},
            "matchExpressions": [{"key": "a", "operator": "In", "values": ["b", "c"]}],
        }));
        assert_eq!(
            printed_selector(Some(&selector.unwrap())),
            "&LabelSelector{MatchLabels:map[string]string{type: prometheus,},MatchExpressions:[]LabelSelectorRequirement{\
             LabelSelectorRequirement{Key:a,Operator:In,Values:[b c],},},}"
        );
    }
}
