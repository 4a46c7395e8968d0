//! The workspace: where it is, and running commands in it with visible progress.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context as _, Result, bail};

/// A command that prints nothing says that it still runs this often.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Cargo, as it started us, in the workspace's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // What the outer cargo says about xtask would make build scripts that look at it run again each time.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&key);
        }
    }
    // What is kept for a second build costs time and space, and there is none.
    if env::var_os("CI").is_some() && env::var_os("CARGO_INCREMENTAL").is_none() {
        command.env("CARGO_INCREMENTAL", "0");
    }
    command
}

/// Where final programs of a profile (`debug`, `release`) are put. One directory for all that xtask builds.
pub(crate) fn bin_dir(profile: &str) -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join(profile)
}

/// Says which step begins.
pub(crate) fn step(text: impl AsRef<str>) {
    eprintln!("==> {}", text.as_ref());
}

/// Says something about the step that runs.
pub(crate) fn note(text: impl AsRef<str>) {
    eprintln!("    {}", text.as_ref());
}

/// Runs a command which shows its own progress.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let status = command.status().with_context(|| format!("run {name}"))?;
    check(&name, status)
}

/// Runs a command which may be silent for long: says that it still runs, and shows what it printed only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let name = describe(command);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {name}"))?;
    let (status, said) = wait_with_heartbeat(child, &name)?;
    if !status.success() {
        eprint!("{said}");
    }
    check(&name, status)
}

/// What a command prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let name = describe(command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("run {name}"))?;
    check(&name, output.status)?;
    String::from_utf8(output.stdout).with_context(|| format!("{name} printed something other than UTF-8"))
}

/// Whether a program is on the PATH (or where the system's administrator keeps such).
pub(crate) fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|dir| dir.join(name).is_file())
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|uid| uid.trim() == "0")
}

fn wait_with_heartbeat(mut child: Child, name: &str) -> Result<(ExitStatus, String)> {
    let readers = [
        child.stdout.take().map(read_all),
        child.stderr.take().map(read_all),
    ];
    let start = Instant::now();
    let mut next = HEARTBEAT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() >= next {
            note(format!("{name}: {} s", start.elapsed().as_secs()));
            next += HEARTBEAT;
        }
        thread::sleep(Duration::from_millis(50));
    };
    let said = readers
        .into_iter()
        .flatten()
        .filter_map(|reader| reader.join().ok())
        .collect();
    Ok((status, said))
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = from.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program());
    let args = command.get_args().map(OsStr::to_string_lossy).take(6);
    let mut words = vec![program.to_string_lossy().into_owned()];
    words.extend(
        args.map(std::borrow::Cow::into_owned)
            .filter(|arg| arg.len() < 60),
    );
    words.join(" ")
}

fn check(name: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("{name}: {status}");
    }
    Ok(())
}
