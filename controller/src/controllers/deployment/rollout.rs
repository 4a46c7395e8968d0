//! One pass over a Deployment: which way it goes, and how large its sets become.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::debug;

use super::decide::{self, SetView};
use super::revision::{self, DESIRED, MAX, REVISION};
use super::{is_recreate, limits, replicas, size, status, template, view};
use crate::controllers::events::Kind;
use crate::controllers::{Context, ControllerError, Outcome, is_not_found};
use crate::informer::ObjectKey;

/// One pass over one Deployment.
pub(super) struct Rollout<'a> {
    pub(super) context: &'a Context,
    pub(super) key: &'a ObjectKey,
    pub(super) api: Api<Deployment>,
    pub(super) sets_api: Api<ReplicaSet>,
    pub(super) deployment: Arc<Deployment>,
    /// All its sets, oldest first.
    pub(super) sets: Vec<Arc<ReplicaSet>>,
    /// Which of them has the Deployment's template.
    pub(super) new: Option<usize>,
    pub(super) now: Timestamp,
}

impl Rollout<'_> {
    pub(super) async fn run(&mut self) -> Outcome {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return self.write_counts().await;
        }
        let paused = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.paused)
            .unwrap_or(false);
        if self.write_pause(paused).await? {
            // The change comes back as an event.
            return Ok(None);
        }
        if paused {
            self.sync_new(false).await?;
            self.scale_all().await?;
            self.clean_up().await?;
            return self.write_counts().await;
        }
        if self.is_scaling() {
            self.sync_new(false).await?;
            self.scale_all().await?;
            return self.write_counts().await;
        }
        if is_recreate(&self.deployment) {
            self.recreate().await
        } else {
            self.roll().await
        }
    }

    pub(super) fn find_new(&self) -> Option<usize> {
        let wanted = &self.deployment.spec.as_ref()?.template;
        // The oldest of several equal ones, so that all passes agree.
        self.sets.iter().position(|set| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            template.is_some_and(|template| template::same(template, wanted))
        })
    }

    pub(super) fn views(&self) -> Vec<SetView> {
        self.sets.iter().map(|set| view(set)).collect()
    }

    pub(super) fn old(&self) -> impl Iterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.sets.len()).filter(move |at| Some(*at) != new)
    }

    /// Whether the Deployment's size was changed since its sets were last scaled.
    fn is_scaling(&self) -> bool {
        let wanted = replicas(&self.deployment);
        self.views()
            .iter()
            .any(|set| set.replicas > 0 && set.desired.is_some_and(|desired| desired != wanted))
    }

    async fn roll(&mut self) -> Outcome {
        self.sync_new(true).await?;
        let limits = limits(&self.deployment);
        let views = self.views();
        let all: i32 = views.iter().map(|set| set.replicas).sum();
        if let Some(new) = self.new {
            let size = decide::new_size(limits, views[new].replicas, all);
            if self.scale(new, size).await? {
                return self.write_status().await;
            }
            let old: Vec<usize> = self.old().collect();
            let old_views: Vec<SetView> = old.iter().map(|&at| views[at].clone()).collect();
            let mut scaled = false;
            for (&at, size) in old.iter().zip(decide::old_sizes(limits, &views[new], &old_views)) {
                scaled |= size != views[at].replicas && self.scale(at, size).await?;
            }
            if scaled {
                return self.write_status().await;
            }
        }
        if self
            .deployment
            .status
            .as_ref()
            .is_some_and(|known| status::is_complete(&self.deployment, known))
        {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    async fn recreate(&mut self) -> Outcome {
        self.sync_new(false).await?;
        let mut scaled = false;
        for at in self.old().collect::<Vec<_>>() {
            scaled |= size(&self.sets[at]) > 0 && self.scale(at, 0).await?;
        }
        if scaled {
            return self.write_status().await;
        }
        let old_pods = self.old().any(|at| {
            let uid = self.sets[at].metadata.uid.clone().unwrap_or_default();
            self.context
                .pods
                .owned_by(&uid)
                .iter()
                .any(|pod| !pod.is_finished())
        });
        if old_pods {
            return self.write_status().await;
        }
        self.sync_new(true).await?;
        if let Some(new) = self.new {
            self.scale(new, replicas(&self.deployment)).await?;
        }
        if self
            .deployment
            .status
            .as_ref()
            .is_some_and(|known| status::is_complete(&self.deployment, known))
        {
            self.clean_up().await?;
        }
        self.write_status().await
    }

    /// Scales sets in proportion when the Deployment was scaled, or everything that does not matter any more to nothing.
    async fn scale_all(&mut self) -> Result<(), ControllerError> {
        let views = self.views();
        let wanted = replicas(&self.deployment);
        if let Some(only) = decide::active_or_latest(self.new, &views) {
            self.scale(only, wanted).await?;
            return Ok(());
        }
        let saturated = self.new.is_some_and(|new| {
            let set = &views[new];
            set.replicas == wanted && set.desired == Some(wanted) && set.available == wanted
        });
        if saturated {
            for at in self.old().collect::<Vec<_>>() {
                if views[at].replicas > 0 {
                    self.scale(at, 0).await?;
                }
            }
            return Ok(());
        }
        if !is_recreate(&self.deployment) {
            let known = self
                .deployment
                .status
                .as_ref()
                .and_then(|status| status.replicas)
                .unwrap_or(0);
            let sizes = decide::proportional(limits(&self.deployment), known, &views);
            for (at, size) in sizes.into_iter().enumerate() {
                if views[at].replicas > 0 {
                    self.scale(at, size).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives a set a size, and notes on it for which size of the Deployment; returns whether the size changed.
    async fn scale(&mut self, at: usize, to: i32) -> Result<bool, ControllerError> {
        let limits = limits(&self.deployment);
        let set = self.sets[at].clone();
        let from = size(&set);
        let noted = view(&set);
        let wanted = (Some(limits.replicas), Some(limits.max_total()));
        if from == to && (noted.desired, noted.max) == wanted {
            return Ok(false);
        }
        let patch = json!({
            "metadata": {
                "resourceVersion": set.metadata.resource_version,
                "annotations": { DESIRED: limits.replicas.to_string(), MAX: limits.max_total().to_string() },
            },
            "spec": { "replicas": to },
        });
        self.patch_set(at, patch).await?;
        if from != to {
            let name = set.name_any();
            let direction = if to > from { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {from} to {to}");
            self.context
                .recorder
                .event(&*self.deployment, Kind::Normal, "ScalingReplicaSet", message);
            debug!(set = name, from, to, "replica set scaled");
        }
        Ok(from != to)
    }

    pub(super) async fn patch_set(
        &mut self,
        at: usize,
        patch: serde_json::Value,
    ) -> Result<(), ControllerError> {
        let name = self.sets[at].name_any();
        let patched = self
            .sets_api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let patched = patched.map_err(ControllerError::api("patch", format!("replica set {name}")))?;
        self.sets[at] = Arc::new(patched);
        Ok(())
    }

    /// Deletes the oldest sets without pods beyond the history limit.
    async fn clean_up(&mut self) -> Result<(), ControllerError> {
        let limit = self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.revision_history_limit);
        let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else {
            return Ok(());
        };
        let mut old: Vec<Arc<ReplicaSet>> = self.old().map(|at| self.sets[at].clone()).collect();
        old.retain(|set| set.metadata.deletion_timestamp.is_none());
        let surplus = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        old.sort_by_key(|set| revision::number(&set.metadata, REVISION));
        for set in old.into_iter().take(surplus) {
            let status = set.status.clone().unwrap_or_default();
            let seen = status.observed_generation >= set.metadata.generation;
            if status.replicas != 0 || size(&set) != 0 || !seen {
                continue;
            }
            let name = set.name_any();
            match self.sets_api.delete(&name, &DeleteParams::background()).await {
                Ok(_) => debug!(set = name, "old replica set deleted"),
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    return Err(ControllerError::api("delete", format!("replica set {name}"))(
                        error,
                    ));
                }
            }
        }
        Ok(())
    }
}
