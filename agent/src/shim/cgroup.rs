//! The cgroups that libcontainer makes, as far as they must be read and taken away again: a path that may exist in each
//! of several hierarchies (version 1, or the hybrid set-up) or in one (version 2).

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long removing waits for killed processes to be gone. They are, within milliseconds.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);

/// The directories that a cgroup path has, in all mounted hierarchies.
fn directories(path: &str) -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mount_points(&mounts)
        .map(|mount| mount.join(path.trim_start_matches('/')))
        .filter(|directory| directory.is_dir())
        .collect())
}

/// The mount points of cgroup hierarchies in a mountinfo file.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let kind = right.split(' ').next()?;
        let mount = left.split(' ').nth(4)?;
        matches!(kind, "cgroup" | "cgroup2").then(|| PathBuf::from(mount))
    })
}

/// Whether the kernel killed a process of the cgroup for its memory limit.
pub(super) fn oom_killed(path: &str) -> bool {
    directories(path).is_ok_and(|directories| {
        directories.iter().any(|directory| {
            ["memory.oom_control", "memory.events"].iter().any(|file| {
                fs::read_to_string(directory.join(file)).is_ok_and(|text| {
                    text.lines()
                        .filter_map(|line| line.strip_prefix("oom_kill "))
                        .any(|count| count.trim() != "0")
                })
            })
        })
    })
}

/// Removes a cgroup and all below it, in every hierarchy; processes in it are killed.
pub fn remove(path: &str) -> io::Result<()> {
    let deadline = Instant::now() + REMOVE_DEADLINE;
    for directory in directories(path)? {
        loop {
            match remove_tree(&directory) {
                Ok(()) => break,
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }
    Ok(())
}

/// Removes a cgroup where nothing is below it; what is in use stays.
pub fn remove_if_empty(path: &str) {
    for directory in directories(path).unwrap_or_default() {
        // Whatever the reason, a cgroup that cannot be removed is one that is in use.
        let _ = fs::remove_dir(directory);
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    let procs = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in procs
        .lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
    {
        // Gone already is what is wanted.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_of_both_versions_are_found() {
        let text = "\
31 24 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
32 31 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n\
33 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
34 24 0:5 / /proc rw - proc proc rw\n";
        let found: Vec<_> = mount_points(text).collect();
        assert_eq!(
            found,
            [
                Path::new("/sys/fs/cgroup/unified"),
                Path::new("/sys/fs/cgroup/cpu")
            ]
        );
    }
}
