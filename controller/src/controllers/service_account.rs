//! Gives every namespace the ServiceAccount `default` and the cluster's CA as ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::context::ROOT_CA_CONFIG_MAP;
use super::{
    Context, ControllerError, Outcome, is_conflict, is_not_found, is_terminating_namespace, spawn_workers,
};
use crate::informer::{Cached, Change, ObjectKey};
use crate::queue::{Backoff, Queue};

const DEFAULT_ACCOUNT: &str = "default";
const CA_KEY: &str = "ca.crt";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.namespaces.subscribe(move |change| {
        if let Some(namespace) = change.new {
            keys.add(ObjectKey::of(&namespace.metadata));
        }
    });
    context.service_accounts.subscribe(namespace_of(&queue));
    context.root_ca_maps.subscribe(namespace_of(&queue));
    let ready = {
        let (namespaces, accounts, maps) = (
            context.namespaces.clone(),
            context.service_accounts.clone(),
            context.root_ca_maps.clone(),
        );
        async move {
            namespaces.wait_synced().await;
            accounts.wait_synced().await;
            maps.wait_synced().await;
        }
    };
    let shared = context.clone();
    spawn_workers(context, "service-account", &queue, 2, ready, move |key| {
        let context = shared.clone();
        async move { reconcile(&context, &key.name).await }
    });
}

fn namespace_of<V: Cached>(queue: &Queue<ObjectKey>) -> impl Fn(&Change<'_, V>) + use<V> {
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
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let named = |name: &str| ObjectMeta {
        name: Some(name.into()),
        namespace: Some(namespace.into()),
        ..ObjectMeta::default()
    };
    if context
        .service_accounts
        .get(&ObjectKey::new(namespace, DEFAULT_ACCOUNT))
        .is_none()
    {
        let api: Api<ServiceAccount> = Api::namespaced(context.client.clone(), namespace);
        let account = ServiceAccount {
            metadata: named(DEFAULT_ACCOUNT),
            ..ServiceAccount::default()
        };
        let result = api.create(&PostParams::default(), &account).await.map(|_| ());
        made("service account", namespace, result)?;
    }
    let ca = &context.config.root_ca_pem;
    if ca.is_empty() {
        return Ok(None);
    }
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let data = BTreeMap::from([(CA_KEY.to_owned(), ca.clone())]);
    match context
        .root_ca_maps
        .get(&ObjectKey::new(namespace, ROOT_CA_CONFIG_MAP))
    {
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    annotations: Some(
                        [(
                            "kubernetes.io/description".to_owned(),
                            "Contains a CA bundle that can be used to verify the API server from inside the cluster.".to_owned(),
                        )]
                        .into(),
                    ),
                    ..named(ROOT_CA_CONFIG_MAP)
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            let result = api.create(&PostParams::default(), &map).await.map(|_| ());
            made("config map", namespace, result)?;
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            // What else somebody put there goes.
            let found = map.data.iter().flatten().map(|(key, _)| (key, None));
            let whole = data.iter().map(|(key, value)| (key, Some(value)));
            let data: BTreeMap<_, _> = found.chain(whole).collect();
            let patch = json!({ "data": data });
            let result = api
                .patch(ROOT_CA_CONFIG_MAP, &PatchParams::default(), &Patch::Merge(patch))
                .await;
            made("config map", namespace, result.map(|_| ()))?;
        }
        Some(_) => {}
    }
    Ok(None)
}

/// Someone else having made it, or the namespace going away, is as good.
fn made(what: &str, namespace: &str, result: Result<(), kube::Error>) -> Result<(), ControllerError> {
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
