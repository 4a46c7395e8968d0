//! Names and sizes of the pinned maps. The name carries the version of the layout.

/// `Array[1]` of [`NodeConfig`](crate::NodeConfig).
pub const CONFIG: &str = "CONFIG_V1";
/// Hash: pod's IPv4 address (4 bytes, network order) → [`Endpoint`](crate::Endpoint).
pub const ENDPOINTS_V4: &str = "ENDPOINTS4_V1";
/// Hash: pod's IPv6 address (16 bytes) → [`Endpoint`](crate::Endpoint).
pub const ENDPOINTS_V6: &str = "ENDPOINTS6_V1";
/// `Array` of [`SlotV4`](crate::SlotV4), by [`slot::index`](crate::slot::index).
pub const SLOTS_V4: &str = "SLOTS4_V1";
/// `Array` of [`SlotV6`](crate::SlotV6).
pub const SLOTS_V6: &str = "SLOTS6_V1";
/// Longest prefix: IPv4 → [`Peer`](crate::Peer).
pub const PEERS_V4: &str = "PEERS4_V1";
/// Longest prefix: IPv6 → [`Peer`](crate::Peer).
pub const PEERS_V6: &str = "PEERS6_V1";
/// Longest prefix over mapped addresses: the cluster's CIDRs. The value only says that there is one.
pub const CLUSTER: &str = "CLUSTER_V1";
/// `PerCpuArray` of [`Counter`](crate::Counter), indexed by [`Reason`](crate::Reason).
pub const METRICS: &str = "METRICS_V1";

/// Every pinned map.
pub const ALL: [&str; 9] = [
    CONFIG,
    ENDPOINTS_V4,
    ENDPOINTS_V6,
    SLOTS_V4,
    SLOTS_V6,
    PEERS_V4,
    PEERS_V6,
    CLUSTER,
    METRICS,
];

/// Endpoints on one node: far above what a node runs, and small as the table is not preallocated.
pub const MAX_ENDPOINTS: u32 = 16_384;
/// Prefixes behind peers: a node has its pod CIDRs and its addresses, so this is some ten thousand nodes.
pub const MAX_PEERS: u32 = 65_536;
/// Cluster CIDRs: two in a dual-stack cluster, more while a cluster is being renumbered.
pub const MAX_CLUSTER_CIDRS: u32 = 64;
