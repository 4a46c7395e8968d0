//! One lab: an id, a directory, and the supervisor that clears both away.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{process, thread};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Where every lab has its directory.
pub const ROOT: &str = "/run/weft-lab";

/// Where locks sit: one per lab, shared by its owner and its supervisor, so that whoever gets it exclusively knows both dead.
const LOCKS: &str = "/run/weft-lab/.locks";

/// Environment variable in every process of a lab; its value is the lab's id.
pub const LAB_ENV: &str = "WEFT_LAB_ID";

/// How long the supervisor gives processes to die and cgroups to empty before it says what is left.
const TEARDOWN_SECONDS: u32 = 20;

/// Waits for the end of its input, which comes when the lab is dropped and when its process dies of anything, and then removes
/// what the lab left on the machine: the machines' processes die by themselves (each holder reads such a pipe, too).
const SUPERVISOR: &str = r#"
id=$1 root=$2 lock=$3 seconds=$4
exec 9>>"$lock"
flock --shared 9
echo ready
cat >/dev/null
cgroups() { find /sys/fs/cgroup -maxdepth 4 -type d -path "*/weft-lab/$id" 2>/dev/null; }
deadline=$(( $(date +%s) + seconds ))
while :; do
    for top in $(cgroups); do
        if [ -e "$top/cgroup.kill" ]; then echo 1 >"$top/cgroup.kill"; fi
        find "$top" -depth -type d -exec rmdir {} + 2>/dev/null
        rmdir "$(dirname "$top")" 2>/dev/null
    done
    rm -rf --one-file-system "$root" 2>/dev/null
    if [ ! -e "$root" ] && [ -z "$(cgroups)" ]; then break; fi
    if [ "$(date +%s)" -ge "$deadline" ]; then echo "weft-lab $id: left behind: $root $(cgroups)" >&2; break; fi
    sleep 0.05
done
rm -f "$lock"
"#;

static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// A lab: the owner of a directory under [`ROOT`], of what runs in it, and of its end.
///
/// Clones share one lab; the last one to go takes it down.
#[derive(Clone, Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: String,
    root: PathBuf,
    supervisor: Mutex<Option<Child>>,
    /// Log files whose end is printed if the owner panics.
    logs: Mutex<Vec<PathBuf>>,
    /// Write ends of pipes which hold machines alive.
    holders: Mutex<Vec<Child>>,
    is_ended: AtomicBool,
    _lock: Flock<fs::File>,
}

