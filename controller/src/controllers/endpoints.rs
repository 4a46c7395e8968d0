//! Where the pods of Services are: [`legacy`] keeps Endpoints, [`slices`] EndpointSlices, and [`mirror`] makes slices of Endpoints
//! that people wrote themselves. [`member`] says which pods belong to a Service and as what, [`plan`] how slices get there with
//! few writes.

pub(crate) mod legacy;
pub(crate) mod member;
pub(crate) mod mirror;
pub(crate) mod plan;
pub(crate) mod slices;
pub(crate) mod trigger;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tracing::debug;

use self::plan::Plan;
use super::pod::PodView;
use super::{Context, ControllerError, is_not_found, subscribe};
use crate::informer::{IndexKey, Labels, ObjectKey};
use crate::queue::Queue;

/// Label of a slice: its Service.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of a slice: who writes it.
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Label of what belongs to a Service without an address.
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Annotation: when the change was made that the object shows.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Pods of one Service often change together; what comes within this time is written at once.
const GATHER: Duration = Duration::from_millis(50);
/// How long a slice that was made may take to show up in the local copy.
const LAG: Duration = Duration::from_secs(30);
/// When to look again for a slice that has not shown up.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The pods that a Service selects.
fn pods_of(context: &Context, service: &Service) -> Vec<Arc<PodView>> {
    let Some(selector) = selector(service) else {
        return Vec::new();
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut pods = context.pods.in_namespace(namespace);
    pods.retain(|pod| matches(selector, &pod.labels));
    // So that the same pods always make the same objects.
    pods.sort_by(|a, b| a.name().cmp(b.name()));
    pods
}

/// What a Service selects pods by; `None` if it does not.
fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector
        .as_ref()
        .filter(|selector| !selector.is_empty() && !external)
}

fn matches(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Puts Services into a queue when they, or pods of theirs, change.
fn follow_services_and_pods(context: &Arc<Context>, queue: &Queue<ObjectKey>) {
    subscribe::to_objects(queue, &context.services);
    let (keys, services) = (queue.clone(), context.services.clone());
    context.pods.subscribe(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && !member::differ(old, new)
        {
            return;
        }
        let Some(pod) = change.latest() else { return };
        for service in services.in_namespace(pod.namespace()) {
            let Some(selector) = selector(&service) else {
                continue;
            };
            let selected = |pod: &Arc<PodView>| matches(selector, &pod.labels);
            if change.old.is_some_and(selected) || change.new.is_some_and(selected) {
                keys.add_after(ObjectKey::of(&service.metadata), GATHER);
            }
        }
    });
}

/// The slices of a Service that `manager` writes.
fn slices_of(context: &Context, service: &ObjectKey, manager: &str) -> Vec<Arc<EndpointSlice>> {
    let label = IndexKey::Label(SERVICE_NAME.into(), service.to_string().into());
    let mut slices = context.endpoint_slices.by_index(&label);
    slices.retain(|slice| label_of(slice, MANAGED_BY) == Some(manager));
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    slices
}

fn label_of<'a>(slice: &'a EndpointSlice, key: &str) -> Option<&'a str> {
    slice.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Slices that were made and that the local copy does not have yet. Without them more would be made in their place.
#[derive(Debug, Default)]
struct Unseen {
    by_service: Mutex<HashMap<ObjectKey, HashSet<(ObjectKey, Instant)>>>,
}

impl Unseen {
    fn made(&self, service: &ObjectKey, slice: ObjectKey, now: Instant) {
        let mut all = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(service.clone()).or_default().insert((slice, now));
    }

    /// Whether the copy lacks any; those that never came are given up.
    fn any(&self, context: &Context, service: &ObjectKey, now: Instant) -> bool {
        let mut all = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slices) = all.get_mut(service) else {
            return false;
        };
        slices.retain(|(slice, made)| {
            context.endpoint_slices.get(slice).is_none() && now.duration_since(*made) < LAG
        });
        if slices.is_empty() {
            all.remove(service);
            return false;
        }
        true
    }
}

/// Makes the writes of a plan.
async fn write(
    context: &Context,
    service: &ObjectKey,
    plan: Plan,
    unseen: &Unseen,
) -> Result<(), ControllerError> {
    let api: &Api<EndpointSlice> = &Api::namespaced(context.client.clone(), &service.namespace);
    let params = &PostParams::default();
    let at_once = context.config.batch_concurrency;
    let failed = |verb| ControllerError::api(verb, format!("endpoint slice of service {service}"));
    stream::iter(plan.create)
        .map(Ok)
        .try_for_each_concurrent(at_once, |slice| async move {
            let made = api.create(params, &slice).await.map_err(failed("create"))?;
            unseen.made(service, ObjectKey::of(&made.metadata), Instant::now());
            Ok(())
        })
        .await?;
    stream::iter(plan.update)
        .map(Ok)
        .try_for_each_concurrent(at_once, |slice| async move {
            let name = slice.metadata.name.clone().unwrap_or_default();
            api.replace(&name, params, &slice)
                .await
                .map(|_| ())
                .map_err(failed("update"))
        })
        .await?;
    for slice in plan.delete {
        let name = slice.metadata.name.as_deref().unwrap_or_default();
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: slice.metadata.uid.clone(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await {
            Ok(_) => debug!(slice = name, %service, "endpoint slice deleted"),
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(failed("delete")(error)),
        }
    }
    Ok(())
}
