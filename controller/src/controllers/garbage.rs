//! Deletes objects whose owners are gone, and sees foreground and orphaning deletions through.
//!
//! Every kind is watched by its metadata, but for the pods, of which there is a copy already; together they are the graph of
//! who owns whom. Before anything is deleted
//! because of an owner that is missing from the graph, the API is asked, so a graph that lags never costs an object.

pub mod decide;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::runtime::watcher;
use serde_json::json;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use self::decide::{Action, Item, OwnerState, Policy, decide};
use super::discovery::{AnyKind, AnyMeta, all_kinds};
use super::volumes::has_finalizer;
use super::{Context, ControllerError, Outcome, chain, is_conflict, is_not_found, spawn_workers};
use crate::informer::{Cached, IndexKey, ObjectKey, Store};
use crate::queue::{Backoff, Queue};

/// How often new kinds are looked for.
const REDISCOVER: Duration = Duration::from_secs(30);
/// Kinds that cannot be listed hold up the start no longer than this.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// An owner that is not in the graph may be on its way into it.
const GRACE: Duration = Duration::from_millis(200);
/// Owners known to be gone; the set is cleared when full.
const REMEMBERED: usize = 16_384;
const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// An object in the graph.
struct Node {
    object: Arc<dyn Cached>,
    kind: Arc<AnyKind>,
}

/// What of an object matters here, if nobody else keeps it.
struct Known(ObjectMeta);

impl Cached for Known {
    fn metadata(&self) -> &ObjectMeta {
        &self.0
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        Vec::new()
    }
}

impl Known {
    fn of(metadata: ObjectMeta) -> Self {
        Known(ObjectMeta {
            name: metadata.name,
            namespace: metadata.namespace,
            uid: metadata.uid,
            resource_version: metadata.resource_version,
            deletion_timestamp: metadata.deletion_timestamp,
            finalizers: metadata.finalizers,
            owner_references: metadata.owner_references,
            ..ObjectMeta::default()
        })
    }
}

impl Node {
    fn new(object: &Arc<impl Cached>, kind: &Arc<AnyKind>) -> Arc<Self> {
        Arc::new(Node {
            object: object.clone(),
            kind: kind.clone(),
        })
    }

    fn metadata(&self) -> &ObjectMeta {
        self.object.metadata()
    }

    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    fn owners(&self) -> &[OwnerReference] {
        self.metadata().owner_references.as_deref().unwrap_or_default()
    }

    fn has_finalizer(&self, name: &str) -> bool {
        has_finalizer(self.metadata(), name)
    }

    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }

    fn waits_for_dependents(&self) -> bool {
        self.is_deleting() && self.has_finalizer(FOREGROUND)
    }
}

/// Who owns whom, by uid.
#[derive(Default)]
struct Graph {
    nodes: HashMap<String, Arc<Node>>,
    dependents: HashMap<String, HashSet<String>>,
    /// Uids that exist no more; a uid never comes back.
    gone: HashSet<String>,
}

impl Graph {
    /// Returns the owners that the object had before and that wait for it no longer.
    fn insert(&mut self, node: &Arc<Node>) -> Vec<String> {
        let mut left = Vec::new();
        if let Some(old) = self.nodes.insert(node.uid().to_owned(), node.clone()) {
            self.unlink(&old);
            let blocks = |node: &Node, uid: &str| {
                node.owners()
                    .iter()
                    .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
            };
            let owners = old.owners().iter().map(|owner| owner.uid.clone());
            left = owners
                .filter(|uid| blocks(&old, uid) && !blocks(node, uid))
                .collect();
        }
        for owner in node.owners() {
            self.dependents
                .entry(owner.uid.clone())
                .or_default()
                .insert(node.uid().to_owned());
        }
        left
    }

    fn remove(&mut self, node: &Node) {
        if let Some(old) = self.nodes.remove(node.uid()) {
            self.unlink(&old);
        }
        self.forget_owner(node.uid());
    }

    fn forget_owner(&mut self, uid: &str) {
        if self.gone.len() >= REMEMBERED {
            self.gone.clear();
        }
        self.gone.insert(uid.to_owned());
    }

