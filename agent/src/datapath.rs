//! The one door to the kernel's network.

pub mod maps;
pub mod programs;
pub mod selftest;
