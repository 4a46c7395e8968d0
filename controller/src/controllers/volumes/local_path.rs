//! Volumes that are directories of a node: made where the first pod runs, and taken away when their claim is gone. How much is
//! written into one is not limited.
//!
//! The node's agent makes the directory when a pod first mounts it. To have one removed, its name is put into an annotation of
//! the Node; the agent says in another that it is gone. So a node needs no right on volumes, and a directory whose node is away
//! is removed when that comes back.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tracing::info;

use super::{DEFAULT_CLASS, PROVISIONED_BY, SELECTED_NODE, STORAGE_PROVISIONER, annotation, has_finalizer};
use crate::controllers::events::Kind;
use crate::controllers::{Context, ControllerError, Outcome, is_conflict, is_not_found, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// The provisioner's name.
pub(crate) const PROVISIONER: &str = "weft.dev/local-path";
/// Annotation of a Node: the directory that its volumes are in.
const DIRECTORY: &str = "weft.dev/local-path";
/// Annotation of a Node: volumes that it is to remove.
const REMOVE: &str = "weft.dev/local-path-remove";
/// Annotation of a Node: of those, the ones that are gone.
const REMOVED: &str = "weft.dev/local-path-removed";
/// Annotation of a volume: its node.
const NODE: &str = "weft.dev/node";
/// Keeps a volume until its directory is gone; known from external provisioners.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The class of such volumes: what claims get that name no other.
pub(crate) fn class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": "local-path", "annotations": {DEFAULT_CLASS[0]: "true"}},
        "provisioner": PROVISIONER, "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// What to do about a claim.
#[derive(Debug, PartialEq)]
enum Provision {
    /// It is none of ours, or not yet.
    Nothing,
    /// This volume is to be made.
    Make(Value),
    /// Not on this node: another is to be chosen.
    Reschedule(String),
    /// Not at all.
    Refuse(String),
}

/// Decides about a claim that waits for a volume.
fn provision(claim: &PersistentVolumeClaim, class: Option<&StorageClass>, node: Option<&Node>) -> Provision {
    let spec = claim.spec.clone().unwrap_or_default();
    let ours = annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(PROVISIONER);
    let bound = spec.volume_name.as_deref().is_some_and(|name| !name.is_empty());
    let Some(class) = class.filter(|class| class.provisioner == PROVISIONER && ours && !bound) else {
        return Provision::Nothing;
    };
    if claim.metadata.deletion_timestamp.is_some() {
        return Provision::Nothing;
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Provision::Refuse("volumeMode Block is not offered: volumes are directories".to_owned());
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Provision::Refuse("a dataSource is not offered: volumes begin empty".to_owned());
    }
    let offered = ["ReadWriteOnce", "ReadWriteOncePod"];
    let modes = spec.access_modes.clone().unwrap_or_default();
    if let Some(other) = modes.iter().find(|mode| !offered.contains(&mode.as_str())) {
        return Provision::Refuse(format!(
            "access mode {other} is not offered: a volume is on one node, use ReadWriteOnce or ReadWriteOncePod"
        ));
    }
    let Some(selected) = annotation(&claim.metadata, SELECTED_NODE) else {
        return Provision::Refuse(
            "no node was chosen: the storage class needs volumeBindingMode WaitForFirstConsumer".to_owned(),
        );
    };
    let Some(node) = node else {
        return Provision::Reschedule(format!("node {selected:?} does not exist"));
    };
    let Some(directory) = annotation(&node.metadata, DIRECTORY) else {
        return Provision::Reschedule(format!("node {selected:?} offers no local-path volumes"));
    };
    let labels = node.metadata.labels.as_ref();
    let hostname = labels
        .and_then(|labels| labels.get(HOSTNAME))
        .map_or(selected, String::as_str);
    let name = volume_name(claim);
    Provision::Make(json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name, "finalizers": [FINALIZER],
            "annotations": {PROVISIONED_BY: PROVISIONER, NODE: selected},
        },
        "spec": {
            "capacity": {"storage": spec.resources.and_then(|resources| resources.requests?.get("storage").cloned())},
            "accessModes": modes,
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": claim.metadata.namespace,
                "name": claim.metadata.name, "uid": claim.metadata.uid,
            },
            "local": {"path": format!("{}/{name}", directory.trim_end_matches('/'))},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [hostname]}]},
            ]}},
        },
    }))
}

