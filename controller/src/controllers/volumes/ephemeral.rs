//! Makes the claims of volumes that are one pod's alone (`ephemeral`). They go with the pod, which owns them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimTemplate, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use crate::controllers::claim::controller_reference;
use crate::controllers::events::Kind;
use crate::controllers::pod::PodView;
use crate::controllers::{Context, ControllerError, Outcome, is_conflict, is_not_found, said, spawn_workers};
use crate::informer::{IndexKey, ObjectKey, controller_of};
use crate::queue::{Backoff, Queue};

/// Whether the pod may have such volumes: their claims have names made of the pod's.
fn concerns(pod: &PodView) -> bool {
    let of_pod = |claim: &String| {
        let rest = claim.strip_prefix(pod.name());
        rest.is_some_and(|rest| rest.starts_with('-'))
    };
    !pod.is_terminating() && !pod.is_finished() && pod.claims().iter().any(of_pod)
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.pods.subscribe(move |change| {
        if let (None, Some(pod)) = (change.old, change.new)
            && concerns(pod)
        {
            keys.add(ObjectKey::of(&pod.metadata));
        }
    });
    let (keys, pods) = (queue.clone(), context.pods.clone());
    context.claims.subscribe(move |change| {
        if let (Some(claim), None) = (change.old, change.new) {
            let users = pods.by_index(&IndexKey::Claim(ObjectKey::of(&claim.metadata)));
            let concerned = users.iter().filter(|pod| concerns(pod));
            concerned.for_each(|pod| keys.add(ObjectKey::of(&pod.metadata)));
        }
    });
    let (pods, claims) = (context.pods.clone(), context.claims.clone());
    let ready = async move {
        pods.wait_synced().await;
        claims.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(context, "ephemeral-volume", &queue, 2, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key).await }
    });
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let pod = match api.get(&key.name).await {
        Ok(pod) => pod,
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("get", format!("pod {key}"))(error)),
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    for volume in volumes {
        let template = volume.ephemeral.as_ref();
        if let Some(template) = template.and_then(|own| own.volume_claim_template.as_ref()) {
            make(context, &pod, &volume.name, template).await?;
        }
    }
    Ok(None)
}

/// Makes the claim of a volume, unless it is there.
async fn make(
    context: &Context,
    pod: &Pod,
    volume: &str,
    template: &PersistentVolumeClaimTemplate,
) -> Result<(), ControllerError> {
    let owner = ObjectKey::of(&pod.metadata);
    let name = format!("{}-{volume}", owner.name);
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &owner.namespace);
    let warn = |why: &str| {
        let message = format!("ephemeral volume {volume}: {why}");
        context
            .recorder
            .event(pod, Kind::Warning, "FailedBinding", message);
    };
    let what = format!("persistentvolumeclaim {}/{name}", owner.namespace);
    match api.get_opt(&name).await {
        Ok(None) => {}
        Ok(Some(claim)) => {
            let maker = controller_of(&claim.metadata).map(|maker| &maker.uid);
            if maker != pod.metadata.uid.as_ref() {
                // When that claim goes, this one is made.
                warn(&format!(
                    "PVC {}/{name} was not created for pod {owner} (pod is not the owner)",
                    owner.namespace
                ));
            }
            return Ok(());
        }
        Err(error) => return Err(ControllerError::api("get", what)(error)),
    }
    let meta = template.metadata.clone().unwrap_or_default();
    let claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        },
        spec: Some(template.spec.clone()),
        status: None,
    };
    match api.create(&PostParams::default(), &claim).await {
        Ok(_) => Ok(()),
        Err(error) => {
            if !is_conflict(&error) {
                warn(&said(&error));
            }
            Err(ControllerError::api("create", what)(error))
        }
    }
}
