//! Makes the Jobs of CronJobs when they are due, and keeps a few of those that are over.

pub mod decide;

use std::sync::Arc;

use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::strtime;
use k8s_openapi::jiff::tz::TimeZone;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use tracing::debug;

use super::claim::controller_reference;
use super::events::Kind;
use super::job::decide::{condition, finished_at};
use super::{
    Context, ControllerError, Outcome, is_conflict, is_not_found, is_terminating_namespace, said,
    spawn_workers, subscribe, write_status,
};
use crate::cron::Schedule;
use crate::informer::{ObjectKey, controller_of};
use crate::queue::{Backoff, Queue};

const KIND: &str = "CronJob";
/// Annotation of a Job: the time for which it was made.
const SCHEDULED_AT: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    subscribe::to_objects(&queue, &context.cron_jobs);
    subscribe::to_owners(&queue, &context.jobs, KIND);
    let waited = context.clone();
    let ready = async move {
        waited.cron_jobs.wait_synced().await;
        waited.jobs.wait_synced().await;
    };
    let shared = context.clone();
    spawn_workers(
        context,
        "cronjob",
        &queue,
        context.config.workers,
        ready,
        move |key| {
            let context = shared.clone();
            async move { reconcile(&context, &key).await }
        },
    );
}

async fn reconcile(context: &Context, key: &ObjectKey) -> Outcome {
    let api: Api<CronJob> = Api::namespaced(context.client.clone(), &key.namespace);
    // Fresh, not from the copy: a status that lags would have the same time run again.
    let cron = match api.get(&key.name).await {
        Ok(cron) => cron,
        Err(error) if is_not_found(&error) => return Ok(None),
        Err(error) => return Err(ControllerError::api("get", format!("cron job {key}"))(error)),
    };
    let pass = Pass {
        context,
        key,
        status: cron.status.clone().unwrap_or_default(),
        jobs: context
            .jobs
            .owned_by(cron.metadata.uid.as_deref().unwrap_or_default()),
        jobs_api: Api::namespaced(context.client.clone(), &key.namespace),
        cron,
        now: Timestamp::now(),
    };
    Box::pin(pass.run(&api)).await
}

/// One pass over one CronJob.
struct Pass<'a> {
    context: &'a Context,
    key: &'a ObjectKey,
    cron: CronJob,
    status: CronJobStatus,
    jobs: Vec<Arc<Job>>,
    jobs_api: Api<Job>,
    now: Timestamp,
}

