//! A local copy of one kind of object, kept true by list and watch.
//!
//! A [`Store`] holds what a controller needs of each object (a projection, so that the copy of 30,000 pods stays small)
//! behind `Arc`s, with indexes, and tells its subscribers about changes. Subscribers put keys into queues and never
//! keep the object: whoever works on a key reads the store again.

mod lean;
mod unread;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Debug};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use lean::Lean;
pub use unread::{Unread, Unreadable};

/// Namespace and name of an object; the namespace of a cluster-scoped one is empty.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of a namespaced object.
    pub fn new(namespace: &str, name: &str) -> Self {
        ObjectKey {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: &str) -> Self {
        Self::new("", name)
    }

    /// The key of the object with this metadata.
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// Answers a question about labels, and remembers the last answer: pods that one template made share their labels, and
/// thousands of them come one after the other.
pub fn remembering<'a>(ask: impl Fn(&Labels) -> bool) -> impl FnMut(&'a Labels) -> bool {
    let mut last: Option<(&'a Labels, bool)> = None;
    move |labels| match last {
        Some((of, answer)) if std::ptr::eq(of, labels) => answer,
        _ => {
            let answer = ask(labels);
            last = Some((labels, answer));
            answer
        }
    }
}

/// What a store can be asked for besides a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum IndexKey {
    /// Objects of a namespace.
    Namespace(Arc<str>),
    /// Objects whose controller has this uid.
    Owner(Arc<str>),
    /// Objects of a namespace that have no controller.
    Orphan(Arc<str>),
    /// Pods bound to a node.
    Node(Arc<str>),
    /// Pods that use a volume claim.
    Claim(ObjectKey),
    /// Objects of a namespace that carry a label `key=value`; filled by kinds that are looked up so.
    Label(Arc<str>, Arc<str>),
}

/// An object, or a projection of one, that a [`Store`] can hold.
pub trait Cached: Send + Sync + 'static {
    /// Its metadata, without managed fields.
    fn metadata(&self) -> &ObjectMeta;

    /// Its key.
    fn key(&self) -> ObjectKey {
        ObjectKey::of(self.metadata())
    }

    /// Its labels.
    fn labels(&self) -> &Labels {
        static NONE: Labels = Labels::new();
        self.metadata().labels.as_ref().unwrap_or(&NONE)
    }

    /// Where it is found; by default under its namespace and its controller.
    fn index_keys(&self) -> Vec<IndexKey> {
        default_index_keys(self.metadata())
    }
}

/// Namespace and owner (or orphan) index entries.
pub fn default_index_keys(meta: &ObjectMeta) -> Vec<IndexKey> {
    let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or_default().into();
    let owner = match controller_of(meta) {
        Some(owner) => IndexKey::Owner(owner.uid.as_str().into()),
        None => IndexKey::Orphan(namespace.clone()),
    };
    vec![IndexKey::Namespace(namespace), owner]
}

/// The owner reference that is marked as the controller.
pub fn controller_of(
    meta: &ObjectMeta,
) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference> {
    meta.owner_references
        .iter()
        .flatten()
        .find(|owner| owner.controller == Some(true))
}

macro_rules! cached_as_is {
    ($($kind:ty),+ $(,)?) => { $(
        impl Cached for $kind {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        }
    )+ };
}

