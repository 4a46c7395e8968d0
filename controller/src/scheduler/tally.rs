//! Numbers of pods by the value of a topology label.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::node::NodeIndex;

/// A value of a topology label; the number is given out again once no node has the value.
pub(super) type ValueId = u32;

/// A topology label and the nodes' values of it.
#[derive(Debug)]
pub(super) struct TopologyKey {
    pub(super) name: Arc<str>,
    ids: HashMap<String, ValueId>,
    /// Nodes with a value.
    uses: Vec<u32>,
    free: Vec<ValueId>,
    of_node: Vec<Option<ValueId>>,
}

impl TopologyKey {
    pub(super) fn new(name: &str) -> Self {
        TopologyKey {
            name: name.into(),
            ids: HashMap::new(),
            uses: Vec::new(),
            free: Vec::new(),
            of_node: Vec::new(),
        }
    }

    /// The value that a node has, if it exists and has one.
    pub(super) fn of(&self, node: NodeIndex) -> Option<ValueId> {
        self.of_node.get(node).copied().flatten()
    }

    /// Gives a node its value.
    pub(super) fn set(&mut self, node: NodeIndex, value: Option<&String>) {
        self.clear(node);
        let Some(value) = value else { return };
        let id = if let Some(&id) = self.ids.get(value) {
            id
        } else {
            let id = self.free.pop().unwrap_or_else(|| {
                self.uses.push(0);
                (self.uses.len() - 1) as ValueId
            });
            self.ids.insert(value.clone(), id);
            id
        };
        self.uses[id as usize] += 1;
        if self.of_node.len() <= node {
            self.of_node.resize(node + 1, None);
        }
        self.of_node[node] = Some(id);
    }

    /// Takes a node's value away.
    pub(super) fn clear(&mut self, node: NodeIndex) {
        let Some(id) = self.of_node.get_mut(node).and_then(Option::take) else {
            return;
        };
        let uses = &mut self.uses[id as usize];
        *uses -= 1;
        if *uses == 0 {
            self.ids.retain(|_, other| *other != id);
            self.free.push(id);
        }
    }
}

/// Pods and nodes of one value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Domain {
    nodes: u32,
    pods: u32,
}

/// How many pods of a set there are for each value of a topology label, on the nodes that count.
#[derive(Debug, Default)]
pub(super) struct Counts {
    domains: Vec<Domain>,
    /// How many values have so many pods.
    levels: BTreeMap<u32, u32>,
    pods: u64,
}

impl Counts {
    /// Pods with this value.
    pub(super) fn at(&self, value: ValueId) -> u32 {
        self.domains.get(value as usize).map_or(0, |domain| domain.pods)
    }

    /// All of them.
    pub(super) fn pods(&self) -> u64 {
        self.pods
    }

    /// The least number of pods that a value has; values that no node has do not count.
    pub(super) fn least(&self) -> u32 {
        self.levels.keys().next().copied().unwrap_or(0)
    }

    /// How many values there are.
    pub(super) fn values(&self) -> u32 {
        self.levels.values().sum()
    }

    /// A node came (`nodes` = 1) or went (−1), or pods did.
    pub(super) fn shift(&mut self, value: ValueId, nodes: i32, pods: i32) {
        let at = value as usize;
        if self.domains.len() <= at {
            self.domains.resize(at + 1, Domain::default());
        }
        let domain = &mut self.domains[at];
        let before = *domain;
        domain.nodes = domain.nodes.saturating_add_signed(nodes);
        domain.pods = domain.pods.saturating_add_signed(pods);
        let after = *domain;
        self.pods = self.pods.saturating_add_signed(i64::from(pods));
        if before.nodes > 0 {
            lower(&mut self.levels, before.pods);
        }
        if after.nodes > 0 {
            *self.levels.entry(after.pods).or_default() += 1;
        }
    }
}

fn lower(levels: &mut BTreeMap<u32, u32>, level: u32) {
    if let Some(count) = levels.get_mut(&level) {
        *count -= 1;
        if *count == 0 {
            levels.remove(&level);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_forgotten_with_their_last_node() {
        let mut key = TopologyKey::new("zone");
        key.set(0, Some(&"a".into()));
        key.set(1, Some(&"a".into()));
        key.set(2, None);
        assert_eq!(
            (key.of(0), key.of(1), key.of(2), key.of(9)),
            (Some(0), Some(0), None, None)
        );
        key.clear(0);
        key.set(1, Some(&"b".into()));
        assert_eq!(
            key.of(1),
            Some(0),
            "the number of a value that is gone is used again"
        );
        assert_eq!(key.ids.len(), 1);
    }

    #[test]
    fn the_least_is_over_values_that_nodes_have() {
        let mut counts = Counts::default();
        for value in 0..3 {
            counts.shift(value, 1, 0);
        }
        counts.shift(0, 0, 2);
        counts.shift(1, 0, 1);
        assert_eq!((counts.least(), counts.values(), counts.pods()), (0, 3, 3));
        counts.shift(2, -1, 0);
        assert_eq!((counts.least(), counts.values()), (1, 2));
        assert_eq!((counts.at(0), counts.at(7)), (2, 0));
    }
}
