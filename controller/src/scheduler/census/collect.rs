//! Forgetting what nobody asks for any more.

use std::collections::HashSet;

use super::{CarrierId, Census, ClassId, InUse, KeyId, NodeSetId, SetId};

impl Census {
    /// Classes that have lost their last pod since the last [`Census::collect`].
    pub(in crate::scheduler) fn emptied(&self) -> usize {
        self.emptied
    }

    /// Forgets what neither a pod nor anything in `used` refers to.
    pub(in crate::scheduler) fn collect(&mut self, used: &InUse) {
        self.emptied = 0;
        self.carriers.retain(|_, carrier| carrier.pods > 0);
        self.carrier_ids = (self.carriers.iter())
            .map(|(id, carrier)| ((carrier.set, carrier.key, carrier.wish), id))
            .collect();
        self.tallies.retain(|id, _| used.tallies.contains(&id));
        self.tally_ids = (self.tallies.iter())
            .map(|(id, tally)| ((tally.set, tally.key, tally.nodes), id))
            .collect();
        let sets: HashSet<SetId> = (self.tallies.iter().map(|(_, tally)| tally.set))
            .chain(self.carriers.iter().map(|(_, carrier)| carrier.set))
            .collect();
        self.sets.retain(|id, _| sets.contains(&id));
        self.set_ids = (self.sets.iter())
            .map(|(id, set)| (set.key.clone(), id))
            .collect();
        let kept_carriers: HashSet<CarrierId> = self.carriers.iter().map(|(id, _)| id).collect();
        for (_, set) in self.sets.iter_mut() {
            set.tallies.retain(|id| used.tallies.contains(id));
            set.carriers.retain(|id| kept_carriers.contains(id));
        }
        for list in self.sets_in.values_mut().chain(self.sets_of.values_mut()) {
            list.retain(|id| sets.contains(id));
        }
        self.sets_in.retain(|_, list| !list.is_empty());
        self.sets_of.retain(|_, list| !list.is_empty());
        self.sets_anywhere.retain(|id| sets.contains(id));
        let node_sets: HashSet<NodeSetId> = (self.tallies.iter().map(|(_, tally)| tally.nodes))
            .chain(used.node_sets.iter().copied())
            .collect();
        self.node_sets.retain(|id, _| node_sets.contains(&id));
        self.node_set_ids = (self.node_sets.iter())
            .map(|(id, set)| (set.key.clone(), id))
            .collect();
        let keys: HashSet<KeyId> = (self.tallies.iter().map(|(_, tally)| tally.key))
            .chain(self.carriers.iter().map(|(_, carrier)| carrier.key))
            .collect();
        self.keys.retain(|id, _| keys.contains(&id));
        self.key_ids = (self.keys.iter())
            .map(|(id, key)| (key.name.clone(), id))
            .collect();
        self.classes
            .retain(|id, class| class.pods > 0 || used.classes.contains(&id));
        let classes: HashSet<ClassId> = self.classes.iter().map(|(id, _)| id).collect();
        self.class_ids.retain(|_, id| classes.contains(id));
        for list in self.classes_in.values_mut().chain(self.classes_of.values_mut()) {
            list.retain(|id| classes.contains(id));
        }
        self.classes_in.retain(|_, list| !list.is_empty());
        self.classes_of.retain(|_, list| !list.is_empty());
        for (_, class) in self.classes.iter_mut() {
            class.sets.retain(|id| sets.contains(id));
        }
    }
}
