//! Rolls a Deployment's pods from one template to the next, by growing and shrinking one ReplicaSet per template.

pub mod decide;
pub mod revision;
pub mod status;
pub mod template;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{debug, info};

use self::decide::{Limits, SetView};
use self::revision::{DESIRED, MAX, REVISION};
use super::claim::{claims, controller_reference, settle};
use super::events::Kind;
use super::{Context, ControllerError, Outcome, is_conflict, is_not_found, spawn_workers};
use crate::informer::{ObjectKey, controller_of};
use crate::queue::{Backoff, Queue};

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
    let keys = queue.clone();
    context.deployments.subscribe(move |change| {
        if let Some(deployment) = change.latest() {
            keys.add(ObjectKey::of(&deployment.metadata));
        }
    });
    let owner_of = |set: &ReplicaSet| {
        let owner = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment")?;
        Some(ObjectKey::new(
            set.metadata.namespace.as_deref().unwrap_or_default(),
            &owner.name,
        ))
    };
    let (keys, deployments) = (queue.clone(), context.deployments.clone());
    context.replica_sets.subscribe(move |change| {
        for set in [change.old, change.new].into_iter().flatten() {
            if let Some(key) = owner_of(set) {
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
        let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        let set = sets.get(&ObjectKey::new(pod.namespace(), &owner.name));
        if let Some(key) = set.and_then(|set| owner_of(&set))
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

/// One pass over one Deployment.
struct Rollout<'a> {
    context: &'a Context,
    key: &'a ObjectKey,
    api: Api<Deployment>,
    sets_api: Api<ReplicaSet>,
    deployment: Arc<Deployment>,
    /// All its sets, oldest first.
    sets: Vec<Arc<ReplicaSet>>,
    /// Which of them has the Deployment's template.
    new: Option<usize>,
    now: Timestamp,
}

impl Rollout<'_> {
    async fn run(&mut self) -> Outcome {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            return self.write_status().await;
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
            return self.write_status().await;
        }
        if self.is_scaling() {
            self.sync_new(false).await?;
            self.scale_all().await?;
            return self.write_status().await;
        }
        if is_recreate(&self.deployment) {
            self.recreate().await
        } else {
            self.roll().await
        }
    }

    fn find_new(&self) -> Option<usize> {
        let wanted = &self.deployment.spec.as_ref()?.template;
        // The oldest of several equal ones, so that all passes agree.
        self.sets.iter().position(|set| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            template.is_some_and(|template| template::same(template, wanted))
        })
    }

    fn views(&self) -> Vec<SetView> {
        self.sets.iter().map(|set| view(set)).collect()
    }

    fn old(&self) -> impl Iterator<Item = usize> + use<> {
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

    /// Brings the new set's annotations up to date, or makes the set.
    async fn sync_new(&mut self, create: bool) -> Result<(), ControllerError> {
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
            self.announce_revision(&annotations[REVISION]).await
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
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {error}");
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

    async fn patch_set(&mut self, at: usize, patch: serde_json::Value) -> Result<(), ControllerError> {
        let name = self.sets[at].name_any();
        let patched = self
            .sets_api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        let patched = patched.map_err(ControllerError::api("patch", format!("replica set {name}")))?;
        self.sets[at] = Arc::new(patched);
        Ok(())
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

    /// Notes that the rollout was paused or resumed, so that a pause does not count against the deadline.
    async fn write_pause(&mut self, paused: bool) -> Result<bool, ControllerError> {
        if self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.progress_deadline_seconds)
            .is_none()
        {
            return Ok(false);
        }
        let mut fresh = self.deployment.status.clone().unwrap_or_default();
        let reason = status::condition(&fresh, status::PROGRESSING).and_then(|c| c.reason.clone());
        if reason.as_deref() == Some(status::TIMED_OUT) {
            return Ok(false);
        }
        let noted = reason.as_deref() == Some(status::PAUSED);
        let (reason, message) = match (paused, noted) {
            (true, false) => (status::PAUSED, "Deployment is paused"),
            (false, true) => (status::RESUMED, "Deployment is resumed"),
            _ => return Ok(false),
        };
        status::set(
            &mut fresh,
            status::PROGRESSING,
            "Unknown",
            reason,
            message.into(),
            self.now,
        );
        self.put_status(fresh).await?;
        Ok(true)
    }

    /// Restarts the clock of the progress deadline.
    async fn note_progress(&mut self, reason: &str, message: &str) -> Result<(), ControllerError> {
        if self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.progress_deadline_seconds)
            .is_none()
        {
            return Ok(());
        }
        let mut fresh = self.deployment.status.clone().unwrap_or_default();
        status::set(
            &mut fresh,
            status::PROGRESSING,
            "True",
            reason,
            message.into(),
            self.now,
        );
        self.put_status(fresh).await
    }

    async fn write_status(&mut self) -> Outcome {
        let all: Vec<&ReplicaSet> = self.sets.iter().map(|set| &**set).collect();
        let new = self.new.map(|new| &*self.sets[new]);
        let limits = limits(&self.deployment);
        let mut fresh = status::counted(&self.deployment, limits, new, &all, self.now);
        status::judge_progress(&self.deployment, new, &all, &mut fresh, self.now);
        let stuck_at = status::stuck_at(&self.deployment, &fresh);
        self.put_status(fresh).await?;
        Ok(stuck_at.map(|at| {
            let left = at.duration_since(self.now);
            Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1)
        }))
    }

    async fn put_status(&mut self, fresh: DeploymentStatus) -> Result<(), ControllerError> {
        if self.deployment.status.as_ref() == Some(&fresh) {
            return Ok(());
        }
        let mut object = Deployment::clone(&self.deployment);
        object.status = Some(fresh);
        match self
            .api
            .replace_status(&self.key.name, &PostParams::default(), &object)
            .await
        {
            Ok(written) => {
                self.deployment = Arc::new(written);
                Ok(())
            }
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(ControllerError::api(
                "update status of",
                format!("deployment {}", self.key),
            )(error)),
        }
    }
}
