//! What the agent is told: [`AgentArgs`] as it was typed, [`Config`] once it is known to make sense.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::IpNetwork;

use crate::{endpoint::MAX_IFNAME_BYTES, machine};

pub use args::{AgentArgs, Encap, Runtime};

mod args;

/// Why the arguments make no sense.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The node has no usable name.
    #[error("node name {0:?} is not valid: use lower-case letters, digits, '-' and '.' (--node-name)")]
    NodeName(String),
    /// There is no control plane to talk to.
    #[error(
        "give the API server to join (--server, with --token and --ca-hash or --ca-file), or a --kubeconfig"
    )]
    NoServer,
    /// The server's address is no URL.
    #[error("--server {0:?} is no https:// address")]
    Server(String),
    /// The server cannot be told from an impostor.
    #[error("--server needs --ca-hash or --ca-file, which `weft controller` prints")]
    NoCa,
    /// The hash has another form.
    #[error("--ca-hash {0:?} is not sha256: and 64 hexadecimal digits")]
    CaHash(String),
    /// The token has another form.
    #[error("--token is not <6 characters>.<16 characters>")]
    Token,
    /// Two addresses of one family.
    #[error("--node-ip takes one address of each family at most; {0} is the second of its own")]
    NodeIp(IpAddr),
    /// The VNI does not fit the header.
    #[error("--vni {0} is not between 1 and 16777215")]
    Vni(u32),
    /// The port cannot be used.
    #[error("--tunnel-port must not be 0")]
    TunnelPort,
    /// The kernel would not take the name.
    #[error("--{0} {1:?} is no interface name of 1 to 15 bytes")]
    Interface(&'static str, String),
    /// A label is not key=value.
    #[error("--node-label {0:?} is not key=value")]
    Label(String),
    /// The version is none that the plugin speaks.
    #[error("--cni-version {0:?} is not one of {CNI_VERSIONS:?}")]
    CniVersion(String),
    /// The cgroup is not absolute.
    #[error("--cgroup-root {0:?} does not begin with '/'")]
    CgroupRoot(String),
    /// The interval would make a busy loop.
    #[error("--{0} must be at least {1}")]
    TooSmall(&'static str, u64),
}

/// The CNI versions in which a configuration may be written.
pub const CNI_VERSIONS: [&str; 5] = ["0.3.1", "0.4.0", "1.0.0", "1.1.0", "0.3.0"];

/// How the agent comes to its control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPlane {
    /// It joins a Weft cluster.
    Join(Join),
    /// It uses the credentials of an existing cluster.
    Kubeconfig(PathBuf),
}

/// What joining needs.
#[derive(Clone, PartialEq, Eq)]
pub struct Join {
    /// `https://host:port`.
    pub server: String,
    /// Not needed once the node has its certificate.
    pub token: Option<String>,
    /// By what the server is known.
    pub trust: Trust,
}

impl fmt::Debug for Join {
    /// The configuration is logged; the token is nobody's business.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { server, token, trust } = self;
        let token = token.as_ref().map(|_| "…");
        f.debug_struct("Join")
            .field("server", server)
            .field("token", &token)
            .field("trust", trust)
            .finish()
    }
}

/// By what the server is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// SHA-256 of the CA's SubjectPublicKeyInfo.
    CaHash([u8; 32]),
    /// The CA's certificate.
    CaFile(PathBuf),
}

/// What the agent works by.
#[derive(Debug, Clone)]
pub struct Config {
    /// How it comes to its control plane.
    pub control_plane: ControlPlane,
    /// The node's name.
    pub node_name: String,
    /// The node's IPv4 address, if it was given.
    pub node_ipv4: Option<Ipv4Addr>,
    /// The node's IPv6 address, if it was given.
    pub node_ipv6: Option<Ipv6Addr>,
    /// Labels to register with.
    pub node_labels: Vec<(String, String)>,
    /// Most pods.
    pub max_pods: u32,
    /// See [`AgentArgs::state_dir`].
    pub state_dir: PathBuf,
    /// The plugin's socket.
    pub socket: PathBuf,
    /// The socket that `weft status` asks.
    pub status_socket: PathBuf,
    /// See [`AgentArgs::bpffs_root`].
    pub bpffs_root: PathBuf,
    /// See [`AgentArgs::cgroup_root`].
    pub cgroup_root: String,
    /// Where the plugin queues deletions.
    pub cni_queue_dir: PathBuf,
    /// See [`AgentArgs::cni_conf_dir`].
    pub cni_conf_dir: Option<PathBuf>,
    /// See [`AgentArgs::cni_bin_dir`].
    pub cni_bin_dir: Option<PathBuf>,
    /// See [`AgentArgs::cni_version`].
    pub cni_version: String,
    /// See [`AgentArgs::underlay_interface`].
    pub underlay_interface: Option<String>,
    /// See [`AgentArgs::overlay_interface`].
    pub overlay_interface: String,
    /// See [`AgentArgs::vni`].
    pub vni: u32,
    /// See [`AgentArgs::tunnel_port`].
    pub tunnel_port: u16,
    /// See [`AgentArgs::encap`].
    pub encap: Encap,
    /// See [`AgentArgs::filter_block`].
    pub filter_block: u32,
    /// See [`AgentArgs::cluster_cidr`].
    pub cluster_cidrs: Vec<IpNetwork>,
    /// See [`AgentArgs::runtime`].
    pub runtime: Runtime,
    /// See [`AgentArgs::lease_interval_ms`].
    pub lease_interval: Duration,
    /// See [`AgentArgs::reconcile_interval_ms`].
    pub reconcile_interval: Duration,
    /// See [`AgentArgs::address_rest_seconds`].
    pub address_rest: Duration,
}

