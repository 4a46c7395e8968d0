//! What the scheduler knows of nodes and pods, kept up to date change by change.
//!
//! Decisions are pure functions of a [`Snapshot`]. A pod that was just decided is assumed: it counts at once, and the
//! event of its binding finds it counted already.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;

use super::census::Census;
use super::node::{NodeIndex, NodeInfo, Nominee};
use super::plan::Plans;
use super::pod::{Labels, PodInfo};

/// How often something happened that may let a pod in that was refused before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version {
    /// Room was freed, or nodes changed.
    pub relieved: u64,
    /// Pods were placed.
    pub placed: u64,
}

/// All nodes and all pods that use something of them.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(super) nodes: Vec<NodeInfo>,
    free: Vec<NodeIndex>,
    by_name: HashMap<Arc<str>, NodeIndex>,
    /// Positions of the nodes that exist, zones taking turns.
    order: Vec<NodeIndex>,
    order_stale: bool,
    placed: HashMap<Arc<str>, NodeIndex>,
    nominations: HashMap<Arc<str>, NodeIndex>,
    /// How many placed pods use a claim, by namespace and name.
    claims: HashMap<(String, String), u32>,
    /// How many nodes hold an image.
    images: HashMap<String, u32>,
    version: Version,
    pub(super) census: Census,
    pub(super) plans: Plans,
}

impl Snapshot {
    /// The nodes that exist, zones taking turns.
    pub fn order(&self) -> &[NodeIndex] {
        &self.order
    }

    /// The node at a position.
    pub fn node(&self, index: NodeIndex) -> &NodeInfo {
        &self.nodes[index]
    }

    /// The position of the node of a name, if it exists.
    pub fn find_node(&self, name: &str) -> Option<NodeIndex> {
        self.by_name
            .get(name)
            .copied()
            .filter(|&index| self.nodes[index].present)
    }

    /// Number of pods counted.
    pub fn pods(&self) -> usize {
        self.placed.len()
    }

    /// How many nodes hold an image.
    pub(super) fn holders(&self, image: &str) -> u32 {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// Whether a placed pod uses a claim.
    pub(super) fn is_used(&self, namespace: &str, claim: &str) -> bool {
        self.claims
            .contains_key(&(namespace.to_owned(), claim.to_owned()))
    }

    fn use_claims(&mut self, pod: &PodInfo) {
        for claim in &pod.constraints.claims {
            let key = (pod.namespace().to_owned(), claim.clone());
            *self.claims.entry(key).or_default() += 1;
        }
    }

    fn leave_claims(&mut self, pod: &PodInfo) {
        for claim in &pod.constraints.claims {
            let key = (pod.namespace().to_owned(), claim.clone());
            if let Some(uses) = self.claims.get_mut(&key) {
                *uses -= 1;
                if *uses == 0 {
                    self.claims.remove(&key);
                }
            }
        }
    }

    /// Changes whenever a refused pod might be let in.
    pub fn version(&self) -> Version {
        self.version
    }

    pub(super) fn set_version(&mut self, version: Version) {
        self.version = version;
    }

    /// The node a pod is counted on.
    pub fn placement(&self, uid: &str) -> Option<&NodeInfo> {
        self.placed.get(uid).map(|index| &self.nodes[*index])
    }

    /// Brings the order of nodes up to date.
    pub(super) fn refresh_order(&mut self) {
        if !std::mem::take(&mut self.order_stale) {
            return;
        }
        let mut zones: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        let mut turns: Vec<(usize, usize, NodeIndex)> = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.present) {
            let many = zones.len();
            let turn = zones.entry(node.zone()).or_insert(many << 32);
            turns.push((*turn & 0xffff_ffff, *turn >> 32, index));
            *turn += 1;
        }
        turns.sort_unstable();
        self.order = turns.into_iter().map(|(_, _, index)| index).collect();
    }

    /// Takes in a node; returns whether a pod that did not fit might fit now.
    pub fn upsert_node(&mut self, node: &Node) -> bool {
        let fresh = NodeInfo::described_by(node);
        let index = self.index_of(&fresh.name);
        let known = &self.nodes[index];
        let same_place = known.present
            && known.taints == fresh.taints
            && known.unschedulable == fresh.unschedulable
            && known.labels == fresh.labels;
        let same_room = known.present && known.allocatable == fresh.allocatable;
        self.set_images(index, fresh.images);
        if same_place && same_room {
            return false;
        }
        if !same_place {
            self.census.detach(index, &self.nodes[index]);
        }
        let known = &mut self.nodes[index];
        self.order_stale |= !known.present
            || known.zone()
                != (NodeInfo {
                    labels: fresh.labels.clone(),
                    ..NodeInfo::default()
                })
                .zone();
        known.present = true;
        known.labels = fresh.labels;
        known.taints = fresh.taints;
        known.unschedulable = fresh.unschedulable;
        known.allocatable = fresh.allocatable;
        if !same_place {
            self.census.attach(index, &self.nodes[index]);
        }
        self.version.relieved += 1;
        true
    }

