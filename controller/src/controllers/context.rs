//! What all controllers share: the client, the settings, the local copies and the event recorder.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, ReplicationController, ServiceAccount};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::ControllersConfig;
use super::events::Recorder;
use super::pod::PodView;
use crate::informer::{Cached, Store, slim};

/// Namespace of the nodes' heartbeat leases.
pub(crate) const NODE_LEASE_NAMESPACE: &str = "kube-node-lease";

/// Name of the ConfigMap that carries the cluster's CA in every namespace.
pub(crate) const ROOT_CA_CONFIG_MAP: &str = "kube-root-ca.crt";

/// Shared by all controllers of one process.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) config: ControllersConfig,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tracker: TaskTracker,
    pub(crate) recorder: Recorder,
    pub(crate) pods: Arc<Store<PodView>>,
    pub(crate) nodes: Arc<Store<Node>>,
    pub(crate) leases: Arc<Store<Lease>>,
    pub(crate) replica_sets: Arc<Store<ReplicaSet>>,
    pub(crate) replication_controllers: Arc<Store<ReplicationController>>,
    pub(crate) deployments: Arc<Store<Deployment>>,
    pub(crate) namespaces: Arc<Store<Namespace>>,
    pub(crate) service_accounts: Arc<Store<ServiceAccount>>,
    pub(crate) root_ca_maps: Arc<Store<ConfigMap>>,
}

impl Context {
    pub(crate) fn new(client: Client, config: ControllersConfig, shutdown: CancellationToken) -> Arc<Self> {
        let tracker = TaskTracker::new();
        let recorder = Recorder::start(client.clone(), "weft-controller", &tracker, shutdown.clone());
        Arc::new(Context {
            client,
            config,
            shutdown,
            tracker,
            recorder,
            pods: Store::new(),
            nodes: Store::new(),
            leases: Store::new(),
            replica_sets: Store::new(),
            replication_controllers: Store::new(),
            deployments: Store::new(),
            namespaces: Store::new(),
            service_accounts: Store::new(),
            root_ca_maps: Store::new(),
        })
    }

    /// Starts the informers. Subscriptions made later miss what came before.
    pub(crate) fn follow_all(&self) {
        let client = &self.client;
        let all = watcher::Config::default;
        self.follow(&self.pods, Api::<Pod>::all(client.clone()), all(), PodView::from);
        self.follow(&self.nodes, Api::all(client.clone()), all(), slimmed);
        self.follow(
            &self.leases,
            Api::namespaced(client.clone(), NODE_LEASE_NAMESPACE),
            all(),
            slimmed,
        );
        self.follow(&self.replica_sets, Api::all(client.clone()), all(), slimmed);
        self.follow(
            &self.replication_controllers,
            Api::all(client.clone()),
            all(),
            slimmed,
        );
        self.follow(&self.deployments, Api::all(client.clone()), all(), slimmed);
        self.follow(&self.namespaces, Api::all(client.clone()), all(), slimmed);
        // One account per namespace matters; others are not kept.
        let named = |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        self.follow(
            &self.service_accounts,
            Api::all(client.clone()),
            named("default"),
            slimmed,
        );
        self.follow(
            &self.root_ca_maps,
            Api::all(client.clone()),
            named(ROOT_CA_CONFIG_MAP),
            slimmed,
        );
    }

    fn follow<K, V>(
        &self,
        store: &Arc<Store<V>>,
        api: Api<K>,
        config: watcher::Config,
        project: impl Fn(K) -> V + Send + Sync + 'static,
    ) where
        K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
        V: Cached,
    {
        let (store, shutdown) = (store.clone(), self.shutdown.clone());
        self.tracker
            .spawn(async move { store.follow(api, config, project, shutdown).await });
    }
}

fn slimmed<K: ResourceExt>(mut object: K) -> K {
    slim(object.meta_mut());
    object
}
