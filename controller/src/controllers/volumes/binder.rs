//! Binds claims to volumes.
//!
//! Both objects change, one after the other, and each write is made only on the state that was read: whatever stops the work
//! half-way, the next look goes on from there. First the volume names the claim, then the claim the volume.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tracing::info;

use super::decide::{ClaimStep, Scene, VolumeStep, claim_step, volume_step};
use super::matching::{Place, by_controller};
use super::{
    BETA_STORAGE_PROVISIONER, BIND_COMPLETED, BOUND_BY_CONTROLLER, SELECTED_NODE, STORAGE_PROVISIONER,
    annotation,
};
use crate::controllers::events::Kind;
use crate::controllers::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::{IndexKey, ObjectKey};
use crate::queue::{Backoff, Queue};

pub(crate) fn start(context: &Arc<Context>) {
    // One queue for both: a volume's key has no namespace.
    let queue = Queue::new(Backoff::default());
    let (keys, claims) = (queue.clone(), context.claims.clone());
    context.volumes.subscribe(move |change| {
        let Some(volume) = change.latest() else { return };
        keys.add(ObjectKey::of(&volume.metadata));
        let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if let Some(claim) = reference {
            keys.add(ObjectKey::new(
                claim.namespace.as_deref().unwrap_or_default(),
                claim.name.as_deref().unwrap_or_default(),
            ));
        } else {
            // It may be what a claim waits for.
            claims
                .all()
                .iter()
                .filter(|claim| is_unbound(claim))
                .for_each(|claim| keys.add(ObjectKey::of(&claim.metadata)));
        }
    });
    let (keys, volumes) = (queue.clone(), context.volumes.clone());
    context.claims.subscribe(move |change| {
        let Some(claim) = change.latest() else { return };
        keys.add(ObjectKey::of(&claim.metadata));
        let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
        if let Some(named) = named.filter(|named| !named.is_empty()) {
            keys.add(ObjectKey::cluster(named));
        } else if change.new.is_none() {
            // A volume may have been given to it that it did not take yet.
            volumes
                .all()
                .iter()
                .for_each(|volume| keys.add(ObjectKey::of(&volume.metadata)));
        }
    });
    let (keys, claims) = (queue.clone(), context.claims.clone());
    context.storage_classes.subscribe(move |_| {
        claims
            .all()
            .iter()
            .filter(|claim| is_unbound(claim))
            .for_each(|claim| keys.add(ObjectKey::of(&claim.metadata)));
    });
    let (keys, claims) = (queue.clone(), context.claims.clone());
    context.pods.subscribe(move |change| {
        // A pod that gets a node decides for claims that nobody decided for.
        let Some(pod) = change.new.filter(|pod| !pod.claims().is_empty()) else {
            return;
        };
        if change.old.is_some_and(|old| old.node == pod.node) {
            return;
        }
        for claim in pod.claims() {
            let key = ObjectKey::new(pod.namespace(), claim);
            if claims.get(&key).is_some_and(|claim| is_unbound(&claim)) {
                keys.add(key);
            }
        }
    });
    let synced = context.clone();
    let ready = async move {
        synced.volumes.wait_synced().await;
        synced.claims.wait_synced().await;
        synced.storage_classes.wait_synced().await;
        synced.nodes.wait_synced().await;
        synced.pods.wait_synced().await;
    };
    let shared = context.clone();
    // One worker: two that look for a volume at the same time would choose the same.
    spawn_workers(context, "persistentvolume-binder", &queue, 1, ready, move |key| {
        let context = shared.clone();
        async move {
            if key.namespace.is_empty() {
                reconcile_volume(&context, &key).await
            } else {
                reconcile_claim(&context, &key).await
            }
        }
    });
}

fn is_unbound(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_none()
}

/// The node on which the claim is used first: what the scheduler chose, or where a pod is that chose for itself.
fn place(context: &Context, claim: &PersistentVolumeClaim) -> Option<Place> {
    let node = if let Some(node) = annotation(&claim.metadata, SELECTED_NODE) {
        node.to_owned()
    } else {
        let users = context
            .pods
            .by_index(&IndexKey::Claim(ObjectKey::of(&claim.metadata)));
        let mut users = users.iter().filter(|pod| pod.is_active());
        users.find_map(|pod| pod.node.as_deref().map(str::to_owned))?
    };
    let object = context.nodes.get(&ObjectKey::cluster(&node))?;
    let labels = object.metadata.labels.clone().unwrap_or_default();
    Some(Place { node, labels })
}