cached_as_is!(
    k8s_openapi::api::apps::v1::ControllerRevision,
    k8s_openapi::api::apps::v1::DaemonSet,
    k8s_openapi::api::apps::v1::Deployment,
    k8s_openapi::api::apps::v1::ReplicaSet,
    k8s_openapi::api::apps::v1::StatefulSet,
    k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler,
    k8s_openapi::api::batch::v1::CronJob,
    k8s_openapi::api::batch::v1::Job,
    k8s_openapi::api::coordination::v1::Lease,
    k8s_openapi::api::core::v1::ConfigMap,
    k8s_openapi::api::core::v1::Endpoints,
    k8s_openapi::api::core::v1::Namespace,
    k8s_openapi::api::core::v1::Node,
    k8s_openapi::api::core::v1::PersistentVolume,
    k8s_openapi::api::core::v1::PersistentVolumeClaim,
    k8s_openapi::api::core::v1::ReplicationController,
    k8s_openapi::api::core::v1::ResourceQuota,
    k8s_openapi::api::core::v1::Secret,
    k8s_openapi::api::core::v1::Service,
    k8s_openapi::api::core::v1::ServiceAccount,
    k8s_openapi::api::networking::v1::ServiceCIDR,
    k8s_openapi::api::policy::v1::PodDisruptionBudget,
    k8s_openapi::api::rbac::v1::ClusterRole,
    k8s_openapi::api::storage::v1::StorageClass,
);

/// Label of a slice: the Service it belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Cached for k8s_openapi::api::discovery::v1::EndpointSlice {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    /// Slices are looked up by their Service, as `namespace/name`.
    fn index_keys(&self) -> Vec<IndexKey> {
        let mut keys = default_index_keys(&self.metadata);
        let labels = self.metadata.labels.as_ref();
        if let Some(service) = labels.and_then(|labels| labels.get(SERVICE_NAME)) {
            let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
            keys.push(IndexKey::Label(
                SERVICE_NAME.into(),
                format!("{namespace}/{service}").into(),
            ));
        }
        keys
    }
}

/// A change of one object: `old` is `None` when it is new, `new` is `None` when it is gone.
#[derive(Debug)]
pub struct Change<'a, V> {
    /// Before.
    pub old: Option<&'a Arc<V>>,
    /// After.
    pub new: Option<&'a Arc<V>>,
}

impl<'a, V> Change<'a, V> {
    /// The state after the change, or the last one of an object that is gone.
    pub fn latest(&self) -> Option<&'a Arc<V>> {
        self.new.or(self.old)
    }
}

type Subscriber<V> = Box<dyn Fn(&Change<'_, V>) + Send + Sync>;

/// The local copy. Filled by [`Store::follow`], read by everyone.
pub struct Store<V> {
    inner: RwLock<Inner<V>>,
    subscribers: RwLock<Vec<Subscriber<V>>>,
    synced: watch::Sender<bool>,
}

struct Inner<V> {
    objects: HashMap<ObjectKey, Arc<V>>,
    index: HashMap<IndexKey, HashMap<ObjectKey, Arc<V>>>,
}

impl<V> Debug for Store<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("synced", &*self.synced.borrow())
            .finish_non_exhaustive()
    }
}

