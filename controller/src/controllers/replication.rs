//! Keeps the asked-for number of pods of every ReplicaSet and ReplicationController.
//!
//! Pods that are being deleted count as gone, so the pods of a dead node are replaced at once.

pub mod decide;
pub mod kinds;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, PostParams, Preconditions};
use tracing::debug;

use self::decide::{Plan, ReplicaStatus, plan, status};
use self::kinds::Replicated;
use super::claim::{claims, controller_reference, settle};
use super::events::Kind;
use super::expectations::Expectations;
use super::pod::PodView;
use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::{Change, ObjectKey, Store, controller_of};
use crate::queue::{Backoff, Queue};

/// Pods created or deleted in one go; the rest follows when these were seen.
const BURST: usize = 500;

pub(crate) fn start(context: &Arc<Context>) {
    start_kind(context, &context.replica_sets);
    start_kind(context, &context.replication_controllers);
}

/// One kind of owner.
struct Replication<K> {
    context: Arc<Context>,
    owners: Arc<Store<K>>,
    expectations: Expectations,
}

fn start_kind<K: Replicated>(context: &Arc<Context>, owners: &Arc<Store<K>>) {
    let queue = Queue::new(Backoff::default());
    let replication = Arc::new(Replication {
        context: context.clone(),
        owners: owners.clone(),
        expectations: Expectations::default(),
    });
    let keys = queue.clone();
    owners.subscribe(move |change| {
        if let Some(owner) = change.latest() {
            keys.add(ObjectKey::of(owner.metadata()));
        }
    });
    let (keys, told) = (queue.clone(), replication.clone());
    context
        .pods
        .subscribe(move |change| told.pod_changed(&keys, change));
    let (own, pods) = (owners.clone(), context.pods.clone());
    let ready = async move {
        own.wait_synced().await;
        pods.wait_synced().await;
    };
    spawn_workers(
        context,
        K::CONTROLLER,
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let replication = replication.clone();
            async move { replication.reconcile(&key).await }
        },
    );
}

