//! A node: a machine with an agent.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::binaries;
use crate::fabric::{Fabric, Port};
use crate::machine::{Machine, output};
use crate::pods::Place;
use crate::process::Process;

/// Who encapsulates: the programs, or the kernel's device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encap {
    /// What the agent's self-test chooses: the programs, where they can.
    #[default]
    Auto,
    /// The programs write the header.
    Direct,
    /// The collect-metadata device does.
    Device,
}

/// How an agent finds and proves itself to its control plane.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// The API server's address.
    pub server: String,
    /// A bootstrap token.
    pub token: String,
    /// The hash of the cluster CA's public key.
    pub ca_hash: String,
}

/// What an agent is told beyond where its files are.
#[derive(Clone, Debug, Default)]
pub struct AgentOptions {
    /// Who encapsulates.
    pub encap: Encap,
    /// Whether the agent runs pods itself.
    pub runs_pods: bool,
    /// Where to take the agent from, if not from this build.
    pub bin_dir: Option<PathBuf>,
    /// More arguments.
    pub extra: Vec<String>,
}

/// A machine on the fabric that runs `weft agent`.
#[derive(Debug)]
pub struct Node {
    machine: Machine,
    port: Port,
    join: JoinOptions,
    options: AgentOptions,
    agent: Option<Process>,
}

impl Node {
    /// Makes the machine and plugs it in. The agent is not started.
    ///
    /// # Errors
    /// If the machine cannot be made.
    pub fn new(fabric: &Fabric, name: &str, join: JoinOptions, options: AgentOptions) -> Result<Self> {
        let machine = Machine::new(fabric.machine().lab(), name)?;
        let port = fabric.plug(&machine)?;
        for dir in ["state", "run", "bpf", "cni-queue"] {
            fs::create_dir_all(machine.dir().join(dir))?;
        }
        Ok(Self {
            machine,
            port,
            join,
            options,
            agent: None,
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// The machine below.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its place on the underlay.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Its underlay addresses, which are the node's addresses.
    pub fn ips(&self) -> Vec<IpAddr> {
        vec![self.port.ipv4.into(), self.port.ipv6.into()]
    }

    /// The node as a source and target of traffic.
    pub fn place(&self) -> Place {
        Place::of_machine(&self.machine, self.ips())
    }

    /// The agent's socket for the plugin.
    pub fn socket(&self) -> PathBuf {
        self.machine.dir().join("run/agent.sock")
    }

    /// Where the plugin queues deletions when the agent is down.
    pub fn queue_dir(&self) -> PathBuf {
        self.machine.dir().join("cni-queue")
    }

    /// The agent's state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.machine.dir().join("state")
    }

    /// Where the agent mounts its BPF file system.
    pub fn bpffs(&self) -> PathBuf {
        self.machine.dir().join("bpf")
    }

    /// The agent's process.
    ///
    /// # Errors
    /// If it was not started or was killed.
    pub fn agent(&mut self) -> Result<&mut Process> {
        self.agent.as_mut().context("the agent is not running")
    }

    /// Starts the agent. It does not wait until the agent serves.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start_agent(&mut self) -> Result<()> {
        let args = self.agent_args();
        let weft = binaries::find_first_in(self.options.bin_dir.as_deref(), "weft")?;
        self.agent = Some(self.machine.spawn("agent", weft, &args)?);
        Ok(())
    }

    /// Ends the agent with SIGKILL.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill_agent(&mut self) -> Result<()> {
        self.agent.take().context("the agent is not running")?.kill_9()
    }

    /// Ends the agent with SIGTERM.
    ///
    /// # Errors
    /// If it was not running or does not end.
    pub fn stop_agent(&mut self) -> Result<()> {
        self.agent
            .take()
            .context("the agent is not running")?
            .terminate(Duration::from_secs(20))
            .map(drop)
    }

    /// Where the agent binds the network namespace of a pod that it runs.
    pub fn netns_of_pod(&self, uid: &str) -> PathBuf {
        self.state_dir().join("netns").join(uid)
    }

    /// The UIDs of the pods that have a network namespace on the node.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn pod_netns(&self) -> Result<Vec<String>> {
        let dir = self.machine.outside_path(&self.state_dir().join("netns"));
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Loads an image archive into the node's store.
    ///
    /// # Errors
    /// If it is refused.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        let (state, archive) = (
            self.state_dir().display().to_string(),
            archive.display().to_string(),
        );
        self.weft(&["image", "load", "--state-dir", &state, &archive])
            .map(drop)
    }

    /// Runs `weft ipam check`, which proves that the ledger, the kernel and the API agree.
    ///
    /// # Errors
    /// If they do not.
    pub fn ipam_check(&self) -> Result<String> {
        let state = self.state_dir().display().to_string();
        let socket = self.socket().with_file_name("status.sock").display().to_string();
        self.weft(&["ipam", "check", "--state-dir", &state, "--status-socket", &socket])
    }

    /// Runs another subcommand of `weft` on the node.
    ///
    /// # Errors
    /// If it fails; the error holds what it said.
    pub fn weft(&self, args: &[&str]) -> Result<String> {
        let mut command = self.machine.command(binaries::find("weft")?);
        command.args(args);
        output(command).with_context(|| format!("{}: weft {}", self.name(), args.join(" ")))
    }

    fn agent_args(&self) -> Vec<String> {
        let dir = |name: &str| self.machine.dir().join(name).display().to_string();
        let mut args = vec!["agent".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("node-name", self.name().to_owned());
        flag("server", self.join.server.clone());
        flag("token", self.join.token.clone());
        flag("ca-hash", self.join.ca_hash.clone());
        flag("state-dir", dir("state"));
        flag("socket", self.socket().display().to_string());
        flag("bpffs", dir("bpf"));
        flag("cni-queue-dir", self.queue_dir().display().to_string());
        flag(
            "cgroup-root",
            format!("/{}/{}", self.machine.lab().cgroup().display(), self.name()),
        );
        flag("underlay", "eth0".to_owned());
        flag(
            "runtime",
            if self.options.runs_pods {
                "embedded"
            } else {
                "none"
            }
            .to_owned(),
        );
        match self.options.encap {
            Encap::Auto => {}
            Encap::Direct => flag("encap", "direct".to_owned()),
            Encap::Device => flag("encap", "device".to_owned()),
        }
        args.extend(self.options.extra.iter().cloned());
        args
    }
}
