//! Claims, volumes and classes as the scheduler sees them.

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{BIND_COMPLETED, DEPRECATED_CLASS, NO_PROVISIONER, SELECTED_NODE};
use crate::informer::{Cached, IndexKey, ObjectKey};
use crate::scheduler::resources::units;
use crate::selector::LabelSelector;

/// A claim as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct ClaimView {
    /// Its name, namespace and uid.
    pub metadata: ObjectMeta,
    /// The volume it is bound to, or is to be.
    pub volume: Option<String>,
    /// Whether the binder is done with it.
    pub bound: bool,
    /// Its storage class.
    pub class: String,
    /// Where the provisioner was told to make the volume.
    pub selected_node: Option<String>,
    /// How it wants to use the volume.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
    /// Bytes.
    pub size: i64,
    /// Labels the volume must have.
    pub selector: Option<LabelSelector>,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// A volume as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct VolumeView {
    /// Its name and labels.
    pub metadata: ObjectMeta,
    /// The nodes it can be used from.
    pub nodes: Option<Vec<NodeSelectorTerm>>,
    /// Its storage class.
    pub class: String,
    /// How it can be used.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
    /// Bytes.
    pub size: i64,
    /// Namespace, name and uid of the claim it is kept for.
    pub claim: Option<(ObjectKey, Option<String>)>,
    /// Whether it waits for a claim.
    pub available: bool,
}

/// A storage class as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct ClassView {
    /// Its name.
    pub metadata: ObjectMeta,
    /// Whether volumes are bound when a pod needs them.
    pub waits: bool,
    /// Whether volumes are made on demand.
    pub provisions: bool,
    /// Where they can be made.
    pub topologies: Vec<NodeSelectorTerm>,
}

macro_rules! cached {
    ($($kind:ty),+) => { $(
        impl Cached for $kind {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn index_keys(&self) -> Vec<IndexKey> {
                Vec::new()
            }
        }
    )+ };
}

cached!(ClaimView, VolumeView, ClassView);

fn named(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        labels: meta.labels,
        ..ObjectMeta::default()
    }
}

impl From<PersistentVolumeClaim> for ClaimView {
    fn from(claim: PersistentVolumeClaim) -> Self {
        let spec = claim.spec.unwrap_or_default();
        let phase = claim.status.and_then(|status| status.phase);
        let notes = claim.metadata.annotations.clone().unwrap_or_default();
        let volume = spec.volume_name.filter(|name| !name.is_empty());
        let requests = spec.resources.and_then(|resources| resources.requests);
        ClaimView {
            bound: volume.is_some()
                && (phase.as_deref() == Some("Bound") || notes.contains_key(BIND_COMPLETED)),
            volume,
            class: notes
                .get(DEPRECATED_CLASS)
                .cloned()
                .or(spec.storage_class_name)
                .unwrap_or_default(),
            selected_node: notes.get(SELECTED_NODE).cloned(),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            size: requests
                .and_then(|all| all.get("storage").map(units))
                .unwrap_or(0),
            selector: spec.selector.as_ref().map(|selector| {
                LabelSelector::from_object(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
            }),
            terminating: claim.metadata.deletion_timestamp.is_some(),
            metadata: named(claim.metadata),
        }
    }
}

impl From<PersistentVolume> for VolumeView {
    fn from(volume: PersistentVolume) -> Self {
        let spec = volume.spec.unwrap_or_default();
        let phase = volume.status.and_then(|status| status.phase);
        let terminating = volume.metadata.deletion_timestamp.is_some();
        VolumeView {
            nodes: spec
                .node_affinity
                .and_then(|affinity| affinity.required)
                .map(|selector| selector.node_selector_terms),
            class: spec.storage_class_name.unwrap_or_default(),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            size: spec
                .capacity
                .and_then(|all| all.get("storage").map(units))
                .unwrap_or(0),
            claim: spec.claim_ref.map(|claim| {
                let key = ObjectKey::new(
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                );
                (key, claim.uid.filter(|uid| !uid.is_empty()))
            }),
            available: !terminating && matches!(phase.as_deref(), None | Some("" | "Pending" | "Available")),
            metadata: named(volume.metadata),
        }
    }
}

impl From<StorageClass> for ClassView {
    fn from(class: StorageClass) -> Self {
        let topologies = class.allowed_topologies.into_iter().flatten().map(|term| {
            let all = term.match_label_expressions.into_iter().flatten();
            NodeSelectorTerm {
                match_expressions: Some(
                    all.map(|one| NodeSelectorRequirement {
                        key: one.key,
                        operator: "In".into(),
                        values: Some(one.values),
                    })
                    .collect(),
                ),
                match_fields: None,
            }
        });
        ClassView {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisions: class.provisioner != NO_PROVISIONER,
            topologies: topologies.collect(),
            metadata: named(class.metadata),
        }
    }
}
