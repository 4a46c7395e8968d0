//! The loop of `bench cni` that calls a plugin, as a container runtime does.
//!
//! It runs on the node itself (`weft-bench attach-loop`, started through the machine's namespaces), so that nothing but the
//! plugin's own life is between the clock's two readings.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_cni::protocol::{Request, Response, read_frame, write_frame};

/// After the last DEL the agent still removes links; what that costs it counts.
const SETTLE: Duration = Duration::from_millis(150);

/// What to call, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The plugin's program.
    pub plugin: PathBuf,
    /// `CNI_PATH`.
    pub plugin_dir: PathBuf,
    /// The network configuration.
    pub conf: Value,
    /// Where network namespaces are bound.
    pub netns_dir: PathBuf,
    /// Part of every container id, so that no two loops share one.
    pub prefix: String,
    /// How many attachments one after the other.
    pub sequential: usize,
    /// How many at once.
    pub parallel: usize,
    /// Whether an agent on the node works for the plugin, so that its CPU time counts.
    pub has_agent: bool,
}

/// What the calls took: wall milliseconds of each, and CPU milliseconds of one on average.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Phase {
    /// Wall milliseconds, one entry a call.
    pub wall_ms: Vec<f64>,
    /// CPU milliseconds a call: the plugin with its children, and the agent.
    pub cpu_ms: f64,
}

/// The phases of a job.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// ADD, one after the other.
    pub add: Phase,
    /// DEL, one after the other.
    pub del: Phase,
    /// ADD at once.
    pub add_parallel: Phase,
    /// DEL at once.
    pub del_parallel: Phase,
}

/// Runs the job of stdin and prints its outcome. What `weft-bench attach-loop` does.
pub fn main() -> Result<()> {
    let job: Job = serde_json::from_reader(std::io::stdin()).context("the job")?;
    println!("{}", serde_json::to_string(&run(&job)?)?);
    Ok(())
}

fn run(job: &Job) -> Result<Outcome> {
    let agent = if job.has_agent { Some(find_agent()?) } else { None };
    fs::create_dir_all(&job.netns_dir)?;
    let mut outcome = Outcome::default();
    let one_by_one = Containers::new(job, "s", job.sequential)?;
    outcome.add = one_by_one.phase("ADD", false, agent)?;
    outcome.del = one_by_one.phase("DEL", false, agent)?;
    let at_once = Containers::new(job, "p", job.parallel)?;
    outcome.add_parallel = at_once.phase("ADD", true, agent)?;
    outcome.del_parallel = at_once.phase("DEL", true, agent)?;
    Ok(outcome)
}

/// Network namespaces that wait for a plugin. Dropping unbinds them.
struct Containers<'a> {
    job: &'a Job,
    ids: Vec<String>,
    conf: Vec<u8>,
}

impl<'a> Containers<'a> {
    fn new(job: &'a Job, kind: &str, count: usize) -> Result<Self> {
        let ids: Vec<String> = (0..count).map(|i| format!("{}-{kind}{i}", job.prefix)).collect();
        let made = Self {
            job,
            ids,
            conf: serde_json::to_vec(&job.conf)?,
        };
        for id in &made.ids {
            make_netns(&made.netns(id)).with_context(|| format!("make a network namespace for {id}"))?;
        }
        Ok(made)
    }

    fn netns(&self, id: &str) -> PathBuf {
        self.job.netns_dir.join(id)
    }

    fn phase(&self, verb: &str, at_once: bool, agent: Option<u32>) -> Result<Phase> {
        let before = cpu_ms(agent)?;
        let wall_ms = if at_once {
            let barrier = Barrier::new(self.ids.len());
            thread::scope(|scope| {
                let calls: Vec<_> = self
                    .ids
                    .iter()
                    .map(|id| {
                        scope.spawn(|| {
                            barrier.wait();
                            self.call(verb, id)
                        })
                    })
                    .collect();
                calls
                    .into_iter()
                    .map(|call| {
                        call.join()
                            .unwrap_or_else(|_| Err(anyhow!("the thread panicked")))
                    })
                    .collect::<Result<Vec<f64>>>()
            })?
        } else {
            self.ids
                .iter()
                .map(|id| self.call(verb, id))
                .collect::<Result<Vec<f64>>>()?
        };
        thread::sleep(SETTLE);
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let cpu_ms = (cpu_ms(agent)? - before) / self.ids.len().max(1) as f64;
        Ok(Phase { wall_ms, cpu_ms })
    }

    /// One call, in milliseconds from the start of the process to its end.
    fn call(&self, verb: &str, id: &str) -> Result<f64> {
        let started = Instant::now();
        let mut child = Command::new(&self.job.plugin)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", self.netns(id))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.job.plugin_dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.job.plugin.display()))?;
        child
            .stdin
            .take()
            .context("its input is a pipe")?
            .write_all(&self.conf)?;
        let output = child.wait_with_output()?;
        let took = started.elapsed();
        ensure!(
            output.status.success(),
            "{verb} of {id}: {} {}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(took.as_secs_f64() * 1e3)
    }
}

impl Drop for Containers<'_> {
    fn drop(&mut self) {
        for id in &self.ids {
            let path = self.netns(id);
            let _ = umount2(&path, MntFlags::MNT_DETACH);
            let _ = fs::remove_file(&path);
        }
    }
}

fn make_netns(path: &Path) -> Result<()> {
    File::create(path)?;
    let path = path.to_owned();
    // A network namespace belongs to a thread; this one ends with its work.
    let making = thread::spawn(move || -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        mount(
            Some("/proc/thread-self/ns/net"),
            &path,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .context("bind")
    });
    making.join().map_err(|_| anyhow!("the thread panicked"))?
}

/// The agent of this machine, whose pid namespace holds no other.
fn find_agent() -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut words = line.split(|byte| *byte == 0);
        if words.next().is_some_and(|program| program.ends_with(b"/weft")) && words.next() == Some(b"agent") {
            return Ok(pid);
        }
    }
    Err(anyhow!("no agent runs on this machine"))
}

/// CPU milliseconds so far of the children that ended, and of the agent.
fn cpu_ms(agent: Option<u32>) -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let own = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let mut nanoseconds = 0_u64;
    if let Some(pid) = agent {
        for task in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            nanoseconds += stat
                .split_whitespace()
                .next()
                .and_then(|word| word.parse().ok())
                .unwrap_or(0);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "milliseconds to three digits")]
    Ok(own as f64 / 1e3 + nanoseconds as f64 / 1e6)
}

/// Milliseconds from start to exit of `program` with `input`, `count` times; the least that any plugin costs.
pub fn spawn_ms(program: &Path, verb: &str, input: &[u8], count: usize) -> Result<Vec<f64>> {
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        let mut child = Command::new(program)
            .env_clear()
            .envs([
                ("CNI_COMMAND", verb),
                ("CNI_CONTAINERID", "floor"),
                ("CNI_IFNAME", "eth0"),
            ])
            .env("CNI_NETNS", "/proc/1/ns/net")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        // A program that does not read ends before it is written to.
        let _ = child
            .stdin
            .take()
            .context("its input is a pipe")?
            .write_all(input);
        let output = child.wait_with_output()?;
        all.push(started.elapsed().as_secs_f64() * 1e3);
        ensure!(
            output.status.success(),
            "{}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(all)
}

/// An agent that has nothing to do: it answers every request at once, until the end of the process.
pub fn idle_agent(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if read_frame::<Request>(&stream).is_ok() {
                let _ = write_frame(
                    &stream,
                    &Response::Ok(Some(weft_cni::protocol::AddResult::default())),
                );
            }
        }
    });
    Ok(())
}
