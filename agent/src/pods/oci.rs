//! A container of a pod as the OCI runtime specification describes it. Pure, but for asking which cgroup controllers exist.

use std::{collections::HashSet, fs, path::PathBuf};

use k8s_openapi::api::core::v1::{Capabilities, Container, Pod, ResourceRequirements};
use oci_spec::{
    OciSpecError,
    runtime::{
        Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpuBuilder, LinuxDeviceCgroupBuilder,
        LinuxMemoryBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, LinuxResourcesBuilder,
        Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
        get_default_maskedpaths, get_default_readonly_paths,
    },
};

use super::quantity;

/// What containers may do unless their pod says otherwise, as container engines have it.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// The period over which a CPU limit is measured, in microseconds: the kernel's default.
const CPU_PERIOD_US: u32 = 100_000;
/// The smallest quota that the kernel takes, in microseconds.
const MIN_CPU_QUOTA_US: i64 = 1000;
/// The smallest weight that the kernel takes.
const MIN_CPU_SHARES: u64 = 2;

/// Who a container's program runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserIds {
    /// The user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Further groups.
    pub additional: Vec<u32>,
}

/// What a container's specification is made of.
#[derive(Debug)]
pub struct Input<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container.
    pub container: &'a Container,
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Where it starts.
    pub cwd: PathBuf,
    /// Who it runs as.
    pub user: UserIds,
    /// Where its root file system is mounted.
    pub rootfs: PathBuf,
    /// Its host name.
    pub hostname: String,
    /// What is mounted beside the usual.
    pub binds: Vec<Bind>,
    /// Its cgroup.
    pub cgroup: String,
    /// The controllers that this node has.
    pub controllers: &'a HashSet<String>,
    /// The capabilities that this process may give.
    pub grantable: &'a HashSet<Capability>,
}

/// A file or directory of the node in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the node.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether it may be written.
    pub read_only: bool,
}

/// Why there is no specification for a container.
#[derive(Debug, thiserror::Error)]
pub enum OciError {
    /// The pod asks for something that this runtime does not do.
    #[error("{0} is not offered by this runtime")]
    NotOffered(&'static str),
    /// A capability that nobody knows.
    #[error("{0:?} is not a capability")]
    Capability(String),
    /// A value is out of range.
    #[error("building the container's specification")]
    Build(#[from] OciSpecError),
}

/// Builds the specification; also says what was left out because the node does not have it.
pub fn spec(input: &Input<'_>) -> Result<(Spec, Vec<String>), OciError> {
    let pod_spec = input.pod.spec.clone().unwrap_or_default();
    if pod_spec.host_pid == Some(true) {
        return Err(OciError::NotOffered("hostPID"));
    }
    if pod_spec.share_process_namespace == Some(true) {
        return Err(OciError::NotOffered("shareProcessNamespace"));
    }
    if input.container.tty == Some(true) || input.container.stdin == Some(true) {
        return Err(OciError::NotOffered("a terminal or standard input (tty, stdin)"));
    }
    let context = input.container.security_context.as_ref();
    if context.is_some_and(|c| c.seccomp_profile.as_ref().is_some_and(|p| p.type_ == "Localhost")) {
        return Err(OciError::NotOffered("a seccomp profile of the node"));
    }
    let privileged = context.and_then(|c| c.privileged).unwrap_or(false);
    let mut warnings = Vec::new();
    let resources = resources(
        input.container.resources.as_ref(),
        privileged,
        input.controllers,
        &mut warnings,
    )?;
    let capabilities = capabilities(
        context.and_then(|c| c.capabilities.as_ref()),
        privileged,
        input.grantable,
    )?;
    let mut namespaces = vec![
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Uts,
    ];
    if pod_spec.host_ipc != Some(true) {
        namespaces.push(LinuxNamespaceType::Ipc);
    }
    // No network namespace: the shim is in the pod's, and its children are born there.
    let namespaces = namespaces
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect::<Result<Vec<_>, _>>()?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources)
        .cgroups_path(&input.cgroup);
    linux = if privileged {
        linux.masked_paths(Vec::new()).readonly_paths(Vec::new())
    } else {
        linux
            .masked_paths(get_default_maskedpaths())
            .readonly_paths(get_default_readonly_paths())
    };
    let all_of = |kept: &HashSet<Capability>| kept.clone();
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(
            UserBuilder::default()
                .uid(input.user.uid)
                .gid(input.user.gid)
                .additional_gids(input.user.additional.clone())
                .build()?,
        )
        .args(input.args.clone())
        .env(input.env.clone())
        .cwd(input.cwd.clone())
        .no_new_privileges(context.and_then(|c| c.allow_privilege_escalation) == Some(false))
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(all_of(&capabilities))
                .effective(all_of(&capabilities))
                .permitted(all_of(&capabilities))
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        );
    let mut process = process.build()?;
    // Limits are the node's: raising hard ones needs a privilege that nodes may lack.
    process.set_rlimits(None);
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path(&input.rootfs)
                .readonly(context.and_then(|c| c.read_only_root_filesystem).unwrap_or(false))
                .build()?,
        )
        .hostname(&input.hostname)
        .mounts(mounts(&input.binds, privileged, pod_spec.host_ipc == Some(true))?)
        .process(process)
        .linux(linux.build()?)
        .build()?;
    Ok((spec, warnings))
}

