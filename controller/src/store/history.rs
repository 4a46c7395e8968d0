//! One resource in memory: its objects in key order and the ring of its latest changes, which watchers read at their own
//! pace. Nobody waits for a watcher: one that falls behind the ring is told so and must list again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use super::{Meta, Object, Revision, StoreError};

/// Changes handed to a watcher at a time.
const BATCH: usize = 256;
/// Topics nobody listens to any more are looked for when there are so many.
const TOPICS: usize = 64;
/// So many watchers of the same changes are a crowd.
const CROWD: usize = 32;
/// A crowd hears of what changes until the next tick of the runtime's clock, a millisecond, together: that costs each of them
/// one packet. Any time that is not nothing is rounded up to that tick.
const CROWD_PACE: Duration = Duration::from_micros(1);

/// How much a resource's ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// Leases and Events change all the time and nobody resumes a watch on them far back.
    pub(super) fn of(resource: &str) -> Self {
        match resource {
            "coordination.k8s.io/leases" | "events" => Self {
                events: 2048,
                bytes: 2 << 20,
            },
            _ => Self {
                events: 16384,
                bytes: 24 << 20,
            },
        }
    }
}

/// One change.
#[derive(Debug)]
pub struct Event {
    /// The new state; for a deletion the last state under the deletion's revision.
    pub object: Arc<Object>,
    /// The state before.
    pub previous: Option<Arc<Object>>,
    /// Whether the object is gone.
    pub deleted: bool,
}

impl Event {
    /// The change's revision.
    pub fn revision(&self) -> Revision {
        self.object.revision()
    }

    /// The state after, and the one before if there was one.
    fn states(&self) -> impl Iterator<Item = &Arc<Object>> {
        std::iter::once(&self.object).chain(&self.previous)
    }

    fn size(&self) -> usize {
        self.object.body().len() + self.previous.as_ref().map_or(0, |object| object.body().len())
    }
}

/// By what of an object a watcher is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Aspect {
    /// A selectable field, by its place in the resource's table.
    Field(usize),
    /// The name.
    Name,
    /// The namespace.
    Namespace,
}

impl Aspect {
    fn of(self, meta: &Meta) -> Option<&str> {
        match self {
            Aspect::Field(place) => meta.fields.get(place).map(|value| &**value),
            Aspect::Name => Some(&meta.name),
            Aspect::Namespace => Some(&meta.namespace),
        }
    }
}

/// All that a watcher wants to hear of: objects of which an aspect is or was so. A node hears of its own pods alone, and
/// thousands of nodes sleep while others' change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Which aspect.
    pub aspect: Aspect,
    /// Its value.
    pub value: Box<str>,
}

impl Interest {
    fn covers(&self, event: &Event) -> bool {
        event
            .states()
            .any(|object| self.aspect.of(object.meta()) == Some(&*self.value))
    }
}

/// Tells watchers that there is something to read. Each watcher holds it, too.
#[derive(Debug)]
struct News {
    /// The revision of the last change, at the latest.
    last: watch::Sender<Revision>,
    /// What a crowd waits for, once there was one.
    cried: OnceLock<watch::Sender<()>>,
}

impl News {
    fn new(last: Revision) -> Arc<Self> {
        Arc::new(Self {
            last: watch::Sender::new(last),
            cried: OnceLock::new(),
        })
    }

    fn last(&self) -> Revision {
        *self.last.borrow()
    }

    /// Takes note of a change, tells nobody yet, and says whether it is the first after `since`.
    fn note(&self, revision: Revision, since: Revision) -> bool {
        let mut first = false;
        self.last.send_if_modified(|last| {
            first = *last <= since;
            *last = revision;
            false
        });
        first
    }

    /// Tells of a new state.
    fn replace(&self, revision: Revision) {
        self.last.send_replace(revision);
    }

    /// Wakes the watchers.
    fn tell(&self) {
        self.last.send_modify(|_| {});
    }

    /// How many watch: all who hold it but the one who tells.
    fn watchers(self: &Arc<Self>) -> usize {
        Arc::strong_count(self) - 1
    }

