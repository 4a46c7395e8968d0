//! Empties namespaces that are being deleted, pods first, and lets them go when nothing is left.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use tracing::{debug, info};

use super::discovery::{AnyKind, all_kinds};
use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers, write_status};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// What is left in a namespace is counted again after this time.
const RECHECK: Duration = Duration::from_secs(1);
/// Objects named per kind when their finalizers are reported.
const PAGE: u32 = 500;
const FINALIZER: &str = "kubernetes";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.namespaces.subscribe(move |change| {
        if let Some(namespace) = change
            .new
            .filter(|namespace| namespace.metadata.deletion_timestamp.is_some())
        {
            keys.add(ObjectKey::of(&namespace.metadata));
        }
    });
    // The last pod to end may be what a namespace waits for.
    let (keys, namespaces) = (queue.clone(), context.namespaces.clone());
    context.pods.subscribe(move |change| {
        let Some(pod) = change.old.filter(|_| change.new.is_none()) else {
            return;
        };
        let key = ObjectKey::cluster(pod.namespace());
        if namespaces
            .get(&key)
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some())
        {
            keys.add_after(key, RECHECK / 10);
        }
    });
    let namespaces = context.namespaces.clone();
    let shared = context.clone();
    let ready = async move { namespaces.wait_synced().await };
    spawn_workers(context, "namespace", &queue, 4, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key.name).await }
    });
}

/// What is left of one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Remaining {
    plural: String,
    count: usize,
    /// Finalizers with the number of objects that wait for them.
    finalizers: Vec<(String, usize)>,
}

async fn reconcile(context: &Context, name: &str) -> Outcome {
    let api: Api<Namespace> = Api::all(context.client.clone());
    let namespace = match api.get(name).await {
        Ok(namespace) => namespace,
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("get", format!("namespace {name}"))(error)),
    };
    let ours = |namespace: &Namespace| {
        namespace
            .spec
            .iter()
            .flat_map(|spec| spec.finalizers.iter().flatten())
            .any(|f| f == FINALIZER)
    };
    if namespace.metadata.deletion_timestamp.is_none() || !ours(&namespace) {
        return Ok(None);
    }
    let kinds = all_kinds(&context.client).await?;
    let is_pod = |kind: &AnyKind| kind.resource.group.is_empty() && kind.resource.plural == "pods";
    let mut remaining = Vec::new();
    // Pods may need what else is in the namespace until they have ended.
    for kind in kinds.iter().filter(|kind| is_pod(kind)) {
        remaining.extend(empty(context, kind, name).await?);
    }
    if remaining.is_empty() {
        for kind in kinds.iter().filter(|kind| kind.namespaced && !is_pod(kind)) {
            remaining.extend(empty(context, kind, name).await?);
        }
    }
    if remaining.is_empty() {
        finalize(context, namespace).await?;
        info!(namespace = name, "namespace is empty and gone");
        return Ok(None);
    }
    debug!(namespace = name, ?remaining, "namespace is not empty yet");
    write_conditions(&api, namespace, &remaining).await?;
    Ok(Some(RECHECK))
}