/// The controllers of the node's cgroup hierarchies: of version 1 where they are mounted, else of version 2.
pub fn controllers() -> HashSet<String> {
    let mut found: HashSet<String> = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    for line in fs::read_to_string("/proc/self/cgroup")
        .unwrap_or_default()
        .lines()
    {
        if let Some(names) = line.split(':').nth(1) {
            found.extend(
                names
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            );
        }
    }
    found
}

/// The capabilities in this process' bounding set: it cannot give others.
pub fn grantable() -> HashSet<Capability> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let bits = status
        .lines()
        .find_map(|line| line.strip_prefix("CapBnd:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(u64::MAX);
    // In the kernel's order: the position is the number.
    NUMBERED_CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(number, _)| bits >> number & 1 == 1)
        .map(|(_, capability)| *capability)
        .collect()
}

/// All capabilities, in the order of their numbers.
const NUMBERED_CAPABILITIES: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

fn capabilities(
    wanted: Option<&Capabilities>,
    privileged: bool,
    grantable: &HashSet<Capability>,
) -> Result<HashSet<Capability>, OciError> {
    let parse = |name: &String| -> Result<Vec<Capability>, OciError> {
        if name == "ALL" {
            return Ok(NUMBERED_CAPABILITIES.to_vec());
        }
        let bare = name.strip_prefix("CAP_").unwrap_or(name);
        let parsed: Result<Capability, _> = serde_json::from_value(format!("CAP_{bare}").into());
        parsed
            .map(|capability| vec![capability])
            .map_err(|_| OciError::Capability(name.clone()))
    };
    let mut set: HashSet<Capability> = if privileged {
        NUMBERED_CAPABILITIES.into_iter().collect()
    } else {
        DEFAULT_CAPABILITIES.into_iter().collect()
    };
    let names = |list: Option<&Option<Vec<String>>>| list.cloned().flatten().unwrap_or_default();
    for name in &names(wanted.map(|w| &w.drop)) {
        for capability in parse(name)? {
            set.remove(&capability);
        }
    }
    for name in &names(wanted.map(|w| &w.add)) {
        set.extend(parse(name)?);
    }
    set.retain(|capability| grantable.contains(capability));
    Ok(set)
}

fn resources(
    wanted: Option<&ResourceRequirements>,
    privileged: bool,
    controllers: &HashSet<String>,
    warnings: &mut Vec<String>,
) -> Result<LinuxResources, OciError> {
    let amount = |limits: bool, name: &str| {
        let map = wanted.and_then(|w| {
            if limits {
                w.limits.as_ref()
            } else {
                w.requests.as_ref()
            }
        });
        map.and_then(|map| map.get(name))
    };
    let mut builder = LinuxResourcesBuilder::default();
    let cpu_limit = amount(true, "cpu").and_then(quantity::milli);
    let cpu_request = amount(false, "cpu").and_then(quantity::milli).or(cpu_limit);
    if cpu_request.is_some() || cpu_limit.is_some() {
        if controllers.contains("cpu") {
            let mut cpu = LinuxCpuBuilder::default();
            if let Some(milli) = cpu_request {
                let shares = u64::try_from(milli).unwrap_or(0) * 1024 / 1000;
                cpu = cpu.shares(shares.max(MIN_CPU_SHARES));
            }
            if let Some(milli) = cpu_limit {
                let quota = milli.saturating_mul(i64::from(CPU_PERIOD_US) / 1000);
                cpu = cpu
                    .quota(quota.max(MIN_CPU_QUOTA_US))
                    .period(u64::from(CPU_PERIOD_US));
            }
            builder = builder.cpu(cpu.build()?);
        } else {
            warnings
                .push("this node has no cpu cgroup controller: CPU shares and limits do not hold".to_owned());
        }
    }
    if let Some(bytes) = amount(true, "memory").and_then(quantity::units) {
        if controllers.contains("memory") {
            builder = builder.memory(LinuxMemoryBuilder::default().limit(bytes).build()?);
        } else {
            warnings
                .push("this node has no memory cgroup controller: the memory limit does not hold".to_owned());
        }
    }
    if !privileged && controllers.contains("devices") {
        // Nothing, and then what the runtime always allows: null, zero, random, terminals.
        builder = builder.devices(vec![
            LinuxDeviceCgroupBuilder::default()
                .allow(false)
                .access("rwm")
                .build()?,
        ]);
    }
    Ok(builder.build()?)
}

