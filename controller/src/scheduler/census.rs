//! Counts of pods, by what they have in common and where they are, kept up change by change.
//!
//! Pods with the same namespace, labels and controller are a *class*. A *set* is what a constraint selects; which sets a
//! class is in is found out once. A *tally* counts the pods of a set by the values of a topology label, on those nodes that
//! count. A *carrier* counts the pods that have a wish about a set themselves, since such wishes bind others, too. To place a
//! pod is therefore to add one to a few numbers, and to check a constraint is to look at one.

mod collect;
mod register;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::filter::node_affinity;
use super::filter::taints;
use super::node::{NodeIndex, NodeInfo, Placed};
use super::pod::{Labels, PodInfo};
use super::selection::{ClassKey, PodSet};
use super::slots::Slots;
use super::tally::{Counts, TopologyKey};
use k8s_openapi::api::core::v1::{NodeSelectorTerm, Toleration};

pub(super) type ClassId = usize;
pub(super) type SetId = usize;
pub(super) type KeyId = usize;
pub(super) type NodeSetId = usize;
pub(super) type TallyId = usize;
pub(super) type CarrierId = usize;

/// The weight that a required affinity of a placed pod has as a wish: it would like its fellows to be near.
const REQUIRED_AS_WISH: i64 = 1;

#[derive(Debug)]
struct Class {
    key: ClassKey,
    pods: u32,
    by_node: HashMap<NodeIndex, u32>,
    sets: Vec<SetId>,
}

#[derive(Debug)]
struct Set {
    pods: PodSet,
    key: Arc<str>,
    tallies: Vec<TallyId>,
    carriers: Vec<CarrierId>,
}

/// Which nodes count.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct NodeTest {
    pub(super) selector: Labels,
    pub(super) required: Option<Vec<NodeSelectorTerm>>,
    /// If set, taints and the cordon must be tolerated by these.
    pub(super) tolerations: Option<Vec<Toleration>>,
    /// Labels the nodes must have.
    pub(super) keys: Vec<String>,
}

impl NodeTest {
    fn passes(&self, node: &NodeInfo) -> bool {
        node.present
            && self.keys.iter().all(|key| node.labels.contains_key(key))
            && node_affinity::matches(&self.selector, self.required.as_deref(), node)
            && self.tolerations.as_ref().is_none_or(|tolerations| {
                taints::untolerated(tolerations, node).is_none() && !taints::cordoned(tolerations, node)
            })
    }
}

#[derive(Debug)]
struct NodeSet {
    key: String,
    test: NodeTest,
    members: Vec<bool>,
}

impl NodeSet {
    fn contains(&self, node: NodeIndex) -> bool {
        self.members.get(node).copied().unwrap_or(false)
    }

    fn put(&mut self, node: NodeIndex, member: bool) {
        if self.members.len() <= node {
            self.members.resize(node + 1, false);
        }
        self.members[node] = member;
    }
}

/// Pods of a set by the values of a topology label.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) set: SetId,
    pub(super) key: KeyId,
    pub(super) nodes: NodeSetId,
    pub(super) counts: Counts,
}

/// What placed pods want of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Wish {
    /// None of the set may come near.
    Away,
    /// Those of the set should come near, or, with a negative weight, not.
    Leaning(i64),
}

/// Pods that have a wish about a set, by the values of a topology label.
#[derive(Debug)]
pub(super) struct Carrier {
    set: SetId,
    pub(super) key: KeyId,
    pub(super) wish: Wish,
    pub(super) counts: Counts,
    pods: u32,
}

/// All the counts.
#[derive(Debug, Default)]
pub(super) struct Census {
    namespaces: HashMap<Arc<str>, Labels>,
    classes: Slots<Class>,
    class_ids: HashMap<ClassKey, ClassId>,
    classes_in: HashMap<Arc<str>, HashSet<ClassId>>,
    classes_of: HashMap<Arc<str>, HashSet<ClassId>>,
    sets: Slots<Set>,
    set_ids: HashMap<Arc<str>, SetId>,
    sets_in: HashMap<Arc<str>, Vec<SetId>>,
    sets_of: HashMap<Arc<str>, Vec<SetId>>,
    sets_anywhere: Vec<SetId>,
    keys: Slots<TopologyKey>,
    key_ids: HashMap<Arc<str>, KeyId>,
    node_sets: Slots<NodeSet>,
    node_set_ids: HashMap<String, NodeSetId>,
    tallies: Slots<Tally>,
    tally_ids: HashMap<(SetId, KeyId, NodeSetId), TallyId>,
    carriers: Slots<Carrier>,
    carrier_ids: HashMap<(SetId, KeyId, Wish), CarrierId>,
    emptied: usize,
}

/// What is in use and must stay when the rest is dropped.
#[derive(Debug, Default)]
pub(super) struct InUse {
    pub(super) classes: HashSet<ClassId>,
    pub(super) tallies: HashSet<TallyId>,
    pub(super) node_sets: HashSet<NodeSetId>,
}

impl Census {
    pub(super) fn key(&self, key: KeyId) -> &TopologyKey {
        &self.keys[key]
    }

    pub(super) fn tally(&self, tally: TallyId) -> &Tally {
        &self.tallies[tally]
    }

    pub(super) fn node_set_contains(&self, set: NodeSetId, node: NodeIndex) -> bool {
        self.node_sets[set].contains(node)
    }

