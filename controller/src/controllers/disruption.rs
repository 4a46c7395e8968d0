//! Keeps the status of PodDisruptionBudgets: how many of their pods may be taken away now. The eviction subresource counts that
//! number down; this controller finds it anew when pods come, go, or change.

pub mod decide;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use k8s_openapi::jiff::Timestamp;
use kube::Api;

use self::decide::{Basis, awaited, basis, desired_healthy, failed, healthy, status};
use super::events::Kind;
use super::pod::PodView;
use super::scale::{Scales, Target};
use super::{Context, ControllerError, Outcome, chain, spawn_workers, write_status};
use crate::informer::{Change, ObjectKey, controller_of};
use crate::queue::{Backoff, Queue};
use crate::selector::LabelSelector;

struct Disruption {
    context: Arc<Context>,
    scales: Scales,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let disruption = Arc::new(Disruption {
        context: context.clone(),
        scales: Scales::new(context.client.clone()),
    });
    let keys = queue.clone();
    context.disruption_budgets.subscribe(move |change| {
        if let Some(budget) = change.new {
            keys.add(ObjectKey::of(&budget.metadata));
        }
    });
    let (keys, told) = (queue.clone(), disruption.clone());
    context
        .pods
        .subscribe(move |change| told.pod_changed(&keys, change));
    let (budgets, pods) = (context.disruption_budgets.clone(), context.pods.clone());
    let (sets, deployments) = (context.replica_sets.clone(), context.deployments.clone());
    let ready = async move {
        budgets.wait_synced().await;
        pods.wait_synced().await;
        sets.wait_synced().await;
        deployments.wait_synced().await;
    };
    spawn_workers(
        context,
        "disruption",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let disruption = disruption.clone();
            async move { disruption.reconcile(&key).await }
        },
    );
}

fn selector(budget: &PodDisruptionBudget) -> Result<LabelSelector, ControllerError> {
    let selector = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    LabelSelector::from_object(selector).map_err(|error| ControllerError::Invalid {
        what: format!("disruption budget {}", ObjectKey::of(&budget.metadata)),
        why: error.to_string(),
    })
}

fn selects(selector: &LabelSelector, pod: &PodView) -> bool {
    selector.matches(&*pod.labels)
}

