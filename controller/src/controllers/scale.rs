//! The scale of anything that has one, through the subresource: built-in kinds and those of users alike.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::autoscaling::v1::Scale;
use kube::api::{DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, discovery};

use super::{ControllerError, is_not_found};

/// What is scaled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Target {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
}

/// Reads and writes scales; remembers which resource a kind is.
pub(crate) struct Scales {
    client: Client,
    resources: Mutex<HashMap<(String, String), ApiResource>>,
}

impl Scales {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            resources: Mutex::default(),
        }
    }

    /// The scale of a target; `None` if there is no such object.
    pub(crate) async fn get(
        &self,
        namespace: &str,
        target: &Target,
    ) -> Result<Option<Scale>, ControllerError> {
        let api = self.api(namespace, target).await?;
        match api.get_scale(&target.name).await {
            Ok(scale) => Ok(Some(scale)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(ControllerError::api("get scale of", described(namespace, target))(error)),
        }
    }

    /// Writes a scale that was read.
    pub(crate) async fn set(
        &self,
        namespace: &str,
        target: &Target,
        scale: &Scale,
    ) -> Result<(), ControllerError> {
        let api = self.api(namespace, target).await?;
        let written = api
            .replace_scale(&target.name, &PostParams::default(), scale)
            .await;
        written
            .map(drop)
            .map_err(ControllerError::api("scale", described(namespace, target)))
    }

    async fn api(&self, namespace: &str, target: &Target) -> Result<Api<DynamicObject>, ControllerError> {
        let resource = self.resource(target).await?;
        Ok(Api::namespaced_with(self.client.clone(), namespace, &resource))
    }

    async fn resource(&self, target: &Target) -> Result<ApiResource, ControllerError> {
        let key = (target.api_version.clone(), target.kind.clone());
        let known = self
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if let Some(resource) = known {
            return Ok(resource);
        }
        let (group, version) = target
            .api_version
            .split_once('/')
            .unwrap_or(("", &target.api_version));
        let kind = GroupVersionKind::gvk(group, version, &target.kind);
        let (resource, _) =
            discovery::pinned_kind(&self.client, &kind)
                .await
                .map_err(ControllerError::api(
                    "discover",
                    format!("{} {}", target.api_version, target.kind),
                ))?;
        self.resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key, resource.clone());
        Ok(resource)
    }
}

fn described(namespace: &str, target: &Target) -> String {
    format!("{} {namespace}/{}", target.kind, target.name)
}
