//! The control plane under test: the program as it is shipped, in a process of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http::Method;

use super::http::{Connection, Target};
use crate::binaries;

/// How long it may take to be ready.
const READY: Duration = Duration::from_mins(1);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(1);

pub(super) struct Plane {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
    pub(super) target: Target,
    /// From the start of the process to the first answer of `/readyz`.
    pub(super) start_up: Duration,
}

impl Plane {
    /// Starts one with an empty store.
    pub(super) async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("weft-bench-control-")
            .tempdir()
            .context("a directory for the store")?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?
            .local_addr()?
            .port();
        let (child, target, start_up) = spawn(dir.path(), port).await?;
        Ok(Self {
            dir,
            child,
            port,
            target,
            start_up,
        })
    }

    /// Kills the process as a crash would, and starts it again on the same store.
    pub(super) async fn restart(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let (child, target, start_up) = spawn(self.dir.path(), self.port).await?;
        self.child = child;
        self.target = target;
        self.start_up = start_up;
        Ok(())
    }

    /// Where the store is.
    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Resident memory in MB.
    pub(super) fn rss(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kb: f64 = line
            .and_then(|line| line.split_whitespace().next())
            .context("the process has ended")?
            .parse()?;
        Ok(kb * 1024.0 / 1e6)
    }

    /// Processor time used so far, in seconds.
    pub(super) fn cpu(&self) -> Result<f64> {
        let path = format!("/proc/{}/stat", self.child.id());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let (_, fields) = text.rsplit_once(')').context("no stat")?;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// Size of the store's file in MB.
    pub(super) fn store_size(&self) -> Result<f64> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.dir.path().join("data"))? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with("store") {
                bytes += entry.metadata()?.len();
            }
        }
        Ok(u32::try_from(bytes >> 10).map_or(f64::MAX, f64::from) * 1024.0 / 1e6)
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn spawn(dir: &Path, port: u16) -> Result<(Child, Target, Duration)> {
    let weft = binaries::find("weft")?;
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    let data: PathBuf = dir.join("data");
    let began = Instant::now();
    let mut child = Command::new(weft)
        .args(["controller", "--advertise-address", "127.0.0.1", "--listen"])
        .arg(format!("127.0.0.1:{port}"))
        .args(["--cluster-cidr", "172.16.0.0/12"])
        // A node that is gone is told from one that is slow within what a benchmark can wait for.
        .args([
            "--node-monitor-grace-period",
            "20s",
            "--node-monitor-period",
            "1s",
        ])
        .args(["--pod-eviction-timeout", "1s"])
        .arg("--data-dir")
        .arg(&data)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start weft controller")?;
    match ready(&data, &mut child).await {
        Ok(target) => Ok((child, target, began.elapsed())),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            Err(error.context(log))
        }
    }
}

async fn ready(data: &Path, child: &mut Child) -> Result<Target> {
    let deadline = Instant::now() + READY;
    let kubeconfig = data.join("admin.kubeconfig");
    let mut target = None;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            bail!("weft controller ended with {status}");
        }
        // The file is written whole: it is there, or not yet.
        if target.is_none() && kubeconfig.exists() {
            target = Target::of(&kubeconfig).await.ok();
        }
        if let Some(target) = &target
            && let Ok(mut connection) = Connection::open(target).await
            && let Ok((status, _)) = connection
                .send(Method::GET, "/readyz", "", bytes::Bytes::new())
                .await
            && status.is_success()
        {
            return Ok(target.clone());
        }
        tokio::time::sleep(POLL).await;
    }
    bail!("weft controller is not ready after {READY:?}")
}