    /// Takes out a node. Its pods stay counted on it until they go.
    pub fn remove_node(&mut self, name: &str) {
        let Some(index) = self.find_node(name) else {
            return;
        };
        self.census.detach(index, &self.nodes[index]);
        self.set_images(index, HashMap::new());
        self.nodes[index].present = false;
        self.order_stale = true;
        // Pods may be spread over the values that are left.
        self.version.relieved += 1;
        self.release_if_unused(index);
    }

    /// Takes in the labels of a namespace, or that it is gone; returns whether that is news.
    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        let changed = self.census.set_namespace(name, labels);
        if changed {
            self.version.relieved += 1;
        }
        changed
    }

    /// Counts a pod on a node, wherever it was counted before. Used for what the API says and for what is assumed.
    pub fn place(&mut self, pod: &Arc<PodInfo>, node: &str) {
        self.withdraw(pod.uid());
        if let Some(&index) = self.placed.get(pod.uid()) {
            let info = &mut self.nodes[index];
            if *info.name == *node
                && let Some(placed) = info.pods.iter_mut().find(|placed| placed.pod.uid() == pod.uid())
                && placed.pod.counts_as(pod)
            {
                placed.pod = pod.clone();
                return;
            }
            self.unplace(pod.uid());
        }
        let index = self.index_of(node);
        self.use_claims(pod);
        let placed = self.census.place(pod.clone(), index, &self.nodes);
        self.nodes[index].take(placed);
        self.placed.insert(pod.uid().into(), index);
        self.version.placed += 1;
    }

    /// Stops counting a pod; returns whether it was counted.
    pub fn unplace(&mut self, uid: &str) -> bool {
        let Some(index) = self.placed.remove(uid) else {
            return false;
        };
        if let Some(placed) = self.nodes[index].give_back(uid) {
            self.leave_claims(&placed.pod);
            self.census.unplace(&placed, index);
        }
        self.version.relieved += 1;
        self.release_if_unused(index);
        true
    }

    /// Keeps room on a node for a pod that others are leaving for.
    pub fn nominate(&mut self, pod: &Arc<PodInfo>, node: &str) {
        let Some(index) = self.find_node(node) else {
            self.withdraw(pod.uid());
            return;
        };
        if let Some(&at) = self.nominations.get(pod.uid()) {
            let same = self.nodes[at]
                .nominees
                .iter_mut()
                .find(|nominee| nominee.pod.uid() == pod.uid());
            if let Some(nominee) = same.filter(|_| at == index) {
                nominee.pod = pod.clone();
                return;
            }
        }
        self.withdraw(pod.uid());
        self.nodes[index].nominees.push(Nominee { pod: pod.clone() });
        self.nominations.insert(pod.uid().into(), index);
    }

    /// Stops keeping room for a pod; returns whether there was some.
    pub fn withdraw(&mut self, uid: &str) -> bool {
        let Some(index) = self.nominations.remove(uid) else {
            return false;
        };
        self.nodes[index]
            .nominees
            .retain(|nominee| nominee.pod.uid() != uid);
        self.version.relieved += 1;
        self.release_if_unused(index);
        true
    }

    /// The node on which room is kept for a pod.
    pub fn nomination(&self, uid: &str) -> Option<NodeIndex> {
        self.nominations.get(uid).copied()
    }

    fn set_images(&mut self, index: NodeIndex, images: HashMap<String, i64>) {
        if self.nodes[index].images == images {
            return;
        }
        for name in self.nodes[index].images.keys() {
            if let Some(count) = self.images.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    self.images.remove(name);
                }
            }
        }
        for name in images.keys() {
            *self.images.entry(name.clone()).or_default() += 1;
        }
        self.nodes[index].images = images;
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
        let unused = !node.present && node.pods.is_empty() && node.nominees.is_empty();
        if unused && self.by_name.remove(&node.name).is_some() {
            self.nodes[index] = NodeInfo::default();
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests;
