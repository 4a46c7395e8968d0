//! Gives every namespace the cluster's certificate authority as ConfigMap `kube-root-ca.crt`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use super::context::ROOT_CA_CONFIG_MAP;
use super::service_account::{follow_namespaces, made, namespace_of};
use super::{Context, Outcome, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

const CA_KEY: &str = "ca.crt";

pub(crate) fn start(context: &Arc<Context>) {
    if context.config.root_ca_pem.is_empty() {
        return;
    }
    let queue = Queue::new(Backoff::default());
    follow_namespaces(context, &queue);
    context.root_ca_maps.subscribe(namespace_of(&queue));
    let (namespaces, maps) = (context.namespaces.clone(), context.root_ca_maps.clone());
    let ready = async move {
        namespaces.wait_synced().await;
        maps.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(
        context,
        "root-ca-certificate-publisher",
        &queue,
        2,
        ready,
        move |key| {
            let context = shared.clone();
            async move { reconcile(&context, &key.name).await }
        },
    );
}

async fn reconcile(context: &Context, namespace: &str) -> Outcome {
    let Some(object) = context.namespaces.get(&ObjectKey::cluster(namespace)) else {
        return Ok(None);
    };
    if object.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let data = BTreeMap::from([(CA_KEY.to_owned(), context.config.root_ca_pem.clone())]);
    let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), namespace);
    let result = match context
        .root_ca_maps
        .get(&ObjectKey::new(namespace, ROOT_CA_CONFIG_MAP))
    {
        None => {
            let map = ConfigMap {
                metadata: ObjectMeta {
                    name: Some(ROOT_CA_CONFIG_MAP.into()),
                    namespace: Some(namespace.into()),
                    annotations: Some(
                        [(
                            "kubernetes.io/description".to_owned(),
                            "Contains a CA bundle that can be used to verify the API server from inside the cluster.".to_owned(),
                        )]
                        .into(),
                    ),
                    ..ObjectMeta::default()
                },
                data: Some(data),
                ..ConfigMap::default()
            };
            api.create(&PostParams::default(), &map).await
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            // What else somebody put there goes.
            let found = map.data.iter().flatten().map(|(key, _)| (key, None));
            let whole = data.iter().map(|(key, value)| (key, Some(value)));
            let data: BTreeMap<_, _> = found.chain(whole).collect();
            let patch = json!({ "data": data });
            api.patch(ROOT_CA_CONFIG_MAP, &PatchParams::default(), &Patch::Merge(patch))
                .await
        }
        Some(_) => return Ok(None),
    };
    made("config map", namespace, result.map(drop))?;
    Ok(None)
}