    /// What is told to a crowd. A task of its own tells it: whoever writes wakes that one instead of all, and none of the
    /// crowd depends on how fast another reads.
    fn cried(&self) -> &watch::Sender<()> {
        self.cried.get_or_init(|| {
            let cried = watch::Sender::new(());
            tokio::spawn(cry(self.last.subscribe(), cried.clone()));
            cried
        })
    }
}

/// Tells a crowd, until there is nobody left who would tell of changes.
async fn cry(mut news: watch::Receiver<Revision>, cried: watch::Sender<()>) {
    while news.changed().await.is_ok() {
        cried.send_replace(());
        sleep(CROWD_PACE).await;
    }
}

/// One value of an aspect.
#[derive(Debug)]
struct Topic {
    /// Of the changes that it had a part in.
    news: Arc<News>,
    /// Those changes of the ring that it had a part in: a watcher finds its own without looking at all others'.
    events: VecDeque<Arc<Event>>,
}

/// Who waits for what.
#[derive(Debug)]
struct Topics {
    by_aspect: BTreeMap<Aspect, HashMap<Box<str>, Topic>>,
    count: usize,
    /// At how many the deserted ones are looked for.
    limit: usize,
}

impl Default for Topics {
    fn default() -> Self {
        Self {
            by_aspect: BTreeMap::new(),
            count: 0,
            limit: TOPICS,
        }
    }
}

impl Topics {
    fn subscribe(&mut self, interest: &Interest, ring: &VecDeque<Arc<Event>>, last: Revision) -> Arc<News> {
        if self.count >= self.limit {
            for topics in self.by_aspect.values_mut() {
                topics.retain(|_, topic| topic.news.watchers() > 0);
            }
            self.count = self.by_aspect.values().map(HashMap::len).sum();
            self.limit = TOPICS.max(self.count * 2);
        }
        let topics = self.by_aspect.entry(interest.aspect).or_default();
        if let Some(topic) = topics.get(&interest.value) {
            return Arc::clone(&topic.news);
        }
        self.count += 1;
        let news = News::new(last);
        let events = ring.iter().filter(|event| interest.covers(event));
        let topic = Topic {
            news: Arc::clone(&news),
            events: events.cloned().collect(),
        };
        topics.insert(interest.value.clone(), topic);
        news
    }

    /// The changes of the ring that are of interest; a topic is there as long as somebody listens.
    fn events(&self, interest: &Interest) -> Option<&VecDeque<Arc<Event>>> {
        let topic = self.by_aspect.get(&interest.aspect)?.get(&interest.value)?;
        Some(&topic.events)
    }

    /// Every topic that a change has a part in, once.
    fn each_of(&mut self, event: &Event, mut act: impl FnMut(&mut Topic)) {
        for (aspect, topics) in &mut self.by_aspect {
            let after = aspect.of(event.object.meta());
            let before = event
                .previous
                .as_ref()
                .and_then(|object| aspect.of(object.meta()));
            for value in after.into_iter().chain(before.filter(|_| before != after)) {
                if let Some(topic) = topics.get_mut(value) {
                    act(topic);
                }
            }
        }
    }

    /// A change joins the ring; who is to be told of it and of none since `since` joins `due`.
    fn note(&mut self, event: &Arc<Event>, since: Revision, due: &mut Vec<Arc<News>>) {
        self.each_of(event, |topic| {
            topic.events.push_back(Arc::clone(event));
            if topic.news.note(event.revision(), since) {
                due.push(Arc::clone(&topic.news));
            }
        });
    }

    /// The oldest change leaves the ring.
    fn forget(&mut self, event: &Arc<Event>) {
        self.each_of(event, |topic| {
            if topic
                .events
                .front()
                .is_some_and(|oldest| Arc::ptr_eq(oldest, event))
            {
                topic.events.pop_front();
            }
        });
    }

    fn forget_all(&mut self) {
        for topic in self.by_aspect.values_mut().flat_map(HashMap::values_mut) {
            topic.events.clear();
        }
    }