impl Pass<'_> {
    async fn run(mut self, api: &Api<CronJob>) -> Outcome {
        self.follow_jobs().await?;
        let ran = self.run_what_is_due().await;
        // Lists that are empty are left out.
        self.status.active = self.status.active.take().filter(|active| !active.is_empty());
        if self.cron.status.clone().unwrap_or_default() != self.status {
            let object = CronJob {
                status: Some(self.status.clone()),
                ..self.cron.clone()
            };
            write_status(api, &object).await?;
        }
        self.clean_up().await?;
        ran
    }

    fn tell(&self, kind: Kind, reason: &'static str, message: String) {
        self.context.recorder.event(&self.cron, kind, reason, message);
    }

    fn active(&mut self) -> &mut Vec<ObjectReference> {
        self.status.active.get_or_insert_default()
    }

    /// Takes note of Jobs that are over or gone.
    async fn follow_jobs(&mut self) -> Result<(), ControllerError> {
        for job in self.jobs.clone() {
            let name = job.name_any();
            let status = job.status.clone().unwrap_or_default();
            let known = |active: &ObjectReference| active.uid == job.metadata.uid;
            let is_active = self.active().iter().any(known);
            let over = finished_at(&status).is_some();
            let complete = condition(&status, "Complete").is_some();
            if !is_active && !over {
                let message = format!("Saw a job that the controller did not create or forgot: {name}");
                self.tell(Kind::Warning, "UnexpectedJob", message);
            } else if is_active && over {
                let how = if complete { "Complete" } else { "Failed" };
                let message = format!("Saw completed job: {name}, condition: {how}");
                self.tell(Kind::Normal, "SawCompletedJob", message);
                self.active().retain(|active| !known(active));
            }
            if complete && self.status.last_successful_time < status.completion_time {
                self.status.last_successful_time = status.completion_time;
            }
        }
        for active in self.active().clone() {
            let name = active.name.unwrap_or_default();
            if self.jobs.iter().any(|job| job.metadata.uid == active.uid) {
                continue;
            }
            // The copy may not have it yet.
            let gone = match self.jobs_api.get(&name).await {
                Ok(job) => job.metadata.uid != active.uid,
                Err(error) if is_not_found(&error) => true,
                Err(error) => return Err(ControllerError::api("get", format!("job {name}"))(error)),
            };
            if gone {
                self.tell(
                    Kind::Normal,
                    "MissingJob",
                    format!("Active job went missing: {name}"),
                );
                self.active().retain(|known| known.uid != active.uid);
            }
        }
        Ok(())
    }

    async fn run_what_is_due(&mut self) -> Outcome {
        let spec = self.cron.spec.clone().unwrap_or_default();
        if self.cron.metadata.deletion_timestamp.is_some() || spec.suspend == Some(true) {
            return Ok(None);
        }
        let zone = match &spec.time_zone {
            None => TimeZone::system(),
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(error) => {
                    let message = format!("invalid timeZone: {name:?}: {error}");
                    self.tell(Kind::Warning, "UnknownTimeZone", message);
                    return Ok(None);
                }
            },
        };
        let schedule = match spec.schedule.parse::<Schedule>() {
            Ok(schedule) => schedule,
            Err(error) => {
                let message = format!("unparseable schedule: {:?} : {error}", spec.schedule);
                self.tell(Kind::Warning, "UnparseableSchedule", message);
                return Ok(None);
            }
        };
        let due = decide::due(&self.cron, &schedule, &zone, self.now);
        let again = decide::wait(due.next, self.now);
        if due.too_many {
            let message = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
            self.tell(Kind::Warning, "TooManyMissedTimes", message.into());
        }
        let Some(at) = due.at else { return Ok(again) };
        if decide::too_late(&self.cron, at, self.now) {
            let at = at.to_zoned(zone);
            let at = strtime::format("%a, %d %b %Y %H:%M:%S %z", &at).unwrap_or_default();
            self.tell(
                Kind::Warning,
                "MissSchedule",
                format!("Missed scheduled time to start a job: {at}"),
            );
            return Ok(again);
        }
        let name = decide::job_name(&self.cron, at);
        let running = |active: &ObjectReference| active.name.as_deref() == Some(name.as_str());
        if self.active().iter().any(running) || self.status.last_schedule_time == Some(Time(at)) {
            return Ok(again);
        }
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !self.active().is_empty() => {
                let message =
                    "Not starting job because prior execution is running and concurrency policy is Forbid";
                self.tell(Kind::Normal, "JobAlreadyActive", message.into());
                return Ok(again);
            }
            Some("Replace") => {
                // One that cannot be deleted stays known.
                while let Some(active) = self.active().first().cloned() {
                    self.delete(&active.name.unwrap_or_default(), active.uid).await?;
                    self.active().remove(0);
                }
            }
            _ => {}
        }
        self.create(&name, at, &zone).await?;
        Ok(again)
    }

    async fn create(&mut self, name: &str, at: Timestamp, zone: &TimeZone) -> Result<(), ControllerError> {
        let template = self.cron.spec.clone().unwrap_or_default().job_template;
        let meta = template.metadata.unwrap_or_default();
        let mut annotations = meta.annotations.unwrap_or_default();
        let local = at.to_zoned(zone.clone());
        let local = if local.offset().is_zero() {
            at.to_string()
        } else {
            strtime::format("%Y-%m-%dT%H:%M:%S%:z", &local).unwrap_or_default()
        };
        annotations.insert(SCHEDULED_AT.into(), local);
        let job = Job {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(self.key.namespace.to_string()),
                labels: meta.labels,
                annotations: Some(annotations),
                owner_references: Some(vec![controller_reference(&self.cron)]),
                ..ObjectMeta::default()
            },
            spec: template.spec,
            status: None,
        };
        let made = match self.jobs_api.create(&PostParams::default(), &job).await {
            Ok(made) => {
                self.tell(Kind::Normal, "SuccessfulCreate", format!("Created job {name}"));
                made
            }
            Err(error) if is_terminating_namespace(&error) => return Ok(()),
            Err(error) if is_conflict(&error) => {
                // Made by a pass that could not write the status, or by someone else.
                let found = self.jobs_api.get(name).await;
                let found = found.map_err(ControllerError::api("get", format!("job {name}")))?;
                let owner = controller_of(&found.metadata).map(|owner| &owner.uid);
                if owner != self.cron.metadata.uid.as_ref() {
                    return Err(ControllerError::api("create", format!("job {name}"))(error));
                }
                found
            }
            Err(error) => {
                let message = format!("Error creating job: {}", said(&error));
                self.tell(Kind::Warning, "FailedCreate", message);
                return Err(ControllerError::api("create", format!("job {name}"))(error));
            }
        };
        debug!(job = name, "job made");
        self.status.last_schedule_time = Some(Time(at));
        let over = made.status.as_ref().and_then(finished_at).is_some();
        if !over && !self.active().iter().any(|active| active.uid == made.metadata.uid) {
            self.active().push(ObjectReference {
                api_version: Some("batch/v1".into()),
                kind: Some("Job".into()),
                name: made.metadata.name,
                namespace: made.metadata.namespace,
                uid: made.metadata.uid,
                resource_version: made.metadata.resource_version,
                field_path: None,
            });
        }
        Ok(())
    }

    async fn clean_up(&self) -> Result<(), ControllerError> {
        for job in decide::surplus(&self.cron, &self.jobs) {
            self.delete(&job.name_any(), job.metadata.uid.clone()).await?;
        }
        Ok(())
    }

    async fn delete(&self, name: &str, uid: Option<String>) -> Result<(), ControllerError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid,
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match self.jobs_api.delete(name, &params).await {
            Ok(_) => {
                self.tell(Kind::Normal, "SuccessfulDelete", format!("Deleted job {name}"));
                Ok(())
            }
            Err(error) if is_not_found(&error) || is_conflict(&error) => Ok(()),
            Err(error) => {
                self.tell(
                    Kind::Warning,
                    "FailedDelete",
                    format!("Deleted job: {}", said(&error)),
                );
                Err(ControllerError::api("delete", format!("job {name}"))(error))
            }
        }
    }
}
