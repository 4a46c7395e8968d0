//! A long-running process on a machine.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::machine::only_child;
use crate::wait::wait_for;

/// A process that `nsenter` started on a machine; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    /// `nsenter`, which waits for the process and passes its status on.
    outer: Child,
    pid: u32,
}

impl Process {
    /// Starts `command` (made by [`crate::Machine::command`]); its output is appended to `log`.
    pub(crate) fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let errors = file.try_clone().context("duplicate the log's descriptor")?;
        let mut outer = command
            .stdout(file)
            .stderr(errors)
            .process_group(0) // Ctrl-C at the terminal ends the lab, which then ends this
            .spawn()
            .with_context(|| format!("start {name}"))?;
        let pid = match only_child(outer.id()) {
            Ok(pid) => pid,
            Err(error) => {
                let _ = outer.kill();
                let status = outer.wait();
                return Err(error.context(format!("{name} did not start: {status:?}: {}", tail(log, 20))));
            }
        };
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            outer,
            pid,
        })
    }

    /// The process's number in the root pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The end of its output.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&self.log, lines)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.outer.try_wait(), Ok(None))
    }

    /// Fails, with the end of its output, if it has ended.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.outer.try_wait()? {
            bail!("{} ended: {status}\n{}", self.name, tail(&self.log, 30));
        }
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid.cast_signed()), signal)
            .with_context(|| format!("{signal} to {}", self.name))?;
        if signal == Signal::SIGCONT {
            self.wake_outer();
        }
        Ok(())
    }

    /// `nsenter` stops itself when its child is stopped, and would not see the child's end.
    fn wake_outer(&self) {
        let _ = kill(Pid::from_raw(self.outer.id().cast_signed()), Signal::SIGCONT);
    }

    /// Ends it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn kill_9(&mut self) -> Result<()> {
        if self.is_running() {
            let _ = self.signal(Signal::SIGKILL);
            self.wake_outer();
        }
        self.outer
            .wait()
            .map(drop)
            .with_context(|| format!("wait for {}", self.name))
    }

    /// Asks it to end with SIGTERM and waits.
    ///
    /// # Errors
    /// If it does not end within the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            let _ = self.signal(Signal::SIGTERM);
        }
        self.wait(deadline)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end within the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let outer = &mut self.outer;
        wait_for(&format!("{} to end", self.name), deadline, || {
            outer.try_wait().ok().flatten()
        })
    }

    /// Its resident memory in kilobytes.
    ///
    /// # Errors
    /// If it has ended.
    pub fn rss_kb(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .context("no VmRSS")?;
        line.split_whitespace()
            .next()
            .context("empty VmRSS")?
            .parse()
            .context("VmRSS is not a number")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill_9();
        if thread::panicking() {
            eprintln!("--- end of {}\n{}", self.log.display(), tail(&self.log, 5));
        }
    }
}

fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
