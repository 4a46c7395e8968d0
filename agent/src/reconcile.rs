//! Makes the node what it should be: the difference between desired and actual, pure, and its application.

use std::collections::BTreeMap;

pub mod network;
pub mod place;

/// What to do to make actual desired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes<K, V> {
    /// To be added or overwritten.
    pub upsert: Vec<(K, V)>,
    /// To be removed, as it is.
    pub remove: Vec<(K, V)>,
}

/// The difference between two tables.
pub fn diff<K: Ord + Clone, V: PartialEq + Clone>(
    desired: &BTreeMap<K, V>,
    actual: &BTreeMap<K, V>,
) -> Changes<K, V> {
    let pairs = |(key, value): (&K, &V)| (key.clone(), value.clone());
    Changes {
        upsert: desired
            .iter()
            .filter(|(key, value)| actual.get(key) != Some(value))
            .map(pairs)
            .collect(),
        remove: actual
            .iter()
            .filter(|(key, _)| !desired.contains_key(key))
            .map(pairs)
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn changes_make_actual_desired_and_touch_nothing_else(
            desired: BTreeMap<u8, u8>,
            actual: BTreeMap<u8, u8>,
        ) {
            let changes = diff(&desired, &actual);
            for (key, value) in &changes.upsert {
                prop_assert_ne!(actual.get(key), Some(value));
            }
            let mut after = actual;
            for (key, _) in changes.remove {
                prop_assert!(after.remove(&key).is_some());
            }
            after.extend(changes.upsert);
            prop_assert_eq!(after, desired);
        }
    }
}
