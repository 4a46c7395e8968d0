//! `weft install` and `weft uninstall`: the node software as services of the machine, and back to how it was.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use weft_cni::protocol::PLUGIN_TYPE;

use crate::{
    config::AgentArgs,
    conflist::{self, FILE_NAME, InstallError, failed, remove_file, write_if_changed},
    datapath::{
        POD_GROUP,
        bpffs::{self, BpffsError},
        netlink::{Netlink, NetlinkError},
        nftables::{self, NftablesError},
        programs::{Dataplane, DataplaneError},
        sysctl::{SysctlError, Sysctls},
    },
    mac::MacAddress,
    pods::{self, PodsError},
    reconcile::network::sysctl_record,
};

const AGENT_UNIT: &str = "weft-agent.service";
const CONTROLLER_UNIT: &str = "weft-controller.service";

/// `weft install …`.
#[derive(Debug, clap::Args)]
pub struct InstallArgs {
    /// Install the controller too
    #[arg(long)]
    pub controller: bool,
    /// Directory for the programs
    #[arg(long, default_value = "/usr/local/bin")]
    pub bin_dir: PathBuf,
    /// Directory for units
    #[arg(long, default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
    /// Do not tell systemd
    #[arg(long)]
    pub no_systemctl: bool,
    #[command(flatten)]
    pub agent: AgentArgs,
}

/// `weft uninstall …`.
#[derive(Debug, clap::Args)]
pub struct UninstallArgs {
    /// Directory of the programs
    #[arg(long, default_value = "/usr/local/bin")]
    pub bin_dir: PathBuf,
    /// Directory of units
    #[arg(long, default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
    /// Do not tell systemd
    #[arg(long)]
    pub no_systemctl: bool,
    /// Keep the state directory: images and the node's certificate
    #[arg(long)]
    pub keep_state: bool,
    /// The agent's state directory
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// The agent's directory of sockets
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// Where programs and maps are pinned
    #[arg(
        long = "bpffs-root",
        alias = "bpffs",
        env = "WEFT_BPFFS_ROOT",
        default_value = "/run/weft/bpf"
    )]
    pub bpffs_root: PathBuf,
    /// Name of the overlay device
    #[arg(long, env = "WEFT_OVERLAY_INTERFACE", default_value = "weft0")]
    pub overlay_interface: String,
    /// Number of the filter block
    #[arg(long, env = "WEFT_FILTER_BLOCK", default_value_t = crate::datapath::programs::DEFAULT_FILTER_BLOCK, hide = true)]
    pub filter_block: u32,
    /// Directory of CNI configurations
    #[arg(long, env = "WEFT_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory of CNI plugins
    #[arg(long, env = "WEFT_CNI_BIN_DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