impl<V: Cached> Store<V> {
    /// An empty store that is not synced.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Store {
            inner: RwLock::new(Inner {
                objects: HashMap::new(),
                index: HashMap::new(),
            }),
            subscribers: RwLock::new(Vec::new()),
            synced: watch::Sender::new(false),
        })
    }

    /// Calls `act` on every change from then on, in order, from the task that follows the API. It must be quick.
    pub fn subscribe(&self, act: impl Fn(&Change<'_, V>) + Send + Sync + 'static) {
        self.subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(act));
    }

    /// The object of a key.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<V>> {
        self.read().objects.get(key).cloned()
    }

    /// All objects under an index entry, in no particular order.
    pub fn by_index(&self, key: &IndexKey) -> Vec<Arc<V>> {
        let inner = self.read();
        inner
            .index
            .get(key)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    /// Objects whose controller is `uid`.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<V>> {
        self.by_index(&IndexKey::Owner(uid.into()))
    }

    /// Objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<V>> {
        self.by_index(&IndexKey::Namespace(namespace.into()))
    }

    /// Objects of a namespace without a controller.
    pub fn orphans(&self, namespace: &str) -> Vec<Arc<V>> {
        self.by_index(&IndexKey::Orphan(namespace.into()))
    }

    /// Every object.
    pub fn all(&self) -> Vec<Arc<V>> {
        self.read().objects.values().cloned().collect()
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.read().objects.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits until the first list is complete.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so the wait ends only with the value.
        let _ = synced.wait_for(|done| *done).await;
    }

    /// Puts an object in, and tells the subscribers.
    pub fn upsert(&self, object: V) {
        let key = object.key();
        let object = Arc::new(object);
        let old = {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            let old = inner.objects.insert(key.clone(), object.clone());
            let entries = object.index_keys();
            if let Some(old) = &old {
                inner.unindex(&key, old, &entries);
            }
            for entry in entries {
                let objects = inner.index.entry(entry).or_default();
                objects.insert(key.clone(), object.clone());
            }
            old
        };
        // A delete and a create that were merged on the way are two changes to whoever counts.
        match &old {
            Some(gone) if gone.metadata().uid != object.metadata().uid => {
                self.tell(&Change {
                    old: Some(gone),
                    new: None,
                });
                self.tell(&Change {
                    old: None,
                    new: Some(&object),
                });
            }
            _ => self.tell(&Change {
                old: old.as_ref(),
                new: Some(&object),
            }),
        }
    }

    /// Takes an object out, and tells the subscribers.
    pub fn remove(&self, key: &ObjectKey) {
        let old = {
            let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
            let Some(old) = inner.objects.remove(key) else {
                return;
            };
            inner.unindex(key, &old, &[]);
            old
        };
        self.tell(&Change {
            old: Some(&old),
            new: None,
        });
    }

    /// Marks the store as complete: [`Store::follow`] does it after the first list.
    pub fn mark_synced(&self) {
        self.synced.send_replace(true);
    }

    /// Lists and watches until `shutdown`, then forgets the subscribers. Broken watches are resumed, expired ones relisted,
    /// failures backed off.
    pub async fn follow<K: DeserializeOwned>(
        &self,
        api: Api<Unread>,
        config: watcher::Config,
        project: impl Fn(K) -> V + Send + Sync,
        shutdown: CancellationToken,
    ) {
        let read = |object: &Unread| object.read().map(&project);
        let mut filling = Filling {
            store: self,
            read: &read,
            listed: None,
        };
        feed(&mut filling, &api, &config, &shutdown).await;
        // Most of them hold what holds the store.
        self.subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn tell(&self, change: &Change<'_, V>) {
        for act in self
            .subscribers
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
        {
            act(change);
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner<V>> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long a kind is left alone that has an object which cannot be read. Without that object whoever counts would count
/// wrong, so the copy stays as it was, as with a server that does not answer.
const UNREADABLE_PAUSE: Duration = Duration::from_secs(5);

/// Takes in what a watch delivers.
trait Sink: Send {
    /// A list begins.
    fn begin(&mut self);
    /// An object is there, new or changed.
    fn put(&mut self, object: &Unread) -> Result<(), Unreadable>;
    /// An object is gone.
    fn remove(&mut self, key: &ObjectKey);
    /// The list is complete: what was not in it is gone.
    fn complete(&mut self);
}

/// A store that is filled from a watch.
struct Filling<'a, V> {
    store: &'a Store<V>,
    read: &'a (dyn Fn(&Unread) -> Result<V, Unreadable> + Send + Sync),
    /// What was in the list that is being received.
    listed: Option<HashSet<ObjectKey>>,
}

impl<V: Cached> Sink for Filling<'_, V> {
    fn begin(&mut self) {
        self.listed = Some(HashSet::new());
    }

    fn put(&mut self, object: &Unread) -> Result<(), Unreadable> {
        let object = (self.read)(object)?;
        if let Some(listed) = &mut self.listed {
            listed.insert(object.key());
        }
        self.store.upsert(object);
        Ok(())
    }

    fn remove(&mut self, key: &ObjectKey) {
        self.store.remove(key);
    }

    fn complete(&mut self) {
        let listed = self.listed.take().unwrap_or_default();
        let gone: Vec<ObjectKey> = self
            .store
            .read()
            .objects
            .keys()
            .filter(|key| !listed.contains(key))
            .cloned()
            .collect();
        for key in gone {
            self.store.remove(&key);
        }
        self.store.mark_synced();
    }
}

/// Lists and watches, and lists anew after an object that could not be read, until `shutdown`.
async fn feed(
    sink: &mut dyn Sink,
    api: &Api<Unread>,
    config: &watcher::Config,
    shutdown: &CancellationToken,
) {
    let mut events = watcher(api.clone(), config.clone()).default_backoff().boxed();
    while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
        let taken = match event {
            Ok(watcher::Event::Init) => {
                sink.begin();
                Ok(())
            }
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => sink.put(&object),
            Ok(watcher::Event::InitDone) => {
                sink.complete();
                Ok(())
            }
            Ok(watcher::Event::Delete(object)) => {
                sink.remove(&ObjectKey::of(object.meta()));
                Ok(())
            }
            Err(watcher::Error::WatchFailed(error)) => {
                debug!(%error, "watch broken, resuming");
                Ok(())
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, url = api.resource_url(), "list or watch failed");
                Ok(())
            }
        };
        if let Err(error) = taken {
            warn!(error = &error as &dyn std::error::Error, "listing anew");
            if shutdown
                .run_until_cancelled(sleep(UNREADABLE_PAUSE))
                .await
                .is_none()
            {
                return;
            }
            events = watcher(api.clone(), config.clone()).default_backoff().boxed();
        }
    }
}

