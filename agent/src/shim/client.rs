//! The agent's side of the conversation with a shim.

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::Command,
    time::timeout,
};

use super::{
    LOG_FILE, READY_LINE, SOCKET_FILE,
    protocol::{CreateContainer, MAX_LINE_BYTES, Request, Response, ShimStatus},
};

/// How long a shim may take to be ready. It takes milliseconds; a machine that swaps takes seconds.
const SPAWN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a request may take beyond what it itself asks to wait.
const CALL_DEADLINE: Duration = Duration::from_mins(1);

/// Why a shim did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// There is no shim, or it went away.
    #[error("the pod's shim does not answer")]
    Gone(#[source] io::Error),
    /// It could not be asked.
    #[error("asking the pod's shim")]
    Ask(#[source] io::Error),
    /// It did not answer in time.
    #[error("the pod's shim did not answer within {0:?}")]
    Late(Duration),
    /// It could not be started.
    #[error("starting the pod's shim")]
    Spawn(#[source] io::Error),
    /// It ended before it was ready; what it said is in the pod's `shim.log`.
    #[error("the pod's shim ended before it was ready: {0}")]
    NotReady(String),
    /// Its answer is not one.
    #[error("the pod's shim answered {0:?}")]
    Protocol(String),
    /// It refused.
    #[error("{0}")]
    Refused(String),
}

impl CallError {
    /// Whether there is no shim any more.
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Gone(_))
    }
}

/// A handle to the shim of one pod.
#[derive(Debug, Clone)]
pub struct ShimClient {
    dir: PathBuf,
}

impl ShimClient {
    /// The shim of the pod whose directory this is.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Starts the shim and waits until it serves.
    pub async fn spawn(program: &Path, dir: &Path, netns: Option<&Path>) -> Result<Self, CallError> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(dir.join(LOG_FILE))
            .map_err(CallError::Spawn)?;
        let mut command = Command::new(program);
        command.arg("pod-shim").arg("--dir").arg(dir);
        if let Some(netns) = netns {
            command.arg("--netns").arg(netns);
        }
        let mut child = command
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(CallError::Spawn)?;
        let ready = async {
            let mut line = String::new();
            if let Some(stdout) = child.stdout.take() {
                BufReader::new(stdout).read_line(&mut line).await?;
            }
            Ok::<_, io::Error>(line)
        };
        let ready = match timeout(SPAWN_DEADLINE, ready).await {
            Ok(Ok(line)) => line.trim_end() == READY_LINE,
            Ok(Err(_)) | Err(_) => false,
        };
        if !ready {
            // It may be stuck; nobody else will end it.
            let _ = child.kill().await;
            let said = std::fs::read_to_string(dir.join(LOG_FILE)).unwrap_or_default();
            let last = said.lines().last().unwrap_or("it said nothing").to_owned();
            return Err(CallError::NotReady(last));
        }
        // Reaped here as long as this process lives, and by init after that.
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await
                && !status.success()
            {
                tracing::warn!(%status, "a pod's shim ended");
            }
        });
        Ok(Self::new(dir))
    }

    /// Asks for the state of the containers.
    pub async fn status(&self) -> Result<ShimStatus, CallError> {
        self.status_of(&Request::Status, Duration::ZERO).await
    }

    /// Asks for the state once it is newer than `since`, or when `limit` has passed.
    pub async fn wait(&self, since: u64, limit: Duration) -> Result<ShimStatus, CallError> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        self.status_of(&Request::Wait { since, timeout_ms }, limit).await
    }

    /// Makes a container; returns what it has to go without.
    pub async fn create(&self, container: CreateContainer) -> Result<Vec<String>, CallError> {
        match self
            .call(&Request::Create(Box::new(container)), Duration::ZERO)
            .await?
        {
            Response::Done { warnings } => Ok(warnings),
            other => Err(unexpected(&other)),
        }
    }

    /// Starts a container's program.
    pub async fn start(&self, id: &str) -> Result<(), CallError> {
        self.done(&Request::Start { id: id.to_owned() }).await
    }

    /// Sends a signal to a container's first process.
    pub async fn kill(&self, id: &str, signal: i32) -> Result<(), CallError> {
        let id = id.to_owned();
        self.done(&Request::Kill { id, signal }).await
    }

    /// Runs a program in a container: its exit code, unless it was killed for being late, and its output.
    pub async fn exec(
        &self,
        id: &str,
        args: Vec<String>,
        limit: Duration,
    ) -> Result<(Option<i32>, String), CallError> {
        let request = Request::Exec {
            id: id.to_owned(),
            args,
            timeout_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        match self.call(&request, limit).await? {
            Response::Exec { exit_code, output } => Ok((exit_code, output)),
            other => Err(unexpected(&other)),
        }
    }

    /// Takes a container away.
    pub async fn remove(&self, id: &str) -> Result<(), CallError> {
        self.done(&Request::Remove { id: id.to_owned() }).await
    }

    /// Takes all containers away and ends the shim.
    pub async fn shutdown(&self) -> Result<(), CallError> {
        self.done(&Request::Shutdown).await
    }

    /// The state that a shim left behind, for when it is gone.
    pub fn last_status(&self) -> ShimStatus {
        std::fs::read(self.dir.join(super::server::STATE_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    async fn done(&self, request: &Request) -> Result<(), CallError> {
        match self.call(request, Duration::ZERO).await? {
            Response::Done { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    async fn status_of(&self, request: &Request, extra: Duration) -> Result<ShimStatus, CallError> {
        match self.call(request, extra).await? {
            Response::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    async fn call(&self, request: &Request, extra: Duration) -> Result<Response, CallError> {
        let limit = CALL_DEADLINE.saturating_add(extra);
        let line = timeout(limit, self.exchange(request))
            .await
            .map_err(|_| CallError::Late(limit))?
            .map_err(call_error)?;
        match serde_json::from_str(&line) {
            Ok(Response::Error { message }) => Err(CallError::Refused(message)),
            Ok(response) => Ok(response),
            Err(_) => Err(CallError::Protocol(line)),
        }
    }

    async fn exchange(&self, request: &Request) -> io::Result<String> {
        // A socket's path has 108 bytes, a state directory's may have more: go through an open directory.
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&self.dir)?;
        let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", directory.as_raw_fd());
        let mut stream = UnixStream::connect(path).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream.take(MAX_LINE_BYTES as u64))
            .read_line(&mut line)
            .await?;
        if line.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line)
    }
}

/// Tells a shim that is not there from one that could not be asked, as when this process has no descriptor left: the pod of
/// the former is over.
fn call_error(source: io::Error) -> CallError {
    match source.kind() {
        io::ErrorKind::NotFound
        | io::ErrorKind::ConnectionRefused
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => CallError::Gone(source),
        _ => CallError::Ask(source),
    }
}

fn unexpected(response: &Response) -> CallError {
    CallError::Protocol(format!("{response:?}"))
}
