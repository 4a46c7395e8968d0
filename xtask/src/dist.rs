//! `cargo xtask dist`: the release programs and their sizes.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{toolchain, workspace};

/// The promise of how much a node's program may weigh.
const WEFT_LIMIT_MB: f64 = 25.0;

/// Builds `weft` and a static `weft-cni` into `target/dist`.
pub(crate) fn run() -> Result<()> {
    toolchain::run()?;
    workspace::step("building the release programs");
    workspace::run(workspace::cargo().args([
        "build",
        "--release",
        "--package",
        "weft-agent",
        "--bin",
        "weft",
    ]))?;
    workspace::run(workspace::cargo().args([
        "rustc",
        "--release",
        "--package",
        "weft-cni",
        "--bin",
        "weft-cni",
        "--",
        "-C",
        "target-feature=+crt-static",
    ]))?;
    let from = workspace::bin_dir("release");
    let to = workspace::bin_dir("dist");
    fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    workspace::step(format!("programs in {}", to.display()));
    for name in ["weft", "weft-cni"] {
        fs::copy(from.join(name), to.join(name)).with_context(|| format!("copy {name}"))?;
        #[expect(clippy::cast_precision_loss, reason = "a size for people")]
        let megabytes = fs::metadata(to.join(name))?.len() as f64 / 1e6;
        workspace::note(format!("{name:<10} {megabytes:>6.1} MB"));
        if name == "weft" && megabytes > WEFT_LIMIT_MB {
            bail!("weft is larger than {WEFT_LIMIT_MB} MB");
        }
    }
    Ok(())
}
