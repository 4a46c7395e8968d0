//! The `weft` command line.

use std::path::PathBuf;

use crate::{
    config::AgentArgs,
    image::ImageArgs,
    install::{InstallArgs, UninstallArgs},
    ipam_check::IpamArgs,
    shim::ShimArgs,
    telemetry::LogFormat,
};

/// A pod network and a small control plane for Linux hosts.
#[derive(Debug, clap::Parser)]
#[command(name = "weft", version, propagate_version = true)]
pub struct Cli {
    /// What to log: a level, or levels by module
    #[arg(
        long,
        env = "WEFT_LOG",
        default_value = "info",
        global = true,
        help_heading = "Logging"
    )]
    pub log: String,
    /// The form of the log
    #[arg(
        long,
        env = "WEFT_LOG_FORMAT",
        value_enum,
        default_value_t,
        global = true,
        help_heading = "Logging"
    )]
    pub log_format: LogFormat,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

const AGENT_EXAMPLES: &str = "\
Examples:
  Join a cluster, with what the controller logs and `weft token create` prints:
    weft agent --server https://192.0.2.10:6443 --token <id>.<secret> --ca-hash sha256:<hash>
  Serve an existing Kubernetes cluster, whose container runtime calls the CNI plugin:
    weft agent --kubeconfig /etc/kubernetes/weft.kubeconfig --runtime none";
const CONTROLLER_EXAMPLES: &str = "\
Examples:
  The only controller of a cluster, for nodes that reach it at 192.0.2.10:
    weft controller --advertise-address 192.0.2.10
  It logs the command that nodes join with, and writes admin.kubeconfig into its data directory:
    KUBECONFIG=/var/lib/weft/controller/admin.kubeconfig kubectl get nodes
  One of several, which share an etcd and the `pki` directory:
    weft controller --advertise-address 192.0.2.10 --store etcd://192.0.2.21:2379
  Without Jobs and the scheduler:
    weft controller --advertise-address 192.0.2.10 --controllers='*,-job,-scheduler'
  Controllers and scheduler against an API server elsewhere; several of them stand by for each other:
    weft controller --kubeconfig admin.kubeconfig
  Some of them, under an election of their own, in a pod with a service account's token:
    weft controller --api https://kubernetes.default.svc --controllers=job,cronjob --leader-elect-resource-name=jobs

A controller must run once in a cluster: switch off in the other place what you run here, with --api-only or --controllers
under Weft, with kube-controller-manager's --controllers under Kubernetes.";
const INSTALL_EXAMPLES: &str = "\
Examples:
  A node:
    weft install --server https://192.0.2.10:6443 --token <id>.<secret> --ca-hash sha256:<hash>
  `weft uninstall` takes all of it away again.";

/// What `weft` can do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the node agent
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(Box<AgentArgs>),
    /// Run the control plane: API server, controllers, scheduler; or the latter two against an API server elsewhere
    #[command(after_help = CONTROLLER_EXAMPLES)]
    Controller(Box<weft_controller::Args>),
    /// Make, list and delete the tokens that machines join with
    Token(weft_controller::token::Args),
    /// Show the node at a glance
    Status(StatusArgs),
    /// Look after the node's addresses
    Ipam(IpamArgs),
    /// Load and list images
    Image(ImageArgs),
    /// Install the node software as services of this machine
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(Box<InstallArgs>),
    /// Remove all of Weft from this machine
    Uninstall(UninstallArgs),
    /// The process between a pod's containers and the agent
    #[command(hide = true)]
    PodShim(ShimArgs),
}

/// `weft status …`.
#[derive(Debug, clap::Args)]
pub struct StatusArgs {
    /// The agent's status socket
    #[arg(long, env = "WEFT_STATUS_SOCKET", default_value = "/run/weft/status.sock")]
    pub socket: PathBuf,
    /// The form of the answer
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}
