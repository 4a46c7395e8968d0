//! The work queue between informers and reconcilers.
//!
//! [`WorkQueue`] is pure: it is told the time and never sleeps. Its laws: a key is in the queue at most once; a key that is
//! being worked on is not handed out again until it is done; a key added meanwhile comes back once it is done; nothing
//! that was added is lost. [`Queue`] is the shared, waiting form that workers use.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long a key that failed waits: the first delay doubles with each failure up to the last.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// Delay after the first failure.
    pub first: Duration,
    /// Longest delay.
    pub last: Duration,
}

impl Backoff {
    /// The delay after `failures` failures in a row (one or more).
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(30);
        self.first.saturating_mul(1 << doublings).min(self.last)
    }
}

impl Default for Backoff {
    fn default() -> Self {
        // A conflict is over by the next event, so the first retry is quick; a lasting failure must not load the server.
        Backoff {
            first: Duration::from_millis(5),
            last: Duration::from_mins(1),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In `ready`.
    Ready,
    /// Handed out.
    Working,
    /// Handed out, and added again since.
    WorkingAgain,
}

/// A queue of distinct keys with delays and back-off, free of clocks and locks.
#[derive(Debug)]
pub struct WorkQueue<K> {
    ready: VecDeque<K>,
    state: HashMap<K, State>,
    /// Earliest time of each delayed key; entries of `timers` that disagree with it are stale.
    delayed: HashMap<K, Instant>,
    timers: BinaryHeap<Reverse<(Instant, u64)>>,
    timer_keys: HashMap<u64, K>,
    next_timer: u64,
    failures: HashMap<K, u32>,
    backoff: Backoff,
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        WorkQueue {
            ready: VecDeque::new(),
            state: HashMap::new(),
            delayed: HashMap::new(),
            timers: BinaryHeap::new(),
            timer_keys: HashMap::new(),
            next_timer: 0,
            failures: HashMap::new(),
            backoff,
        }
    }

    /// Adds a key; returns whether a waiting worker has something to do because of it.
    pub fn add(&mut self, key: K) -> bool {
        match self.state.get(&key) {
            None => {
                self.state.insert(key.clone(), State::Ready);
                self.ready.push_back(key);
                true
            }
            Some(State::Working) => {
                self.state.insert(key, State::WorkingAgain);
                false
            }
            Some(State::Ready | State::WorkingAgain) => false,
        }
    }

    /// Adds a key at `now + delay`, or leaves it where it is when it is due earlier already.
    pub fn add_after(&mut self, key: K, now: Instant, delay: Duration) {
        let due = now + delay;
        if self.delayed.get(&key).is_some_and(|&earlier| earlier <= due) {
            return;
        }
        self.delayed.insert(key.clone(), due);
        let id = self.next_timer;
        self.next_timer += 1;
        self.timer_keys.insert(id, key);
        self.timers.push(Reverse((due, id)));
    }

    /// Adds a key after its back-off delay, which grows with each call until [`WorkQueue::forget`].
    pub fn retry(&mut self, key: K, now: Instant) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        let delay = self.backoff.delay(*failures);
        self.add_after(key, now, delay);
        delay
    }

    /// Resets the back-off of a key.
    pub fn forget(&mut self, key: &K) {
        self.failures.remove(key);
    }

