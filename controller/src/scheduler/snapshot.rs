//! What the scheduler knows of nodes and pods, kept up to date change by change.
//!
//! Decisions are pure functions of a [`Snapshot`]. A pod that was just decided is assumed: it counts at once, and the
//! event of its binding finds it counted already.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeSelectorTerm, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::resources::{Demand, Resources};
use crate::informer::{Cached, IndexKey, ObjectKey, controller_of};

/// Position of a node in [`Snapshot::nodes`]; stays the same while the node or a pod on it exists.
pub type NodeIndex = usize;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

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

/// Where a pod may or would like to go.
#[derive(Debug, Default, PartialEq)]
pub struct Constraints {
    /// `spec.nodeSelector`.
    pub selector: BTreeMap<String, String>,
    /// Required node affinity: one term must match.
    pub required: Option<Vec<NodeSelectorTerm>>,
    /// Preferred node affinity with weights.
    pub preferred: Vec<(i32, NodeSelectorTerm)>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Host ports.
    pub host_ports: Vec<HostPort>,
}

/// A pod as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct PodInfo {
    /// Name, namespace and uid only.
    pub metadata: ObjectMeta,
    /// Node it is bound to.
    pub node: Option<Arc<str>>,
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
    /// Uid of its controller: pods of one controller are spread.
    pub owner: Option<Arc<str>>,
    /// What it needs.
    pub demand: Arc<Demand>,
    /// Where it may go.
    pub constraints: Arc<Constraints>,
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
        let phase = pod.status.and_then(|status| status.phase);
        let mut spec = pod.spec.unwrap_or_default();
        let demand = Arc::new(Demand::of(&spec));
        let bound = spec.node_name.take().filter(|node| !node.is_empty());
        let affinity = spec
            .affinity
            .take()
            .and_then(|affinity| affinity.node_affinity)
            .unwrap_or_default();
        let host_network = spec.host_network.unwrap_or_default();
        let host_ports = spec
            .containers
            .iter()
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
            .collect();
        let constraints = Constraints {
            selector: spec.node_selector.unwrap_or_default(),
            required: affinity
                .required_during_scheduling_ignored_during_execution
                .map(|selector| selector.node_selector_terms),
            preferred: affinity
                .preferred_during_scheduling_ignored_during_execution
                .into_iter()
                .flatten()
                .map(|term| (term.weight, term.preference))
                .collect(),
            tolerations: spec.tolerations.unwrap_or_default(),
            host_ports,
        };
        PodInfo {
            node: bound.map(Into::into),
            finished: matches!(phase.as_deref(), Some("Succeeded" | "Failed")),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            gated: spec.scheduling_gates.is_some_and(|gates| !gates.is_empty()),
            scheduler: spec.scheduler_name.unwrap_or_else(|| "default-scheduler".into()),
            priority: spec.priority.unwrap_or_default(),
            owner,
            demand,
            constraints: Arc::new(constraints),
            metadata: ObjectMeta {
                name: pod.metadata.name,
                namespace: pod.metadata.namespace,
                uid: pod.metadata.uid,
                ..ObjectMeta::default()
            },
        }
    }
}

/// A node and what is used of it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the node exists; pods may outlive their node for a while.
    pub present: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Its zone.
    pub zone: Option<Arc<str>>,
    /// What it has.
    pub allocatable: Resources,
    /// What its pods asked for.
    pub requested: Resources,
    /// Millicores in use, silent pods counted with the usual amount.
    pub scored_cpu: i64,
    /// Bytes in use, silent pods counted with the usual amount.
    pub scored_memory: i64,
    /// Host ports in use.
    pub host_ports: Vec<HostPort>,
    /// Pods on it.
    pub pods: usize,
}

/// How the pods of one controller are spread.
#[derive(Debug, Default)]
pub struct Group {
    /// Pods of it.
    pub pods: usize,
    /// Pods by node.
    pub by_node: HashMap<NodeIndex, u32>,
    /// Pods by zone.
    pub by_zone: HashMap<Arc<str>, u32>,
}

/// All nodes and all pods that use something of them.
#[derive(Debug, Default)]
pub struct Snapshot {
    nodes: Vec<NodeInfo>,
    free: Vec<NodeIndex>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    /// Positions of the nodes that exist, in a fixed order.
    order: Vec<NodeIndex>,
    placed: HashMap<Arc<str>, (NodeIndex, Arc<PodInfo>)>,
    groups: HashMap<Arc<str>, Group>,
}

impl Snapshot {
    /// The nodes that exist, in a fixed order.
    pub fn order(&self) -> &[NodeIndex] {
        &self.order
    }

    /// The node at a position.
    pub fn node(&self, index: NodeIndex) -> &NodeInfo {
        &self.nodes[index]
    }

    /// The node of a name, if it exists.
    pub fn node_named(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name
            .get(name)
            .map(|&index| &self.nodes[index])
            .filter(|node| node.present)
    }

