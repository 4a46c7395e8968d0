//! What `weft controller` can be told.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Args as ClapArgs};
use http::Uri;
use http::uri::PathAndQuery;
use ipnetwork::IpNetwork;

use crate::api::Limits;
use crate::api::audit::AuditConfig;
use crate::controllers::{Choice, ControllersConfig, selection};
use crate::store::etcd;
use crate::{leader, remote};

/// Where the API is served, and where health and metrics are if another server serves it.
const API_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 6443);
const HEALTH_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10257);

/// Flags that say how the API is served: of no use where another server does.
const SERVING: [&str; 11] = [
    "advertise_address",
    "tls_san",
    "service_cidr",
    "store",
    "encryption_key_file",
    "max_requests_inflight",
    "client_qps",
    "client_burst",
    "client_watches",
    "audit_log",
    "api_only",
];

/// The command line of `weft controller`.
#[derive(ClapArgs, Clone, Debug)]
#[command(group(ArgGroup::new("elsewhere").multiple(true)))]
pub struct Args {
    /// Run controllers and scheduler against this API server, https://HOST:PORT, in place of serving one; with --kubeconfig, it
    /// replaces the file's server; without, the credentials are those of the pod's service account
    #[arg(long, visible_alias = "master", group = "elsewhere", value_parser = api_server, conflicts_with_all = SERVING)]
    pub api: Option<Uri>,
    /// Run controllers and scheduler against the API server that this file names, with its credentials
    #[arg(long, group = "elsewhere", conflicts_with_all = SERVING)]
    pub kubeconfig: Option<PathBuf>,
    /// Name of the Lease in kube-system that those who run the same controllers against an API server elect one by
    #[arg(long, requires = "elsewhere", default_value = leader::LEASE, value_parser = lease_name)]
    pub leader_elect_resource_name: String,
    /// Key that signs the tokens kept in Secrets, PEM (P-256; Weft's is pki/sa.key); without it, serviceaccount-token does
    /// nothing against an API server elsewhere
    #[arg(long, requires = "elsewhere")]
    pub service_account_private_key_file: Option<PathBuf>,
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true,
        help = controllers_help()
    )]
    pub controllers: Vec<Choice>,
    /// Directory of the store, the certificates and admin.kubeconfig.
    #[arg(long, env = "WEFT_DATA_DIR", default_value = "/var/lib/weft/controller")]
    pub data_dir: PathBuf,
    /// Address to serve the API on, or health and metrics if the API is elsewhere; port 0 lets the system choose one
    /// [default: 0.0.0.0:6443, or 0.0.0.0:10257].
    #[arg(long, env = "WEFT_LISTEN")]
    pub listen: Option<SocketAddr>,
    /// Address that nodes reach this machine by; by default the address listened on, or else the one of the default route.
    #[arg(long, env = "WEFT_ADVERTISE_ADDRESS")]
    pub advertise_address: Option<IpAddr>,
    /// Further names and addresses for the server's certificate.
    #[arg(long, value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Ranges that nodes' pod CIDRs are cut from, at most one of each family.
    #[arg(
        long,
        env = "WEFT_CLUSTER_CIDR",
        value_delimiter = ',',
        default_value = "10.244.0.0/16"
    )]
    pub cluster_cidr: Vec<IpNetwork>,
    /// Prefix length of a node's IPv4 pod CIDR.
    #[arg(long, default_value_t = 24)]
    pub node_cidr_mask_size: u8,
    /// Prefix length of a node's IPv6 pod CIDR.
    #[arg(long, default_value_t = 64)]
    pub node_cidr_mask_size_v6: u8,
    /// Ranges of Services' addresses, at most one of each family; the first one's family is the default.
    #[arg(
        long,
        env = "WEFT_SERVICE_CIDR",
        value_delimiter = ',',
        default_value = "10.96.0.0/16"
    )]
    pub service_cidr: Vec<IpNetwork>,
    /// How often nodes are judged.
    #[arg(long, value_parser = duration, default_value = "5s")]
    pub node_monitor_period: Duration,
    /// How long a node may be silent before it counts as not ready.
    #[arg(long, value_parser = duration, default_value = "40s")]
    pub node_monitor_grace_period: Duration,
    /// How long pods stay on a node that is not ready, unless they say otherwise.
    #[arg(long, value_parser = duration, default_value = "5m")]
    pub pod_eviction_timeout: Duration,
    /// After how long pods evicted from a silent node are deleted without its word; default: never.
    #[arg(long, value_parser = duration)]
    pub unreachable_force_delete_after: Option<Duration>,
    /// How often autoscalers are looked at.
    #[arg(long, value_parser = duration, default_value = "15s")]
    pub horizontal_pod_autoscaler_sync_period: Duration,
    /// Where to keep objects: etcd://HOST:PORT[,HOST:PORT…] for several controllers that share an etcd cluster; by default a
    /// file in the data directory. Controllers that share a store need the same `pki` directory in their data directories.
    #[arg(long, env = "WEFT_STORE", value_parser = etcd_addresses)]
    pub store: Option<EtcdAddresses>,
    /// What all our keys in etcd begin with.
    #[arg(long, default_value = "/weft", value_parser = etcd_prefix)]
    pub etcd_prefix: String,
    /// Certificate authority of the etcd servers, PEM; with it the connection is TLS.
    #[arg(long)]
    pub etcd_cafile: Option<PathBuf>,
    /// Client certificate for etcd, PEM.
    #[arg(long, requires_all = ["etcd_keyfile", "etcd_cafile"])]
    pub etcd_certfile: Option<PathBuf>,
    /// Its key, PEM.
    #[arg(long, requires = "etcd_certfile")]
    pub etcd_keyfile: Option<PathBuf>,
    /// File of the keys that encrypt Secrets in the store, the newest first; made if it is not there. By default
    /// pki/encryption.key in the data directory.
    #[arg(long, env = "WEFT_ENCRYPTION_KEY_FILE")]
    pub encryption_key_file: Option<PathBuf>,
    /// Requests in flight, watches apart; more are answered with 429.
    #[arg(long, default_value_t = Limits::default().requests)]
    pub max_requests_inflight: usize,
    /// Requests a second of one user in the long run.
    #[arg(long, default_value_t = Limits::default().client_rate)]
    pub client_qps: f64,
    /// Requests of one user that may come at once.
    #[arg(long, default_value_t = Limits::default().client_burst)]
    pub client_burst: f64,
    /// Watches of one user.
    #[arg(long, default_value_t = Limits::default().client_watches)]
    pub client_watches: usize,
    /// File of the audit log: a line of JSON (audit.k8s.io/v1 Event) for each request.
    #[arg(long, env = "WEFT_AUDIT_LOG")]
    pub audit_log: Option<PathBuf>,
    /// Size in MiB at which a new file of the audit log is begun.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub audit_log_max_size: u64,
    /// How many older files of the audit log are kept.
    #[arg(long, default_value_t = 10)]
    pub audit_log_max_backups: u32,
    /// Serve the API alone, without controllers and scheduler.
    #[arg(long)]
    pub api_only: bool,
    /// Write the address served on into this file once the API is ready.
    #[arg(long)]
    pub ready_file: Option<PathBuf>,
}

