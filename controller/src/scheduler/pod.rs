//! A pod as the scheduler sees it: what it needs, and where it may go.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write};
use std::sync::{Arc, OnceLock};

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector as SelectorSpec, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::resources::Demand;
use super::selection::{PodSet, Term};
use crate::informer::{Cached, IndexKey, ObjectKey, controller_of};
use crate::selector::{LabelSelector, Operator, Requirement};

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

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
    pub tolerations: Vec<Toleration>,
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
    /// Name, namespace and uid only.
    pub metadata: ObjectMeta,
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
        ObjectKey::of(&self.metadata)
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
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

/// What pods that are alike have in common is kept once: a Deployment's pods differ in little but their names.
#[derive(Debug, Default)]
pub(super) struct Alike {
    known: HashMap<Signature, Common>,
    /// When so many are known, those that no pod has any more are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Common {
    labels: Arc<Labels>,
    demand: Arc<Demand>,
    constraints: Arc<Constraints>,
}

impl Alike {
    const SWEEP_AT_LEAST: usize = 1024;

    /// The pod, with what others have, too, taken from them.
    pub(super) fn share(&mut self, mut pod: PodInfo) -> PodInfo {
        let signature = pod.signature();
        if let Some(common) = self.known.get(&signature) {
            pod.labels = common.labels.clone();
            pod.demand = common.demand.clone();
            pod.constraints = common.constraints.clone();
            return pod;
        }
        if self.known.len() >= self.sweep_at {
            self.known
                .retain(|_, common| Arc::strong_count(&common.constraints) > 1);
            self.sweep_at = Self::SWEEP_AT_LEAST.max(2 * self.known.len());
        }
        let common = Common {
            labels: pod.labels.clone(),
            demand: pod.demand.clone(),
            constraints: pod.constraints.clone(),
        };
        self.known.insert(signature, common);
        pod
    }
}

impl Cached for PodInfo {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        Vec::new()
    }
}

impl From<Pod> for PodInfo {
    fn from(pod: Pod) -> Self {
        let owner = controller_of(&pod.metadata).map(|owner| owner.uid.as_str().into());
        let status = pod.status.unwrap_or_default();
        let mut spec = pod.spec.unwrap_or_default();
        let demand = Arc::new(Demand::of(&spec));
        let named = |name: Option<String>| name.filter(|name| !name.is_empty()).map(Into::into);
        let meta = ObjectMeta {
            name: pod.metadata.name,
            namespace: pod.metadata.namespace,
            uid: pod.metadata.uid,
            ..ObjectMeta::default()
        };
        let labels = pod.metadata.labels.unwrap_or_default();
        let created = pod.metadata.creation_timestamp;
        PodInfo {
            node: named(spec.node_name.take()),
            nominated: named(status.nominated_node_name),
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
            since: status.start_time.or(created).map(|time| time.0),
            owner,
            demand,
            constraints: Arc::new(constraints(spec, &meta, &labels)),
            metadata: meta,
            labels: Arc::new(labels),
            signature: OnceLock::new(),
        }
    }
}

fn constraints(spec: PodSpec, meta: &ObjectMeta, labels: &Labels) -> Constraints {
    let host_ports = host_ports(&spec);
    let claims = claims(&spec, meta.name.as_deref().unwrap_or_default());
    let images = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .filter_map(|container| container.image.clone())
        .collect();
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let Affinity {
        node_affinity,
        pod_affinity,
        pod_anti_affinity,
    } = spec.affinity.unwrap_or_default();
    let on_nodes = node_affinity.unwrap_or_default();
    let near = pod_affinity.unwrap_or_default();
    let away = pod_anti_affinity.unwrap_or_default();
    let term = |term: PodAffinityTerm| near_to(term, namespace, labels);
    let liked = near
        .preferred_during_scheduling_ignored_during_execution
        .into_iter()
        .flatten()
        .map(|wish| (i64::from(wish.weight), term(wish.pod_affinity_term)));
    let disliked = away
        .preferred_during_scheduling_ignored_during_execution
        .into_iter()
        .flatten()
        .map(|wish| (-i64::from(wish.weight), term(wish.pod_affinity_term)));
    Constraints {
        selector: spec.node_selector.unwrap_or_default(),
        required: on_nodes
            .required_during_scheduling_ignored_during_execution
            .map(|selector| selector.node_selector_terms),
        preferred: on_nodes
            .preferred_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(|term| (term.weight, term.preference))
            .collect(),
        tolerations: spec.tolerations.unwrap_or_default(),
        host_ports,
        spreads: spec
            .topology_spread_constraints
            .into_iter()
            .flatten()
            .map(|wish| spread(wish, namespace, labels))
            .collect(),
        leanings: liked.chain(disliked).collect(),
        near: near
            .required_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(term)
            .collect(),
        away: away
            .required_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(term)
            .collect(),
        claims,
        images,
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network.unwrap_or_default();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.or(host_network.then_some(port.container_port))?;
            (number > 0).then(|| HostPort {
                port: number,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                ip: port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into()),
            })
        })
        .collect()
}

