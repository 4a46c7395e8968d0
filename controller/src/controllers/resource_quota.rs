//! Counts what the objects of a namespace use of its ResourceQuotas.
//!
//! The API server charges what is created. This controller begins the count, and counts again when something is gone: objects
//! leave in many ways, and none of them may lose a refund.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use serde_json::{Value, json};

use super::discovery::{AnyKind, all_kinds};
use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers, write_status};
use crate::informer::ObjectKey;
use crate::quantity::Quantity;
use crate::queue::{Backoff, Queue};
use crate::quota::{Amounts, count_name, in_scope, usage};

/// Objects leave in crowds: their refunds are counted together.
const GATHER: Duration = Duration::from_millis(200);
/// When a quota is counted again that has just begun to bind: what was on its way then, and not charged, is there by now.
const SETTLED: Duration = Duration::from_secs(1);
/// How often everything is counted again, as in Kubernetes.
const RECOUNT: Duration = Duration::from_mins(5);
/// The core kinds that have names of their own in quotas.
const NAMED: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.resource_quotas.subscribe(move |change| {
        // What the API server charges needs no count.
        let Some(quota) = change.new else { return };
        let counted = |quota: &ResourceQuota| quota.status.as_ref().and_then(|status| status.hard.clone());
        let bounds = quota.spec.as_ref().and_then(|spec| spec.hard.clone());
        if change.old.is_none() || counted(quota) != bounds {
            keys.add(ObjectKey::of(&quota.metadata));
        }
    });
    let (keys, quotas) = (queue.clone(), context.resource_quotas.clone());
    let refund = move |namespace: &str| {
        for quota in quotas.in_namespace(namespace) {
            keys.add_after(ObjectKey::of(&quota.metadata), GATHER);
        }
    };
    let refund_pods = refund.clone();
    context.pods.subscribe(move |change| {
        let ended = |pod: Option<&Arc<super::pod::PodView>>| pod.is_none_or(|pod| pod.is_finished());
        if let Some(old) = change.old.filter(|old| !old.is_finished())
            && ended(change.new)
        {
            refund_pods(old.namespace());
        }
    });
    context
        .departures
        .subscribe(move |_, _, namespace| refund(namespace));
    let quotas = context.resource_quotas.clone();
    let ready = async move { quotas.wait_synced().await };
    let shared = context.clone();
    spawn_workers(
        context,
        "resourcequota",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let context = shared.clone();
            async move { reconcile(&context, &key).await }
        },
    );
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let api: Api<ResourceQuota> = Api::namespaced(context.client.clone(), &key.namespace);
    // Read before the count: what is charged meanwhile makes the write a conflict.
    let mut quota = match api.get(&key.name).await {
        Ok(quota) => quota,
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("get", format!("quota {key}"))(error)),
    };
    let hard = quota
        .spec
        .as_ref()
        .and_then(|spec| spec.hard.clone())
        .unwrap_or_default();
    let spec = json!({"spec": quota.spec});
    let names: BTreeSet<&str> = hard.keys().map(String::as_str).collect();
    let mut used: Amounts = names
        .iter()
        .map(|name| ((*name).to_owned(), Quantity::ZERO))
        .collect();
    let now = Timestamp::now();
    for kind in kinds(context, &names).await? {
        for object in objects(context, &kind, &key.namespace).await? {
            if !in_scope(&spec, &kind.plural, &object) {
                continue;
            }
            for (name, amount) in usage(&kind.group, &kind.plural, &object, now) {
                if let Some(sum) = used.get_mut(&name) {
                    *sum += amount;
                }
            }
        }
    }
    let used = used
        .into_iter()
        .map(|(name, amount)| (name, ApiQuantity(amount.to_string())))
        .collect();
    let status = quota.status.get_or_insert_default();
    if status.hard.as_ref() == Some(&hard) && status.used.as_ref() == Some(&used) {
        return Ok(Some(RECOUNT));
    }
    let begins = status.hard.as_ref() != Some(&hard);
    status.hard = Some(hard);
    status.used = Some(used);
    let again = if begins { SETTLED } else { RECOUNT };
    Ok(write_status(&api, &quota).await?.map(|_| again))
}

