//! Scales workloads to what their metrics ask for, through the scale subresource.
//!
//! Every autoscaler is looked at once in a period: read the scale, the pods and the metrics; decide purely; write the scale, then
//! the status, whose conditions say what was found and what stood in the way.

pub(crate) mod behavior;
mod evaluate;
mod metrics;
pub(crate) mod replicas;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus, MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;

use self::behavior::{Bounds, History, normalize};
use self::evaluate::{Evaluation, Failure, Unread};
use super::events::Kind;
use super::scale::{Scales, Target};
use super::{Context, ControllerError, Outcome, chain, spawn_workers, write_status};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

struct Autoscaler {
    context: Arc<Context>,
    scales: Scales,
    /// What has been recommended and done; lost with the process, as in Kubernetes.
    histories: Mutex<HashMap<ObjectKey, History>>,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let autoscaler = Arc::new(Autoscaler {
        context: context.clone(),
        scales: Scales::new(context.client.clone()),
        histories: Mutex::default(),
    });
    let keys = queue.clone();
    context.autoscalers.subscribe(move |change| {
        // Its own status is no reason to look again.
        let key = change.latest().map(|object| ObjectKey::of(&object.metadata));
        let same = match (change.old, change.new) {
            (Some(old), Some(new)) => old.spec == new.spec && old.metadata.uid == new.metadata.uid,
            _ => false,
        };
        if let Some(key) = key.filter(|_| !same) {
            keys.add(key);
        }
    });
    let store = context.autoscalers.clone();
    let ready = async move { store.wait_synced().await };
    spawn_workers(
        context,
        "horizontal-pod-autoscaler",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let autoscaler = autoscaler.clone();
            async move { autoscaler.reconcile(&key).await }
        },
    );
}

/// What a look at an autoscaler finds, to become its status.
struct Findings {
    conditions: Vec<HorizontalPodAutoscalerCondition>,
    current: i32,
    desired: i32,
    metrics: Vec<MetricStatus>,
    rescaled: bool,
}

impl Findings {
    fn of(autoscaler: &HorizontalPodAutoscaler) -> Self {
        let status = autoscaler.status.clone().unwrap_or_default();
        Self {
            conditions: status.conditions.unwrap_or_default(),
            current: status.current_replicas.unwrap_or_default(),
            desired: status.desired_replicas,
            metrics: status.current_metrics.unwrap_or_default(),
            rescaled: false,
        }
    }

    fn set(&mut self, kind: &str, state: bool, (reason, message): (&str, &str), now: Timestamp) {
        let state = if state { "True" } else { "False" };
        let before = self
            .conditions
            .iter()
            .position(|condition| condition.type_ == kind);
        let since = before
            .map(|index| &self.conditions[index])
            .filter(|condition| condition.status == state)
            .and_then(|condition| condition.last_transition_time.clone());
        let fresh = HorizontalPodAutoscalerCondition {
            type_: kind.to_owned(),
            status: state.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: since.or(Some(Time(now))),
        };
        match before {
            Some(index) => self.conditions[index] = fresh,
            None => self.conditions.push(fresh),
        }
    }

    fn status(self, autoscaler: &HorizontalPodAutoscaler, now: Timestamp) -> HorizontalPodAutoscalerStatus {
        let before = autoscaler
            .status
            .as_ref()
            .and_then(|status| status.last_scale_time.clone());
        HorizontalPodAutoscalerStatus {
            conditions: Some(self.conditions),
            current_metrics: (!self.metrics.is_empty()).then_some(self.metrics),
            current_replicas: Some(self.current),
            desired_replicas: self.desired,
            last_scale_time: if self.rescaled { Some(Time(now)) } else { before },
            observed_generation: autoscaler.metadata.generation,
        }
    }
}

const ABLE: &str = "AbleToScale";
const ACTIVE: &str = "ScalingActive";
const LIMITED: &str = "ScalingLimited";

