//! Every hook and every drop reason: a packet in, the decision, the bytes and the counter out, in both families.
//!
//! The programs run by `BPF_PROG_TEST_RUN` in a network namespace and a bpffs of the test's own. Needs root.

mod from_container;
mod from_underlay;
mod lifecycle;
mod overlay;
mod packet;
mod world;