    fn unlink(&mut self, node: &Node) {
        for owner in node.owners() {
            if let Some(siblings) = self.dependents.get_mut(&owner.uid) {
                siblings.remove(node.uid());
                if siblings.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn dependents_of(&self, uid: &str) -> Vec<Arc<Node>> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.nodes.get(uid).cloned()).collect()
    }
}

struct Collector {
    context: Arc<Context>,
    graph: Mutex<Graph>,
    kinds: RwLock<HashMap<(String, String), Arc<AnyKind>>>,
    queue: Queue<ObjectKey>,
    /// Told when the kinds there are may have changed.
    defined: Notify,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let collector = Arc::new(Collector {
        context: context.clone(),
        graph: Mutex::default(),
        kinds: RwLock::default(),
        queue: queue.clone(),
        defined: Notify::new(),
    });
    collector.clone().follow_pods();
    let synced = CancellationToken::new();
    let (follower, done) = (collector.clone(), synced.clone());
    context
        .tracker
        .spawn(async move { follower.follow_kinds(done).await });
    let ready = async move { synced.cancelled().await };
    spawn_workers(
        context,
        "garbage-collector",
        &queue,
        context.config.workers * 2,
        ready,
        move |key| {
            let collector = collector.clone();
            async move { collector.reconcile(&key.name).await }
        },
    );
}

impl Collector {
    fn graph<R>(&self, act: impl FnOnce(&mut Graph) -> R) -> R {
        act(&mut self.graph.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Watches every kind there is, and those that come later.
    async fn follow_kinds(self: Arc<Self>, synced: CancellationToken) {
        let shutdown = &self.context.shutdown;
        let mut followed: HashMap<Arc<AnyKind>, (Arc<Store<Known>>, CancellationToken)> = HashMap::new();
        let mut pause = Duration::from_millis(100);
        while !shutdown.is_cancelled() {
            match all_kinds(&self.context.client).await {
                Ok(kinds) => {
                    let kinds: HashSet<Arc<AnyKind>> = kinds
                        .into_iter()
                        .filter(|kind| !kind.is_event() && **kind != AnyKind::pods())
                        .collect();
                    followed.retain(|kind, (_, stop)| {
                        let stays = kinds.contains(kind);
                        if !stays {
                            stop.cancel();
                        }
                        stays
                    });
                    for kind in kinds {
                        followed.entry(kind).or_insert_with_key(|kind| {
                            debug!(kind = kind.resource.kind, "kind is watched");
                            self.clone().follow(kind)
                        });
                    }
                    if !synced.is_cancelled() {
                        let all = futures::future::join_all(
                            followed.values().map(|(store, _)| store.wait_synced()),
                        );
                        let all = futures::future::join(all, self.context.pods.wait_synced());
                        let _ = tokio::time::timeout(SYNC_LIMIT, all).await;
                        synced.cancel();
                    }
                    pause = REDISCOVER;
                }
                Err(error) => {
                    debug!(error = %chain(&error), "kinds not discovered, will retry");
                    pause = (pause * 2).min(REDISCOVER);
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(pause) => {}
                () = self.defined.notified() => {}
            }
        }
    }

    fn know(&self, kind: &Arc<AnyKind>) {
        let by_name = (kind.resource.api_version.clone(), kind.resource.kind.clone());
        self.kinds
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(by_name, kind.clone());
    }

    /// Takes the pods from the copy that the controllers share: they change more than all other kinds together.
    fn follow_pods(self: Arc<Self>) {
        let kind = Arc::new(AnyKind::pods());
        self.know(&kind);
        let pods = self.context.pods.clone();
        pods.subscribe(move |change| match (change.old, change.new) {
            (_, Some(pod)) => self.seen(&Node::new(pod, &kind)),
            (Some(pod), None) => self.lost(&Node::new(pod, &kind)),
            (None, None) => {}
        });
    }

    fn follow(self: Arc<Self>, kind: &Arc<AnyKind>) -> (Arc<Store<Known>>, CancellationToken) {
        self.know(kind);
        let store: Arc<Store<Known>> = Store::new();
        let stop = self.context.shutdown.child_token();
        let collector = self.clone();
        let defines = kind.resource.kind == "CustomResourceDefinition";
        let of = kind.clone();
        store.subscribe(move |change| match (change.old, change.new) {
            (_, Some(object)) => {
                if defines {
                    collector.defined.notify_one();
                }
                collector.seen(&Node::new(object, &of));
            }
            (Some(object), None) => collector.lost(&Node::new(object, &of)),
            (None, None) => {}
        });
        let api = kind.watched(&self.context.client);
        let project = |object: AnyMeta| Known::of(object.metadata);
        let (filled, token) = (store.clone(), stop.clone());
        self.context.tracker.spawn(async move {
            filled
                .follow(api, watcher::Config::default(), project, token)
                .await;
        });
        (store, stop)
    }

    fn ask(&self, uid: &str) {
        self.queue.add(ObjectKey::cluster(uid));
    }

    fn seen(&self, node: &Arc<Node>) {
        enum Check {
            Nothing,
            Later,
            Now,
        }
        let (left, check) = self.graph(|graph| {
            let mut left = graph.insert(node);
            left.retain(|uid| {
                graph
                    .nodes
                    .get(uid)
                    .is_some_and(|owner| owner.waits_for_dependents())
            });
            let waits = node.is_deleting() && (node.has_finalizer(FOREGROUND) || node.has_finalizer(ORPHAN));
            let owner_going = node
                .owners()
                .iter()
                .filter_map(|owner| graph.nodes.get(&owner.uid))
                .any(|owner| owner.waits_for_dependents());
            let check = if waits || owner_going {
                Check::Now
            } else if node
                .owners()
                .iter()
                .any(|owner| !graph.nodes.contains_key(&owner.uid))
            {
                Check::Later
            } else {
                Check::Nothing
            };
            (left, check)
        });
        for owner in left {
            self.ask(&owner);
        }
        match check {
            Check::Nothing => {}
            Check::Later => self.queue.add_after(ObjectKey::cluster(node.uid()), GRACE),
            Check::Now => self.ask(node.uid()),
        }
    }

    fn lost(&self, node: &Arc<Node>) {
        let resource = &node.kind.resource;
        let namespace = node.metadata().namespace.as_deref().unwrap_or_default();
        self.context
            .departures
            .tell(&resource.group, &resource.plural, namespace);
        let (dependents, owners) = self.graph(|graph| {
            graph.remove(node);
            let owners: Vec<Arc<Node>> = node
                .owners()
                .iter()
                .filter_map(|owner| graph.nodes.get(&owner.uid).cloned())
                .collect();
            (graph.dependents_of(node.uid()), owners)
        });
        for dependent in dependents {
            self.ask(dependent.uid());
        }
        for owner in owners.iter().filter(|owner| owner.waits_for_dependents()) {
            self.ask(owner.uid());
        }
    }

    async fn reconcile(&self, uid: &str) -> Outcome {
        let Some((node, dependents)) =
            self.graph(|graph| Some((graph.nodes.get(uid)?.clone(), graph.dependents_of(uid))))
        else {
            return Ok(None);
        };
        let mut owners = Vec::with_capacity(node.owners().len());
        for owner in node.owners() {
            owners.push(self.owner_state(&node, owner).await?);
        }
        let blocks = |dependent: &Node| {
            dependent
                .owners()
                .iter()
                .any(|o| o.uid == uid && o.block_owner_deletion == Some(true))
        };
        let item = Item {
            deleting: node.is_deleting(),
            foreground: node.has_finalizer(FOREGROUND),
            orphan: node.has_finalizer(ORPHAN),
            dependents: dependents.len(),
            blocking: dependents.iter().filter(|dependent| blocks(dependent)).count(),
            dependent_waits: dependents
                .iter()
                .any(|dependent| dependent.waits_for_dependents()),
            owners: &owners,
        };
        match decide(&item) {
            Action::Nothing => Ok(None),
            Action::Orphan => {
                for dependent in &dependents {
                    self.keep_owners(dependent, |owner| owner.uid != uid).await?;
                }
                self.drop_finalizer(&node, ORPHAN).await
            }
            Action::FinishForeground => self.drop_finalizer(&node, FOREGROUND).await,
            Action::AskDependents => {
                for dependent in &dependents {
                    self.ask(dependent.uid());
                }
                Ok(None)
            }
            Action::DropOwners => {
                let solid: Vec<&str> = node
                    .owners()
                    .iter()
                    .zip(&owners)
                    .filter(|(_, state)| **state == OwnerState::Solid)
                    .map(|(owner, _)| owner.uid.as_str())
                    .collect();
                self.keep_owners(&node, |owner| solid.contains(&owner.uid.as_str()))
                    .await?;
                Ok(None)
            }
            Action::Delete { policy, unblock } => {
                if unblock && self.unblock(&node).await? {
                    // Its new version is the one to delete.
                    return Ok(Some(GRACE));
                }
                self.delete(&node, policy).await
            }
        }
    }

    /// The kind of an owner, if it is known. Another version of a known kind is the same object.
    fn kind_of(&self, owner: &OwnerReference) -> Option<Arc<AnyKind>> {
        let name = (owner.api_version.clone(), owner.kind.clone());
        let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds.read().unwrap_or_else(PoisonError::into_inner);
        let other_version = || {
            kinds
                .values()
                .find(|k| k.resource.group == group && k.resource.kind == owner.kind)
        };
        kinds.get(&name).or_else(other_version).cloned()
    }

    async fn owner_state(&self, node: &Node, owner: &OwnerReference) -> Result<OwnerState, ControllerError> {
        let clustered = node.metadata().namespace.is_none();
        if clustered && self.kind_of(owner).is_some_and(|kind| kind.namespaced) {
            // Not a valid reference: nobody can say which namespace is meant, so nothing is deleted for it.
            return Ok(OwnerState::Solid);
        }
        let known = self.graph(|graph| {
            if let Some(known) = graph.nodes.get(&owner.uid) {
                return Some(if known.waits_for_dependents() {
                    OwnerState::Waiting
                } else {
                    OwnerState::Solid
                });
            }
            graph.gone.contains(&owner.uid).then_some(OwnerState::Gone)
        });
        if let Some(known) = known {
            return Ok(known);
        }
        // Of a kind that cannot be asked about nothing is known, so nothing is deleted for it.
        let Some(kind) = self.kind_of(owner) else {
            return Ok(OwnerState::Solid);
        };
        let api = kind.api(&self.context.client, node.metadata().namespace.as_deref());
        match api.get_metadata(&owner.name).await {
            Ok(found) if found.metadata.uid.as_deref() == Some(&owner.uid) => {
                let waits = found.metadata.deletion_timestamp.is_some()
                    && found
                        .metadata
                        .finalizers
                        .iter()
                        .flatten()
                        .any(|finalizer| finalizer == FOREGROUND);
                Ok(if waits {
                    OwnerState::Waiting
                } else {
                    OwnerState::Solid
                })
            }
            Ok(_) => {
                self.graph(|graph| graph.forget_owner(&owner.uid));
                Ok(OwnerState::Gone)
            }
            Err(error) if is_not_found(&error) => {
                self.graph(|graph| graph.forget_owner(&owner.uid));
                Ok(OwnerState::Gone)
            }
            Err(error) => Err(ControllerError::api(
                "get",
                format!("{} {}", owner.kind, owner.name),
            )(error)),
        }
    }

    async fn patch(&self, node: &Node, meta: serde_json::Value) -> Result<(), ControllerError> {
        let mut patch = json!({ "metadata": meta });
        patch["metadata"]["uid"] = json!(node.metadata().uid);
        patch["metadata"]["resourceVersion"] = json!(node.metadata().resource_version);
        let api = node
            .kind
            .api(&self.context.client, node.metadata().namespace.as_deref());
        let name = node.metadata().name.as_deref().unwrap_or_default();
        match api
            .patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
        {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(ControllerError::api(
                "patch",
                format!("{} {name}", node.kind.resource.kind),
            )(error)),
        }
    }

    async fn keep_owners(
        &self,
        node: &Node,
        keep: impl Fn(&OwnerReference) -> bool,
    ) -> Result<(), ControllerError> {
        let kept: Vec<&OwnerReference> = node.owners().iter().filter(|owner| keep(owner)).collect();
        if kept.len() == node.owners().len() {
            return Ok(());
        }
        self.patch(node, json!({ "ownerReferences": kept })).await
    }

    async fn drop_finalizer(&self, node: &Node, name: &str) -> Outcome {
        let kept: Vec<&String> = node
            .metadata()
            .finalizers
            .iter()
            .flatten()
            .filter(|f| *f != name)
            .collect();
        self.patch(node, json!({ "finalizers": kept })).await?;
        Ok(None)
    }

    /// In a circle of owners everyone waits for everyone; this one stops holding up its owners. Whether it did.
    async fn unblock(&self, node: &Node) -> Result<bool, ControllerError> {
        let mut owners = node.owners().to_vec();
        for owner in &mut owners {
            owner.block_owner_deletion = Some(false);
        }
        if owners == node.owners() {
            return Ok(false);
        }
        self.patch(node, json!({ "ownerReferences": owners })).await?;
        Ok(true)
    }

    async fn delete(&self, node: &Node, policy: Policy) -> Outcome {
        let name = node.metadata().name.as_deref().unwrap_or_default();
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            preconditions: Some(Preconditions {
                uid: node.metadata().uid.clone(),
                // Its owners may be others by now.
                resource_version: node.metadata().resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        let api = node
            .kind
            .api(&self.context.client, node.metadata().namespace.as_deref());
        match api.delete(name, &params).await {
            Ok(_) => {
                info!(
                    kind = node.kind.resource.kind,
                    name,
                    namespace = node.metadata().namespace,
                    "deleted with its owner"
                );
                Ok(None)
            }
            Err(error) if is_not_found(&error) => Ok(None),
            // The graph will know why.
            Err(error) if is_conflict(&error) => Ok(Some(GRACE)),
            Err(error) => Err(ControllerError::api(
                "delete",
                format!("{} {name}", node.kind.resource.kind),
            )(error)),
        }
    }
}