fn volume_name(claim: &PersistentVolumeClaim) -> String {
    format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default())
}

/// Whether a volume's directory is to go: the volume is deleted, nobody is bound to it, and its data are not to stay.
fn is_doomed(volume: &PersistentVolume) -> bool {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    volume.metadata.deletion_timestamp.is_some()
        && phase != Some("Bound")
        && has_finalizer(&volume.metadata, FINALIZER)
}

fn keeps_data(volume: &PersistentVolume) -> bool {
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    policy != Some("Delete")
}

/// What to write about the volumes of one node that are to go.
#[derive(Debug, Default, PartialEq)]
struct Reclaim {
    /// Volumes that are done with.
    release: Vec<String>,
    /// What the Node's annotation should say, if it says something else; empty: it should not be there.
    remove: Option<String>,
}

/// Decides about the volumes of a node; a node that is gone has no directories.
fn reclaim(node: Option<&Node>, volumes: &[Arc<PersistentVolume>]) -> Reclaim {
    let list = |key: &str| -> BTreeSet<&str> {
        let text = node.and_then(|node| annotation(&node.metadata, key));
        let names = text.unwrap_or_default().split(',');
        names.filter(|name| !name.is_empty()).collect()
    };
    let removed = list(REMOVED);
    let mut result = Reclaim::default();
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    for volume in volumes.iter().filter(|volume| is_doomed(volume)) {
        let name = volume.metadata.name.as_deref().unwrap_or_default();
        if node.is_none() || keeps_data(volume) || (removed.contains(name) && list(REMOVE).contains(name)) {
            result.release.push(name.to_owned());
        } else {
            wanted.insert(name);
        }
    }
    if node.is_some() && wanted != list(REMOVE) {
        let text = wanted.into_iter().collect::<Vec<_>>().join(",");
        result.remove = Some(text);
    }
    result
}

/// The node of a volume that was made here.
fn node_of(volume: &PersistentVolume) -> Option<&str> {
    let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER);
    annotation(&volume.metadata, NODE).filter(|_| ours)
}

