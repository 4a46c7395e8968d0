//! Pods as suites see them: attached by hand through the plugin, or run by the agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::binaries;
use crate::machine::{Machine, output};
use crate::node::Node;
use crate::probe::check::{Outcome, Protocol};
use crate::probe::mtu::Fate;
use crate::probe::stream::Report;
use crate::process::Process;
use crate::wait::wait_until;

/// Something that traffic can be sent from: a network namespace on a machine.
#[derive(Clone, Debug)]
pub struct Place {
    /// What to call it.
    pub name: String,
    /// The machine it is on.
    pub machine: Machine,
    /// Its network namespace in the machine's file system; the machine's own if absent.
    pub netns: Option<PathBuf>,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

impl Place {
    /// A machine itself.
    pub fn of_machine(machine: &Machine, ips: Vec<IpAddr>) -> Self {
        Self {
            name: machine.name().to_owned(),
            machine: machine.clone(),
            netns: None,
            ips,
        }
    }

    /// A command that runs there.
    pub fn command(&self, program: impl AsRef<Path>) -> std::process::Command {
        match &self.netns {
            Some(netns) => self.machine.command_in(netns, program),
            None => self.machine.command(program),
        }
    }

    /// Asks servers from there. Servers that do not answer are outcomes, not errors.
    ///
    /// # Errors
    /// If the probe cannot be run.
    pub fn check(&self, targets: &[SocketAddr], protocols: &[Protocol]) -> Result<Vec<Outcome>> {
        let mut command = self.command(binaries::find("weft-probe")?);
        let names: Vec<&str> = protocols
            .iter()
            .map(|protocol| match protocol {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Icmp => "icmp",
            })
            .collect();
        command
            .arg("check")
            .args(["--timeout-ms", "1000"])
            .arg(format!("--protocols={}", names.join(",")));
        command.args(targets.iter().map(SocketAddr::to_string));
        let done = command.output().context("run weft-probe")?;
        serde_json::from_slice(&done.stdout).with_context(|| {
            format!(
                "weft-probe in {}: {} {}",
                self.name,
                done.status,
                String::from_utf8_lossy(&done.stderr)
            )
        })
    }

    /// Starts a server there.
    ///
    /// # Errors
    /// If it does not start.
    pub fn serve(&self, port: u16) -> Result<Process> {
        let log = self
            .machine
            .dir()
            .join("log")
            .join(format!("probe-{}-{port}.log", self.name));
        let mut command = self.command(binaries::find("weft-probe")?);
        command.args(["serve", "--port", &port.to_string(), "--name", &self.name]);
        Process::start(&format!("probe in {}", self.name), command, &log)
    }

    /// Sends one datagram of `packet_bytes` from there that must not be fragmented.
    ///
    /// # Errors
    /// If the probe cannot be run.
    pub fn send_unfragmented(&self, target: SocketAddr, packet_bytes: usize) -> Result<Fate> {
        let mut command = self.command(binaries::find("weft-probe")?);
        let done = command
            .args(["mtu", &target.to_string(), &packet_bytes.to_string()])
            .output()?;
        serde_json::from_slice(&done.stdout).with_context(|| {
            format!(
                "weft-probe in {}: {} {}",
                self.name,
                done.status,
                String::from_utf8_lossy(&done.stderr)
            )
        })
    }

    /// Starts continuous traffic to a server; it flows when this returns.
    ///
    /// # Errors
    /// If the server is not reached.
    pub fn stream(&self, target: SocketAddr) -> Result<Stream> {
        let stop = self
            .machine
            .dir()
            .join(format!("stop-{}-{}", self.name, target.is_ipv6()));
        let log =
            self.machine
                .dir()
                .join("log")
                .join(format!("stream-{}-{}.log", self.name, target.is_ipv6()));
        let mut command = self.command(binaries::find("weft-probe")?);
        command.args(["stream", &target.to_string(), "--stop"]).arg(&stop);
        let mut process = Process::start(&format!("stream in {}", self.name), command, &log)?;
        wait_until("the stream to start", Duration::from_secs(10), || {
            process.check_running()?;
            if !process.log_tail(5).contains("started") {
                bail!("nothing echoed yet");
            }
            Ok(())
        })?;
        Ok(Stream { process, stop })
    }

    /// Its address of a family.
    ///
    /// # Errors
    /// If it has none.
    pub fn ip(&self, v6: bool) -> Result<IpAddr> {
        self.ips
            .iter()
            .copied()
            .find(|ip| ip.is_ipv6() == v6)
            .with_context(|| format!("{} has no IPv{} address", self.name, if v6 { 6 } else { 4 }))
    }

