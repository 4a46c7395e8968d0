//! `weft ipam check`: do the ledger, the checkpoints, the agent, the kernel and the API agree?

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use crate::{
    endpoint::{AttachmentKey, CheckpointError, checkpoint, checkpoints_dir, ledger_path},
    ipam::ledger::{self, LedgerError},
    machine,
    node_sync::{memory_path, remembered},
    status::{self, StatusError},
};

/// `weft ipam …`.
#[derive(Debug, clap::Args)]
pub struct IpamArgs {
    /// What to do
    #[command(subcommand)]
    pub command: IpamCommand,
}

/// The verbs of `weft ipam`.
#[derive(Debug, clap::Subcommand)]
pub enum IpamCommand {
    /// Prove that the ledger, the checkpoints and the running agent agree.
    Check {
        /// The agent's state directory
        #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
        state_dir: PathBuf,
        /// The agent's status socket [default: what the agent has noted in its state directory]
        #[arg(long, env = "WEFT_STATUS_SOCKET")]
        status_socket: Option<PathBuf>,
    },
}

/// Why the check could not be made, or what it found.
#[derive(Debug, thiserror::Error)]
pub enum IpamCheckError {
    /// There is none.
    #[error("no agent has used the state directory {0} yet; name the agent's with --state-dir")]
    NoLedger(PathBuf),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The checkpoints.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The agent.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// They do not agree.
    #[error("they do not agree:\n  {}", .0.join("\n  "))]
    Disagree(Vec<String>),
}

/// Runs the check. The line says what agrees.
pub fn run(args: IpamArgs) -> Result<String, IpamCheckError> {
    let IpamCommand::Check {
        state_dir,
        status_socket,
    } = args.command;
    let status_socket = status_socket.unwrap_or_else(|| status::noted_socket(&state_dir));
    let boot_id = machine::boot_id();
    let ledger = ledger_path(&state_dir);
    if !ledger.exists() {
        return Err(IpamCheckError::NoLedger(state_dir));
    }
    let leased = ledger::inspect(&ledger, &boot_id)?.held;
    let (checkpoints, _) = checkpoint::inspect(&checkpoints_dir(&state_dir))?;
    let written: BTreeMap<IpAddr, AttachmentKey> = checkpoints
        .into_iter()
        .filter(|checkpoint| checkpoint.boot_id == boot_id)
        .flat_map(|checkpoint| {
            let key = checkpoint.key;
            checkpoint
                .attached
                .ips
                .into_iter()
                .map(move |ip| (ip.ip(), key.clone()))
        })
        .collect();
    let status = status::fetch(&status_socket)?;
    let served: BTreeMap<IpAddr, AttachmentKey> = status
        .endpoints
        .iter()
        .flat_map(|endpoint| {
            endpoint
                .attached
                .ips
                .iter()
                .map(|ip| (ip.ip(), endpoint.key.clone()))
        })
        .collect();
    let own = remembered(&memory_path(&state_dir))
        .nodes
        .remove(&status.view.node)
        .unwrap_or_default();

    let mut differences = Vec::new();
    compare(
        &leased,
        &written,
        "the ledger",
        "the checkpoints",
        &mut differences,
    );
    compare(
        &written,
        &served,
        "the checkpoints",
        "the agent",
        &mut differences,
    );
    for ip in served.keys().filter(|ip| !status.entries.contains(ip)) {
        differences.push(format!("{ip} is served by the agent and not in the kernel"));
    }
    for ip in status.entries.iter().filter(|ip| !served.contains_key(ip)) {
        differences.push(format!("{ip} is in the kernel and not served by the agent"));
    }
    for ip in leased.keys() {
        if !own.pod_cidrs.iter().any(|cidr| cidr.contains(*ip)) {
            differences.push(format!("{ip} is leased and of none of the node's pod CIDRs"));
        }
    }
    if differences.is_empty() {
        Ok(format!(
            "{} addresses: ledger, checkpoints, agent, kernel and API agree",
            leased.len()
        ))
    } else {
        Err(IpamCheckError::Disagree(differences))
    }
}

fn compare(
    one: &BTreeMap<IpAddr, AttachmentKey>,
    other: &BTreeMap<IpAddr, AttachmentKey>,
    one_name: &str,
    other_name: &str,
    differences: &mut Vec<String>,
) {
    for (ip, key) in one {
        match other.get(ip) {
            None => differences.push(format!("{ip} is {key}'s in {one_name} and not in {other_name}")),
            Some(found) if found != key => {
                differences.push(format!(
                    "{ip} is {key}'s in {one_name} and {found}'s in {other_name}"
                ));
            }
            Some(_) => {}
        }
    }
    for (ip, key) in other.iter().filter(|(ip, _)| !one.contains_key(ip)) {
        differences.push(format!("{ip} is {key}'s in {other_name} and not in {one_name}"));
    }
}
