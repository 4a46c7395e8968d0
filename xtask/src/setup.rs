//! `cargo xtask setup`: the Debian packages that the demo, the tests and the benchmarks run.

use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{bin_dir, has_program, is_root, note, run_quietly, step};

/// A program that must be there, and the Debian package that has it.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
    /// What it is for, said when it is installed.
    purpose: &'static str,
    /// Whether its user goes on without it.
    optional: bool,
}

const fn need(program: &'static str, package: &'static str, purpose: &'static str) -> Need {
    Need {
        program,
        package,
        purpose,
        optional: false,
    }
}

/// What every lab needs, the demo's included.
const LAB: &[Need] = &[
    need("ip", "iproute2", "the lab makes and observes devices with it"),
    need("tc", "iproute2", "the lab observes filters with it"),
    need("nsenter", "util-linux", "the lab enters namespaces with it"),
    need("flock", "util-linux", "the lab's supervisor uses it"),
    need("hostname", "hostname", "the lab names its machines with it"),
    need("find", "findutils", "the lab's supervisor uses it"),
    Need {
        program: "kubectl",
        package: "kubernetes-client",
        purpose: "the demo applies its YAML with it",
        optional: true,
    },
];

/// What building needs beside Rust.
pub(crate) const BUILD: &[&[Need]] = &[COMPILE];

const COMPILE: &[Need] = &[need("make", "make", "the allocator is built with it")];

/// What the demo needs.
pub(crate) const DEMO: &[&[Need]] = &[LAB];

/// What the suites need.
pub(crate) const TEST: &[&[Need]] = &[LAB, RUNTIME, PYTHON];

/// The Python client, and what fetches it.
const PYTHON: &[Need] = &[
    need("python3", "python3", "the tests drive the API with its client"),
    need("pip", "python3-pip", "the Python client is fetched with it"),
];

/// A real runtime that calls the plugin.
const RUNTIME: &[Need] = &[
    need("containerd", "containerd", "the tests let it call the plugin"),
    need("runc", "runc", "containerd runs containers with it"),
];

/// What the benchmarks compare with.
const PEERS: &[Need] = &[
    need(
        "/usr/lib/cni/bridge",
        "containernetworking-plugins",
        "the benchmarks run beside its plugins",
    ),
    need(
        "iptables-nft-restore",
        "iptables",
        "the benchmarks give a peer kube-proxy's base rules with it",
    ),
];

/// What the benchmarks need.
pub(crate) const BENCH: &[&[Need]] = &[LAB, PEERS];

/// Everything that any command needs.
pub(crate) const ALL: &[&[Need]] = &[COMPILE, LAB, RUNTIME, PYTHON, PEERS];

/// Installs what is missing of `needs`.
pub(crate) fn run(needs: &[&[Need]]) -> Result<()> {
    step("setup: programs of the system");
    let missing: Vec<Need> = needs
        .iter()
        .copied()
        .flatten()
        .copied()
        .filter(|need| !is_there(need))
        .collect();
    if missing.is_empty() {
        note("ready: all are installed");
        return Ok(());
    }
    if !has_program("apt-get") {
        let names: Vec<&str> = missing.iter().map(|need| need.program).collect();
        bail!("missing and not to be had by apt-get: {}", names.join(", "));
    }
    if !is_root() {
        let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
        bail!("missing: run `apt-get install {}` as root", names.join(" "));
    }
    let mut updated = false;
    for need in missing {
        if is_there(&need) {
            continue; // it came with another one
        }
        note(format!("installing {} ({})", need.package, need.purpose));
        if let Err(error) = install(need.package, &mut updated) {
            if !need.optional {
                return Err(error);
            }
            note(format!(
                "{} cannot be installed, going on without it: {error}",
                need.package
            ));
        }
    }
    Ok(())
}

/// Puts a server that the tests start themselves beside their programs. It is taken out of its Debian package and not
/// installed: the package would start it as a service.
pub(crate) fn unpack_etcd() -> Result<()> {
    let directory = bin_dir("debug");
    if directory.join("etcd").exists() {
        return Ok(());
    }
    note("unpacking etcd of the package etcd-server (the tests run the control plane over it)");
    let staging = directory.join("etcd.staging");
    std::fs::create_dir_all(&staging).context("make a directory for the package")?;
    let download = || {
        run_quietly(
            Command::new("apt-get")
                .args(["-qq", "-o", "APT::Sandbox::User=root", "download", "etcd-server"])
                .current_dir(&staging),
        )
    };
    if download().is_err() {
        run_quietly(Command::new("apt-get").args(["-qq", "update"]))?;
        download()?;
    }
    let script = "dpkg-deb --extract etcd-server_*.deb . && mv usr/bin/etcd ../etcd";
    run_quietly(Command::new("sh").args(["-ec", script]).current_dir(&staging))?;
    std::fs::remove_dir_all(&staging).context("remove the package")
}

/// The version of the Python client that fits the API version served.
const PYTHON_CLIENT: &str = "kubernetes==33.1.0";

/// Puts the Python client that the tests run beside their programs, where nothing else finds it.
pub(crate) fn unpack_python_client() -> Result<()> {
    let directory = bin_dir("debug").join("python");
    if directory.exists() {
        return Ok(());
    }
    note(format!(
        "unpacking the Python package {PYTHON_CLIENT} (the tests drive the API with it)"
    ));
    let staging = directory.with_extension("staging");
    let _ = std::fs::remove_dir_all(&staging);
    run_quietly(
        Command::new("python3")
            .args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--target",
            ])
            .arg(&staging)
            .arg(PYTHON_CLIENT),
    )?;
    std::fs::rename(&staging, &directory).context("put the Python client in place")
}

fn is_there(need: &Need) -> bool {
    match need.program.strip_prefix('/') {
        Some(_) => std::path::Path::new(need.program).exists(),
        None => has_program(need.program),
    }
}

fn install(package: &str, updated: &mut bool) -> Result<()> {
    if !*updated {
        run_quietly(Command::new("apt-get").args(["-qq", "update"]))?;
        *updated = true;
    }
    run_quietly(
        Command::new("apt-get")
            .args(["-qq", "install", "-y", "--no-install-recommends", package])
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}
