//! A pod as the scheduler sees it: what it needs, and where it may go.

mod alike;
mod constraints;

use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod, PodSpec, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::resources::Demand;
use super::selection::{PodSet, Term};
use crate::informer::{ObjectKey, controller_of};

pub use crate::informer::Labels;
pub(crate) use alike::Alike;

/// A host port that a pod takes on its node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Port number.
    pub port: i32,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Address on the host; `0.0.0.0` is every address.
    pub ip: String,
}

impl HostPort {
    /// Whether two pods with these ports cannot share a node.
    pub fn conflicts(&self, other: &HostPort) -> bool {
        let any = |ip: &str| ip == "0.0.0.0" || ip == "::";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || any(&self.ip) || any(&other.ip))
    }
}

/// A wish to be near to, or away from, other pods.
#[derive(Debug, Clone, PartialEq)]
pub struct NearTo {
    /// The label whose value says what is near.
    pub topology_key: String,
    /// The other pods.
    pub pods: Term,
}

/// How evenly pods have to be spread over the values of a label.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// By how much a value may exceed the least.
    pub max_skew: i32,
    /// The label.
    pub topology_key: String,
    /// Whether the pod rather waits than breaks this.
    pub required: bool,
    /// Fewer values than this count as if one had no pod.
    pub min_domains: Option<i32>,
    /// Whether only nodes that the pod's node affinity allows count.
    pub honor_affinity: bool,
    /// Whether only nodes whose taints the pod tolerates count.
    pub honor_taints: bool,
    /// The pods that are spread.
    pub pods: PodSet,
}

/// Where a pod may or would like to go.
#[derive(Debug, Default, PartialEq)]
pub struct Constraints {
    /// `spec.nodeSelector`.
    pub selector: Labels,
    /// Required node affinity: one term must match.
    pub required: Option<Vec<NodeSelectorTerm>>,
    /// Preferred node affinity with weights.
    pub preferred: Vec<(i32, NodeSelectorTerm)>,
    /// Tolerations.
    pub tolerations: Arc<[Toleration]>,
    /// Host ports.
    pub host_ports: Vec<HostPort>,
    /// How pods have to be spread.
    pub spreads: Vec<Spread>,
    /// Pods it must be near to.
    pub near: Vec<NearTo>,
    /// Pods it must be away from.
    pub away: Vec<NearTo>,
    /// Pods it would like to be near to, or, with a negative weight, away from.
    pub leanings: Vec<(i64, NearTo)>,
    /// Names of the volume claims it uses.
    pub claims: Vec<String>,
    /// Images of its containers.
    pub images: Vec<String>,
}

/// A pod as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    key: ObjectKey,
    uid: Arc<str>,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// Node it is bound to.
    pub node: Option<Arc<str>>,
    /// Node on which room is being made for it.
    pub nominated: Option<Arc<str>>,
    /// Whether it uses nothing any more.
    pub finished: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// Whether scheduling gates hold it back.
    pub gated: bool,
    /// `spec.schedulerName`.
    pub scheduler: String,
    /// `spec.priority`.
    pub priority: i32,
    /// Whether others have to leave for it: `spec.preemptionPolicy`.
    pub preempts: bool,
    /// When it was started on its node, or was made.
    pub since: Option<Timestamp>,
    /// Uid of its controller: pods of one controller are spread.
    pub owner: Option<Arc<str>>,
    /// What it needs.
    pub demand: Arc<Demand>,
    /// Where it may go.
    pub constraints: Arc<Constraints>,
    signature: OnceLock<Signature>,
}

/// Equal for pods between which placement makes no difference, but for what they have in volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signature([u8; 16]);

/// Hashes what is written to it.
struct Hashed(Sha256);

impl Write for Hashed {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

impl PodInfo {
    /// Its key.
    pub fn key(&self) -> ObjectKey {
        self.key.clone()
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.key.namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.key.name
    }

    /// Metadata that names it: name, namespace and uid only.
    pub fn metadata(&self) -> ObjectMeta {
        ObjectMeta {
            name: Some(self.name().to_owned()),
            namespace: Some(self.namespace().to_owned()),
            uid: Some(self.uid().to_owned()),
            ..ObjectMeta::default()
        }
    }

    /// What it has in common with pods for which it makes no difference to take its place.
    pub fn signature(&self) -> Signature {
        *self.signature.get_or_init(|| {
            let (place, demand) = (&self.constraints, &self.demand);
            let (labels, owner, namespace) = (&self.labels, &self.owner, self.namespace());
            let mut hashed = Hashed(Sha256::new());
            // Hashing takes everything.
            let _ = write!(hashed, "{namespace} {labels:?} {owner:?} {place:?} {demand:?}");
            let mut signature = [0; 16];
            signature.copy_from_slice(&hashed.0.finalize()[..16]);
            Signature(signature)
        })
    }

    /// Whether it counts the same wherever it is placed.
    pub(super) fn counts_as(&self, other: &PodInfo) -> bool {
        self.terminating == other.terminating && self.signature() == other.signature()
    }
}

impl From<Pod> for PodInfo {
    fn from(mut pod: Pod) -> Self {
        PodInfo::take(&mut pod)
    }
}

impl PodInfo {
    /// Takes what the scheduler needs out of a pod. Labels, affinities, tolerations and other wishes are gone from it then.
    pub fn take(pod: &mut Pod) -> Self {
        let owner = controller_of(&pod.metadata).map(|owner| owner.uid.as_str().into());
        let key = ObjectKey::of(&pod.metadata);
        let labels = pod.metadata.labels.take().unwrap_or_default();
        let mut without_spec = PodSpec::default();
        let spec = pod.spec.as_mut().unwrap_or(&mut without_spec);
        let without_status = PodStatus::default();
        let status = pod.status.as_ref().unwrap_or(&without_status);
        let demand = Arc::new(Demand::of(spec));
        let named = |name: Option<&String>| {
            name.filter(|name| !name.is_empty())
                .map(|name| name.as_str().into())
        };
        PodInfo {
            node: named(spec.node_name.as_ref()),
            nominated: named(status.nominated_node_name.as_ref()),
            finished: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            gated: spec
                .scheduling_gates
                .as_ref()
                .is_some_and(|gates| !gates.is_empty()),
            scheduler: spec
                .scheduler_name
                .take()
                .unwrap_or_else(|| "default-scheduler".into()),
            priority: spec.priority.unwrap_or_default(),
            preempts: spec.preemption_policy.as_deref() != Some("Never"),
            since: status
                .start_time
                .as_ref()
                .or(pod.metadata.creation_timestamp.as_ref())
                .map(|time| time.0),
            owner,
            demand,
            constraints: Arc::new(constraints::take(spec, &key, &labels)),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            key,
            labels: Arc::new(labels),
            signature: OnceLock::new(),
        }
    }
}
