//! Weft's CNI plugin as a library: the protocol that it speaks to the agent, and the queue that holds deletions for an
//! agent that is down.
//!
//! The plugin is started once per request, so this crate keeps to std and serde: no async runtime, no netlink, no BPF.
//!
//! For shipping it is linked statically, so that it runs whatever the node's libc and starts without a dynamic linker:
//! `RUSTFLAGS='-C target-feature=+crt-static' cargo build --release -p weft-cni --target <host triple>`, which is what
//! `cargo xtask dist` does. No dependency of it links C code.

#![forbid(unsafe_code)]

pub mod agent_client;
pub mod deletion_queue;
pub mod environment;
pub mod error;
pub mod log;
pub mod netconf;
pub mod plugin;
pub mod protocol;
pub mod result;
pub mod shape;
pub mod version;
