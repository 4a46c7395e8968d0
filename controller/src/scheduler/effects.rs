//! What decisions come to: writes to the API.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{
    Binding as BindingObject, ObjectReference, PersistentVolume, PersistentVolumeClaim, Pod,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::pod::PodInfo;
use super::volumes::{Act, BOUND_BY_CONTROLLER, ClaimView, SELECTED_NODE};
use crate::controllers::events::{Kind, Recorder};
use crate::controllers::is_not_found;
use crate::informer::{ObjectKey, Store};

/// A binding that has no answer after this time counts as failed.
const BIND_TIMEOUT: Duration = Duration::from_secs(30);
/// A pod whose volumes are not bound after this time is decided anew.
const VOLUME_TIMEOUT: Duration = Duration::from_mins(10);
/// Victims told to leave at a time.
const VICTIMS_AT_ONCE: usize = 16;

/// A pod on its way to a node.
#[derive(Debug, Clone)]
pub(super) struct Binding {
    pub(super) pod: Arc<PodInfo>,
    pub(super) node: Arc<str>,
    /// What has to be done to its volumes first.
    pub(super) acts: Vec<Act>,
}

/// What is said on a pod of the node on which room is made for it.
#[derive(Debug, Clone)]
pub(super) enum Nominated {
    /// Nothing new.
    AsBefore,
    /// It is this one.
    For(Arc<str>),
    /// There is none any more.
    NoMore,
}

/// Why a pod could not be bound.
#[derive(Debug, thiserror::Error)]
pub(super) enum BindError {
    #[error("binding failed")]
    Api(#[from] kube::Error),
    #[error("no answer to the binding for {} s", BIND_TIMEOUT.as_secs())]
    Timeout,
    #[error("volumes not bound for {} s", VOLUME_TIMEOUT.as_secs())]
    Volumes,
    #[error("provisioning failed: the node was taken from claim {0}")]
    Reschedule(ObjectKey),
}

impl BindError {
    /// Whether the pod is not there any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, BindError::Api(error) if is_not_found(error))
    }
}

/// The writer of decisions; cheap to clone.
#[derive(Clone)]
pub(super) struct Effects {
    pub(super) client: Client,
    pub(super) recorder: Recorder,
    pub(super) claims: Arc<Store<ClaimView>>,
    pub(super) claims_changed: watch::Receiver<()>,
    /// The name under which victims are told who is at it.
    pub(super) name: String,
}

