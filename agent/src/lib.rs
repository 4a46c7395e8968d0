//! Weft's node agent: the pod network of one node, and the pods that run on it.
//!
//! The entry point is [`agent::run`]. `ARCHITECTURE.md` says which module answers for what.

pub mod config;
pub mod datapath;
pub mod endpoint;
pub mod image;
pub mod ipam;
pub mod mac;
pub mod machine;
pub mod pods;
pub mod shim;