    /// How the pods of a controller are spread.
    pub fn group(&self, owner: &str) -> Option<&Group> {
        self.groups.get(owner)
    }

    /// Number of pods counted.
    pub fn pods(&self) -> usize {
        self.placed.len()
    }

    /// The node a pod is counted on.
    pub fn placement(&self, uid: &str) -> Option<&NodeInfo> {
        self.placed.get(uid).map(|(index, _)| &self.nodes[*index])
    }

    /// Takes in a node; returns whether a pod that did not fit might fit now.
    pub fn upsert_node(&mut self, node: &Node) -> bool {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let index = self.index_of(name);
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let offered = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let zone: Option<Arc<str>> = labels.get(ZONE_LABEL).map(|zone| zone.as_str().into());
        let fresh = NodeInfo {
            present: true,
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or_default(),
            allocatable: offered.map(Resources::of_node).unwrap_or_default(),
            labels,
            zone: zone.clone(),
            ..NodeInfo::default()
        };
        let known = &mut self.nodes[index];
        let same = known.present
            && known.taints == fresh.taints
            && known.unschedulable == fresh.unschedulable
            && known.allocatable == fresh.allocatable
            && known.labels == fresh.labels;
        if same {
            return false;
        }
        let moved_from = (known.zone != zone).then(|| std::mem::replace(&mut known.zone, zone.clone()));
        let appeared = !known.present;
        known.present = true;
        known.labels = fresh.labels;
        known.taints = fresh.taints;
        known.unschedulable = fresh.unschedulable;
        known.allocatable = fresh.allocatable;
        if let Some(from) = moved_from {
            self.move_zone(index, from.as_ref(), zone.as_ref());
        }
        if appeared {
            let position = self
                .order
                .binary_search(&index)
                .unwrap_or_else(|position| position);
            self.order.insert(position, index);
        }
        true
    }

    /// Takes out a node. Its pods stay counted until they go.
    pub fn remove_node(&mut self, name: &str) {
        let Some(&index) = self.by_name.get(name) else {
            return;
        };
        self.nodes[index].present = false;
        self.order.retain(|&other| other != index);
        self.release_if_unused(index);
    }

    /// Counts a pod on a node, wherever it was counted before. Used for what the API says and for what is assumed.
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let target = self.index_of(node);
        if let Some((index, old)) = self.placed.get_mut(pod.uid()) {
            if *index == target && old.demand == pod.demand {
                *old = pod.clone();
                return;
            }
            self.unplace(pod.uid());
        }
        let target = self.index_of(node);
        self.count(target, pod, true);
        self.placed.insert(pod.uid().into(), (target, pod.clone()));
    }

    /// Stops counting a pod; returns whether it was counted.
    pub fn unplace(&mut self, uid: &str) -> bool {
        let Some((index, pod)) = self.placed.remove(uid) else {
            return false;
        };
        self.count(index, &pod, false);
        self.release_if_unused(index);
        true
    }

    fn count(&mut self, index: NodeIndex, pod: &PodInfo, add: bool) {
        let node = &mut self.nodes[index];
        let (demand, ports) = (&pod.demand, &pod.constraints.host_ports);
        if add {
            node.requested.add(&demand.requests);
            node.scored_cpu += demand.scored_cpu;
            node.scored_memory += demand.scored_memory;
            node.pods += 1;
            node.host_ports.extend(ports.iter().cloned());
        } else {
            node.requested.subtract(&demand.requests);
            node.scored_cpu -= demand.scored_cpu;
            node.scored_memory -= demand.scored_memory;
            node.pods -= 1;
            for port in ports {
                if let Some(at) = node.host_ports.iter().position(|used| used == port) {
                    node.host_ports.swap_remove(at);
                }
            }
        }
        let Some(owner) = &pod.owner else { return };
        let zone = node.zone.clone();
        let group = self.groups.entry(owner.clone()).or_default();
        if add {
            group.pods += 1;
            *group.by_node.entry(index).or_default() += 1;
            if let Some(zone) = zone {
                *group.by_zone.entry(zone).or_default() += 1;
            }
        } else {
            group.pods -= 1;
            lower(&mut group.by_node, &index, 1);
            if let Some(zone) = zone {
                lower(&mut group.by_zone, &zone, 1);
            }
            if group.pods == 0 {
                self.groups.remove(owner);
            }
        }
    }

    fn move_zone(&mut self, index: NodeIndex, from: Option<&Arc<str>>, to: Option<&Arc<str>>) {
        for group in self.groups.values_mut() {
            let Some(&pods) = group.by_node.get(&index) else {
                continue;
            };
            if let Some(from) = from {
                lower(&mut group.by_zone, from, pods);
            }
            if let Some(to) = to {
                *group.by_zone.entry(to.clone()).or_default() += pods;
            }
        }
    }

    fn index_of(&mut self, name: &str) -> NodeIndex {
        if let Some(&index) = self.by_name.get(name) {
            return index;
        }
        let name: Arc<str> = name.into();
        let info = NodeInfo {
            name: name.clone(),
            ..NodeInfo::default()
        };
        let index = if let Some(index) = self.free.pop() {
            self.nodes[index] = info;
            index
        } else {
            self.nodes.push(info);
            self.nodes.len() - 1
        };
        self.by_name.insert(name, index);
        index
    }

    fn release_if_unused(&mut self, index: NodeIndex) {
        let node = &self.nodes[index];
        if !node.present && node.pods == 0 && self.by_name.remove(&node.name).is_some() {
            self.nodes[index] = NodeInfo::default();
            self.free.push(index);
        }
    }
}

