//! `cargo xtask test`: every check and test, on the rung where it belongs.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::workspace::{self, cargo, note, step};
use crate::{setup, tidy, toolchain};

/// The members that are compiled for this machine; `ebpf` is compiled for BPF by `agent/build.rs`.
const MEMBERS: &[&str] = &["--workspace", "--exclude", "weft-ebpf"];

/// The features with which programs and tests have the same dependencies: else all would be compiled twice.
const SHARED: &[&str] = &["--features", "weft-tests/virtual-time"];

/// What is computed for long in a long run, and the profile that makes it end in time.
const OPTIMISED: &[&str] = &["--package", "weft-controller", "--tests", "--profile", "long"];

/// One test program may take this long; what hangs is a failure, not an endless run.
const LIMIT: Duration = Duration::from_mins(12);
const LONG_LIMIT: Duration = Duration::from_mins(90);

/// Arguments of `cargo xtask test`.
#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Runs the tests marked long as well.
    #[arg(long)]
    long: bool,
    /// Leaves out formatting, clippy and tidy.
    #[arg(long)]
    no_lint: bool,
    /// Parts of names: of test programs (`cluster`, `netns_attach`), which then run whole, or else of tests.
    filters: Vec<String>,
}

/// What compiles the workspace's own crates.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compiler {
    Rustc,
    /// The compiler with clippy's lints in it, every warning denied. `cargo clippy` would only check: dependencies and crates
    /// would be read twice, and that is a quarter of a first run.
    Clippy,
}

impl Compiler {
    fn cargo(self) -> Command {
        let mut command = cargo();
        if self == Self::Clippy {
            command.env("RUSTC_WORKSPACE_WRAPPER", "clippy-driver");
            // The one argument, in the way in which `cargo clippy` hands over its own.
            command.env("CLIPPY_ARGS", "--deny=warnings");
        }
        command
    }

    fn describes(self, step: &str) -> String {
        match self {
            Self::Rustc => step.to_owned(),
            Self::Clippy => format!("{step}; clippy, with warnings denied"),
        }
    }
}

/// How many tests of a program ended how.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
    ignored: u32,
    failures: Vec<String>,
}

/// A test program that cargo has built.
struct Program {
    package: String,
    target: String,
    path: PathBuf,
    is_unit: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    step("checking that this machine can run every rung");
    check_machine()?;
    toolchain::run()?;
    setup::run(setup::TEST)?;
    setup::unpack_etcd()?;
    setup::unpack_python_client()?;
    let mut tally = Tally::default();
    let lints = !args.no_lint && args.filters.is_empty();
    if lints {
        lint(&mut tally);
    }
    let compiler = if lints { Compiler::Clippy } else { Compiler::Rustc };
    step(compiler.describes("building the programs and the tests"));
    let mut programs = build_tests(compiler, &[MEMBERS, &["--bins", "--tests"], SHARED].concat())?;
    build_probe(compiler, "debug")?;
    if args.long {
        step("building those again, optimised, that compute for long");
        programs.extend(build_tests(Compiler::Rustc, OPTIMISED)?);
    }
    let programs: Vec<Program> = programs.into_values().collect();

    let is_program = |filter: &&String| {
        programs
            .iter()
            .any(|program| program.target.contains(filter.as_str()))
    };
    let (wanted, names): (Vec<&String>, Vec<&String>) = args.filters.iter().partition(is_program);
    for program in &programs {
        if wanted
            .iter()
            .any(|filter| program.target.contains(filter.as_str()))
            || args.filters.is_empty()
        {
            run_program(program, args.long, &[], &mut tally)?;
        } else if !names.is_empty() {
            run_program(program, args.long, &names, &mut tally)?;
        }
    }
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    if !tally.failures.is_empty() {
        step("failed:");
        for failure in &tally.failures {
            note(failure);
        }
    }
    if tally.ignored > 0 {
        note(format!(
            "{} long tests were left out; `cargo xtask test --long` runs them",
            tally.ignored
        ));
    }
    note(format!("{minutes:.1} minutes"));
    println!("{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed > 0 || tally.passed == 0 {
        std::process::exit(1);
    }
    Ok(())
}

