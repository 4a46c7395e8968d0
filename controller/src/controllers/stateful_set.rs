//! Keeps the pods of every StatefulSet: each with a name, a host name and claims of its own that outlive it.
//!
//! Names are fixed, so a pod cannot be made twice and nothing has to be expected: a local copy that lags ends in a conflict.

pub mod decide;
pub mod identity;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, PodTemplateSpec};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::debug;

use self::decide::{Counts, Situation, Step, Why, Wishes};
use self::identity::Retention;
use super::claim::{claims, settle, strict, suitors};
use super::events::Kind;
use super::history::{HASH_LABEL, History, Subject, template_of};
use super::pod::PodView;
use super::pod_control::delete_pod;
use super::volumes::has_finalizer;
use super::{
    Context, ControllerError, Outcome, garbage, is_conflict, is_not_found, is_terminating_namespace, said,
    spawn_workers, subscribe, write_status,
};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

const KIND: &str = "StatefulSet";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    subscribe::to_objects(&queue, &context.stateful_sets);
    subscribe::to_owners(&queue, &context.pods, KIND);
    subscribe::to_owners(&queue, &context.revisions, KIND);
    let (keys, sets) = (queue.clone(), context.stateful_sets.clone());
    context.pods.subscribe(move |change| {
        let selector = |set: &StatefulSet| strict(set.spec.as_ref()?.selector.clone()).ok();
        for key in suitors(&sets, change, selector) {
            keys.add(key);
        }
    });
    // A set may wait until the claim of a former pod is gone.
    let (keys, sets) = (queue.clone(), context.stateful_sets.clone());
    context.claims.subscribe(move |change| {
        let Some(claim) = change.old.filter(|_| change.new.is_none()) else {
            return;
        };
        for set in sets.in_namespace(claim.metadata.namespace.as_deref().unwrap_or_default()) {
            if set
                .spec
                .as_ref()
                .is_some_and(|spec| spec.volume_claim_templates.is_some())
            {
                keys.add(ObjectKey::of(&set.metadata));
            }
        }
    });
    let waited = context.clone();
    let ready = async move {
        waited.stateful_sets.wait_synced().await;
        waited.pods.wait_synced().await;
        waited.revisions.wait_synced().await;
        waited.claims.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(
        context,
        "statefulset",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let context = shared.clone();
            async move { Box::pin(reconcile(&context, &key)).await }
        },
    );
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let Some(set) = context.stateful_sets.get(key) else {
        return Ok(None);
    };
    let Some(spec) = &set.spec else { return Ok(None) };
    let meta = &set.metadata;
    if meta.deletion_timestamp.is_some() && has_finalizer(meta, garbage::ORPHAN) {
        // What it leaves behind is to be nobody's, its claims above all.
        return Ok(None);
    }
    let Ok(selector) = strict(spec.selector.clone()) else {
        let message = "This stateful set is selecting all pods. A non-empty selector is required.";
        context
            .recorder
            .event(&*set, Kind::Warning, "SelectingAll", message.into());
        return Ok(None);
    };
    let api: Api<StatefulSet> = Api::namespaced(context.client.clone(), &key.namespace);
    let pods_api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
    let member = |pod: &PodView| identity::ordinal(&key.name, pod.name()).is_some();
    let pods = claims(&context.pods, &set.metadata, &selector, member);
    let pods = settle(pods, &*set, &api, &pods_api).await?;
    let known = set.status.clone().unwrap_or_default();
    let subject = Subject {
        context,
        owner: &*set,
        owners: &api,
        selector: &selector,
        template: &spec.template,
        collisions: known.collision_count.unwrap_or(0),
    };
    let history = subject.history().await?;
    let update = history.update.name_any();
    let current = known.current_revision.clone().unwrap_or_default();
    let current = history
        .revisions
        .iter()
        .find(|revision| revision.name_any() == current)
        .unwrap_or(&history.update);
    let wishes = Wishes::of(&set);
    let situation = Situation {
        name: &key.name,
        wishes,
        pods: &pods,
        current: &current.name_any(),
        update: &update,
        now: Timestamp::now(),
    };
    let hand = Hand {
        context,
        set: &set,
        pods_api,
        claims_api: Api::namespaced(context.client.clone(), &key.namespace),
        wishes,
        current,
        history: &history,
    };
    let deleting = set.metadata.deletion_timestamp.is_some();
    let acted = if deleting {
        hand.own_claims(&pods, &[]).await
    } else {
        hand.act(&situation, &pods).await
    };
    let counts = situation.counts();
    let written = report(&api, &set, &history, &current.name_any(), counts).await;
    acted?;
    written?;
    if !deleting {
        let live: BTreeSet<String> = pods
            .iter()
            .filter_map(|pod| pod.label(HASH_LABEL).map(str::to_owned))
            .chain([update, current.name_any()])
            .collect();
        subject
            .trim(&history, &live, spec.revision_history_limit.unwrap_or(10))
            .await?;
    }
    let settling = wishes.min_ready_seconds > 0 && counts.ready != counts.available;
    Ok(settling.then(|| Duration::from_secs(wishes.min_ready_seconds.unsigned_abs().into())))
}

