//! The one door to the kernel's network.

pub mod maps;
pub mod netlink;
pub mod netns;
pub mod programs;
pub mod selftest;
