//! Compiles the BPF programs and leaves the object in `OUT_DIR`, where `datapath/programs.rs` embeds it.
//!
//! A BPF crate needs a compiler that a plain Rust installation lacks. Tried in order:
//!
//! 1. the prefix in `WEFT_EBPF_TOOLCHAIN` or `EBPF_TOOLCHAIN`, then `~/.cache/weft/ebpf-toolchain` and
//!    `~/.cache/ebpf-toolchain`: their `bin/cargo-ebpf` is a cargo with everything set;
//! 2. a rustup nightly with `rust-src`, and `bpf-linker` on the `PATH`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    if let Err(message) = build() {
        // One line: cargo shows what a build script writes to stderr only when it fails.
        eprintln!("error: {message}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(variable("OUT_DIR")?);
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR")?).join("..");
    for path in [
        "ebpf/src",
        "ebpf/Cargo.toml",
        "ebpf/common/src",
        "ebpf/common/Cargo.toml",
        "Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    for name in ["WEFT_EBPF_TOOLCHAIN", "EBPF_TOOLCHAIN", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }

    let mut cargo = find_cargo()?;
    // The outer cargo holds the lock of its own target directory for as long as this script runs, so this build has
    // its own. Intermediate files are shared between packages' OUT_DIRs, results are not.
    let target = out.join("ebpf-target");
    let intermediate = out.ancestors().nth(4).unwrap_or(&out).join("ebpf-build");
    let status = cargo
        .args([
            "build",
            "--package",
            "weft-ebpf",
            "--bin",
            "weft-ebpf",
            "--profile",
            "bpf",
            "--target",
            TARGET,
        ])
        .current_dir(root.join("ebpf"))
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_BUILD_BUILD_DIR", &intermediate)
        // That of the outer build is of another compiler.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .status()
        .map_err(|e| format!("{}: {e}", cargo.get_program().display()))?;
    if !status.success() {
        return Err("the BPF programs do not build; the compiler's messages are above".to_owned());
    }
    let object = target.join(TARGET).join("bpf/weft-ebpf");
    fs::copy(&object, out.join("weft-ebpf")).map_err(|e| format!("copy {}: {e}", object.display()))?;
    Ok(())
}

/// A cargo for the BPF target.
fn find_cargo() -> Result<Command, String> {
    if let Some(wrapper) = prefixes()
        .into_iter()
        .map(|p| p.join("bin/cargo-ebpf"))
        .find(|w| w.exists())
    {
        println!("cargo::rerun-if-changed={}", wrapper.display());
        return Ok(Command::new(wrapper));
    }
    if let Some(sysroot) = nightly_sysroot()
        && sysroot.join("lib/rustlib/src/rust/library/core").exists()
        && on_path("bpf-linker")
    {
        return Ok(nightly_cargo());
    }
    Err("no compiler for BPF programs was found: run `cargo xtask toolchain` once, it sets one up".to_owned())
}

fn prefixes() -> Vec<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    ["WEFT_EBPF_TOOLCHAIN", "EBPF_TOOLCHAIN"]
        .into_iter()
        .filter_map(env::var_os)
        .map(PathBuf::from)
        .chain(
            cache
                .iter()
                .flat_map(|c| [c.join("weft/ebpf-toolchain"), c.join("ebpf-toolchain")]),
        )
        .collect()
}

fn nightly_sysroot() -> Option<PathBuf> {
    let output = Command::new("rustup")
        .args(["run", "nightly", "rustc", "--print", "sysroot"])
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

fn nightly_cargo() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "RUSTDOC", "CARGO"] {
        cargo.env_remove(name);
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let flags = [
        format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2".to_owned(),
        "-Clinker=bpf-linker".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    cargo
}

fn on_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|e| format!("{name}: {e}"))
}
