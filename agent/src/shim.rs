//! The process that stands between a pod's containers and the agent: one per pod, of one thread, outliving the agent.
//!
//! It holds the pod's netns and a mount namespace of its own, in which the containers' root file systems are mounted: when
//! the shim is gone, however that came, so are its mounts. It is the parent of the containers, so their exit codes are never
//! lost, and it copies their output into log files. The agent asks it for everything over a socket in the pod's directory.

use std::{
    fs, io,
    io::Write,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::{Pid, dup2_stdout, setsid},
};
use tokio::{net::UnixListener, runtime, task::LocalSet};

pub use cgroup::{remove as remove_cgroup, remove_if_empty as remove_cgroup_if_empty};
pub use client::{CallError, ShimClient};
pub use container::ContainerError;

mod cgroup;
mod client;
mod container;
mod logs;
pub mod protocol;
mod server;

/// The socket's name in the pod's directory.
const SOCKET_FILE: &str = "shim.sock";
/// The file with the shim's process number.
const PID_FILE: &str = "shim.pid";
/// The file with what the shim says.
const LOG_FILE: &str = "shim.log";
/// What the shim prints once it serves.
const READY_LINE: &str = "ready";

/// `weft pod-shim …`.
#[derive(Debug, clap::Args)]
pub struct ShimArgs {
    /// The pod's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// The pod's netns; without it, the shim's own is used.
    #[arg(long)]
    pub netns: Option<PathBuf>,
}

/// Why the shim could not serve its pod.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// A file of the pod could not be used.
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
    /// The kernel refused to set the process up.
    #[error("{operation}")]
    Process {
        /// What was tried.
        operation: &'static str,
        /// What the kernel said.
        #[source]
        source: nix::Error,
    },
    /// The runtime could not be started.
    #[error("starting the event loop")]
    Runtime(#[source] io::Error),
    /// Signals could not be received.
    #[error("receiving signals")]
    Signals(#[source] io::Error),
}

/// Runs `weft pod-shim`. Must be called before any thread is started.
pub fn main(args: ShimArgs) -> Result<(), ShimError> {
    let ShimArgs { dir, netns } = args;
    log_to(&dir);
    let process = |operation| move |source| ShimError::Process { operation, source };
    let file = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ShimError::File {
            operation,
            path,
            source,
        }
    };
    // Fails where the shim leads a group already, as when it is started by hand.
    let _ = setsid();
    nix::sys::prctl::set_child_subreaper(true).map_err(process("becoming the reaper of orphans"))?;
    if let Some(path) = &netns {
        let netns = fs::File::open(path).map_err(file("opening netns", path))?;
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(process("entering the pod's netns"))?;
    }
    unshare(CloneFlags::CLONE_NEWNS).map_err(process("making a mount namespace"))?;
    // Unmounts on the node reach the shim, so that it keeps nothing mounted; its own mounts reach nobody.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )
    .map_err(process("separating the mount namespace"))?;
    let_go_of_netns().map_err(file("reading", Path::new("/proc/self/mountinfo")))?;

    let runtime_root = dir.join("runtime");
    fs::create_dir_all(&runtime_root).map_err(file("making", &runtime_root))?;
    let pid_file = dir.join(PID_FILE);
    fs::write(&pid_file, std::process::id().to_string()).map_err(file("writing", &pid_file))?;

    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ShimError::Runtime)?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let socket = dir.join(SOCKET_FILE);
        let listener = listen(&dir).map_err(file("listening on", &socket))?;
        ready().map_err(file("writing", Path::new("/dev/stdout")))?;
        let served = server::serve(dir.clone(), listener).await;
        // Nobody must find a socket that no one serves.
        let _ = fs::remove_file(&socket);
        served
    })
}

/// Sends the log into the pod's `shim.log`, by a descriptor of its own: what libcontainer says between fork and exec must not
/// come out of the container's standard error. Without the file there is no log, and no reason not to serve.
fn log_to(dir: &Path) {
    let file = fs::File::options()
        .create(true)
        .append(true)
        .open(dir.join(LOG_FILE));
    if let Ok(file) = file {
        // Where a test has a subscriber already, that one stays.
        let _ = tracing_subscriber::fmt()
            .with_writer(std::sync::Mutex::new(file))
            .with_ansi(false)
            .with_env_filter("warn,libcontainer=error,libcgroups=error")
            .try_init();
    }
}

/// Kills the shim of a pod whose socket nobody serves any more, if its process still is there.
pub fn end_leftover(dir: &Path) {
    let Some(pid) = fs::read_to_string(dir.join(PID_FILE))
        .ok()
        .and_then(|text| text.trim().parse::<i32>().ok())
        .filter(|pid| *pid > 1)
    else {
        return;
    };
    // Numbers are used again; a shim of this pod has the directory in its command line.
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut words = command.split(|byte| *byte == 0);
    if words.any(|word| word == b"pod-shim") && words.any(|word| word == dir.as_os_str().as_bytes()) {
        // Gone in between is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Unmounts the copies of other pods' netns that came with the mount namespace and would keep them alive.
fn let_go_of_netns() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        if right.starts_with("nsfs ")
            && let Some(path) = left.split(' ').nth(4)
        {
            // One that is hidden under another mount cannot be reached by path; it goes with that.
            let _ = umount2(unescaped(path).as_str(), MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

/// A path as mountinfo writes it.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Binds the socket by a relative name: a socket's path has 108 bytes, a state directory's may have more.
fn listen(dir: &Path) -> io::Result<UnixListener> {
    std::env::set_current_dir(dir)?;
    match fs::remove_file(SOCKET_FILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(SOCKET_FILE)?;
    std::env::set_current_dir("/")?;
    Ok(listener)
}

/// Tells the agent, and lets go of the pipe that it listens on.
fn ready() -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{READY_LINE}")?;
    out.flush()?;
    let null = fs::File::options().write(true).open("/dev/null")?;
    dup2_stdout(&null)?;
    Ok(())
}
