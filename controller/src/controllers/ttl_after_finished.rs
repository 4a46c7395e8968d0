//! Deletes Jobs some time after they are over, if they say so.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tracing::info;

use super::job::decide::finished_at;
use super::{Context, ControllerError, Outcome, is_conflict, is_not_found, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// How long a Job has left, once it is over; `None` if it may stay.
fn left(job: &Job, now: Timestamp) -> Option<Duration> {
    let seconds = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = finished_at(job.status.as_ref()?)?;
    let left = SignedDuration::from_secs(seconds.into()) - now.duration_since(end);
    Some(Duration::try_from(left).unwrap_or(Duration::ZERO))
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.jobs.subscribe(move |change| {
        if let Some(job) = change.new.filter(|job| left(job, Timestamp::now()).is_some()) {
            keys.add(ObjectKey::of(&job.metadata));
        }
    });
    let jobs = context.jobs.clone();
    let ready = async move { jobs.wait_synced().await };
    let shared = context.clone();
    spawn_workers(context, "ttl-after-finished", &queue, 1, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key).await }
    });
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
    // Fresh: the time may have been changed a moment ago.
    let job = match api.get(&key.name).await {
        Ok(job) => job,
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("get", format!("job {key}"))(error)),
    };
    match left(&job, Timestamp::now()) {
        None => return Ok(None),
        Some(left) if !left.is_zero() => return Ok(Some(left)),
        Some(_) => {}
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: job.metadata.uid,
            resource_version: job.metadata.resource_version,
        }),
        ..DeleteParams::foreground()
    };
    match api.delete(&key.name, &params).await {
        Ok(_) => {
            info!(job = %key, "deleted: its time after its end is up");
            Ok(None)
        }
        Err(error) if is_not_found(&error) => Ok(None),
        // It changed; the event brings it back.
        Err(error) if is_conflict(&error) => Ok(None),
        Err(error) => Err(ControllerError::api("delete", format!("job {key}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_time_runs_from_the_end() {
        let job = |status: serde_json::Value| -> Job {
            serde_json::from_value(
                json!({ "spec": { "template": {}, "ttlSecondsAfterFinished": 60 }, "status": status }),
            )
            .unwrap()
        };
        let now: Timestamp = "2030-01-01T00:01:30Z".parse().unwrap();
        let over = json!({ "conditions": [
            { "type": "Failed", "status": "True", "lastTransitionTime": "2030-01-01T00:00:40Z" }] });
        assert_eq!(left(&job(over.clone()), now), Some(Duration::from_secs(10)));
        assert_eq!(
            left(&job(over.clone()), now + SignedDuration::from_secs(11)),
            Some(Duration::ZERO)
        );
        assert_eq!(left(&job(json!({})), now), None);
        let mut lasting = job(over);
        lasting.spec.as_mut().unwrap().ttl_seconds_after_finished = None;
        assert_eq!(left(&lasting, now), None);
    }
}
