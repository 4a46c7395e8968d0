//! `weft-bench`: what `cargo xtask bench` becomes once everything is built.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::builder::PossibleValuesParser;
use clap::{Parser, Subcommand, ValueEnum};
use weft_lab::bench::case::Case;
use weft_lab::bench::load::Measure;
use weft_lab::bench::report::{Row, table};
use weft_lab::bench::{attach, cni, control, net};
use weft_lab::node::Encap;

#[derive(Parser)]
#[command(name = "weft-bench", about = "Measures Weft beside its peers; needs root")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Throughput, packets, round trips and connections: Weft, the node itself, flannel-style, veth, Debian's plugins
    Net(NetArgs),
    /// Attaching and detaching: Weft and Debian's bridge and ptp plugins
    Cni(CniArgs),
    /// The control plane at scale: pods a second, API load, watch delay, memory, start-up; figures of Kubernetes are recorded
    Control(ControlArgs),
    /// The part of `cni` that runs on a node
    #[command(hide = true)]
    AttachLoop,
}

#[derive(clap::Args)]
struct Common {
    /// A table for people, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How many rounds; what is reported are medians over them
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Only cases whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// Measures the peers alone
    #[arg(long)]
    without_weft: bool,
    /// The seed of the order; another one each time if it is not given
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(clap::Args)]
struct NetArgs {
    #[command(flatten)]
    common: Common,
    /// The length of one sample in seconds
    #[arg(long, default_value_t = 0.5)]
    secs: f64,
    /// Who encapsulates: what the agent's self-test chooses, the programs, or the kernel's device
    #[arg(long, value_enum, default_value_t = EncapArg::Auto)]
    encap: EncapArg,
    /// Measures another build of Weft beside this one; the directory holds its `weft`
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Only these peers
    #[arg(long, value_delimiter = ',', value_parser = PossibleValuesParser::new(net::PEERS))]
    peers: Vec<String>,
    /// Leaves the traffic's ends in the ordinary scheduling class
    #[arg(long)]
    no_real_time: bool,
}

#[derive(clap::Args)]
struct CniArgs {
    #[command(flatten)]
    common: Common,
    /// Attachments one after the other in a round
    #[arg(long, default_value_t = 10)]
    sequential: usize,
    /// Attachments at once
    #[arg(long, default_value_t = 20)]
    parallel: usize,
}

#[derive(clap::Args)]
struct ControlArgs {
    /// A table for people, or one JSON object a line
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// How many rounds; what is reported are medians over them
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only cases whose names contain one of these
    #[arg(long, value_delimiter = ',')]
    cases: Vec<String>,
    /// The length of one sample of load in seconds
    #[arg(long, default_value_t = 3.0)]
    secs: f64,
    /// Nodes of the full cluster
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Pods of the full cluster
    #[arg(long, default_value_t = 30_000)]
    pods: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum EncapArg {
    Auto,
    Direct,
    Device,
}

fn main() -> ExitCode {
    match run(Args::parse().bench) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn run(bench: Bench) -> Result<()> {
    match bench {
        Bench::AttachLoop => attach::main(),
        Bench::Net(args) => {
            let options = net::Options {
                cases: Case::select(&args.common.cases),
                rounds: args.common.rounds,
                measure: Measure {
                    secs: args.secs,
                    real_time: !args.no_real_time,
                },
                encap: match args.encap {
                    EncapArg::Auto => Encap::Auto,
                    EncapArg::Direct => Encap::Direct,
                    EncapArg::Device => Encap::Device,
                },
                with_weft: !args.common.without_weft,
                other_build: args.against.clone(),
                peers: args.peers.clone(),
                seed: seed(&args.common),
            };
            anyhow::ensure!(
                !options.cases.is_empty(),
                "no case is named so; the cases are {}",
                names()
            );
            let rows = net::run(&options, progress)?;
            print("net", &rows, &net::PEERS, args.common.output);
            Ok(())
        }
        Bench::Cni(args) => {
            let options = cni::Options {
                rounds: args.common.rounds,
                sequential: args.sequential,
                parallel: args.parallel,
                filters: args.common.cases.clone(),
                with_weft: !args.common.without_weft,
                seed: seed(&args.common),
            };
            let rows = cni::run(&options, progress)?;
            print("cni", &rows, &cni::PEERS, args.common.output);
            Ok(())
        }
        Bench::Control(args) => {
            let options = control::Options {
                rounds: args.rounds,
                filters: args.cases,
                length: Duration::from_secs_f64(args.secs),
                nodes: args.nodes,
                pods: args.pods,
            };
            let rows = control::run(&options, progress)?;
            print("control", &rows, &control::PEERS, args.output);
            Ok(())
        }
    }
}

fn names() -> String {
    Case::all()
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Progress goes to stderr, so that stdout holds the report alone.
fn progress(text: &str) {
    eprintln!("    {text}");
}

fn seed(common: &Common) -> u64 {
    let seed = common.seed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| u64::from(now.subsec_nanos()))
    });
    progress(&format!("seed {seed}"));
    seed
}

fn print(bench: &str, rows: &[Row], peers: &[&str], output: Output) {
    match output {
        Output::Json => rows.iter().for_each(|row| println!("{}", row.json(bench))),
        Output::Table => {
            println!("Medians ± half the distance of the quartiles; under them Weft's median by the peer's.");
            print!("{}", table(rows, peers));
        }
    }
}
