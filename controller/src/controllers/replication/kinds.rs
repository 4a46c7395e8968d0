//! The two kinds that keep a number of pods, seen as one.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{PodTemplateSpec, ReplicationController, ReplicationControllerCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::core::Selector;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::decide::{Failure, ReplicaStatus};
use crate::controllers::claim::strict;
use crate::informer::Cached;

/// A kind that keeps a number of pods.
pub trait Replicated:
    Cached
    + Clone
    + Debug
    + Serialize
    + DeserializeOwned
    + kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
{
    /// Name of its controller.
    const CONTROLLER: &'static str;

    /// How many pods are asked for.
    fn replicas(&self) -> i32;
    /// Which pods it may own; an empty selector is refused, it would take every pod.
    fn selector(&self) -> Result<Selector, String>;
    /// What its pods look like.
    fn template(&self) -> Option<&PodTemplateSpec>;
    /// How long a pod must be ready to be available.
    fn min_ready_seconds(&self) -> i32;
    /// The status as it is.
    fn status(&self) -> ReplicaStatus;
    /// Puts a status in.
    fn set_status(&mut self, status: &ReplicaStatus);
}

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// How a status is read and written: the two kinds have types of their own with the same fields.
macro_rules! status_as {
    ($condition:ident) => {
        fn status(&self) -> ReplicaStatus {
            let Some(status) = &self.status else {
                return ReplicaStatus::default();
            };
            ReplicaStatus {
                replicas: status.replicas,
                fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
                ready: status.ready_replicas.unwrap_or(0),
                available: status.available_replicas.unwrap_or(0),
                observed_generation: status.observed_generation.unwrap_or(0),
                failure: status
                    .conditions
                    .iter()
                    .flatten()
                    .find(|c| c.type_ == REPLICA_FAILURE)
                    .map(|c| Failure {
                        reason: c.reason.clone().unwrap_or_default(),
                        message: c.message.clone().unwrap_or_default(),
                        since: c.last_transition_time.as_ref().map(|time| time.0),
                    }),
            }
        }

        fn set_status(&mut self, fresh: &ReplicaStatus) {
            let status = self.status.get_or_insert_default();
            status.replicas = fresh.replicas;
            status.fully_labeled_replicas = Some(fresh.fully_labeled);
            status.ready_replicas = Some(fresh.ready);
            status.available_replicas = Some(fresh.available);
            status.observed_generation = Some(fresh.observed_generation);
            status
                .conditions
                .get_or_insert_default()
                .retain(|c| c.type_ != REPLICA_FAILURE);
            if let Some(failure) = &fresh.failure {
                status.conditions.get_or_insert_default().push($condition {
                    type_: REPLICA_FAILURE.into(),
                    status: "True".into(),
                    reason: Some(failure.reason.clone()),
                    message: Some(failure.message.clone()),
                    last_transition_time: failure.since.map(Time),
                });
            }
        }
    };
}

impl Replicated for ReplicaSet {
    const CONTROLLER: &'static str = "replicaset";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Result<Selector, String> {
        let spec = self.spec.as_ref();
        strict(spec.map(|spec| spec.selector.clone()).unwrap_or_default())
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0)
    }

    status_as!(ReplicaSetCondition);
}

impl Replicated for ReplicationController {
    const CONTROLLER: &'static str = "replicationcontroller";

    fn replicas(&self) -> i32 {
        self.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
    }

    fn selector(&self) -> Result<Selector, String> {
        let spec = self.spec.as_ref();
        let labels = spec
            .and_then(|spec| spec.selector.clone())
            .filter(|labels| !labels.is_empty());
        // Without a selector the template's labels are it.
        let labels = labels
            .or_else(|| self.template()?.metadata.as_ref()?.labels.clone())
            .unwrap_or_default();
        if labels.is_empty() {
            Err("spec.selector is empty".into())
        } else {
            Ok(labels.into_iter().collect())
        }
    }

    fn template(&self) -> Option<&PodTemplateSpec> {
        self.spec.as_ref()?.template.as_ref()
    }

    fn min_ready_seconds(&self) -> i32 {
        self.spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0)
    }

    status_as!(ReplicationControllerCondition);
}
