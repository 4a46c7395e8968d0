//! Rolls a Deployment's pods from one template to the next, by growing and shrinking one ReplicaSet per template.

pub mod decide;
mod new_set;
mod report;
pub mod revision;
mod rollout;
pub mod status;
pub mod template;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::core::Selector;
use kube::{Api, ResourceExt};

use self::decide::{Limits, SetView};
use self::revision::{DESIRED, MAX};
use self::rollout::Rollout;
use super::claim::{claims, settle};
use super::events::Kind;
use super::subscribe::{self, owner_key};
use super::{Context, ControllerError, Outcome, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

const KIND: &str = "Deployment";

/// Pods asked for.
pub(crate) fn replicas(deployment: &Deployment) -> i32 {
    deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn limits(deployment: &Deployment) -> Limits {
    if is_recreate(deployment) {
        return Limits::recreate(replicas(deployment));
    }
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    Limits::rolling(
        replicas(deployment),
        rolling.and_then(|rolling| rolling.max_surge.as_ref()),
        rolling.and_then(|rolling| rolling.max_unavailable.as_ref()),
    )
}

fn size(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn view(set: &ReplicaSet) -> SetView {
    let number = |name| revision::number(&set.metadata, name).and_then(|n| i32::try_from(n).ok());
    SetView {
        name: set.name_any(),
        replicas: size(set),
        available: set
            .status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0),
        created: set.metadata.creation_timestamp.as_ref().map(|time| time.0),
        desired: number(DESIRED),
        max: number(MAX),
    }
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    subscribe::to_objects(&queue, &context.deployments);
    let (keys, deployments) = (queue.clone(), context.deployments.clone());
    context.replica_sets.subscribe(move |change| {
        for set in [change.old, change.new].into_iter().flatten() {
            if let Some(key) = owner_key(&**set, KIND) {
                keys.add(key);
                continue;
            }
            // Someone may want to adopt it.
            let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
            for deployment in deployments.in_namespace(namespace) {
                keys.add(ObjectKey::of(&deployment.metadata));
            }
        }
    });
    // A Recreate rollout goes on when the last old pod is gone.
    let (keys, sets, deployments) = (
        queue.clone(),
        context.replica_sets.clone(),
        context.deployments.clone(),
    );
    context.pods.subscribe(move |change| {
        let Some(pod) = change
            .old
            .filter(|_| change.new.is_none_or(|pod| pod.is_finished()))
        else {
            return;
        };
        let set = owner_key(&**pod, "ReplicaSet").and_then(|set| sets.get(&set));
        if let Some(key) = set.and_then(|set| owner_key(&*set, KIND))
            && deployments
                .get(&key)
                .is_some_and(|deployment| is_recreate(&deployment))
        {
            keys.add(key);
        }
    });
    let shared = context.clone();
    let ready = {
        let (deployments, sets, pods) = (
            context.deployments.clone(),
            context.replica_sets.clone(),
            context.pods.clone(),
        );
        async move {
            deployments.wait_synced().await;
            sets.wait_synced().await;
            pods.wait_synced().await;
        }
    };
    spawn_workers(
        context,
        "deployment",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let context = shared.clone();
            // On the heap: a rollout's state is large, and every worker keeps room for one.
            async move { Box::pin(reconcile(&context, &key)).await }
        },
    );
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(deployment) = context.deployments.get(key) else {
        return Ok(None);
    };
    let spec = deployment.spec.clone().unwrap_or_default();
    let selector: Selector =
        spec.selector
            .clone()
            .try_into()
            .map_err(
                |error: kube::core::ParseExpressionError| ControllerError::Invalid {
                    what: format!("deployment {key}"),
                    why: error.to_string(),
                },
            )?;
    if selector.selects_all() {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        context
            .recorder
            .event(&*deployment, Kind::Warning, "SelectingAll", message.into());
        return Ok(None);
    }
    let sets_api: Api<ReplicaSet> = Api::namespaced(context.client.clone(), &key.namespace);
    let api: Api<Deployment> = Api::namespaced(context.client.clone(), &key.namespace);
    let claims = claims(&context.replica_sets, &deployment.metadata, &selector, |_| true);
    let mut sets = settle(claims, &*deployment, &api, &sets_api).await?;
    sets.sort_by_key(|set| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone()));
    let mut rollout = Rollout {
        context,
        key,
        api,
        sets_api,
        deployment,
        sets,
        new: None,
        now: Timestamp::now(),
    };
    rollout.new = rollout.find_new();
    rollout.run().await
}