fn lower<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, u32>, key: &K, by: u32) {
    if let Some(count) = counts.get_mut(key) {
        *count = count.saturating_sub(by);
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::scheduler::testing::{node, pod};

    #[test]
    fn a_heartbeat_wakes_nobody() {
        let mut snapshot = Snapshot::default();
        assert!(snapshot.upsert_node(&node("a", 4)));
        assert!(!snapshot.upsert_node(&node("a", 4)));
        assert!(snapshot.upsert_node(&node("a", 8)));
    }

    #[test]
    fn pods_outlive_their_node() {
        let mut snapshot = Snapshot::default();
        snapshot.upsert_node(&node("a", 4));
        snapshot.place(&Arc::new(pod("x").cpu("1").build()), "a");
        snapshot.remove_node("a");
        assert!(snapshot.order().is_empty());
        snapshot.upsert_node(&node("a", 4));
        assert_eq!(snapshot.node_named("a").unwrap().requested.milli_cpu, 1000);
        snapshot.unplace("x");
        snapshot.remove_node("a");
        assert!(snapshot.by_name.is_empty());
    }

    #[derive(Debug, Clone)]
    enum Op {
        Node(u8, u8),
        NodeGone(u8),
        Place(u8, u8),
        Unplace(u8),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..4, 0u8..3).prop_map(|(n, zone)| Op::Node(n, zone)),
            (0u8..4).prop_map(Op::NodeGone),
            (0u8..12, 0u8..4).prop_map(|(p, n)| Op::Place(p, n)),
            (0u8..12).prop_map(Op::Unplace),
        ]
    }

    proptest! {
        /// Whatever the order of events, the snapshot is the one that a rebuild would give.
        #[test]
        fn incremental_equals_rebuilt(ops in prop::collection::vec(op(), 1..120)) {
            let mut snapshot = Snapshot::default();
            let mut nodes: HashMap<u8, u8> = HashMap::new();
            let mut placed: HashMap<u8, u8> = HashMap::new();
            let make = |p: u8| Arc::new(pod(&format!("p{p}")).cpu("100m").owner(&format!("o{}", p % 3)).build());
            let zoned = |n: u8, zone: u8| {
                let mut node = node(&format!("n{n}"), 4);
                node.metadata.labels.get_or_insert_default().insert(ZONE_LABEL.into(), format!("z{zone}"));
                node
            };
            for op in ops {
                match op {
                    Op::Node(n, zone) => { snapshot.upsert_node(&zoned(n, zone)); nodes.insert(n, zone); }
                    Op::NodeGone(n) => { snapshot.remove_node(&format!("n{n}")); nodes.remove(&n); }
                    Op::Place(p, n) => { snapshot.place(&make(p), &format!("n{n}")); placed.insert(p, n); }
                    Op::Unplace(p) => { snapshot.unplace(&format!("p{p}")); placed.remove(&p); }
                }
            }
            prop_assert_eq!(snapshot.order().len(), nodes.len());
            prop_assert_eq!(snapshot.pods(), placed.len());
            for n in nodes.keys() {
                let info = snapshot.node_named(&format!("n{n}")).unwrap();
                let here = placed.values().filter(|at| *at == n).count();
                prop_assert_eq!(info.pods, here);
                prop_assert_eq!(info.requested.milli_cpu, 100 * i64::try_from(here).unwrap());
            }
            for o in 0u8..3 {
                let mine: Vec<u8> = placed.iter().filter(|(p, _)| *p % 3 == o).map(|(_, n)| *n).collect();
                let group = snapshot.group(&format!("o{o}"));
                prop_assert_eq!(group.map_or(0, |g| g.pods), mine.len());
                for (n, zone) in &nodes {
                    let index = snapshot.by_name[format!("n{n}").as_str()];
                    let count = mine.iter().map(|at| u32::from(at == n)).sum::<u32>();
                    prop_assert_eq!(group.and_then(|g| g.by_node.get(&index).copied()).unwrap_or(0), count);
                    if count > 0 {
                        let in_zone = group.unwrap().by_zone.get(format!("z{zone}").as_str()).copied().unwrap_or(0);
                        prop_assert!(in_zone >= count);
                    }
                }
            }
        }
    }
}
