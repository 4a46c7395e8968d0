//! Runs Jobs: pods until enough have succeeded or too many have failed.

pub mod backoff;
pub mod decide;
pub mod indexes;
mod orphans;
pub mod plan;
mod pods;
pub mod terms;
pub mod tracking;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use futures::{StreamExt, stream};
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use self::decide::{SUSPENDED, Tally, Verdict};
use self::plan::Plan;
use self::terms::Terms;
use super::claim::{claims, settle, strict, suitors};
use super::events::Kind;
use super::expectations::Expectations;
use super::pod::{Phase, PodView};
use super::pod_control::{PodControl, observe};
use super::{Context, ControllerError, Outcome, is_not_found, spawn_workers, subscribe, write_status};
use crate::informer::{Change, ObjectKey};
use crate::queue::{Backoff, Queue};

const KIND: &str = "Job";
/// Finalizer of a Job's pods until they are counted.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// What `spec.managedBy` says of Jobs that are this controller's.
const OWN_NAME: &str = "kubernetes.io/job-controller";
/// Pods created or deleted in one go; the rest follows when these were seen.
const BURST: usize = 500;

struct Jobs {
    context: Arc<Context>,
    expectations: Expectations,
    memory: Mutex<HashMap<ObjectKey, Memory>>,
}

/// What the API does not say of a Job.
#[derive(Debug, Default)]
struct Memory {
    /// Pods whose finalizer was taken and that seem to have it still.
    released: BTreeSet<String>,
    /// Failures in a row.
    failures: backoff::Record,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let jobs = Arc::new(Jobs {
        context: context.clone(),
        expectations: Expectations::default(),
        memory: Mutex::default(),
    });
    subscribe::to_objects(&queue, &context.jobs);
    let (keys, told) = (queue.clone(), jobs.clone());
    context
        .pods
        .subscribe(move |change| told.pod_changed(&keys, change));
    orphans::start(context);
    let waited = context.clone();
    let ready = async move {
        waited.jobs.wait_synced().await;
        waited.pods.wait_synced().await;
    };
    spawn_workers(
        context,
        "job",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let jobs = jobs.clone();
            async move { Box::pin(jobs.reconcile(&key)).await }
        },
    );
}

impl Jobs {
    fn remember<R>(&self, key: &ObjectKey, act: impl FnOnce(&mut Memory) -> R) -> R {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        act(memory.entry(key.clone()).or_default())
    }

    fn forget(&self, key: &ObjectKey) {
        self.expectations.forget(key);
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
    }

