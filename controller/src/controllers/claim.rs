//! Which objects a controller owns: those that name it and match its selector. Others are released; ownerless ones that
//! match are adopted.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tracing::{debug, info};

use super::{ControllerError, is_not_found};
use crate::informer::{Cached, Change, ObjectKey, Store, controller_of, remembering};

/// What to do with the objects around a controller.
#[derive(Debug)]
pub(crate) struct Claims<V> {
    /// Owned and matching.
    pub(crate) kept: Vec<Arc<V>>,
    /// Owned and no longer matching.
    pub(crate) release: Vec<Arc<V>>,
    /// Matching and ownerless.
    pub(crate) adopt: Vec<Arc<V>>,
    /// Finalizer that adopted objects get.
    pub(crate) finalizer: Option<&'static str>,
}

/// Sorts the objects of `store` by what the controller with this metadata has to do with them.
pub(crate) fn claims<V: Cached>(
    store: &Store<V>,
    owner: &ObjectMeta,
    selector: &Selector,
    relevant: impl Fn(&V) -> bool,
) -> Claims<V> {
    let deleting = owner.deletion_timestamp.is_some();
    let mut out = Claims {
        kept: Vec::new(),
        release: Vec::new(),
        adopt: Vec::new(),
        finalizer: None,
    };
    let owned = store.owned_by(owner.uid.as_deref().unwrap_or_default());
    let mut matches = remembering(|labels| selector.matches(labels));
    for object in &owned {
        if !relevant(object) || matches(object.labels()) {
            out.kept.push(object.clone());
        } else if !deleting {
            out.release.push(object.clone());
        }
    }
    if !deleting {
        out.adopt = store.orphans(owner.namespace.as_deref().unwrap_or_default());
        out.adopt.retain(|object| {
            object.metadata().deletion_timestamp.is_none()
                && relevant(object)
                && selector.matches(object.labels())
        });
    }
    out
}

/// The owners that may want to adopt what a change left, or made, without a controller.
pub(crate) fn suitors<V: Cached, K: Cached>(
    owners: &Store<K>,
    change: &Change<'_, V>,
    selector: impl Fn(&K) -> Option<Selector>,
) -> Vec<ObjectKey> {
    let Some(object) = change
        .new
        .filter(|object| controller_of(object.metadata()).is_none())
    else {
        return Vec::new();
    };
    let (meta, labels) = (object.metadata(), object.labels());
    let mut owners = owners.in_namespace(meta.namespace.as_deref().unwrap_or_default());
    owners.retain(|owner| selector(owner).is_some_and(|selector| selector.matches(labels)));
    owners
        .iter()
        .map(|owner| ObjectKey::of(owner.metadata()))
        .collect()
}

/// The selector of a workload; an empty one is refused, it would take every pod.
pub(crate) fn strict(selector: LabelSelector) -> Result<Selector, String> {
    let selector: Selector = selector
        .try_into()
        .map_err(|error| format!("spec.selector: {error}"))?;
    if selector.selects_all() {
        Err("spec.selector is empty".into())
    } else {
        Ok(selector)
    }
}

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// Writes the adoptions and releases; returns all objects that the controller owns afterwards.
pub(crate) async fn settle<K, C, V>(
    claims: Claims<V>,
    owner: &K,
    owners: &Api<K>,
    children: &Api<C>,
) -> Result<Vec<Arc<V>>, ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    C: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    V: Cached,
{
    let owner_name = owner.meta().name.clone().unwrap_or_default();
    let owner_uid = owner.meta().uid.clone().unwrap_or_default();
    for object in claims.release {
        let meta = object.metadata();
        let name = meta.name.as_deref().unwrap_or_default();
        let rest: Vec<_> = meta
            .owner_references
            .iter()
            .flatten()
            .filter(|o| o.uid != owner_uid)
            .cloned()
            .collect();
        let patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version, "ownerReferences": rest } });
        match children
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => info!(
                object = name,
                owner = owner_name,
                "released: it no longer matches the selector"
            ),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(ControllerError::api("release", name)(error)),
        }
    }
    let mut owned = claims.kept;
    if claims.adopt.is_empty() {
        return Ok(owned);
    }
    // The local copy may lag: an owner that is being deleted or was replaced must not adopt.
    let fresh = owners
        .get(&owner_name)
        .await
        .map_err(ControllerError::api("get", owner_name.as_str()))?;
    if fresh.meta().uid.as_deref() != Some(&owner_uid) || fresh.meta().deletion_timestamp.is_some() {
        return Ok(owned);
    }
    for object in claims.adopt {
        let meta = object.metadata();
        let name = meta.name.as_deref().unwrap_or_default();
        let mut references = meta.owner_references.clone().unwrap_or_default();
        references.push(controller_reference(owner));
        let mut patch = json!({ "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version,
            "ownerReferences": references } });
        if let Some(finalizer) = claims.finalizer {
            let mut finalizers = meta.finalizers.clone().unwrap_or_default();
            if finalizers.iter().all(|known| known != finalizer) {
                finalizers.push(finalizer.to_owned());
            }
            patch["metadata"]["finalizers"] = json!(finalizers);
        }
        match children
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => {
                info!(
                    object = name,
                    owner = owner_name,
                    "adopted: it matches the selector"
                );
                owned.push(object);
            }
            Err(error) if is_not_found(&error) => debug!(object = name, "not adopted: it is gone"),
            // A conflict too ends the pass: what could not be adopted must not be made anew.
            Err(error) => return Err(ControllerError::api("adopt", name)(error)),
        }
    }
    Ok(owned)
}
