//! What a pass over a Deployment writes into its status.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};

use super::rollout::Rollout;
use super::{limits, status};
use crate::controllers::{ControllerError, Outcome, write_status};

impl Rollout<'_> {
    /// Notes that the rollout was paused or resumed, so that a pause does not count against the deadline.
    pub(super) async fn write_pause(&mut self, paused: bool) -> Result<bool, ControllerError> {
        if self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.progress_deadline_seconds)
            .is_none()
        {
            return Ok(false);
        }
        let mut fresh = self.deployment.status.clone().unwrap_or_default();
        let reason = status::condition(&fresh, status::PROGRESSING).and_then(|c| c.reason.clone());
        if reason.as_deref() == Some(status::TIMED_OUT) {
            return Ok(false);
        }
        let noted = reason.as_deref() == Some(status::PAUSED);
        let (reason, message) = match (paused, noted) {
            (true, false) => (status::PAUSED, "Deployment is paused"),
            (false, true) => (status::RESUMED, "Deployment is resumed"),
            _ => return Ok(false),
        };
        status::set(
            &mut fresh,
            status::PROGRESSING,
            "Unknown",
            reason,
            message.into(),
            self.now,
        );
        self.put_status(fresh).await?;
        Ok(true)
    }

    /// Restarts the clock of the progress deadline.
    pub(super) async fn note_progress(&mut self, reason: &str, message: &str) -> Result<(), ControllerError> {
        if self
            .deployment
            .spec
            .as_ref()
            .and_then(|spec| spec.progress_deadline_seconds)
            .is_none()
        {
            return Ok(());
        }
        let mut fresh = self.deployment.status.clone().unwrap_or_default();
        status::set(
            &mut fresh,
            status::PROGRESSING,
            "True",
            reason,
            message.into(),
            self.now,
        );
        self.put_status(fresh).await
    }

    /// The counts alone: a rollout that is paused, or that was scaled a moment ago, is not judged.
    pub(super) async fn write_counts(&mut self) -> Outcome {
        let fresh = self.counted();
        self.put_status(fresh).await.map(|()| None)
    }

    /// The counts, and how the rollout is getting on.
    pub(super) async fn write_status(&mut self) -> Outcome {
        let mut fresh = self.counted();
        let all: Vec<&ReplicaSet> = self.sets.iter().map(|set| &**set).collect();
        let new = self.new.map(|new| &*self.sets[new]);
        status::judge_progress(&self.deployment, new, &all, &mut fresh, self.now);
        let stuck_at = status::stuck_at(&self.deployment, &fresh);
        self.put_status(fresh).await?;
        Ok(stuck_at.map(|at| {
            let left = at.duration_since(self.now);
            Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1)
        }))
    }

    fn counted(&self) -> DeploymentStatus {
        let all: Vec<&ReplicaSet> = self.sets.iter().map(|set| &**set).collect();
        let new = self.new.map(|new| &*self.sets[new]);
        status::counted(&self.deployment, limits(&self.deployment), new, &all, self.now)
    }

    pub(super) async fn put_status(&mut self, fresh: DeploymentStatus) -> Result<(), ControllerError> {
        if self.deployment.status.as_ref() == Some(&fresh) {
            return Ok(());
        }
        let mut object = Deployment::clone(&self.deployment);
        object.status = Some(fresh);
        if let Some(written) = write_status(&self.api, &object).await? {
            self.deployment = Arc::new(written);
        }
        Ok(())
    }
}
