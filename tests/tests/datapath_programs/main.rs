//! Every hook and every drop reason: a packet in, the decision, the bytes and the counter out, in both families.
//!
//! The programs run by `BPF_PROG_TEST_RUN` in a network namespace and a bpffs of the test's own. Needs root.

mod from_container;
mod from_underlay;
mod lifecycle;
mod overlay;
mod packet;
mod world;

use weft_ebpf_common::Reason;

/// All but one: `rewrite_failed` wants a kernel without memory, and changing a made packet takes none, for nobody shares it.
#[test]
fn every_reason_is_met_by_a_test() {
    let tests = [
        include_str!("from_container.rs"),
        include_str!("from_underlay.rs"),
        include_str!("overlay.rs"),
    ];
    for reason in Reason::ALL {
        let name = format!("Reason::{reason:?}");
        let mut after = tests.iter().flat_map(|text| text.split(&name).skip(1));
        let named = after.any(|rest| !rest.starts_with(char::is_alphanumeric));
        assert_eq!(named, *reason != Reason::RewriteFailed, "{}", reason.name());
    }
}
