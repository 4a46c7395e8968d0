//! Deletions that wait on disk for an agent that is down.
//!
//! A pod must be deletable whatever Weft's state, so the plugin writes a DEL that it cannot deliver to a directory and
//! reports success. One lock file orders both sides: the plugin tries the agent once more *under the lock* before it
//! writes, and the agent holds the lock from draining the queue until its socket takes requests. So no deletion can fall
//! between the two.
//!
//! ```no_run
//! # use std::time::{Duration, Instant};
//! # use weft_cni::deletion_queue::DeletionQueue;
//! let queue = DeletionQueue::new("/var/lib/weft/cni-queue");
//! let locked = queue.lock(Instant::now() + Duration::from_secs(5))?;
//! for deletion in &locked.entries()?.deletions {
//!     println!("detach {}", deletion.request.container_id);
//!     locked.remove(deletion)?;
//! }
//! // … listen …
//! drop(locked);
//! # Ok::<(), weft_cni::deletion_queue::QueueError>(())
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use crate::protocol::{MAX_FRAME_BYTES, Request, Verb};

/// Where the queue is unless told otherwise.
pub const DEFAULT_QUEUE_DIR: &str = "/var/lib/weft/cni-queue";

/// The most deletions that wait. Above it the agent finds out by itself which attachments lost their netns.
pub const MAX_QUEUED: usize = 256;

/// How often a busy lock is tried again. The lock is held for a few file writes, or while the agent starts.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// The name of the lock file.
const LOCK_FILE: &str = "lock";

/// The mark that deletions were dropped since the queue was full.
const OVERFLOW_FILE: &str = "overflow";

/// Why the queue could not be used.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// What was done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Someone else held the lock until the deadline.
    #[error("{} is locked", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
}

/// The queue in one directory.
#[derive(Debug, Clone)]
pub struct DeletionQueue {
    dir: PathBuf,
}

/// The queue while its lock is held; dropping it lets go.
#[derive(Debug)]
pub struct LockedQueue {
    dir: PathBuf,
    _lock: File,
}

/// What became of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is on disk.
    Queued,
    /// The queue is full: only the fact is on disk, and the agent must look at every attachment.
    Overflowed,
}

/// A deletion that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedDeletion {
    /// The DEL as the plugin would have sent it.
    pub request: Request,
    path: PathBuf,
}

/// What [`LockedQueue::entries`] found.
#[derive(Debug, Default)]
pub struct Entries {
    /// The deletions, oldest first.
    pub deletions: Vec<QueuedDeletion>,
    /// Files that hold no deletion; they were removed.
    pub unreadable: Vec<PathBuf>,
    /// Whether deletions were dropped since the queue was full.
    pub overflowed: bool,
}

impl DeletionQueue {
    /// The queue in `dir`, which is made when first needed.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Takes the lock, waiting for it no longer than `deadline`.
    pub fn lock(&self, deadline: Instant) -> Result<LockedQueue, QueueError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(io_error("create directory", &self.dir))?;
        let path = self.dir.join(LOCK_FILE);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        loop {
            match lock.try_lock() {
                Ok(()) => {
                    return Ok(LockedQueue {
                        dir: self.dir.clone(),
                        _lock: lock,
                    });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
            }
            if Instant::now() >= deadline {
                return Err(QueueError::Locked { path });
            }
            thread::sleep(LOCK_RETRY);
        }
    }
}

impl LockedQueue {
    /// Puts a deletion on disk. A second one of the same attachment takes the place of the first.
    pub fn push(&self, request: &Request) -> Result<Pushed, QueueError> {
        debug_assert_eq!(request.verb, Verb::Del);
        let path = self.dir.join(file_name(&request.container_id, &request.ifname));
        if !path.exists() && self.files()?.len() >= MAX_QUEUED {
            write_durably(&self.dir, &self.dir.join(OVERFLOW_FILE), b"")?;
            return Ok(Pushed::Overflowed);
        }
        let body = serde_json::to_vec(request)
            .map_err(|error| io_error("encode", &path)(io::Error::new(io::ErrorKind::InvalidData, error)))?;
        write_durably(&self.dir, &path, &body)?;
        Ok(Pushed::Queued)
    }

