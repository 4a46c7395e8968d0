//! Running `weft-traffic` at both ends of a path.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::case::Load;
use crate::binaries;
use crate::machine::output;
use crate::pods::Place;
use crate::process::Process;
use crate::wait::wait_until;

/// The groups of ports that a server has: on the client's CPU, on the other one, on any.
const SAME_CPU: u16 = 9000;
const OTHER_CPU: u16 = 9100;
const ANY_CPU: u16 = 9200;

/// How long one measurement may take beyond what it was told to, before it counts as hung.
const PATIENCE_SECS: f64 = 20.0;

/// How a load is measured.
#[derive(Clone, Copy, Debug)]
pub struct Measure {
    /// The length of one sample.
    pub secs: f64,
    /// Whether the ends run in a real-time class.
    pub real_time: bool,
}

/// Where a load goes from and to.
#[derive(Clone, Debug)]
pub struct Link {
    /// Where the client runs.
    pub client: Place,
    /// Where the server runs.
    pub server: Place,
    /// The server's address.
    pub target: IpAddr,
}

impl Link {
    /// From one place to the first address of another.
    pub fn between(client: &Place, server: &Place) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            server: server.clone(),
            target: server.ip(false)?,
        })
    }

    /// Starts the server's side.
    pub fn serve(&self, measure: Measure) -> Result<Process> {
        let mut command = self.server.command(binaries::find("weft-traffic")?);
        if measure.real_time {
            command.arg("--real-time");
        }
        command.arg("server");
        for (port, cpu) in [(SAME_CPU, "0"), (OTHER_CPU, "1"), (ANY_CPU, "any")] {
            command.args(["--group", &format!("{port}:{cpu}")]);
        }
        let name = format!("traffic-{}", self.server.name);
        let log = self.server.machine.dir().join("log").join(format!("{name}.log"));
        Process::start(&name, command, &log)
    }

    /// Waits until the path carries anything.
    pub fn wait(&self, measure: Measure) -> Result<()> {
        let short = Measure {
            secs: 0.05,
            ..measure
        };
        let what = format!("traffic from {} to {}", self.client.name, self.server.name);
        wait_until(&what, std::time::Duration::from_secs(20), || {
            self.sample(Load::Rr, short).map(drop)
        })
    }

    /// One sample, in the load's unit.
    pub fn sample(&self, load: Load, measure: Measure) -> Result<f64> {
        let (mode, port, streams, cpu) = match load {
            Load::Tcp1 => ("tp", SAME_CPU, 1, Some(0)),
            Load::Tcp8 => ("tp", ANY_CPU, 8, None),
            Load::UdpPps => ("udp", OTHER_CPU, 1, Some(0)),
            Load::Rr => ("rr", SAME_CPU, 1, Some(0)),
            Load::Crr => ("crr", SAME_CPU, 1, Some(0)),
        };
        let mut command = self.client.command("timeout");
        command
            .arg(format!("{}", measure.secs + PATIENCE_SECS))
            .arg(binaries::find("weft-traffic")?);
        if measure.real_time {
            command.arg("--real-time");
        }
        command
            .args([mode, &SocketAddr::new(self.target, port).to_string()])
            .args([
                "--secs",
                &measure.secs.to_string(),
                "--streams",
                &streams.to_string(),
            ]);
        if let Some(cpu) = cpu {
            command.args(["--cpu".to_owned(), cpu.to_string()]);
        }
        let text =
            output(command).with_context(|| format!("{load:?}: {} to {}", self.client.name, self.target))?;
        let report: Value = serde_json::from_str(&text).context("what weft-traffic printed")?;
        report["value"]
            .as_f64()
            .with_context(|| format!("no value in {text}"))
    }
}