/// Why the machine could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file.
    #[error(transparent)]
    File(#[from] InstallError),
    /// A service.
    #[error("systemctl {0} failed")]
    Systemctl(String),
    /// A link or route.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Programs.
    #[error(transparent)]
    Dataplane(#[from] DataplaneError),
    /// The BPF file system.
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    /// Settings.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// Masquerading.
    #[error(transparent)]
    Nftables(#[from] NftablesError),
    /// Pods.
    #[error(transparent)]
    Pods(#[from] PodsError),
    /// Some of it is still there.
    #[error("not all was removed: {}", .0.join("; "))]
    Remains(Vec<String>),
}

/// Installs what this program's directory holds. What is the same already is left alone; every change is a line.
pub fn install(args: &InstallArgs) -> Result<Vec<String>, MachineError> {
    let mut done = Vec::new();
    let mut note = |changed: bool, path: &Path| {
        if changed {
            done.push(format!("installed {}", path.display()));
        }
    };
    let program = std::env::current_exe().map_err(failed(Path::new("/proc/self/exe"), "read"))?;
    let weft = args.bin_dir.join("weft");
    for (name, from) in [
        ("weft", program.clone()),
        (PLUGIN_TYPE, program.with_file_name(PLUGIN_TYPE)),
    ] {
        let to = args.bin_dir.join(name);
        if from != to {
            let content = fs::read(&from).map_err(failed(&from, "read"))?;
            note(write_if_changed(&to, &content, 0o755)?, &to);
        }
    }
    let agent = &args.agent;
    let conf_dir = agent
        .cni_conf_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("/etc/cni/net.d"));
    let bin_dir = agent
        .cni_bin_dir
        .clone()
        .unwrap_or_else(|| PathBuf::from("/opt/cni/bin"));
    note(conflist::install_plugin(&bin_dir)?, &bin_dir.join(PLUGIN_TYPE));
    let socket = agent
        .socket
        .clone()
        .unwrap_or_else(|| agent.run_dir.join("agent.sock"));
    let queue = agent
        .cni_queue_dir
        .clone()
        .unwrap_or_else(|| agent.state_dir.join("cni-queue"));
    note(
        conflist::install(&conf_dir, &agent.cni_version, &socket, &queue)?,
        &conf_dir.join(FILE_NAME),
    );

    let mut units = vec![(
        AGENT_UNIT,
        unit("node agent", &format!("{} agent{}", weft.display(), flags(agent))),
    )];
    if args.controller {
        units.push((
            CONTROLLER_UNIT,
            unit("control plane", &format!("{} controller", weft.display())),
        ));
    }
    let mut changed = false;
    for (name, text) in &units {
        let path = args.unit_dir.join(name);
        let written = write_if_changed(&path, text.as_bytes(), 0o600)?;
        note(written, &path);
        changed |= written;
    }
    if changed && !args.no_systemctl {
        systemctl(&["daemon-reload"])?;
        for (name, _) in &units {
            systemctl(&["enable", "--now", name])?;
            done.push(format!("started {name}"));
        }
    }
    Ok(done)
}

/// The flags with which the agent is to be started: those that were given to `install`.
fn flags(agent: &AgentArgs) -> String {
    // Whole: a flag that is forgotten here is lost on the way to the agent.
    let AgentArgs {
        server,
        token,
        ca_hash,
        ca_file,
        kubeconfig,
        node_name,
        node_ip,
        node_labels,
        max_pods,
        state_dir,
        run_dir,
        socket,
        bpffs_root,
        cgroup_root,
        cni_queue_dir,
        cni_conf_dir,
        cni_bin_dir,
        cni_version,
        underlay_interface,
        overlay_interface,
        vni,
        tunnel_port,
        encap,
        filter_block,
        cluster_cidr,
        runtime,
        lease_interval_ms,
        reconcile_interval_ms,
        address_rest_seconds,
    } = agent;
    let path = |path: &PathBuf| path.display().to_string();
    let given = [
        ("server", server.clone()),
        ("token", token.clone()),
        ("ca-hash", ca_hash.clone()),
        ("ca-file", ca_file.as_ref().map(path)),
        ("kubeconfig", kubeconfig.as_ref().map(path)),
        ("node-name", node_name.clone()),
        ("max-pods", Some(max_pods.to_string())),
        ("state-dir", Some(path(state_dir))),
        ("run-dir", Some(path(run_dir))),
        ("socket", socket.as_ref().map(path)),
        ("bpffs-root", Some(path(bpffs_root))),
        ("cgroup-root", Some(cgroup_root.clone())),
        ("cni-queue-dir", cni_queue_dir.as_ref().map(path)),
        ("cni-conf-dir", cni_conf_dir.as_ref().map(path)),
        ("cni-bin-dir", cni_bin_dir.as_ref().map(path)),
        ("cni-version", Some(cni_version.clone())),
        ("underlay-interface", underlay_interface.clone()),
        ("overlay-interface", Some(overlay_interface.clone())),
        ("vni", Some(vni.to_string())),
        ("tunnel-port", Some(tunnel_port.to_string())),
        ("encap", name_of(*encap)),
        ("filter-block", Some(filter_block.to_string())),
        ("runtime", name_of(*runtime)),
        ("lease-interval-ms", Some(lease_interval_ms.to_string())),
        ("reconcile-interval-ms", Some(reconcile_interval_ms.to_string())),
        ("address-rest-seconds", Some(address_rest_seconds.to_string())),
    ];
    let once = given.into_iter().filter_map(|(flag, value)| Some((flag, value?)));
    let several = (node_ip.iter().map(|ip| ("node-ip", ip.to_string())))
        .chain(node_labels.iter().map(|label| ("node-label", label.clone())))
        .chain(cluster_cidr.iter().map(|cidr| ("cluster-cidr", cidr.to_string())));
    let flags = once.chain(several);
    let flags: Vec<String> = flags
        .map(|(flag, value)| format!(" --{flag} {}", word(&value)))
        .collect();
    flags.concat()
}

fn name_of(value: impl clap::ValueEnum) -> Option<String> {
    let value = value.to_possible_value()?;
    Some(value.get_name().to_owned())
}

/// A word of a unit's command line, as systemd reads it.
fn word(text: &str) -> String {
    let text = text.replace('%', "%%").replace('$', "$$");
    if text.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | ';')) {
        format!("{text:?}")
    } else {
        text
    }
}

fn unit(what: &str, command: &str) -> String {
    // Pods outlive the agent: systemd must end the agent's process alone.
    format!(
        "[Unit]\nDescription=Weft {what}\nWants=network-online.target\nAfter=network-online.target\n\n\
         [Service]\nExecStart={command}\nRestart=always\nRestartSec=1\nKillMode=process\nDelegate=yes\n\
         LimitNOFILE=1048576\nTasksMax=infinity\n\n[Install]\nWantedBy=multi-user.target\n"
    )
}

fn systemctl(args: &[&str]) -> Result<(), MachineError> {
    let failed = || MachineError::Systemctl(args.join(" "));
    let status = Command::new("systemctl")
        .args(args)
        .status()
        .map_err(|_| failed())?;
    if status.success() { Ok(()) } else { Err(failed()) }
}

