//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The path of one of the workspace's binaries: `weft`, `weft-cni`, `weft-probe`, …
///
/// They are looked for in `$WEFT_BIN_DIR`, else beside the running program (and above it, since cargo puts tests into `deps`).
/// `weft-probe` is preferred in its static form, `weft-probe-static`, since it runs inside containers as well.
///
/// # Errors
/// If it has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    find_first_in(None, name)
}

/// The same, with a directory that is looked into before all others: that of another build.
///
/// # Errors
/// As [`find`].
pub fn find_first_in(first: Option<&Path>, name: &str) -> Result<PathBuf> {
    let mut dirs: Vec<PathBuf> = first.map(PathBuf::from).into_iter().collect();
    if let Some(dir) = env::var_os("WEFT_BIN_DIR") {
        dirs.push(PathBuf::from(dir));
    }
    let this = env::current_exe().context("the running program's path")?;
    dirs.extend(this.ancestors().skip(1).take(2).map(PathBuf::from));
    // A test may run from a build directory apart from the one that final programs are put into.
    if let Some(target) = option_env!("CARGO_TARGET_DIR") {
        dirs.push(PathBuf::from(target).join("debug"));
    }
    dirs.push(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/debug"));
    for dir in &dirs {
        for candidate in [format!("{name}-static"), name.to_owned()] {
            let path = dir.join(candidate);
            if path.is_file() {
                return path
                    .canonicalize()
                    .with_context(|| format!("resolve {}", path.display()));
            }
        }
    }
    bail!("{name} is not built (looked in {dirs:?}): run `cargo build --workspace --exclude weft-ebpf` first")
}
