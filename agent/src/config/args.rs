//! The agent's flags.

use std::{net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;

use crate::datapath::programs::DEFAULT_FILTER_BLOCK;

/// `weft agent …`.
#[derive(Debug, Clone, clap::Args)]
pub struct AgentArgs {
    /// API server to join, as https://host:port
    #[arg(long, env = "WEFT_SERVER")]
    pub server: Option<String>,
    /// Bootstrap token, <id>.<secret>; needed until the node has its certificate
    #[arg(long, env = "WEFT_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Hash of the cluster CA's public key, sha256:<hex>
    #[arg(long, env = "WEFT_CA_HASH")]
    pub ca_hash: Option<String>,
    /// The cluster CA's certificate, in place of its hash
    #[arg(long, env = "WEFT_CA_FILE", conflicts_with = "ca_hash")]
    pub ca_file: Option<PathBuf>,
    /// Kubeconfig of an existing cluster, in place of joining
    #[arg(long, env = "WEFT_KUBECONFIG", conflicts_with_all = ["server", "token"])]
    pub kubeconfig: Option<PathBuf>,

    /// Name of this node [default: the host name]
    #[arg(long, env = "WEFT_NODE_NAME")]
    pub node_name: Option<String>,
    /// Address of this node, one of each family at most [default: those of the underlay interface]
    #[arg(long, env = "WEFT_NODE_IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Label that the node registers with, key=value
    #[arg(long = "node-label", env = "WEFT_NODE_LABELS", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Most pods that are placed on this node
    #[arg(long, env = "WEFT_MAX_PODS", default_value_t = 110)]
    pub max_pods: u32,

    /// Directory of what the agent must remember
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft")]
    pub state_dir: PathBuf,
    /// Directory of sockets
    #[arg(long, env = "WEFT_RUN_DIR", default_value = "/run/weft")]
    pub run_dir: PathBuf,
    /// Socket for the CNI plugin [default: <run-dir>/agent.sock]
    #[arg(long, env = "WEFT_SOCKET")]
    pub socket: Option<PathBuf>,
    /// Directory where programs and maps are pinned; a BPF file system is mounted there if it is none
    #[arg(
        long = "bpffs-root",
        alias = "bpffs",
        env = "WEFT_BPFFS_ROOT",
        default_value = "/run/weft/bpf"
    )]
    pub bpffs_root: PathBuf,
    /// Cgroup under which pods run, absolute within the hierarchy
    #[arg(long, env = "WEFT_CGROUP_ROOT", default_value = "/weft")]
    pub cgroup_root: String,
    /// Directory where the plugin queues deletions [default: <state-dir>/cni-queue]
    #[arg(long, env = "WEFT_CNI_QUEUE_DIR")]
    pub cni_queue_dir: Option<PathBuf>,
    /// Directory where the agent puts its CNI configuration once it serves
    #[arg(long, env = "WEFT_CNI_CONF_DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Directory where the agent puts the CNI plugin, which is beside its own program
    #[arg(long, env = "WEFT_CNI_BIN_DIR")]
    pub cni_bin_dir: Option<PathBuf>,
    /// CNI version of the configuration
    #[arg(long, env = "WEFT_CNI_VERSION", default_value = "1.0.0")]
    pub cni_version: String,

    /// Device that carries the tunnel [default: the one of the node's address, else of the default route]
    #[arg(
        long = "underlay-interface",
        alias = "underlay",
        env = "WEFT_UNDERLAY_INTERFACE"
    )]
    pub underlay_interface: Option<String>,
    /// Name of the overlay device
    #[arg(long, env = "WEFT_OVERLAY_INTERFACE", default_value = "weft0")]
    pub overlay_interface: String,
    /// VXLAN network identifier, the same on all nodes
    #[arg(long, env = "WEFT_VNI", default_value_t = 1)]
    pub vni: u32,
    /// UDP port of the tunnel, the same on all nodes
    #[arg(long, env = "WEFT_TUNNEL_PORT", default_value_t = 4789)]
    pub tunnel_port: u16,
    /// Who writes the tunnel header
    #[arg(long, env = "WEFT_ENCAP", value_enum, default_value_t = Encap::Auto)]
    pub encap: Encap,
    /// Number of the filter block that pods' devices share
    #[arg(long, env = "WEFT_FILTER_BLOCK", default_value_t = DEFAULT_FILTER_BLOCK, hide = true)]
    pub filter_block: u32,
    /// Cluster CIDRs, which never leave by the underlay untunnelled [default: all nodes' pod CIDRs]
    #[arg(long, env = "WEFT_CLUSTER_CIDR", value_delimiter = ',')]
    pub cluster_cidr: Vec<IpNetwork>,

    /// What runs the node's pods
    #[arg(long, env = "WEFT_RUNTIME", value_enum, default_value_t = Runtime::Embedded)]
    pub runtime: Runtime,
    /// How often the node says that it is alive
    #[arg(long, env = "WEFT_LEASE_INTERVAL_MS", default_value_t = 10_000)]
    pub lease_interval_ms: u64,
    /// How often the whole node is compared with what it should be, in case no event told of a change
    #[arg(long, env = "WEFT_RECONCILE_INTERVAL_MS", default_value_t = 30_000)]
    pub reconcile_interval_ms: u64,
    /// How long a freed address rests before it is used again
    #[arg(long, env = "WEFT_ADDRESS_REST_SECONDS", default_value_t = 30)]
    pub address_rest_seconds: u64,
}

/// Who writes the tunnel header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Encap {
    /// What the self-test at start chooses.
    Auto,
    /// The program.
    #[value(alias = "direct")]
    Program,
    /// The kernel's VXLAN device.
    Device,
}

/// What runs the node's pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// The agent itself.
    Embedded,
    /// Someone else, who calls the plugin.
    None,
}
