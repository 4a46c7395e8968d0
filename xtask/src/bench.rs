//! `cargo xtask bench`: builds release programs, then becomes the benchmarks.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{setup, test, toolchain, workspace};

/// Arguments of `cargo xtask bench`; all of them go to the benchmarks themselves.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments for `weft-bench`: `net`, `cni` or `control`, then its options.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    bench: Vec<String>,
}

/// Builds and runs the benchmarks.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !workspace::is_root() {
        bail!("the benchmarks make network namespaces and load BPF programs: run them as root");
    }
    toolchain::run()?;
    setup::run(setup::BENCH)?;
    test::build("release")?;
    // As it is shipped: a third of a short life would go into dynamic linking.
    test::build_static(test::Compiler::Rustc, "release", "weft-cni", "weft-cni")?;
    workspace::step("bench");
    let dir = workspace::bin_dir("release");
    let error = Command::new(dir.join("weft-bench"))
        .args(&args.bench)
        .env("WEFT_BIN_DIR", &dir)
        .current_dir(workspace::root())
        .exec();
    Err(error).context("run weft-bench")
}