impl Disruption {
    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: &Change<'_, PodView>) {
        let Some(pod) = change.latest() else { return };
        for budget in self.context.disruption_budgets.in_namespace(pod.namespace()) {
            let Ok(selector) = selector(&budget) else { continue };
            let sides = [change.old, change.new];
            if sides.into_iter().flatten().any(|pod| selects(&selector, pod)) {
                queue.add(ObjectKey::of(&budget.metadata));
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let Some(budget) = self.context.disruption_budgets.get(key) else {
            return Ok(None);
        };
        let now = Timestamp::now();
        let old = budget.status.as_ref();
        let (fresh, again) = match self.decide(&budget, now).await {
            Ok(decided) => decided,
            Err(error) => {
                let why = chain(&error);
                let message = format!("Failed to calculate the number of expected pods: {why}");
                let recorder = &self.context.recorder;
                recorder.event(
                    &*budget,
                    Kind::Warning,
                    "CalculateExpectedPodCountFailed",
                    message,
                );
                let refused = failed(old, budget.metadata.generation, &why, now);
                self.write(key, &budget, refused).await?;
                return Err(error);
            }
        };
        self.write(key, &budget, fresh).await?;
        Ok(again)
    }

    async fn decide(
        &self,
        budget: &PodDisruptionBudget,
        now: Timestamp,
    ) -> Result<(PodDisruptionBudgetStatus, Option<std::time::Duration>), ControllerError> {
        let spec = budget.spec.clone().unwrap_or_default();
        let namespace = budget.metadata.namespace.as_deref().unwrap_or_default();
        let selector = selector(budget)?;
        let mut pods = self.context.pods.in_namespace(namespace);
        pods.retain(|pod| selects(&selector, pod));
        if pods.is_empty() {
            let recorder = &self.context.recorder;
            recorder.event(
                budget,
                Kind::Normal,
                "NoPods",
                "No matching pods found".to_owned(),
            );
        }
        let expected = match basis(&spec) {
            Basis::Pods => i32::try_from(pods.len()).unwrap_or(i32::MAX),
            Basis::Scales => self.expected(budget, namespace, &pods).await?,
        };
        let desired = desired_healthy(&spec, expected).map_err(|why| ControllerError::Invalid {
            what: format!("disruption budget {}", ObjectKey::of(&budget.metadata)),
            why,
        })?;
        let old = budget.status.as_ref();
        let (awaited, next) = awaited(&pods, old, now);
        let current = healthy(&pods, &awaited);
        let counts = [expected, current, desired];
        let fresh = status(old, budget.metadata.generation, counts, awaited, now);
        Ok((fresh, next.and_then(|next| next.try_into().ok())))
    }

    /// How many pods the controllers of these should have, all together.
    async fn expected(
        &self,
        budget: &PodDisruptionBudget,
        namespace: &str,
        pods: &[Arc<PodView>],
    ) -> Result<i32, ControllerError> {
        let (mut scales, mut unmanaged, mut asked): (BTreeMap<String, i32>, HashSet<&str>, HashSet<&str>) =
            (BTreeMap::new(), HashSet::new(), HashSet::new());
        for pod in pods {
            let Some(owner) = controller_of(&pod.metadata) else {
                unmanaged.insert(pod.name());
                continue;
            };
            if asked.insert(&owner.uid) {
                // The sets of one Deployment have one scale.
                let (uid, replicas) = self.replicas(namespace, owner).await?;
                scales.insert(uid, replicas);
            }
        }
        if !unmanaged.is_empty() {
            let mut names: Vec<_> = unmanaged.into_iter().collect();
            names.sort_unstable();
            let message = format!(
                "Pods selected by this PodDisruptionBudget (selector: {}) were found to be unmanaged. As a result, the status of the \
                 PDB cannot be calculated correctly, which may result in undefined behavior. To account for these pods please set \
                 \".spec.minAvailable\" field of the PDB to an integer value.",
                selector(budget)?
            );
            self.context
                .recorder
                .event(budget, Kind::Warning, "UnmanagedPods", message);
        }
        Ok(scales.values().sum())
    }

    /// How many pods a controller should have, and the uid of whoever says so: a ReplicaSet's Deployment knows better than the set,
    /// which a roll-out changes.
    async fn replicas(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<(String, i32), ControllerError> {
        let context = &self.context;
        let key = ObjectKey::new(namespace, &owner.name);
        if owner.kind == "ReplicaSet"
            && let Some(set) = context
                .replica_sets
                .get(&key)
                .filter(|set| set.metadata.uid.as_deref() == Some(&owner.uid))
        {
            let above = controller_of(&set.metadata).filter(|above| above.kind == "Deployment");
            let deployment = above.and_then(|above| {
                let found = context.deployments.get(&ObjectKey::new(namespace, &above.name));
                found.filter(|found| found.metadata.uid.as_ref() == Some(&above.uid))
            });
            let of_deployment = deployment.and_then(|deployment| {
                let uid = deployment.metadata.uid.clone()?;
                Some((uid, deployment.spec.as_ref()?.replicas.unwrap_or(1)))
            });
            return Ok(of_deployment.unwrap_or_else(|| {
                let of_set = set.spec.as_ref().and_then(|spec| spec.replicas);
                (owner.uid.clone(), of_set.unwrap_or(1))
            }));
        }
        let target = Target {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            name: owner.name.clone(),
        };
        let scale = self.scales.get(namespace, &target).await?;
        let scale = scale.ok_or_else(|| ControllerError::Invalid {
            what: format!("{} {key}", owner.kind),
            why: "found no controllers for its pods, or it does not implement the scale subresource"
                .to_owned(),
        })?;
        let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or_default();
        Ok((owner.uid.clone(), replicas))
    }

    async fn write(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        fresh: PodDisruptionBudgetStatus,
    ) -> Result<(), ControllerError> {
        if budget.status.as_ref() == Some(&fresh) {
            return Ok(());
        }
        // With the version that was read: an eviction that was let through meanwhile must not be forgotten.
        let changed = PodDisruptionBudget {
            status: Some(fresh),
            ..budget.clone()
        };
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.context.client.clone(), &key.namespace);
        write_status(&api, &changed).await.map(drop)
    }
}
