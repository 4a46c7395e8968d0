//! What a pod has on the node beside its containers: directory, netns, attachment, shim, cgroup; made and taken away.
//!
//! The record is written before the first of them is made. So whatever a crash leaves can be found and taken away.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use netns_rs::{Env, NetNs};
use serde::{Deserialize, Serialize};

use super::{PodsConfig, volumes};
use crate::{
    endpoint::{AddRequest, AttachmentKey, EndpointError, Endpoints, PodRef},
    shim::{self, CallError, ShimClient, protocol::ShimStatus},
    telemetry::chain,
    whole_file,
};

/// The interface of a pod.
const POD_INTERFACE: &str = "eth0";
/// The record's name in the pod's directory.
const RECORD_FILE: &str = "pod.json";

/// Why a pod could not be given its place on the node, or that not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The API gave the pod a UID that is no file name.
    #[error("pod UID {0:?} is not usable as a file name")]
    Uid(String),
    /// A file of it could not be used.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its netns could not be made or removed.
    #[error("making or removing the pod's netns")]
    Netns(#[source] netns_rs::Error),
    /// It could not be attached to the network, or detached.
    #[error("attaching the pod to the network")]
    Attach(#[from] EndpointError),
    /// Its shim failed.
    #[error(transparent)]
    Shim(#[from] CallError),
    /// The task that did it was stopped.
    #[error("the agent is stopping")]
    Stopping,
}

/// What is remembered of a pod across restarts of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRecord {
    /// The pod's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Whether it uses the node's network.
    pub host_network: bool,
    /// Its addresses, once it is attached.
    pub pod_ips: Vec<IpAddr>,
    /// Whether all of it was made.
    pub complete: bool,
    /// Its cgroup.
    pub cgroup: String,
    /// When it was begun.
    pub created_at: Timestamp,
}

/// The netns of this runtime: mounted in a directory of its own, which is left as it is otherwise.
#[derive(Debug, Clone)]
struct PodNetns {
    dir: PathBuf,
}

impl Env for PodNetns {
    fn persist_dir(&self) -> PathBuf {
        self.dir.clone()
    }

    /// Only makes the directory. The default also mounts it over itself, for other mount namespaces to see what is added; no
    /// one needs that here, and it would be one more mount to take away.
    fn init(&self) -> netns_rs::Result<()> {
        fs::create_dir_all(&self.dir).map_err(netns_rs::Error::CreateNsDirError)
    }
}

/// A pod's place on the node.
#[derive(Debug, Clone)]
pub struct Sandbox {
    /// What is remembered of it.
    pub record: SandboxRecord,
    /// Its directory.
    pub dir: PathBuf,
    /// Its shim.
    pub shim: ShimClient,
}

/// Where a pod's directory is.
pub fn pod_dir(config: &PodsConfig, uid: &str) -> Result<PathBuf, SandboxError> {
    let good = !uid.is_empty()
        && uid.len() <= 64
        && uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        && !uid.starts_with('-');
    if good {
        Ok(config.pods_dir().join(uid))
    } else {
        Err(SandboxError::Uid(uid.to_owned()))
    }
}

/// Where a container's logs go: by the names that log collectors know.
pub fn log_dir(config: &PodsConfig, record: &SandboxRecord) -> PathBuf {
    config
        .logs_dir()
        .join(format!("{}_{}_{}", record.namespace, record.name, record.uid))
}

impl Sandbox {
    /// Makes a pod's place, all of it or nothing.
    pub async fn create(
        config: &PodsConfig,
        endpoints: &Endpoints,
        pod: &Pod,
        node_ips: &[IpAddr],
    ) -> Result<Self, SandboxError> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let dir = pod_dir(config, &uid)?;
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        let mut record = SandboxRecord {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            cgroup: format!("{}/pod{uid}", config.cgroup_parent.trim_end_matches('/')),
            uid,
            host_network,
            pod_ips: Vec::new(),
            complete: false,
            created_at: Timestamp::now(),
        };
        make_dir(&dir)?;
        write_record(&dir, &record)?;
        match Self::build(config, endpoints, &mut record, &dir, node_ips).await {
            Ok(shim) => Ok(Self { record, dir, shim }),
            Err(error) => {
                if let Err(undo) = remove(config, endpoints, &record, &dir, Leave::Volumes).await {
                    tracing::warn!(error = %chain(&undo), pod = %record.name, "undoing a pod's sandbox");
                }
                Err(error)
            }
        }
    }

    async fn build(
        config: &PodsConfig,
        endpoints: &Endpoints,
        record: &mut SandboxRecord,
        dir: &Path,
        node_ips: &[IpAddr],
    ) -> Result<ShimClient, SandboxError> {
        make_dir(&log_dir(config, record))?;
        let netns = if record.host_network {
            record.pod_ips = node_ips.to_vec();
            None
        } else {
            let path = make_netns(config, &record.uid).await?;
            let key = AttachmentKey::new(&record.uid, POD_INTERFACE);
            // What an attempt that was cut short may have left would make the new one an error.
            endpoints.del(key.clone()).await?;
            let mut request = AddRequest::new(key, &path);
            request.pod = Some(PodRef {
                namespace: record.namespace.clone(),
                name: record.name.clone(),
                uid: record.uid.clone(),
            });
            let attached = endpoints.add(request).await?;
            record.pod_ips = attached.ips.iter().map(ipnetwork::IpNetwork::ip).collect();
            Some(path)
        };
        let shim = ShimClient::spawn(&config.shim_program, dir, netns.as_deref()).await?;
        record.complete = true;
        write_record(dir, record)?;
        Ok(shim)
    }

    /// Takes a pod's place over from an earlier agent, if it is whole and its shim lives, which says what it has.
    pub async fn adopt(dir: &Path) -> Option<(Self, ShimStatus)> {
        let record = read_record(dir).filter(|record| record.complete)?;
        let shim = ShimClient::new(dir);
        let status = shim.status().await.ok()?;
        let sandbox = Self {
            record,
            dir: dir.to_owned(),
            shim,
        };
        Some((sandbox, status))
    }
}