/// The servers of an etcd cluster, `host:port` each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddresses(Vec<String>);

/// Why a configuration cannot work.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Two ranges overlap.
    #[error("--{first_flag} {first} overlaps --{second_flag} {second}: choose ranges apart")]
    Overlap {
        /// The first range's flag.
        first_flag: &'static str,
        /// The first range.
        first: IpNetwork,
        /// The second range's flag.
        second_flag: &'static str,
        /// The second range.
        second: IpNetwork,
    },
    /// A range of Services' addresses cannot be used.
    #[error("--service-cidr {cidr} {why}")]
    ServiceCidr {
        /// The range.
        cidr: IpNetwork,
        /// What is wrong with it, and what would be right.
        why: &'static str,
    },
    /// The controllers refuse their settings.
    #[error(transparent)]
    Controllers(#[from] crate::controllers::ControllerError),
}

/// What `weft controller` is asked to be.
#[derive(Clone, Debug)]
pub enum Mode {
    /// An API server, with its controllers and scheduler or without.
    Server(Box<Config>),
    /// Controllers and scheduler against an API server elsewhere.
    Remote(Box<remote::Config>),
}

/// The configuration of an API server, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the store, the certificates and admin.kubeconfig.
    pub data_dir: PathBuf,
    /// Address to serve the API on.
    pub listen: SocketAddr,
    /// Address that nodes reach this machine by.
    pub advertise_address: IpAddr,
    /// Further names for the server's certificate.
    pub names: Vec<String>,
    /// Further addresses for the server's certificate.
    pub addresses: Vec<IpAddr>,
    /// Ranges of Services' addresses, at most one of each family, the default first.
    pub service_cidrs: Vec<IpNetwork>,
    /// Settings of the controllers.
    pub controllers: ControllersConfig,
    /// The etcd cluster that keeps the objects, if it is not the file in the data directory.
    pub etcd: Option<etcd::Settings>,
    /// How much the server takes on.
    pub limits: Limits,
    /// Where the audit log goes, if there is to be one.
    pub audit: Option<AuditConfig>,
    /// File of the keys that encrypt Secrets in the store.
    pub encryption_key_file: PathBuf,
    /// Whether controllers and scheduler stay off.
    pub api_only: bool,
    /// File that gets the address served on.
    pub ready_file: Option<PathBuf>,
}

