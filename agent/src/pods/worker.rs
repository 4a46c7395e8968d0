//! The worker of one pod: looks at what is, decides, acts, tells the API; and waits until something changes.
//!
//! All of a pod's state is here or can be asked of its shim. No two workers ever serve one UID.

mod ending;
mod observe;
mod references;
mod report;

use std::{collections::HashSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use kube::Client;
use oci_spec::runtime::Capability;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use self::{
    ending::{DEFAULT_GRACE_SECONDS, end_container},
    observe::{mark_lost, recall},
};
use super::{
    PodsConfig,
    events::{Events, Kind},
    probes::{ProbeResult, Probers},
    projected::TokenKeeper,
    sandbox::{self, Leave, Sandbox, SandboxError},
    state::{Decision, Finished, Plan, Record, Records, Stage, container_of, decide, displace},
};
use crate::{
    endpoint::Endpoints,
    image::Store,
    shim::{ShimClient, protocol::ShimStatus},
    telemetry::chain,
};

/// The shortest and the longest wait after a step that failed for reasons outside the pod.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long one question to a shim waits for news. An answer without news only asks again.
const SHIM_POLL: Duration = Duration::from_mins(1);
/// How long the API may take.
pub(super) const API_DEADLINE: Duration = Duration::from_secs(15);

/// What all workers share.
pub(super) struct Context {
    pub(super) config: PodsConfig,
    pub(super) client: Client,
    pub(super) node_ips: Vec<IpAddr>,
    pub(super) endpoints: Endpoints,
    pub(super) store: Store,
    pub(super) events: Events,
    pub(super) controllers: HashSet<String>,
    pub(super) grantable: HashSet<Capability>,
    /// Sandboxes and containers that may be made at the same time.
    pub(super) starts: Semaphore,
}

/// What the API says of a pod.
#[derive(Debug, Clone)]
pub(super) enum Desired {
    /// It is bound to this node.
    Present(Arc<Pod>),
    /// It is not there (any more).
    Gone,
}

/// The state of one pod's worker.
pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) uid: String,
    pub(super) dir: PathBuf,
    pub(super) sandbox: Option<Sandbox>,
    pub(super) records: Records,
    pub(super) probers: Probers,
    /// Whether the pod ran its course.
    finished: Option<Finished>,
    shim_news: watch::Receiver<ShimNews>,
    /// The revision of the shim's state that the records have: what is told later may be older.
    observed: u64,
    shim_watcher: Option<JoinHandle<()>>,
    probe_results: mpsc::Receiver<ProbeResult>,
    tokens: Option<TokenKeeper>,
    patched: Option<PodStatus>,
    taken_up_at: Timestamp,
    retry: Duration,
    /// When containers of a pod that is being deleted are killed.
    kill_at: Option<Timestamp>,
    /// Whether they were asked to end before that.
    asked: bool,
    killed: bool,
    deleted: bool,
}

/// What the shim last said.
#[derive(Debug, Clone)]
enum ShimNews {
    /// Nothing yet.
    None,
    /// The state of the containers.
    Status(ShimStatus),
    /// It is gone.
    Lost,
}

/// What a step leads to.
enum Next {
    /// Wait for news, or until then.
    Wait(Option<Timestamp>),
    /// There is nothing left to do, ever.
    End,
}

