//! `cargo xtask demo`: builds what the demo runs, then becomes it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{setup, test, toolchain, workspace};

/// Arguments of `cargo xtask demo`; all of them go to the demo itself.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Arguments for `weft-demo`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    demo: Vec<String>,
}

/// Builds and runs the demo.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !workspace::is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    toolchain::run()?;
    setup::run(setup::DEMO)?;
    test::build("debug")?;
    workspace::step("demo");
    let dir = workspace::bin_dir("debug");
    let error = Command::new(dir.join("weft-demo"))
        .args(&args.demo)
        .env("WEFT_BIN_DIR", &dir)
        .current_dir(workspace::root())
        .exec();
    Err(error).context("run weft-demo")
}
