//! `weft agent`: what runs, in which order, and how it ends.
//!
//! The datapath does not wait for the API server: with what the agent remembers of the cluster it comes up, adopts what
//! is there and serves the plugin. The API server is sought meanwhile.

use std::{
    fs::{self, File},
    io,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use kube::Client;
use tokio::{
    net::UnixListener,
    sync::{Notify, oneshot, watch},
    time::{Instant, interval_at, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument as _;

use crate::{
    cni_server::{self, CniServerError},
    config::{Config, Runtime},
    conflist::{self, InstallError},
    datapath::{Datapath, netlink::events},
    desired::Cluster,
    endpoint::{EndpointError, Endpoints, EndpointsOptions},
    node::Condition,
    node_sync::{memory_path, remembered},
    pods::{self, PodsConfig, PodsError},
    reconcile::network::{Network, NetworkError, NetworkOptions, Report},
    status::{self, NodeView},
    telemetry::chain,
};

mod api;

/// How long work in flight may take once the agent is told to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Events come in bursts, an attachment makes a dozen: they are looked at together.
const SETTLE: Duration = Duration::from_millis(200);
/// Between attempts to do what failed.
const RETRY: Duration = Duration::from_secs(2);

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory cannot be made.
    #[error("the state directory {0} cannot be used")]
    StateDir(PathBuf, #[source] io::Error),
    /// Another agent is there.
    #[error("another agent uses the state directory {0}")]
    AlreadyRunning(PathBuf),
    /// The plugin cannot be served.
    #[error(transparent)]
    CniServer(#[from] CniServerError),
    /// The attachments cannot be taken over.
    #[error("attachments cannot be taken over")]
    Endpoints(#[from] EndpointError),
    /// The node's network cannot be set up, and never will.
    #[error("the node's network cannot be set up")]
    Network(#[from] NetworkError),
    /// The plugin cannot be installed.
    #[error("the plugin cannot be installed")]
    Install(#[from] InstallError),
    /// The pod runtime ended.
    #[error("the pod runtime failed")]
    Pods(#[from] PodsError),
    /// A task that must not end did.
    #[error("{0} ended unexpectedly")]
    TaskEnded(&'static str),
}

/// What the agent's tasks share.
struct Shared {
    config: Config,
    cluster: watch::Sender<Cluster>,
    condition: watch::Sender<Condition>,
    view: watch::Sender<NodeView>,
    parts: watch::Sender<Option<(Arc<Datapath>, Endpoints)>>,
    client: watch::Sender<Option<Client>>,
    /// Someone else wrote this node's condition.
    wrong: Notify,
    /// The kernel's network changed.
    changed: Arc<Notify>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// Runs the agent until `shutdown`, or until something fails that it cannot do without.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), AgentError> {
    let state_dir = config.state_dir.clone();
    config
        .make_directories()
        .map_err(|error| AgentError::StateDir(state_dir, error))?;
    let _lock = lock(&config)?;
    let condition = Condition::not_ready("Starting", "the agent is starting");
    let shared = Arc::new(Shared {
        cluster: watch::Sender::new(remembered(&memory_path(&config.state_dir))),
        condition: watch::Sender::new(condition),
        view: watch::Sender::new(NodeView {
            node: config.node_name.clone(),
            ..NodeView::default()
        }),
        parts: watch::Sender::new(None),
        client: watch::Sender::new(None),
        wrong: Notify::new(),
        changed: Arc::new(Notify::new()),
        tasks: TaskTracker::new(),
        shutdown: shutdown.clone(),
        config,
    });
    let outcome = work(&shared).await;
    // Whatever ended it, all tasks finish what they began; the datapath stays in place.
    shutdown.cancel();
    shared.tasks.close();
    if tokio::time::timeout(STOP_PATIENCE, shared.tasks.wait())
        .await
        .is_err()
    {
        tracing::warn!("work in flight was not finished in time; the next agent undoes it");
    }
    outcome
}

/// Keeps two agents off one state directory.
fn lock(config: &Config) -> Result<File, AgentError> {
    let path = config.state_dir.join("lock");
    let failed = |error| AgentError::StateDir(path.clone(), error);
    let file = File::create(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(AgentError::AlreadyRunning(config.state_dir.clone())),
        Err(fs::TryLockError::Error(error)) => Err(failed(error)),
    }
}

async fn work(shared: &Arc<Shared>) -> Result<(), AgentError> {
    let status_listener = cni_server::listen(&shared.config.status_socket)?;
    status::note_socket(&shared.config.state_dir, &shared.config.status_socket)
        .map_err(|error| AgentError::StateDir(shared.config.state_dir.clone(), error))?;
    start_status(shared, status_listener);
    start_events(shared);
    api::start(shared);

    let shutdown = shared.shutdown.clone();
    let Some(network) = shutdown.run_until_cancelled(bring_up(shared)).await else {
        return Ok(());
    };
    let network = network?;
    // Pods are told them, even if the first comparison fails.
    shared
        .view
        .send_modify(|view| view.ips.clone_from(&network.place().ips));
    let datapath = network.datapath();
    let endpoints = Endpoints::start(
        EndpointsOptions {
            datapath: Arc::clone(&datapath),
            state_dir: shared.config.state_dir.clone(),
            pod_cidrs: own_cidrs(shared, &shared.cluster.borrow()),
            address_rest: shared.config.address_rest,
        },
        &shared.tasks,
        shutdown.clone(),
    )
    .await?;
    let (first, reconciled) = oneshot::channel();
    shared.tasks.spawn({
        let (shared, endpoints) = (Arc::clone(shared), endpoints.clone());
        async move { reconcile(shared, network, endpoints, first).await }
            .instrument(tracing::info_span!("reconcile"))
    });
    // The first full comparison comes before the first request.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        done = reconciled => done.map_err(|_| AgentError::TaskEnded("the reconciler"))?,
    }
    let queue = cni_server::drain(&shared.config.cni_queue_dir, &endpoints).await?;
    let listener = cni_server::listen(&shared.config.socket)?;
    drop(queue);
    shared.tasks.spawn(cni_server::serve(
        listener,
        endpoints.clone(),
        shared.tasks.clone(),
        shutdown.clone(),
    ));
    install_plugin(&shared.config)?;
    shared.parts.send_replace(Some((datapath, endpoints.clone())));
    tracing::info!(socket = %shared.config.socket.display(), "agent serves");
    shared.condition.send_replace(Condition::ready());
    shared.view.send_modify(|view| {
        view.ready = true;
        view.message = Condition::ready().message;
    });
    match shared.config.runtime {
        Runtime::None => shutdown.cancelled().await,
        Runtime::Embedded => run_pods(shared, endpoints).await?,
    }
    Ok(())
}

fn start_status(shared: &Arc<Shared>, listener: UnixListener) {
    shared.tasks.spawn(status::serve(
        listener,
        shared.view.subscribe(),
        shared.parts.subscribe(),
        shared.shutdown.clone(),
    ));
}

fn start_events(shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    shared.tasks.clone().spawn(async move {
        loop {
            let outcome = match events::watch(Arc::clone(&shared.changed), shared.shutdown.clone()) {
                Ok(watch) => watch.await,
                Err(error) => Err(error),
            };
            if shared.shutdown.is_cancelled() {
                return;
            }
            // The slow timer goes on meanwhile.
            tracing::warn!(?outcome, "the kernel's events cannot be followed");
            sleep(RETRY).await;
        }
    });
}

fn own_cidrs(shared: &Shared, cluster: &Cluster) -> Vec<ipnetwork::IpNetwork> {
    cluster
        .nodes
        .get(&shared.config.node_name)
        .map(|own| own.pod_cidrs.clone())
        .unwrap_or_default()
}

/// Sets the node's network up as soon as the node has pod CIDRs, and tries again for as long as that fails.
async fn bring_up(shared: &Arc<Shared>) -> Result<Network, AgentError> {
    let mut clusters = shared.cluster.subscribe();
    loop {
        let cluster = clusters.borrow_and_update().clone();
        if own_cidrs(shared, &cluster).is_empty() {
            say(
                shared,
                "NoPodCIDR",
                "the node has no pod CIDR yet; the control plane gives it one",
            );
            clusters
                .changed()
                .await
                .map_err(|_| AgentError::TaskEnded("the cluster's view"))?;
            continue;
        }
        let options = NetworkOptions::from(&shared.config);
        let outcome = tokio::task::spawn_blocking(move || Network::bring_up(options, &cluster)).await;
        match outcome {
            Ok(Ok(network)) => return Ok(network),
            Ok(Err(error)) => {
                let reason = if matches!(error, NetworkError::Conflict(_)) {
                    "PodCIDRConflict"
                } else {
                    "NetworkNotReady"
                };
                say(shared, reason, &chain(&error));
            }
            Err(error) => say(shared, "NetworkNotReady", &error.to_string()),
        }
        tokio::select! {
            _ = clusters.changed() => {}
            () = sleep(RETRY) => {}
        }
    }
}

/// Says why the node is not ready: in the log, in the API and in the status. Once.
fn say(shared: &Shared, reason: &'static str, message: &str) {
    let condition = Condition::not_ready(reason, message);
    if *shared.condition.borrow() != condition {
        tracing::warn!(reason, message, "the node cannot serve pods");
        shared.view.send_modify(|view| {
            view.ready = false;
            message.clone_into(&mut view.message);
        });
        shared.condition.send_replace(condition);
    }
}

/// Compares the node with what it should be: on every change, and now and then in case a change was not heard of.
async fn reconcile(shared: Arc<Shared>, network: Network, endpoints: Endpoints, first: oneshot::Sender<()>) {
    let mut clusters = shared.cluster.subscribe();
    let period = shared.config.reconcile_interval;
    let mut timer = interval_at(Instant::now() + period, period);
    let mut network = Some(network);
    let mut first = Some(first);
    loop {
        let cluster = clusters.borrow_and_update().clone();
        let own_cidrs = own_cidrs(&shared, &cluster);
        let Some(mut taken) = network.take() else { return };
        let pass = tokio::task::spawn_blocking(move || {
            let outcome = taken.reconcile(&cluster);
            (taken, outcome)
        });
        let Ok((returned, outcome)) = pass.await else {
            tracing::error!("comparing the node with what it should be broke down");
            shared.shutdown.cancel();
            return;
        };
        match outcome {
            Ok(report) => publish(&shared, &returned, &report),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the node is not as it should be"
                );
            }
        }
        network = Some(returned);
        let looked_after = match endpoints.set_pod_cidrs(own_cidrs).await {
            Ok(()) => endpoints.repair().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = looked_after
            && !matches!(error, EndpointError::Stopping)
        {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "attachments cannot be looked after"
            );
        }
        if let Some(first) = first.take() {
            let _ = first.send(());
        }
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = clusters.changed() => {}
            _ = timer.tick() => {}
            () = shared.changed.notified() => sleep(SETTLE).await,
        }
    }
}

fn publish(shared: &Shared, network: &Network, report: &Report) {
    for repair in &report.repairs {
        tracing::info!(repair, "put right");
    }
    let mode = network.mode();
    let limits = network.datapath().limits();
    let unreachable: Vec<_> = report
        .unreachable
        .iter()
        .map(|(node, reason)| (node.clone(), (*reason).to_owned()))
        .collect();
    shared.view.send_if_modified(|view| {
        if view.conflicts != report.conflicts {
            for conflict in &report.conflicts {
                tracing::warn!(%conflict, "a pod CIDR is left out");
            }
        }
        let mut fresh = view.clone();
        fresh.underlay.clone_from(&network.place().underlay.name);
        mode.encap.name().clone_into(&mut fresh.encap);
        mode.decap.name().clone_into(&mut fresh.decap);
        fresh.mode_reason.clone_from(&mode.reason);
        fresh.device_mtu = limits.device_mtu;
        fresh.tunnel_mtu = limits.tunnel_mtu;
        fresh.conflicts.clone_from(&report.conflicts);
        fresh.unreachable = unreachable;
        let is_new = *view != fresh;
        *view = fresh;
        is_new
    });
}

fn install_plugin(config: &Config) -> Result<(), AgentError> {
    if let Some(dir) = &config.cni_bin_dir {
        conflist::install_plugin(dir)?;
    }
    if let Some(dir) = &config.cni_conf_dir {
        conflist::install(dir, &config.cni_version, &config.socket, &config.cni_queue_dir)?;
    }
    Ok(())
}

async fn run_pods(shared: &Arc<Shared>, endpoints: Endpoints) -> Result<(), AgentError> {
    let mut clients = shared.client.subscribe();
    let client = tokio::select! {
        () = shared.shutdown.cancelled() => return Ok(()),
        client = clients.wait_for(Option::is_some) => client.ok().and_then(|client| client.clone()),
    };
    let Some(client) = client else {
        return Err(AgentError::TaskEnded("the API task"));
    };
    let config = &shared.config;
    let mut pods_config = PodsConfig::new(&config.state_dir, &config.node_name);
    pods_config.cgroup_parent.clone_from(&config.cgroup_root);
    let ips = shared.view.borrow().ips.clone();
    let name = config.node_name.clone();
    pods::run(pods_config, client, name, ips, endpoints, shared.shutdown.clone()).await?;
    // Pods live on; the agent goes on serving the plugin until it is told to stop.
    shared.shutdown.cancelled().await;
    Ok(())
}