/// What takes the steps of one pass.
struct Hand<'a> {
    context: &'a Context,
    set: &'a StatefulSet,
    pods_api: Api<Pod>,
    claims_api: Api<PersistentVolumeClaim>,
    wishes: Wishes,
    current: &'a Arc<ControllerRevision>,
    history: &'a History,
}

impl Hand<'_> {
    async fn act(&self, situation: &Situation<'_>, pods: &[Arc<PodView>]) -> Result<(), ControllerError> {
        // Before a pod goes, its claims must know whether they go with it.
        self.own_claims(pods, &situation.condemned()).await?;
        let results: Vec<Result<(), ControllerError>> = stream::iter(situation.plan())
            .map(|step| async move {
                match step {
                    Step::Create(ordinal) => self.create(ordinal).await,
                    Step::Delete(pod, why) => self.delete(&pod, why).await,
                    Step::Claims(ordinal) => self.make_claims(ordinal).await.map(|_| ()),
                    Step::Identify(pod, ordinal) => self.identify(&pod, ordinal).await,
                }
            })
            .buffer_unordered(self.context.config.batch_concurrency)
            .collect()
            .await;
        let tried = results.len();
        let mut errors = results.into_iter().filter_map(Result::err);
        match errors.next() {
            None => Ok(()),
            Some(only) if tried == 1 => Err(only),
            Some(first) => Err(ControllerError::Batch {
                failed: errors.count() + 1,
                tried,
                source: Box::new(first),
            }),
        }
    }

    fn name(&self) -> String {
        self.set.name_any()
    }

    fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        self.context.recorder.event(self.set, kind, reason, message);
    }

    async fn create(&self, ordinal: i32) -> Result<(), ControllerError> {
        let pod_name = identity::pod_name(&self.name(), ordinal);
        if !self.make_claims(ordinal).await? {
            debug!(
                pod = pod_name,
                "not made: a claim of its predecessor is on its way out"
            );
            return Ok(());
        }
        let revision = if self.wishes.keeps_current(ordinal) {
            self.current
        } else {
            &self.history.update
        };
        let template: Option<PodTemplateSpec> = template_of(revision);
        let template = template.ok_or_else(|| ControllerError::Invalid {
            what: format!("controller revision {}", revision.name_any()),
            why: "it keeps no pod template".into(),
        })?;
        let pod = identity::pod(self.set, &template, &revision.name_any(), ordinal);
        let of = format!("create Pod {pod_name} in StatefulSet {}", self.name());
        match self.pods_api.create(&PostParams::default(), &pod).await {
            Ok(_) => {
                self.tell(Kind::Normal, "SuccessfulCreate", format!("{of} successful"));
                Ok(())
            }
            Err(error) if is_terminating_namespace(&error) => Ok(()),
            Err(error) => {
                // A conflict is a copy that lags, mostly.
                if !is_conflict(&error) {
                    self.tell(
                        Kind::Warning,
                        "FailedCreate",
                        format!("{of} failed error: {}", said(&error)),
                    );
                }
                Err(ControllerError::api("create", format!("pod {pod_name}"))(error))
            }
        }
    }

    async fn delete(&self, pod: &PodView, why: Why) -> Result<(), ControllerError> {
        let (set, name) = (self.name(), pod.name());
        let namespace = pod.namespace();
        match why {
            Why::Failed => self.tell(
                Kind::Warning,
                "RecreatingFailedPod",
                format!("StatefulSet {namespace}/{set} is recreating failed Pod {name}"),
            ),
            Why::Succeeded => self.tell(
                Kind::Normal,
                "RecreatingTerminatedPod",
                format!("StatefulSet {namespace}/{set} is recreating terminated Pod {name}"),
            ),
            Why::Condemned | Why::Outdated => debug!(pod = name, ?why, "pod to be deleted"),
        }
        let of = format!("delete Pod {name} in StatefulSet {set}");
        let result = delete_pod(&self.pods_api, pod, None).await;
        match &result {
            Ok(()) => self.tell(Kind::Normal, "SuccessfulDelete", format!("{of} successful")),
            Err(ControllerError::Api { source, .. }) => {
                self.tell(
                    Kind::Warning,
                    "FailedDelete",
                    format!("{of} failed error: {}", said(source)),
                );
            }
            Err(_) => {}
        }
        result
    }

    /// Makes the claims of an ordinal that do not exist; returns whether a pod may use them all.
    async fn make_claims(&self, ordinal: i32) -> Result<bool, ControllerError> {
        let retention = Retention::of(self.set);
        let pod_name = identity::pod_name(&self.name(), ordinal);
        for mut claim in identity::claims(self.set, ordinal) {
            let name = claim.name_any();
            if let Some(known) = self.context.claims.get(&ObjectKey::of(&claim.metadata)) {
                if identity::is_leaving(&known, &pod_name) {
                    return Ok(false);
                }
                continue;
            }
            claim.metadata.owner_references = retention.owners(self.set, &pod_name, None, &[]);
            let of = format!(
                "create Claim {name} Pod {pod_name} in StatefulSet {}",
                self.name()
            );
            match self.claims_api.create(&PostParams::default(), &claim).await {
                Ok(_) => self.tell(Kind::Normal, "SuccessfulCreate", format!("{of} success")),
                // The copy lags.
                Err(error) if is_conflict(&error) => {}
                Err(error) => {
                    if !is_terminating_namespace(&error) {
                        self.tell(
                            Kind::Warning,
                            "FailedCreate",
                            format!("{of} failed error: {}", said(&error)),
                        );
                    }
                    return Err(ControllerError::api("create", format!("claim {name}"))(error));
                }
            }
        }
        Ok(true)
    }

    async fn identify(&self, pod: &PodView, ordinal: i32) -> Result<(), ControllerError> {
        let labels = identity::labels(&self.name(), ordinal);
        let patch = json!({ "metadata": { "uid": pod.uid(), "labels": labels } });
        let patched = self
            .pods_api
            .patch(pod.name(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(ControllerError::api("label", format!("pod {}", pod.name()))(
                error,
            )),
        }
    }

    /// Gives the claims of all pods the owners that the retention policy asks for.
    async fn own_claims(
        &self,
        pods: &[Arc<PodView>],
        condemned: &[Arc<PodView>],
    ) -> Result<(), ControllerError> {
        let retention = Retention::of(self.set);
        for pod in pods {
            let Some(ordinal) = identity::ordinal(&self.name(), pod.name()) else {
                continue;
            };
            let going = condemned
                .iter()
                .find(|condemned| condemned.uid() == pod.uid())
                .map(|pod| &**pod);
            for claim in identity::claims(self.set, ordinal) {
                let Some(known) = self.context.claims.get(&ObjectKey::of(&claim.metadata)) else {
                    continue;
                };
                let owners = known.metadata.owner_references.as_deref().unwrap_or_default();
                let Some(owners) = retention.owners(self.set, pod.name(), going, owners) else {
                    continue;
                };
                let name = known.name_any();
                let patch = json!({ "metadata": { "resourceVersion": known.metadata.resource_version,
                    "ownerReferences": owners } });
                let patched = self
                    .claims_api
                    .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                    .await;
                match patched {
                    Ok(_) => debug!(claim = name, "owners changed"),
                    Err(error) if is_not_found(&error) => {}
                    Err(error) => return Err(ControllerError::api("patch", format!("claim {name}"))(error)),
                }
            }
        }
        Ok(())
    }
}

async fn report(
    api: &Api<StatefulSet>,
    set: &StatefulSet,
    history: &History,
    current: &str,
    counts: Counts,
) -> Result<(), ControllerError> {
    let update = history.update.name_any();
    let fresh = StatefulSetStatus {
        observed_generation: set.metadata.generation,
        replicas: counts.replicas,
        ready_replicas: Some(counts.ready),
        available_replicas: Some(counts.available),
        current_replicas: Some(counts.current),
        updated_replicas: Some(counts.updated),
        current_revision: Some(if counts.complete {
            update.clone()
        } else {
            current.to_owned()
        }),
        update_revision: Some(update),
        collision_count: Some(history.collisions),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    if set.status.as_ref() == Some(&fresh) {
        return Ok(());
    }
    let object = StatefulSet {
        status: Some(fresh),
        ..set.clone()
    };
    write_status(api, &object).await.map(drop)
}