/// Why a step was not completed. It is tried again.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("telling the API the status of the pod")]
    Status(#[source] kube::Error),
    #[error("telling the API that the pod is gone")]
    Delete(#[source] kube::Error),
    #[error("reading what the pod refers to")]
    Refer(#[source] kube::Error),
    #[error("getting a token for the pod's service account")]
    Token(#[source] kube::Error),
    #[error("the API did not answer")]
    Late,
    #[error(transparent)]
    Shim(#[from] crate::shim::CallError),
}

impl StepError {
    /// Whether the API said nothing, in contrast to having refused.
    fn is_silence(&self) -> bool {
        match self {
            Self::Refer(kube::Error::Api(status)) | Self::Token(kube::Error::Api(status)) => {
                status.code >= 500
            }
            Self::Late | Self::Refer(_) | Self::Token(_) => true,
            Self::Sandbox(_) | Self::Status(_) | Self::Delete(_) | Self::Shim(_) => false,
        }
    }
}

impl Worker {
    pub(super) fn new(context: Arc<Context>, uid: String, dir: PathBuf) -> Self {
        let (probers, probe_results) = Probers::new();
        Self {
            context,
            uid,
            dir,
            sandbox: None,
            records: Records::new(),
            probers,
            finished: None,
            shim_news: watch::channel(ShimNews::None).1,
            observed: 0,
            shim_watcher: None,
            probe_results,
            tokens: None,
            patched: None,
            taken_up_at: Timestamp::now(),
            retry: RETRY.0,
            kill_at: None,
            asked: false,
            killed: false,
            deleted: false,
        }
    }

    /// Serves the pod until it is gone or the agent stops.
    pub(super) async fn run(mut self, mut desired: watch::Receiver<Desired>, shutdown: CancellationToken) {
        let first = desired.borrow().clone();
        self.take_over(&first).await;
        loop {
            let now_desired = desired.borrow_and_update().clone();
            let wake = match self.step(&now_desired).await {
                Ok(Next::End) => break,
                Ok(Next::Wait(at)) => {
                    self.retry = RETRY.0;
                    at
                }
                Err(error) => {
                    tracing::warn!(pod = %self.uid, error = %chain(&error), "a pod's step failed and is tried again");
                    let at = Timestamp::now().checked_add(self.retry).ok();
                    self.retry = (self.retry * 2).min(RETRY.1);
                    at
                }
            };
            let timer = async {
                match wake {
                    Some(at) => {
                        let wait =
                            Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                        // Never in a busy loop, whatever a decision says.
                        sleep(wait.max(Duration::from_millis(10))).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => break,
                changed = desired.changed() => if changed.is_err() { break },
                Ok(()) = self.shim_news.changed() => {}
                Some(result) = self.probe_results.recv() => self.take_probe_result(&now_desired, &result),
                () = timer => {}
            }
        }
        self.stop_watching();
    }

    /// Finds what an earlier agent left of the pod: its shim knows best, and the API what the shim does not know (any more).
    async fn take_over(&mut self, desired: &Desired) {
        let statuses = match desired {
            Desired::Present(pod) => pod.status.clone().unwrap_or_default(),
            Desired::Gone => PodStatus::default(),
        };
        self.finished = match statuses.phase.as_deref() {
            Some("Succeeded") => Some(Finished::Succeeded),
            Some("Failed") => Some(Finished::Failed),
            Some(_) | None => None,
        };
        let now = Timestamp::now();
        let record = sandbox::read_record(&self.dir);
        if let Some(record) = &record {
            self.taken_up_at = record.created_at;
        }
        if let Some((sandbox, status)) = Sandbox::adopt(&self.dir).await {
            self.observe(&status);
            let recalled = recall(&mut self.records, &statuses, now);
            self.displace(desired, |name| recalled.contains(name));
            self.restore_readiness(desired, &statuses);
            let record = &sandbox.record;
            tracing::info!(pod = %record.name, namespace = %record.namespace, "pod taken over");
            self.adopt(sandbox);
            return;
        }
        if record.is_some() {
            // The node was restarted, or the shim died.
            self.observe_lost();
        }
        recall(&mut self.records, &statuses, now);
        self.displace(desired, |_| true);
    }

    /// Notes that what these containers did was in a place of the pod that is gone, if it is to go on in another.
    fn displace(&mut self, desired: &Desired, gone: impl Fn(&str) -> bool) {
        if let Desired::Present(pod) = desired
            && let Some(spec) = &pod.spec
            && pod.metadata.deletion_timestamp.is_none()
            && self.finished.is_none()
        {
            displace(&Plan::of(spec), &mut self.records, gone);
        }
    }

    /// What ran has ended with the shim, nobody knows how.
    fn observe_lost(&mut self) {
        let mut last = ShimClient::new(&self.dir).last_status();
        for container in last.containers.values_mut() {
            mark_lost(container);
        }
        self.observe(&last);
    }

    async fn step(&mut self, desired: &Desired) -> Result<Next, StepError> {
        let news = self.shim_news.borrow_and_update().clone();
        match news {
            ShimNews::Status(status) if status.revision > self.observed => self.observe(&status),
            ShimNews::Lost if self.sandbox.is_some() => self.shim_lost(desired),
            ShimNews::Status(_) | ShimNews::None | ShimNews::Lost => {}
        }
        match desired {
            Desired::Gone => {
                self.remove_sandbox().await?;
                sandbox::remove_logs(&self.context.config, |uid| uid == self.uid)?;
                Ok(Next::End)
            }
            Desired::Present(pod) if pod.metadata.deletion_timestamp.is_some() => self.terminate(pod).await,
            Desired::Present(pod) => self.maintain(pod).await,
        }
    }

    /// Keeps a pod running, or starts it.
    async fn maintain(&mut self, pod: &Arc<Pod>) -> Result<Next, StepError> {
        if self.finished.is_some() {
            return self.finish(pod).await;
        }
        let spec = pod.spec.clone().unwrap_or_default();
        let plan = Plan::of(&spec);
        if self.sandbox.is_none() && self.decide(&plan).finished.is_none() {
            // Told before what the shim left behind is taken away: only it knows how its containers ended.
            self.report(pod).await?;
            self.remove_place(Leave::Volumes).await?;
            self.make_sandbox(pod).await?;
        }
        self.clear_cut_short().await?;
        loop {
            let Decision {
                start,
                wake,
                finished,
            } = self.decide(&plan);
            if finished.is_some() {
                self.finished = finished;
                return self.finish(pod).await;
            }
            if start.is_empty() {
                if self.tokens.is_none() {
                    let client = self.context.client.clone();
                    self.tokens = TokenKeeper::start(client, self.dir.clone(), Arc::clone(pod));
                }
                self.probe(&spec);
                self.report(pod).await?;
                return Ok(Next::Wait(wake));
            }
            for name in &start {
                if let Some(container) = container_of(&spec, name) {
                    self.start_container(pod, container).await?;
                }
            }
        }
    }

    fn decide(&self, plan: &Plan) -> Decision {
        decide(
            plan,
            &self.records,
            &self.context.config.back_off,
            Timestamp::now(),
        )
    }

    /// Takes away containers that were made and not started: the agent ended in between.
    async fn clear_cut_short(&mut self) -> Result<(), StepError> {
        let Some(sandbox) = &self.sandbox else {
            return Ok(());
        };
        for record in self.records.values_mut() {
            if record.stage == Stage::Created {
                sandbox.shim.remove(&record.id).await?;
                record.stage = Stage::Never;
            }
        }
        Ok(())
    }

    /// Has the probers match the containers that run.
    fn probe(&mut self, spec: &PodSpec) {
        let Some(sandbox) = &self.sandbox else { return };
        for (name, record) in &self.records {
            match container_of(spec, name) {
                Some(container) if matches!(record.stage, Stage::Running(_)) => {
                    self.probers
                        .ensure(container, record.attempt, !record.started, sandbox);
                }
                Some(_) | None => self.probers.forget(name),
            }
        }
    }

    /// Tells how a pod ended, and gives back what it had.
    async fn finish(&mut self, pod: &Arc<Pod>) -> Result<Next, StepError> {
        // Told first: should the agent stop in between, the pod must not be started again.
        let known = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if self.sandbox.is_some() || !matches!(known, Some("Succeeded" | "Failed")) {
            self.report(pod).await?;
        }
        self.remove_sandbox().await?;
        Ok(Next::Wait(None))
    }

    async fn make_sandbox(&mut self, pod: &Arc<Pod>) -> Result<(), StepError> {
        let context = Arc::clone(&self.context);
        let _turn = context.starts.acquire().await;
        match Sandbox::create(&context.config, &context.endpoints, pod, &context.node_ips).await {
            Ok(sandbox) => {
                self.adopt(sandbox);
                Ok(())
            }
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {}", chain(&error));
                context
                    .events
                    .tell(pod, None, Kind::Warning, "FailedCreatePodSandBox", message);
                Err(error.into())
            }
        }
    }

    /// Takes a sandbox as the pod's, and watches its shim.
    fn adopt(&mut self, sandbox: Sandbox) {
        let (news, receiver) = watch::channel(ShimNews::None);
        let shim = sandbox.shim.clone();
        self.stop_watching();
        self.shim_watcher = Some(tokio::spawn(async move {
            let mut revision = 0;
            loop {
                match shim.wait(revision, SHIM_POLL).await {
                    Ok(status) if status.revision == revision => {}
                    Ok(status) => {
                        revision = status.revision;
                        news.send_replace(ShimNews::Status(status));
                    }
                    Err(error) if error.is_gone() => {
                        news.send_replace(ShimNews::Lost);
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "asking a pod's shim");
                        sleep(RETRY.1).await;
                    }
                }
            }
        }));
        self.shim_news = receiver;
        self.observed = 0;
        self.sandbox = Some(sandbox);
    }

    fn stop_watching(&mut self) {
        self.tokens = None;
        self.probers.stop();
        if let Some(watcher) = self.shim_watcher.take() {
            watcher.abort();
        }
    }

    /// The shim died: so have the mounts, and soon the containers. The pod starts over in a new place.
    fn shim_lost(&mut self, desired: &Desired) {
        self.stop_watching();
        self.sandbox = None;
        self.observe_lost();
        self.displace(desired, |_| true);
        if let Desired::Present(pod) = desired {
            let text = "the pod's shim ended; its containers are started again".to_owned();
            self.context
                .events
                .tell(pod, None, Kind::Warning, "SandboxChanged", text);
        }
    }

    /// Takes away all that the pod has on the node but its logs.
    async fn remove_sandbox(&mut self) -> Result<(), StepError> {
        self.remove_place(Leave::Nothing).await
    }

    async fn remove_place(&mut self, leave: Leave) -> Result<(), StepError> {
        self.stop_watching();
        let record = match &self.sandbox {
            Some(sandbox) => Some(sandbox.record.clone()),
            None => sandbox::read_record(&self.dir),
        };
        let context = &self.context;
        match record {
            Some(record) => {
                sandbox::remove(&context.config, &context.endpoints, &record, &self.dir, leave).await?;
            }
            // Nothing but volumes is there without the record.
            None if leave == Leave::Volumes => {}
            None => sandbox::remove_without_network(&context.config, &self.dir)?,
        }
        self.sandbox = None;
        Ok(())
    }

    fn take_probe_result(&mut self, desired: &Desired, result: &ProbeResult) {
        let Desired::Present(pod) = desired else { return };
        let kill = self
            .probers
            .judge(&mut self.records, &self.context.events, pod, result);
        if let (Some(id), Some(sandbox)) = (kill, &self.sandbox) {
            let signal = self.stop_signal(pod, &result.container);
            let grace = pod
                .spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
                .unwrap_or(DEFAULT_GRACE_SECONDS);
            end_container(sandbox.shim.clone(), id, signal, grace);
        }
    }
}

async fn in_time<T>(call: impl Future<Output = T>) -> Result<T, StepError> {
    tokio::time::timeout(API_DEADLINE, call)
        .await
        .map_err(|_| StepError::Late)
}

/// The record of the next attempt of a container, given how the one before was.
pub(super) fn next_attempt(record: &Record, back_off: &super::BackOffConfig) -> (u32, u32) {
    match &record.stage {
        Stage::Never => (record.attempt, record.streak),
        Stage::Ended(ended) => (
            record.attempt + 1,
            super::state::streak_after(record, ended, back_off) + 1,
        ),
        Stage::Created | Stage::Running(_) => (record.attempt + 1, record.streak),
    }
}
