//! Chooses a node for every pod that has none.
//!
//! One task owns the snapshot and the queue. It applies the changes that informers report, decides pod after pod, and
//! counts each decided pod at once (it is *assumed*), so that the next decision need not wait for the API. Bindings are
//! written concurrently; one that fails is taken back and its pod tried again.

pub mod bench;
mod census;
pub mod decide;
mod effects;
pub mod filter;
pub mod node;
mod owner;
pub mod plan;
pub mod pod;
pub mod preempt;
pub mod queue;
pub mod resources;
mod score;
pub mod selection;
mod slots;
pub mod snapshot;
mod tally;
pub mod testing;
pub mod volumes;
mod watches;

use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::info;

use self::decide::Sampling;
use self::effects::Effects;
use self::owner::Owner;
use self::watches::Watches;
use crate::controllers::events::Recorder;
use crate::controllers::pod::PodView;
use crate::informer::Store;

/// Settings of the scheduler.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    /// The name pods ask for in `spec.schedulerName`.
    pub name: String,
    /// Binding requests in flight at a time.
    pub bind_concurrency: usize,
    /// How many nodes are compared for one pod.
    pub sampling: Sampling,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        SchedulerConfig {
            name: "default-scheduler".into(),
            bind_concurrency: 128,
            sampling: Sampling::default(),
        }
    }
}

/// Why the scheduler cannot run.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The configuration cannot work.
    #[error("invalid scheduler configuration: {0}")]
    Config(String),
}

/// Runs the scheduler until `shutdown`. It subscribes to `pods` at once, and does not follow them itself.
///
/// # Errors
/// [`SchedulerError::Config`] if the configuration cannot work. Failures of the API are retried for ever.
pub async fn run(
    client: Client,
    config: SchedulerConfig,
    pods: Arc<Store<PodView>>,
    shutdown: CancellationToken,
) -> Result<(), SchedulerError> {
    if config.bind_concurrency == 0 {
        return Err(SchedulerError::Config(
            "bind_concurrency must be at least 1".into(),
        ));
    }
    let tracker = TaskTracker::new();
    let (messages, inbox) = mpsc::unbounded_channel();
    let watches = Watches::start(client.clone(), pods, &tracker, messages.clone(), shutdown.clone());
    let effects = Effects {
        recorder: Recorder::start(client.clone(), "default-scheduler", &tracker, shutdown.clone()),
        client,
        claims: watches.claims.clone(),
        claims_changed: watches.claims_changed.clone(),
        name: config.name.clone(),
    };
    let mut owner = Owner::new(config, effects, messages, tracker.clone(), shutdown.clone());
    tokio::select! {
        () = watches.wait_synced() => {
            info!(nodes = watches.nodes.len(), pods = watches.pods.len(), "scheduler started");
            owner.run(inbox).await;
        }
        () = shutdown.cancelled() => {}
    }
    tracker.close();
    tracker.wait().await;
    Ok(())
}
