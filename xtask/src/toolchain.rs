//! `cargo xtask toolchain`: what compiles BPF programs.
//!
//! A rustup nightly with `rust-src` and a `bpf-linker` on the PATH are used as they are. Where they are missing, Debian's
//! packaged compiler for the BPF targets is unpacked under a private prefix; `agent/build.rs` looks in both places.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::setup;
use crate::workspace::{has_program, note, step};

/// The version of bpf-linker that is built where none is on the PATH.
const BPF_LINKER: &str = "0.13.0";

const DEBIAN: &str = include_str!("toolchain/debian.sh");

/// Sets the toolchain up; does nothing if it is there.
pub(crate) fn run() -> Result<()> {
    setup::run(setup::BUILD)?;
    step("toolchain: the compiler for BPF programs");
    if nightly_with_source() && has_program("bpf-linker") {
        note("ready: rustup's nightly with rust-src, and bpf-linker on the PATH");
        return Ok(());
    }
    crate::workspace::run(
        Command::new("bash")
            .arg("-c")
            .arg(DEBIAN)
            .arg("toolchain")
            .arg(prefix()?)
            .arg(BPF_LINKER),
    )
    .context("set up the BPF toolchain from Debian's packages")
}

/// Where the toolchain of Debian's packages is put. `agent/build.rs` computes the same.
pub(crate) fn prefix() -> Result<PathBuf> {
    if let Some(prefix) = env::var_os("WEFT_EBPF_TOOLCHAIN") {
        return Ok(PathBuf::from(prefix));
    }
    let cache = match env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(cache.join("weft/ebpf-toolchain"))
}

/// Whether `cargo +nightly build -Z build-std` would find its sources.
fn nightly_with_source() -> bool {
    let mut command = Command::new("rustc");
    command
        .args(["+nightly", "--print", "sysroot"])
        .env_remove("RUSTUP_TOOLCHAIN")
        .stderr(Stdio::null());
    // `rustc` on the PATH may be the one of a toolchain, which takes no `+nightly`.
    let Ok(output) = command.output() else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success()
        && sysroot
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
}
