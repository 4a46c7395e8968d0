//! The shim's loop: requests from the agent, exits of processes, output of containers; all on one thread.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs::{self, File},
    io, mem,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use jiff::Timestamp;
use libcontainer::container::Container;
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::pipe},
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_local},
    time::{sleep, timeout},
};

use super::{
    ShimError,
    container::{self, ContainerError},
    logs::{self, LogFile, Stream},
    protocol::{
        ContainerState, CreateContainer, MAX_EXEC_OUTPUT_BYTES, MAX_LINE_BYTES, Phase, Request, Response,
        Rootfs, ShimStatus,
    },
};
use crate::whole_file;

/// The file that keeps the last known state for when the shim is gone.
pub(super) const STATE_FILE: &str = "shim.json";
/// How long the output of a program that has ended may still take to arrive.
const EXEC_DRAIN: Duration = Duration::from_millis(200);
/// The same for a container's log before its end is told, and before it is removed.
const LOG_DRAIN: Duration = Duration::from_secs(1);

struct Shim {
    dir: PathBuf,
    status: ShimStatus,
    live: HashMap<String, Live>,
    execs: HashMap<i32, oneshot::Sender<i32>>,
    changed: watch::Sender<u64>,
    done: watch::Sender<bool>,
}

/// What only the living shim has of a container.
struct Live {
    container: Container,
    rootfs: Rootfs,
    cgroup: String,
    logs: Vec<JoinHandle<()>>,
}

type Shared = Rc<RefCell<Shim>>;

/// Serves requests until `Shutdown`.
pub(super) async fn serve(dir: PathBuf, listener: UnixListener) -> Result<(), ShimError> {
    let (done, mut finished) = watch::channel(false);
    let shim = Rc::new(RefCell::new(Shim {
        dir,
        status: ShimStatus {
            // Above 0, so that a first `Wait` since 0 answers at once.
            revision: 1,
            ..ShimStatus::default()
        },
        live: HashMap::new(),
        execs: HashMap::new(),
        changed: watch::Sender::new(1),
        done,
    }));
    let mut children = signal(SignalKind::child()).map_err(ShimError::Signals)?;
    loop {
        tokio::select! {
            connection = listener.accept() => match connection {
                Ok((stream, _)) => {
                    let shim = Rc::clone(&shim);
                    spawn_local(async move {
                        if let Err(error) = converse(shim, stream).await {
                            tracing::debug!(%error, "a connection ended early");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = children.recv() => reap(&shim).await,
            _ = finished.changed() => return Ok(()),
        }
    }
}

/// Takes the exit codes of all children that have ended, each after the last of what it wrote is in its log: whoever hears
/// of the end may read the log at once.
async fn reap(shim: &Shared) {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) = waitid(Id::All, peek) {
        // Not reaped yet, so the number stays the container's while its output is awaited.
        let logs = shim.borrow_mut().take_logs(pid.as_raw());
        for log in logs {
            // Late output, of a process that holds the pipe from elsewhere, is copied all the same.
            let _ = timeout(LOG_DRAIN, log).await;
        }
        shim.borrow_mut().reap(pid);
    }
}

async fn converse(shim: Shared, stream: UnixStream) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read.take(MAX_LINE_BYTES as u64));
    let mut line = String::new();
    loop {
        line.clear();
        lines.get_mut().set_limit(MAX_LINE_BYTES as u64);
        if lines.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let (response, ends) = match serde_json::from_str::<Request>(&line) {
            Ok(request) => {
                let ends = matches!(request, Request::Shutdown);
                (answer(&shim, request).await, ends)
            }
            Err(error) => (
                Response::Error {
                    message: format!("not a request: {error}"),
                },
                false,
            ),
        };
        let succeeded = !matches!(response, Response::Error { .. });
        let mut text = serde_json::to_vec(&response)?;
        text.push(b'\n');
        write.write_all(&text).await?;
        write.flush().await?;
        if ends && succeeded {
            shim.borrow().done.send_replace(true);
            return Ok(());
        }
    }
}

async fn answer(shim: &Shared, request: Request) -> Response {
    let result = match request {
        Request::Create(request) => shim.borrow_mut().create(*request).map(done_with),
        Request::Start { id } => shim.borrow_mut().start(&id).map(|()| done()),
        Request::Kill { id, signal } => shim.borrow_mut().kill(&id, signal).map(|()| done()),
        Request::Status => Ok(Response::Status(shim.borrow().status.clone())),
        Request::Wait { since, timeout_ms } => Ok(wait(shim, since, Duration::from_millis(timeout_ms)).await),
        Request::Exec { id, args, timeout_ms } => {
            exec(shim, &id, args, Duration::from_millis(timeout_ms)).await
        }
        Request::Remove { id } => remove(shim, &id).await.map(|()| done()),
        Request::Shutdown => shutdown(shim).await.map(|()| done()),
    };
    result.unwrap_or_else(|error| Response::Error {
        message: error.to_string(),
    })
}

fn done() -> Response {
    done_with(Vec::new())
}

fn done_with(warnings: Vec<String>) -> Response {
    Response::Done { warnings }
}

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("container {0} is not known")]
    Unknown(String),
    #[error("container {0} exists")]
    Exists(String),
    #[error("container {0} is not running")]
    NotRunning(String),
    #[error("{0} is not a signal")]
    NotASignal(i32),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("{0}: {1}")]
    Io(&'static str, io::Error),
}

