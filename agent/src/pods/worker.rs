//! The worker of one pod: looks at what is, decides, acts, tells the API; and waits until something changes.
//!
//! All of a pod's state is here or can be asked of its shim. No two workers ever serve one UID.

use std::{collections::HashSet, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodStatus};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use oci_spec::runtime::Capability;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinHandle,
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use super::{
    PodsConfig,
    environment::Sources,
    events::{Events, Kind},
    probes::{ProbeResult, Probers},
    projected::{self, TokenKeeper},
    sandbox::{self, Sandbox, SandboxError, chain},
    state::{Decision, Ended, Finished, Plan, Record, Records, Stage, container_of, decide},
    status::{self, Facts},
    volumes::{self, Claimed},
};
use crate::{
    endpoint::Endpoints,
    image::Store,
    local_path,
    shim::{
        ShimClient,
        protocol::{ContainerState, Phase, ShimStatus},
    },
};

/// The shortest and the longest wait after a step that failed for reasons outside the pod.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long one question to a shim waits for news. An answer without news only asks again.
const SHIM_POLL: Duration = Duration::from_mins(1);
/// How long the API may take.
const API_DEADLINE: Duration = Duration::from_secs(15);
/// The grace of a pod whose spec has none.
const DEFAULT_GRACE_SECONDS: i64 = 30;

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
    shim_watcher: Option<JoinHandle<()>>,
    probe_results: mpsc::Receiver<ProbeResult>,
    tokens: Option<TokenKeeper>,
    patched: Option<PodStatus>,
    taken_up_at: Timestamp,
    retry: Duration,
    /// When containers of a pod that is being deleted are killed.
    kill_at: Option<Timestamp>,
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
            shim_watcher: None,
            probe_results,
            tokens: None,
            patched: None,
            taken_up_at: Timestamp::now(),
            retry: RETRY.0,
            kill_at: None,
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

    /// Finds what an earlier agent left of the pod.
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
        let Some(record) = sandbox::read_record(&self.dir) else {
            return;
        };
        self.taken_up_at = record.created_at;
        if let Some(sandbox) = Sandbox::adopt(&self.dir).await {
            if let Ok(status) = sandbox.shim.status().await {
                self.observe(&status);
            }
            self.restore_readiness(desired, &statuses);
            tracing::info!(pod = %record.name, namespace = %record.namespace, "pod taken over");
            self.adopt(sandbox);
            return;
        }
        // The node was restarted, or the shim died: what ran has ended, nobody knows how.
        let mut last = ShimClient::new(&self.dir).last_status();
        for container in last.containers.values_mut() {
            mark_lost(container);
        }
        self.observe(&last);
        let Desired::Present(_) = desired else { return };
        let context = &self.context;
        if let Err(error) = sandbox::remove(&context.config, &context.endpoints, &record, &self.dir).await {
            tracing::warn!(pod = %record.name, error = %chain(&error), "clearing what is left of a pod");
        }
    }

    /// Readiness is as it was until a probe says otherwise: a restart of the agent is no news about the pod.
    fn restore_readiness(&mut self, desired: &Desired, told: &PodStatus) {
        let Desired::Present(pod) = desired else { return };
        let told: Vec<_> = told
            .container_statuses
            .iter()
            .chain(&told.init_container_statuses)
            .flatten()
            .collect();
        for (name, record) in &mut self.records {
            if !matches!(record.stage, Stage::Running(_)) {
                continue;
            }
            let container = pod.spec.as_ref().and_then(|spec| container_of(spec, name));
            let told = told.iter().find(|status| status.name == *name);
            record.started = container.is_none_or(|c| c.startup_probe.is_none())
                || told.is_some_and(|status| status.started == Some(true));
            record.ready = record.started
                && (container.is_none_or(|c| c.readiness_probe.is_none())
                    || told.is_some_and(|status| status.ready));
        }
    }

    async fn step(&mut self, desired: &Desired) -> Result<Next, StepError> {
        let news = self.shim_news.borrow_and_update().clone();
        match news {
            ShimNews::Status(status) => self.observe(&status),
            ShimNews::Lost if self.sandbox.is_some() => self.shim_lost(desired).await?,
            ShimNews::None | ShimNews::Lost => {}
        }
        match desired {
            Desired::Gone => {
                self.remove_sandbox().await?;
                sandbox::remove_logs(&self.context.config, &self.uid)?;
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
        if self.sandbox.is_none() {
            self.report(pod).await?;
            self.make_sandbox(pod).await?;
        }
        loop {
            let Decision {
                start,
                wake,
                finished,
            } = decide(
                &plan,
                &self.records,
                &self.context.config.back_off,
                Timestamp::now(),
            );
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

    /// Ends the containers of a pod that is being deleted, and tells the API when all of it is gone.
    async fn terminate(&mut self, pod: &Arc<Pod>) -> Result<Next, StepError> {
        self.probers.stop();
        let now = Timestamp::now();
        let grace = pod
            .metadata
            .deletion_grace_period_seconds
            .or(pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds))
            .unwrap_or(DEFAULT_GRACE_SECONDS)
            .max(0);
        let until = now
            .checked_add(jiff::SignedDuration::from_secs(grace))
            .unwrap_or(Timestamp::MAX);
        let first = self.kill_at.is_none();
        let kill_at = self.kill_at.map_or(until, |at| at.min(until));
        self.kill_at = Some(kill_at);

        let running: Vec<(String, String)> = self
            .records
            .iter()
            .filter(|(_, record)| matches!(record.stage, Stage::Running(_) | Stage::Created))
            .map(|(name, record)| (name.clone(), record.id.clone()))
            .collect();
        if let Some(sandbox) = self.sandbox.clone()
            && !running.is_empty()
        {
            let kill_now = kill_at <= now;
            if first {
                for (name, id) in &running {
                    let text = format!("Stopping container {name}");
                    self.context
                        .events
                        .tell(pod, Some(name), Kind::Normal, "Killing", text);
                    if !kill_now {
                        sandbox.shim.kill(id, self.stop_signal(pod, name)).await?;
                    }
                }
            }
            if kill_now && !self.killed {
                for (_, id) in &running {
                    sandbox.shim.kill(id, libc::SIGKILL).await?;
                }
                self.killed = true;
            }
            self.report(pod).await?;
            return Ok(Next::Wait((!kill_now).then_some(kill_at)));
        }
        if self.deleted {
            return Ok(Next::Wait(None));
        }
        let begun = self.records.values().any(|r| r.stage != Stage::Never);
        if begun && self.finished.is_none() {
            let failed = self.records.values().any(|record| match &record.stage {
                Stage::Ended(ended) => ended.exit_code != 0,
                Stage::Never | Stage::Created | Stage::Running(_) => false,
            });
            self.finished = Some(if failed {
                Finished::Failed
            } else {
                Finished::Succeeded
            });
        }
        self.report(pod).await?;
        self.remove_sandbox().await?;
        sandbox::remove_logs(&self.context.config, &self.uid)?;
        self.delete_from_api(pod).await?;
        self.deleted = true;
        Ok(Next::Wait(None))
    }

    /// The signal that asks a container to end: its image's, else SIGTERM.
    fn stop_signal(&self, pod: &Pod, name: &str) -> i32 {
        let image = pod
            .spec
            .as_ref()
            .and_then(|spec| container_of(spec, name))
            .and_then(|container| container.image.as_deref())
            .and_then(|image| crate::image::Reference::parse(image).ok())
            .and_then(|reference| self.context.store.image(&reference).ok().flatten());
        image
            .and_then(|image| parse_signal(&image.run.stop_signal))
            .unwrap_or(libc::SIGTERM)
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
    async fn shim_lost(&mut self, desired: &Desired) -> Result<(), StepError> {
        if let Desired::Present(pod) = desired {
            let text = "the pod's shim ended; its containers are started again".to_owned();
            self.context
                .events
                .tell(pod, None, Kind::Warning, "SandboxChanged", text);
        }
        let mut last = ShimClient::new(&self.dir).last_status();
        for container in last.containers.values_mut() {
            mark_lost(container);
        }
        self.observe(&last);
        self.remove_sandbox().await
    }

    async fn remove_sandbox(&mut self) -> Result<(), StepError> {
        self.stop_watching();
        let record = match &self.sandbox {
            Some(sandbox) => Some(sandbox.record.clone()),
            None => sandbox::read_record(&self.dir),
        };
        let context = &self.context;
        match record {
            Some(record) => {
                sandbox::remove(&context.config, &context.endpoints, &record, &self.dir).await?;
            }
            // Nothing is made before the record is written.
            None => sandbox::remove_without_network(&context.config, &self.dir)?,
        }
        self.sandbox = None;
        Ok(())
    }

    /// Brings the records up to what the shim says.
    pub(super) fn observe(&mut self, status: &ShimStatus) {
        let mut attempts: Vec<_> = status
            .containers
            .iter()
            .filter_map(|(id, container)| {
                let attempt: u32 = container.labels.get("attempt")?.parse().ok()?;
                Some((attempt, id, container))
            })
            .collect();
        attempts.sort_by_key(|(attempt, ..)| *attempt);
        for (attempt, id, container) in attempts {
            let Some(name) = container.labels.get("name") else {
                continue;
            };
            let record = self.records.entry(name.clone()).or_default();
            let known = record.stage != Stage::Never;
            if known && attempt < record.attempt {
                if let Phase::Exited { .. } = container.phase {
                    record.last = ended(container);
                }
                continue;
            }
            if known && attempt > record.attempt {
                record.last = match &record.stage {
                    Stage::Ended(ended) => Some(ended.clone()),
                    Stage::Never | Stage::Created | Stage::Running(_) => None,
                };
            }
            let label = |key: &str| container.labels.get(key).cloned().unwrap_or_default();
            record.attempt = attempt;
            record.id.clone_from(id);
            record.image_id = label("image-id");
            record.streak = label("streak").parse().unwrap_or(0);
            record.stage = match &container.phase {
                Phase::Created => Stage::Created,
                Phase::Running { started_at } => Stage::Running(*started_at),
                Phase::Exited { .. } => match ended(container) {
                    Some(ended) => Stage::Ended(ended),
                    None => Stage::Never,
                },
            };
            if matches!(record.stage, Stage::Ended(_)) {
                record.ready = false;
                record.started = false;
            }
        }
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

    /// The objects that the pod refers to. Volumes that are made already do without the API if it does not answer.
    pub(super) async fn sources(&self, pod: &Pod) -> Result<Sources, StepError> {
        let mut sources = Sources::default();
        self.read(pod, volumes::referred_by_variables(pod), &mut sources)
            .await?;
        let volumes = async {
            self.read(pod, volumes::referred_by_volumes(pod), &mut sources)
                .await?;
            for token in projected::tokens(pod) {
                let text = match projected::kept(&self.dir, &token) {
                    Some(text) => text,
                    None => in_time(projected::fetch(&self.context.client, pod, &token))
                        .await?
                        .map_err(StepError::Token)?,
                };
                sources.tokens.insert((token.volume, token.path), text);
            }
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            for name in volumes::claims(pod) {
                let claimed = self.claimed(namespace, &name).await?;
                sources.claims.insert(name, claimed);
            }
            Ok::<(), StepError>(())
        };
        match volumes.await {
            Err(error) if error.is_silence() && self.dir.join("volumes").is_dir() => {
                tracing::warn!(pod = %self.uid, error = %chain(&error), "volumes stay as they are");
                sources.unreachable = true;
            }
            outcome => outcome?,
        }
        Ok(sources)
    }

    /// Reads objects of the pod's namespace that are not read yet.
    async fn read(
        &self,
        pod: &Pod,
        referred: volumes::Referred,
        sources: &mut Sources,
    ) -> Result<(), StepError> {
        use k8s_openapi::api::core::v1::{ConfigMap, Secret};

        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<ConfigMap> = Api::namespaced(self.context.client.clone(), namespace);
        for name in referred.config_maps {
            if sources.config_maps.contains_key(&name) {
                continue;
            }
            let found = in_time(api.get_opt(&name)).await?.map_err(StepError::Refer)?;
            let data = found.map(|map| {
                let text = map.data.unwrap_or_default().into_iter();
                let bytes = map.binary_data.unwrap_or_default().into_iter();
                text.map(|(key, value)| (key, value.into_bytes()))
                    .chain(bytes.map(|(key, value)| (key, value.0)))
                    .collect()
            });
            sources.config_maps.insert(name, data);
        }
        let api: Api<Secret> = Api::namespaced(self.context.client.clone(), namespace);
        for name in referred.secrets {
            if sources.secrets.contains_key(&name) {
                continue;
            }
            let found = in_time(api.get_opt(&name)).await?.map_err(StepError::Refer)?;
            let data = found.map(|secret| {
                let data = secret.data.unwrap_or_default().into_iter();
                data.map(|(key, value)| (key, value.0)).collect()
            });
            sources.secrets.insert(name, data);
        }
        Ok(())
    }

    /// What a claim comes to.
    async fn claimed(&self, namespace: &str, name: &str) -> Result<Claimed, StepError> {
        use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

        let claims: Api<PersistentVolumeClaim> = Api::namespaced(self.context.client.clone(), namespace);
        let Some(claim) = in_time(claims.get_opt(name)).await?.map_err(StepError::Refer)? else {
            return Ok(Claimed::Absent);
        };
        let phase = claim.status.and_then(|status| status.phase);
        let volume = claim.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
        if phase.as_deref() != Some("Bound") || volume.is_empty() {
            return Ok(Claimed::Unbound);
        }
        let volumes: Api<PersistentVolume> = Api::all(self.context.client.clone());
        let found = in_time(volumes.get_opt(&volume))
            .await?
            .map_err(StepError::Refer)?;
        let made_in = local_path::directory(&self.context.config.state_dir);
        Ok(found.map_or(Claimed::Unbound, |volume| Claimed::by(&volume, &made_in)))
    }

    /// Tells the API the pod's status, if it is not what was told last.
    pub(super) async fn report(&mut self, pod: &Arc<Pod>) -> Result<(), StepError> {
        let mut base = Pod::clone(pod);
        if let Some(told) = &self.patched {
            // The API's copy may be older than what was told; conditions of others are only there.
            let status = base.status.get_or_insert_default();
            let ours: Vec<_> = told.conditions.iter().flatten().cloned().collect();
            let others = status.conditions.take().unwrap_or_default();
            let others = others
                .into_iter()
                .filter(|c| !ours.iter().any(|o| o.type_ == c.type_));
            status.conditions = Some(ours.iter().cloned().chain(others).collect());
            status.start_time.clone_from(&told.start_time);
        }
        let pod_ips = match &self.sandbox {
            Some(sandbox) => sandbox.record.pod_ips.clone(),
            None => self.told_ips(pod),
        };
        let status = status::compute(
            &base,
            &Facts {
                records: &self.records,
                finished: self.finished,
                sandboxed: self.sandbox.is_some(),
                pod_ips: &pod_ips,
                node_ips: &self.context.node_ips,
                started_at: self.taken_up_at,
                back_off: &self.context.config.back_off,
                now: Timestamp::now(),
            },
        );
        // The control plane marks the pods of a silent node as not ready; it takes that back only by hearing otherwise.
        let readiness = |status: Option<&PodStatus>| {
            let conditions = status
                .and_then(|status| status.conditions.as_deref())
                .unwrap_or_default();
            let ready = conditions.iter().find(|condition| condition.type_ == "Ready");
            ready.map(|condition| condition.status.clone())
        };
        let contradicted = readiness(pod.status.as_ref()) != readiness(Some(&status));
        if self.patched.as_ref() == Some(&status) && !contradicted {
            return Ok(());
        }
        let (api, name) = self.api(pod);
        let patch = serde_json::json!({ "metadata": { "uid": self.uid }, "status": status });
        match in_time(api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch))).await? {
            Ok(_) => {
                self.patched = Some(status);
                Ok(())
            }
            // Deleted: the watch tells.
            Err(kube::Error::Api(error)) if error.code == 404 => Ok(()),
            Err(error) => Err(StepError::Status(error)),
        }
    }

    /// The addresses that a pod without a sandbox was said to have: a finished one keeps them in its status.
    fn told_ips(&self, pod: &Pod) -> Vec<IpAddr> {
        if self.finished.is_none() {
            return Vec::new();
        }
        let ips = self
            .patched
            .as_ref()
            .or(pod.status.as_ref())
            .and_then(|status| status.pod_ips.clone())
            .unwrap_or_default();
        ips.iter().filter_map(|ip| ip.ip.parse().ok()).collect()
    }

    async fn delete_from_api(&self, pod: &Pod) -> Result<(), StepError> {
        let (api, name) = self.api(pod);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.clone()),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        match in_time(api.delete(&name, &params)).await? {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409) => Ok(()),
            Err(error) => Err(StepError::Delete(error)),
        }
    }

    fn api(&self, pod: &Pod) -> (Api<Pod>, String) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let name = pod.metadata.name.clone().unwrap_or_default();
        (Api::namespaced(self.context.client.clone(), namespace), name)
    }
}

