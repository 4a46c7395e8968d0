//! What the agent and a pod's shim say to each other: one JSON object a line, one answer per request, in order.
//!
//! A shim may be older than the agent that talks to it, so fields are only ever added, with defaults.

use std::{collections::BTreeMap, path::PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The longest line that is read.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;

/// The most output of an `Exec` that is sent back.
pub const MAX_EXEC_OUTPUT_BYTES: usize = 10 * 1024;

/// What the agent asks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// Make a container, up to the point where its program would run.
    Create(Box<CreateContainer>),
    /// Let its program run.
    Start {
        /// The container.
        id: String,
    },
    /// Send a signal to its first process. A container that has ended is a success.
    Kill {
        /// The container.
        id: String,
        /// The signal's number.
        signal: i32,
    },
    /// Tell the state of all containers.
    Status,
    /// Tell it once it is newer than `since`, or after `timeout_ms`.
    Wait {
        /// The revision that the agent has.
        since: u64,
        /// How long to wait at most.
        timeout_ms: u64,
    },
    /// Run a program in a running container and wait for it.
    Exec {
        /// The container.
        id: String,
        /// The program and its arguments.
        args: Vec<String>,
        /// When it is killed.
        timeout_ms: u64,
    },
    /// Take away a container and what it left; it is killed if it runs.
    Remove {
        /// The container.
        id: String,
    },
    /// Remove all containers, and end.
    Shutdown,
}

/// A container to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateContainer {
    /// Its id, unique in the pod for all time.
    pub id: String,
    /// What the agent wants to know about it later.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The directory with its `config.json`.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: Rootfs,
    /// Its cgroup, absolute in every hierarchy.
    pub cgroup: String,
    /// How willing the kernel should be to kill it; set as far as the node may.
    #[serde(default)]
    pub oom_score_adj: Option<i32>,
    /// Where its output goes.
    pub log: PathBuf,
    /// The size at which that file is rotated.
    pub log_max_bytes: u64,
}

/// An overlay to mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rootfs {
    /// The directory that has the layers.
    pub layers_dir: PathBuf,
    /// Their names in it, the lowest first.
    pub layers: Vec<String>,
    /// Where the container's own files go.
    pub upper: PathBuf,
    /// What overlayfs needs beside it.
    pub work: PathBuf,
    /// Where it is mounted, in the shim's own mount namespace.
    pub merged: PathBuf,
}

/// What the shim answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Response {
    /// It is done.
    Done {
        /// What could not be had and was left out.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// The state of the containers.
    Status(ShimStatus),
    /// How a program ended.
    Exec {
        /// Its exit code; `None` if it was killed for taking too long.
        exit_code: Option<i32>,
        /// What it wrote.
        output: String,
    },
    /// It could not be done.
    Error {
        /// Why.
        message: String,
    },
}

/// The state of a pod's containers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimStatus {
    /// Grows with every change.
    pub revision: u64,
    /// By id.
    pub containers: BTreeMap<String, ContainerState>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// As given at its creation.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its first process, as the shim's pid namespace numbers it.
    pub pid: i32,
    /// How far it is.
    pub phase: Phase,
    /// Its cgroup.
    #[serde(default)]
    pub cgroup: String,
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// Made, not started.
    Created,
    /// Started.
    Running {
        /// When.
        started_at: Timestamp,
    },
    /// Ended.
    Exited {
        /// When it was started; `None` if it never was.
        started_at: Option<Timestamp>,
        /// When it ended.
        finished_at: Timestamp,
        /// Its exit code, 128 + signal where one ended it.
        exit_code: i32,
        /// The signal.
        signal: Option<i32>,
        /// Whether the kernel killed it for memory.
        #[serde(default)]
        oom_killed: bool,
    },
}
