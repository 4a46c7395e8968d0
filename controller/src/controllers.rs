//! The controllers: each watches some kinds, puts keys into a queue and makes the world match one object at a time, as
//! `reconcile(key) → read → pure decision → write`.
//!
//! They speak to the API server through a [`kube::Client`] alone, so they run against any Kubernetes API server. Stores are
//! shared: one copy of the pods serves all controllers.

mod autoscaler;
pub(crate) mod claim;
pub mod config;
pub mod context;
pub mod cron_job;
pub mod daemon_set;
pub(crate) mod departures;
pub mod deployment;
pub(crate) mod discovery;
pub mod disruption;
pub(crate) mod endpoints;
pub mod events;
pub mod expectations;
pub mod garbage;
pub mod history;
pub mod job;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod pod;
pub(crate) mod pod_control;
pub mod pod_gc;
pub mod replication;
pub mod resource_quota;
pub(crate) mod role_aggregation;
pub(crate) mod root_ca;
pub(crate) mod scale;
pub mod selection;
pub mod service_account;
pub(crate) mod service_cidr;
pub mod share;
pub mod stateful_set;
pub(crate) mod subscribe;
pub mod taint_eviction;
pub(crate) mod token;
pub mod ttl_after_finished;
pub(crate) mod volumes;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use kube::api::{Api, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

pub use config::ControllersConfig;
pub(crate) use context::Context;
pub use selection::{Choice, Selection};

use self::pod::PodView;
use crate::informer::{ObjectKey, Store};
use crate::metrics;
use crate::queue::Queue;

/// Why a reconcile could not finish; its key is tried again after a back-off.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// A request failed.
    #[error("{verb} {what} failed")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// On which object.
        what: String,
        /// Why it failed.
        #[source]
        source: kube::Error,
    },
    /// An object says something that cannot be.
    #[error("{what} is invalid: {why}")]
    Invalid {
        /// Which object.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// The controllers' configuration cannot work.
    #[error("invalid controller configuration: {0}")]
    Config(String),
    /// Some part of a batch failed; the rest was done.
    #[error("{failed} of {tried} requests failed")]
    Batch {
        /// Requests that failed.
        failed: usize,
        /// Requests that were made.
        tried: usize,
        /// The first failure.
        #[source]
        source: Box<ControllerError>,
    },
}

impl ControllerError {
    /// Names the request that `source` ended.
    pub(crate) fn api(verb: &'static str, what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| ControllerError::Api { verb, what, source }
    }

    /// Whether another writer was faster: the next event brings the fresh object.
    pub(crate) fn is_conflict(&self) -> bool {
        matches!(self, ControllerError::Api { source: kube::Error::Api(status), .. } if status.code == 409)
    }
}

/// What of a created object's answer matters to its maker.
#[derive(serde::Deserialize)]
struct Created {
    metadata: CreatedMeta,
}

#[derive(serde::Deserialize)]
struct CreatedMeta {
    #[serde(default)]
    name: String,
}

/// Creates an object and yields its name. The rest of the answer is what was sent, and is not read.
pub(crate) async fn create<K>(client: &Client, namespace: &str, object: &K) -> Result<String, kube::Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let body = serde_json::to_vec(object).map_err(kube::Error::SerdeError)?;
    let request = Request::new(K::url_path(&(), Some(namespace)))
        .create(&PostParams::default(), body)
        .map_err(kube::Error::BuildRequest)?;
    let created: Created = client.request(request).await?;
    Ok(created.metadata.name)
}

/// Whether the object was not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the server refused the write because of what others wrote.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether nothing can be created any more because the namespace is being emptied.
pub(crate) fn is_terminating_namespace(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .map(|cause| &cause.reason)
        .any(|reason| reason == "NamespaceTerminating")
}

/// Writes the status of an object; `None` if it is gone, which is as good.
pub(crate) async fn write_status<K>(api: &Api<K>, object: &K) -> Result<Option<K>, ControllerError>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let key = ObjectKey::of(object.meta());
    match api
        .replace_status(&key.name, &PostParams::default(), object)
        .await
    {
        Ok(written) => Ok(Some(written)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => {
            let what = format!("{} {key}", K::kind(&()));
            Err(ControllerError::api("update status of", what)(error))
        }
    }
}

/// What the server said, in its own words: for people who read events and conditions.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other),
    }
}

/// What a reconcile wants next.
pub(crate) type Outcome = Result<Option<Duration>, ControllerError>;

/// Subscribes a controller to what it watches, and starts its workers.
type Start = fn(&Arc<Context>);

