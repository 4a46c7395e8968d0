//! `weft-probe`: the small server and client which tests, demo and benchmarks run inside pods.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use weft_lab::probe::check::{Outcome, Protocol};
use weft_lab::probe::mtu::Fate;
use weft_lab::probe::{PORT, check, mtu, serve, stream};

#[derive(Parser)]
#[command(about = "Asks, and answers, whether pods reach each other")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves TCP and UDP: says who asks, then echoes.
    Serve {
        /// The port, of both.
        #[arg(long, default_value_t = PORT, env = "PROBE_PORT")]
        port: u16,
        /// What to answer as one's name; the host name if absent.
        #[arg(long, env = "POD_NAME")]
        name: Option<String>,
    },
    /// Asks servers, and prints the outcomes as a JSON list; fails if one does not answer.
    Check {
        /// Where the servers are.
        #[arg(required = true)]
        targets: Vec<SocketAddr>,
        /// What to speak.
        #[arg(long, value_delimiter = ',', default_value = "tcp,udp,icmp")]
        protocols: Vec<Protocol>,
        /// How long to wait for an answer.
        #[arg(long, default_value_t = 2000)]
        timeout_ms: u64,
    },
    /// Sends one datagram of an exact packet size that must not be fragmented, and prints its fate as JSON.
    Mtu {
        /// Where the server is.
        target: SocketAddr,
        /// The size of the IP packet.
        bytes: usize,
        /// How long to wait for an answer.
        #[arg(long, default_value_t = 10_000)]
        timeout_ms: u64,
    },
    /// Sends continuously until a file exists, and prints a report as JSON.
    Stream {
        /// Where the server is.
        target: SocketAddr,
        /// Datagrams a second.
        #[arg(long, default_value_t = 1000)]
        udp_hz: u64,
        /// The file that ends it.
        #[arg(long)]
        stop: PathBuf,
    },
}

fn main() -> Result<ExitCode> {
    let good = match Cli::parse().command {
        Command::Serve { port, name } => {
            let name = name.unwrap_or_else(|| {
                std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "probe".to_owned())
            });
            serve::serve(port, name.trim_end())?;
            true
        }
        Command::Check {
            targets,
            protocols,
            timeout_ms,
        } => {
            let outcomes = check::check(&targets, &protocols, Duration::from_millis(timeout_ms));
            println!("{}", serde_json::to_string(&outcomes)?);
            outcomes.iter().all(Outcome::is_reached)
        }
        Command::Mtu {
            target,
            bytes,
            timeout_ms,
        } => {
            let fate = mtu::send(target, bytes, Duration::from_millis(timeout_ms));
            println!("{}", serde_json::to_string(&fate)?);
            fate == Fate::Arrived
        }
        Command::Stream { target, udp_hz, stop } => {
            let report = stream::run(target, udp_hz, &stop, || println!("started"))?;
            println!("{}", serde_json::to_string(&report)?);
            report.tcp_error.is_none()
        }
    };
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