/// Claims named by the pod, and those made for its own volumes.
fn claims(spec: &PodSpec, pod: &str) -> Vec<String> {
    let mut claims = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(claim) = &volume.persistent_volume_claim {
            claims.push(claim.claim_name.clone());
        } else if volume.ephemeral.is_some() {
            claims.push(format!("{pod}-{}", volume.name));
        }
    }
    claims.sort();
    claims.dedup();
    claims
}

/// The selector with the values that the pod itself has for `same`, and without those it has for `other`. The API server
/// may have written them into the selector already; saying it twice changes nothing.
fn with_own_labels(
    selector: Option<&SelectorSpec>,
    same: Option<Vec<String>>,
    other: Option<Vec<String>>,
    labels: &Labels,
) -> LabelSelector {
    // The API refuses selectors that do not parse; one that got through selects nothing.
    let Ok(parsed) = LabelSelector::from_object(selector) else {
        return LabelSelector::nothing();
    };
    if parsed.is_nothing() || (same.is_none() && other.is_none()) {
        return parsed;
    }
    let mut all = parsed.requirements().to_vec();
    for (keys, operator) in [(same, Operator::In), (other, Operator::NotIn)] {
        for key in keys.into_iter().flatten() {
            if let Some(value) = labels.get(&key)
                && let Ok(requirement) = Requirement::new(&key, operator, vec![value.clone()])
                && !all.contains(&requirement)
            {
                all.push(requirement);
            }
        }
    }
    LabelSelector::new(all)
}

fn near_to(term: PodAffinityTerm, namespace: &str, labels: &Labels) -> NearTo {
    let selector = with_own_labels(
        term.label_selector.as_ref(),
        term.match_label_keys,
        term.mismatch_label_keys,
        labels,
    );
    let namespace_selector = term.namespace_selector.as_ref().map(|selector| {
        LabelSelector::from_object(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
    });
    let mut namespaces = term.namespaces.unwrap_or_default();
    if namespaces.is_empty() && namespace_selector.is_none() {
        namespaces.push(namespace.to_owned());
    }
    NearTo {
        topology_key: term.topology_key,
        pods: Term {
            namespaces: namespaces.into_iter().map(Into::into).collect(),
            namespace_selector,
            selector,
        },
    }
}

fn spread(wish: TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Spread {
    let selector = with_own_labels(wish.label_selector.as_ref(), wish.match_label_keys, None, labels);
    Spread {
        max_skew: wish.max_skew,
        topology_key: wish.topology_key,
        required: wish.when_unsatisfiable != "ScheduleAnyway",
        min_domains: wish.min_domains,
        honor_affinity: wish.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: wish.node_taints_policy.as_deref() == Some("Honor"),
        pods: PodSet::staying(Term {
            namespaces: vec![namespace.into()],
            namespace_selector: None,
            selector,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::pod;

    #[test]
    fn what_is_alike_is_kept_once_and_not_for_ever() {
        let mut alike = Alike::default();
        let make = |name: &str, app: &str| pod(name).cpu("1").label("app", app).build();
        let (a, b) = (alike.share(make("a", "web")), alike.share(make("b", "web")));
        assert!(Arc::ptr_eq(&a.constraints, &b.constraints) && Arc::ptr_eq(&a.labels, &b.labels));
        let other = alike.share(make("c", "db"));
        assert_ne!(other.signature(), a.signature());
        assert_ne!(
            pod("d").cpu("2").label("app", "web").build().signature(),
            a.signature()
        );
        for i in 0..3 * Alike::SWEEP_AT_LEAST {
            alike.share(make("x", &format!("app{i}")));
        }
        assert!(alike.known.len() <= Alike::SWEEP_AT_LEAST + 1);
        assert!(alike.known.contains_key(&a.signature()), "some pods have it");
    }
}
