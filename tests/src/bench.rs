//! The benchmarks: Weft beside its peers, in one run, on one machine.
//!
//! The figures of a shared machine wander, so nothing here is measured alone: all variants stand at once, every round
//! measures each of them in a new order, and what counts are ratios of medians. Nodes are machines of the lab on one
//! underlay. Kernel state that would reach across (netfilter rules, programs on the underlay device) belongs to a node, so
//! variants that differ in it have a pair of nodes each.

pub mod attach;
pub mod case;
pub mod cni;
pub mod control;
pub mod load;
pub mod net;
pub mod peers;
pub mod report;
pub mod shuffle;