impl Effects {
    fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Binds a pod, once its volumes are.
    pub(super) async fn bind(&self, binding: &Binding) -> Result<(), BindError> {
        if !binding.acts.is_empty() {
            self.prepare_volumes(binding).await?;
        }
        let pod = &binding.pod;
        let object = BindingObject {
            // The uid keeps a new pod of the same name from being bound by this decision.
            metadata: pod.metadata(),
            target: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Node".into()),
                name: Some(binding.node.to_string()),
                ..ObjectReference::default()
            },
        };
        let key = pod.key();
        let api = self.pods(&key.namespace);
        let params = PostParams::default();
        let request = api.create_subresource::<_, Value>("binding", &key.name, &params, &object);
        match tokio::time::timeout(BIND_TIMEOUT, request).await {
            Ok(result) => Ok(result.map(|_| ())?),
            Err(_) => Err(BindError::Timeout),
        }
    }

    async fn prepare_volumes(&self, binding: &Binding) -> Result<(), BindError> {
        for act in &binding.acts {
            match act {
                Act::Bind { claim, uid, volume } => self.bind_volume(claim, uid.as_ref(), volume).await?,
                Act::Provision { claim } => {
                    let note = json!({ SELECTED_NODE: &*binding.node });
                    let patch = json!({ "metadata": { "annotations": note } });
                    let api: Api<PersistentVolumeClaim> =
                        Api::namespaced(self.client.clone(), &claim.namespace);
                    api.patch(&claim.name, &PatchParams::default(), &Patch::Merge(patch))
                        .await?;
                }
            }
        }
        match tokio::time::timeout(VOLUME_TIMEOUT, self.wait_for_volumes(&binding.acts)).await {
            Ok(result) => result,
            Err(_) => Err(BindError::Volumes),
        }
    }

    async fn bind_volume(
        &self,
        claim: &ObjectKey,
        uid: Option<&String>,
        volume: &str,
    ) -> Result<(), BindError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        let found = api.get(volume).await?;
        let of = |reference: &ObjectReference| {
            reference.namespace.as_deref() == Some(&claim.namespace)
                && reference.name.as_deref() == Some(&claim.name)
        };
        let kept = found.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
        if kept.is_some_and(|kept| of(kept) && kept.uid.as_ref() == uid) {
            return Ok(());
        }
        // The version refuses this if someone else was faster.
        let patch = json!({
            "metadata": {
                "resourceVersion": found.metadata.resource_version,
                "annotations": { BOUND_BY_CONTROLLER: "yes" },
            },
            "spec": { "claimRef": {
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": &*claim.namespace, "name": &*claim.name, "uid": uid,
            } },
        });
        api.patch(volume, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    async fn wait_for_volumes(&self, acts: &[Act]) -> Result<(), BindError> {
        let mut told = vec![false; acts.len()];
        let mut changed = self.claims_changed.clone();
        loop {
            changed.mark_unchanged();
            let mut all_bound = true;
            for (act, told) in acts.iter().zip(&mut told) {
                let (Act::Bind { claim, .. } | Act::Provision { claim }) = act;
                let Some(view) = self.claims.get(claim) else {
                    return Err(BindError::Reschedule(claim.clone()));
                };
                all_bound &= view.bound;
                // The provisioner takes the annotation away if it cannot make the volume there.
                let selected = view.selected_node.is_some();
                if *told && !selected && !view.bound {
                    return Err(BindError::Reschedule(claim.clone()));
                }
                *told |= selected;
            }
            if all_bound {
                return Ok(());
            }
            // The store and its mark live as long as the scheduler.
            let _ = changed.changed().await;
        }
    }

    /// Tells the victims to leave. Whoever leaves is told why before, so that its owner can count it as disrupted.
    pub(super) async fn preempt(
        &self,
        pod: &Arc<PodInfo>,
        node: &str,
        victims: Vec<Arc<PodInfo>>,
    ) -> Result<(), kube::Error> {
        let evictions = victims.into_iter().map(|victim| {
            let (effects, pod, node) = (self.clone(), pod.clone(), node.to_owned());
            async move { effects.evict(&pod, &node, &victim).await }
        });
        let results: Vec<_> = futures::stream::iter(evictions)
            .buffer_unordered(VICTIMS_AT_ONCE)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn evict(&self, pod: &Arc<PodInfo>, node: &str, victim: &Arc<PodInfo>) -> Result<(), kube::Error> {
        if victim.terminating {
            return Ok(());
        }
        let key = victim.key();
        let api = self.pods(&key.namespace);
        let message = format!("{}: preempting to accommodate a higher priority pod", self.name);
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": message,
            "lastProbeTime": null,
            "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch = json!({ "metadata": { "uid": victim.uid() }, "status": { "conditions": [condition] } });
        let gone = |error: &kube::Error| is_not_found(error);
        match api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
        {
            Err(error) if gone(&error) => return Ok(()),
            other => other?,
        };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(victim.uid().to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&key.name, &params).await {
            Err(error) if gone(&error) => return Ok(()),
            other => other?,
        };
        self.recorder.about(
            "Pod",
            "v1",
            &victim.metadata(),
            Kind::Normal,
            "Preempted",
            format!("Preempted by pod {} on node {node}", pod.uid()),
        );
        Ok(())
    }

    /// Says on the pod that it is on its way.
    pub(super) fn tell_scheduled(&self, binding: &Binding) {
        let key = binding.pod.key();
        self.recorder.about(
            "Pod",
            "v1",
            &binding.pod.metadata(),
            Kind::Normal,
            "Scheduled",
            format!("Successfully assigned {key} to {}", binding.node),
        );
    }

    /// Says in an event that the pod cannot be placed.
    pub(super) fn tell_unschedulable(&self, pod: &PodInfo, message: String) {
        self.recorder.about(
            "Pod",
            "v1",
            &pod.metadata(),
            Kind::Warning,
            "FailedScheduling",
            message,
        );
    }

    /// Writes on the pod itself that it cannot be placed, if `message` is given, and on which node room is made for it, if
    /// that changed.
    pub(super) async fn report(&self, pod: &PodInfo, message: Option<String>, nominated: Nominated) {
        let mut status = json!({});
        if let Some(message) = message {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": Time(Timestamp::now()),
            }]);
        }
        match nominated {
            Nominated::AsBefore => {}
            Nominated::For(node) => status["nominatedNodeName"] = json!(&*node),
            Nominated::NoMore => status["nominatedNodeName"] = Value::Null,
        }
        let patch = json!({ "metadata": { "uid": pod.uid() }, "status": status });
        let key = pod.key();
        let params = PatchParams::default();
        if let Err(error) = self
            .pods(&key.namespace)
            .patch_status(&key.name, &params, &Patch::Strategic(patch))
            .await
        {
            debug!(pod = %key, %error, "status not written");
        }
    }

    /// Logs why a pod is decided anew.
    pub(super) fn tell_unbound(binding: &Binding, error: &BindError) {
        if !error.is_gone() {
            let error = error as &dyn std::error::Error;
            warn!(pod = %binding.pod.key(), node = %binding.node, error, "pod not bound, will retry");
        }
    }
}