/// The controllers, in the order in which they start, under the names that kube-controller-manager gives them.
const CONTROLLERS: &[(&str, Start)] = &[
    ("node-ipam", node_ipam::start),
    ("node-lifecycle", node_lifecycle::start),
    ("taint-eviction", taint_eviction::start),
    ("serviceaccount", service_account::start),
    ("root-ca-certificate-publisher", root_ca::start),
    ("serviceaccount-token", token::start),
    ("clusterrole-aggregation", role_aggregation::start),
    ("replicaset", replication::start_replica_sets),
    (
        "replicationcontroller",
        replication::start_replication_controllers,
    ),
    ("deployment", deployment::start),
    ("daemonset", daemon_set::start),
    ("statefulset", stateful_set::start),
    ("job", job::start),
    ("cronjob", cron_job::start),
    ("ttl-after-finished", ttl_after_finished::start),
    ("endpoints", endpoints::legacy::start),
    ("endpointslice", endpoints::slices::start),
    ("endpointslice-mirroring", endpoints::mirror::start),
    ("service-cidr", service_cidr::start),
    ("persistentvolume-binder", volumes::binder::start),
    ("persistentvolume-protection", volumes::protection::start_volumes),
    (
        "persistentvolumeclaim-protection",
        volumes::protection::start_claims,
    ),
    ("ephemeral-volume", volumes::ephemeral::start),
    ("local-path", volumes::local_path::start),
    ("resourcequota", resource_quota::start),
    ("disruption", disruption::start),
    ("horizontal-pod-autoscaler", autoscaler::start),
    ("pod-garbage-collector", pod_gc::start),
    ("garbage-collector", garbage::start),
    ("namespace", namespace::start),
];

/// Runs the selected controllers until `shutdown`. They subscribe to `pods` at once, and do not follow them themselves.
///
/// # Errors
/// [`ControllerError::Config`] if the configuration cannot work. Failures of the API are retried for ever.
pub async fn run(
    client: Client,
    config: ControllersConfig,
    pods: Arc<Store<PodView>>,
    shutdown: CancellationToken,
) -> Result<(), ControllerError> {
    config.validate()?;
    let chosen = CONTROLLERS
        .iter()
        .filter(|(name, _)| config.selection.includes(name));
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let context = Context::new(client, config, pods, shutdown.clone());
    for (name, start) in &chosen {
        debug!(controller = name, "starting");
        start(&context);
    }
    context.follow_all();
    info!(controllers = chosen.len(), "controllers started");
    shutdown.cancelled().await;
    context.tracker.close();
    context.tracker.wait().await;
    Ok(())
}

/// Starts `workers` tasks that take keys from `queue`, once `ready` is done, and reconcile them.
pub(crate) fn spawn_workers<R, F>(
    context: &Arc<Context>,
    controller: &'static str,
    queue: &Queue<ObjectKey>,
    workers: usize,
    ready: impl Future<Output = ()> + Send + 'static,
    reconcile: R,
) where
    R: Fn(ObjectKey) -> F + Send + Sync + 'static,
    F: Future<Output = Outcome> + Send + 'static,
{
    let reconcile: Arc<Reconcile> = Arc::new(move |key| reconcile(key).boxed());
    spawn_all(context, controller, queue, workers, ready.boxed(), &reconcile);
}

/// A reconcile function as the workers know it: they and what runs their tasks are compiled once, not for each controller.
type Reconcile = dyn Fn(ObjectKey) -> BoxFuture<'static, Outcome> + Send + Sync;

fn spawn_all(
    context: &Context,
    controller: &'static str,
    queue: &Queue<ObjectKey>,
    workers: usize,
    ready: BoxFuture<'static, ()>,
    reconcile: &Arc<Reconcile>,
) {
    metrics::tell_depth(controller, queue.depth());
    let figures = Arc::new((
        metrics::WORK_SECONDS.with(&[("name", controller)]),
        metrics::RETRIES.with(&[("name", controller)]),
    ));
    let gate = CancellationToken::new();
    let opened = gate.clone();
    let stop = context.shutdown.clone();
    context.tracker.spawn(async move {
        tokio::select! {
            () = ready => opened.cancel(),
            () = stop.cancelled() => {}
        }
    });
    for _ in 0..workers {
        let (figures, gate, queue, shutdown, reconcile) = (
            Arc::clone(&figures),
            gate.clone(),
            queue.clone(),
            context.shutdown.clone(),
            Arc::clone(reconcile),
        );
        context.tracker.spawn(async move {
            tokio::select! {
                () = gate.cancelled() => {}
                () = shutdown.cancelled() => return,
            }
            while let Some(key) = queue.next(&shutdown).await {
                let span = info_span!("reconcile", controller, %key);
                let began = Instant::now();
                if !work(&queue, key, &*reconcile).instrument(span).await {
                    figures.1.increment();
                }
                figures.0.observe(began.elapsed());
            }
        });
    }
}

/// Yields whether it was done.
async fn work(queue: &Queue<ObjectKey>, key: ObjectKey, reconcile: &Reconcile) -> bool {
    let outcome = reconcile(key.clone()).await;
    let done = outcome.is_ok();
    match outcome {
        Ok(again) => {
            queue.forget(&key);
            if let Some(delay) = again {
                queue.add_after(key.clone(), delay);
            }
        }
        Err(error) if error.is_conflict() => {
            queue.retry(key.clone());
            debug!("conflicting write, will retry");
        }
        Err(error) => {
            let delay = queue.retry(key.clone());
            let failures = queue.failures(&key);
            // The first retries are the ordinary way to get past a race; a lasting failure is news.
            if failures > 3 {
                tracing::warn!(error = %chain(&error), failures, ?delay, "reconcile failed");
            } else {
                debug!(error = %chain(&error), ?delay, "reconcile failed");
            }
        }
    }
    queue.done(&key);
    done
}

/// An error with its sources on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}