impl TryFrom<AgentArgs> for Config {
    type Error = ConfigError;

    fn try_from(args: AgentArgs) -> Result<Self, ConfigError> {
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
        } = args;
        let node_name = node_name.unwrap_or_else(machine::hostname);
        if !is_node_name(&node_name) {
            return Err(ConfigError::NodeName(node_name));
        }
        let (node_ipv4, node_ipv6) = split_families(&node_ip)?;
        check_interface("overlay-interface", &overlay_interface)?;
        if let Some(name) = &underlay_interface {
            check_interface("underlay-interface", name)?;
        }
        if !(1..1 << 24).contains(&vni) {
            return Err(ConfigError::Vni(vni));
        }
        if tunnel_port == 0 {
            return Err(ConfigError::TunnelPort);
        }
        if !CNI_VERSIONS.contains(&cni_version.as_str()) {
            return Err(ConfigError::CniVersion(cni_version));
        }
        if !cgroup_root.starts_with('/') {
            return Err(ConfigError::CgroupRoot(cgroup_root));
        }
        at_least("lease-interval-ms", lease_interval_ms, 10)?;
        at_least("reconcile-interval-ms", reconcile_interval_ms, 100)?;
        let socket = socket.unwrap_or_else(|| run_dir.join("agent.sock"));
        Ok(Self {
            control_plane: control_plane(server, token, ca_hash, ca_file, kubeconfig)?,
            node_name,
            node_ipv4,
            node_ipv6,
            node_labels: node_labels
                .iter()
                .map(|label| parse_label(label))
                .collect::<Result<_, _>>()?,
            max_pods,
            cni_queue_dir: cni_queue_dir.unwrap_or_else(|| state_dir.join("cni-queue")),
            state_dir,
            status_socket: socket.with_file_name("status.sock"),
            socket,
            bpffs_root,
            cgroup_root,
            cni_conf_dir,
            cni_bin_dir,
            cni_version,
            underlay_interface,
            overlay_interface,
            vni,
            tunnel_port,
            encap,
            filter_block,
            cluster_cidrs: cluster_cidr,
            runtime,
            lease_interval: Duration::from_millis(lease_interval_ms),
            reconcile_interval: Duration::from_millis(reconcile_interval_ms),
            address_rest: Duration::from_secs(address_rest_seconds),
        })
    }
}

fn control_plane(
    server: Option<String>,
    token: Option<String>,
    ca_hash: Option<String>,
    ca_file: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
) -> Result<ControlPlane, ConfigError> {
    if let Some(path) = kubeconfig {
        return Ok(ControlPlane::Kubeconfig(path));
    }
    let server = server.ok_or(ConfigError::NoServer)?;
    if !server.starts_with("https://") || server.parse::<http::Uri>().is_err() {
        return Err(ConfigError::Server(server));
    }
    if token.as_deref().is_some_and(|token| !is_token(token)) {
        return Err(ConfigError::Token);
    }
    let trust = match (ca_hash, ca_file) {
        (Some(hash), _) => Trust::CaHash(parse_hash(&hash).ok_or(ConfigError::CaHash(hash))?),
        (None, Some(path)) => Trust::CaFile(path),
        (None, None) => return Err(ConfigError::NoCa),
    };
    Ok(ControlPlane::Join(Join { server, token, trust }))
}

fn is_node_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|part| {
            !part.is_empty()
                && !part.starts_with('-')
                && !part.ends_with('-')
                && part
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        })
}

fn is_token(token: &str) -> bool {
    let well_formed = |part: &str, length| {
        part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    token
        .split_once('.')
        .is_some_and(|(id, secret)| well_formed(id, 6) && well_formed(secret, 16))
}

fn parse_hash(hash: &str) -> Option<[u8; 32]> {
    hex::decode(hash.strip_prefix("sha256:")?).ok()?.try_into().ok()
}

fn parse_label(label: &str) -> Result<(String, String), ConfigError> {
    label
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| ConfigError::Label(label.to_owned()))
}

