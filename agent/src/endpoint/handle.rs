//! The handle to the owner of the table of attachments.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnetwork::IpNetwork;
use tokio::sync::{mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    AddRequest, Attached, AttachmentKey, EndpointError, EndpointSummary, EndpointsUse,
    attach::Kernel,
    checkpoint::Checkpoints,
    owner::{Command, Owner},
    reaper::Reaper,
};
use crate::{
    datapath::Datapath,
    ipam::{Ipam, ledger::Ledger},
    machine,
};

/// How many requests may wait for the owner. A burst of ADDs waits here, not in memory without bound.
const BACKLOG: usize = 256;

/// What the table of attachments is started with.
#[derive(Clone)]
pub struct EndpointsOptions {
    /// The kernel's side of the node.
    pub datapath: Arc<Datapath>,
    /// The agent's state directory.
    pub state_dir: PathBuf,
    /// The node's pod CIDRs.
    pub pod_cidrs: Vec<IpNetwork>,
    /// How long a freed address rests.
    pub address_rest: Duration,
}

/// The handle to the table of attachments; clones are cheap and share it.
#[derive(Clone)]
pub struct Endpoints {
    commands: mpsc::Sender<Command>,
}

/// Where the checkpoints are, under the state directory.
pub fn checkpoints_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("endpoints")
}

/// Where the ledger is, under the state directory.
pub fn ledger_path(state_dir: &Path) -> PathBuf {
    state_dir.join("ipam.journal")
}

impl Endpoints {
    /// Takes over what an earlier agent left, and starts the owner, which ends with `shutdown`, its work in flight done.
    pub async fn start(
        options: EndpointsOptions,
        tasks: &TaskTracker,
        shutdown: CancellationToken,
    ) -> Result<Self, EndpointError> {
        let owner = tokio::task::spawn_blocking(move || {
            let EndpointsOptions {
                datapath,
                state_dir,
                pod_cidrs,
                address_rest,
            } = options;
            let boot_id = machine::boot_id();
            let mut ipam = Ipam::new(address_rest);
            ipam.set_cidrs(&pod_cidrs)?;
            let kernel = Kernel {
                checkpoints: Checkpoints::open(&checkpoints_dir(&state_dir))?,
                reaper: Reaper::start(Arc::clone(&datapath.netlink))?,
                datapath,
                boot_id: boot_id.clone(),
            };
            let ledger = Ledger::open(&ledger_path(&state_dir), &boot_id, machine::boot_time())?;
            Owner::take_over(Arc::new(kernel), ipam, ledger, address_rest)
        })
        .await
        .map_err(|_| EndpointError::Stopping)??;
        let (commands, queue) = mpsc::channel(BACKLOG);
        tasks.spawn(owner.run(queue, shutdown));
        Ok(Self { commands })
    }

    /// Attaches a container.
    pub async fn add(&self, request: AddRequest) -> Result<Attached, EndpointError> {
        request.key.validate()?;
        self.ask(|reply| Command::Add(request, reply)).await?
    }

    /// Detaches a container. What is gone is a success.
    pub async fn del(&self, key: AttachmentKey) -> Result<(), EndpointError> {
        self.ask(|reply| Command::Del(key, reply)).await?
    }

    /// Compares the kernel with what ADD made, and returns that.
    pub async fn check(&self, key: AttachmentKey, netns: Option<PathBuf>) -> Result<Attached, EndpointError> {
        self.ask(|reply| Command::Check(key, netns, reply)).await?
    }

    /// Detaches all of a network that is not in `valid`. Errors of single attachments are logged, the first is returned.
    pub async fn gc(&self, network: String, valid: Vec<AttachmentKey>) -> Result<(), EndpointError> {
        let summaries = self.ask(Command::List).await?;
        let garbage = summaries
            .into_iter()
            .filter(|summary| summary.network.as_ref() == Some(&network) && !valid.contains(&summary.key));
        let mut outcome = Ok(());
        for summary in garbage {
            tracing::info!(attachment = %summary.key, "collecting an attachment that the runtime does not know");
            outcome = outcome.and(self.del(summary.key).await);
        }
        outcome
    }

    /// Says whether ADD would be served.
    pub async fn status(&self) -> Result<(), EndpointError> {
        self.ask(Command::Status).await?
    }

    /// All attachments that are ready, by key.
    pub async fn list(&self) -> Result<Vec<EndpointSummary>, EndpointError> {
        self.ask(Command::List).await
    }

    /// How full the node is.
    pub async fn usage(&self) -> Result<EndpointsUse, EndpointError> {
        self.ask(Command::Usage).await
    }

    /// Tells which pod CIDRs the node has.
    pub async fn set_pod_cidrs(&self, cidrs: Vec<IpNetwork>) -> Result<(), EndpointError> {
        self.ask(|reply| Command::SetPodCidrs(cidrs, reply)).await?
    }

    /// Looks for what is amiss, begins to mend it, and removes what is nobody's. How many attachments are mended.
    pub async fn repair(&self) -> Result<usize, EndpointError> {
        self.ask(Command::Repair).await?
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EndpointError> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| EndpointError::Stopping)?;
        answer.await.map_err(|_| EndpointError::Stopping)
    }
}