async fn empty(
    context: &Context,
    kind: &AnyKind,
    namespace: &str,
) -> Result<Option<Remaining>, ControllerError> {
    let api = kind.api(&context.client, Some(namespace));
    let what = || format!("{} of namespace {namespace}", kind.resource.plural);
    let params = ListParams::default().limit(PAGE);
    let list = match api.list_metadata(&params).await {
        Ok(list) => list,
        // A kind that went away holds nothing up.
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("list", what())(error)),
    };
    if list.items.is_empty() {
        return Ok(None);
    }
    if list
        .items
        .iter()
        .any(|item| item.metadata.deletion_timestamp.is_none())
    {
        if kind.deletes_collections {
            match api
                .delete_collection(&DeleteParams::background(), &ListParams::default())
                .await
            {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(ControllerError::api("delete", what())(error)),
            }
        } else {
            for name in list.items.iter().filter_map(|item| item.metadata.name.as_deref()) {
                match api.delete(name, &DeleteParams::background()).await {
                    Ok(_) => {}
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(ControllerError::api("delete", what())(error)),
                }
            }
        }
    }
    let left = api
        .list_metadata(&params)
        .await
        .map_err(ControllerError::api("list", what()))?;
    if left.items.is_empty() {
        return Ok(None);
    }
    let mut finalizers: Vec<(String, usize)> = Vec::new();
    for finalizer in left
        .items
        .iter()
        .flat_map(|item| item.metadata.finalizers.iter().flatten())
    {
        match finalizers.iter_mut().find(|(name, _)| name == finalizer) {
            Some((_, count)) => *count += 1,
            None => finalizers.push((finalizer.clone(), 1)),
        }
    }
    let plural = match kind.resource.group.as_str() {
        "" => format!("{}.", kind.resource.plural),
        group => format!("{}.{group}", kind.resource.plural),
    };
    Ok(Some(Remaining {
        plural,
        count: left.items.len(),
        finalizers,
    }))
}

async fn finalize(context: &Context, mut namespace: Namespace) -> Result<(), ControllerError> {
    let name = namespace.metadata.name.clone().unwrap_or_default();
    if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let api: Api<Namespace> = Api::all(context.client.clone());
    match api
        .replace_subresource("finalize", &name, &PostParams::default(), &namespace)
        .await
    {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(ControllerError::api("finalize", format!("namespace {name}"))(
            error,
        )),
    }
}

/// Says in Kubernetes' words what the namespace waits for.
fn conditions(
    remaining: &[Remaining],
    known: &[NamespaceCondition],
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let content: Vec<String> = remaining
        .iter()
        .map(|left| format!("{} has {} resource instances", left.plural, left.count))
        .collect();
    let finalizers: Vec<String> = remaining
        .iter()
        .flat_map(|left| &left.finalizers)
        .map(|(name, count)| format!("{name} in {count} resource instances"))
        .collect();
    let said = |kind: &str, parts: &[String], reason: &str, intro: &str, none: (&str, &str)| {
        let status = if parts.is_empty() { "False" } else { "True" };
        let before = known
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == status);
        NamespaceCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(if parts.is_empty() { none.0 } else { reason }.into()),
            message: Some(if parts.is_empty() {
                none.1.to_owned()
            } else {
                format!("{intro}{}", parts.join(", "))
            }),
            last_transition_time: before
                .and_then(|condition| condition.last_transition_time.clone())
                .or(Some(Time(now))),
        }
    };
    vec![
        said(
            "NamespaceContentRemaining",
            &content,
            "SomeResourcesRemain",
            "Some resources are remaining: ",
            ("ContentRemoved", "All content successfully removed"),
        ),
        said(
            "NamespaceFinalizersRemaining",
            &finalizers,
            "SomeFinalizersRemain",
            "Some content in the namespace has finalizers remaining: ",
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ]
}

async fn write_conditions(
    api: &Api<Namespace>,
    mut namespace: Namespace,
    remaining: &[Remaining],
) -> Result<(), ControllerError> {
    let status = namespace.status.get_or_insert_default();
    let fresh = conditions(
        remaining,
        status.conditions.as_deref().unwrap_or_default(),
        Timestamp::now(),
    );
    if status.conditions.as_ref() == Some(&fresh) {
        return Ok(());
    }
    status.conditions = Some(fresh);
    write_status(api, &namespace).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_waits_for() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let left = Remaining {
            plural: "pods.".into(),
            count: 2,
            finalizers: vec![("x/y".into(), 1)],
        };
        let said = conditions(&[left], &[], now);
        assert_eq!(
            said[0].message.as_deref(),
            Some("Some resources are remaining: pods. has 2 resource instances")
        );
        assert_eq!(said[1].status, "True");
        let again = conditions(&[], &said, now);
        assert_eq!(
            (again[0].status.as_str(), again[1].reason.as_deref()),
            ("False", Some("ContentHasNoFinalizers"))
        );
    }
}
