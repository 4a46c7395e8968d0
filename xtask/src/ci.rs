//! `cargo xtask ci`: the tests, and the documentation with warnings denied.

use anyhow::Result;

use crate::{test, workspace};

/// Runs it.
pub(crate) fn run() -> Result<()> {
    test::run(&test::Args::default())?;
    workspace::step("documentation");
    workspace::run(
        workspace::cargo()
            .args([
                "doc",
                "--workspace",
                "--exclude",
                "weft-ebpf",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings"),
    )
}