async fn in_time<T>(call: impl Future<Output = T>) -> Result<T, StepError> {
    tokio::time::timeout(API_DEADLINE, call)
        .await
        .map_err(|_| StepError::Late)
}

/// Ends one container: a signal, and SIGKILL when the grace is over.
fn end_container(shim: ShimClient, id: String, signal: i32, grace_seconds: i64) {
    tokio::spawn(async move {
        let grace = Duration::from_secs(u64::try_from(grace_seconds).unwrap_or(0));
        if let Err(error) = shim.kill(&id, signal).await {
            tracing::debug!(%error, id, "ending a container");
        }
        sleep(grace).await;
        // The id is this attempt's alone; one that ended is a success.
        if let Err(error) = shim.kill(&id, libc::SIGKILL).await {
            tracing::debug!(%error, id, "killing a container");
        }
    });
}

/// How a container ended, in Kubernetes' words.
fn ended(container: &ContainerState) -> Option<Ended> {
    let Phase::Exited {
        started_at,
        finished_at,
        exit_code,
        signal,
        oom_killed,
    } = container.phase
    else {
        return None;
    };
    let reason = match (oom_killed, exit_code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        (false, _) => "Error",
    };
    Some(Ended {
        started_at,
        finished_at,
        exit_code,
        signal,
        reason: reason.to_owned(),
        message: None,
    })
}

/// Marks a container as ended whose end nobody saw.
fn mark_lost(container: &mut ContainerState) {
    let started_at = match container.phase {
        Phase::Exited { .. } => return,
        Phase::Created => None,
        Phase::Running { started_at } => Some(started_at),
    };
    container.phase = Phase::Exited {
        started_at,
        finished_at: Timestamp::now(),
        exit_code: 128 + libc::SIGKILL,
        signal: Some(libc::SIGKILL),
        oom_killed: false,
    };
}

fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let full = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    full.parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
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
