//! What a machine holds at one moment, and what of it should not be there later.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Result, bail};

use crate::lab::{LAB_ENV, ROOT};
use crate::machine::Machine;
use crate::observe;

/// Everything on a machine that an attachment or a pod could leave behind, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    kinds: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at the machine: its devices, routes, mounts, network namespaces, processes and cgroups, and the files below `dirs`.
    ///
    /// # Errors
    /// If the machine is gone.
    pub fn take(machine: &Machine, dirs: &[&Path]) -> Result<Self> {
        let mut kinds = BTreeMap::new();
        kinds.insert("link", observe::link_names(machine)?.into_iter().collect());
        let mut routes = BTreeSet::new();
        // The underlay's link-local address comes when the kernel has made sure of it, maybe after the first look.
        let own = |line: &&str| line.contains("fe80::") && line.contains("dev eth0 ");
        for family in ["-4", "-6"] {
            let text = machine.run(&format!("ip {family} route show table all"))?;
            routes.extend(text.lines().filter(|line| !own(line)).map(str::to_owned));
        }
        kinds.insert("route", routes);
        let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", machine.holder_pid()))?;
        kinds.insert(
            "mount",
            mountinfo
                .lines()
                .filter_map(|line| line.split(' ').nth(4))
                .map(str::to_owned)
                .collect(),
        );
        let (processes, namespaces) = processes(machine)?;
        kinds.insert("process", processes);
        kinds.insert("netns", namespaces);
        let lab_cgroup = format!("weft-lab/{}", machine.lab().id());
        kinds.insert("cgroup", cgroups(&lab_cgroup));
        let mut files = BTreeSet::new();
        for dir in dirs {
            walk(&machine.outside_path(dir), &mut |path| {
                files.insert(path.to_owned());
            });
        }
        kinds.insert("file", files);
        Ok(Self { kinds })
    }

    /// What is in `later` and not in this snapshot, as `kind: thing`.
    pub fn added(&self, later: &Self) -> Vec<String> {
        difference(self, later)
    }

    /// What is in this snapshot and not in `later`.
    pub fn removed(&self, later: &Self) -> Vec<String> {
        difference(later, self)
    }

    /// Fails with a list of what `later` has beyond this snapshot.
    ///
    /// # Errors
    /// If there is anything.
    pub fn assert_nothing_added(&self, later: &Self) -> Result<()> {
        let added = self.added(later);
        if !added.is_empty() {
            bail!("left behind:\n  {}", added.join("\n  "));
        }
        Ok(())
    }

    /// The things of one kind: `link`, `route`, `mount`, `netns`, `process`, `cgroup` or `file`.
    pub fn of(&self, kind: &str) -> impl Iterator<Item = &str> {
        self.kinds.get(kind).into_iter().flatten().map(String::as_str)
    }

    /// Leaves out what `keep` says no to, before comparing.
    #[must_use]
    pub fn filtered(mut self, keep: impl Fn(&str, &str) -> bool) -> Self {
        for (kind, things) in &mut self.kinds {
            things.retain(|thing| keep(kind, thing));
        }
        self
    }
}

fn difference(from: &Snapshot, to: &Snapshot) -> Vec<String> {
    let empty = BTreeSet::new();
    to.kinds
        .iter()
        .flat_map(|(kind, things)| {
            things
                .difference(from.kinds.get(kind).unwrap_or(&empty))
                .map(move |thing| format!("{kind}: {thing}"))
        })
        .collect()
}

/// What a lab that has ended left on the machine that runs the tests, as `kind: thing`; nothing is what it should be.
pub fn of_lab(id: &str) -> Vec<String> {
    let mut left = Vec::new();
    if Path::new(ROOT).join(id).exists() {
        left.push(format!("directory: {ROOT}/{id}"));
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    left.extend(
        mounts
            .lines()
            .filter(|line| line.contains(id))
            .map(|line| format!("mount: {line}")),
    );
    left.extend(
        cgroups(&format!("weft-lab/{id}"))
            .into_iter()
            .map(|path| format!("cgroup: {path}")),
    );
    let mark = format!("{LAB_ENV}={id}");
    for (pid, dir) in pids() {
        let environment = fs::read(dir.join("environ")).unwrap_or_default();
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == mark.as_bytes())
        {
            left.push(format!("process: {pid} {}", command_line(&dir)));
        }
    }
    left
}

/// The machine's processes (their command lines) and the network namespaces that they are in, the machine's own left out.
fn processes(machine: &Machine) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let own =
        |kind: &str| fs::metadata(format!("/proc/{}/ns/{kind}", machine.holder_pid())).map(|meta| meta.ino());
    let (mount_ns, net_ns) = (own("mnt")?, own("net")?);
    let mut lines = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for (pid, dir) in pids() {
        // A container has namespaces of its own, but its shim, its parent, is of the machine.
        let inode = |kind: &str| fs::metadata(dir.join("ns").join(kind)).map_or(0, |meta| meta.ino());
        let lab = fs::read(dir.join("environ")).unwrap_or_default();
        let mark = format!("{LAB_ENV}={}", machine.lab().id());
        if inode("mnt") != mount_ns && !lab.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes()) {
            continue;
        }
        if inode("mnt") == mount_ns {
            lines.insert(format!("{pid} {}", command_line(&dir)));
            let net = inode("net");
            if net != net_ns && net != 0 {
                namespaces.insert(format!("net:[{net}]"));
            }
        }
    }
    let mountinfo = fs::read_to_string(format!("/proc/{}/mountinfo", machine.holder_pid()))?;
    for line in mountinfo.lines() {
        if let Some(root) = line.split(' ').nth(3).filter(|root| root.starts_with("net:[")) {
            namespaces.insert(root.to_owned());
        }
    }
    Ok((lines, namespaces))
}

fn pids() -> Vec<(u32, std::path::PathBuf)> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect()
}

fn command_line(dir: &Path) -> String {
    let raw = fs::read(dir.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

fn cgroups(path: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut tops = vec![Path::new("/sys/fs/cgroup").to_owned()];
    tops.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    for top in tops {
        let root = top.join(path);
        if root.is_dir() {
            found.insert(root.display().to_string());
            walk(&root, &mut |inner| {
                if Path::new(inner).is_dir() {
                    found.insert(inner.to_owned());
                }
            });
        }
    }
    found
}

fn walk(dir: &Path, visit: &mut impl FnMut(&str)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        visit(&path.display().to_string());
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&path, visit);
        }
    }
}
