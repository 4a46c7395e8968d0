//! The pods of this node: what each of them should be, and the workers that make it so.

use std::net::IpAddr;

use tokio_util::sync::CancellationToken;

pub use config::{BackOffConfig, PodsConfig};

use crate::endpoint::Endpoints;

pub mod config;

/// Why the pod runtime could not run.
#[derive(Debug, thiserror::Error)]
pub enum PodsError {
    /// A directory of the runtime could not be made or read.
    #[error("preparing {path}")]
    StateDir {
        /// The directory.
        path: std::path::PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
}

/// Runs the pods that are bound to this node until `shutdown`. Pods keep running when it returns.
#[expect(clippy::unused_async, reason = "the signature stands before the workers do")]
pub async fn run(
    cfg: PodsConfig,
    client: kube::Client,
    node_name: String,
    node_ips: Vec<IpAddr>,
    endpoints: Endpoints,
    shutdown: CancellationToken,
) -> Result<(), PodsError> {
    drop((cfg, client, node_name, node_ips, endpoints, shutdown));
    Ok(())
}