    /// Its addresses with a port.
    pub fn sockets(&self, port: u16) -> Vec<SocketAddr> {
        self.ips.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }
}

/// Traffic that flows until it is finished.
#[derive(Debug)]
pub struct Stream {
    process: Process,
    stop: PathBuf,
}

impl Stream {
    /// Ends the traffic and says how it went.
    ///
    /// # Errors
    /// If the process does not end or printed no report.
    pub fn finish(mut self) -> Result<Report> {
        std::fs::write(&self.stop, "")?;
        self.process.wait(Duration::from_secs(40))?;
        let log = self.process.log_tail(1);
        serde_json::from_str(&log).with_context(|| format!("the report of a stream: {log}"))
    }
}

/// A pod that a test attached through `weft-cni`, as a container runtime does.
#[derive(Debug)]
pub struct Attachment {
    /// Where its traffic comes from.
    pub place: Place,
    /// The plugin's result.
    pub result: Value,
    container_id: String,
    environment: BTreeMap<String, String>,
    netconf: Value,
}

impl Attachment {
    /// Makes a network namespace on the node and calls the plugin's ADD for it.
    ///
    /// # Errors
    /// If the plugin fails; the error holds its error object.
    pub fn add(node: &Node, name: &str) -> Result<Self> {
        let machine = node.machine();
        let netns = make_netns(machine, name)?;
        let container_id = format!("lab-{name}");
        let environment = BTreeMap::from([
            ("CNI_CONTAINERID".to_owned(), container_id.clone()),
            ("CNI_NETNS".to_owned(), netns.display().to_string()),
            ("CNI_IFNAME".to_owned(), "eth0".to_owned()),
            ("CNI_PATH".to_owned(), "/opt/cni/bin".to_owned()),
        ]);
        let mut attachment = Self {
            place: Place {
                name: name.to_owned(),
                machine: machine.clone(),
                netns: Some(netns),
                ips: Vec::new(),
            },
            result: Value::Null,
            container_id,
            environment,
            netconf: netconf(node),
        };
        let text = attachment
            .invoke("ADD")
            .with_context(|| format!("attach {name} on {}", machine.name()))?;
        attachment.result = serde_json::from_str(&text).context("the result of ADD")?;
        for ip in attachment.result["ips"].as_array().into_iter().flatten() {
            let address = ip["address"].as_str().context("an address in the result")?;
            let address = address.split('/').next().unwrap_or(address);
            attachment.place.ips.push(
                address
                    .parse()
                    .with_context(|| format!("the address {address}"))?,
            );
        }
        if attachment.place.ips.is_empty() {
            bail!("ADD gave {name} no address: {text}");
        }
        Ok(attachment)
    }

    /// Calls the plugin's DEL. The network namespace stays until [`Self::remove_netns`] or the machine's end.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn del(&self) -> Result<()> {
        self.invoke("DEL").map(drop)
    }

    /// Calls the plugin's CHECK with the result of ADD.
    ///
    /// # Errors
    /// If the plugin fails.
    pub fn check(&self) -> Result<()> {
        self.invoke("CHECK").map(drop)
    }

    /// The container id given to the plugin.
    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    /// Unbinds the network namespace, which ends it if no process is left in it.
    ///
    /// # Errors
    /// If it is gone already.
    pub fn remove_netns(&self) -> Result<()> {
        let Some(netns) = &self.place.netns else {
            return Ok(());
        };
        self.place.machine.run(&format!("umount {}", netns.display()))?;
        self.place
            .machine
            .run(&format!("rm {}", netns.display()))
            .map(drop)
    }

    fn invoke(&self, verb: &str) -> Result<String> {
        let mut netconf = self.netconf.clone();
        if verb != "ADD" {
            netconf["prevResult"] = self.result.clone();
        }
        call_plugin(&self.place.machine, verb, &netconf, &self.environment)
    }
}

/// Asks the plugin on the node for its STATUS, which succeeds once the agent serves attachments.
///
/// # Errors
/// If the agent does not serve within the deadline.
pub fn wait_serving(node: &mut Node, deadline: Duration) -> Result<()> {
    let netconf = netconf(node);
    let environment = BTreeMap::from([("CNI_PATH".to_owned(), "/opt/cni/bin".to_owned())]);
    let what = format!("the agent of {} to serve", node.name());
    wait_until(&what, deadline, || {
        node.agent()?.check_running()?;
        call_plugin(node.machine(), "STATUS", &netconf, &environment).map(drop)
    })
}

fn netconf(node: &Node) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni",
        "agentSocket": node.socket(), "queueDir": node.queue_dir(),
    })
}

fn call_plugin(
    machine: &Machine,
    verb: &str,
    netconf: &Value,
    environment: &BTreeMap<String, String>,
) -> Result<String> {
    let id = environment
        .get("CNI_CONTAINERID")
        .map_or("status", String::as_str);
    let input = machine.dir().join(format!("{verb}-{id}.json"));
    std::fs::write(&input, netconf.to_string())?;
    let mut command = machine.command(binaries::find("weft-cni")?);
    command
        .envs(environment)
        .env("CNI_COMMAND", verb)
        .stdin(std::fs::File::open(&input)?);
    output(command).with_context(|| format!("{verb} of the plugin on {}", machine.name()))
}

/// Makes a network namespace on the machine, bound below the machine's directory.
///
/// # Errors
/// If it cannot be made.
pub fn make_netns(machine: &Machine, name: &str) -> Result<PathBuf> {
    let path = machine.dir().join("netns").join(name);
    machine.run(&format!("mkdir -p {}", machine.dir().join("netns").display()))?;
    machine.run(&format!("touch {}", path.display()))?;
    machine.run(&format!("unshare --net={} ip link set lo up", path.display()))?;
    Ok(path)
}

/// Asks every target from every place until all answer, and returns the last round.
///
/// # Errors
/// If one is silent, or sees another source than the one sent from, when the deadline passes.
pub fn all_reach(
    from: &[Place],
    targets: &[SocketAddr],
    protocols: &[Protocol],
    deadline: Duration,
) -> Result<Vec<(String, Vec<Outcome>)>> {
    wait_until("everyone to reach everyone", deadline, || {
        let mut all = Vec::new();
        for place in from {
            let outcomes = place.check(targets, protocols)?;
            if let Some(bad) = outcomes.iter().find(|outcome| !outcome.is_source_kept()) {
                bail!("{} → {} by {:?}: {bad:?}", place.name, bad.target, bad.protocol);
            }
            all.push((place.name.clone(), outcomes));
        }
        Ok(all)
    })
}
