//! The replica set of a Deployment's template: found, or made.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::info;

use super::revision::{self, DESIRED, MAX, REVISION};
use super::rollout::Rollout;
use super::{decide, is_recreate, limits, status, template};
use crate::controllers::claim::controller_reference;
use crate::controllers::events::Kind;
use crate::controllers::{ControllerError, is_conflict, is_terminating_namespace, said};
use crate::informer::controller_of;

impl Rollout<'_> {
    /// Brings the new set's annotations up to date, or makes the set.
    pub(super) async fn sync_new(&mut self, create: bool) -> Result<(), ControllerError> {
        let newest = self
            .old()
            .filter_map(|at| revision::number(&self.sets[at].metadata, REVISION))
            .max();
        let next = newest.unwrap_or(0) + 1;
        if let Some(new) = self.new {
            let set = self.sets[new].clone();
            let limits = limits(&self.deployment);
            let annotations =
                revision::annotations(&self.deployment.metadata, Some(&set.metadata), next, limits);
            let min_ready = self
                .deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.min_ready_seconds);
            let known = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
            let same_min_ready = known.unwrap_or(0) == min_ready.unwrap_or(0);
            // Sizes are announced when they are written.
            let mut compared = set.metadata.annotations.clone().unwrap_or_default();
            for name in [DESIRED, MAX] {
                if let Some(value) = annotations.get(name) {
                    compared.insert(name.into(), value.clone());
                }
            }
            if compared != annotations || !same_min_ready {
                let mut wanted = annotations.clone();
                for name in [DESIRED, MAX] {
                    match set.metadata.annotations.as_ref().and_then(|all| all.get(name)) {
                        Some(value) => wanted.insert(name.into(), value.clone()),
                        None => wanted.remove(name),
                    };
                }
                let patch = json!({
                    "metadata": { "resourceVersion": set.metadata.resource_version, "annotations": wanted },
                    "spec": { "minReadySeconds": min_ready.unwrap_or(0) },
                });
                self.patch_set(new, patch).await?;
            }
            self.announce_revision(&annotations[REVISION]).await?;
            let known = self.deployment.status.as_ref();
            if known.is_none_or(|known| status::condition(known, status::PROGRESSING).is_none()) {
                // Adopted: the rollout is watched from here on.
                let message = format!("Found new replica set \"{}\"", self.sets[new].name_any());
                self.note_progress(status::FOUND_NEW_SET, &message).await?;
            }
            Ok(())
        } else if create {
            self.create_new(next).await?;
            self.announce_revision(&next.to_string()).await
        } else {
            Ok(())
        }
    }

    async fn create_new(&mut self, revision: i64) -> Result<(), ControllerError> {
        let deployment = self.deployment.clone();
        let spec = deployment.spec.clone().unwrap_or_default();
        let collisions = deployment
            .status
            .as_ref()
            .and_then(|status| status.collision_count)
            .unwrap_or(0);
        let hash = template::hash(&spec.template, collisions);
        let name = format!("{}-{hash}", self.key.name);
        let mut template = spec.template.clone();
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(template::HASH_LABEL.into(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector.clone();
        selector
            .match_labels
            .get_or_insert_default()
            .insert(template::HASH_LABEL.into(), hash);
        let limits = limits(&deployment);
        let all: i32 = self.views().iter().map(|set| set.replicas).sum();
        let size = if is_recreate(&deployment) {
            limits.replicas
        } else {
            decide::new_size(limits, 0, all)
        };
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(self.key.namespace.to_string()),
                labels: Some(labels),
                annotations: Some(revision::annotations(
                    &deployment.metadata,
                    None,
                    revision,
                    limits,
                )),
                owner_references: Some(vec![controller_reference(&*deployment)]),
                ..ObjectMeta::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(size),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        match self.sets_api.create(&PostParams::default(), &set).await {
            Ok(made) => {
                if size > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {size}");
                    self.context
                        .recorder
                        .event(&*deployment, Kind::Normal, "ScalingReplicaSet", message);
                }
                info!(set = name, size, revision, "new replica set");
                self.sets.push(Arc::new(made));
                self.new = Some(self.sets.len() - 1);
                self.note_progress(
                    status::NEW_SET_CREATED,
                    &format!("Created new replica set \"{name}\""),
                )
                .await
            }
            Err(error) if is_conflict(&error) => self.name_taken(&name, &set).await,
            Err(error) if is_terminating_namespace(&error) => Ok(()),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {}", said(&error));
                self.context.recorder.event(
                    &*deployment,
                    Kind::Warning,
                    status::CREATE_ERROR,
                    message.clone(),
                );
                let mut fresh = deployment.status.clone().unwrap_or_default();
                status::set(
                    &mut fresh,
                    status::PROGRESSING,
                    "False",
                    status::CREATE_ERROR,
                    message,
                    self.now,
                );
                self.put_status(fresh).await?;
                Err(ControllerError::api("create", format!("replica set {name}"))(
                    error,
                ))
            }
        }
    }

    /// A set of the wanted name exists: it is the one that an earlier pass made, or an accident.
    async fn name_taken(&mut self, name: &str, wanted: &ReplicaSet) -> Result<(), ControllerError> {
        let found = self.sets_api.get(name).await;
        let found = found.map_err(ControllerError::api("get", format!("replica set {name}")))?;
        let ours =
            controller_of(&found.metadata).map(|owner| &owner.uid) == self.deployment.metadata.uid.as_ref();
        let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone());
        let same = template(&found)
            .zip(template(wanted))
            .is_some_and(|(a, b)| template::same(&a, &b));
        if ours && same {
            self.sets.push(Arc::new(found));
            self.new = Some(self.sets.len() - 1);
            return Ok(());
        }
        let mut fresh = self.deployment.status.clone().unwrap_or_default();
        fresh.collision_count = Some(fresh.collision_count.unwrap_or(0) + 1);
        info!(set = name, "name taken by another replica set, hashing anew");
        self.put_status(fresh).await?;
        let what = format!("replica set {name}");
        Err(ControllerError::Invalid {
            what,
            why: "its name belongs to other pods".into(),
        })
    }

    /// The Deployment carries the revision of its newest set.
    async fn announce_revision(&mut self, revision: &str) -> Result<(), ControllerError> {
        let known = self
            .deployment
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(REVISION));
        if known.map(String::as_str) == Some(revision) {
            return Ok(());
        }
        let patch = json!({ "metadata": { "uid": self.deployment.metadata.uid, "annotations": { REVISION: revision } } });
        let patched = self
            .api
            .patch(&self.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let patched = patched.map_err(ControllerError::api("patch", format!("deployment {}", self.key)))?;
        self.deployment = Arc::new(patched);
        Ok(())
    }
}