    /// All that waits. Files that hold no deletion, such as a write cut short by a crash, are removed.
    pub fn entries(&self) -> Result<Entries, QueueError> {
        let mut entries = Entries {
            overflowed: self.dir.join(OVERFLOW_FILE).exists(),
            ..Entries::default()
        };
        let mut files = self.files()?;
        files.sort_by_cached_key(|path| {
            (
                fs::metadata(path).and_then(|meta| meta.modified()).ok(),
                path.clone(),
            )
        });
        for path in files {
            if let Some(request) = read_deletion(&path) {
                entries.deletions.push(QueuedDeletion { request, path });
            } else {
                remove_if_there(&path)?;
                entries.unreadable.push(path);
            }
        }
        Ok(entries)
    }

    /// Takes a deletion from the queue once it was carried out.
    pub fn remove(&self, deletion: &QueuedDeletion) -> Result<(), QueueError> {
        remove_if_there(&deletion.path)
    }

    /// Takes the mark of overflow away, once every attachment was looked at.
    pub fn clear_overflow(&self) -> Result<(), QueueError> {
        remove_if_there(&self.dir.join(OVERFLOW_FILE))
    }

    /// The files of the queue: all but the lock, the mark, and writes that never ended, which are removed.
    fn files(&self) -> Result<Vec<PathBuf>, QueueError> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_error("read directory", &self.dir))? {
            let path = entry.map_err(io_error("read directory", &self.dir))?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => files.push(path),
                // Its writer held the lock that is ours now, so it is dead.
                Some("tmp") => remove_if_there(&path)?,
                _ => {}
            }
        }
        Ok(files)
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> QueueError + use<> {
    let path = path.to_owned();
    move |source| QueueError::Io {
        operation,
        path,
        source,
    }
}

/// The file of an attachment: readable, and distinct for every attachment however long its names are.
fn file_name(container_id: &str, ifname: &str) -> String {
    const READABLE_BYTES: usize = 64;
    let readable: String = container_id
        .chars()
        .take(READABLE_BYTES)
        .map(|c| {
            if c.is_ascii_alphanumeric() || "_-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    let key = [container_id.as_bytes(), b"/", ifname.as_bytes()].concat();
    format!(
        "{readable}-{:016x}{:016x}.json",
        fnv1a(&key, 0),
        fnv1a(&key, 0x5bd1_e995)
    )
}

/// The FNV-1a hash of `bytes` with its state varied by `seed`.
fn fnv1a(bytes: &[u8], seed: u64) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325 ^ seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Replaces `path` by a file with `body` such that a crash leaves the old one, none, or the new one whole.
fn write_durably(dir: &Path, path: &Path, body: &[u8]) -> Result<(), QueueError> {
    let temporary = path.with_extension("tmp");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("create", &temporary))?;
    file.write_all(body).map_err(io_error("write", &temporary))?;
    file.sync_data().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error("sync", dir))
}

fn read_deletion(path: &Path) -> Option<Request> {
    let size = fs::metadata(path).ok()?.len();
    if size > MAX_FRAME_BYTES as u64 {
        return None;
    }
    let request: Request = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (request.verb == Verb::Del).then_some(request)
}