/// Removes everything of Weft. It goes on after a failure and names all of them at the end.
pub fn uninstall(args: &UninstallArgs) -> Result<Vec<String>, MachineError> {
    let mut done = Vec::new();
    let mut remains = Vec::new();
    let mut step = |what: &str, outcome: Result<bool, MachineError>| match outcome {
        Ok(true) => done.push(format!("removed {what}")),
        Ok(false) => {}
        Err(error) => remains.push(format!("{what}: {error}")),
    };
    for unit in [AGENT_UNIT, CONTROLLER_UNIT] {
        let path = args.unit_dir.join(unit);
        if path.exists() && !args.no_systemctl {
            step(unit, systemctl(&["disable", "--now", unit]).map(|()| true));
        }
        step(
            &path.display().to_string(),
            remove_file(&path).map_err(Into::into),
        );
    }
    if !args.no_systemctl {
        // Without systemd there is nothing to tell.
        let _ = systemctl(&["daemon-reload"]);
    }
    step("pods", pods::purge(&args.state_dir).map_err(Into::into));
    step("pods' links", remove_pods().map(|()| true));
    step("programs and maps", remove_programs(args).map(|()| true));
    step(&args.overlay_interface, remove_overlay(&args.overlay_interface));
    step(
        "masquerading",
        nftables::remove().map(|()| true).map_err(Into::into),
    );
    step(
        "changed settings",
        Sysctls::open(&sysctl_record(&args.state_dir))
            .restore()
            .map(|()| true)
            .map_err(Into::into),
    );
    let files = [
        args.cni_conf_dir.join(FILE_NAME),
        args.cni_bin_dir.join(PLUGIN_TYPE),
        args.bin_dir.join(PLUGIN_TYPE),
        args.bin_dir.join("weft"),
    ];
    for path in files {
        step(
            &path.display().to_string(),
            remove_file(&path).map_err(Into::into),
        );
    }
    let mut directories = vec![&args.run_dir];
    if !args.keep_state {
        directories.push(&args.state_dir);
    }
    for dir in directories {
        let outcome = if dir.exists() {
            fs::remove_dir_all(dir)
                .map(|()| true)
                .map_err(failed(dir, "removed"))
        } else {
            Ok(false)
        };
        step(&dir.display().to_string(), outcome.map_err(Into::into));
    }
    if remains.is_empty() {
        Ok(done)
    } else {
        Err(MachineError::Remains(remains))
    }
}

fn remove_pods() -> Result<(), MachineError> {
    Ok(Netlink::open()?.delete_link_group(POD_GROUP)?)
}

fn remove_programs(args: &UninstallArgs) -> Result<(), MachineError> {
    Dataplane::detach_all(&args.bpffs_root, args.filter_block)?;
    Ok(bpffs::remove(&args.bpffs_root)?)
}

fn remove_overlay(name: &str) -> Result<bool, MachineError> {
    let netlink = Netlink::open()?;
    for route in netlink.own_routes()? {
        netlink.delete_route(&route)?;
    }
    match netlink.link_by_name(name)? {
        Some(link) if link.mac == Some(MacAddress::OVERLAY) && link.vxlan.is_some() => {
            netlink.delete_link(link.index, name)?;
            Ok(true)
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    /// Every flag of the agent but those that exclude each other, none with its default.
    const FLAGS: &str = "--node-name n --node-ip 192.0.2.1 --node-ip 2001:db8::1 --node-label a=b --node-label c=d \
        --max-pods 9 --state-dir /s --run-dir /r --socket /r/x.sock --bpffs-root /b --cgroup-root /c --cni-queue-dir /q \
        --cni-conf-dir /e --cni-bin-dir /o --cni-version 0.4.0 --underlay-interface u --overlay-interface o --vni 7 \
        --tunnel-port 8472 --encap device --filter-block 99 --cluster-cidr 10.0.0.0/8 --runtime none --lease-interval-ms 1 \
        --reconcile-interval-ms 2 --address-rest-seconds 3";

    fn parse(command: &str, flags: &str) -> AgentArgs {
        let words = ["weft", command].into_iter().chain(flags.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Agent(agent) => *agent,
            Command::Install(install) => install.agent,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_agent_is_started_with_what_install_was_told() {
        for ways in [
            "--server https://192.0.2.9:6443 --token abcdef.0123456789abcdef --ca-hash sha256:00",
            "--kubeconfig /k --ca-file /a",
            "",
        ] {
            let told = parse("install", &format!("{ways} {FLAGS}"));
            let started = parse("agent", &flags(&told));
            assert_eq!(format!("{told:?}"), format!("{started:?}"));
        }
    }

    #[test]
    fn systemd_reads_words_as_they_are() {
        for (text, word_of_unit) in [
            ("/var/lib/weft", "/var/lib/weft"),
            ("/var/a b", "\"/var/a b\""),
            ("100%", "100%%"),
            ("$HOME", "$$HOME"),
            ("a\"b", "\"a\\\"b\""),
        ] {
            assert_eq!(word(text), word_of_unit);
        }
    }
}
