//! What a controller has asked for and not yet seen.
//!
//! A local copy lags behind the API. A controller that counts replicas in it must not act again until its own creations
//! and deletions have come back, or it would make too many. Whoever watches the copy reports what it sees here.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::informer::ObjectKey;

/// After this time an expectation is given up: the event was lost, and the copy is the better guess.
pub const EXPIRY: Duration = Duration::from_mins(5);

#[derive(Debug)]
struct Expected {
    creations: usize,
    /// Uids of objects whose deletion was asked for.
    deletions: HashSet<String>,
    since: Instant,
}

/// Expectations of one controller, by the key of the owner.
#[derive(Debug, Default)]
pub struct Expectations {
    by_key: Mutex<HashMap<ObjectKey, Expected>>,
}

impl Expectations {
    fn with<R>(&self, act: impl FnOnce(&mut HashMap<ObjectKey, Expected>) -> R) -> R {
        act(&mut self.by_key.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether everything asked for was seen, or waited for long enough.
    pub fn satisfied(&self, key: &ObjectKey, now: Instant) -> bool {
        self.with(|all| {
            all.get(key).is_none_or(|expected| {
                (expected.creations == 0 && expected.deletions.is_empty())
                    || now.duration_since(expected.since) > EXPIRY
            })
        })
    }

    /// Announces creations, and deletions by uid; call it before the first request.
    pub fn expect(
        &self,
        key: &ObjectKey,
        creations: usize,
        deletions: impl IntoIterator<Item = String>,
        now: Instant,
    ) {
        let expected = Expected {
            creations,
            deletions: deletions.into_iter().collect(),
            since: now,
        };
        self.with(|all| {
            all.insert(key.clone(), expected);
        });
    }

    /// A creation was seen, or failed.
    pub fn creation_observed(&self, key: &ObjectKey) {
        self.with(|all| {
            if let Some(expected) = all.get_mut(key) {
                expected.creations = expected.creations.saturating_sub(1);
            }
        });
    }

    /// An object was seen to go, or its deletion failed.
    pub fn deletion_observed(&self, key: &ObjectKey, uid: &str) {
        self.with(|all| {
            if let Some(expected) = all.get_mut(key) {
                expected.deletions.remove(uid);
            }
        });
    }

    /// Whether the last thing that was asked for has been seen; true once.
    pub fn settle(&self, key: &ObjectKey) -> bool {
        self.with(|all| {
            let settled = all
                .get(key)
                .is_some_and(|expected| expected.creations == 0 && expected.deletions.is_empty());
            if settled {
                all.remove(key);
            }
            settled
        })
    }

    /// The owner is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.with(|all| all.remove(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn satisfied_when_all_was_seen_or_time_is_up() {
        let now = Instant::now();
        let key = ObjectKey::new("a", "x");
        let expected = Expectations::default();
        assert!(expected.satisfied(&key, now));
        expected.expect(&key, 2, [], now);
        assert!(!expected.satisfied(&key, now));
        expected.creation_observed(&key);
        assert!(!expected.satisfied(&key, now));
        assert!(expected.satisfied(&key, now + EXPIRY + Duration::from_secs(1)));
        expected.creation_observed(&key);
        expected.creation_observed(&key);
        assert!(expected.satisfied(&key, now));
        assert!(expected.settle(&key));
        assert!(!expected.settle(&key), "once");
        expected.expect(&key, 0, ["u1".to_owned(), "u2".to_owned()], now);
        expected.deletion_observed(&key, "u1");
        expected.deletion_observed(&key, "u1");
        assert!(
            !expected.satisfied(&key, now),
            "the same deletion seen twice counts once"
        );
        expected.deletion_observed(&key, "u2");
        assert!(expected.satisfied(&key, now));
    }
}
