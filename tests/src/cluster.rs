//! A whole cluster: a controller on a machine of its own, and nodes that joined it.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::binaries;
use crate::client::{Client, Kubectl};
use crate::fabric::{Fabric, FabricOptions, Port};
use crate::lab::Lab;
use crate::machine::{Machine, output};
use crate::node::{AgentOptions, JoinOptions, Node};
use crate::process::Process;
use crate::wait::wait_until;

/// How long a controller, or a node, may take from its start until it is ready. Debug builds on two busy cores are slow.
const READY: Duration = Duration::from_mins(2);

/// What a cluster looks like.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// For people; part of the lab's id.
    pub name: String,
    /// How many nodes join.
    pub nodes: usize,
    /// The underlay.
    pub fabric: FabricOptions,
    /// What every agent is told.
    pub agent: AgentOptions,
    /// Whether pods have IPv6 addresses as well.
    pub ipv6: bool,
    /// After this long without a lease a node is not ready.
    pub node_grace: Duration,
    /// After this long on a node that is not ready pods are evicted.
    pub eviction: Duration,
    /// How often agents renew their lease.
    pub lease_interval: Duration,
    /// More arguments for the controller.
    pub controller_extra: Vec<String>,
}

impl ClusterOptions {
    /// Two nodes, both families, attachments by the plugin alone.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 2,
            fabric: FabricOptions::default(),
            agent: AgentOptions::default(),
            ipv6: true,
            node_grace: Duration::from_secs(4),
            eviction: Duration::from_secs(1),
            lease_interval: Duration::from_secs(1),
            controller_extra: Vec::new(),
        }
    }
}

/// A running cluster. Everything ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their names `node-1`, `node-2`, …
    pub nodes: Vec<Node>,
    /// The administrator's client.
    pub client: Client,
    /// The underlay.
    pub fabric: Fabric,
    /// The controller and its machine.
    pub control: Control,
    join: JoinOptions,
    options: ClusterOptions,
    lab: Lab,
}

/// The machine of the controller.
#[derive(Debug)]
pub struct Control {
    machine: Machine,
    port: Port,
    args: Vec<String>,
    controller: Option<Process>,
}

impl Cluster {
    /// Brings a cluster up and waits until every node is ready.
    ///
    /// # Errors
    /// If anything does not start in time; the error ends with what the processes logged last.
    pub fn start(options: ClusterOptions) -> Result<Self> {
        Self::start_in(Lab::new(&options.name)?, options)
    }

    /// The same in a lab that the caller has made.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(lab: Lab, options: ClusterOptions) -> Result<Self> {
        let tails = lab.clone();
        Self::bring_up(lab, options).map_err(|error| {
            let logs = tails.log_tails(25);
            error.context(format!("the cluster did not come up; its logs end so:\n{logs}"))
        })
    }

    fn bring_up(lab: Lab, options: ClusterOptions) -> Result<Self> {
        let fabric = Fabric::new(&lab, options.fabric.clone())?;
        let mut control = Control::new(&lab, &fabric, &options)?;
        control.start()?;
        let kubeconfig = control.kubeconfig();
        wait_until("the controller's kubeconfig", READY, || {
            control.process()?.check_running()?;
            fs::metadata(&kubeconfig).map(drop).context("it does not exist")
        })?;
        let client = Client::new(&control.machine, &kubeconfig)?;
        wait_until("the API server", READY, || {
            control.process()?.check_running()?;
            client.list("Node", "", "").map(drop)
        })?;
        let join = control.join_options()?;
        let mut cluster = Self {
            nodes: Vec::new(),
            client,
            fabric,
            control,
            join,
            options,
            lab,
        };
        for number in 1..=cluster.options.nodes {
            cluster.add_node(&format!("node-{number}"))?;
        }
        cluster.wait_ready(READY)?;
        Ok(cluster)
    }

    /// Adds a node and starts its agent; does not wait until it is ready.
    ///
    /// # Errors
    /// If the machine cannot be made or the agent not be started.
    pub fn add_node(&mut self, name: &str) -> Result<&mut Node> {
        let mut agent = self.options.agent.clone();
        agent.extra.extend([
            "--lease-interval-ms".to_owned(),
            self.options.lease_interval.as_millis().to_string(),
        ]);
        let mut node = Node::new(&self.fabric, name, self.join.clone(), agent)?;
        node.start_agent()?;
        self.nodes.push(node);
        self.nodes.last_mut().context("a node was added")
    }

    /// Waits until every node is ready.
    ///
    /// # Errors
    /// If one is not within the deadline, or its agent has ended.
    pub fn wait_ready(&mut self, deadline: Duration) -> Result<()> {
        let nodes = &mut self.nodes;
        let client = &self.client;
        wait_until("every node to be ready", deadline, || {
            for node in nodes.iter_mut() {
                node.agent()?.check_running()?;
                let object = client.get("Node", "", node.name())?;
                let object = object.with_context(|| format!("there is no Node {}", node.name()))?;
                if condition(&object, "Ready").as_deref() != Some("True") {
                    bail!("{} is not ready: {}", node.name(), object["status"]["conditions"]);
                }
            }
            Ok(())
        })
    }

    /// Waits until a node's condition Ready is `status` (`True`, `False` or `Unknown`).
    ///
    /// # Errors
    /// If it is not within the deadline.
    pub fn wait_node(&self, name: &str, is_ready: bool, deadline: Duration) -> Result<()> {
        wait_until(&format!("{name} to be ready: {is_ready}"), deadline, || {
            let object = self.client.get("Node", "", name)?.context("no such node")?;
            let status = condition(&object, "Ready");
            if (status.as_deref() == Some("True")) != is_ready {
                bail!("its condition Ready is {status:?}");
            }
            Ok(())
        })
    }

    /// Loads an image archive into every node's store.
    ///
    /// # Errors
    /// If a node refuses it.
    pub fn load_image(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let loads: Vec<_> = self
                .nodes
                .iter()
                .map(|node| scope.spawn(move || node.load_image(archive)))
                .collect();
            loads
                .into_iter()
                .try_for_each(|load| load.join().expect("loading does not panic"))
        })
    }

    /// The lab that it runs in.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// A node's number by its name.
    ///
    /// # Errors
    /// If there is none.
    pub fn node_index(&self, name: &str) -> Result<usize> {
        self.nodes
            .iter()
            .position(|node| node.name() == name)
            .with_context(|| format!("no node {name}"))
    }

    /// `kubectl` on the controller's machine, if this machine has it.
    pub fn kubectl(&self) -> Option<Kubectl> {
        Kubectl::find(&self.control.machine, &self.control.kubeconfig())
    }

    /// Fails if a process of the cluster logged at level ERROR, unless `expected` is part of the line.
    ///
    /// # Errors
    /// With the lines.
    pub fn assert_no_error_logged(&self, expected: &[&str]) -> Result<()> {
        let lines: Vec<String> = self
            .lab
            .error_lines()
            .into_iter()
            .filter(|line| !expected.iter().any(|part| line.contains(part)))
            .collect();
        if !lines.is_empty() {
            bail!("logged at level ERROR:\n  {}", lines.join("\n  "));
        }
        Ok(())
    }
}