fn check_interface(flag: &'static str, name: &str) -> Result<(), ConfigError> {
    let ok = !name.is_empty()
        && name.len() <= MAX_IFNAME_BYTES
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
    if ok {
        Ok(())
    } else {
        Err(ConfigError::Interface(flag, name.to_owned()))
    }
}

fn at_least(flag: &'static str, value: u64, least: u64) -> Result<(), ConfigError> {
    if value >= least {
        Ok(())
    } else {
        Err(ConfigError::TooSmall(flag, least))
    }
}

fn split_families(ips: &[IpAddr]) -> Result<(Option<Ipv4Addr>, Option<Ipv6Addr>), ConfigError> {
    let (mut v4, mut v6) = (None, None);
    for ip in ips {
        let taken = match ip {
            IpAddr::V4(ip) => v4.replace(*ip).is_some(),
            IpAddr::V6(ip) => v6.replace(*ip).is_some(),
        };
        if taken {
            return Err(ConfigError::NodeIp(*ip));
        }
    }
    Ok((v4, v6))
}

impl Config {
    /// Makes the directories that the agent writes to.
    pub fn make_directories(&self) -> std::io::Result<()> {
        fs::create_dir_all(&self.state_dir)?;
        for socket in [&self.socket, &self.status_socket] {
            if let Some(dir) = socket.parent() {
                fs::create_dir_all(dir)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: AgentArgs,
    }

    fn config(extra: &[&str]) -> Result<Config, ConfigError> {
        let hash = format!("sha256:{}", "ab".repeat(32));
        let base = [
            "weft",
            "--server",
            "https://10.0.0.1:6443",
            "--ca-hash",
            &hash,
            "--node-name",
            "node-1",
        ];
        let args = Cli::try_parse_from(base.iter().chain(extra)).unwrap().args;
        Config::try_from(args)
    }

    #[test]
    fn defaults_make_sense() {
        let config = config(&[]).unwrap();
        assert_eq!(config.socket, PathBuf::from("/run/weft/agent.sock"));
        assert_eq!(config.status_socket, PathBuf::from("/run/weft/status.sock"));
        assert_eq!(config.cni_queue_dir, PathBuf::from("/var/lib/weft/cni-queue"));
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        for (extra, error) in [
            (["--vni", "0"], ConfigError::Vni(0)),
            (["--vni", "16777216"], ConfigError::Vni(16_777_216)),
            (["--tunnel-port", "0"], ConfigError::TunnelPort),
            (["--token", "abc.def"], ConfigError::Token),
            (["--node-label", "x"], ConfigError::Label("x".to_owned())),
            (
                ["--cgroup-root", "weft"],
                ConfigError::CgroupRoot("weft".to_owned()),
            ),
            (
                ["--cni-version", "2.0.0"],
                ConfigError::CniVersion("2.0.0".to_owned()),
            ),
            (
                ["--overlay-interface", "sixteen-byte-nam"],
                ConfigError::Interface("overlay-interface", "sixteen-byte-nam".to_owned()),
            ),
            (
                ["--node-ip", "10.0.0.1,10.0.0.2"],
                ConfigError::NodeIp(IpAddr::from([10, 0, 0, 2])),
            ),
            (
                ["--lease-interval-ms", "1"],
                ConfigError::TooSmall("lease-interval-ms", 10),
            ),
        ] {
            assert_eq!(config(&extra).unwrap_err(), error);
        }
    }

    #[test]
    fn a_server_needs_something_to_know_it_by() {
        let parse = |args: &[&str]| {
            let args = Cli::try_parse_from(["weft", "--node-name", "n"].iter().chain(args))
                .unwrap()
                .args;
            Config::try_from(args).unwrap_err()
        };
        assert_eq!(parse(&[]), ConfigError::NoServer);
        assert_eq!(parse(&["--server", "https://a:1"]), ConfigError::NoCa);
        assert_eq!(
            parse(&["--server", "http://a:1"]),
            ConfigError::Server("http://a:1".to_owned())
        );
        assert!(matches!(
            parse(&["--server", "https://a:1", "--ca-hash", "sha256:00"]),
            ConfigError::CaHash(_)
        ));
    }

    #[test]
    fn the_token_is_not_logged() {
        let secret = "0123456789abcdef";
        let config = config(&["--token", &format!("abcdef.{secret}")]).unwrap();
        assert!(!format!("{config:?}").contains(secret));
    }

    #[test]
    fn node_names_are_host_names() {
        for good in ["a", "node-1", "node-1.example.org"] {
            assert!(is_node_name(good), "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a..b", "a/b"] {
            assert!(!is_node_name(bad), "{bad}");
        }
    }
}