impl Lab {
    /// Makes a lab; `name` is for people and ends up in the id.
    ///
    /// # Errors
    /// If this process is not root, or the machine lacks `unshare`, `nsenter` or `ip`.
    pub fn new(name: &str) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("the lab makes network namespaces and loads BPF programs: run it as root");
        }
        fs::create_dir_all(LOCKS).with_context(|| format!("create {LOCKS}"))?;
        sweep();

        let sequence = SEQUENCE.fetch_add(1, Ordering::Relaxed);
        let id = format!("{name}-{}-{sequence}", process::id());
        let lock_path = Path::new(LOCKS).join(&id);
        let file = fs::File::create(&lock_path).with_context(|| format!("create {}", lock_path.display()))?;
        let lock = Flock::lock(file, FlockArg::LockShared)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("lock {}", lock_path.display()))?;
        let root = Path::new(ROOT).join(&id);
        fs::create_dir_all(&root).with_context(|| format!("create {}", root.display()))?;

        let mut supervisor = Command::new("sh")
            .arg("-c")
            .arg(SUPERVISOR)
            .arg("weft-lab-supervisor")
            .arg(&id)
            .arg(&root)
            .arg(&lock_path)
            .arg(TEARDOWN_SECONDS.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0) // Ctrl-C at the terminal must reach the owner alone
            .current_dir("/")
            .spawn()
            .context("start the lab's supervisor")?;
        await_ready(&mut supervisor).context("the lab's supervisor")?;

        Ok(Self {
            inner: Arc::new(Inner {
                id,
                root,
                supervisor: Mutex::new(Some(supervisor)),
                logs: Mutex::default(),
                holders: Mutex::default(),
                is_ended: AtomicBool::new(false),
                _lock: lock,
            }),
        })
    }

    /// The lab's id, unique on this machine.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The lab's directory; nothing of the lab is written elsewhere.
    pub fn root(&self) -> &Path {
        &self.inner.root
    }

    /// The lab's cgroup, relative to a hierarchy's mount point; removed with everything below it.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("weft-lab").join(&self.inner.id)
    }

    /// Says that `path` is a log whose end is worth seeing when the test fails.
    pub(crate) fn watch_log(&self, path: &Path) {
        let mut logs = self.inner.logs.lock().expect("no holder of this lock panics");
        if !logs.iter().any(|known| known == path) {
            logs.push(path.to_owned());
        }
    }

    /// Keeps a machine's holder, whose end is the machine's end.
    pub(crate) fn hold(&self, holder: Child) {
        self.inner
            .holders
            .lock()
            .expect("no holder of this lock panics")
            .push(holder);
    }

    /// Ends the machine whose holder is `pid`, as a power cut does.
    pub(crate) fn release(&self, pid: u32) {
        let mut holders = self.inner.holders.lock().expect("no holder of this lock panics");
        if let Some(at) = holders.iter().position(|child| child.id() == pid) {
            end(holders.swap_remove(at));
        }
    }

    /// Whether the lab has been taken down.
    pub fn is_ended(&self) -> bool {
        self.inner.is_ended.load(Ordering::SeqCst)
    }

    /// Takes the lab down at once, whatever else holds it. What a signal handler calls.
    pub fn teardown(&self) {
        self.inner.teardown();
    }

    /// The last lines of every log of the lab.
    pub fn log_tails(&self, lines: usize) -> String {
        let logs = self.inner.logs.lock().expect("no holder of this lock panics");
        let mut out = String::new();
        for path in logs.iter() {
            let text = fs::read_to_string(path).unwrap_or_default();
            let all: Vec<&str> = text.lines().collect();
            let from = all.len().saturating_sub(lines);
            let title = format!(
                "--- {} (last {} of {} lines)",
                path.display(),
                all.len() - from,
                all.len()
            );
            out.push_str(&title);
            out.push('\n');
            for line in &all[from..] {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }

    /// All lines at level ERROR in the logs of the lab's processes.
    pub fn error_lines(&self) -> Vec<String> {
        let logs = self.inner.logs.lock().expect("no holder of this lock panics");
        let mut out = Vec::new();
        for path in logs.iter() {
            let text = fs::read_to_string(path).unwrap_or_default();
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            out.extend(
                text.lines()
                    .filter(|line| line.contains(" ERROR ") || line.contains("\"level\":\"ERROR\""))
                    .map(|line| format!("{name}: {line}")),
            );
        }
        out
    }
}

impl Inner {
    fn teardown(&self) {
        self.is_ended.store(true, Ordering::SeqCst);
        let holders = std::mem::take(&mut *self.holders.lock().expect("no holder of this lock panics"));
        for holder in holders {
            end(holder);
        }
        let supervisor = self
            .supervisor
            .lock()
            .expect("no holder of this lock panics")
            .take();
        if let Some(mut supervisor) = supervisor {
            drop(supervisor.stdin.take());
            let limit = Duration::from_secs(u64::from(TEARDOWN_SECONDS) + 5);
            let start = Instant::now();
            while start.elapsed() < limit && matches!(supervisor.try_wait(), Ok(None)) {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if thread::panicking() {
            let lab = self.root.display();
            eprintln!("=== logs of {lab}, which is removed now");
            for path in self.logs.lock().iter().flat_map(|logs| logs.iter()) {
                let text = fs::read_to_string(path).unwrap_or_default();
                let all: Vec<&str> = text.lines().collect();
                eprintln!("--- {}", path.display());
                for line in &all[all.len().saturating_sub(60)..] {
                    eprintln!("{line}");
                }
            }
            keep_logs(&self.id, &self.logs);
        }
        self.teardown();
    }
}

/// Copies whole logs to `$WEFT_LAB_LOGS`, if that is set.
fn keep_logs(id: &str, logs: &Mutex<Vec<PathBuf>>) {
    let Some(target) = std::env::var_os("WEFT_LAB_LOGS") else {
        return;
    };
    let target = Path::new(&target).join(id);
    if fs::create_dir_all(&target).is_err() {
        return;
    }
    for path in logs.lock().iter().flat_map(|logs| logs.iter()) {
        let machine = path
            .parent()
            .and_then(Path::parent)
            .and_then(Path::file_name)
            .unwrap_or_default();
        let name = format!(
            "{}-{}",
            machine.to_string_lossy(),
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        let _ = fs::copy(path, target.join(name));
    }
}

/// Reads the line by which a helper process says that it is set up.
pub(crate) fn await_ready(child: &mut Child) -> Result<()> {
    let stdout = child.stdout.take().context("its output is not a pipe")?;
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("read from it")?;
    if line.trim_end() != "ready" {
        let _ = child.kill();
        let status = child.wait().context("wait for it")?;
        bail!("ended early: {status}");
    }
    Ok(())
}

/// Ends a holder and reaps it.
fn end(mut holder: Child) {
    drop(holder.stdin.take());
    let _ = holder.wait();
}

/// Removes what labs left whose owner and supervisor are both dead.
fn sweep() {
    let Ok(entries) = fs::read_dir(LOCKS) else { return };
    for entry in entries.flatten() {
        let Ok(file) = fs::File::open(entry.path()) else {
            continue;
        };
        let Ok(_lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            continue;
        };
        let id = entry.file_name();
        // The supervisor's own script, with an input that has ended.
        let _ = Command::new("sh")
            .args([
                "-c",
                SUPERVISOR.replace("flock --shared 9", ":").as_str(),
                "weft-lab-sweep",
            ])
            .arg(&id)
            .arg(Path::new(ROOT).join(&id))
            .arg(entry.path())
            .arg("2")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
    }
}
