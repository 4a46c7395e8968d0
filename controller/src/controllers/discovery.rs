//! Which kinds the API server has, for the controllers that care about all of them.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};

use super::ControllerError;
use crate::informer::Unread;

/// Any object, as far as its metadata goes.
pub(crate) type AnyMeta = PartialObjectMeta<DynamicObject>;

/// A kind whose objects can be listed, watched and deleted.
#[derive(Debug, Clone)]
pub(crate) struct AnyKind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    pub(crate) deletes_collections: bool,
}

impl PartialEq for AnyKind {
    fn eq(&self, other: &Self) -> bool {
        (&self.resource.api_version, &self.resource.plural)
            == (&other.resource.api_version, &other.resource.plural)
    }
}

impl Eq for AnyKind {}

impl Hash for AnyKind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.resource.api_version, &self.resource.plural).hash(state);
    }
}

impl AnyKind {
    /// Whether its objects are too short-lived and too many to be worth a graph.
    pub(crate) fn is_event(&self) -> bool {
        self.resource.plural == "events" && ["", "events.k8s.io"].contains(&self.resource.group.as_str())
    }

    /// The kind Pod.
    pub(crate) fn pods() -> Self {
        AnyKind {
            resource: ApiResource::erase::<Pod>(&()),
            namespaced: true,
            deletes_collections: true,
        }
    }

    /// Requests of an informer, which follows all objects of this kind.
    pub(crate) fn watched(&self, client: &Client) -> Api<Unread> {
        Api::all_with(client.clone(), &self.resource)
    }

    /// Requests for objects of this kind: in `namespace`, or everywhere.
    pub(crate) fn api(&self, client: &Client, namespace: Option<&str>) -> Api<AnyMeta> {
        match namespace {
            Some(namespace) if self.namespaced => {
                Api::namespaced_with(client.clone(), namespace, &self.resource)
            }
            _ => Api::all_with(client.clone(), &self.resource),
        }
    }
}

/// Every kind in its preferred version.
pub(crate) async fn all_kinds(client: &Client) -> Result<Vec<Arc<AnyKind>>, ControllerError> {
    let found = match Discovery::new(client.clone()).run_aggregated().await {
        Ok(found) => found,
        Err(_) => Discovery::new(client.clone())
            .run()
            .await
            .map_err(ControllerError::api("discover", "the server's kinds"))?,
    };
    let mut kinds = Vec::new();
    for group in found.groups() {
        for (resource, capabilities) in group.recommended_resources() {
            let usable = [verbs::LIST, verbs::WATCH, verbs::DELETE];
            if usable.iter().all(|verb| capabilities.supports_operation(verb)) {
                kinds.push(Arc::new(AnyKind {
                    namespaced: capabilities.scope == Scope::Namespaced,
                    deletes_collections: capabilities.supports_operation(verbs::DELETE_COLLECTION),
                    resource,
                }));
            }
        }
    }
    Ok(kinds)
}
