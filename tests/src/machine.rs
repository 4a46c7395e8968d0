//! A machine of the lab: network, mount, pid and uts namespaces of its own.
//!
//! One process holds them. It is the first of the pid namespace, so the kernel kills every process of the machine when it
//! ends, and it ends when the pipe it reads is closed, which the death of the lab's process does too. Mounts made on the
//! machine (bpffs, overlays, bound namespaces) go with its mount namespace.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::lab::{LAB_ENV, Lab, await_ready};
use crate::process::Process;
use crate::wait::wait_for;

/// Sets the machine up from inside its namespaces. Ignoring SIGCHLD, which `cat` inherits, makes the kernel reap orphans.
/// A fresh sysfs shows the machine's own devices; the cgroup file systems are carried over into it.
const HOLDER: &str = r#"
set -e
trap '' CHLD
mount -t proc proc /proc
mount --rbind /sys/fs/cgroup "$2"
mount -t sysfs sysfs /sys
mount --move "$2" /sys/fs/cgroup
hostname "$1"
ip link set lo up
echo ready
exec cat >/dev/null
"#;

/// A host as a test sees it. Clones are the same machine; it ends with the lab or by [`Machine::power_off`].
#[derive(Clone, Debug)]
pub struct Machine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    lab: Lab,
    name: String,
    dir: PathBuf,
    /// The process that made the namespaces, and the one that holds them.
    outer: u32,
    holder: u32,
}

impl Machine {
    /// Starts a machine with nothing but a loopback device.
    ///
    /// # Errors
    /// If the namespaces cannot be made.
    pub fn new(lab: &Lab, name: &str) -> Result<Self> {
        let dir = lab.root().join(name);
        let carry = dir.join("carry");
        fs::create_dir_all(dir.join("log")).with_context(|| format!("create {}", dir.display()))?;
        fs::create_dir_all(&carry).with_context(|| format!("create {}", carry.display()))?;
        let mut outer = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ])
            .args(["--", "sh", "-c", HOLDER, "weft-lab-machine", name])
            .arg(&carry)
            .env(LAB_ENV, lab.id())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .current_dir("/")
            .spawn()
            .context("run unshare")?;
        await_ready(&mut outer).with_context(|| format!("machine {name}"))?;
        let outer_pid = outer.id();
        let holder = only_child(outer_pid).with_context(|| format!("machine {name}"))?;
        lab.hold(outer);
        Ok(Self {
            inner: Arc::new(Inner {
                lab: lab.clone(),
                name: name.to_owned(),
                dir,
                outer: outer_pid,
                holder,
            }),
        })
    }

    /// The machine's name, which is its host name as well.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The machine's directory, for state, logs, sockets and mounts.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The lab that the machine belongs to.
    pub fn lab(&self) -> &Lab {
        &self.inner.lab
    }

    /// The process that holds the namespaces, as the root pid namespace numbers it.
    pub fn holder_pid(&self) -> u32 {
        self.inner.holder
    }

    /// The machine's network namespace, as a path that anyone may open.
    pub fn netns_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.inner.holder))
    }

    /// A path of the machine's mount namespace, as seen from outside of it.
    pub fn outside_path(&self, path: &Path) -> PathBuf {
        let relative = path.strip_prefix("/").unwrap_or(path);
        PathBuf::from(format!("/proc/{}/root", self.inner.holder)).join(relative)
    }

    /// A command that runs on the machine, in all its namespaces.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args([
                "--target",
                &self.inner.holder.to_string(),
                "--net",
                "--mount",
                "--pid",
                "--uts",
                "--",
            ])
            .arg(program.as_ref())
            .env(LAB_ENV, self.inner.lab.id())
            .stdin(Stdio::null());
        command
    }

    /// A command in a network namespace that is bound at `netns` in the machine's file system (a pod's, say).
    pub fn command_in(&self, netns: &Path, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.outside_path(netns).display()))
            .args([
                "--target",
                &self.inner.holder.to_string(),
                "--mount",
                "--pid",
                "--uts",
                "--",
            ])
            .arg(program.as_ref())
            .env(LAB_ENV, self.inner.lab.id())
            .stdin(Stdio::null());
        command
    }

    /// Runs a command line on the machine and returns what it printed.
    ///
    /// The line is split at white space; there is no quoting.
    ///
    /// # Errors
    /// If it cannot be run or fails; the error holds what it said.
    pub fn run(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        let mut command = self.command(program);
        command.args(words);
        output(command).with_context(|| format!("{}: {line}", self.inner.name))
    }

    /// Starts a long-running process on the machine, with its output in `<dir>/log/<name>.log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, name: &str, program: impl AsRef<Path>, args: &[String]) -> Result<Process> {
        let log = self.inner.dir.join("log").join(format!("{name}.log"));
        self.inner.lab.watch_log(&log);
        let mut command = self.command(program);
        command.args(args);
        Process::start(&format!("{}/{name}", self.inner.name), command, &log)
    }

    /// Sets a sysctl in the machine's network namespace; `key` is a path below `/proc/sys`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let mut command = self.command("sh");
        command.args(["-c", "echo \"$2\" > /proc/sys/$1", "sysctl", key, value]);
        output(command)
            .map(drop)
            .with_context(|| format!("{}: set {key} to {value}", self.inner.name))
    }

    /// Gives the machine's device `eth0` its underlay addresses.
    pub(crate) fn address(&self, v4: Ipv4Addr, v6: Ipv6Addr, gateway: (Ipv4Addr, Ipv6Addr)) -> Result<()> {
        self.batch(&format!(
            "addr add {v4}/24 brd + dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via {}\nroute add default via {} dev eth0\n",
            gateway.0, gateway.1
        ))
    }

    /// Runs several `ip` commands in one process; the first failure ends it.
    ///
    /// # Errors
    /// If one of them fails.
    pub fn batch(&self, lines: &str) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        feed(command, lines).with_context(|| format!("{}: ip -batch:\n{lines}", self.inner.name))
    }

    /// Whether the machine still runs.
    pub fn is_alive(&self) -> bool {
        self.netns_path().exists()
    }

    /// Ends the machine and all that runs on it, as a power cut does. Its directory stays until the lab ends.
    pub fn power_off(&self) {
        self.inner.lab.release(self.inner.outer);
    }
}

/// Runs a command to its end; what it printed, or an error with what it said.
pub(crate) fn output(mut command: Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("run {}", command.get_program().display()))?;
    checked(&output)
}

/// Runs a command with `input`.
pub(crate) fn feed(command: Command, input: &str) -> Result<()> {
    feed_output(command, input).map(drop)
}

/// Runs a command with `input`; what it printed.
pub(crate) fn feed_output(mut command: Command, input: &str) -> Result<String> {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child
        .stdin
        .take()
        .context("its input is a pipe")?
        .write_all(input.as_bytes())?;
    checked(&child.wait_with_output()?)
}

fn checked(output: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}{}", output.status, stderr.trim(), stdout.trim());
    }
    Ok(stdout)
}

/// The one child of a process that forks exactly once.
pub(crate) fn only_child(pid: u32) -> Result<u32> {
    wait_for(&format!("process {pid} to fork"), Duration::from_secs(10), || {
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}