    fn tell_all(&self, revision: Revision) {
        for topic in self.by_aspect.values().flat_map(HashMap::values) {
            topic.news.replace(revision);
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Changes after this revision are all in the ring.
    floor: Revision,
    /// The last change.
    last: Revision,
    topics: Topics,
}

/// One resource.
#[derive(Debug)]
pub(super) struct Resource {
    limits: Limits,
    inner: RwLock<Inner>,
    news: Arc<News>,
}

impl Resource {
    /// A resource whose last change was at `last`; what happened up to then is not known any more.
    pub(super) fn new(limits: Limits, objects: BTreeMap<Box<str>, Arc<Object>>, last: Revision) -> Self {
        Self {
            limits,
            inner: RwLock::new(Inner {
                objects,
                floor: last,
                last,
                ..Inner::default()
            }),
            news: News::new(last),
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().objects.get(key).cloned()
    }

    pub(super) fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// The objects under a prefix and the revision of the last change to the resource.
    pub(super) fn list(&self, prefix: &str) -> (Revision, Vec<Arc<Object>>) {
        let inner = self.read();
        let items = if prefix.is_empty() {
            inner.objects.values().cloned().collect()
        } else {
            inner
                .objects
                .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
                .take_while(|(key, _)| key.starts_with(prefix))
                .map(|(_, object)| Arc::clone(object))
                .collect()
        };
        (inner.last, items)
    }

    /// The objects as they are at `revision`; what led there is not known.
    pub(super) fn replace(&self, objects: BTreeMap<Box<str>, Arc<Object>>, revision: Revision) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.topics.forget_all();
        inner.topics.tell_all(revision);
        *inner = Inner {
            objects,
            floor: revision,
            last: revision,
            topics: std::mem::take(&mut inner.topics),
            ..Inner::default()
        };
        drop(inner);
        self.news.replace(revision);
    }

    /// Forgets what led to the present state.
    #[cfg(test)]
    pub(super) fn cut(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.ring.clear();
        inner.topics.forget_all();
        inner.ring_bytes = 0;
        inner.floor = inner.last;
    }

    /// Takes in changes in the order of their revisions and wakes the watchers.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = (Box<str>, Arc<Event>)>) {
        let mut due = Vec::new();
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let since = inner.last;
        for (key, event) in changes {
            inner.last = event.revision();
            if event.deleted {
                inner.objects.remove(&key);
            } else {
                inner.objects.insert(key, Arc::clone(&event.object));
            }
            inner.ring_bytes += event.size();
            // Under the lock: whoever sees the change in the ring finds that its topic has it, too.
            inner.topics.note(&event, since, &mut due);
            inner.ring.push_back(event);
        }
        while inner.ring.len() > self.limits.events || inner.ring_bytes > self.limits.bytes {
            let Some(oldest) = inner.ring.pop_front() else {
                break;
            };
            inner.topics.forget(&oldest);
            inner.ring_bytes -= oldest.size();
            inner.floor = oldest.revision();
        }
        self.news.note(inner.last, since);
        // Not under the lock, which is the first thing they need.
        drop(inner);
        for news in due.iter().chain([&self.news]) {
            news.tell();
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a watcher gets at a time: changes in order, at least one.
pub type WatchBatch = Vec<Arc<Event>>;

/// A reader of one resource's changes.
#[derive(Debug)]
pub struct Watch {
    resource: Arc<Resource>,
    news: Arc<News>,
    changed: watch::Receiver<Revision>,
    cried: Option<watch::Receiver<()>>,
    cursor: Revision,
    interest: Option<Interest>,
}

impl Watch {
    pub(super) fn new(resource: &Arc<Resource>, after: Revision) -> Result<Self, StoreError> {
        let floor = resource.read().floor;
        if after < floor {
            return Err(StoreError::Expired {
                asked: after,
                oldest: floor,
            });
        }
        Ok(Self {
            resource: Arc::clone(resource),
            news: Arc::clone(&resource.news),
            changed: resource.news.last.subscribe(),
            cried: None,
            cursor: after,
            interest: None,
        })
    }

    /// The same, but for changes that are of interest.
    #[must_use]
    pub fn narrowed(mut self, interest: Interest) -> Self {
        let mut inner = self
            .resource
            .inner
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let Inner {
            topics, ring, last, ..
        } = &mut *inner;
        self.news = topics.subscribe(&interest, ring, *last);
        drop(inner);
        self.changed = self.news.last.subscribe();
        self.interest = Some(interest);
        self
    }

    /// The next changes; waits until there are some.
    ///
    /// # Errors
    /// [`StoreError::Expired`] if the watcher was too slow, [`StoreError::Closed`] if there will be no more.
    pub async fn next(&mut self) -> Result<WatchBatch, StoreError> {
        loop {
            // Listens before it looks, so that nothing is missed.
            let crowded = self.news.watchers() >= CROWD;
            if crowded {
                let cried = || self.news.cried().subscribe();
                self.cried.get_or_insert_with(cried).mark_unchanged();
            } else {
                self.changed.mark_unchanged();
            }
            let batch = self.ready()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            let told = match &mut self.cried {
                Some(cried) if crowded => cried.changed().await,
                _ => self.changed.changed().await,
            };
            told.map_err(|_| StoreError::Closed)?;
        }
    }

    /// Whether there are changes that the watcher has not seen.
    pub fn is_behind(&self) -> bool {
        self.news.last() > self.cursor
    }

    /// The changes that are there; none if the watcher has seen all.
    ///
    /// # Errors
    /// [`StoreError::Expired`] if the watcher was too slow.
    pub fn ready(&mut self) -> Result<WatchBatch, StoreError> {
        let inner = self.resource.read();
        if self.interest.is_some() && self.news.last() <= self.cursor {
            // Whatever happened since was none of this watcher's business, even if it is forgotten by now.
            self.cursor = self.cursor.max(inner.last);
            return Ok(Vec::new());
        }
        if self.cursor < inner.floor {
            return Err(StoreError::Expired {
                asked: self.cursor,
                oldest: inner.floor,
            });
        }
        if self.cursor >= inner.last {
            return Ok(Vec::new());
        }
        let events = match &self.interest {
            None => Some(&inner.ring),
            Some(interest) => inner.topics.events(interest),
        };
        let mut batch: WatchBatch = Vec::new();
        if let Some(events) = events {
            let start = events.partition_point(|event| event.revision() <= self.cursor);
            for event in events.range(start..) {
                // The cursor is a revision, so the changes of one must not be parted.
                if batch.len() >= BATCH && self.cursor < event.revision() {
                    return Ok(batch);
                }
                self.cursor = event.revision();
                batch.push(Arc::clone(event));
            }
        }
        self.cursor = self.cursor.max(inner.last);
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::Encoded;

    const LIMITS: Limits = Limits {
        events: 6,
        bytes: 1 << 20,
    };

    fn state(node: u8, revision: Revision) -> Arc<Object> {
        let meta = Meta {
            fields: Box::new([node.to_string().into()]),
            ..Meta::default()
        };
        Arc::new(Encoded::new(&serde_json::json!({}), meta).seal(revision))
    }

    fn interest(node: u8) -> Interest {
        Interest {
            aspect: Aspect::Field(0),
            value: node.to_string().into(),
        }
    }

    /// Writes one change: an object moves from one node to another.
    fn write(resource: &Resource, revision: Revision, from: u8, to: u8) {
        let event = Event {
            object: state(to, revision),
            previous: Some(state(from, revision - 1)),
            deleted: false,
        };
        resource.apply([("a".into(), Arc::new(event))]);
    }

    proptest! {
        /// A narrowed watch tells what a whole one tells of its topic, or that it has fallen behind; and it falls behind
        /// only if something was forgotten that it had to hear of.
        #[test]
        fn a_narrowed_watch_misses_nothing(steps in prop::collection::vec((0..3_u8, 0..3_u8, any::<bool>()), 1..60)) {
            let resource = Arc::new(Resource::new(LIMITS, BTreeMap::new(), 0));
            let mut narrow = Watch::new(&resource, 0).unwrap().narrowed(interest(1));
            let mut expected: Vec<Revision> = Vec::new();
            for (step, (from, to, read)) in steps.into_iter().enumerate() {
                let revision = step as Revision + 1;
                write(&resource, revision, from, to);
                if from == 1 || to == 1 {
                    expected.push(revision);
                }
                if !read {
                    continue;
                }
                if let Ok(batch) = narrow.ready() {
                    let told: Vec<_> = batch.iter().map(|event| event.revision()).collect();
                    prop_assert_eq!(&told, &expected);
                } else {
                    let floor = resource.read().floor;
                    prop_assert!(narrow.cursor < floor && !expected.is_empty());
                    narrow = Watch::new(&resource, revision).unwrap().narrowed(interest(1));
                }
                expected.clear();
            }
        }
    }

    #[test]
    fn what_others_change_neither_wakes_nor_outdates_a_narrowed_watch() {
        let resource = Arc::new(Resource::new(LIMITS, BTreeMap::new(), 0));
        let mut mine = Watch::new(&resource, 0).unwrap().narrowed(interest(7));
        let mut whole = Watch::new(&resource, 0).unwrap();
        for revision in 1..=100 {
            write(&resource, revision, 1, 2);
        }
        assert!(!mine.changed.has_changed().unwrap());
        assert!(mine.ready().unwrap().is_empty());
        assert!(matches!(whole.ready(), Err(StoreError::Expired { .. })));
        write(&resource, 101, 2, 7);
        assert!(mine.changed.has_changed().unwrap());
        assert_eq!(mine.ready().unwrap().len(), 1);
    }

    #[test]
    fn a_watch_that_missed_something_of_its_own_is_told() {
        let resource = Arc::new(Resource::new(LIMITS, BTreeMap::new(), 0));
        let mut mine = Watch::new(&resource, 0).unwrap().narrowed(interest(7));
        write(&resource, 1, 2, 7);
        for revision in 2..=100 {
            write(&resource, revision, 1, 2);
        }
        assert!(matches!(mine.ready(), Err(StoreError::Expired { .. })));
        let mut replaced = Watch::new(&resource, 100).unwrap().narrowed(interest(7));
        resource.replace(BTreeMap::new(), 200);
        assert!(matches!(replaced.ready(), Err(StoreError::Expired { .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_is_told_together_and_by_nobody_once_it_is_gone() {
        let resource = Arc::new(Resource::new(LIMITS, BTreeMap::new(), 0));
        let slow = Watch::new(&resource, 0).unwrap().narrowed(interest(1));
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 1..CROWD {
            let mut watch = Watch::new(&resource, 0).unwrap().narrowed(interest(1));
            crowd.spawn(async move {
                let mut batches = Vec::new();
                while batches.iter().sum::<usize>() < 6 {
                    batches.push(watch.next().await.unwrap().len());
                }
                batches
            });
        }
        let settle = async || {
            for _ in 0..3 * CROWD {
                tokio::task::yield_now().await;
            }
        };
        settle().await;
        for revision in 1..=6 {
            write(&resource, revision, 1, 1);
            settle().await;
        }
        while let Some(batches) = crowd.join_next().await {
            assert_eq!(batches.unwrap(), [1, 5]);
        }
        let tasks = tokio::runtime::Handle::current().metrics();
        assert_eq!(tasks.num_alive_tasks(), 1);
        drop((slow, resource));
        sleep(Duration::from_millis(2)).await;
        assert_eq!(tasks.num_alive_tasks(), 0);
    }

    #[test]
    fn deserted_topics_are_swept() {
        let resource = Arc::new(Resource::new(LIMITS, BTreeMap::new(), 0));
        for round in 0..1000_u32 {
            let interest = Interest {
                aspect: Aspect::Name,
                value: round.to_string().into(),
            };
            drop(Watch::new(&resource, 0).unwrap().narrowed(interest));
        }
        assert!(resource.read().topics.count <= TOPICS);
    }
}