impl Control {
    fn new(lab: &Lab, fabric: &Fabric, options: &ClusterOptions) -> Result<Self> {
        let machine = Machine::new(lab, "control")?;
        let port = fabric.plug(&machine)?;
        let mut args = vec!["controller".to_owned()];
        let mut flag = |name: &str, value: String| args.extend([format!("--{name}"), value]);
        flag("data-dir", machine.dir().join("data").display().to_string());
        flag("listen", "0.0.0.0:6443".to_owned());
        flag("advertise-address", port.ipv4.to_string());
        let cluster_cidr = if options.ipv6 {
            "10.244.0.0/16,fd44::/56"
        } else {
            "10.244.0.0/16"
        };
        flag("cluster-cidr", cluster_cidr.to_owned());
        flag("node-monitor-period", "500ms".to_owned());
        flag("node-monitor-grace-period", millis(options.node_grace));
        flag("pod-eviction-timeout", millis(options.eviction));
        args.extend(options.controller_extra.iter().cloned());
        Ok(Self {
            machine,
            port,
            args,
            controller: None,
        })
    }

    /// Starts the controller.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&mut self) -> Result<()> {
        self.controller = Some(
            self.machine
                .spawn("controller", binaries::find("weft")?, &self.args)?,
        );
        Ok(())
    }

    /// Ends the controller with SIGKILL.
    ///
    /// # Errors
    /// If it was not running.
    pub fn kill(&mut self) -> Result<()> {
        self.controller
            .take()
            .context("the controller is not running")?
            .kill_9()
    }

    /// The controller's process.
    ///
    /// # Errors
    /// If it was not started or was killed.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.controller.as_mut().context("the controller is not running")
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Its place on the underlay.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.machine.dir().join("data/admin.kubeconfig")
    }

    /// Makes a token with `weft token create`, and takes the CA's hash from the join command that the controller has logged.
    fn join_options(&mut self) -> Result<JoinOptions> {
        let mut command = self.machine.command(binaries::find("weft")?);
        command
            .args(["token", "create", "--data-dir"])
            .arg(self.machine.dir().join("data"));
        let token = output(command).context("weft token create")?.trim().to_owned();
        let log = self.process()?.log_tail(usize::MAX);
        let mut words = log.split_whitespace().skip_while(|word| *word != "--ca-hash");
        let ca_hash = words
            .nth(1)
            .context("the controller logged no --ca-hash")?
            .to_owned();
        Ok(JoinOptions {
            server: format!("https://{}:6443", self.port.ipv4),
            token,
            ca_hash,
        })
    }
}

/// The status of an object's condition.
pub fn condition(object: &Value, name: &str) -> Option<String> {
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == name)?;
    found["status"].as_str().map(str::to_owned)
}

fn millis(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}
