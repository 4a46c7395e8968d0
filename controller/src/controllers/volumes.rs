//! Persistent volumes and the claims on them: [`binder`] brings the two together as [`decide`] says, [`protection`] keeps what is in
//! use from being deleted, [`ephemeral`] makes the claims that belong to one pod, and [`local_path`] makes volumes that are
//! directories of a node.

pub(crate) mod binder;
pub(crate) mod decide;
pub(crate) mod ephemeral;
pub(crate) mod local_path;
pub(crate) mod matching;
pub(crate) mod protection;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Annotation of a claim or volume: a controller, and not its maker, tied it to the other.
pub(crate) const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Annotation of a claim: it was bound once.
pub(crate) const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a claim: the node whose pod is the first to use it.
pub(crate) const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a claim: who is to make a volume for it.
pub(crate) const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same, as it was called before.
pub(crate) const BETA_STORAGE_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Annotation of a volume: who made it.
pub(crate) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotation of claims and volumes: the class, as it was given before there was a field.
pub(crate) const FORMER_CLASS: &str = "volume.beta.kubernetes.io/storage-class";
/// Annotations of a class that is the default.
pub(crate) const DEFAULT_CLASS: [&str; 2] = [
    "storageclass.kubernetes.io/is-default-class",
    "storageclass.beta.kubernetes.io/is-default-class",
];

fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|found| found == finalizer)
}
