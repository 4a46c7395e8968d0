//! Gives every namespace the ServiceAccount `default`.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;

use super::{
    Context, ControllerError, Outcome, is_conflict, is_not_found, is_terminating_namespace, spawn_workers,
};
use crate::informer::{Cached, Change, ObjectKey};
use crate::queue::{Backoff, Queue};

const DEFAULT_ACCOUNT: &str = "default";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    follow_namespaces(context, &queue);
    context.service_accounts.subscribe(namespace_of(&queue));
    let (namespaces, accounts) = (context.namespaces.clone(), context.service_accounts.clone());
    let ready = async move {
        namespaces.wait_synced().await;
        accounts.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(context, "serviceaccount", &queue, 2, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key.name).await }
    });
}

/// Every namespace, when it changes.
pub(super) fn follow_namespaces(context: &Context, queue: &Queue<ObjectKey>) {
    let keys = queue.clone();
    context.namespaces.subscribe(move |change| {
        if let Some(namespace) = change.new {
            keys.add(ObjectKey::of(&namespace.metadata));
        }
    });
}

/// The namespace of what changes.
pub(super) fn namespace_of<V: Cached>(queue: &Queue<ObjectKey>) -> impl Fn(&Change<'_, V>) + use<V> {
    let queue = queue.clone();
    move |change| {
        if let Some(namespace) = change
            .latest()
            .and_then(|object| object.metadata().namespace.as_deref())
        {
            queue.add(ObjectKey::cluster(namespace));
        }
    }
}

async fn reconcile(context: &Context, namespace: &str) -> Outcome {
    let Some(object) = context.namespaces.get(&ObjectKey::cluster(namespace)) else {
        return Ok(None);
    };
    let key = ObjectKey::new(namespace, DEFAULT_ACCOUNT);
    if object.metadata.deletion_timestamp.is_some() || context.service_accounts.get(&key).is_some() {
        return Ok(None);
    }
    let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(DEFAULT_ACCOUNT.into()),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let result = api.create(&PostParams::default(), &account).await.map(drop);
    made("service account", namespace, result)?;
    Ok(None)
}

/// Someone else having made it, or the namespace going away, is as good.
pub(super) fn made(
    what: &str,
    namespace: &str,
    result: Result<(), kube::Error>,
) -> Result<(), ControllerError> {
    match result {
        Ok(()) => Ok(()),
        Err(error) if is_conflict(&error) || is_not_found(&error) || is_terminating_namespace(&error) => {
            Ok(())
        }
        Err(error) => Err(ControllerError::api(
            "write",
            format!("{what} in namespace {namespace}"),
        )(error)),
    }
}
