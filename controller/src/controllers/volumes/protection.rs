//! Keeps claims that pods use, and volumes that claims use, from being deleted.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::has_finalizer;
use crate::controllers::pod::PodView;
use crate::controllers::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::{IndexKey, ObjectKey};
use crate::queue::{Backoff, Queue};

/// Finalizer of claims.
pub(crate) const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
/// Finalizer of volumes.
pub(crate) const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";

/// What the protection of an object needs done.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Nothing,
    Add,
    Remove,
}

/// An object is protected from the start, and until nobody uses it.
fn step(meta: &ObjectMeta, finalizer: &str, used: bool) -> Step {
    match (meta.deletion_timestamp.is_some(), has_finalizer(meta, finalizer)) {
        (true, true) if !used => Step::Remove,
        (false, false) => Step::Add,
        _ => Step::Nothing,
    }
}

/// A pod keeps its claims from the time it has a node until it is gone.
fn uses(pod: &PodView) -> bool {
    pod.node.is_some()
}

pub(crate) fn start_volumes(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.volumes.subscribe(move |change| {
        if let Some(volume) = change.new {
            keys.add(ObjectKey::of(&volume.metadata));
        }
    });
    let volumes = context.volumes.clone();
    let ready = async move { volumes.wait_synced().await };
    let shared = context.clone();
    spawn_workers(
        context,
        "persistentvolume-protection",
        &queue,
        2,
        ready,
        move |key| {
            let context = shared.clone();
            async move { reconcile_volume(&context, &key).await }
        },
    );
}

pub(crate) fn start_claims(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.claims.subscribe(move |change| {
        if let Some(claim) = change.new {
            keys.add(ObjectKey::of(&claim.metadata));
        }
    });
    let keys = queue.clone();
    context.pods.subscribe(move |change| {
        if let (Some(pod), None) = (change.old, change.new) {
            let claims = pod.claims().iter();
            claims.for_each(|claim| keys.add(ObjectKey::new(pod.namespace(), claim)));
        }
    });
    let (claims, pods) = (context.claims.clone(), context.pods.clone());
    let ready = async move {
        claims.wait_synced().await;
        pods.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(
        context,
        "persistentvolumeclaim-protection",
        &queue,
        2,
        ready,
        move |key| {
            let context = shared.clone();
            async move { reconcile_claim(&context, &key).await }
        },
    );
}

async fn reconcile_volume(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(volume) = context.volumes.get(key) else {
        return Ok(None);
    };
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    let step = step(&volume.metadata, VOLUME_FINALIZER, phase == Some("Bound"));
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    write(&api, &volume.metadata, VOLUME_FINALIZER, &step).await
}

async fn reconcile_claim(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(claim) = context.claims.get(key) else {
        return Ok(None);
    };
    let users = context.pods.by_index(&IndexKey::Claim(key.clone()));
    let used = users.iter().any(|pod| uses(pod));
    let mut step = step(&claim.metadata, CLAIM_FINALIZER, used);
    if step == Step::Remove && is_used(context, key).await? {
        // The local copy lags: a pod that uses it has got its node meanwhile, or changes soon.
        step = Step::Nothing;
    }
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
    write(&api, &claim.metadata, CLAIM_FINALIZER, &step).await
}

/// Asks the API whether a pod uses a claim.
async fn is_used(context: &Context, key: &ObjectKey) -> Result<bool, ControllerError> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let pods = api
        .list(&ListParams::default())
        .await
        .map_err(ControllerError::api(
            "list",
            format!("pods of namespace {}", key.namespace),
        ))?;
    Ok(pods
        .items
        .into_iter()
        .map(PodView::from)
        .any(|pod| uses(&pod) && pod.claims().iter().any(|claim| **claim == *key.name)))
}

async fn write<K>(api: &Api<K>, meta: &ObjectMeta, finalizer: &str, step: &Step) -> Outcome
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    match step {
        Step::Nothing => return Ok(None),
        Step::Add => finalizers.push(finalizer.to_owned()),
        Step::Remove => finalizers.retain(|found| found != finalizer),
    }
    let name = meta.name.as_deref().unwrap_or_default();
    let patch = json!({"metadata": {"resourceVersion": meta.resource_version, "finalizers": finalizers}});
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(None),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(ControllerError::api(
            "update",
            format!("the finalizers of {name}"),
        )(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_stays() {
        let meta = |deleted: bool, protected: bool| -> ObjectMeta {
            serde_json::from_value(json!({
                "deletionTimestamp": deleted.then_some("2030-01-01T00:00:00Z"),
                "finalizers": protected.then_some([CLAIM_FINALIZER]),
            }))
            .unwrap()
        };
        let step = |deleted, protected, used| step(&meta(deleted, protected), CLAIM_FINALIZER, used);
        assert_eq!(step(false, false, false), Step::Add);
        assert_eq!(step(false, true, true), Step::Nothing);
        assert_eq!(step(true, true, true), Step::Nothing);
        assert_eq!(step(true, true, false), Step::Remove);
        assert_eq!(step(true, false, false), Step::Nothing);
    }
}
