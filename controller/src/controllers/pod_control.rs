//! Makes and deletes the pods of a controller: in batches, with events, and with a note of what has not been seen yet.

use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource};
use serde_json::json;
use tracing::debug;

use super::events::Kind;
use super::expectations::Expectations;
use super::pod::PodView;
use super::subscribe::owner_key;
use super::{Context, ControllerError, create, is_not_found, is_terminating_namespace, said};
use crate::informer::{Change, ObjectKey};

/// The hand of one controller object on its pods. Who counts pods announces to [`Expectations`] what it is about to do.
pub(crate) struct PodControl<'a, K> {
    pub(crate) context: &'a Context,
    pub(crate) owner: &'a K,
    pub(crate) key: &'a ObjectKey,
    pub(crate) expectations: &'a Expectations,
    pub(crate) api: Api<Pod>,
}

impl<K: Resource<DynamicType = ()>> PodControl<'_, K> {
    /// Makes `count` pods, a few at first and then ever more at a time; what fails stops it.
    pub(crate) async fn create(
        &self,
        count: usize,
        make: impl Fn(usize) -> Pod,
    ) -> Result<(), ControllerError> {
        let recorder = &self.context.recorder;
        let done = slow_start(count, self.context.config.batch_concurrency, |at| {
            let pod = make(at);
            async move {
                let result = create(&self.context.client, &self.key.namespace, &pod).await;
                match &result {
                    Ok(name) => {
                        let message = format!("Created pod: {name}");
                        recorder.event(self.owner, Kind::Normal, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        self.expectations.creation_observed(self.key);
                        if !is_terminating_namespace(error) {
                            let message = format!("Error creating: {}", said(error));
                            recorder.event(self.owner, Kind::Warning, "FailedCreate", message);
                        }
                    }
                }
                let what = || format!("a pod of {}", self.key);
                result
                    .map(|_| ())
                    .map_err(|error| ControllerError::api("create", what())(error))
            }
        })
        .await;
        // Those that were not even tried will not be seen.
        for _ in done.tried..count {
            self.expectations.creation_observed(self.key);
        }
        debug!(tried = done.tried, failed = done.failed, "pods created");
        match done.first_error {
            Some(ControllerError::Api { source, .. }) if is_terminating_namespace(&source) => Ok(()),
            Some(source) => Err(ControllerError::Batch {
                failed: done.failed,
                tried: done.tried,
                source: Box::new(source),
            }),
            None => Ok(()),
        }
    }

    /// Deletes exactly these pods.
    pub(crate) async fn delete(&self, victims: &[Arc<PodView>]) -> Result<(), ControllerError> {
        let recorder = &self.context.recorder;
        let results: Vec<Result<(), ControllerError>> = stream::iter(victims.to_vec())
            .map(|pod: Arc<PodView>| async move {
                let result = delete_pod(&self.api, &pod, None).await;
                match &result {
                    Ok(()) => {
                        let message = format!("Deleted pod: {}", pod.name());
                        recorder.event(self.owner, Kind::Normal, "SuccessfulDelete", message);
                    }
                    Err(error) => {
                        self.expectations.deletion_observed(self.key, pod.uid());
                        let message = match error {
                            ControllerError::Api { source, .. } => {
                                format!("Error deleting: {}", said(source))
                            }
                            other => format!("Error deleting: {other}"),
                        };
                        recorder.event(self.owner, Kind::Warning, "FailedDelete", message);
                    }
                }
                result
            })
            .buffer_unordered(self.context.config.batch_concurrency)
            .collect()
            .await;
        let (tried, mut errors) = (results.len(), results.into_iter().filter_map(Result::err));
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(ControllerError::Batch {
                failed: errors.count() + 1,
                tried,
                source: Box::new(first),
            }),
        }
    }
}

/// A pod made from a template.
pub(crate) fn pod_of(
    template: &PodTemplateSpec,
    namespace: &str,
    prefix: &str,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Deletes exactly this pod, not a new one of its name. One that is gone already is a success.
pub(crate) async fn delete_pod(
    api: &Api<Pod>,
    pod: &PodView,
    grace: Option<u32>,
) -> Result<(), ControllerError> {
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod.name(), &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(ControllerError::api("delete", format!("pod {}", pod.name()))(
            error,
        )),
    }
}

