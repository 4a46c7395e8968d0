//! `weft-demo`: a three-node cluster on this machine, shown and taken down again.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Result;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use weft_lab::{Lab, demo};

#[derive(Parser)]
#[command(about = "Brings up a three-node Weft cluster on this machine, shows that it works, and cleans up")]
struct Cli {
    /// Only writes the demo's container image to this file.
    #[arg(long)]
    write_image: Option<PathBuf>,
    /// Stops when the pods are ready and waits for Ctrl-C, to look around.
    #[arg(long)]
    hold: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nthe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if let Some(path) = &cli.write_image {
        return demo::write_image(path);
    }
    // Blocked before any thread starts, so that only the thread below takes them.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let lab = Lab::new("demo")?;
    let ended = lab.clone();
    let is_interrupted = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::clone(&is_interrupted);
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            interrupted.store(true, Ordering::SeqCst);
            eprintln!("\n{signal}: cleaning up");
            ended.teardown();
            std::process::exit(128 + signal as i32);
        }
    });
    let outcome = demo::run(lab.clone(), cli.hold);
    if outcome.is_err() && lab.is_ended() && is_interrupted.load(Ordering::SeqCst) {
        loop {
            thread::park(); // the thread above ends the process when it has cleaned up
        }
    }
    outcome
}
