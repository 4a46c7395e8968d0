//! The `weft` command.

#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, Result, anyhow};
use clap::Parser as _;
use tikv_jemalloc_ctl::{Access as _, AsName, background_thread};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use weft_agent::{
    agent,
    cli::{Cli, Command, Output},
    config::Config,
    image, install, ipam_check, shim, status, telemetry,
};

/// Objects come and go as trees of small parts on several threads: with the C library's allocator a quarter of the
/// control plane's time went into it. How it is set up stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    // A shim must be single-threaded and has its own log.
    if let Command::PodShim(args) = cli.command {
        return finish(shim::main(args).map_err(Into::into));
    }
    telemetry::init(&cli.log, cli.log_format);
    finish(run(cli.command))
}

/// What a write of the control plane frees the next one needs again, and to fetch it from the kernel anew cost it a fifth
/// of its throughput. A thread of the allocator gives back what nobody has asked for within the second. Called before other
/// threads start: they get their arenas, which take the setting over, from then on.
fn keep_freed_memory_for_a_second() -> Result<()> {
    const SECOND_MS: isize = 1_000;
    let [first, later] = ["arena.0.dirty_decay_ms\0", "arenas.dirty_decay_ms\0"].map(AsName::name);
    first
        .write(SECOND_MS)
        .and_then(|()| later.write(SECOND_MS))
        .and_then(|()| background_thread::write(true))
        .map_err(|error| anyhow!("cannot set up the allocator: {error}"))
}

fn finish(outcome: Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "weft: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match command {
        Command::Agent(args) => {
            let config = Config::try_from(*args)?;
            tracing::info!(?config, "starting");
            serve(|shutdown| async move { Ok(agent::run(config, shutdown).await?) })?;
        }
        Command::Controller(args) => {
            let mode = args.validate()?;
            tracing::info!(?mode, "starting");
            keep_freed_memory_for_a_second()?;
            serve(|shutdown| async move { Ok(weft_controller::start(mode, shutdown).await?) })?;
        }
        Command::Token(args) => {
            serve(|_| async move { Ok(weft_controller::token::run(args, &mut out).await?) })?;
        }
        Command::Status(args) => {
            let status = status::fetch(&args.socket)?;
            match args.output {
                Output::Text => write!(out, "{status}")?,
                Output::Json => writeln!(out, "{}", serde_json::to_string_pretty(&status)?)?,
            }
        }
        Command::Ipam(args) => writeln!(out, "{}", ipam_check::run(args)?)?,
        Command::Image(args) => image::cli(args)?,
        Command::Install(args) => {
            for line in install::install(&args)? {
                writeln!(out, "{line}")?;
            }
        }
        Command::Uninstall(args) => {
            for line in install::uninstall(&args)? {
                writeln!(out, "{line}")?;
            }
        }
        Command::PodShim(args) => shim::main(args)?,
    }
    Ok(())
}

/// After how many steps of tasks a worker looks at its sockets, however much is left to do: while hundreds of watchers are
/// told of a change, those who write are not to wait for the last of them.
const EVENT_INTERVAL: u32 = 16;

/// Runs a service until it ends or a signal asks it to.
fn serve<F: Future<Output = Result<()>>>(service: impl FnOnce(CancellationToken) -> F) -> Result<()> {
    // Two workers are plenty: kernel work has its own threads, and memory counts on a small node.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .event_interval(EVENT_INTERVAL)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("no async runtime")?;
    let outcome = runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stop.cancel();
        });
        service(shutdown).await
    });
    // A blocking thread that hangs in the kernel must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
