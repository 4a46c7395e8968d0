//! How large each replica set of a Deployment should be: without any IO.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;

use crate::controllers::share::{Round, share};

/// A replica set as far as sizes go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetView {
    /// Its name.
    pub name: String,
    /// Pods it is asked to keep.
    pub replicas: i32,
    /// Pods of it that are available.
    pub available: i32,
    /// When it was made.
    pub created: Option<Timestamp>,
    /// The Deployment's size when it was last scaled.
    pub desired: Option<i32>,
    /// The most pods the Deployment could have had then.
    pub max: Option<i32>,
}

/// How far a rolling update may stray from the asked-for number of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pods asked for.
    pub replicas: i32,
    /// Pods that may exist beyond that.
    pub surge: i32,
    /// Pods that may be missing.
    pub unavailable: i32,
}

impl Limits {
    /// Resolves percentages: surge is rounded up and unavailable down; both zero would block, so one may be missing then.
    pub fn rolling(replicas: i32, surge: Option<&IntOrString>, unavailable: Option<&IntOrString>) -> Self {
        let quarter = IntOrString::String("25%".into());
        let surge = share(surge.unwrap_or(&quarter), replicas, Round::Up);
        let mut unavailable = share(unavailable.unwrap_or(&quarter), replicas, Round::Down);
        if surge == 0 && unavailable == 0 {
            unavailable = 1;
        }
        Limits {
            replicas,
            surge,
            unavailable: unavailable.min(replicas),
        }
    }

    /// Recreate: everything may be missing between the old and the new pods; nothing is counted on.
    pub fn recreate(replicas: i32) -> Self {
        Limits {
            replicas,
            surge: 0,
            unavailable: 0,
        }
    }

    /// Fewest pods that must be available.
    pub fn min_available(&self) -> i32 {
        self.replicas - self.unavailable
    }

    /// Most pods that may exist.
    pub fn max_total(&self) -> i32 {
        self.replicas + self.surge
    }
}

fn total(sets: &[SetView]) -> i32 {
    sets.iter().map(|set| set.replicas).sum()
}

/// The size of a new set in a rolling update, given all sets' sizes together.
pub fn new_size(limits: Limits, new: i32, all: i32) -> i32 {
    if new >= limits.replicas {
        return limits.replicas;
    }
    let room = limits.max_total() - all;
    if room <= 0 {
        new
    } else {
        new + room.min(limits.replicas - new)
    }
}

/// The sizes of the old sets in a rolling update, in their order: first those pods go that are not available anyway, then
/// as many others as can be missed.
pub fn old_sizes(limits: Limits, new: &SetView, old: &[SetView]) -> Vec<i32> {
    let mut sizes: Vec<i32> = old.iter().map(|set| set.replicas).collect();
    let mut oldest_first: Vec<usize> = (0..old.len()).collect();
    oldest_first.sort_by(|&a, &b| (old[a].created, &old[a].name).cmp(&(old[b].created, &old[b].name)));

    let new_missing = new.replicas - new.available;
    let mut budget = total(old) + new.replicas - limits.min_available() - new_missing;
    if budget <= 0 {
        return sizes;
    }
    for &at in &oldest_first {
        let gone = (old[at].replicas - old[at].available).clamp(0, budget);
        sizes[at] -= gone;
        budget -= gone;
    }
    // A set that was just made smaller still reports the pods it is about to lose.
    let staying = |set: &SetView| set.available.min(set.replicas);
    let available: i32 = old.iter().map(staying).sum::<i32>() + staying(new);
    let mut spare = (available - limits.min_available()).max(0);
    for &at in &oldest_first {
        let gone = sizes[at].min(spare);
        sizes[at] -= gone;
        spare -= gone;
    }
    sizes
}

