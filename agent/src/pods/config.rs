//! What the pod runtime of a node is told.

use std::{path::PathBuf, time::Duration};

/// The size at which a container's log file is rotated. Two files are kept, as kubelet's default keeps a few.
pub const DEFAULT_LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;

/// The settings of the embedded runtime.
#[derive(Debug, Clone)]
pub struct PodsConfig {
    /// The node's state directory; the runtime keeps `images`, `pods`, `netns` and `logs` under it.
    pub state_dir: PathBuf,
    /// The cgroup that holds the pods' cgroups, absolute in the hierarchy. Nodes that share a kernel need one each.
    pub cgroup_parent: String,
    /// The program that is started as `pod-shim`: this one, unless a test says otherwise.
    pub shim_program: PathBuf,
    /// How restarts of a failing container are spaced.
    pub back_off: BackOffConfig,
    /// The size at which a log file is rotated.
    pub log_max_bytes: u64,
    /// How often a missing image is looked for again.
    pub image_retry: Duration,
    /// The name servers of pods whose DNS policy does not name any; empty copies the node's file.
    pub nameservers: Vec<std::net::IpAddr>,
    /// The domain of cluster names.
    pub cluster_domain: String,
}

impl PodsConfig {
    /// The defaults for a node with this state directory.
    pub fn new(state_dir: impl Into<PathBuf>, node_name: &str) -> Self {
        Self {
            state_dir: state_dir.into(),
            cgroup_parent: format!("/weft/{node_name}"),
            shim_program: PathBuf::from("/proc/self/exe"),
            back_off: BackOffConfig::default(),
            log_max_bytes: DEFAULT_LOG_MAX_BYTES,
            image_retry: Duration::from_secs(10),
            nameservers: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
        }
    }

    /// Where images are kept.
    pub fn images_dir(&self) -> PathBuf {
        self.state_dir.join("images")
    }

    /// Where the pods' directories are.
    pub fn pods_dir(&self) -> PathBuf {
        self.state_dir.join("pods")
    }

    /// Where the pods' netns are mounted.
    pub fn netns_dir(&self) -> PathBuf {
        self.state_dir.join("netns")
    }

    /// Where containers' logs are.
    pub fn logs_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }
}

/// How restarts of a failing container are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOffConfig {
    /// The wait before the second start.
    pub base: Duration,
    /// The longest wait.
    pub max: Duration,
    /// A container that ran this long starts over with `base`.
    pub reset_after: Duration,
}

impl Default for BackOffConfig {
    /// Kubernetes' figures.
    fn default() -> Self {
        Self {
            base: Duration::from_secs(10),
            max: Duration::from_mins(5),
            reset_after: Duration::from_mins(10),
        }
    }
}
