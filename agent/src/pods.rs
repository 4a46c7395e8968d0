//! The pods of this node: what each of them should be, and the workers that make it so.
//!
//! [`state`] decides and [`status`] describes, both pure; a worker per pod carries it out, through the pod's shim
//! ([`crate::shim`]) and its attachment ([`crate::endpoint`]). Pods outlive the agent: a worker that starts takes over what
//! an earlier one left, and what belongs to no pod any more is taken away once the API has listed all.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Client, Resource as _,
    runtime::{WatchStreamExt, watcher},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_controller::informer::Unread;

pub use config::{BackOffConfig, PodsConfig};

use self::{
    events::Events,
    worker::{Context, Desired, Worker},
};
use crate::{endpoint::Endpoints, image::Store, shim, telemetry::chain};

pub mod config;
pub mod environment;
mod events;
pub mod files;
pub mod oci;
mod probes;
pub mod projected;
pub mod quantity;
pub mod sandbox;
mod start;
pub mod state;
pub mod status;
pub mod users;
pub mod volumes;
mod worker;

/// Sandboxes and containers that are made at the same time. Each takes a tenth of a second of one CPU; more at once only
/// makes the first ones later.
const PARALLEL_STARTS: usize = 8;

/// Why the pod runtime could not run.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// A directory of the runtime could not be made or read.
    #[error("preparing {path}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Something of a pod could not be taken away.
    #[error("taking away the pod in {dir}")]
    Remains {
        /// The pod's directory.
        dir: PathBuf,
        /// What was in the way.
        #[source]
        source: Box<sandbox::SandboxError>,
    },
}

/// Runs the pods that are bound to this node until `shutdown`. Pods keep running when it returns.
pub async fn run(
    config: PodsConfig,
    client: Client,
    node_name: String,
    node_ips: Vec<IpAddr>,
    endpoints: Endpoints,
    shutdown: CancellationToken,
) -> Result<(), PodsError> {
    for path in [config.pods_dir(), config.netns_dir(), config.logs_dir()] {
        fs::create_dir_all(&path).map_err(state_dir(&path))?;
    }
    let tasks = TaskTracker::new();
    let cgroup_parent = config.cgroup_parent.clone();
    let context = Arc::new(Context {
        events: Events::start(client.clone(), &node_name, &tasks, shutdown.clone()),
        store: Store::new(config.images_dir()),
        controllers: oci::controllers(),
        grantable: oci::grantable(),
        starts: Semaphore::new(PARALLEL_STARTS),
        client: client.clone(),
        config,
        node_ips,
        endpoints,
    });
    let mut registry = Registry {
        context,
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
        pods: HashMap::new(),
        listed: None,
    };
    let pods = Unread::all::<Pod>(client);
    let selection = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let mut events = watcher(pods, selection).default_backoff().boxed();
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.next() => event,
        };
        match event {
            Some(Ok(event)) => registry.apply(event)?,
            Some(Err(error)) => tracing::warn!(error = %chain(&error), "watching the node's pods"),
            None => break,
        }
    }
    registry.pods.clear();
    tasks.close();
    tasks.wait().await;
    // Only where no pod is left.
    remove_empty_cgroups(&cgroup_parent);
    Ok(())
}

/// Takes all pods of this runtime away, for when the node is given up; says whether there were any. The agent must not run.
///
/// Their devices are the datapath's, which is taken away with its own.
pub fn purge(state_dir: &Path) -> Result<bool, PodsError> {
    // Only the directories matter here, and those are the state directory's.
    let config = PodsConfig::new(state_dir, "");
    let dirs = pod_dirs(&config.pods_dir())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(self::state_dir(state_dir))?;
    let mut remains = None;
    for dir in &dirs {
        let record = sandbox::read_record(dir);
        match runtime.block_on(shim::ShimClient::new(dir).shutdown()) {
            Err(error) if !error.is_gone() => {
                tracing::warn!(%error, dir = %dir.display(), "a pod's shim did not clean up");
            }
            Ok(()) | Err(_) => {}
        }
        let removed = sandbox::remove_without_network(&config, dir).and_then(|()| {
            // Of a pod between two places there is no record.
            let own = dir.file_name().unwrap_or_default();
            sandbox::remove_logs(&config, |uid| own == uid)
        });
        if let Err(error) = removed {
            remains = Some(PodsError::Remains {
                dir: dir.clone(),
                source: Box::new(error),
            });
        }
        if let Some(cgroup) = record
            .as_ref()
            .and_then(|record| Path::new(&record.cgroup).parent())
        {
            remove_empty_cgroups(&cgroup.to_string_lossy());
        }
    }
    match remains {
        Some(error) => Err(error),
        None => Ok(!dirs.is_empty()),
    }
}

