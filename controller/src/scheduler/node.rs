//! A node as the scheduler sees it, and what is used of it.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::census::{CarrierId, ClassId};
use super::pod::{HostPort, Labels, PodInfo};
use super::resources::Resources;

/// Position of a node in the snapshot; stays the same while the node or a pod on it exists.
pub type NodeIndex = usize;

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
const REGION_LABEL: &str = "topology.kubernetes.io/region";

/// A pod on a node, and how it is counted.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    pub(super) pod: Arc<PodInfo>,
    pub(super) class: ClassId,
    pub(super) carriers: Vec<CarrierId>,
}

/// A pod for which room is being made.
#[derive(Debug, Clone)]
pub(super) struct Nominee {
    pub(super) pod: Arc<PodInfo>,
}

/// A node and what is used of it.
#[derive(Debug, Clone, Default)]
pub struct NodeInfo {
    /// Its name.
    pub name: Arc<str>,
    /// Whether the node exists; pods may outlive their node for a while.
    pub present: bool,
    /// Its labels.
    pub labels: Labels,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
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
    /// Images it holds, with their sizes.
    pub images: HashMap<String, i64>,
    pub(super) pods: Vec<Placed>,
    pub(super) nominees: Vec<Nominee>,
}

impl NodeInfo {
    /// What the API says of a node; nothing is used of it.
    pub(super) fn described_by(node: &Node) -> Self {
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref());
        let offered = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        let images = status.and_then(|s| s.images.as_ref());
        NodeInfo {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            present: true,
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|s| s.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|s| s.unschedulable).unwrap_or_default(),
            allocatable: offered.map(Resources::of_node).unwrap_or_default(),
            images: images
                .into_iter()
                .flatten()
                .flat_map(|image| {
                    let size = image.size_bytes.unwrap_or_default();
                    image.names.iter().flatten().map(move |name| (name.clone(), size))
                })
                .collect(),
            ..NodeInfo::default()
        }
    }

    /// Region and zone; nodes are tried in turns between them.
    pub(super) fn zone(&self) -> (&str, &str) {
        let label = |key: &str| self.labels.get(key).map_or("", String::as_str);
        (label(REGION_LABEL), label(ZONE_LABEL))
    }

    /// How many pods are counted on it.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    pub(super) fn take(&mut self, placed: Placed) {
        let demand = &placed.pod.demand;
        self.requested.add(&demand.requests);
        self.scored_cpu += demand.scored_cpu;
        self.scored_memory += demand.scored_memory;
        self.host_ports
            .extend(placed.pod.constraints.host_ports.iter().cloned());
        self.pods.push(placed);
    }

    pub(super) fn give_back(&mut self, uid: &str) -> Option<Placed> {
        let at = self.pods.iter().position(|placed| placed.pod.uid() == uid)?;
        let placed = self.pods.swap_remove(at);
        let demand = &placed.pod.demand;
        self.requested.subtract(&demand.requests);
        self.scored_cpu -= demand.scored_cpu;
        self.scored_memory -= demand.scored_memory;
        for port in &placed.pod.constraints.host_ports {
            if let Some(at) = self.host_ports.iter().position(|used| used == port) {
                self.host_ports.swap_remove(at);
            }
        }
        Some(placed)
    }
}