fn mounts(binds: &[Bind], privileged: bool, host_ipc: bool) -> Result<Vec<Mount>, OciError> {
    let mount = |target: &str, kind: &str, options: &[&str]| {
        MountBuilder::default()
            .destination(target)
            .typ(kind)
            .source(kind)
            .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
            .build()
    };
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        )?,
    ];
    if !host_ipc {
        mounts.push(mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?);
    }
    let sysfs: &[&str] = if privileged {
        &["nosuid", "noexec", "nodev"]
    } else {
        &["nosuid", "noexec", "nodev", "ro"]
    };
    mounts.push(mount("/sys", "sysfs", sysfs)?);
    // Parents before what is mounted inside them.
    let mut sorted: Vec<&Bind> = binds.iter().collect();
    sorted.sort_by_key(|bind| bind.target.components().count());
    for bind in sorted {
        let access = if bind.read_only { "ro" } else { "rw" };
        mounts.push(
            MountBuilder::default()
                .destination(&bind.target)
                .typ("bind")
                .source(&bind.source)
                .options(["rbind", "rprivate", access].map(str::to_owned).to_vec())
                .build()?,
        );
    }
    Ok(mounts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input<'a>(
        pod: &'a Pod,
        container: &'a Container,
        controllers: &'a HashSet<String>,
        grantable: &'a HashSet<Capability>,
    ) -> Input<'a> {
        Input {
            pod,
            container,
            args: vec!["/x".to_owned()],
            env: vec![],
            cwd: "/".into(),
            user: UserIds::default(),
            rootfs: "/r".into(),
            hostname: "h".to_owned(),
            binds: vec![],
            cgroup: "/c".to_owned(),
            controllers,
            grantable,
        }
    }

    fn container(json: serde_json::Value) -> Container {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn limits_become_cgroup_settings_where_the_controllers_exist() {
        let container = container(serde_json::json!({"name": "c", "resources": {
            "requests": {"cpu": "250m"}, "limits": {"cpu": "500m", "memory": "64Mi"},
        }}));
        let pod = Pod::default();
        let all = HashSet::from(["cpu".to_owned(), "memory".to_owned()]);
        let grantable = grantable();
        let (built, warnings) = spec(&input(&pod, &container, &all, &grantable)).unwrap();
        let resources = built.linux().clone().unwrap().resources().clone().unwrap();
        let cpu = resources.cpu().clone().unwrap();
        assert_eq!((cpu.shares(), cpu.quota()), (Some(256), Some(50_000)));
        assert_eq!(resources.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(warnings, Vec::<String>::new());

        let none = HashSet::new();
        let (built, warnings) = spec(&input(&pod, &container, &none, &grantable)).unwrap();
        let resources = built.linux().clone().unwrap().resources().clone().unwrap();
        assert!(resources.cpu().is_none() && resources.memory().is_none());
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn what_is_not_offered_is_refused_by_name() {
        for (spec_json, container_json, word) in [
            (
                serde_json::json!({"hostPID": true}),
                serde_json::json!({"name": "c"}),
                "hostPID",
            ),
            (
                serde_json::json!({}),
                serde_json::json!({"name": "c", "tty": true}),
                "tty",
            ),
            (
                serde_json::json!({}),
                serde_json::json!({"name": "c", "securityContext": {"capabilities": {"add": ["FLY"]}}}),
                "FLY",
            ),
        ] {
            let mut spec_json = spec_json;
            spec_json["containers"] = serde_json::json!([]);
            let pod: Pod = serde_json::from_value(serde_json::json!({"spec": spec_json})).unwrap();
            let container = container(container_json);
            let (none, grantable) = (HashSet::new(), grantable());
            let error = spec(&input(&pod, &container, &none, &grantable)).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn capabilities_are_dropped_before_they_are_added() {
        let all: HashSet<Capability> = NUMBERED_CAPABILITIES.into_iter().collect();
        let wanted: Capabilities =
            serde_json::from_value(serde_json::json!({"drop": ["ALL"], "add": ["NET_ADMIN", "CAP_KILL"]}))
                .unwrap();
        let got = capabilities(Some(&wanted), false, &all).unwrap();
        assert_eq!(got, HashSet::from([Capability::NetAdmin, Capability::Kill]));
        let some = HashSet::from([Capability::Kill]);
        assert_eq!(capabilities(None, true, &some).unwrap(), some);
    }
}