fn remove_if_there(path: &Path) -> Result<(), QueueError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(source)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(20)
    }

    fn del(container_id: &str, ifname: &str) -> Request {
        Request::new(Verb::Del, container_id, ifname)
    }

    /// Takes all that waits from the queue, as an agent does that starts.
    fn drain_all(locked: &LockedQueue) -> (Vec<Request>, Entries) {
        let entries = locked.entries().unwrap();
        let mut seen = Vec::new();
        for deletion in &entries.deletions {
            seen.push(deletion.request.clone());
            locked.remove(deletion).unwrap();
        }
        locked.clear_overflow().unwrap();
        (seen, entries)
    }

    /// The kernel stamps files by its tick; the order within one is not kept.
    fn wait_for_a_later_file_time() {
        let now = || {
            tempfile::tempfile()
                .unwrap()
                .metadata()
                .unwrap()
                .modified()
                .unwrap()
        };
        let (begun, before) = (Instant::now(), now());
        while now() == before {
            assert!(
                begun.elapsed() < Duration::from_secs(10),
                "files get no later time"
            );
        }
    }

    #[test]
    fn what_is_pushed_is_drained_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let queue = DeletionQueue::new(dir.path().join("not/yet/there"));
        let locked = queue.lock(soon()).unwrap();
        let requests: Vec<_> = (0..5).map(|i| del(&format!("c{}", 9 - i), "eth0")).collect();
        for request in &requests {
            assert_eq!(locked.push(request).unwrap(), Pushed::Queued);
            wait_for_a_later_file_time();
        }
        drop(locked);
        let locked = queue.lock(soon()).unwrap();
        assert_eq!(drain_all(&locked).0, requests);
        assert_eq!(drain_all(&locked).0, vec![]);
    }

    #[test]
    fn what_is_not_removed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let locked = DeletionQueue::new(dir.path()).lock(soon()).unwrap();
        locked.push(&del("a", "eth0")).unwrap();
        locked.push(&del("b", "eth0")).unwrap();
        for deletion in locked.entries().unwrap().deletions {
            if deletion.request.container_id == "b" {
                locked.remove(&deletion).unwrap();
            }
        }
        assert_eq!(drain_all(&locked).0, vec![del("a", "eth0")]);
    }

    #[test]
    fn a_held_lock_is_waited_for_until_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let queue = DeletionQueue::new(dir.path());
        let locked = queue.lock(soon()).unwrap();
        assert!(matches!(queue.lock(soon()), Err(QueueError::Locked { .. })));
        let waiting = thread::spawn({
            let queue = queue.clone();
            move || queue.lock(Instant::now() + Duration::from_secs(10)).is_ok()
        });
        drop(locked);
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn a_full_queue_says_so_and_still_takes_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let locked = DeletionQueue::new(dir.path()).lock(soon()).unwrap();
        for i in 0..MAX_QUEUED {
            fs::write(
                dir.path().join(file_name(&i.to_string(), "eth0")),
                serde_json::to_vec(&del(&i.to_string(), "eth0")).unwrap(),
            )
            .unwrap();
        }
        assert_eq!(locked.push(&del("one-more", "eth0")).unwrap(), Pushed::Overflowed);
        assert_eq!(locked.push(&del("7", "eth0")).unwrap(), Pushed::Queued);
        let (seen, entries) = drain_all(&locked);
        assert_eq!(seen.len(), MAX_QUEUED);
        assert!(entries.overflowed);
        assert!(!drain_all(&locked).1.overflowed);
    }

    #[test]
    fn rubbish_is_removed_and_other_files_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let locked = DeletionQueue::new(dir.path()).lock(soon()).unwrap();
        fs::write(dir.path().join("cut.json"), b"{\"version\":1,").unwrap();
        fs::write(
            dir.path().join("add.json"),
            serde_json::to_vec(&Request::new(Verb::Add, "c", "e")).unwrap(),
        )
        .unwrap();
        fs::write(dir.path().join("dead.tmp"), b"x").unwrap();
        fs::write(dir.path().join("README"), b"x").unwrap();
        let (seen, entries) = drain_all(&locked);
        assert_eq!((seen.len(), entries.unreadable.len()), (0, 2));
        let mut left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["README", "lock"]);
    }

    #[test]
    fn no_two_attachments_share_a_file() {
        let long = "c".repeat(300);
        let names = [
            file_name("a", "b"),
            file_name("a-b", ""),
            file_name("a.b", "c"),
            file_name("a_b", "c"),
            file_name(&long, "eth0"),
            file_name(&format!("{long}d"), "eth0"),
        ];
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() <= 255 && !name.contains('/'), "{name}");
            assert!(!names[..i].contains(name), "{name}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// The queue behaves as a map from attachment to its last request, for any order of pushes and drains.
        #[test]
        fn queue_is_a_map_of_attachments(steps in proptest::collection::vec(
            proptest::option::weighted(0.9, ("[a-c][a-z0-9_.-]{0,3}", "eth[01]", "[a-z]{0,4}")), 1..24)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let queue = DeletionQueue::new(dir.path());
            let mut model = BTreeMap::new();
            for step in steps.into_iter().chain([None]) {
                let locked = queue.lock(soon()).unwrap();
                if let Some((id, ifname, netns)) = step {
                    let mut request = del(&id, &ifname);
                    request.netns = Some(netns.into());
                    locked.push(&request).unwrap();
                    model.insert((id, ifname), request);
                } else {
                    let mut seen = drain_all(&locked).0;
                    seen.sort_by_key(|r| (r.container_id.clone(), r.ifname.clone()));
                    prop_assert_eq!(seen, std::mem::take(&mut model).into_values().collect::<Vec<_>>());
                }
            }
        }
    }
}