    fn pod_changed(&self, queue: &Queue<ObjectKey>, change: &Change<'_, PodView>) {
        let released = |pod: &PodView| !orphans::is_tracked(pod);
        for key in observe(&self.expectations, KIND, change).into_iter().flatten() {
            if let Some(pod) = change.latest()
                && change.new.is_none_or(|pod| released(pod))
                && let Some(memory) = self
                    .memory
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .get_mut(&key)
            {
                memory.released.remove(pod.uid());
            }
            // Counting many pods costs time in proportion; their changes come in crowds and are taken together.
            let job = self.context.jobs.get(&key);
            let size = job
                .and_then(|job| job.spec.as_ref()?.parallelism)
                .unwrap_or(0)
                .unsigned_abs();
            let delay = Duration::from_millis(u64::from(size / 20).min(100));
            if delay.is_zero() {
                queue.add(key);
            } else {
                queue.add_after(key, delay);
            }
        }
        let selector = |job: &Job| strict(job.spec.as_ref()?.selector.clone()?).ok();
        for key in suitors(&self.context.jobs, change, selector) {
            queue.add(key);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Outcome {
        let context = &*self.context;
        let api: Api<Job> = Api::namespaced(context.client.clone(), &key.namespace);
        // Fresh, not from the copy: counters that lag would make a pod too many.
        let job = match api.get(&key.name).await {
            Ok(job) => job,
            Err(error) if is_not_found(&error) => {
                self.forget(key);
                return Ok(None);
            }
            Err(error) => return Err(ControllerError::api("get", format!("job {key}"))(error)),
        };
        let Some(spec) = &job.spec else { return Ok(None) };
        if spec.managed_by.as_deref().is_some_and(|name| name != OWN_NAME) {
            return Ok(None);
        }
        let selector =
            strict(spec.selector.clone().unwrap_or_default()).map_err(|why| ControllerError::Invalid {
                what: format!("job {key}"),
                why,
            })?;
        let pods_api: Api<Pod> = Api::namespaced(context.client.clone(), &key.namespace);
        // Asked before the pods are looked at: one that arrives in between would be expected no more and not be seen.
        let may_act = self.expectations.satisfied(key, Instant::now());
        let mut pods = claims(&context.pods, &job.metadata, &selector, |_| true);
        pods.finalizer = Some(FINALIZER);
        let pods = settle(pods, &job, &api, &pods_api).await?;
        let pass = Pass {
            jobs: self,
            key,
            terms: Terms::of(&job),
            api,
            pods_api,
            may_act,
            now: Timestamp::now(),
        };
        if job.status.as_ref().and_then(decide::finished_at).is_some() {
            let left: Vec<_> = pods.into_iter().filter(|pod| orphans::is_tracked(pod)).collect();
            return pass.release(&left).await.map(|()| None);
        }
        pass.run(job, &pods).await
    }
}

/// One pass over one Job.
struct Pass<'a> {
    jobs: &'a Jobs,
    key: &'a ObjectKey,
    terms: Terms,
    api: Api<Job>,
    pods_api: Api<Pod>,
    /// Whether all that was asked for before has been seen.
    may_act: bool,
    now: Timestamp,
}

impl Pass<'_> {
    async fn run(&self, mut job: Job, pods: &[Arc<PodView>]) -> Outcome {
        let now = self.now;
        let deleting = job.metadata.deletion_timestamp.is_some();
        let released = self.jobs.remember(self.key, |memory| memory.released.clone());
        let mut status = job.status.clone().unwrap_or_default();
        if status.start_time.is_none() && !self.terms.suspended {
            status.start_time = Some(Time(now));
        }
        let mut tally = Tally::of(&self.terms, &status, pods, &released);
        let waiting = tally.tracked.clone();
        let tracked: BTreeSet<&str> = waiting.iter().map(|pod| pod.uid()).collect();
        tracking::count_released(&mut status, self.terms.indexed, &tracked);

        let mut failures = self.jobs.remember(self.key, |memory| memory.failures);
        failures.note(self.new_ends(&status, &tally), now);
        let verdict = decide::judge(&self.terms, &status, &tally, now);
        // Past the deadline, the pods that go say when there is more to do.
        let mut again = decide::deadline_left(&self.terms, &status, now).filter(|_| verdict.is_none());
        let mut acted = Ok(());
        match &verdict {
            Some(_) if !tally.active.is_empty() => acted = self.end(&job, &mut tally).await,
            None if self.may_act && !deleting => {
                let base = self.jobs.context.config.job_pod_failure_backoff;
                let plan = plan::plan(&self.terms, &tally, &failures, base, BURST, now);
                if let Plan::Wait(wait) = plan {
                    again = Some(again.map_or(wait, |again| again.min(wait)));
                }
                acted = self.carry_out(&job, &tally, plan).await;
                self.suspend_or_resume(&job, &mut status);
            }
            _ => {}
        }

        status.active = Some(decide::size(tally.active.len())).filter(|active| *active > 0);
        status.ready = Some(if tally.active.is_empty() { 0 } else { tally.ready });
        status.terminating = Some(decide::size(tally.leaving.len()));
        let release = tracking::note_ended(&self.terms, &mut status, &tally, verdict.as_ref(), deleting);
        if let Some(verdict) = &verdict {
            let (interim, _) = verdict.conditions();
            decide::set_condition(
                &mut status,
                interim,
                "True",
                &verdict.reason,
                &verdict.message,
                now,
            );
        }
        job = self.write(job, status).await?;
        self.jobs.remember(self.key, |memory| memory.failures = failures);
        self.release(&release.pods).await?;

        let mut status = job.status.clone().unwrap_or_default();
        let gone: BTreeSet<&str> = release.pods.iter().map(|pod| pod.uid()).collect();
        let tracked: BTreeSet<&str> = tracked.difference(&gone).copied().collect();
        tracking::count_released(&mut status, self.terms.indexed, &tracked);
        let over = verdict.filter(|_| tally.is_quiet() && !release.more && acted.is_ok());
        if let Some(verdict) = &over {
            self.finish(&mut status, verdict);
        }
        job = self.write(job, status).await?;
        if let Some(verdict) = over {
            self.announce(&job, &verdict);
            return Ok(None);
        }
        acted?;
        Ok(if release.more { Some(Duration::ZERO) } else { again })
    }

    /// Pods that ended since the last pass.
    fn new_ends(&self, status: &JobStatus, tally: &Tally) -> Vec<(Option<Timestamp>, bool)> {
        let known = decide::Uncounted::of(status);
        tally
            .tracked
            .iter()
            .filter(|pod| !known.failed.contains(pod.uid()) && !known.succeeded.contains(pod.uid()))
            .filter(|pod| pod.phase == Phase::Succeeded || self.terms.failed(pod))
            .map(|pod| {
                (
                    pod.end.as_ref().and_then(|end| end.at),
                    pod.phase == Phase::Succeeded,
                )
            })
            .collect()
    }

    fn control<'a>(&'a self, job: &'a Job) -> PodControl<'a, Job> {
        PodControl {
            context: &self.jobs.context,
            owner: job,
            key: self.key,
            expectations: &self.jobs.expectations,
            api: self.pods_api.clone(),
        }
    }

