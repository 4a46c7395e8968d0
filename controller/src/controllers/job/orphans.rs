//! Lets go of pods whose Job is gone: nobody will count them, and their finalizer would keep them for ever.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::{FINALIZER, KIND};
use crate::controllers::pod::PodView;
use crate::controllers::{Context, ControllerError, Outcome, is_conflict, is_not_found, spawn_workers};
use crate::informer::{ObjectKey, controller_of};
use crate::queue::{Backoff, Queue};

/// Whether a pod waits to be counted.
pub(super) fn is_tracked(pod: &PodView) -> bool {
    pod.metadata
        .finalizers
        .iter()
        .flatten()
        .any(|name| name == FINALIZER)
}

/// The Job of a pod by name and uid.
fn job_of(pod: &PodView) -> Option<(ObjectKey, String)> {
    let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == KIND)?;
    Some((ObjectKey::new(pod.namespace(), &owner.name), owner.uid.clone()))
}

pub(super) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let (keys, jobs) = (queue.clone(), context.jobs.clone());
    context.pods.subscribe(move |change| {
        let Some(pod) = change.new.filter(|pod| is_tracked(pod)) else {
            return;
        };
        let alive = job_of(pod).is_some_and(|(key, uid)| {
            let known = jobs.get(&key).and_then(|job| job.metadata.uid.clone());
            known.as_deref() == Some(uid.as_str())
        });
        if !alive {
            keys.add(ObjectKey::of(&pod.metadata));
        }
    });
    let (keys, pods) = (queue.clone(), context.pods.clone());
    context.jobs.subscribe(move |change| {
        let Some(job) = change.old.filter(|_| change.new.is_none()) else {
            return;
        };
        for pod in pods.owned_by(job.metadata.uid.as_deref().unwrap_or_default()) {
            if is_tracked(&pod) {
                keys.add(ObjectKey::of(&pod.metadata));
            }
        }
    });
    let waited = context.clone();
    let ready = async move {
        waited.jobs.wait_synced().await;
        waited.pods.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(context, "job-orphans", &queue, 1, ready, move |key| {
        let context = shared.clone();
        async move { let_go(&context, &key).await }
    });
}

async fn let_go(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(pod) = context.pods.get(key).filter(|pod| is_tracked(pod)) else {
        return Ok(None);
    };
    if let Some((job, uid)) = job_of(&pod) {
        // The copy of the Jobs may lag behind that of the pods.
        let api: Api<Job> = Api::namespaced(context.client.clone(), &job.namespace);
        match api.get(&job.name).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(uid.as_str()) => return Ok(None),
            Ok(_) => {}
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(ControllerError::api("get", format!("job {job}"))(error)),
        }
    }
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    // As it was seen: a pod that its Job has adopted meanwhile is to be counted again.
    let patch = json!({ "metadata": { "uid": pod.uid(), "resourceVersion": pod.metadata.resource_version,
        "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
    match api
        .patch(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
    {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(None),
        Err(error) => Err(ControllerError::api("release", format!("pod {key}"))(error)),
    }
}
