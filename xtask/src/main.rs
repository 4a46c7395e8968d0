//! The project's own commands: `cargo xtask <command>`.

mod api_facts;
mod bench;
mod ci;
mod demo;
mod dist;
mod image;
mod setup;
mod test;
mod tidy;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Weft's project commands",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Brings up a three-node cluster on this machine, shows that it works, and cleans up.
    Demo(demo::Args),
    /// Runs every check and test; the last line says how many passed and failed.
    Test(test::Args),
    /// Runs the benchmarks (`net`, `cni`, `control`) beside what people use today.
    Bench(bench::Args),
    /// Sets up what compiles BPF programs, where it is missing.
    Toolchain,
    /// Installs the Debian packages which the demo, the tests and the benchmarks need, where they are missing.
    Setup,
    /// Checks the house rules that no other tool checks.
    Tidy,
    /// Runs what the continuous integration runs: tests, and documentation with warnings denied.
    Ci,
    /// Builds the release programs and reports their sizes.
    Dist,
    /// Builds the demo's container image as an OCI archive.
    Image(image::Args),
    /// Derives the table of facts about the Kubernetes API types from Debian's Go packages.
    ApiFacts(api_facts::Args),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Toolchain => toolchain::run(),
        Command::Setup => setup::run(setup::ALL),
        Command::Tidy => tidy::run(),
        Command::Ci => ci::run(),
        Command::Dist => dist::run(),
        Command::Image(args) => image::run(&args),
        Command::ApiFacts(args) => api_facts::run(&args),
    }
}
