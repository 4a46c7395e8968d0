//! A controller process of its own for each test, on a port that the system chooses.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use weft_controller::pki::Authority;
pub(crate) use weft_lab::raw::{get, json, next, send, send_with, watch};
use weft_lab::wait::wait_for;

/// A running `weft controller`; killed when dropped.
pub(crate) struct Server {
    directory: TempDir,
    child: Child,
    address: String,
}

impl Server {
    /// The API alone, so that nothing changes but by the test.
    pub(crate) fn api_only() -> Result<Self> {
        Self::start(&["--api-only"])
    }

    /// API, controllers and scheduler.
    pub(crate) fn complete() -> Result<Self> {
        Self::start(&[])
    }

    /// With these flags.
    pub(crate) fn start(flags: &[&str]) -> Result<Self> {
        let directory = TempDir::with_prefix("weft-api-")?;
        let child = spawn(directory.path(), "127.0.0.1:0", flags)?;
        let mut server = Self {
            directory,
            child,
            address: String::new(),
        };
        server.address = server.wait_ready()?;
        Ok(server)
    }

    fn wait_ready(&mut self) -> Result<String> {
        let ready = self.path("ready");
        let address = wait_for("the API to be ready", Duration::from_secs(20), || {
            fs::read_to_string(&ready).ok().filter(|text| !text.is_empty())
        });
        address.with_context(|| fs::read_to_string(self.path("log")).unwrap_or_default())
    }

    /// Where it serves.
    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Kills it without warning and starts it again over the same data and port.
    pub(crate) fn crash_and_restart(&mut self, flags: &[&str]) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        fs::remove_file(self.path("ready"))?;
        self.child = spawn(self.directory.path(), &self.address, flags)?;
        self.wait_ready()?;
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.path("data/admin.kubeconfig")
    }

    /// Runs `kubectl` with the administrator's credentials; fails if it fails.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_kubectl(arguments)?;
        if !output.status.success() {
            bail!(
                "kubectl {arguments:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs `kubectl`, whatever comes of it.
    pub(crate) fn try_kubectl(&self, arguments: &[&str]) -> Result<Output> {
        Command::new("timeout")
            .args(["60", "kubectl"])
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory.path())
            .stdin(Stdio::null())
            .output()
            .context("kubectl is not installed")
    }

    /// Runs `kubectl` where the files are that were written, with more of an environment.
    pub(crate) fn kubectl_at_home(
        &self,
        environment: &[(&str, &str)],
        arguments: &[String],
    ) -> Result<Output> {
        Command::new("timeout")
            .args(["60", "kubectl"])
            .args(arguments)
            .current_dir(self.directory.path())
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.directory.path())
            .env("TMPDIR", self.directory.path())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .output()
            .context("kubectl is not installed")
    }

    /// Writes a file that `kubectl -f` can read.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<String> {
        let path = self.path(name);
        fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    async fn config(&self) -> Result<Config> {
        let kubeconfig = Kubeconfig::read_from(self.kubeconfig())?;
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        // Tests see each answer as it is.
        config.default_retry = false;
        Ok(config)
    }

    /// A client with the administrator's credentials.
    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(Client::try_from(self.config().await?)?)
    }

    /// A client without credentials, or with a bearer token.
    pub(crate) async fn stranger(&self, token: Option<&str>) -> Result<Client> {
        let mut config = self.config().await?;
        config.auth_info = kube::config::AuthInfo {
            token: token.map(|token| token.to_owned().into()),
            ..kube::config::AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    /// A client with a certificate and its key.
    pub(crate) async fn with_certificate(&self, certificate: &str, key: &str) -> Result<Client> {
        let encode = |text: &str| STANDARD.encode(text);
        let mut config = self.config().await?;
        config.auth_info = kube::config::AuthInfo {
            client_certificate_data: Some(encode(certificate)),
            client_key_data: Some(encode(key).into()),
            ..kube::config::AuthInfo::default()
        };
        Ok(Client::try_from(config)?)
    }

    /// A client with a certificate of the cluster's authority, in a group or none.
    pub(crate) async fn user(&self, name: &str, group: Option<&str>) -> Result<Client> {
        let authority = Authority::open(&self.path("data/pki"))?;
        let credentials = authority.client(name, group)?;
        self.with_certificate(&credentials.certificate, &credentials.key)
            .await
    }

    /// The `weft token create` command's answer.
    pub(crate) fn token(&self) -> Result<String> {
        self.weft_token(&["create"])
    }

    /// What `weft token …` prints; fails if it fails.
    pub(crate) fn weft_token(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(weft_lab::binaries::find("weft")?)
            .arg("token")
            .args(arguments)
            .arg("--data-dir")
            .arg(self.path("data"))
            .output()?;
        if !output.status.success() {
            bail!("weft token: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

fn spawn(directory: &Path, listen: &str, flags: &[&str]) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))?;
    Command::new(weft_lab::binaries::find("weft")?)
        .args([
            "controller",
            "--listen",
            listen,
            "--advertise-address",
            "127.0.0.1",
        ])
        .arg("--data-dir")
        .arg(directory.join("data"))
        .arg("--ready-file")
        .arg(directory.join("ready"))
        .args(flags)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("start the controller")
}
