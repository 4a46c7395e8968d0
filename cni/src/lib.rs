//! Weft's CNI plugin as a library: the protocol that it speaks to the agent, and the queue that holds deletions for an
//! agent that is down.
//!
//! The plugin is started once per request, so this crate keeps to std and serde: no async runtime, no netlink, no BPF.

#![forbid(unsafe_code)]

pub mod deletion_queue;
pub mod error;
pub mod protocol;
pub mod result;
