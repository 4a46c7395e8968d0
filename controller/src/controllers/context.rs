//! What all controllers share: the client, the settings, the local copies and the event recorder.

use std::sync::Arc;

use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, ReplicationController,
    ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::config::ControllersConfig;
use super::departures::Departures;
use super::events::Recorder;
use super::pod::PodView;
use crate::auth::service_account::SECRET_TYPE;
use crate::informer::{Cached, Store, Unread, slim};

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
    pub(crate) daemon_sets: Arc<Store<DaemonSet>>,
    pub(crate) stateful_sets: Arc<Store<StatefulSet>>,
    pub(crate) revisions: Arc<Store<ControllerRevision>>,
    pub(crate) jobs: Arc<Store<Job>>,
    pub(crate) cron_jobs: Arc<Store<CronJob>>,
    pub(crate) claims: Arc<Store<PersistentVolumeClaim>>,
    pub(crate) namespaces: Arc<Store<Namespace>>,
    pub(crate) service_accounts: Arc<Store<ServiceAccount>>,
    /// Secrets that hold a service account's token.
    pub(crate) token_secrets: Arc<Store<Secret>>,
    pub(crate) cluster_roles: Arc<Store<ClusterRole>>,
    pub(crate) root_ca_maps: Arc<Store<ConfigMap>>,
    pub(crate) resource_quotas: Arc<Store<ResourceQuota>>,
    pub(crate) disruption_budgets: Arc<Store<PodDisruptionBudget>>,
    pub(crate) autoscalers: Arc<Store<HorizontalPodAutoscaler>>,
    pub(crate) departures: Departures,
    pub(crate) services: Arc<Store<Service>>,
    pub(crate) endpoints: Arc<Store<Endpoints>>,
    pub(crate) endpoint_slices: Arc<Store<EndpointSlice>>,
    pub(crate) service_cidrs: Arc<Store<ServiceCIDR>>,
    pub(crate) volumes: Arc<Store<PersistentVolume>>,
    pub(crate) storage_classes: Arc<Store<StorageClass>>,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        config: ControllersConfig,
        pods: Arc<Store<PodView>>,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let tracker = TaskTracker::new();
        let recorder = Recorder::start(client.clone(), "weft-controller", &tracker, shutdown.clone());
        Arc::new(Context {
            client,
            config,
            shutdown,
            tracker,
            recorder,
            pods,
            nodes: Store::new(),
            leases: Store::new(),
            replica_sets: Store::new(),
            replication_controllers: Store::new(),
            deployments: Store::new(),
            daemon_sets: Store::new(),
            stateful_sets: Store::new(),
            revisions: Store::new(),
            jobs: Store::new(),
            cron_jobs: Store::new(),
            claims: Store::new(),
            namespaces: Store::new(),
            service_accounts: Store::new(),
            token_secrets: Store::new(),
            cluster_roles: Store::new(),
            root_ca_maps: Store::new(),
            resource_quotas: Store::new(),
            disruption_budgets: Store::new(),
            autoscalers: Store::new(),
            departures: Departures::default(),
            services: Store::new(),
            endpoints: Store::new(),
            endpoint_slices: Store::new(),
            service_cidrs: Store::new(),
            volumes: Store::new(),
            storage_classes: Store::new(),
        })
    }

    /// Starts the informers, but for that of the pods. Subscriptions made later miss what came before.
    pub(crate) fn follow_all(&self) {
        self.follow(&self.nodes, None, "", slimmed);
        self.follow(&self.leases, Some(NODE_LEASE_NAMESPACE), "", slimmed);
        self.follow(&self.replica_sets, None, "", slimmed);
        self.follow(&self.replication_controllers, None, "", slimmed);
        self.follow(&self.deployments, None, "", slimmed);
        self.follow(&self.daemon_sets, None, "", slimmed);
        self.follow(&self.stateful_sets, None, "", slimmed);
        self.follow(&self.revisions, None, "", slimmed);
        self.follow(&self.jobs, None, "", slimmed);
        self.follow(&self.cron_jobs, None, "", slimmed);
        self.follow(&self.claims, None, "", slimmed);
        self.follow(&self.namespaces, None, "", slimmed);
        self.follow(&self.resource_quotas, None, "", slimmed);
        self.follow(&self.disruption_budgets, None, "", slimmed);
        self.follow(&self.autoscalers, None, "", slimmed);
        self.follow(&self.service_accounts, None, "", slimmed);
        self.follow(&self.services, None, "", slimmed);
        self.follow(&self.endpoints, None, "", slimmed);
        self.follow(&self.endpoint_slices, None, "", slimmed);
        self.follow(&self.service_cidrs, None, "", slimmed);
        self.follow(&self.volumes, None, "", slimmed);
        self.follow(&self.storage_classes, None, "", slimmed);
        self.follow(&self.cluster_roles, None, "", slimmed);
        let tokens = format!("type={SECRET_TYPE}");
        self.follow(&self.token_secrets, None, &tokens, slimmed);
        let root_ca = format!("metadata.name={ROOT_CA_CONFIG_MAP}");
        self.follow(&self.root_ca_maps, None, &root_ca, slimmed);
    }

    /// Follows the objects of a kind in `namespace`, or everywhere, that match the field selector.
    fn follow<K, V>(&self, store: &Arc<Store<V>>, namespace: Option<&str>, fields: &str, project: fn(K) -> V)
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + 'static,
        V: Cached,
    {
        let api = match namespace {
            Some(namespace) => Unread::namespaced::<K>(self.client.clone(), namespace),
            None => Unread::all::<K>(self.client.clone()),
        };
        let config = watcher::Config {
            field_selector: (!fields.is_empty()).then(|| fields.to_owned()),
            ..watcher::Config::default()
        };
        let (store, shutdown) = (store.clone(), self.shutdown.clone());
        // Boxed, so that what runs a task is not compiled again for each kind.
        self.tracker
            .spawn(async move { store.follow(api, config, project, shutdown).await }.boxed());
    }
}

fn slimmed<K: ResourceExt>(mut object: K) -> K {
    slim(object.meta_mut());
    object
}