    /// How many times in a row the key failed.
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.failures.get(key).copied().unwrap_or(0)
    }

    /// Hands out the next key that is due, if there is one. The caller must answer with [`WorkQueue::done`].
    pub fn pop(&mut self, now: Instant) -> Option<K> {
        self.promote(now);
        let key = self.ready.pop_front()?;
        self.state.insert(key.clone(), State::Working);
        Some(key)
    }

    /// Says that the work on a handed-out key has ended; returns whether the key is ready again.
    pub fn done(&mut self, key: &K) -> bool {
        match self.state.remove(key) {
            Some(State::WorkingAgain | State::Ready) => {
                self.state.insert(key.clone(), State::Ready);
                self.ready.push_back(key.clone());
                true
            }
            Some(State::Working) | None => false,
        }
    }

    /// When the next delayed key is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((due, _))| *due)
    }

    /// Keys that are ready now (delayed ones not counted).
    #[must_use]
    pub fn len(&self) -> usize {
        self.ready.len()
    }

    /// Whether nothing is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((due, id))) = self.timers.peek().copied() {
            if due > now {
                return;
            }
            self.timers.pop();
            let Some(key) = self.timer_keys.remove(&id) else {
                continue;
            };
            if self.delayed.get(&key) == Some(&due) {
                self.delayed.remove(&key);
                self.add(key);
            }
        }
    }
}

/// A [`WorkQueue`] that many tasks share. Clones are handles to the same queue.
#[derive(Debug)]
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
}

