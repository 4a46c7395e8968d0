//! The pods that wait for a node: ready ones by priority and age, failed ones until something changes or time has passed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::ops::BitOr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pod::PodInfo;
use crate::queue::Backoff;

/// Pods that fit nowhere are tried again after this time even if nothing seems to have changed.
const FLUSH_AFTER: Duration = Duration::from_mins(1);
const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    last: Duration::from_secs(10),
};

/// Kinds of change that may let a pod in that was refused.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Blockers(u8);

impl Blockers {
    /// A node came or changed.
    pub const NODES: Blockers = Blockers(1);
    /// A pod left its node.
    pub const ROOM: Blockers = Blockers(2);
    /// A pod came to a node.
    pub const PODS: Blockers = Blockers(4);
    /// A claim, volume or class changed.
    pub const VOLUMES: Blockers = Blockers(8);

    /// Whether the two have something in common.
    pub fn meet(self, other: Blockers) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for Blockers {
    type Output = Blockers;

    fn bitor(self, other: Blockers) -> Blockers {
        Blockers(self.0 | other.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In `active`, with this ticket.
    Active(u64),
    /// Being decided or bound.
    Out,
    /// Waits for a time; moves on then.
    BackingOff(Instant),
    /// Waits for a change, and for its back-off to be over.
    Parked {
        retry_at: Instant,
        flush_at: Instant,
        blockers: Blockers,
    },
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    place: Place,
    attempts: u32,
    /// What was last said about it, so that it is said once.
    told: Option<String>,
}

/// The queue. Pure: it is told the time.
#[derive(Debug, Default)]
pub struct PendingQueue {
    pods: HashMap<Arc<str>, Waiting>,
    /// Highest priority first, then first come. Entries whose ticket is not the pod's are stale.
    active: BinaryHeap<(i32, Reverse<u64>, Arc<str>)>,
    timers: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    tickets: u64,
    /// What changed since the parked pods were last looked at.
    changed: Blockers,
}

impl PendingQueue {
    /// Takes in a pod, or the newer state of one that waits.
    pub fn upsert(&mut self, pod: Arc<PodInfo>) {
        let uid: Arc<str> = pod.uid().into();
        if let Some(waiting) = self.pods.get_mut(&uid) {
            let respecified = waiting.pod.constraints != pod.constraints
                || waiting.pod.demand != pod.demand
                || waiting.pod.labels != pod.labels;
            waiting.pod = pod;
            if respecified && matches!(waiting.place, Place::Parked { .. }) {
                self.activate(&uid);
            }
            return;
        }
        self.pods.insert(
            uid.clone(),
            Waiting {
                pod,
                place: Place::Out,
                attempts: 0,
                told: None,
            },
        );
        self.activate(&uid);
    }

    /// Forgets a pod: it was bound or is gone.
    pub fn remove(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Whether a pod waits here, or is being decided or bound.
    pub fn contains(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// The next pod to decide. It stays known until [`PendingQueue::remove`].
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        self.advance(now);
        while let Some((_, Reverse(ticket), uid)) = self.active.pop() {
            if let Some(waiting) = self.pods.get_mut(&uid)
                && waiting.place == Place::Active(ticket)
            {
                waiting.place = Place::Out;
                return Some(waiting.pod.clone());
            }
        }
        None
    }

    /// The pod fits nowhere until one of `blockers` changes; returns whether `message` is news.
    pub fn park(&mut self, uid: &str, message: &str, blockers: Blockers, now: Instant) -> bool {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return false;
        };
        // Never longer: once what was in the way has changed, nothing is lost by another look.
        let retry_at = now + BACKOFF.first;
        let flush_at = now + FLUSH_AFTER;
        waiting.place = Place::Parked {
            retry_at,
            flush_at,
            blockers,
        };
        self.timers.push(Reverse((flush_at, uid.into())));
        let news = waiting.told.as_deref() != Some(message);
        waiting.told = Some(message.to_owned());
        news
    }

    /// The binding failed: tried again after a back-off.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        waiting.attempts += 1;
        let at = now + BACKOFF.delay(waiting.attempts);
        waiting.place = Place::BackingOff(at);
        self.timers.push(Reverse((at, uid.into())));
    }

    /// Parked pods that wait for such a change are worth another look.
    pub fn changed(&mut self, what: Blockers) {
        self.changed = self.changed | what;
    }

    /// When [`PendingQueue::pop`] may have something that it has not now.
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Pods that are ready to be decided, stale entries included.
    pub fn has_active(&self) -> bool {
        self.changed != Blockers::default() || !self.active.is_empty()
    }

    /// Pods that wait in any way.
    pub fn len(&self) -> usize {
        self.pods.len()
    }

    /// Whether no pod waits.
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn activate(&mut self, uid: &Arc<str>) {
        let Some(waiting) = self.pods.get_mut(uid) else {
            return;
        };
        self.tickets += 1;
        waiting.place = Place::Active(self.tickets);
        self.active
            .push((waiting.pod.priority, Reverse(self.tickets), uid.clone()));
    }

    fn advance(&mut self, now: Instant) {
        while let Some(Reverse((at, _))) = self.timers.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((at, uid))) = self.timers.pop() else {
                break;
            };
            let due = self.pods.get(&uid).is_some_and(|waiting| match waiting.place {
                Place::BackingOff(until) => until == at,
                Place::Parked { flush_at, .. } => flush_at == at,
                Place::Active(_) | Place::Out => false,
            });
            if due {
                self.activate(&uid);
            }
        }
        let changed = std::mem::take(&mut self.changed);
        if changed != Blockers::default() {
            let mut parked: Vec<(Arc<str>, Instant)> = self
                .pods
                .iter()
                .filter_map(|(uid, waiting)| match waiting.place {
                    Place::Parked {
                        retry_at, blockers, ..
                    } if blockers.meet(changed) => Some((uid.clone(), retry_at)),
                    _ => None,
                })
                .collect();
            // Those that wait longest first, and the same order on every run.
            parked.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
            for (uid, retry_at) in parked {
                if retry_at <= now {
                    self.activate(&uid);
                } else if let Some(waiting) = self.pods.get_mut(&uid) {
                    waiting.place = Place::BackingOff(retry_at);
                    self.timers.push(Reverse((retry_at, uid)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::pod;

    const SECOND: Duration = Duration::from_secs(1);

    fn uid(pod: Option<Arc<PodInfo>>) -> Option<String> {
        pod.map(|pod| pod.uid().to_owned())
    }

    #[test]
    fn priority_first_then_age() {
        let now = Instant::now();
        let mut queue = PendingQueue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.upsert(Arc::new(pod(name).priority(priority).build()));
        }
        let order: Vec<String> = std::iter::from_fn(|| uid(queue.pop(now))).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_parked_pod_comes_back_on_a_change_after_its_back_off() {
        let now = Instant::now();
        let mut queue = PendingQueue::default();
        queue.upsert(Arc::new(pod("a").build()));
        assert_eq!(uid(queue.pop(now)).unwrap(), "a");
        assert!(queue.park("a", "no room", Blockers::ROOM, now));
        assert_eq!(uid(queue.pop(now + 5 * SECOND)), None, "nothing changed");
        queue.changed(Blockers::VOLUMES | Blockers::PODS);
        assert_eq!(uid(queue.pop(now + 5 * SECOND)), None, "nothing that helps");
        queue.changed(Blockers::ROOM);
        assert_eq!(uid(queue.pop(now + 5 * SECOND)).unwrap(), "a");
        assert!(
            !queue.park("a", "no room", Blockers::ROOM, now + 5 * SECOND),
            "told once"
        );
        queue.changed(Blockers::ROOM);
        assert_eq!(
            uid(queue.pop(now + 5 * SECOND + SECOND / 2)),
            None,
            "it was looked at just now"
        );
        assert_eq!(uid(queue.pop(now + 7 * SECOND)).unwrap(), "a");
        assert!(queue.park("a", "other words", Blockers::ROOM, now + 7 * SECOND));
        assert_eq!(
            uid(queue.pop(now + 7 * SECOND + FLUSH_AFTER)).unwrap(),
            "a",
            "flushed in the end"
        );
    }

    #[test]
    fn bound_and_deleted_pods_are_forgotten() {
        let now = Instant::now();
        let mut queue = PendingQueue::default();
        queue.upsert(Arc::new(pod("a").build()));
        queue.remove("a");
        assert!(queue.pop(now).is_none());
        queue.upsert(Arc::new(pod("a").build()));
        assert!(queue.pop(now).is_some());
        queue.upsert(Arc::new(pod("a").build()));
        assert!(queue.pop(now).is_none(), "an update does not hand it out twice");
        queue.retry("a", now);
        assert!(queue.pop(now).is_none());
        assert!(queue.pop(now + SECOND).is_some());
    }
}