impl<K: Replicated> Replication<K> {
    fn owner_key(pod: &PodView) -> Option<ObjectKey> {
        let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == K::kind(&()))?;
        Some(ObjectKey::new(pod.namespace(), &owner.name))
    }

    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: &Change<'_, PodView>) {
        let (old, new) = (change.old.map(|pod| &**pod), change.new.map(|pod| &**pod));
        let old_owner = old.and_then(Self::owner_key);
        let new_owner = new.and_then(Self::owner_key);
        if let Some(key) = &new_owner
            && old_owner.as_ref() != Some(key)
        {
            self.expectations.creation_observed(key);
        }
        if let Some(key) = &old_owner
            && new_owner.as_ref() != Some(key)
        {
            self.expectations
                .deletion_observed(key, old.map(PodView::uid).unwrap_or_default());
        }
        if let Some(key) = &new_owner
            && let Some(pod) = new.filter(|pod| pod.is_terminating())
        {
            self.expectations.deletion_observed(key, pod.uid());
        }
        for key in [&old_owner, &new_owner].into_iter().flatten() {
            // Counting a large set costs time in proportion; its changes come in crowds and are taken together.
            let size = self
                .owners
                .get(key)
                .map_or(0, |owner| owner.replicas().unsigned_abs());
            let delay = Duration::from_millis(u64::from(size / 20).min(100));
            if delay.is_zero() {
                queue.add(key.clone());
            } else {
                queue.add_after(key.clone(), delay);
            }
        }
        if let Some(pod) = new.filter(|pod| new_owner.is_none() && controller_of(&pod.metadata).is_none()) {
            self.orphan_seen(queue, pod);
        }
    }

    fn orphan_seen(&self, queue: &Queue<ObjectKey>, pod: &PodView) {
        use kube::core::SelectorExt;
        let Some(labels) = &pod.metadata.labels else {
            return;
        };
        for owner in self.owners.in_namespace(pod.namespace()) {
            if owner.selector().is_ok_and(|selector| selector.matches(labels)) {
                queue.add(ObjectKey::of(owner.metadata()));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(owner) = self.owners.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        let may_act = self.expectations.satisfied(key, Instant::now());
        let selector = owner.selector().map_err(|why| ControllerError::Invalid {
            what: format!("{} {key}", K::kind(&())),
            why,
        })?;
        let client = &self.context.client;
        let pods_api: Api<Pod> = Api::namespaced(client.clone(), &key.namespace);
        let claims = claims(
            &self.context.pods,
            owner.metadata(),
            &selector,
            PodView::is_active,
        );
        let owners_api = Api::<K>::namespaced(client.clone(), &key.namespace);
        let mut pods = settle(claims, &*owner, &owners_api, &pods_api).await?;
        pods.retain(|pod| pod.is_active());

        let deleting = owner.metadata().deletion_timestamp.is_some();
        let acted = if may_act && !deleting {
            self.act(key, &owner, &pods, &pods_api).await
        } else {
            Ok(())
        };

        let now = Timestamp::now();
        let failure = if may_act {
            Some(acted.as_ref().err().map(decide::Failure::of))
        } else {
            None
        };
        let fresh = status(&*owner, &pods, failure, now);
        let written = self.write_status(&owner, &owners_api, &fresh).await;
        acted?;
        written?;
        let settling = fresh.ready > fresh.available && owner.min_ready_seconds() > 0;
        Ok(settling.then(|| Duration::from_secs(owner.min_ready_seconds().unsigned_abs().into())))
    }

    async fn act(
        &self,
        key: &ObjectKey,
        owner: &Arc<K>,
        pods: &[Arc<PodView>],
        api: &Api<Pod>,
    ) -> Result<(), ControllerError> {
        let related = |pods: &[Arc<PodView>]| self.related(owner, pods);
        match plan(owner.replicas(), pods, BURST, related, Timestamp::now()) {
            Plan::Keep => Ok(()),
            Plan::Create(count) => self.create(key, owner, count, api).await,
            Plan::Delete(victims) => self.delete(key, owner, &victims, api).await,
        }
    }

    /// Pods of all sets that belong to the same Deployment: a rollout should thin out crowded nodes.
    fn related(&self, owner: &Arc<K>, own: &[Arc<PodView>]) -> Vec<Arc<PodView>> {
        let Some(parent) = controller_of(owner.metadata()) else {
            return own.to_vec();
        };
        let siblings = self.owners.owned_by(&parent.uid);
        let uids = siblings
            .iter()
            .filter_map(|sibling| sibling.metadata().uid.as_deref());
        uids.flat_map(|uid| self.context.pods.owned_by(uid))
            .filter(|pod| pod.is_active())
            .collect()
    }

    async fn create(
        &self,
        key: &ObjectKey,
        owner: &Arc<K>,
        count: usize,
        api: &Api<Pod>,
    ) -> Result<(), ControllerError> {
        let Some(template) = owner.template() else {
            let what = format!("{} {key}", K::kind(&()));
            return Err(ControllerError::Invalid {
                what,
                why: "spec.template is missing".into(),
            });
        };
        let reference = controller_reference(&**owner);
        let pod = pod_of(template, &key.namespace, &format!("{}-", key.name), reference);
        self.expectations.expect_creations(key, count, Instant::now());
        let concurrency = self.context.config.batch_concurrency;
        let done = slow_start(count, concurrency, || async {
            let result = api.create(&PostParams::default(), &pod).await;
            match &result {
                Ok(made) => {
                    let message = format!(
                        "Created pod: {}",
                        made.metadata.name.as_deref().unwrap_or_default()
                    );
                    self.context
                        .recorder
                        .event(&**owner, Kind::Normal, "SuccessfulCreate", message);
                }
                Err(error) => {
                    self.expectations.creation_observed(key);
                    if !is_terminating_namespace(error) {
                        let message = format!("Error creating: {error}");
                        self.context
                            .recorder
                            .event(&**owner, Kind::Warning, "FailedCreate", message);
                    }
                }
            }
            result
                .map(|_| ())
                .map_err(ControllerError::api("create", format!("a pod of {key}")))
        })
        .await;
        // Those that were not even tried will not be seen.
        for _ in done.tried..count {
            self.expectations.creation_observed(key);
        }
        debug!(tried = done.tried, failed = done.failed, "pods created");
        match done.first_error {
            Some(ControllerError::Api { source, .. }) if is_terminating_namespace(&source) => Ok(()),
            Some(source) => Err(ControllerError::Batch {
                failed: done.failed,
                tried: done.tried,
                source: Box::new(source),
            }),
            None => Ok(()),
        }
    }

    async fn delete(
        &self,
        key: &ObjectKey,
        owner: &Arc<K>,
        victims: &[Arc<PodView>],
        api: &Api<Pod>,
    ) -> Result<(), ControllerError> {
        let uids = victims.iter().map(|pod| pod.uid().to_owned());
        self.expectations.expect_deletions(key, uids, Instant::now());
        let results: Vec<Result<(), ControllerError>> = stream::iter(victims.to_vec())
            .map(|pod: Arc<PodView>| async move {
                let result = delete_pod(api, &pod, None).await;
                match &result {
                    Ok(()) => {
                        let message = format!("Deleted pod: {}", pod.name());
                        self.context
                            .recorder
                            .event(&**owner, Kind::Normal, "SuccessfulDelete", message);
                    }
                    Err(error) => {
                        self.expectations.deletion_observed(key, pod.uid());
                        let message = format!("Error deleting: {error}");
                        self.context
                            .recorder
                            .event(&**owner, Kind::Warning, "FailedDelete", message);
                    }
                }
                result
            })
            .buffer_unordered(self.context.config.batch_concurrency)
            .collect()
            .await;
        let (tried, mut errors) = (results.len(), results.into_iter().filter_map(Result::err));
        match errors.next() {
            None => Ok(()),
            Some(first) => Err(ControllerError::Batch {
                failed: errors.count() + 1,
                tried,
                source: Box::new(first),
            }),
        }
    }

    async fn write_status(
        &self,
        owner: &Arc<K>,
        api: &Api<K>,
        fresh: &ReplicaStatus,
    ) -> Result<(), ControllerError> {
        if owner.status() == *fresh {
            return Ok(());
        }
        let mut object = K::clone(owner);
        object.set_status(fresh);
        let name = owner.metadata().name.clone().unwrap_or_default();
        match api.replace_status(&name, &PostParams::default(), &object).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(ControllerError::api("update status of", name)(error)),
        }
    }
}