impl Autoscaler {
    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(autoscaler) = self.context.autoscalers.get(key) else {
            self.histories().remove(key);
            return Ok(None);
        };
        let now = Timestamp::now();
        let mut findings = Findings::of(&autoscaler);
        let done = self.look(key, &autoscaler, &mut findings, now).await;
        self.write(key, &autoscaler, findings.status(&autoscaler, now))
            .await?;
        // What cannot be done now is tried again in the next period, not hotly.
        if let Err(error) = done {
            tracing::debug!(error = %chain(&error), autoscaler = %key, "not scaled");
        }
        Ok(Some(self.context.config.autoscaler_period))
    }

    fn histories(&self) -> std::sync::MutexGuard<'_, HashMap<ObjectKey, History>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, autoscaler: &HorizontalPodAutoscaler, reason: &'static str, message: String) {
        self.context
            .recorder
            .event(autoscaler, Kind::Warning, reason, message);
    }

    async fn look(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        findings: &mut Findings,
        now: Timestamp,
    ) -> Result<(), ControllerError> {
        let spec = autoscaler.spec.clone().unwrap_or_default();
        let target = Target {
            api_version: spec
                .scale_target_ref
                .api_version
                .clone()
                .unwrap_or_else(|| "v1".to_owned()),
            kind: spec.scale_target_ref.kind.clone(),
            name: spec.scale_target_ref.name.clone(),
        };
        let scale = match self.scales.get(&key.namespace, &target).await {
            Ok(Some(scale)) => Ok(scale),
            Ok(None) => Err(ControllerError::Invalid {
                what: format!("{} {}/{}", target.kind, key.namespace, target.name),
                why: "not found".to_owned(),
            }),
            Err(error) => Err(error),
        };
        let mut scale = scale.inspect_err(|error| {
            let why = chain(error);
            self.warn(autoscaler, "FailedGetScale", why.clone());
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            findings.set(ABLE, false, ("FailedGetScale", &message), now);
        })?;
        let found = "the HPA controller was able to get the target's current scale";
        findings.set(ABLE, true, ("SucceededGetScale", found), now);
        let current = scale
            .spec
            .as_ref()
            .and_then(|spec| spec.replicas)
            .unwrap_or_default();
        findings.current = current;
        // What ran before this controller did is a recommendation, too: its first look shrinks nothing.
        self.histories()
            .entry(key.clone())
            .or_insert_with(|| History::since_now(current, now));
        let bounds = Bounds {
            least: spec.min_replicas.unwrap_or(1),
            most: spec.max_replicas,
        };
        let (desired, why) = if current == 0 && bounds.least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            findings.set(ACTIVE, false, ("ScalingDisabled", message), now);
            findings.desired = 0;
            return Ok(());
        } else if current > bounds.most {
            (
                bounds.most,
                "Current number of replicas above Spec.MaxReplicas".to_owned(),
            )
        } else if current < bounds.least {
            (
                bounds.least,
                "Current number of replicas below Spec.MinReplicas".to_owned(),
            )
        } else {
            self.decide(key, autoscaler, &scale, current, bounds, findings, now)
                .await?
        };
        findings.desired = desired;
        if desired == current {
            return Ok(());
        }
        scale.spec.get_or_insert_default().replicas = Some(desired);
        if let Err(error) = self.scales.set(&key.namespace, &target, &scale).await {
            let failed = chain(&error);
            let message = format!("New size: {desired}; reason: {why}; error: {failed}");
            self.warn(autoscaler, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {failed}");
            findings.set(ABLE, false, ("FailedUpdateScale", &message), now);
            findings.desired = current;
            return Err(error);
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        findings.set(ABLE, true, ("SucceededRescale", &message), now);
        findings.rescaled = true;
        let message = format!("New size: {desired}; reason: {why}");
        self.context
            .recorder
            .event(autoscaler, Kind::Normal, "SuccessfulRescale", message);
        self.histories()
            .entry(key.clone())
            .or_default()
            .changed(desired - current, now);
        Ok(())
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "they are the parts of one look at one autoscaler"
    )]
    async fn decide(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        current: i32,
        bounds: Bounds,
        findings: &mut Findings,
        now: Timestamp,
    ) -> Result<(i32, String), ControllerError> {
        let spec = autoscaler.spec.clone().unwrap_or_default();
        let unread = |unread: &Unread| self.warn(autoscaler, unread.reason, unread.why.clone());
        let client = &self.context.client;
        let evaluated = evaluate::evaluate(client, &key.namespace, &spec, scale, now, unread).await;
        let Evaluation {
            replicas,
            metric,
            statuses,
        } = match evaluated {
            Ok(evaluation) => evaluation,
            Err(Failure {
                reason,
                condition,
                error,
            }) => {
                findings.set(ACTIVE, false, (reason, &condition), now);
                let message = format!(
                    "failed to compute desired number of replicas based on listed metrics for {}: {error}",
                    referent(&spec, &key.namespace)
                );
                self.warn(autoscaler, "FailedComputeMetricsReplicas", error);
                findings.desired = current;
                findings.metrics = Vec::new();
                return Err(ControllerError::Invalid {
                    what: format!("autoscaler {key}"),
                    why: message,
                });
            }
        };
        let found = format!("the HPA was able to successfully calculate a replica count from {metric}");
        findings.set(ACTIVE, true, ("ValidMetricFound", &found), now);
        findings.metrics = statuses;
        let normal = {
            let mut histories = self.histories();
            let history = histories.entry(key.clone()).or_default();
            normalize(spec.behavior.as_ref(), history, current, replicas, bounds, now)
        };
        findings.set(ABLE, true, normal.able, now);
        let (limited, why) = normal.limited;
        findings.set(LIMITED, limited, why, now);
        let why = if replicas > current {
            format!("{metric} above target")
        } else {
            "All metrics below target".to_owned()
        };
        Ok((normal.replicas, why))
    }

    async fn write(
        &self,
        key: &ObjectKey,
        autoscaler: &HorizontalPodAutoscaler,
        status: HorizontalPodAutoscalerStatus,
    ) -> Result<(), ControllerError> {
        if autoscaler.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let mut changed = autoscaler.clone();
        changed.status = Some(status);
        let api: Api<HorizontalPodAutoscaler> = Api::namespaced(self.context.client.clone(), &key.namespace);
        write_status(&api, &changed).await.map(drop)
    }
}

fn referent(
    spec: &k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerSpec,
    namespace: &str,
) -> String {
    let target = &spec.scale_target_ref;
    format!("{}/{namespace}/{}", target.kind, target.name)
}
