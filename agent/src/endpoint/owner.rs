//! The owner of the table of attachments: one task, to which everyone sends.
//!
//! Kernel work runs on blocking threads, for different attachments in parallel, for one never: a request for an
//! attachment that is worked on waits in its slot.

use std::{
    collections::{BTreeMap, VecDeque},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use ipnetwork::IpNetwork;
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{
    AddRequest, Attached, AttachmentKey, EndpointError, EndpointId, EndpointSummary, EndpointsUse,
    attach::{Kernel, Mended, Plan, ips},
    audit::Findings,
    checkpoint::{Checkpoint, Phase},
};
use crate::{
    ipam::{Ipam, ledger::Ledger},
    machine,
};

/// How many attachments are worked on at once. The kernel's link lock lets one through at a time; a few more keep it
/// busy, many more only queue up in the kernel.
const PARALLEL: usize = 8;

type Reply<T> = oneshot::Sender<T>;

/// What the owner is asked.
pub(super) enum Command {
    Add(AddRequest, Reply<Result<Attached, EndpointError>>),
    Del(AttachmentKey, Reply<Result<(), EndpointError>>),
    Check(
        AttachmentKey,
        Option<PathBuf>,
        Reply<Result<Attached, EndpointError>>,
    ),
    Status(Reply<Result<(), EndpointError>>),
    List(Reply<Vec<EndpointSummary>>),
    Usage(Reply<EndpointsUse>),
    SetPodCidrs(Vec<IpNetwork>, Reply<Result<(), EndpointError>>),
    Repair(Reply<Result<usize, EndpointError>>),
}

/// What is known of one attachment.
#[derive(Default)]
pub(super) struct Slot {
    /// What there is of it. Kept while it is checked or mended, and unfinished if it could not be undone.
    pub(super) checkpoint: Option<Checkpoint>,
    busy: bool,
    waiting: VecDeque<Command>,
}

impl Slot {
    /// The slot of an attachment that nobody works on.
    pub(super) fn holding(checkpoint: Checkpoint) -> Self {
        Self {
            checkpoint: Some(checkpoint),
            ..Self::default()
        }
    }
}

/// What a worker comes back with.
enum Done {
    Added {
        key: AttachmentKey,
        ips: Vec<IpAddr>,
        outcome: Result<Box<Checkpoint>, EndpointError>,
        reply: Reply<Result<Attached, EndpointError>>,
    },
    Deleted {
        checkpoint: Box<Checkpoint>,
        outcome: Result<(), EndpointError>,
        reply: Reply<Result<(), EndpointError>>,
    },
    Checked {
        key: AttachmentKey,
        outcome: Result<Attached, EndpointError>,
        reply: Reply<Result<Attached, EndpointError>>,
    },
    Mended {
        checkpoint: Box<Checkpoint>,
        outcome: Result<Mended, EndpointError>,
    },
    Audited {
        outcome: Result<Findings, EndpointError>,
        reply: Reply<Result<usize, EndpointError>>,
    },
}

/// The table and what changes it.
pub(super) struct Owner {
    pub(super) kernel: Arc<Kernel>,
    pub(super) ipam: Ipam,
    pub(super) ledger: Ledger,
    address_rest: Duration,
    pub(super) slots: BTreeMap<AttachmentKey, Slot>,
    pub(super) last_id: u32,
    jobs: JoinSet<Done>,
    permits: Arc<Semaphore>,
}

impl Owner {
    /// An owner of nothing yet.
    pub(super) fn new(kernel: Arc<Kernel>, ipam: Ipam, ledger: Ledger, address_rest: Duration) -> Self {
        Self {
            kernel,
            ipam,
            ledger,
            address_rest,
            slots: BTreeMap::new(),
            last_id: 0,
            jobs: JoinSet::new(),
            permits: Arc::new(Semaphore::new(PARALLEL)),
        }
    }

    /// Serves until `shutdown`, then finishes what was begun.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        loop {
            tokio::select! {
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => self.finish_job(done),
                command = commands.recv() => match command {
                    Some(command) => self.accept(command),
                    None => break,
                },
                () = shutdown.cancelled() => break,
            }
        }
        // Whoever waits in a slot or in the queue is answered by the end of its channel.
        commands.close();
        for slot in self.slots.values_mut() {
            slot.waiting.clear();
        }
        while let Some(done) = self.jobs.join_next().await {
            self.finish_job(done);
        }
        let reaper = self.kernel.reaper.clone();
        let _ = tokio::task::spawn_blocking(move || reaper.flush()).await;
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Add(request, reply) => self.add(request, reply),
            Command::Del(key, reply) => self.del(key, reply),
            Command::Check(key, netns, reply) => self.check(key, netns, reply),
            Command::Status(reply) => {
                let _ = reply.send(self.ipam.has_room(machine::boot_time()).map_err(Into::into));
            }
            Command::List(reply) => {
                let _ = reply.send(self.summaries());
            }
            Command::Usage(reply) => {
                let _ = reply.send(EndpointsUse {
                    ready: self
                        .slots
                        .values()
                        .filter(|slot| slot.checkpoint.is_some() && !slot.busy)
                        .count(),
                    busy: self.slots.values().filter(|slot| slot.busy).count(),
                    pools: self.ipam.usage(machine::boot_time()),
                });
            }
            Command::SetPodCidrs(cidrs, reply) => {
                let _ = reply.send(self.set_pod_cidrs(&cidrs));
            }
            Command::Repair(reply) => {
                let (kernel, ready) = (Arc::clone(&self.kernel), self.ready());
                self.spawn(move || Done::Audited {
                    outcome: kernel.audit(&ready),
                    reply,
                });
            }
        }
    }

    /// The slot of an attachment that nobody works on; where someone does, the command waits.
    fn idle(&mut self, key: &AttachmentKey, command: Command) -> Result<(&mut Slot, Command), ()> {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.busy {
            slot.waiting.push_back(command);
            Err(())
        } else {
            Ok((slot, command))
        }
    }

    fn add(&mut self, request: AddRequest, reply: Reply<Result<Attached, EndpointError>>) {
        let key = request.key.clone();
        let Ok((slot, Command::Add(request, reply))) = self.idle(&key, Command::Add(request, reply)) else {
            return;
        };
        let unfinished = slot
            .checkpoint
            .take_if(|checkpoint| checkpoint.phase == Phase::Creating);
        if slot.checkpoint.is_some() {
            let _ = reply.send(Err(EndpointError::AlreadyAttached(key)));
            return;
        }
        let leased = match self.lease(&key) {
            Ok(leased) => leased,
            Err(error) => {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.checkpoint = unfinished;
                }
                self.drop_if_empty(&key);
                let _ = reply.send(Err(error));
                return;
            }
        };
        if let Some(old) = &unfinished {
            self.release(&key, &ips(old));
        }
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        let plan = Plan {
            id: EndpointId(self.last_id),
            key: key.clone(),
            pod: request.pod,
            network: request.network,
            netns: request.netns,
            ips: leased.clone(),
            mtu: request.mtu,
        };
        self.begin(&key);
        let kernel = Arc::clone(&self.kernel);
        self.spawn(move || {
            if let Some(old) = unfinished {
                kernel.undo(&old);
            }
            Done::Added {
                key,
                ips: leased,
                outcome: kernel.attach(plan).map(Box::new),
                reply,
            }
        });
    }

    fn del(&mut self, key: AttachmentKey, reply: Reply<Result<(), EndpointError>>) {
        let Ok((slot, Command::Del(key, reply))) = self.idle(&key.clone(), Command::Del(key, reply)) else {
            return;
        };
        let Some(checkpoint) = slot.checkpoint.clone() else {
            self.drop_if_empty(&key);
            let _ = reply.send(Ok(()));
            return;
        };
        self.begin(&key);
        let kernel = Arc::clone(&self.kernel);
        self.spawn(move || {
            let outcome = kernel.detach(&checkpoint);
            Done::Deleted {
                checkpoint: Box::new(checkpoint),
                outcome,
                reply,
            }
        });
    }

    fn check(
        &mut self,
        key: AttachmentKey,
        netns: Option<PathBuf>,
        reply: Reply<Result<Attached, EndpointError>>,
    ) {
        let command = Command::Check(key.clone(), netns, reply);
        let Ok((slot, Command::Check(_, netns, reply))) = self.idle(&key, command) else {
            return;
        };
        let ready = slot
            .checkpoint
            .clone()
            .filter(|checkpoint| checkpoint.phase == Phase::Ready);
        let Some(checkpoint) = ready else {
            self.drop_if_empty(&key);
            let _ = reply.send(Err(EndpointError::NotAttached(key)));
            return;
        };
        let unleased: Vec<String> = ips(&checkpoint)
            .into_iter()
            .filter(|ip| self.ledger.leases().held.get(ip) != Some(&key))
            .map(|ip| format!("address {ip} is not leased to it"))
            .collect();
        if !unleased.is_empty() {
            let _ = reply.send(Err(EndpointError::Differs {
                key,
                differences: unleased,
            }));
            return;
        }
        self.begin(&key);
        let kernel = Arc::clone(&self.kernel);
        self.spawn(move || {
            let outcome = kernel
                .check(&checkpoint, netns.as_deref())
                .map(|()| checkpoint.attached);
            Done::Checked { key, outcome, reply }
        });
    }

    fn mend(&mut self, key: &AttachmentKey) -> bool {
        let Some(slot) = self.slots.get(key).filter(|slot| !slot.busy) else {
            return false;
        };
        let Some(checkpoint) = slot
            .checkpoint
            .clone()
            .filter(|known| known.phase == Phase::Ready)
        else {
            return false;
        };
        self.begin(key);
        let kernel = Arc::clone(&self.kernel);
        self.spawn(move || Done::Mended {
            outcome: kernel.mend(checkpoint.clone()),
            checkpoint: Box::new(checkpoint),
        });
        true
    }

    fn finish_job(&mut self, done: Result<Done, tokio::task::JoinError>) {
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                // Its slot stays busy: whatever it left half done is for the next agent to undo.
                tracing::error!(%error, "work on an attachment broke down");
                return;
            }
        };
        match done {
            Done::Added {
                key,
                ips,
                outcome,
                reply,
            } => {
                let answer = match outcome {
                    Ok(checkpoint) => {
                        let attached = checkpoint.attached.clone();
                        tracing::info!(
                            container_id = key.container_id,
                            ifname = key.ifname,
                            endpoint_id = %attached.id,
                            ip = ?ips,
                            "endpoint ready"
                        );
                        if let Some(slot) = self.slots.get_mut(&key) {
                            slot.checkpoint = Some(*checkpoint);
                        }
                        Ok(attached)
                    }
                    Err(error) => {
                        self.release(&key, &ips);
                        Err(error)
                    }
                };
                let unread = reply.send(answer).is_err();
                self.end(&key);
                if unread {
                    // Whoever asked has gone, and will not know that it is there.
                    let (reply, _) = oneshot::channel();
                    self.del(key, reply);
                }
            }
            Done::Deleted {
                checkpoint,
                outcome,
                reply,
            } => {
                let key = checkpoint.key.clone();
                if outcome.is_ok() {
                    self.release(&key, &ips(&checkpoint));
                    if let Some(slot) = self.slots.get_mut(&key) {
                        slot.checkpoint = None;
                    }
                    tracing::info!(
                        container_id = key.container_id,
                        ifname = key.ifname,
                        "endpoint deleted"
                    );
                }
                let _ = reply.send(outcome);
                self.end(&key);
            }
            Done::Checked { key, outcome, reply } => {
                let _ = reply.send(outcome);
                self.end(&key);
            }
            Done::Mended { checkpoint, outcome } => {
                let key = checkpoint.key.clone();
                self.note_mended(&checkpoint, outcome);
                self.end(&key);
            }
            Done::Audited { outcome, reply } => {
                let _ = reply.send(outcome.and_then(|findings| {
                    self.prune(&findings)?;
                    Ok(findings.broken.iter().filter(|key| self.mend(key)).count())
                }));
            }
        }
    }

    fn note_mended(&mut self, before: &Checkpoint, outcome: Result<Mended, EndpointError>) {
        let key = &before.key;
        let after = match outcome {
            Ok(Mended::Whole(checkpoint)) => {
                tracing::info!(attachment = %key, "attachment mended");
                Some(*checkpoint)
            }
            Ok(Mended::Gone) => {
                tracing::info!(attachment = %key, "netns is gone, attachment released");
                self.release(key, &ips(before));
                None
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(attachment = %key, error, "attachment could not be mended");
                return;
            }
        };
        if let Some(slot) = self.slots.get_mut(key) {
            slot.checkpoint = after;
        }
    }

    /// Leases from other pod CIDRs from now on. Attachments with addresses of former ones stay, until they are deleted.
    fn set_pod_cidrs(&mut self, cidrs: &[IpNetwork]) -> Result<(), EndpointError> {
        let before = self.ipam.cidrs();
        self.ipam.set_cidrs(cidrs)?;
        if self.ipam.cidrs() != before {
            tracing::warn!(?before, now = ?self.ipam.cidrs(), "the node's pod CIDRs changed; pods keep their addresses");
            // A CIDR may come back, as when the Node is made anew: what is in use of it still is.
            let leases = self.ledger.leases();
            for (ip, key) in &leases.held {
                self.ipam.adopt(key, *ip);
            }
            for (ip, end) in &leases.resting {
                self.ipam.rest(*ip, *end);
            }
        }
        Ok(())
    }

    fn lease(&mut self, key: &AttachmentKey) -> Result<Vec<IpAddr>, EndpointError> {
        let now = machine::boot_time();
        let leased = self.ipam.lease(key, now)?;
        if let Err(error) = self.ledger.lease(key, &leased, now) {
            for ip in &leased {
                self.ipam.release(key, *ip, now);
            }
            return Err(error.into());
        }
        Ok(leased)
    }

    pub(super) fn release(&mut self, key: &AttachmentKey, ips: &[IpAddr]) {
        let now = machine::boot_time();
        // What is another's by now stays another's.
        let held = &self.ledger.leases().held;
        let own = ips
            .iter()
            .filter(|ip| held.get(ip).is_none_or(|owner| owner == key));
        let own: Vec<IpAddr> = own.copied().collect();
        for ip in &own {
            self.ipam.release(key, *ip, now);
        }
        if let Err(error) = self.ledger.free(&own, now + self.address_rest, now) {
            // The next agent frees it: no attachment has it.
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "release could not be written down"
            );
        }
    }

    fn begin(&mut self, key: &AttachmentKey) {
        self.slots.entry(key.clone()).or_default().busy = true;
    }

    fn end(&mut self, key: &AttachmentKey) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        slot.busy = false;
        let mut waiting = std::mem::take(&mut slot.waiting);
        while let Some(command) = waiting.pop_front() {
            self.accept(command);
            if let Some(slot) = self.slots.get_mut(key).filter(|slot| slot.busy) {
                slot.waiting.append(&mut waiting);
                return;
            }
        }
        self.drop_if_empty(key);
    }

    fn drop_if_empty(&mut self, key: &AttachmentKey) {
        if self
            .slots
            .get(key)
            .is_some_and(|slot| slot.checkpoint.is_none() && !slot.busy && slot.waiting.is_empty())
        {
            self.slots.remove(key);
        }
    }

    pub(super) fn ready(&self) -> Vec<Checkpoint> {
        self.slots
            .values()
            .filter_map(|slot| slot.checkpoint.as_ref())
            .filter(|checkpoint| checkpoint.phase == Phase::Ready)
            .cloned()
            .collect()
    }

    fn summaries(&self) -> Vec<EndpointSummary> {
        self.ready()
            .into_iter()
            .map(|checkpoint| EndpointSummary {
                key: checkpoint.key,
                pod: checkpoint.pod,
                network: checkpoint.network,
                netns: checkpoint.netns,
                attached: checkpoint.attached,
            })
            .collect()
    }

    fn spawn(&mut self, work: impl FnOnce() -> Done + Send + 'static) {
        let permits = Arc::clone(&self.permits);
        self.jobs.spawn(async move {
            let _permit = permits.acquire_owned().await;
            match tokio::task::spawn_blocking(work).await {
                Ok(done) => done,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }
        });
    }
}