/// A pod made from a template.
pub(crate) fn pod_of(
    template: &PodTemplateSpec,
    namespace: &str,
    prefix: &str,
    owner: OwnerReference,
) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(prefix.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Deletes exactly this pod, not a new one of its name. One that is gone already is a success.
pub(crate) async fn delete_pod(
    api: &Api<Pod>,
    pod: &PodView,
    grace: Option<u32>,
) -> Result<(), ControllerError> {
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(pod.name(), &params).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(ControllerError::api("delete", format!("pod {}", pod.name()))(
            error,
        )),
    }
}

/// Whether nothing can be created any more because the namespace is being emptied.
pub(crate) fn is_terminating_namespace(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403 && status.message.contains("being terminated"))
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) tried: usize,
    pub(crate) failed: usize,
    pub(crate) first_error: Option<ControllerError>,
}

/// Calls `act` up to `count` times, in batches of 1, 2, 4 …; stops after a batch in which one failed, so that what cannot
/// work is not tried hundreds of times.
pub(crate) async fn slow_start<F>(count: usize, concurrency: usize, act: impl Fn() -> F) -> Batch
where
    F: Future<Output = Result<(), ControllerError>>,
{
    let mut batch = Batch::default();
    let mut size = 1;
    while batch.tried < count && batch.failed == 0 {
        let now = size.min(count - batch.tried);
        let results: Vec<_> = stream::iter(0..now)
            .map(|_| act())
            .buffer_unordered(concurrency)
            .collect()
            .await;
        batch.tried += now;
        for error in results.into_iter().filter_map(Result::err) {
            batch.failed += 1;
            batch.first_error.get_or_insert(error);
        }
        size *= 2;
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn slow_start_stops_at_the_first_bad_batch() {
        let calls = AtomicUsize::new(0);
        let batch = slow_start(100, 8, || async {
            if calls.fetch_add(1, Ordering::Relaxed) == 4 {
                return Err(ControllerError::Config("no".into()));
            }
            Ok(())
        })
        .await;
        assert_eq!((batch.tried, batch.failed), (7, 1), "1 + 2 + 4");
        assert!(batch.first_error.is_some());
        let batch = slow_start(10, 8, || async { Ok(()) }).await;
        assert_eq!((batch.tried, batch.failed), (10, 0));
        assert_eq!(slow_start(0, 8, || async { Ok(()) }).await.tried, 0);
    }
}