async fn reconcile_claim(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(claim) = context.claims.get(key) else {
        return Ok(None);
    };
    let volumes = context.volumes.all();
    let classes = context.storage_classes.all();
    let place = place(context, &claim);
    let users = context.pods.by_index(&IndexKey::Claim(key.clone()));
    let waiting = users.iter().find(|pod| pod.is_active() && pod.node.is_none());
    let scene = Scene {
        volumes: &volumes,
        classes: &classes,
        place: place.as_ref(),
        waiting_pod: waiting.map(|pod| pod.name()),
    };
    let claims = &Claims {
        api: Api::namespaced(context.client.clone(), &key.namespace),
        claim: &claim,
    };
    match claim_step(&claim, scene) {
        ClaimStep::Wait(notice) => {
            if let Some((kind, reason, text)) = notice {
                context.recorder.event(claim.as_ref(), kind, reason, text);
            }
            claims.phase("Pending").await?;
        }
        ClaimStep::SetClass(class) => {
            claims
                .patch(json!({}), json!({ "storageClassName": class }))
                .await?;
        }
        ClaimStep::Lost((kind, reason, text)) => {
            if claims.phase("Lost").await? {
                context.recorder.event(claim.as_ref(), kind, reason, text);
            }
        }
        ClaimStep::Provision(provisioner) => {
            if let Some(place) = place.filter(|_| annotation(&claim.metadata, SELECTED_NODE).is_none()) {
                // Who makes the volume must know where.
                claims
                    .patch(json!({ SELECTED_NODE: place.node }), json!({}))
                    .await?;
            } else if annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(&provisioner) {
                let text = format!(
                    "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by the \
                     system administrator. If volume creation is delayed, please verify that the provisioner is running and \
                     correctly registered."
                );
                context
                    .recorder
                    .event(claim.as_ref(), Kind::Normal, "ExternalProvisioning", text);
            } else {
                let names =
                    json!({ STORAGE_PROVISIONER: provisioner, BETA_STORAGE_PROVISIONER: provisioner });
                claims.patch(names, json!({})).await?;
            }
            claims.phase("Pending").await?;
        }
        ClaimStep::Bind(volume) => bind(context, &volume, claims).await?,
    }
    Ok(None)
}

/// The claim that is worked on, and how to write it.
struct Claims<'a> {
    api: Api<PersistentVolumeClaim>,
    claim: &'a PersistentVolumeClaim,
}