impl Args {
    /// Checks the command line.
    ///
    /// # Errors
    /// If ranges overlap or the controllers refuse their settings.
    pub fn validate(self) -> Result<Mode, ConfigError> {
        let Self {
            api,
            kubeconfig,
            leader_elect_resource_name,
            service_account_private_key_file,
            controllers,
            data_dir,
            listen,
            advertise_address,
            tls_san,
            cluster_cidr,
            node_cidr_mask_size,
            node_cidr_mask_size_v6,
            service_cidr,
            node_monitor_period,
            node_monitor_grace_period,
            pod_eviction_timeout,
            unreachable_force_delete_after,
            horizontal_pod_autoscaler_sync_period,
            store,
            etcd_prefix,
            etcd_cafile,
            etcd_certfile,
            etcd_keyfile,
            encryption_key_file,
            max_requests_inflight,
            client_qps,
            client_burst,
            client_watches,
            audit_log,
            audit_log_max_size,
            audit_log_max_backups,
            api_only,
            ready_file,
        } = self;
        for first in &cluster_cidr {
            if let Some(second) = service_cidr.iter().find(|second| overlap(*first, **second)) {
                return Err(ConfigError::Overlap {
                    first_flag: "cluster-cidr",
                    first: *first,
                    second_flag: "service-cidr",
                    second: *second,
                });
            }
        }
        check_service_cidrs(&service_cidr)?;
        let controllers = ControllersConfig {
            cluster_cidrs: cluster_cidr,
            node_cidr_mask_v4: node_cidr_mask_size,
            node_cidr_mask_v6: node_cidr_mask_size_v6,
            node_monitor_period,
            node_monitor_grace_period,
            pod_eviction_timeout,
            unreachable_force_delete_after,
            autoscaler_period: horizontal_pod_autoscaler_sync_period,
            selection: controllers.into(),
            ..ControllersConfig::default()
        };
        controllers.validate()?;
        if api.is_some() || kubeconfig.is_some() {
            return Ok(Mode::Remote(Box::new(remote::Config {
                api,
                kubeconfig,
                controllers,
                service_account_key: service_account_private_key_file,
                lease: leader_elect_resource_name,
                listen: listen.unwrap_or(HEALTH_ADDRESS),
                ready_file,
            })));
        }
        let listen = listen.unwrap_or(API_ADDRESS);
        let (addresses, names): (Vec<_>, Vec<_>) =
            tls_san.into_iter().partition(|san| san.parse::<IpAddr>().is_ok());
        Ok(Mode::Server(Box::new(Config {
            limits: Limits {
                requests: max_requests_inflight,
                workload_requests: (max_requests_inflight * 2).div_ceil(3),
                client_requests: max_requests_inflight.div_ceil(3),
                client_rate: client_qps.max(1.0),
                client_burst: client_burst.max(1.0),
                client_watches,
                ..Limits::default()
            },
            audit: audit_log.map(|file| AuditConfig {
                file,
                max_bytes: audit_log_max_size << 20,
                backups: audit_log_max_backups,
            }),
            encryption_key_file: encryption_key_file
                .unwrap_or_else(|| data_dir.join("pki").join("encryption.key")),
            data_dir,
            listen,
            advertise_address: advertise_address.unwrap_or_else(|| reachable_address(listen.ip())),
            names,
            addresses: addresses.iter().filter_map(|san| san.parse().ok()).collect(),
            service_cidrs: service_cidr,
            controllers,
            etcd: store.map(|EtcdAddresses(addresses)| etcd::Settings {
                addresses,
                prefix: etcd_prefix,
                ca_file: etcd_cafile,
                certificate_file: etcd_certfile,
                key_file: etcd_keyfile,
            }),
            api_only,
            ready_file,
        })))
    }
}

fn controllers_help() -> String {
    format!(
        "Which controllers run: * for all that are not named, NAME for that one, -NAME for not that one; `-controller` at a \
         name's end may be there or not. All: {}",
        selection::names().collect::<Vec<_>>().join(", ")
    )
}