impl<V: Cached> Inner<V> {
    /// Takes an object out of the entries that it was under, but for those of `but`.
    fn unindex(&mut self, key: &ObjectKey, object: &V, but: &[IndexKey]) {
        for entry in object.index_keys().iter().filter(|entry| !but.contains(entry)) {
            if let Some(objects) = self.index.get_mut(entry) {
                objects.remove(key);
                if objects.is_empty() {
                    self.index.remove(entry);
                }
            }
        }
    }
}

/// Drops what no controller reads from an object's metadata, and what a server keeps if it is absent from a write: objects are
/// written back as they are here.
pub fn slim(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn object(namespace: &str, name: &str, uid: &str, owner: Option<&str>) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some(namespace.into()),
                name: Some(name.into()),
                uid: Some(uid.into()),
                owner_references: owner.map(|owner| {
                    vec![OwnerReference {
                        uid: owner.into(),
                        controller: Some(true),
                        ..Default::default()
                    }]
                }),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn indexes_follow_the_object() {
        let store = Store::new();
        store.upsert(object("a", "x", "1", Some("o1")));
        store.upsert(object("a", "y", "2", None));
        assert_eq!(store.owned_by("o1").len(), 1);
        assert_eq!(store.orphans("a").len(), 1);
        store.upsert(object("a", "x", "1", Some("o2")));
        assert!(store.owned_by("o1").is_empty());
        assert_eq!(store.owned_by("o2").len(), 1);
        assert_eq!(store.in_namespace("a").len(), 2);
        store.remove(&ObjectKey::new("a", "x"));
        assert_eq!(store.in_namespace("a").len(), 1);
        assert!(store.read().index.len() == 2, "no empty entries stay behind");
    }

    #[test]
    fn a_recreated_object_is_a_deletion_and_a_creation() {
        let store = Store::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        store.subscribe(move |change: &Change<'_, ConfigMap>| {
            log.lock()
                .unwrap()
                .push((change.old.is_some(), change.new.is_some()));
        });
        store.upsert(object("a", "x", "1", None));
        store.upsert(object("a", "x", "1", None));
        store.upsert(object("a", "x", "2", None));
        assert_eq!(
            *seen.lock().unwrap(),
            [(false, true), (true, true), (true, false), (false, true)]
        );
    }
}
