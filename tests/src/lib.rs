//! The lab: a Weft cluster on one machine.
//!
//! A [`Lab`] owns a directory and everything that lives under it. A [`Machine`] is what a test calls a host: namespaces of
//! its own, held by one process whose death takes all of it away. A [`Fabric`] joins machines by an underlay bridge;
//! [`Cluster`] runs the real controller and agents on them. Nothing is ever created in the root network namespace, so
//! several labs run at once, and every one of them is gone when its owner is, however that ended.

#![deny(unsafe_code)]

pub mod bench;
pub mod big_tcp;
pub mod binaries;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod fabric;
pub mod fuzz;
pub mod image;
pub mod lab;
pub mod leaks;
pub mod machine;
pub mod node;
pub mod observe;
pub mod plugin;
pub mod pods;
pub mod probe;
pub mod process;
pub mod random;
pub mod raw;
pub mod simulated;
pub mod wait;

pub use cluster::{Cluster, ClusterOptions};
pub use fabric::{Fabric, FabricOptions, Port};
pub use lab::Lab;
pub use machine::Machine;
pub use node::Node;
pub use process::Process;
pub use wait::wait_for;
