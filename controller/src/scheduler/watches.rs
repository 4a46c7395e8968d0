//! What the scheduler watches, and what it tells the owner of the snapshot.

use std::sync::Arc;

use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{Namespace, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::effects::{BindError, Binding};
use super::pod::PodInfo;
use super::preempt::BudgetView;
use super::volumes::{ClaimView, ClassView, VolumeView};
use crate::controllers::pod::PodView;
use crate::informer::{Cached, Change, Store, Unread, slim};

/// The state of an object before and after a change.
pub(super) struct Changed<V> {
    pub(super) old: Option<Arc<V>>,
    pub(super) new: Option<Arc<V>>,
}

impl<V> From<&Change<'_, V>> for Changed<V> {
    fn from(change: &Change<'_, V>) -> Self {
        Changed {
            old: change.old.cloned(),
            new: change.new.cloned(),
        }
    }
}

/// What the owner of the snapshot is told.
pub(super) enum Message {
    Pod(Changed<PodInfo>),
    Node(Changed<Node>),
    Namespace(Changed<Namespace>),
    Budget(Changed<BudgetView>),
    Claim(Changed<ClaimView>),
    Volume(Changed<VolumeView>),
    Class(Changed<ClassView>),
    /// A binding has its answer.
    Bound {
        binding: Binding,
        result: Result<(), BindError>,
    },
    /// Victims of a pod were told to leave, or could not be.
    Preempted {
        pod: Arc<PodInfo>,
        told: bool,
    },
}

/// The local copies.
pub(super) struct Watches {
    pub(super) pods: Arc<Store<PodView>>,
    pub(super) nodes: Arc<Store<Node>>,
    pub(super) claims: Arc<Store<ClaimView>>,
    /// Marked whenever a claim changes.
    pub(super) claims_changed: watch::Receiver<()>,
    volumes: Arc<Store<VolumeView>>,
    classes: Arc<Store<ClassView>>,
    namespaces: Arc<Store<Namespace>>,
    budgets: Arc<Store<BudgetView>>,
}

/// Starts one watch, and tells of it.
struct Starter<'a> {
    client: Client,
    tracker: &'a TaskTracker,
    messages: mpsc::UnboundedSender<Message>,
    shutdown: CancellationToken,
}

impl Starter<'_> {
    fn watch<K, V>(
        &self,
        project: impl Fn(K) -> V + Send + Sync + 'static,
        message: impl Fn(Changed<V>) -> Message + Send + Sync + 'static,
    ) -> Arc<Store<V>>
    where
        K: Resource<DynamicType = ()> + DeserializeOwned + 'static,
        V: Cached,
    {
        let store: Arc<Store<V>> = Store::new();
        let tell = self.messages.clone();
        store.subscribe(move |change| {
            let _ = tell.send(message(change.into()));
        });
        let (followed, api, stop) = (
            store.clone(),
            Unread::all::<K>(self.client.clone()),
            self.shutdown.clone(),
        );
        let follow = async move {
            followed
                .follow(api, watcher::Config::default(), project, stop)
                .await;
        };
        // Boxed, so that what runs a task is not compiled again for each kind.
        self.tracker.spawn(follow.boxed());
        store
    }
}

impl Watches {
    pub(super) fn start(
        client: Client,
        pods: Arc<Store<PodView>>,
        tracker: &TaskTracker,
        messages: mpsc::UnboundedSender<Message>,
        shutdown: CancellationToken,
    ) -> Self {
        let tell = messages.clone();
        pods.subscribe(move |change| {
            let scheduling = |pod: &Arc<PodView>| pod.scheduling.clone();
            let _ = tell.send(Message::Pod(Changed {
                old: change.old.map(scheduling),
                new: change.new.map(scheduling),
            }));
        });
        let starter = Starter {
            client,
            tracker,
            messages,
            shutdown,
        };
        let claims = starter.watch(ClaimView::from as fn(PersistentVolumeClaim) -> _, Message::Claim);
        let (mark, claims_changed) = watch::channel(());
        claims.subscribe(move |_| mark.send_replace(()));
        Watches {
            pods,
            volumes: starter.watch(VolumeView::from as fn(PersistentVolume) -> _, Message::Volume),
            classes: starter.watch(ClassView::from as fn(StorageClass) -> _, Message::Class),
            nodes: starter.watch(slim_node, Message::Node),
            claims,
            claims_changed,
            namespaces: starter.watch(slim_namespace, Message::Namespace),
            budgets: starter.watch(BudgetView::from as fn(PodDisruptionBudget) -> _, Message::Budget),
        }
    }

    /// Waits until all is known: deciding before would overfill nodes, and say of pods that their claims are missing.
    pub(super) async fn wait_synced(&self) {
        self.pods.wait_synced().await;
        self.nodes.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.budgets.wait_synced().await;
        self.claims.wait_synced().await;
        self.volumes.wait_synced().await;
        self.classes.wait_synced().await;
    }
}

fn slim_node(mut node: Node) -> Node {
    slim(&mut node.metadata);
    node.metadata.annotations = None;
    if let Some(status) = &mut node.status {
        status.conditions = None;
        status.addresses = None;
        status.node_info = None;
    }
    node
}

fn slim_namespace(mut namespace: Namespace) -> Namespace {
    slim(&mut namespace.metadata);
    namespace.spec = None;
    namespace.status = None;
    namespace
}