/// New sizes when a Deployment was scaled in the middle of a rollout: each active set gets its share, larger sets first, and
/// what rounding leaves over goes to the largest.
pub fn proportional(limits: Limits, status_replicas: i32, sets: &[SetView]) -> Vec<i32> {
    let mut sizes: Vec<i32> = sets.iter().map(|set| set.replicas).collect();
    let allowed = if limits.replicas > 0 {
        limits.max_total()
    } else {
        0
    };
    let to_add = allowed - total(sets);
    let mut order: Vec<usize> = (0..sets.len()).filter(|&at| sets[at].replicas > 0).collect();
    order.sort_by(|&a, &b| {
        let by_age = sets[a].created.cmp(&sets[b].created);
        let by_age = if to_add > 0 { by_age.reverse() } else { by_age };
        sets[b]
            .replicas
            .cmp(&sets[a].replicas)
            .then(by_age)
            .then_with(|| sets[a].name.cmp(&sets[b].name))
    });
    let mut added = 0;
    for &at in &order {
        if to_add == 0 || to_add == added {
            break;
        }
        let share = growth(limits, status_replicas, &sets[at]);
        let left = to_add - added;
        let part = if to_add > 0 {
            share.min(left)
        } else {
            share.max(left)
        };
        sizes[at] += part;
        added += part;
    }
    if let Some(&largest) = order.first() {
        sizes[largest] = (sizes[largest] + to_add - added).max(0);
    }
    sizes
}

fn growth(limits: Limits, status_replicas: i32, set: &SetView) -> i32 {
    if limits.replicas == 0 {
        return -set.replicas;
    }
    let before = i64::from(set.max.unwrap_or(status_replicas).max(1));
    let scaled = i64::from(set.replicas) * i64::from(limits.max_total());
    // Half up, as Kubernetes rounds.
    let size = (2 * scaled + before).div_euclid(2 * before);
    i32::try_from(size).unwrap_or(i32::MAX) - set.replicas
}

