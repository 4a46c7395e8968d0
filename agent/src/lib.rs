//! Weft's node agent: the pod network of one node, and the pods that run on it.
//!
//! The entry point is [`agent::run`]. `ARCHITECTURE.md` says which module answers for what.

pub mod agent;
pub mod cli;
pub mod cni_server;
pub mod config;
pub mod conflist;
pub mod datapath;
pub mod desired;
pub mod endpoint;
pub mod image;
pub mod install;
pub mod ipam;
pub mod ipam_check;
pub mod join;
pub mod local_path;
pub mod mac;
pub mod machine;
pub mod node;
pub mod node_sync;
pub mod pods;
pub mod reconcile;
pub mod shim;
pub mod status;
pub mod telemetry;
pub mod whole_file;
