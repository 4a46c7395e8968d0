//! Keeps the asked-for number of pods of every ReplicaSet and ReplicationController.
//!
//! Pods that are being deleted count as gone, so the pods of a dead node are replaced at once.

pub mod decide;
pub mod kinds;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::Api;

use self::decide::{Plan, ReplicaStatus, plan, status};
use self::kinds::Replicated;
use super::claim::{claims, controller_reference, settle, suitors};
use super::expectations::Expectations;
use super::pod::PodView;
use super::pod_control::{PodControl, observe, pod_of};
use super::{Context, ControllerError, Outcome, spawn_workers, subscribe, write_status};
use crate::informer::{Change, ObjectKey, Store, controller_of};
use crate::queue::{Backoff, Queue};

/// Pods created or deleted in one go; the rest follows when these were seen.
const BURST: usize = 500;

pub(crate) fn start_replica_sets(context: &Arc<Context>) {
    start(context, &context.replica_sets);
}

pub(crate) fn start_replication_controllers(context: &Arc<Context>) {
    start(context, &context.replication_controllers);
}

/// One kind of owner.
struct Replication<K> {
    context: Arc<Context>,
    owners: Arc<Store<K>>,
    expectations: Expectations,
}

fn start<K: Replicated>(context: &Arc<Context>, owners: &Arc<Store<K>>) {
    let queue = Queue::new(Backoff::default());
    let replication = Arc::new(Replication {
        context: context.clone(),
        owners: owners.clone(),
        expectations: Expectations::default(),
    });
    subscribe::to_objects(&queue, owners);
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
    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: &Change<'_, PodView>) {
        let owners = observe(&self.expectations, &K::kind(&()), change);
        for key in owners.iter().flatten() {
            // The next ones are made as soon as the last were seen.
            if self.expectations.settle(key) {
                queue.add(key.clone());
                continue;
            }
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
        for key in suitors(&self.owners, change, |owner| owner.selector().ok()) {
            queue.add(key);
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
        let written = self.report(&owner, &owners_api, &fresh).await;
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
        let control = PodControl {
            context: &self.context,
            owner: &**owner,
            key,
            expectations: &self.expectations,
            api: api.clone(),
        };
        let related = |pods: &[Arc<PodView>]| self.related(owner, pods);
        match plan(owner.replicas(), pods, BURST, related, Timestamp::now()) {
            Plan::Keep => Ok(()),
            Plan::Create(count) => self.create(&control, owner, count).await,
            Plan::Delete(victims) => {
                let uids = victims.iter().map(|pod| pod.uid().to_owned());
                self.expectations.expect(key, 0, uids, Instant::now());
                control.delete(&victims).await
            }
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
        control: &PodControl<'_, K>,
        owner: &Arc<K>,
        count: usize,
    ) -> Result<(), ControllerError> {
        let key = control.key;
        let Some(template) = owner.template() else {
            let what = format!("{} {key}", K::kind(&()));
            return Err(ControllerError::Invalid {
                what,
                why: "spec.template is missing".into(),
            });
        };
        let pod = pod_of(
            template,
            &key.namespace,
            &format!("{}-", key.name),
            controller_reference(&**owner),
        );
        self.expectations
            .expect(key, count, std::iter::empty(), Instant::now());
        control.create(count, |_| pod.clone()).await
    }

    async fn report(
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
        write_status(api, &object).await.map(drop)
    }
}