    /// The Job is over: what still runs must not.
    async fn end(&self, job: &Job, tally: &mut Tally) -> Result<(), ControllerError> {
        let active = std::mem::take(&mut tally.active);
        let uids = active.iter().map(|pod| pod.uid().to_owned());
        self.jobs.expectations.expect(self.key, 0, uids, Instant::now());
        let deleted = self.control(job).delete(&active).await;
        tally.leaving.extend(active);
        deleted
    }

    async fn carry_out(&self, job: &Job, tally: &Tally, plan: Plan) -> Result<(), ControllerError> {
        let control = self.control(job);
        let expectations = &self.jobs.expectations;
        match plan {
            Plan::Keep | Plan::Wait(_) => Ok(()),
            Plan::Create(count) => {
                expectations.expect(self.key, count, [], Instant::now());
                control.create(count, |_| pods::pod(job)).await
            }
            Plan::CreateIndexed(indexes) => {
                expectations.expect(self.key, indexes.len(), [], Instant::now());
                control
                    .create(indexes.len(), |at| {
                        let index = indexes[at];
                        let failures = self.terms.per_index.map(|_| {
                            tally
                                .kept_back
                                .get(&index)
                                .map_or((0, 0), |pod| terms::index_failures(&self.terms, pod))
                        });
                        pods::indexed(job, index, failures)
                    })
                    .await
            }
            Plan::Delete(victims) => {
                // They are not failures, so they must not be counted when they go.
                self.release(&victims).await?;
                let uids = victims.iter().map(|pod| pod.uid().to_owned());
                expectations.expect(self.key, 0, uids, Instant::now());
                control.delete(&victims).await
            }
        }
    }

    fn suspend_or_resume(&self, job: &Job, status: &mut JobStatus) {
        let recorder = &self.jobs.context.recorder;
        let suspended = decide::condition(status, SUSPENDED).is_some();
        if self.terms.suspended && !suspended {
            decide::set_condition(
                status,
                SUSPENDED,
                "True",
                "JobSuspended",
                "Job suspended",
                self.now,
            );
            recorder.event(job, Kind::Normal, "Suspended", "Job suspended".into());
        } else if !self.terms.suspended && suspended {
            decide::set_condition(status, SUSPENDED, "False", "JobResumed", "Job resumed", self.now);
            recorder.event(job, Kind::Normal, "Resumed", "Job resumed".into());
            // The deadline counts the time since then.
            status.start_time = Some(Time(self.now));
        }
    }

    fn finish(&self, status: &mut JobStatus, verdict: &Verdict) {
        let (_, last) = verdict.conditions();
        decide::set_condition(status, last, "True", &verdict.reason, &verdict.message, self.now);
        if verdict.success {
            status.completion_time = Some(Time(self.now));
        }
    }

    fn announce(&self, job: &Job, verdict: &Verdict) {
        let recorder = &self.jobs.context.recorder;
        if verdict.success {
            recorder.event(job, Kind::Normal, "Completed", "Job completed".into());
            return;
        }
        const REASONS: &[&str] = &[
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "MaxFailedIndexesExceeded",
            "FailedIndexes",
            "PodFailurePolicy",
        ];
        let reason = REASONS.iter().find(|reason| **reason == verdict.reason);
        let reason = reason.copied().unwrap_or("Failed");
        recorder.event(job, Kind::Warning, reason, verdict.message.clone());
    }

    /// Takes the finalizer from pods that are counted.
    async fn release(&self, pods: &[Arc<PodView>]) -> Result<(), ControllerError> {
        let patch = json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
        let results: Vec<Result<(), ControllerError>> = stream::iter(pods.to_vec())
            .map(|pod: Arc<PodView>| {
                let mut patch = patch.clone();
                patch["metadata"]["uid"] = pod.uid().into();
                async move {
                    let uid = pod.uid().to_owned();
                    self.jobs
                        .remember(self.key, |memory| memory.released.insert(uid.clone()));
                    let params = PatchParams::default();
                    match self
                        .pods_api
                        .patch(pod.name(), &params, &Patch::Strategic(patch))
                        .await
                    {
                        Ok(_) => Ok(()),
                        Err(error) if is_not_found(&error) => Ok(()),
                        Err(error) => {
                            self.jobs
                                .remember(self.key, |memory| memory.released.remove(&uid));
                            Err(ControllerError::api("release", format!("pod {}", pod.name()))(
                                error,
                            ))
                        }
                    }
                }
            })
            .buffer_unordered(self.jobs.context.config.batch_concurrency)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn write(&self, job: Job, status: JobStatus) -> Result<Job, ControllerError> {
        if job.status.as_ref() == Some(&status) {
            return Ok(job);
        }
        let object = Job {
            status: Some(status),
            ..job
        };
        let written = write_status(&self.api, &object).await?;
        Ok(written.unwrap_or(object))
    }
}
