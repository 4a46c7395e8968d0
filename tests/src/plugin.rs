//! Calling the plugin by hand, with every knob that a container runtime has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::binaries;
use crate::machine::Machine;
use crate::node::Node;

/// A number for each call's input file.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// What the plugin will be called with. Each change makes another one, so a test starts from a good one.
#[derive(Clone, Debug)]
pub struct Invocation {
    machine: Machine,
    conf: Value,
    environment: BTreeMap<String, String>,
}

/// What a call came to.
#[derive(Clone, Debug)]
pub struct Called {
    /// The exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it logged.
    pub stderr: String,
    what: String,
}

impl Invocation {
    /// For a container on the node, in the newest version of the specification.
    pub fn new(node: &Node, container_id: &str, netns: &Path) -> Self {
        let conf = json!({
            "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni",
            "agentSocket": node.socket(), "queueDir": node.queue_dir(),
        });
        let environment = [
            ("CNI_CONTAINERID", container_id.to_owned()),
            ("CNI_NETNS", netns.display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
        ];
        let environment = environment
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        Self {
            machine: node.machine().clone(),
            conf,
            environment,
        }
    }

    /// With a key of the configuration; null takes it away.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        if let Some(object) = self.conf.as_object_mut() {
            if value.is_null() {
                object.remove(key);
            } else {
                object.insert(key.to_owned(), value);
            }
        }
        self
    }

    /// With a variable of the environment.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Without a variable of the environment.
    #[must_use]
    pub fn without_variable(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Calls the plugin.
    ///
    /// # Errors
    /// If it cannot be started; what it says is in the outcome.
    pub fn call(&self, verb: &str) -> Result<Called> {
        let number = CALLS.fetch_add(1, Ordering::Relaxed);
        let input: PathBuf = self.machine.dir().join(format!("call-{number}.json"));
        fs::write(&input, self.conf.to_string())?;
        let mut command = self.machine.command(binaries::find("weft-cni")?);
        command
            .envs(&self.environment)
            .env("CNI_COMMAND", verb)
            .stdin(File::open(&input)?)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let output = command.output().context("run weft-cni")?;
        fs::remove_file(&input)?;
        Ok(Called {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout)?,
            stderr: String::from_utf8(output.stderr)?,
            what: format!("{verb} {:?}", self.environment.get("CNI_CONTAINERID")),
        })
    }
}

impl Called {
    /// The result of a call that must succeed and print one.
    ///
    /// # Errors
    /// If it failed or printed none.
    pub fn result(&self) -> Result<Value> {
        ensure!(
            self.code == Some(0),
            "{}: {} {}",
            self.what,
            self.stdout,
            self.stderr
        );
        serde_json::from_str(&self.stdout).with_context(|| format!("{}: what it printed", self.what))
    }

    /// Checks that the call succeeded and printed nothing.
    ///
    /// # Errors
    /// If not so.
    pub fn silent(&self) -> Result<()> {
        let silent = self.code == Some(0) && self.stdout.is_empty();
        ensure!(
            silent,
            "{}: {:?} {} {}",
            self.what,
            self.code,
            self.stdout,
            self.stderr
        );
        Ok(())
    }

    /// The error object of a call that must fail with one of `codes`.
    ///
    /// # Errors
    /// If it succeeded, or failed otherwise.
    pub fn error(&self, codes: &[u64]) -> Result<Value> {
        let failed = self.code.is_some_and(|code| code != 0);
        ensure!(failed, "{} succeeded: {}", self.what, self.stdout);
        let error: Value = serde_json::from_str(&self.stdout).with_context(|| {
            format!(
                "{}: the error object: {:?} {}",
                self.what, self.stdout, self.stderr
            )
        })?;
        let code = error["code"].as_u64().unwrap_or_default();
        ensure!(codes.contains(&code), "{}: not {codes:?}: {error}", self.what);
        ensure!(
            error["cniVersion"].is_string() && error["msg"].is_string(),
            "{}: {error}",
            self.what
        );
        Ok(error)
    }
}