/// The one set that follows the Deployment's size when no rollout is under way; `None` if several are active.
pub fn active_or_latest(new: Option<usize>, sets: &[SetView]) -> Option<usize> {
    let mut active = (0..sets.len()).filter(|&at| sets[at].replicas > 0);
    match (active.next(), active.next()) {
        (Some(only), None) => Some(only),
        (None, _) => new.or_else(|| (0..sets.len()).max_by_key(|&at| sets[at].created)),
        (Some(_), Some(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(name: &str, replicas: i32, available: i32) -> SetView {
        SetView {
            name: name.into(),
            replicas,
            available,
            ..SetView::default()
        }
    }

    fn limits(replicas: i32, surge: &str, unavailable: &str) -> Limits {
        let value = |text: &str| match text.parse() {
            Ok(number) => IntOrString::Int(number),
            Err(_) => IntOrString::String(text.into()),
        };
        Limits::rolling(replicas, Some(&value(surge)), Some(&value(unavailable)))
    }

    #[test]
    fn pods_on_their_way_out_are_not_counted_on() {
        // Of eight, seven must be available. The old set was made smaller by one and has not reported it.
        let limits = limits(8, "2", "1");
        assert_eq!(old_sizes(limits, &set("new", 3, 1), &[set("old", 7, 8)]), [6]);
    }

    #[test]
    fn percentages_round_away_from_a_standstill() {
        let resolved = |replicas, surge, unavailable| {
            let limits = limits(replicas, surge, unavailable);
            (limits.surge, limits.unavailable)
        };
        assert_eq!(resolved(10, "25%", "25%"), (3, 2));
        assert_eq!(resolved(1, "25%", "25%"), (1, 0));
        assert_eq!(resolved(4, "0", "10%"), (0, 1), "both zero would never move");
        assert_eq!(resolved(3, "100%", "100%"), (3, 3));
        assert_eq!(resolved(3, "2", "7"), (2, 3));
        assert_eq!(resolved(0, "25%", "25%"), (0, 0));
        let default = Limits::rolling(8, None, None);
        assert_eq!((default.surge, default.unavailable), (2, 2));
    }

    #[test]
    fn the_new_set_grows_into_the_room() {
        let limits = limits(10, "3", "2");
        assert_eq!(new_size(limits, 0, 10), 3);
        assert_eq!(new_size(limits, 3, 13), 3);
        assert_eq!(new_size(limits, 3, 8), 8);
        assert_eq!(new_size(limits, 9, 9), 10);
        assert_eq!(new_size(limits, 12, 12), 10);
    }

    #[test]
    fn old_sets_shrink_by_what_can_be_missed() {
        let limits = limits(10, "3", "2");
        assert_eq!(old_sizes(limits, &set("new", 3, 0), &[set("old", 10, 10)]), [8]);
        assert_eq!(old_sizes(limits, &set("new", 3, 3), &[set("old", 8, 8)]), [5]);
        assert_eq!(old_sizes(limits, &set("new", 5, 0), &[set("old", 8, 8)]), [8]);
        assert_eq!(
            old_sizes(limits, &set("new", 3, 0), &[set("a", 4, 0), set("b", 6, 6)]),
            [2, 6],
            "unhealthy first"
        );
    }

    #[test]
    fn scaling_in_a_rollout_is_shared_out() {
        let with_max = |name: &str, replicas, max| SetView {
            max: Some(max),
            ..set(name, replicas, 0)
        };
        // Kubernetes' own example: 10 → 15 with a surge of 3 in the middle of a rollout.
        let sets = [with_max("old", 8, 13), with_max("new", 5, 13)];
        assert_eq!(proportional(limits(15, "3", "2"), 13, &sets), [11, 7]);
        assert_eq!(proportional(limits(0, "3", "2"), 13, &sets), [0, 0]);
        assert_eq!(proportional(limits(5, "0", "1"), 13, &sets), [3, 2]);
        assert_eq!(proportional(limits(10, "3", "2"), 13, &sets), [8, 5]);
    }

    #[test]
    fn one_active_set_follows() {
        assert_eq!(
            active_or_latest(Some(1), &[set("a", 3, 3), set("b", 0, 0)]),
            Some(0)
        );
        assert_eq!(
            active_or_latest(Some(1), &[set("a", 0, 0), set("b", 0, 0)]),
            Some(1)
        );
        assert_eq!(active_or_latest(None, &[]), None);
        assert_eq!(active_or_latest(Some(1), &[set("a", 1, 0), set("b", 1, 0)]), None);
    }

    proptest! {
        /// A rollout, with pods becoming available in any order and any number of old sets: never more pods than allowed, never
        /// fewer available, and it ends.
        #[test]
        fn a_rolling_update_keeps_its_promises(
            replicas in 1i32..20,
            surge in prop_oneof![(0i32..6).prop_map(|n| n.to_string()), (0i32..=100).prop_map(|n| format!("{n}%"))],
            unavailable in prop_oneof![(0i32..6).prop_map(|n| n.to_string()), (0i32..=100).prop_map(|n| format!("{n}%"))],
            split in 0i32..20,
            luck in prop::collection::vec(0u8..4, 1..200),
        ) {
            // Some pod becomes ready in the end.
            prop_assume!(luck.contains(&0));
            let limits = limits(replicas, &surge, &unavailable);
            let first = split.min(replicas);
            let mut old = vec![set("a", first, first), set("b", replicas - first, replicas - first)];
            let mut new = set("new", 0, 0);
            let mut luck = luck.into_iter().cycle();
            for _ in 0..2000 {
                let before = new.replicas;
                new.replicas = new_size(limits, new.replicas, total(&old) + new.replicas);
                // One kind of change per round, as the controller does it.
                if new.replicas == before {
                    let sizes = old_sizes(limits, &new, &old);
                    for (set, size) in old.iter_mut().zip(sizes) {
                        prop_assert!(size <= set.replicas && size >= 0);
                        // The replica set deletes unready pods first.
                        set.available = set.available.min(size);
                        set.replicas = size;
                    }
                }
                let all = total(&old) + new.replicas;
                let available: i32 = old.iter().map(|s| s.available).sum::<i32>() + new.available;
                prop_assert!(all <= limits.max_total(), "{all} pods of at most {}", limits.max_total());
                prop_assert!(available >= limits.min_available(), "{available} available of {}", limits.min_available());
                if new.available < new.replicas && luck.next() == Some(0) {
                    new.available += 1;
                }
                if new.available == replicas && total(&old) == 0 {
                    return Ok(());
                }
            }
            // The longest cycle of luck makes one pod ready in 200 rounds.
            prop_assert!(new.available > 0, "never moved: {new:?} {old:?}");
        }

        /// Proportional scaling ends at exactly the allowed number, and no set is below nothing.
        #[test]
        fn proportional_scaling_adds_up(
            to in 0i32..50, surge in 0i32..10, sizes in prop::collection::vec(0i32..30, 1..5),
        ) {
            prop_assume!(sizes.iter().any(|size| *size > 0));
            let limits = limits(to, &surge.to_string(), "1");
            let sets: Vec<SetView> = sizes.iter().enumerate()
                .map(|(i, &size)| SetView { max: Some(sizes.iter().sum()), ..set(&i.to_string(), size, size) }).collect();
            let scaled = proportional(limits, 0, &sets);
            let allowed = if to > 0 { limits.max_total() } else { 0 };
            prop_assert!(scaled.iter().all(|size| *size >= 0));
            prop_assert_eq!(scaled.iter().sum::<i32>(), allowed);
        }
    }
}