    /// Wishes of placed pods about pods of a class.
    pub(super) fn wishes_about(&self, class: ClassId) -> impl Iterator<Item = &Carrier> {
        self.classes[class]
            .sets
            .iter()
            .flat_map(|set| &self.sets[*set].carriers)
            .map(|carrier| &self.carriers[*carrier])
            .filter(|carrier| carrier.pods > 0)
    }

    /// Counts a pod on a node.
    pub(super) fn place(&mut self, pod: Arc<PodInfo>, node: NodeIndex, nodes: &[NodeInfo]) -> Placed {
        let class = self.class(ClassKey::of(&pod));
        self.count(class, node, 1);
        let carriers = self.carriers_of(&pod, nodes);
        let placed = Placed { pod, class, carriers };
        self.carry(&placed, node, 1);
        placed
    }

    /// Stops counting a pod.
    pub(super) fn unplace(&mut self, placed: &Placed, node: NodeIndex) {
        self.carry(placed, node, -1);
        self.count(placed.class, node, -1);
        if self.classes[placed.class].pods == 0 {
            self.emptied += 1;
        }
    }

    /// Stops counting what is on a node, before it changes.
    pub(super) fn detach(&mut self, node: NodeIndex, info: &NodeInfo) {
        self.shift_node(node, info, -1);
        for (_, set) in self.node_sets.iter_mut() {
            set.put(node, false);
        }
        for (_, key) in self.keys.iter_mut() {
            key.clear(node);
        }
    }

    /// Counts what is on a node, after it changed.
    pub(super) fn attach(&mut self, node: NodeIndex, info: &NodeInfo) {
        if !info.present {
            return;
        }
        for (_, set) in self.node_sets.iter_mut() {
            let passes = set.test.passes(info);
            set.put(node, passes);
        }
        for (_, key) in self.keys.iter_mut() {
            let value = info.labels.get(&*key.name);
            key.set(node, value);
        }
        self.shift_node(node, info, 1);
    }

    fn shift_node(&mut self, node: NodeIndex, info: &NodeInfo, by: i32) {
        let mut here: HashMap<SetId, i32> = HashMap::new();
        for placed in &info.pods {
            for set in &self.classes[placed.class].sets {
                *here.entry(*set).or_default() += by;
            }
        }
        for (_, tally) in self.tallies.iter_mut() {
            if self.node_sets[tally.nodes].contains(node)
                && let Some(value) = self.keys[tally.key].of(node)
            {
                tally
                    .counts
                    .shift(value, by, here.get(&tally.set).copied().unwrap_or(0));
            }
        }
        for placed in &info.pods {
            for &carrier in &placed.carriers {
                let carrier = &mut self.carriers[carrier];
                if let Some(value) = self.keys[carrier.key].of(node) {
                    carrier.counts.shift(value, 0, by);
                }
            }
        }
    }

    /// Takes in the labels of a namespace, or that it is gone.
    pub(super) fn set_namespace(&mut self, name: &str, labels: Option<Labels>) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        let name: Arc<str> = name.into();
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(&name),
        };
        let following: Vec<SetId> = self
            .sets
            .iter()
            .filter(|(_, set)| set.pods.follows_namespace_labels())
            .map(|(id, _)| id)
            .collect();
        let classes: Vec<ClassId> = self
            .classes_in
            .get(&name)
            .into_iter()
            .flatten()
            .copied()
            .collect();
        let labels = self.namespaces.get(&name).cloned();
        for class in classes {
            for &set in &following {
                let is = self.sets[set]
                    .pods
                    .contains(&self.classes[class].key, labels.as_ref());
                let was = self.classes[class].sets.contains(&set);
                if is && !was {
                    self.classes[class].sets.push(set);
                    self.recount(class, set, 1);
                } else if was && !is {
                    self.recount(class, set, -1);
                    self.classes[class].sets.retain(|other| *other != set);
                }
            }
        }
        true
    }

    /// Adds the pods of a class to the tallies of a set, or takes them out.
    fn recount(&mut self, class: ClassId, set: SetId, by: i32) {
        for &tally in &self.sets[set].tallies {
            let tally = &mut self.tallies[tally];
            for (&node, &pods) in &self.classes[class].by_node {
                if self.node_sets[tally.nodes].contains(node)
                    && let Some(value) = self.keys[tally.key].of(node)
                {
                    tally.counts.shift(value, 0, by * pods.cast_signed());
                }
            }
        }
    }

    fn count(&mut self, class: ClassId, node: NodeIndex, by: i32) {
        let class = &mut self.classes[class];
        class.pods = class.pods.saturating_add_signed(by);
        let here = class.by_node.entry(node).or_default();
        *here = here.saturating_add_signed(by);
        if *here == 0 {
            class.by_node.remove(&node);
        }
        for &set in &class.sets {
            for &tally in &self.sets[set].tallies {
                let tally = &mut self.tallies[tally];
                if self.node_sets[tally.nodes].contains(node)
                    && let Some(value) = self.keys[tally.key].of(node)
                {
                    tally.counts.shift(value, 0, by);
                }
            }
        }
    }

    fn carry(&mut self, placed: &Placed, node: NodeIndex, by: i32) {
        for &carrier in &placed.carriers {
            let carrier = &mut self.carriers[carrier];
            carrier.pods = carrier.pods.saturating_add_signed(by);
            if let Some(value) = self.keys[carrier.key].of(node) {
                carrier.counts.shift(value, 0, by);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn sizes(&self) -> [usize; 6] {
        [
            self.classes.iter().count(),
            self.sets.iter().count(),
            self.keys.iter().count(),
            self.node_sets.iter().count(),
            self.tallies.iter().count(),
            self.carriers.iter().count(),
        ]
    }
}