fn lease_name(text: &str) -> Result<String, String> {
    crate::resources::subdomain_problem(text).map_or_else(|| Ok(text.to_owned()), Err)
}

fn api_server(text: &str) -> Result<Uri, String> {
    let uri: Uri = text.parse().map_err(|error| format!("{error}"))?;
    match (uri.scheme_str(), uri.path_and_query().map(PathAndQuery::as_str)) {
        (Some("https"), None | Some("/")) => Ok(uri),
        _ => Err(format!("{text:?} is not https://HOST:PORT")),
    }
}

/// The address others reach us by: what we listen on, or else the source address of the default route.
fn reachable_address(listen: IpAddr) -> IpAddr {
    if !listen.is_unspecified() {
        return listen;
    }
    let probe = || {
        let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        // Connecting a datagram socket sends nothing; it only asks the routing table. The address is of TEST-NET-1.
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    probe().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn check_service_cidrs(cidrs: &[IpNetwork]) -> Result<(), ConfigError> {
    for (index, cidr) in cidrs.iter().enumerate() {
        let why = if cidrs[..index]
            .iter()
            .any(|other| other.is_ipv4() == cidr.is_ipv4())
        {
            "is the second of its family: name at most one IPv4 and one IPv6 range"
        } else if cidr.ip() != cidr.network() {
            "is no network: its host part must be zero"
        } else if cidr.prefix() > if cidr.is_ipv4() { 29 } else { 125 } {
            "is too small: choose /29 or larger, /125 in IPv6"
        } else {
            continue;
        };
        return Err(ConfigError::ServiceCidr { cidr: *cidr, why });
    }
    Ok(())
}

fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

fn etcd_addresses(text: &str) -> Result<EtcdAddresses, String> {
    let addresses = text
        .strip_prefix("etcd://")
        .ok_or_else(|| format!("{text:?} does not begin with etcd://"))?;
    let addresses: Vec<String> = addresses
        .trim_end_matches('/')
        .split(',')
        .map(str::to_owned)
        .collect();
    match addresses.iter().find(|address| {
        let port = address
            .rsplit_once(':')
            .map(|(host, port)| (host.is_empty(), port.parse::<u16>()));
        !matches!(port, Some((false, Ok(_))))
    }) {
        Some(bad) => Err(format!("{bad:?} is not HOST:PORT")),
        None => Ok(EtcdAddresses(addresses)),
    }
}

fn etcd_prefix(text: &str) -> Result<String, String> {
    if text.starts_with('/') && text.len() > 1 && !text.contains(':') {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err(format!("{text:?} must begin with / and hold no colon"))
    }
}

/// A duration as `500ms`, `40s`, `5m` or `1h`; a plain number counts seconds.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no duration such as 40s"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3600)),
        _ => Err(format!("{unit:?} is none of ms, s, m, h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("x").is_err());
        assert!(duration("5d").is_err());
    }

    #[test]
    fn etcd_is_addressed_by_hosts_and_ports() {
        let addresses = |list: &[&str]| Ok(EtcdAddresses(list.iter().map(ToString::to_string).collect()));
        assert_eq!(
            etcd_addresses("etcd://a:2379,[::1]:2379"),
            addresses(&["a:2379", "[::1]:2379"])
        );
        for bad in ["a:2379", "etcd://", "etcd://a", "etcd://:1", "etcd://a:b"] {
            assert!(etcd_addresses(bad).is_err(), "{bad}");
        }
        assert!(etcd_prefix("/weft/").is_ok_and(|prefix| prefix == "/weft"));
        assert!(etcd_prefix("/").is_err() && etcd_prefix("/a:b").is_err());
    }

    #[test]
    fn api_servers_are_https() {
        for good in [
            "https://192.0.2.1:6443",
            "https://kubernetes.default.svc/",
            "https://[::1]:1",
        ] {
            assert!(api_server(good).is_ok(), "{good}");
        }
        for bad in ["http://a:1", "a:1", "https://", "https://a/b", "https://a?b", ""] {
            assert!(api_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn families_do_not_overlap_each_other() {
        let net = |text: &str| text.parse::<IpNetwork>().unwrap();
        assert!(overlap(net("10.0.0.0/8"), net("10.96.0.0/16")));
        assert!(!overlap(net("10.244.0.0/16"), net("10.96.0.0/16")));
        assert!(!overlap(net("fd00::/56"), net("10.96.0.0/16")));
    }
}