/// Builds the programs that the tests, the demo and the benchmarks start.
pub(crate) fn build(profile: &str) -> Result<()> {
    step(format!("building the programs ({profile})"));
    let mut command = cargo();
    command.arg("build").args(MEMBERS).arg("--bins");
    command.args(flags(profile));
    workspace::run(&mut command)?;
    build_probe(Compiler::Rustc, profile)
}

fn flags(profile: &str) -> &'static [&'static str] {
    match profile {
        "release" => &["--release"],
        _ => SHARED,
    }
}

/// Builds `weft-probe` statically, to run in containers and pods, beside the others as `weft-probe-static`.
pub(crate) fn build_probe(compiler: Compiler, profile: &str) -> Result<()> {
    build_static(compiler, profile, "weft-tests", "weft-probe")
}

/// Builds a program statically, beside the others as `<name>-static`.
pub(crate) fn build_static(compiler: Compiler, profile: &str, package: &str, name: &str) -> Result<()> {
    let mut command = compiler.cargo();
    command.args(["rustc", "--package", package, "--bin", name]);
    command.args(flags(profile));
    workspace::run(command.args(["--", "-C", "target-feature=+crt-static"]))?;
    let dir = workspace::bin_dir(profile);
    // A later build links the program dynamically again; the copy keeps.
    let copy = dir.join(format!("{name}-static.new"));
    fs::copy(dir.join(name), &copy).with_context(|| format!("copy {name}"))?;
    fs::rename(&copy, dir.join(format!("{name}-static")))
        .with_context(|| format!("put {name}-static in place"))
}

/// Refuses to start where tests would have to be skipped.
fn check_machine() -> Result<()> {
    if !workspace::is_root() {
        bail!(
            "the tests make network namespaces and load BPF programs: run them as root (a skipped test is a failed test)"
        );
    }
    let mut missing = Vec::new();
    let mut check = |what: &str, script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "--mount", "--pid", "--fork", "sh", "-ec", script]);
        let passed = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !passed {
            missing.push(what.to_owned());
        }
    };
    check("namespaces: network, mount, pid", "true");
    check("a BPF file system", "mount -t bpf bpf /mnt");
    check(
        "overlayfs",
        "grep -qw overlay /proc/filesystems || modprobe overlay",
    );
    if workspace::has_program("ip") {
        check("veth devices", "ip link add v0 type veth peer name v1");
        check("bridges", "ip link add v0 type bridge");
        check(
            "VXLAN devices that take their metadata from BPF",
            "ip link add v0 type vxlan external dstport 4789",
        );
        check(
            "the clsact qdisc",
            "ip link add v0 type veth peer name v1; tc qdisc add dev v0 clsact",
        );
        check("IPv6", "ip -6 addr add ::2/128 dev lo");
    }
    if !missing.is_empty() {
        bail!(
            "this machine's kernel or privileges lack: {} (a skipped test is a failed test)",
            missing.join("; ")
        );
    }
    note("ready: root, namespaces, BPF, veth, bridge, VXLAN, clsact, overlayfs, IPv6");
    Ok(())
}

/// Formatting and the house rules; each counts as one test.
fn lint(tally: &mut Tally) {
    step("formatting");
    tally.record(
        "cargo fmt --check",
        workspace::run(cargo().args(["fmt", "--all", "--check"])),
    );
    tally.record("cargo xtask tidy", tidy::run());
}

/// In the order in which they run: by rung, package, kind and name.
type Programs = BTreeMap<(usize, String, String, String), Program>;

/// Builds test programs and says where they are.
fn build_tests(compiler: Compiler, which: &[&str]) -> Result<Programs> {
    let mut command = compiler.cargo();
    command
        .arg("build")
        .args(which)
        .args(["--message-format", "json-render-diagnostics"]);
    let text = workspace::output(&mut command)?;
    let mut programs = BTreeMap::new();
    for line in text.lines() {
        let message: Value = serde_json::from_str(line).context("a message of cargo")?;
        let Some(path) = message["executable"].as_str() else {
            continue;
        };
        if message["profile"]["test"] != true {
            continue;
        }
        let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
        let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
        let dir = manifest.parent().context("a manifest has a directory")?;
        let package = dir
            .strip_prefix(workspace::root())
            .unwrap_or(dir)
            .display()
            .to_string();
        let target = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let is_unit = kind != "test";
        let program = Program {
            package,
            target,
            path: PathBuf::from(path),
            is_unit,
        };
        programs.insert(
            (
                rung(&program),
                program.package.clone(),
                kind.to_owned(),
                program.target.clone(),
            ),
            program,
        );
    }
    if programs.is_empty() {
        bail!("cargo built no tests");
    }
    Ok(programs)
}

