//! The Python client `kubernetes`, which `cargo xtask test` puts beside the programs under test.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::server::Server;

const SESSION: &str = include_str!("python/session.py");

#[test]
fn a_session_of_the_python_client() -> Result<()> {
    let server = Server::complete()?;
    let weft = weft_lab::binaries::find("weft")?;
    let packages = weft.with_file_name("python");
    ensure!(
        packages.is_dir(),
        "the Python client is not there: run `cargo xtask test api_server`"
    );
    let script = server.write("session.py", SESSION)?;
    let output = Command::new("timeout")
        .args(["180", "python3", &script])
        .env("KUBECONFIG", server.kubeconfig())
        .env("PYTHONPATH", packages)
        .output()
        .context("run python3")?;
    let steps: Vec<&str> = SESSION
        .split("@step\ndef ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
        .collect();
    let printed = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success() && printed.lines().eq(steps),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