/// The record in a pod's directory, if there is one.
pub fn read_record(dir: &Path) -> Option<SandboxRecord> {
    let bytes = fs::read(dir.join(RECORD_FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Takes away the logs of the pods whose UIDs are `gone`. They outlive a pod's place, for whoever wants to know how it went,
/// until the pod itself is gone.
pub(super) fn remove_logs(config: &PodsConfig, gone: impl Fn(&str) -> bool) -> Result<(), SandboxError> {
    for entry in fs::read_dir(config.logs_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // No part of the name but the last can have an underscore before it.
        if name.rsplit_once('_').is_some_and(|(_, uid)| gone(uid)) {
            remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// What of a pod's directory outlives its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its volumes: the pod goes on in another place, and finds in them what it wrote.
    Volumes,
    /// Nothing.
    Nothing,
}

/// Takes everything of a pod away but its logs and what is to be left; what is gone already is a success. Running containers
/// are killed.
pub async fn remove(
    config: &PodsConfig,
    endpoints: &Endpoints,
    record: &SandboxRecord,
    dir: &Path,
    leave: Leave,
) -> Result<(), SandboxError> {
    // Traffic ends first, as DEL does it.
    let attachment = if record.host_network {
        Ok(())
    } else {
        endpoints
            .del(AttachmentKey::new(&record.uid, POD_INTERFACE))
            .await
    };
    match ShimClient::new(dir).shutdown().await {
        Ok(()) => {}
        Err(error) if error.is_gone() => {}
        Err(error) => tracing::warn!(%error, pod = %record.name, "the pod's shim did not clean up"),
    }
    let (config, record, dir) = (config.clone(), record.clone(), dir.to_owned());
    tokio::task::spawn_blocking(move || remove_rest(&config, &record, &dir, leave))
        .await
        .map_err(|_| SandboxError::Stopping)??;
    Ok(attachment?)
}

/// Takes everything of a pod away but its attachment and its logs. The shim must have been told.
pub(super) fn remove_without_network(config: &PodsConfig, dir: &Path) -> Result<(), SandboxError> {
    match read_record(dir) {
        Some(record) => remove_rest(config, &record, dir, Leave::Nothing),
        None => remove_tree(dir),
    }
}

/// The part that needs nobody's help: cgroup, netns, files.
fn remove_rest(
    config: &PodsConfig,
    record: &SandboxRecord,
    dir: &Path,
    leave: Leave,
) -> Result<(), SandboxError> {
    shim::end_leftover(dir);
    shim::remove_cgroup(&record.cgroup).map_err(file("removing cgroup", Path::new(&record.cgroup)))?;
    remove_netns(config, &record.uid)?;
    // The record goes last: until then this can be done again.
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name != RECORD_FILE && (name != volumes::DIR || leave == Leave::Nothing) {
            remove_tree(&entry.path())?;
        }
    }
    match leave {
        Leave::Volumes => remove_tree(&dir.join(RECORD_FILE)),
        Leave::Nothing => remove_tree(dir),
    }
}

async fn make_netns(config: &PodsConfig, uid: &str) -> Result<PathBuf, SandboxError> {
    let (config, uid) = (config.clone(), uid.to_owned());
    tokio::task::spawn_blocking(move || {
        remove_netns(&config, &uid)?;
        let env = PodNetns {
            dir: config.netns_dir(),
        };
        let netns = NetNs::new_with_env(&uid, env).map_err(SandboxError::Netns)?;
        Ok(netns.path().to_owned())
    })
    .await
    .map_err(|_| SandboxError::Stopping)?
}

fn remove_netns(config: &PodsConfig, uid: &str) -> Result<(), SandboxError> {
    use nix::mount::{MntFlags, umount2};

    // Not by netns-rs: it wants to open the netns first, and a reboot leaves a file that is none.
    let path = config.netns_dir().join(uid);
    match umount2(&path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(error) => return Err(file("unmounting", &path)(error.into())),
    }
    remove_tree(&path)
}

fn remove_tree(path: &Path) -> Result<(), SandboxError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer.map_err(file("removing", path)),
    }
}

fn make_dir(path: &Path) -> Result<(), SandboxError> {
    fs::create_dir_all(path).map_err(file("making", path))
}

fn write_record(dir: &Path, record: &SandboxRecord) -> Result<(), SandboxError> {
    let path = dir.join(RECORD_FILE);
    serde_json::to_vec(record)
        .map_err(io::Error::from)
        .and_then(|bytes| whole_file::replace(&path, &bytes, 0o644))
        .map_err(file("writing", &path))
}

fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError::File {
        operation,
        path,
        source,
    }
}