impl Shim {
    fn create(&mut self, request: CreateContainer) -> Result<Vec<String>, RequestError> {
        if self.status.containers.contains_key(&request.id) {
            return Err(RequestError::Exists(request.id));
        }
        let log = LogFile::open(&request.log, request.log_max_bytes)
            .map_err(|e| RequestError::Io("opening the log", e))?;
        let log = Rc::new(RefCell::new(log));
        let pipe = || io::pipe().map_err(|e| RequestError::Io("making a pipe", e));
        let (out_read, out_write) = pipe()?;
        let (err_read, err_write) = pipe()?;
        let container = container::create(
            &request,
            &self.runtime_root(),
            null()?,
            out_write.into(),
            err_write.into(),
        )?;
        let logs = [(out_read, Stream::Stdout), (err_read, Stream::Stderr)]
            .into_iter()
            .map(|(read, stream)| {
                let read = pipe::Receiver::from_owned_fd(read.into())
                    .map_err(|e| RequestError::Io("watching a pipe", e))?;
                Ok(spawn_local(logs::copy(read, stream, Rc::clone(&log))))
            })
            .collect::<Result<_, RequestError>>()?;
        let pid = container.pid().map_or(0, raw_pid);
        let mut warnings = Vec::new();
        if let Some(wanted) = request.oom_score_adj
            && let Err(error) = set_oom_score(pid, wanted)
        {
            warnings.push(format!(
                "oom_score_adj {wanted} cannot be set on this node: {error}"
            ));
        }
        self.live.insert(
            request.id.clone(),
            Live {
                container,
                rootfs: request.rootfs,
                cgroup: request.cgroup.clone(),
                logs,
            },
        );
        self.status.containers.insert(
            request.id,
            ContainerState {
                labels: request.labels,
                pid,
                phase: Phase::Created,
                cgroup: request.cgroup,
            },
        );
        self.publish();
        Ok(warnings)
    }

    fn start(&mut self, id: &str) -> Result<(), RequestError> {
        let unknown = || RequestError::Unknown(id.to_owned());
        let live = self.live.get_mut(id).ok_or_else(unknown)?;
        live.container.start().map_err(ContainerError::from)?;
        let state = self.status.containers.get_mut(id).ok_or_else(unknown)?;
        state.phase = Phase::Running {
            started_at: Timestamp::now(),
        };
        self.publish();
        Ok(())
    }

    fn kill(&mut self, id: &str, signal: i32) -> Result<(), RequestError> {
        let state = self
            .status
            .containers
            .get(id)
            .ok_or_else(|| RequestError::Unknown(id.to_owned()))?;
        let signal = Signal::try_from(signal).map_err(|_| RequestError::NotASignal(signal))?;
        if matches!(state.phase, Phase::Exited { .. }) {
            return Ok(());
        }
        // The process is this one's child and not reaped, so its number is its own.
        match kill(Pid::from_raw(state.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(RequestError::Io("sending the signal", error.into())),
        }
    }

    /// The copying of what a container wrote, if `pid` is a container's first process.
    fn take_logs(&mut self, pid: i32) -> Vec<JoinHandle<()>> {
        let id = self
            .status
            .containers
            .iter()
            .find(|(_, state)| state.pid == pid && !matches!(state.phase, Phase::Exited { .. }))
            .map(|(id, _)| id);
        id.and_then(|id| self.live.get_mut(id))
            .map(|live| mem::take(&mut live.logs))
            .unwrap_or_default()
    }

    /// Takes the exit code of a child that has ended.
    fn reap(&mut self, pid: Pid) {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => self.ended(pid.as_raw(), code, None),
            Ok(WaitStatus::Signaled(pid, signal, _)) => {
                self.ended(pid.as_raw(), 128 + signal as i32, Some(signal as i32));
            }
            // Waited for elsewhere.
            Ok(_) | Err(_) => {}
        }
    }

    fn ended(&mut self, pid: i32, exit_code: i32, signal: Option<i32>) {
        if let Some(waiting) = self.execs.remove(&pid) {
            // Whoever waited may have gone.
            let _ = waiting.send(exit_code);
            return;
        }
        let Some(state) = self
            .status
            .containers
            .values_mut()
            .find(|state| state.pid == pid && !matches!(state.phase, Phase::Exited { .. }))
        else {
            return;
        };
        let started_at = match state.phase {
            Phase::Running { started_at } => Some(started_at),
            Phase::Created | Phase::Exited { .. } => None,
        };
        state.phase = Phase::Exited {
            started_at,
            finished_at: Timestamp::now(),
            exit_code,
            signal,
            oom_killed: super::cgroup::oom_killed(&state.cgroup),
        };
        self.publish();
    }

