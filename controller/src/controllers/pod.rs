//! What controllers need to know of a pod, at a fraction of its size.

use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodSpec, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::runtime::watcher;
use tokio_util::sync::CancellationToken;

use crate::informer::{
    Cached, IndexKey, Labels, ObjectKey, Store, Unread, controller_of, default_index_keys, slim,
};
use crate::scheduler::pod::{Alike, Constraints, PodInfo};

/// Annotation that says how dear a pod is when a replica set shrinks.
pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";
/// Annotation and label: which of an Indexed Job's indexes a pod works on.
pub const COMPLETION_INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Annotation: how often the pod's index had failed before.
pub const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Annotation: how many failures of the pod's index were not held against it.
pub const INDEX_IGNORED: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

/// The annotations that controllers read.
const READ: &[&str] = &[DELETION_COST, COMPLETION_INDEX, INDEX_FAILURES, INDEX_IGNORED];

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

/// How a pod ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// When its last container stopped.
    pub at: Option<Timestamp>,
    /// Containers that ended, with their exit codes.
    pub exits: Vec<(Box<str>, i32)>,
    /// Conditions, as type and status.
    pub conditions: Vec<(Box<str>, Box<str>)>,
}

impl End {
    fn of(meta: &ObjectMeta, status: &PodStatus) -> Option<Box<Self>> {
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        if !finished || controller_of(meta).is_none_or(|owner| owner.kind != "Job") {
            return None;
        }
        let containers = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses);
        let ends: Vec<_> = containers
            .flatten()
            .filter_map(|container| Some((&container.name, container.state.as_ref()?.terminated.as_ref()?)))
            .collect();
        let conditions = status.conditions.as_deref().unwrap_or_default();
        let unready = conditions
            .iter()
            .find(|condition| condition.type_ == "Ready" && condition.status != "True")
            .and_then(|condition| condition.last_transition_time.as_ref());
        let last = ends
            .iter()
            .filter_map(|(_, end)| end.finished_at.as_ref().map(|time| time.0))
            .max();
        Some(Box::new(End {
            at: last.or(unready.map(|time| time.0)),
            exits: ends
                .iter()
                .map(|(name, end)| (name.as_str().into(), end.exit_code))
                .collect(),
            conditions: conditions
                .iter()
                .map(|condition| (condition.type_.as_str().into(), condition.status.as_str().into()))
                .collect(),
        }))
    }
}

/// The node that a required affinity to a name pins a pod to: DaemonSets place their pods so.
fn pinned(constraints: &Constraints) -> Option<Arc<str>> {
    let [term] = constraints.required.as_deref()? else {
        return None;
    };
    let [field] = term.match_fields.as_deref()? else {
        return None;
    };
    match field.values.as_deref()? {
        [node] if field.key == "metadata.name" && field.operator == "In" => Some(node.as_str().into()),
        _ => None,
    }
}

/// A projection of a pod.
#[derive(Debug, Clone, Default)]
pub struct PodView {
    /// Metadata without managed fields, without annotations that no controller reads, and without the labels.
    pub metadata: ObjectMeta,
    /// Its labels.
    pub labels: Arc<Labels>,
    /// What the scheduler needs to know of it.
    pub scheduling: Arc<PodInfo>,
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
    /// The restarts of all its containers together.
    pub total_restarts: i32,
    /// The one node on which it may run, while it is not bound.
    pub pinned: Option<Arc<str>>,
    /// How it ended; kept of the pods of Jobs alone.
    pub end: Option<Box<End>>,
    /// Its tolerations.
    pub tolerations: Arc<[Toleration]>,
    /// Whether it shares the node's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<Arc<str>>,
    /// Ports of its containers that have a name.
    pub ports: Box<[NamedPort]>,
    /// Its name in the domain of its Service.
    pub hostname: Option<Box<str>>,
    /// The Service whose domain it has a name in.
    pub subdomain: Option<Box<str>>,
}

/// Keeps `pods` true until `shutdown`: the one copy that controllers and scheduler have, read once off one watch.
pub async fn follow(pods: &Store<PodView>, client: Client, shutdown: CancellationToken) {
    let alike = Mutex::new(Alike::default());
    let project = |mut pod: Pod| {
        let scheduling = PodInfo::take(&mut pod);
        let shared = alike
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .share(scheduling);
        PodView::of(pod, shared)
    };
    pods.follow(
        Unread::all::<Pod>(client),
        watcher::Config::default(),
        project,
        shutdown,
    )
    .await;
}

/// A port of a container that others know by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name.
    pub name: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// Its number.
    pub number: i32,
}

/// The named ports of containers, those of sidecars last.
fn named_ports(spec: &PodSpec) -> Box<[NamedPort]> {
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(NamedPort {
                name: port.name.as_deref()?.into(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
                number: port.container_port,
            })
        })
        .collect()
}

impl From<Pod> for PodView {
    fn from(mut pod: Pod) -> Self {
        let scheduling = PodInfo::take(&mut pod);
        PodView::of(pod, scheduling)
    }
}

impl PodView {
    /// What is left of a pod from which has been taken what the scheduler needs of it.
    fn of(pod: Pod, scheduling: PodInfo) -> Self {
        let mut metadata = pod.metadata;
        slim(&mut metadata);
        metadata.annotations = metadata.annotations.map(|mut all| {
            all.retain(|key, _| READ.contains(&key.as_str()));
            all
        });
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        let pinned = pinned(&scheduling.constraints).filter(|_| scheduling.node.is_none());
        let restarts = || {
            status
                .container_statuses
                .iter()
                .flatten()
                .map(|c| c.restart_count)
        };
        let init_restarts = || {
            status
                .init_container_statuses
                .iter()
                .flatten()
                .map(|c| c.restart_count)
        };
        let end = End::of(&metadata, &status);
        PodView {
            ports: named_ports(&spec),
            hostname: spec.hostname.map(String::into_boxed_str),
            subdomain: spec.subdomain.map(String::into_boxed_str),
            end,
            pinned,
            total_restarts: restarts().chain(init_restarts()).sum(),
            restarts: restarts().max().unwrap_or_default(),
            node: scheduling.node.clone(),
            phase: Phase::parse(status.phase.as_deref()),
            ready: ready.is_some_and(|c: &PodCondition| c.status == "True"),
            ready_changed: ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0),
            labels: scheduling.labels.clone(),
            tolerations: scheduling.constraints.tolerations.clone(),
            host_network: spec.host_network.unwrap_or_default(),
            ips: status
                .pod_ips
                .into_iter()
                .flatten()
                .map(|ip| ip.ip.into())
                .collect(),
            metadata,
            scheduling: Arc::new(scheduling),
        }
    }
}

impl Cached for PodView {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn key(&self) -> ObjectKey {
        self.scheduling.key()
    }

    fn labels(&self) -> &Labels {
        &self.labels
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        let mut keys = default_index_keys(&self.metadata);
        if let Some(node) = &self.node {
            keys.push(IndexKey::Node(node.clone()));
        }
        let claims = self.claims().iter();
        keys.extend(claims.map(|claim| IndexKey::Claim(ObjectKey::new(self.namespace(), claim))));
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

    /// The volume claims it uses.
    pub fn claims(&self) -> &[String] {
        &self.scheduling.constraints.claims
    }

    /// The node it runs on or is meant for.
    pub fn target(&self) -> Option<&str> {
        self.node.as_deref().or(self.pinned.as_deref())
    }

    /// The value of a label.
    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.get(name).map(String::as_str)
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