/// Removes a cgroup and those above it, as far as nothing is in them.
fn remove_empty_cgroups(path: &str) {
    let mut path = Path::new(path);
    while let Some(parent) = path.parent() {
        shim::remove_cgroup_if_empty(&path.to_string_lossy());
        path = parent;
    }
}

fn state_dir(path: &Path) -> impl FnOnce(io::Error) -> PodsError {
    let path = path.to_owned();
    move |source| PodsError::StateDir { path, source }
}

fn pod_dirs(path: &Path) -> Result<Vec<PathBuf>, PodsError> {
    match fs::read_dir(path) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(state_dir(path)(error)),
    }
}

/// The workers, by the UID of their pod. Owned by the task that watches.
struct Registry {
    context: Arc<Context>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    pods: HashMap<String, watch::Sender<Desired>>,
    /// UIDs seen in the list that is being received.
    listed: Option<HashSet<String>>,
}

impl Registry {
    fn apply(&mut self, event: watcher::Event<Unread>) -> Result<(), PodsError> {
        // A worker that is through has dropped its receiver.
        self.pods.retain(|_, sender| !sender.is_closed());
        match event {
            watcher::Event::Init => self.listed = Some(HashSet::new()),
            watcher::Event::InitApply(pod) => {
                if let (Some(listed), Some(uid)) = (&mut self.listed, &pod.meta().uid) {
                    listed.insert(uid.clone());
                }
                self.present(&pod);
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                for (uid, sender) in &self.pods {
                    if !listed.contains(uid) {
                        sender.send_replace(Desired::Gone);
                    }
                }
                self.take_orphans_away(&listed)?;
            }
            watcher::Event::Apply(pod) => self.present(&pod),
            watcher::Event::Delete(pod) => {
                if let Some(sender) = pod.meta().uid.as_ref().and_then(|uid| self.pods.get(uid)) {
                    sender.send_replace(Desired::Gone);
                }
            }
        }
        Ok(())
    }

    fn present(&mut self, pod: &Unread) {
        let pod: Pod = match pod.read() {
            Ok(pod) => pod,
            Err(error) => {
                tracing::error!(error = %chain(&error), "the pod is left as it is");
                return;
            }
        };
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let desired = Desired::Present(Arc::new(pod));
        match self.pods.get(&uid) {
            Some(sender) => {
                sender.send_replace(desired);
            }
            None => self.serve(uid, desired),
        }
    }

    fn serve(&mut self, uid: String, desired: Desired) {
        let dir = match sandbox::pod_dir(&self.context.config, &uid) {
            Ok(dir) => dir,
            Err(error) => {
                tracing::error!(%error, "a pod cannot be served");
                return;
            }
        };
        let (sender, receiver) = watch::channel(desired);
        let worker = Worker::new(Arc::clone(&self.context), uid.clone(), dir);
        self.tasks.spawn(worker.run(receiver, self.shutdown.clone()));
        self.pods.insert(uid, sender);
    }

    /// Ends pods that an earlier agent ran and that the API does not have any more, and takes the logs of those away that were
    /// over already.
    fn take_orphans_away(&mut self, listed: &HashSet<String>) -> Result<(), PodsError> {
        for dir in pod_dirs(&self.context.config.pods_dir())? {
            let Some(uid) = dir.file_name().map(|name| name.to_string_lossy().into_owned()) else {
                continue;
            };
            if !listed.contains(&uid) && !self.pods.contains_key(&uid) {
                tracing::info!(uid, "ending a pod that the API does not have");
                self.serve(uid, Desired::Gone);
            }
        }
        let gone = |uid: &str| !listed.contains(uid) && !self.pods.contains_key(uid);
        if let Err(error) = sandbox::remove_logs(&self.context.config, gone) {
            tracing::warn!(error = %chain(&error), "taking away the logs of pods that are gone");
        }
        Ok(())
    }
}