pub(crate) fn start(context: &Arc<Context>) {
    // One queue for both: a node's key has no namespace.
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.claims.subscribe(move |change| {
        let ours = |claim: &&Arc<PersistentVolumeClaim>| {
            annotation(&claim.metadata, STORAGE_PROVISIONER) == Some(PROVISIONER)
        };
        if let Some(claim) = change.new.filter(ours) {
            keys.add(ObjectKey::of(&claim.metadata));
        }
    });
    let keys = queue.clone();
    context.volumes.subscribe(move |change| {
        if let Some(node) = change.latest().and_then(|volume| node_of(volume)) {
            keys.add(ObjectKey::cluster(node));
        }
    });
    let keys = queue.clone();
    context.nodes.subscribe(move |change| {
        let said = |node: Option<&Arc<Node>>| {
            let meta = &node?.metadata;
            Some([DIRECTORY, REMOVE, REMOVED].map(|key| annotation(meta, key).map(str::to_owned)))
        };
        // Heartbeats change nodes all the time.
        if let Some(node) = change.latest().filter(|_| said(change.old) != said(change.new)) {
            keys.add(ObjectKey::of(&node.metadata));
        }
    });
    let synced = context.clone();
    let ready = async move {
        synced.claims.wait_synced().await;
        synced.volumes.wait_synced().await;
        synced.storage_classes.wait_synced().await;
        synced.nodes.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(context, "local-path", &queue, 2, ready, move |key| {
        let context = shared.clone();
        async move {
            if key.namespace.is_empty() {
                reconcile_node(&context, &key).await
            } else {
                reconcile_claim(&context, &key).await
            }
        }
    });
}

async fn reconcile_claim(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(claim) = context.claims.get(key) else {
        return Ok(None);
    };
    let class = super::matching::class_of_claim(&claim);
    let class = class.and_then(|class| context.storage_classes.get(&ObjectKey::cluster(class)));
    let selected = annotation(&claim.metadata, SELECTED_NODE);
    let node = selected.and_then(|node| context.nodes.get(&ObjectKey::cluster(node)));
    let tell = |kind, reason, text: String| context.recorder.event(claim.as_ref(), kind, reason, text);
    let failed = |why: String| {
        let class = class
            .as_ref()
            .and_then(|class| class.metadata.name.clone())
            .unwrap_or_default();
        format!("failed to provision volume with StorageClass {class:?}: {why}")
    };
    match provision(&claim, class.as_deref(), node.as_deref()) {
        Provision::Nothing => {}
        Provision::Refuse(why) => tell(Kind::Warning, "ProvisioningFailed", failed(why)),
        Provision::Reschedule(why) => {
            tell(Kind::Warning, "ProvisioningFailed", failed(why));
            let patch = json!({"metadata": {
                "resourceVersion": claim.metadata.resource_version, "annotations": {SELECTED_NODE: null},
            }});
            let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &key.namespace);
            api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                .await
                .map_err(ControllerError::api("update", format!("volume claim {key}")))?;
        }
        Provision::Make(volume) => {
            let name = volume_name(&claim);
            if context.volumes.get(&ObjectKey::cluster(&name)).is_some() {
                return Ok(None);
            }
            tell(
                Kind::Normal,
                "Provisioning",
                format!("External provisioner is provisioning volume for claim \"{key}\""),
            );
            let object: DynamicObject = serde_json::from_value(volume)
                .map_err(kube::Error::SerdeError)
                .map_err(ControllerError::api("create", format!("volume {name}")))?;
            let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "PersistentVolume"));
            let api: Api<DynamicObject> = Api::all_with(context.client.clone(), &kind);
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => info!(volume = name, claim = %key, "volume made"),
                Err(error) if is_conflict(&error) => return Ok(None),
                Err(error) => return Err(ControllerError::api("create", format!("volume {name}"))(error)),
            }
            tell(
                Kind::Normal,
                "ProvisioningSucceeded",
                format!("Successfully provisioned volume {name}"),
            );
        }
    }
    Ok(None)
}