/// The order in which programs run: what is quick and says most about a fault comes first.
fn rung(program: &Program) -> usize {
    if program.is_unit {
        return 0;
    }
    let rungs = ["datapath", "netns", "cni", "api", "control", "pods", "cluster"];
    1 + rungs
        .iter()
        .position(|rung| program.target.starts_with(rung))
        .unwrap_or(rungs.len())
}

/// How many tests of a program run at once. Those of the last rungs start whole clusters, and measure time.
fn threads(program: &Program) -> usize {
    let cores = thread::available_parallelism().map_or(2, usize::from);
    match rung(program) {
        0 | 1 | 4 | 5 => cores.max(2),
        2 | 3 => cores.clamp(2, 4),
        _ => 1,
    }
}

/// Runs one program, shows its tests as they end, and counts them.
fn run_program(program: &Program, long: bool, names: &[&String], tally: &mut Tally) -> Result<()> {
    let title = format!("{}/{}", program.package, program.target);
    step(&title);
    let mut command = Command::new(&program.path);
    command
        .args(names)
        .arg(format!("--test-threads={}", threads(program)))
        .current_dir(workspace::root().join(&program.package))
        .env("WEFT_BIN_DIR", workspace::bin_dir("debug"))
        .env("CARGO_MANIFEST_DIR", workspace::root().join(&program.package))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    if long {
        command.arg("--include-ignored");
    }
    let logs = workspace::bin_dir("lab-logs");
    command.env("WEFT_LAB_LOGS", logs);
    let mut child = command
        .spawn()
        .with_context(|| format!("run {}", program.path.display()))?;
    let output = child.stdout.take().context("its output is a pipe")?;
    let (send, lines) = mpsc::channel();
    let reader = thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });

    let limit = if long { LONG_LIMIT } else { LIMIT };
    let start = Instant::now();
    let mut summary = None;
    let mut failed_names = Vec::new();
    let timed_out = loop {
        match lines.recv_timeout(Duration::from_secs(30)) {
            Ok(line) => {
                if let Some(counts) = line.strip_prefix("test result: ") {
                    summary = Some(parse_counts(counts));
                } else if let Some(name) = line
                    .strip_prefix("test ")
                    .and_then(|rest| rest.strip_suffix(" ... FAILED"))
                {
                    failed_names.push(name.to_owned());
                }
                let is_routine = line.is_empty() || (program.is_unit && line.ends_with("... ok"));
                if !is_routine {
                    eprintln!("    {line}");
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => note(format!("{title}: {} s", start.elapsed().as_secs())),
            Err(mpsc::RecvTimeoutError::Disconnected) => break false,
        }
        if start.elapsed() > limit {
            break true;
        }
    };
    if timed_out {
        note(format!(
            "{title} did not end within {} minutes: killed",
            limit.as_secs() / 60
        ));
        child.kill().context("kill it")?;
    }
    let status = child.wait().context("wait for it")?;
    if !timed_out {
        let _ = reader.join();
    }

    let (passed, failed, ignored) = summary.unwrap_or_default();
    tally.passed += passed;
    tally.ignored += ignored;
    tally.failed += failed;
    tally
        .failures
        .extend(failed_names.iter().map(|name| format!("{title}: {name}")));
    if !status.success() && failed == 0 {
        tally.failed += 1;
        tally.failures.push(format!("{title}: {status}"));
    }
    Ok(())
}

/// Reads `ok. 4 passed; 0 failed; 1 ignored; …`.
fn parse_counts(text: &str) -> (u32, u32, u32) {
    let count = |what: &str| {
        text.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
            .unwrap_or(0)
    };
    (count("passed"), count("failed"), count("ignored"))
}

impl Tally {
    fn record(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                note(format!("{error:#}"));
                self.failed += 1;
                self.failures.push(name.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_counts;

    #[test]
    fn counts_are_read_from_the_summary() {
        let line = "FAILED. 12 passed; 3 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s";
        assert_eq!(parse_counts(line), (12, 3, 1));
    }
}