    /// Ends a container's processes and takes away what it has, except its logs.
    fn clear(&mut self, id: &str) -> Result<Option<Live>, RequestError> {
        let Some(state) = self.status.containers.get(id) else {
            return Ok(None);
        };
        if !matches!(state.phase, Phase::Exited { .. }) {
            let pid = Pid::from_raw(state.pid);
            // It is our child and not reaped. Its end is certain, and takes its pid namespace with it.
            let _ = kill(pid, Signal::SIGKILL);
            let _ = waitpid(pid, None);
            self.ended(
                pid.as_raw(),
                128 + Signal::SIGKILL as i32,
                Some(Signal::SIGKILL as i32),
            );
        }
        if let Some(live) = self.live.get_mut(id) {
            container::delete(&live.rootfs, &live.cgroup, &self.dir.join("runtime").join(id))?;
        }
        let live = self.live.remove(id);
        self.status.containers.remove(id);
        self.publish();
        Ok(live)
    }

    fn runtime_root(&self) -> PathBuf {
        self.dir.join("runtime")
    }

    /// Makes a change known: on disk, and to those who wait.
    fn publish(&mut self) {
        self.status.revision += 1;
        if let Err(error) = persist(&self.dir, &self.status) {
            tracing::warn!(%error, "keeping the state");
        }
        self.changed.send_replace(self.status.revision);
    }
}

async fn wait(shim: &Shared, since: u64, limit: Duration) -> Response {
    let mut changes = shim.borrow().changed.subscribe();
    // Both ends of the wait have the same answer.
    let _ = timeout(limit, changes.wait_for(|revision| *revision > since)).await;
    Response::Status(shim.borrow().status.clone())
}

async fn exec(shim: &Shared, id: &str, args: Vec<String>, limit: Duration) -> Result<Response, RequestError> {
    let (read, write) = io::pipe().map_err(|e| RequestError::Io("making a pipe", e))?;
    let (pid, exited) = {
        let mut shim = shim.borrow_mut();
        match shim.status.containers.get(id).map(|state| &state.phase) {
            Some(Phase::Running { .. }) => {}
            Some(_) => return Err(RequestError::NotRunning(id.to_owned())),
            None => return Err(RequestError::Unknown(id.to_owned())),
        }
        let pid = container::exec(id, args, &shim.runtime_root(), null()?, write.into())?;
        let (sender, exited) = oneshot::channel();
        shim.execs.insert(pid, sender);
        (pid, exited)
    };
    let read =
        pipe::Receiver::from_owned_fd(read.into()).map_err(|e| RequestError::Io("watching a pipe", e))?;
    let output = Rc::new(RefCell::new(Vec::new()));
    let mut reader = spawn_local(collect(read, Rc::clone(&output)));
    let exit_code = if let Ok(code) = timeout(limit, exited).await {
        code.ok()
    } else {
        // Not reaped, or its entry would be gone: the number is still its own.
        if shim.borrow_mut().execs.remove(&pid).is_some() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        None
    };
    // A child that it left behind may hold the pipe for ever.
    if timeout(EXEC_DRAIN, &mut reader).await.is_err() {
        reader.abort();
    }
    let output = String::from_utf8_lossy(&output.borrow()).into_owned();
    Ok(Response::Exec { exit_code, output })
}

async fn collect(mut from: pipe::Receiver, into: Rc<RefCell<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        let mut into = into.borrow_mut();
        let room = MAX_EXEC_OUTPUT_BYTES.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..read.min(room)]);
    }
}

async fn remove(shim: &Shared, id: &str) -> Result<(), RequestError> {
    let cleared = shim.borrow_mut().clear(id)?;
    if let Some(live) = cleared {
        for log in live.logs {
            // A process that escaped the container's pid namespace may hold the pipe.
            let _ = timeout(LOG_DRAIN, log).await;
        }
    }
    Ok(())
}

async fn shutdown(shim: &Shared) -> Result<(), RequestError> {
    let ids: Vec<String> = shim.borrow().status.containers.keys().cloned().collect();
    for id in ids {
        remove(shim, &id).await?;
    }
    Ok(())
}

fn null() -> Result<OwnedFd, RequestError> {
    let file = File::open("/dev/null").map_err(|e| RequestError::Io("opening /dev/null", e))?;
    Ok(file.into())
}

/// libcontainer speaks of processes in the types of an older `nix`.
fn raw_pid(pid: impl Into<i32>) -> i32 {
    pid.into()
}

/// Sets a process' score; a node without the privilege to go lower leaves it where it is.
fn set_oom_score(pid: i32, score: i32) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string())
}

fn persist(dir: &Path, status: &ShimStatus) -> io::Result<()> {
    whole_file::replace(&dir.join(STATE_FILE), &serde_json::to_vec(status)?, 0o644)
}
