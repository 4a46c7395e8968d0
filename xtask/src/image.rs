//! `cargo xtask image`: the demo's container image, made of the project's own programs.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::{test, workspace};

/// Arguments of `cargo xtask image`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where the OCI archive is written.
    #[arg(long, default_value = "target/weft-demo.tar")]
    output: PathBuf,
}

/// Builds the archive.
pub(crate) fn run(args: &Args) -> Result<()> {
    workspace::step("image: weft-probe as an OCI archive");
    test::build_probe(test::Compiler::Rustc, "debug")?;
    workspace::run(workspace::cargo().args(["build", "--package", "weft-tests", "--bin", "weft-demo"]))?;
    let dir = workspace::bin_dir("debug");
    workspace::run(
        Command::new(dir.join("weft-demo"))
            .arg("--write-image")
            .arg(&args.output)
            .env("WEFT_BIN_DIR", &dir)
            .current_dir(workspace::root()),
    )
    .context("write the image")
}
