//! `cargo xtask api-facts`: the table of facts about the Kubernetes API types.
//!
//! Debian packages the Go types with their markers; from those the table is derived and written to
//! `controller/src/schema/facts.txt`, whose header names source and version. Only facts are taken: names, types, numbers,
//! keys, defaults; no descriptions.

mod golang;
mod release;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::workspace::{note, root, step};

/// The Kubernetes release that the API server reports; the table has exactly its fields.
const RELEASE: &str = "v1.33.0";

/// The packages' version for that release.
const PACKAGE_VERSION: &str = "0.33";

const FETCH: &str = include_str!("api_facts/packages.sh");

const OUTPUT: &str = "controller/src/schema/facts.txt";

/// Arguments of `cargo xtask api-facts`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only says whether the committed table is what would be written.
    #[arg(long)]
    check: bool,
}

/// Derives the table and writes it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let staging = std::env::temp_dir().join(format!("weft-api-facts-{}", std::process::id()));
    let written = derive(&staging).and_then(|text| deliver(&text, args.check));
    let removed = fs::remove_dir_all(&staging);
    written?;
    removed.with_context(|| format!("remove {}", staging.display()))
}

fn derive(staging: &Path) -> Result<String> {
    step("api-facts: fetching the Go types from Debian");
    let sources = fetch(staging)?;
    for source in &sources {
        note(source);
    }
    step("api-facts: deriving the table");
    let src = staging.join("root/usr/share/gocode/src/k8s.io");
    let types = golang::parse(&src)?;
    let mut table = table::Table::reachable(&types)?;
    let kept = release::restrict(&mut table, &src.join("api/testdata").join(RELEASE))?;
    note(format!(
        "{} kinds, {} types; {kept}",
        table.kinds.len(),
        table.types.len()
    ));
    let header = format!(
        "# Facts about the Kubernetes API types as of {RELEASE}, derived by `cargo xtask api-facts`.\n\
         # Source: Debian packages {}.\n\
         # `schema/facts.rs` says how to read this.\n",
        sources.join(", ")
    );
    Ok(header + &table.render())
}

fn deliver(text: &str, check: bool) -> Result<()> {
    let path: PathBuf = root().join(OUTPUT);
    if check {
        let committed = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        if committed != text {
            bail!("{OUTPUT} differs from what the packages give");
        }
        note("the committed table is up to date");
        return Ok(());
    }
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    note(format!("{OUTPUT}: {} bytes", text.len()));
    Ok(())
}

fn fetch(staging: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(staging)?;
    let output = Command::new("bash")
        .args(["-c", FETCH, "packages"])
        .arg(staging)
        .arg(PACKAGE_VERSION)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("run bash")?;
    if !output.status.success() {
        bail!("the packages could not be fetched");
    }
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}