/// Why a pod does not come to an end by itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Disruption {
    /// In a word.
    pub(crate) reason: &'static str,
    /// In a sentence.
    pub(crate) message: &'static str,
    /// Whether it counts as failed at once, because no node will ever say how it ended.
    pub(crate) failed: bool,
}

/// Says on a pod that it is disrupted: policies of Jobs tell such failures from others.
pub(crate) async fn disrupt(
    api: &Api<Pod>,
    pod: &PodView,
    disruption: Disruption,
) -> Result<(), ControllerError> {
    let mut patch = json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": [{
        "type": "DisruptionTarget", "status": "True", "reason": disruption.reason,
        "message": disruption.message, "lastTransitionTime": Time(Timestamp::now()),
    }] } });
    if disruption.failed {
        patch["status"]["phase"] = "Failed".into();
    }
    let params = PatchParams::default();
    match api
        .patch_status(pod.name(), &params, &Patch::Strategic(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(ControllerError::api("mark", format!("pod {}", pod.name()))(error)),
    }
}

/// Notes which expectations of owners of this kind a change fulfils; returns the owner before and after.
pub(crate) fn observe(
    expectations: &Expectations,
    kind: &str,
    change: &Change<'_, PodView>,
) -> [Option<ObjectKey>; 2] {
    let (old, new) = (change.old.map(|pod| &**pod), change.new.map(|pod| &**pod));
    let before = old.and_then(|pod| owner_key(pod, kind));
    let after = new.and_then(|pod| owner_key(pod, kind));
    // One that was there and is adopted is nobody's creation.
    if let Some(key) = &after
        && old.is_none()
    {
        expectations.creation_observed(key);
    }
    if let Some(key) = &before
        && after.as_ref() != Some(key)
    {
        expectations.deletion_observed(key, old.map(PodView::uid).unwrap_or_default());
    }
    if let Some(key) = &after
        && let Some(pod) = new.filter(|pod| pod.is_terminating())
    {
        expectations.deletion_observed(key, pod.uid());
    }
    [before, after]
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) tried: usize,
    pub(crate) failed: usize,
    pub(crate) first_error: Option<ControllerError>,
}

/// Calls `act` with 0, 1, 2 … up to `count` times, in batches of 1, 2, 4 …; stops after a batch in which one failed, so that
/// what cannot work is not tried hundreds of times.
pub(crate) async fn slow_start<F>(count: usize, concurrency: usize, act: impl Fn(usize) -> F) -> Batch
where
    F: Future<Output = Result<(), ControllerError>>,
{
    let mut batch = Batch::default();
    let mut size = 1;
    while batch.tried < count && batch.failed == 0 {
        let now = size.min(count - batch.tried);
        let results: Vec<_> = stream::iter(batch.tried..batch.tried + now)
            .map(&act)
            .buffer_unordered(concurrency)
            .collect()
            .await;
        batch.tried += now;
        for error in results.into_iter().filter_map(Result::err) {
            batch.failed += 1;
            batch.first_error.get_or_insert(error);
        }
        size *= 2;
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn slow_start_stops_at_the_first_bad_batch() {
        let calls = AtomicUsize::new(0);
        let batch = slow_start(100, 8, |at| {
            calls.fetch_add(1, Ordering::Relaxed);
            async move {
                if at == 4 {
                    return Err(ControllerError::Config("no".into()));
                }
                Ok(())
            }
        })
        .await;
        assert_eq!((batch.tried, batch.failed), (7, 1), "1 + 2 + 4");
        assert_eq!(calls.load(Ordering::Relaxed), 7);
        assert!(batch.first_error.is_some());
        let batch = slow_start(10, 8, |_| async { Ok(()) }).await;
        assert_eq!((batch.tried, batch.failed), (10, 0));
        assert_eq!(slow_start(0, 8, |_| async { Ok(()) }).await.tried, 0);
    }
}