impl Claims<'_> {
    fn name(&self) -> &str {
        self.claim.metadata.name.as_deref().unwrap_or_default()
    }

    fn failed(&self) -> impl FnOnce(kube::Error) -> ControllerError + use<> {
        let namespace = self.claim.metadata.namespace.as_deref().unwrap_or_default();
        ControllerError::api("update", format!("volume claim {namespace}/{}", self.name()))
    }

    /// Changes annotations and the spec, if the claim is still as it was read.
    async fn patch(&self, annotations: Value, spec: Value) -> Result<PersistentVolumeClaim, ControllerError> {
        let version = &self.claim.metadata.resource_version;
        let patch =
            json!({"metadata": {"resourceVersion": version, "annotations": annotations}, "spec": spec});
        self.api
            .patch(self.name(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(self.failed())
    }

    /// Sets the phase and takes back what was had; returns whether anything changed.
    async fn phase(&self, phase: &str) -> Result<bool, ControllerError> {
        let status = self.claim.status.as_ref();
        if status.and_then(|status| status.phase.as_deref()) == Some(phase) {
            return Ok(false);
        }
        let status = json!({"phase": phase, "accessModes": null, "capacity": null});
        self.status(status).await.map(|()| true)
    }

    async fn status(&self, status: Value) -> Result<(), ControllerError> {
        let patch = json!({"metadata": {"uid": self.claim.metadata.uid}, "status": status});
        self.api
            .patch_status(self.name(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map(|_| ())
            .map_err(self.failed())
    }
}

async fn bind(
    context: &Context,
    volume: &PersistentVolume,
    claims: &Claims<'_>,
) -> Result<(), ControllerError> {
    let claim = claims.claim;
    let spec = volume.spec.clone().unwrap_or_default();
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let reference = spec.claim_ref.as_ref();
    if reference.is_none_or(|reference| reference.uid != claim.metadata.uid) {
        let reference_wanted = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
            "name": claim.metadata.name, "uid": claim.metadata.uid, "resourceVersion": claim.metadata.resource_version,
        });
        let annotations = match reference {
            None => json!({ BOUND_BY_CONTROLLER: "yes" }),
            Some(_) => json!({}),
        };
        patch_volume(
            context,
            volume,
            annotations,
            json!({ "claimRef": reference_wanted }),
        )
        .await?;
    }
    set_volume_phase(context, volume, "Bound").await?;
    let own = claim.spec.as_ref();
    let named = own
        .and_then(|spec| spec.volume_name.as_deref())
        .unwrap_or_default();
    if named != name || annotation(&claim.metadata, BIND_COMPLETED).is_none() {
        let mut annotations = json!({ BIND_COMPLETED: "yes" });
        if named != name && !by_controller(&claim.metadata) {
            annotations[BOUND_BY_CONTROLLER] = json!("yes");
        }
        claims.patch(annotations, json!({ "volumeName": name })).await?;
        info!(volume = name, claim = %ObjectKey::of(&claim.metadata), "bound");
    }
    let status = claim.status.clone().unwrap_or_default();
    let modes = spec.access_modes.clone().unwrap_or_default();
    let right = status.phase.as_deref() == Some("Bound")
        && status.access_modes.clone().unwrap_or_default() == modes
        && status.capacity == spec.capacity;
    if !right {
        let status = json!({"phase": "Bound", "accessModes": modes, "capacity": spec.capacity});
        claims.status(status).await?;
    }
    Ok(())
}

async fn patch_volume(
    context: &Context,
    volume: &PersistentVolume,
    annotations: Value,
    spec: Value,
) -> Result<(), ControllerError> {
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let version = &volume.metadata.resource_version;
    let patch = json!({"metadata": {"resourceVersion": version, "annotations": annotations}, "spec": spec});
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .map(|_| ())
        .map_err(ControllerError::api("update", format!("volume {name}")))
}

async fn set_volume_phase(
    context: &Context,
    volume: &PersistentVolume,
    phase: &str,
) -> Result<(), ControllerError> {
    let status = volume.status.as_ref();
    if status.and_then(|status| status.phase.as_deref()) == Some(phase) {
        return Ok(());
    }
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let now = Timestamp::now();
    let patch = json!({"metadata": {"uid": volume.metadata.uid},
        "status": {"phase": phase, "lastPhaseTransitionTime": format!("{now:.0}")}});
    let api: Api<PersistentVolume> = Api::all(context.client.clone());
    match api
        .patch_status(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(ControllerError::api("update", format!("volume {name}"))(error)),
    }
}

async fn reconcile_volume(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(volume) = context.volumes.get(key) else {
        return Ok(None);
    };
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let claim_key = reference.map(|claim| {
        ObjectKey::new(
            claim.namespace.as_deref().unwrap_or_default(),
            claim.name.as_deref().unwrap_or_default(),
        )
    });
    let mut claim = claim_key.as_ref().and_then(|key| context.claims.get(key));
    if let (None, Some(key)) = (&claim, &claim_key) {
        // The local copy may lag, and what is released may be deleted.
        let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
        let found = api.get_opt(&key.name).await;
        claim = found
            .map_err(ControllerError::api("get", format!("volume claim {key}")))?
            .map(Arc::new);
    }
    match volume_step(&volume, claim.as_deref()) {
        VolumeStep::Phase(phase) => set_volume_phase(context, &volume, phase).await?,
        VolumeStep::Claim => {
            if let Some(key) = &claim_key {
                return reconcile_claim(context, key).await;
            }
        }
        VolumeStep::Unbind => {
            patch_volume(
                context,
                &volume,
                json!({ BOUND_BY_CONTROLLER: null }),
                json!({ "claimRef": null }),
            )
            .await?;
        }
        VolumeStep::Delete => {
            let api: Api<PersistentVolume> = Api::all(context.client.clone());
            match api.delete(&key.name, &DeleteParams::default()).await {
                Ok(_) => info!(volume = %key.name, "deleted: its claim is gone"),
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(ControllerError::api("delete", format!("volume {key}"))(error)),
            }
        }
    }
    Ok(None)
}