async fn reconcile_node(context: &Context, key: &ObjectKey) -> Outcome {
    let mut volumes = context.volumes.all();
    volumes.retain(|volume| node_of(volume) == Some(&key.name));
    let nodes: Api<Node> = Api::all(context.client.clone());
    let mut node = context.nodes.get(key);
    if node.is_none() && volumes.iter().any(|volume| is_doomed(volume)) {
        // The local copy may lag, and a directory that is forgotten stays for ever.
        let found = nodes.get_opt(&key.name).await;
        node = found
            .map_err(ControllerError::api("get", format!("node {key}")))?
            .map(Arc::new);
    }
    let step = reclaim(node.as_deref(), &volumes);
    for name in step.release {
        let Some(volume) = volumes
            .iter()
            .find(|volume| volume.metadata.name.as_deref() == Some(&name))
        else {
            continue;
        };
        let left = volume.metadata.finalizers.iter().flatten();
        let left: Vec<_> = left.filter(|finalizer| *finalizer != FINALIZER).collect();
        let patch = json!({"metadata": {
            "resourceVersion": volume.metadata.resource_version, "finalizers": left,
        }});
        let api: Api<PersistentVolume> = Api::all(context.client.clone());
        match api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => info!(volume = name, node = %key, "volume reclaimed"),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(ControllerError::api("update", format!("volume {name}"))(error)),
        }
    }
    if let Some(text) = step.remove {
        let value = Some(text).filter(|text| !text.is_empty());
        let patch = json!({"metadata": {"annotations": {REMOVE: value}}});
        nodes
            .patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(ControllerError::api("update", format!("node {key}")))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::matching::tests::{claim, volume};
    use super::*;

    fn class(spec: Value) -> StorageClass {
        let mut all = json!({"metadata": {"name": "local-path"}, "provisioner": PROVISIONER, "reclaimPolicy": "Delete"});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(all).unwrap()
    }

    fn node(annotations: Value) -> Node {
        serde_json::from_value(json!({"metadata": {
            "name": "n1", "labels": {HOSTNAME: "host-1"}, "annotations": annotations,
        }}))
        .unwrap()
    }

    fn chosen(spec: Value) -> PersistentVolumeClaim {
        let mut claim = claim(spec);
        let annotations = [(STORAGE_PROVISIONER, PROVISIONER), (SELECTED_NODE, "n1")];
        let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
        claim.metadata.annotations = Some(annotations.into());
        claim
    }

    #[test]
    fn a_volume_is_made_on_the_node_that_was_chosen() {
        let node = node(json!({DIRECTORY: "/data/volumes/"}));
        let Provision::Make(made) = provision(&chosen(json!({})), Some(&class(json!({}))), Some(&node))
        else {
            panic!("a volume")
        };
        assert_eq!(made["metadata"]["name"], "pvc-uid-claim");
        assert_eq!(made["spec"]["local"]["path"], "/data/volumes/pvc-uid-claim");
        assert_eq!(made["spec"]["capacity"]["storage"], "1Gi");
        assert_eq!(made["spec"]["claimRef"]["uid"], "uid-claim");
        assert_eq!(
            made["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0]["values"],
            json!(["host-1"])
        );
        let retained = class(json!({"reclaimPolicy": "Retain"}));
        let Provision::Make(made) = provision(&chosen(json!({})), Some(&retained), Some(&node)) else {
            panic!("a volume")
        };
        assert_eq!(made["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    }

    #[test]
    fn what_cannot_be_made_is_said() {
        let able = node(json!({DIRECTORY: "/data"}));
        let unable = node(json!({}));
        let class = class(json!({}));
        for (spec, node, wanted) in [
            (json!({"volumeMode": "Block"}), Some(&able), "Refuse"),
            (json!({"accessModes": ["ReadWriteMany"]}), Some(&able), "Refuse"),
            (json!({}), None, "Reschedule"),
            (json!({}), Some(&unable), "Reschedule"),
            (json!({"volumeName": "v"}), Some(&able), "Nothing"),
        ] {
            let step = provision(&chosen(spec.clone()), Some(&class), node);
            assert!(format!("{step:?}").starts_with(wanted), "{spec}: {step:?}");
        }
        let unchosen = {
            let mut claim = chosen(json!({}));
            claim.metadata.annotations.as_mut().unwrap().remove(SELECTED_NODE);
            claim
        };
        assert!(matches!(
            provision(&unchosen, Some(&class), None),
            Provision::Refuse(_)
        ));
        assert_eq!(
            provision(&claim(json!({})), Some(&class), Some(&able)),
            Provision::Nothing
        );
    }

    #[test]
    fn a_directory_goes_before_its_volume() {
        let doomed = |name: &str, policy: &str, phase: &str| {
            let mut volume = PersistentVolume::clone(&volume(
                name,
                "1Gi",
                json!({"persistentVolumeReclaimPolicy": policy}),
            ));
            volume.metadata.deletion_timestamp =
                serde_json::from_value(json!("2030-01-01T00:00:00Z")).unwrap();
            volume.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            volume.status.get_or_insert_default().phase = Some(phase.to_owned());
            Arc::new(volume)
        };
        let volumes = [
            doomed("a", "Delete", "Released"),
            doomed("b", "Delete", "Released"),
            doomed("used", "Delete", "Bound"),
            doomed("kept", "Retain", "Released"),
        ];
        let first = reclaim(Some(&node(json!({}))), &volumes);
        assert_eq!(first.release, ["kept"], "its data stay");
        assert_eq!(first.remove, Some("a,b".to_owned()));
        let asked = node(json!({REMOVE: "a,b", REMOVED: "a"}));
        let second = reclaim(Some(&asked), &volumes);
        assert_eq!(second.release, ["a", "kept"]);
        assert_eq!(second.remove, Some("b".to_owned()));
        let done = reclaim(Some(&node(json!({REMOVE: "b"}))), &volumes[1..3]);
        assert_eq!(done, Reclaim::default(), "nothing new to say");
        assert_eq!(
            reclaim(Some(&node(json!({REMOVE: "b"}))), &[]).remove,
            Some(String::new())
        );
        assert_eq!(
            reclaim(None, &volumes).release,
            ["a", "b", "kept"],
            "the node is gone"
        );
    }
}
