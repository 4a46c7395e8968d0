//! What is counted from now on: classes, sets, topology labels, node sets, tallies and carriers, each made when first asked for.

use std::collections::{HashMap, HashSet};

use super::{
    Carrier, CarrierId, Census, Class, ClassId, KeyId, NodeSet, NodeSetId, NodeTest, REQUIRED_AS_WISH, Set,
    SetId, Tally, TallyId, Wish,
};
use crate::scheduler::node::NodeInfo;
use crate::scheduler::pod::{NearTo, PodInfo};
use crate::scheduler::selection::{ClassKey, Home, PodSet};
use crate::scheduler::tally::{Counts, TopologyKey};

impl Census {
    /// The class of pods with this key.
    pub(in crate::scheduler) fn class(&mut self, key: ClassKey) -> ClassId {
        if let Some(&id) = self.class_ids.get(&key) {
            return id;
        }
        let of_namespace = self.namespaces.get(&key.namespace);
        let owned = key.owner.as_ref().and_then(|owner| self.sets_of.get(owner));
        let sets: Vec<SetId> = self
            .sets_in
            .get(&key.namespace)
            .into_iter()
            .chain(owned)
            .flatten()
            .chain(&self.sets_anywhere)
            .copied()
            .filter(|set| self.sets[*set].pods.contains(&key, of_namespace))
            .collect();
        let id = self.classes.insert(Class {
            key: key.clone(),
            pods: 0,
            by_node: HashMap::new(),
            sets,
        });
        self.classes_in
            .entry(key.namespace.clone())
            .or_default()
            .insert(id);
        if let Some(owner) = &key.owner {
            self.classes_of.entry(owner.clone()).or_default().insert(id);
        }
        self.class_ids.insert(key, id);
        id
    }

    /// Whether pods of a class are in a set, which need not be counted.
    pub(in crate::scheduler) fn would_contain(&self, set: &PodSet, class: &ClassKey) -> bool {
        set.contains(class, self.namespaces.get(&class.namespace))
    }

    /// The set, counted from now on.
    pub(in crate::scheduler) fn set(&mut self, set: PodSet) -> SetId {
        let key = set.key();
        if let Some(&id) = self.set_ids.get(&key) {
            return id;
        }
        let candidates: Vec<ClassId> = match set.home() {
            Home::Owner(owner) => self
                .classes_of
                .get(owner)
                .into_iter()
                .flatten()
                .copied()
                .collect(),
            Home::Namespaces(names) => names
                .iter()
                .filter_map(|name| self.classes_in.get(name))
                .flatten()
                .copied()
                .collect(),
            Home::Anywhere => self.classes.iter().map(|(id, _)| id).collect(),
        };
        let members: HashSet<ClassId> = candidates
            .into_iter()
            .filter(|class| {
                let key = &self.classes[*class].key;
                set.contains(key, self.namespaces.get(&key.namespace))
            })
            .collect();
        let id = self.sets.insert(Set {
            pods: set,
            key: key.clone(),
            tallies: Vec::new(),
            carriers: Vec::new(),
        });
        for class in members {
            self.classes[class].sets.push(id);
        }
        match self.sets[id].pods.home() {
            Home::Owner(owner) => self.sets_of.entry(owner.clone()).or_default().push(id),
            Home::Namespaces(names) => {
                for name in names.iter().collect::<HashSet<_>>() {
                    self.sets_in.entry(name.clone()).or_default().push(id);
                }
            }
            Home::Anywhere => self.sets_anywhere.push(id),
        }
        self.set_ids.insert(key, id);
        id
    }

    /// The topology label, followed from now on.
    pub(in crate::scheduler) fn topology_key(&mut self, name: &str, nodes: &[NodeInfo]) -> KeyId {
        if let Some(&id) = self.key_ids.get(name) {
            return id;
        }
        let mut key = TopologyKey::new(name);
        for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.present) {
            key.set(index, node.labels.get(name));
        }
        let id = self.keys.insert(key);
        self.key_ids.insert(name.into(), id);
        id
    }

    /// The nodes that pass a test, followed from now on.
    pub(in crate::scheduler) fn node_set(&mut self, test: NodeTest, nodes: &[NodeInfo]) -> NodeSetId {
        let key = format!("{test:?}");
        if let Some(&id) = self.node_set_ids.get(&key) {
            return id;
        }
        let members = nodes.iter().map(|node| test.passes(node)).collect();
        let id = self.node_sets.insert(NodeSet {
            key: key.clone(),
            test,
            members,
        });
        self.node_set_ids.insert(key, id);
        id
    }

    /// The tally of a set over the values of a topology label, kept from now on.
    pub(in crate::scheduler) fn tally_of(&mut self, set: SetId, key: KeyId, nodes: NodeSetId) -> TallyId {
        if let Some(&id) = self.tally_ids.get(&(set, key, nodes)) {
            return id;
        }
        let mut counts = Counts::default();
        for node in 0..self.node_sets[nodes].members.len() {
            if self.node_sets[nodes].contains(node)
                && let Some(value) = self.keys[key].of(node)
            {
                counts.shift(value, 1, 0);
            }
        }
        let id = self.tallies.insert(Tally {
            set,
            key,
            nodes,
            counts,
        });
        self.tally_ids.insert((set, key, nodes), id);
        let members: Vec<ClassId> = self
            .classes
            .iter()
            .filter(|(_, class)| class.pods > 0 && class.sets.contains(&set))
            .map(|(class, _)| class)
            .collect();
        let before = std::mem::replace(&mut self.sets[set].tallies, vec![id]);
        for class in members {
            self.recount(class, set, 1);
        }
        self.sets[set].tallies = before;
        self.sets[set].tallies.push(id);
        id
    }

    pub(super) fn carriers_of(&mut self, pod: &PodInfo, nodes: &[NodeInfo]) -> Vec<CarrierId> {
        let place = pod.constraints.clone();
        let wish = |wish| move |near: &NearTo| (wish, near.clone());
        let wishes: Vec<(Wish, NearTo)> = (place.away.iter().map(wish(Wish::Away)))
            .chain(place.near.iter().map(wish(Wish::Leaning(REQUIRED_AS_WISH))))
            .chain(
                place
                    .leanings
                    .iter()
                    .map(|(weight, near)| (Wish::Leaning(*weight), near.clone())),
            )
            .collect();
        wishes
            .into_iter()
            .map(|(wish, near)| {
                let key = self.topology_key(&near.topology_key, nodes);
                let set = self.set(PodSet::matching(vec![near.pods]));
                if let Some(&id) = self.carrier_ids.get(&(set, key, wish)) {
                    return id;
                }
                let id = self.carriers.insert(Carrier {
                    set,
                    key,
                    wish,
                    counts: Counts::default(),
                    pods: 0,
                });
                self.carrier_ids.insert((set, key, wish), id);
                self.sets[set].carriers.push(id);
                id
            })
            .collect()
    }
}
