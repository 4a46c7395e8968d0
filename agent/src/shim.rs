//! The process that stands between a pod's containers and the agent: one per pod, single-threaded, outliving the agent.

use std::path::PathBuf;

/// `weft pod-shim …`.
#[derive(Debug, clap::Args)]
pub struct ShimArgs {
    /// The pod's directory.
    #[arg(long)]
    pub dir: PathBuf,
    /// The pod's netns; without it, the shim's own is used.
    #[arg(long)]
    pub netns: Option<PathBuf>,
}

/// Why the shim could not serve its pod.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {}

/// Runs `weft pod-shim`. Must be called before any thread is started.
pub fn main(args: ShimArgs) -> Result<(), ShimError> {
    drop(args);
    Ok(())
}