#[derive(Debug)]
struct Shared<K> {
    queue: Mutex<WorkQueue<K>>,
    wake: Notify,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Queue {
            shared: self.shared.clone(),
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty shared queue.
    #[must_use]
    pub fn new(backoff: Backoff) -> Self {
        Queue {
            shared: Arc::new(Shared {
                queue: Mutex::new(WorkQueue::new(backoff)),
                wake: Notify::new(),
            }),
        }
    }

    /// Asks how many keys wait, without keeping the queue alive.
    pub(crate) fn depth(&self) -> impl Fn() -> Option<usize> + Send + use<K>
    where
        K: Send + 'static,
    {
        let shared = Arc::downgrade(&self.shared);
        move || {
            Some(
                Queue {
                    shared: shared.upgrade()?,
                }
                .with(|queue| queue.len()),
            )
        }
    }

    fn with<R>(&self, act: impl FnOnce(&mut WorkQueue<K>) -> R) -> R {
        // The queue holds no invariant across a panic of a caller's closure that a poisoned lock would protect.
        act(&mut self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// See [`WorkQueue::add`].
    pub fn add(&self, key: K) {
        if self.with(|q| q.add(key)) {
            self.shared.wake.notify_one();
        }
    }

    /// See [`WorkQueue::add_after`].
    pub fn add_after(&self, key: K, delay: Duration) {
        let sooner = self.with(|q| {
            let before = q.next_due();
            q.add_after(key, Instant::now(), delay);
            q.next_due() != before
        });
        // Whoever waits for an earlier one goes on to this one.
        if sooner {
            self.shared.wake.notify_one();
        }
    }

    /// See [`WorkQueue::retry`].
    pub fn retry(&self, key: K) -> Duration {
        let delay = self.with(|q| q.retry(key, Instant::now()));
        self.shared.wake.notify_one();
        delay
    }

    /// See [`WorkQueue::forget`].
    pub fn forget(&self, key: &K) {
        self.with(|q| q.forget(key));
    }

    /// See [`WorkQueue::failures`].
    #[must_use]
    pub fn failures(&self, key: &K) -> u32 {
        self.with(|q| q.failures(key))
    }

    /// See [`WorkQueue::done`].
    pub fn done(&self, key: &K) {
        if self.with(|q| q.done(key)) {
            self.shared.wake.notify_one();
        }
    }

    /// Waits for the next key; `None` once `shutdown` is cancelled.
    pub async fn next(&self, shutdown: &CancellationToken) -> Option<K> {
        loop {
            if shutdown.is_cancelled() {
                return None;
            }
            let (key, due, more) = self.with(|q| {
                let key = q.pop(Instant::now());
                (key, q.next_due(), !q.is_empty())
            });
            if let Some(key) = key {
                // One permit may stand for several keys, and somebody has to wait for the next delayed one.
                if more || due.is_some() {
                    self.shared.wake.notify_one();
                }
                return Some(key);
            }
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return None,
                () = self.shared.wake.notified() => {}
                () = timer => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn queue() -> WorkQueue<u8> {
        WorkQueue::new(Backoff {
            first: Duration::from_millis(10),
            last: Duration::from_secs(1),
        })
    }

    #[test]
    fn a_key_is_queued_once_and_handed_out_once() {
        let now = Instant::now();
        let mut q = queue();
        assert!(q.add(1));
        assert!(!q.add(1));
        assert_eq!(q.pop(now), Some(1));
        assert_eq!(q.pop(now), None);
        assert!(!q.add(1), "worked on: comes back only when done");
        assert_eq!(q.pop(now), None);
        assert!(q.done(&1));
        assert_eq!(q.pop(now), Some(1));
        assert!(!q.done(&1));
        assert_eq!(q.pop(now), None);
    }

    #[test]
    fn the_earliest_delay_wins() {
        let now = Instant::now();
        let mut q = queue();
        q.add_after(1, now, Duration::from_secs(5));
        q.add_after(1, now, Duration::from_secs(1));
        q.add_after(1, now, Duration::from_secs(9));
        assert_eq!(q.pop(now), None);
        assert_eq!(q.pop(now + Duration::from_secs(1)), Some(1));
        assert!(!q.done(&1));
        assert_eq!(
            q.pop(now + Duration::from_secs(10)),
            None,
            "stale timers do nothing"
        );
    }

    #[test]
    fn back_off_doubles_up_to_the_limit_and_is_forgotten() {
        let now = Instant::now();
        let mut q = queue();
        let delays: Vec<u128> = (0..9).map(|_| q.retry(1, now).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        q.forget(&1);
        assert_eq!(q.retry(1, now).as_millis(), 10);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Add(u8),
        After(u8, u16),
        Retry(u8),
        Pop,
        Done(u8),
        Tick(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0u8..6).prop_map(Op::Add),
            (0u8..6, 0u16..500).prop_map(|(k, d)| Op::After(k, d)),
            (0u8..6).prop_map(Op::Retry),
            Just(Op::Pop),
            (0u8..6).prop_map(Op::Done),
            (0u16..500).prop_map(Op::Tick),
        ]
    }

    proptest! {
        #[test]
        fn never_two_at_once_and_nothing_lost(ops in prop::collection::vec(op(), 1..200)) {
            let mut now = Instant::now();
            let mut q = queue();
            let mut working = HashSet::new();
            // Keys added since they were last handed out.
            let mut owed = HashSet::new();
            for op in ops {
                match op {
                    Op::Add(k) => { q.add(k); owed.insert(k); }
                    Op::After(k, d) => { q.add_after(k, now, Duration::from_millis(d.into())); owed.insert(k); }
                    Op::Retry(k) => { q.retry(k, now); owed.insert(k); }
                    Op::Pop => if let Some(k) = q.pop(now) {
                        prop_assert!(working.insert(k), "{k} handed out twice");
                        prop_assert!(owed.contains(&k) , "{k} was never added");
                        // A delayed entry of the same key may follow; it stays owed only if one is pending.
                        if !q.delayed.contains_key(&k) { owed.remove(&k); }
                    },
                    Op::Done(k) => if working.remove(&k) { q.done(&k); },
                    Op::Tick(ms) => now += Duration::from_millis(ms.into()),
                }
            }
            for k in working.drain() { q.done(&k); }
            now += Duration::from_secs(10);
            while let Some(k) = q.pop(now) { owed.remove(&k); q.done(&k); }
            prop_assert!(owed.is_empty(), "lost: {owed:?}");
            prop_assert!(q.state.is_empty() && q.timers.is_empty() && q.delayed.is_empty());
        }
    }

    #[tokio::test]
    async fn workers_wait_for_keys_and_timers() {
        let q: Queue<u8> = Queue::new(Backoff::default());
        let stop = CancellationToken::new();
        q.add_after(1, Duration::from_millis(1));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(q.next(&stop).await, Some(1));
        q.done(&1);
        stop.cancel();
        assert_eq!(q.next(&stop).await, None);
    }
}
