//! What controllers need to know of a pod, at a fraction of its size.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodCondition, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;

use crate::informer::{Cached, IndexKey, default_index_keys, slim};

/// Annotation that says how dear a pod is when a replica set shrinks.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `status.phase`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Not started, or not reported yet.
    #[default]
    Pending,
    /// The node cannot say.
    Unknown,
    /// At least one container runs.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one badly.
    Failed,
}

impl Phase {
    fn parse(phase: Option<&str>) -> Self {
        match phase {
            Some("Running") => Phase::Running,
            Some("Succeeded") => Phase::Succeeded,
            Some("Failed") => Phase::Failed,
            Some("Unknown") => Phase::Unknown,
            _ => Phase::Pending,
        }
    }
}

/// A projection of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodView {
    /// Metadata without managed fields and without annotations that no controller reads.
    pub metadata: ObjectMeta,
    /// The node it is bound to.
    pub node: Option<Arc<str>>,
    /// Its phase.
    pub phase: Phase,
    /// Condition Ready.
    pub ready: bool,
    /// When condition Ready last changed.
    pub ready_changed: Option<Timestamp>,
    /// The highest restart count of its containers.
    pub restarts: i32,
    /// Tolerations that matter for NoExecute taints.
    pub tolerations: Vec<Toleration>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<Arc<str>>,
}

impl From<Pod> for PodView {
    fn from(pod: Pod) -> Self {
        let mut metadata = pod.metadata;
        slim(&mut metadata);
        metadata.annotations = metadata.annotations.map(|mut all| {
            all.retain(|key, _| key == DELETION_COST);
            all
        });
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        let mut tolerations = spec.tolerations.unwrap_or_default();
        tolerations.retain(|t| {
            t.effect
                .as_deref()
                .is_none_or(|e| e.is_empty() || e == "NoExecute")
        });
        tolerations.shrink_to_fit();
        PodView {
            node: spec.node_name.filter(|n| !n.is_empty()).map(Into::into),
            phase: Phase::parse(status.phase.as_deref()),
            ready: ready.is_some_and(|c: &PodCondition| c.status == "True"),
            ready_changed: ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0),
            restarts: status
                .container_statuses
                .iter()
                .flatten()
                .map(|c| c.restart_count)
                .max()
                .unwrap_or_default(),
            tolerations,
            host_network: spec.host_network.unwrap_or_default(),
            ips: status
                .pod_ips
                .into_iter()
                .flatten()
                .map(|ip| ip.ip.into())
                .collect(),
            metadata,
        }
    }
}

impl Cached for PodView {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        let mut keys = default_index_keys(&self.metadata);
        if let Some(node) = &self.node {
            keys.push(IndexKey::Node(node.clone()));
        }
        keys
    }
}

impl PodView {
    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether it has ended for good.
    pub fn is_finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether it counts as a replica: neither finished nor being deleted.
    pub fn is_active(&self) -> bool {
        !self.is_terminating() && !self.is_finished()
    }

    /// Whether it has been ready for `min_ready_seconds`.
    pub fn is_available(&self, min_ready_seconds: i32, now: Timestamp) -> bool {
        self.ready
            && (min_ready_seconds <= 0
                || self
                    .ready_changed
                    .is_some_and(|since| now.duration_since(since).as_secs() >= i64::from(min_ready_seconds)))
    }
}