/// The kinds that have to be counted for these names.
async fn kinds(context: &Context, names: &BTreeSet<&str>) -> Result<Vec<ApiResource>, ControllerError> {
    let mut wanted: Vec<ApiResource> = Vec::new();
    for plural in NAMED {
        let bounds = |name: &&str| bounded_by(name, plural);
        if names.iter().any(bounds) {
            wanted.push(core_resource(plural));
        }
    }
    let counts: BTreeSet<&str> = names
        .iter()
        .copied()
        .filter(|name| name.starts_with("count/"))
        .collect();
    let known = |kind: &ApiResource| count_name(&kind.group, &kind.plural);
    if counts
        .iter()
        .any(|name| !wanted.iter().any(|kind| known(kind) == *name))
    {
        for kind in all_kinds(&context.client).await? {
            let AnyKind {
                resource, namespaced, ..
            } = &*kind;
            let name = known(resource);
            if *namespaced && counts.contains(name.as_str()) && !wanted.iter().any(|kind| known(kind) == name)
            {
                wanted.push(resource.clone());
            }
        }
    }
    Ok(wanted)
}

/// Whether a name in a quota is about a core kind.
fn bounded_by(name: &str, plural: &str) -> bool {
    let storage = name == "requests.storage" || name.contains(".storageclass.storage.k8s.io/");
    if name == plural || name.strip_prefix("count/") == Some(plural) {
        return true;
    }
    match plural {
        "persistentvolumeclaims" => storage,
        "services" => name.starts_with("services."),
        "pods" => {
            let bare = name
                .strip_prefix("requests.")
                .or_else(|| name.strip_prefix("limits."))
                .unwrap_or(name);
            let compute =
                matches!(bare, "cpu" | "memory" | "ephemeral-storage") || bare.starts_with("hugepages-");
            compute || (bare.contains('/') && bare.len() < name.len() && !storage)
        }
        _ => false,
    }
}

fn core_resource(plural: &str) -> ApiResource {
    ApiResource {
        group: String::new(),
        version: "v1".to_owned(),
        api_version: "v1".to_owned(),
        kind: String::new(),
        plural: plural.to_owned(),
    }
}

async fn objects(
    context: &Context,
    kind: &ApiResource,
    namespace: &str,
) -> Result<Vec<Value>, ControllerError> {
    let failed = ControllerError::api("list", format!("{} of namespace {namespace}", kind.plural));
    let api: Api<DynamicObject> = Api::namespaced_with(context.client.clone(), namespace, kind);
    let params = ListParams::default();
    let costs = kind.group.is_empty()
        && matches!(
            kind.plural.as_str(),
            "pods" | "services" | "persistentvolumeclaims"
        );
    if costs {
        let list = api.list(&params).await.map_err(failed)?;
        let values = list.items.into_iter().map(|object| {
            let mut value = object.data;
            value["metadata"] = json!(object.metadata);
            value
        });
        return Ok(values.collect());
    }
    // Of the others only the number counts.
    let list = api.list_metadata(&params).await.map_err(failed)?;
    Ok(list.items.iter().map(|_| Value::Null).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_which_kinds_are_counted() {
        for (name, plural) in [
            ("pods", "pods"),
            ("count/pods", "pods"),
            ("requests.cpu", "pods"),
            ("limits.memory", "pods"),
            ("requests.nvidia.com/gpu", "pods"),
            ("requests.storage", "persistentvolumeclaims"),
            (
                "fast.storageclass.storage.k8s.io/requests.storage",
                "persistentvolumeclaims",
            ),
            ("services.nodeports", "services"),
            ("secrets", "secrets"),
        ] {
            let kinds: Vec<_> = NAMED.iter().filter(|kind| bounded_by(name, kind)).collect();
            assert_eq!(kinds, [&plural], "{name}");
        }
        assert!(
            !NAMED
                .iter()
                .any(|kind| bounded_by("count/deployments.apps", kind))
        );
    }
}
