//! How containers are ended: asked first, and killed when their grace is over.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{Next, StepError, Worker};
use crate::{
    pods::{
        events::Kind,
        sandbox,
        state::{Finished, Stage, container_of},
    },
    shim::ShimClient,
};

/// The grace of a pod whose spec has none.
pub(super) const DEFAULT_GRACE_SECONDS: i64 = 30;

impl Worker {
    /// Ends the containers of a pod that is being deleted, and tells the API when all of it is gone.
    pub(super) async fn terminate(&mut self, pod: &Arc<Pod>) -> Result<Next, StepError> {
        self.probers.stop();
        self.clear_cut_short().await?;
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
        let kill_at = self.kill_at.map_or(until, |at| at.min(until));
        self.kill_at = Some(kill_at);

        let running: Vec<(String, String)> = self
            .records
            .iter()
            .filter(|(_, record)| matches!(record.stage, Stage::Running(_)))
            .map(|(name, record)| (name.clone(), record.id.clone()))
            .collect();
        if let Some(sandbox) = self.sandbox.clone()
            && !running.is_empty()
        {
            let kill_now = kill_at <= now;
            if !self.asked {
                for (name, id) in &running {
                    let text = format!("Stopping container {name}");
                    self.context
                        .events
                        .tell(pod, Some(name), Kind::Normal, "Killing", text);
                    if !kill_now {
                        sandbox.shim.kill(id, self.stop_signal(pod, name)).await?;
                    }
                }
                self.asked = true;
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
        sandbox::remove_logs(&self.context.config, |uid| uid == self.uid)?;
        self.delete_from_api(pod).await?;
        self.deleted = true;
        Ok(Next::Wait(None))
    }

    /// The signal that asks a container to end: its image's, else SIGTERM.
    pub(super) fn stop_signal(&self, pod: &Pod, name: &str) -> i32 {
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
}

/// Ends one container: a signal, and SIGKILL when the grace is over.
pub(super) fn end_container(shim: ShimClient, id: String, signal: i32, grace_seconds: i64) {
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

fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        // Others the shim refuses to send, and the container would hear nothing.
        return Signal::try_from(number).ok().map(|signal| signal as i32);
    }
    let full = if text.starts_with("SIG") {
        text.to_owned()
    } else {
        format!("SIG{text}")
    };
    full.parse::<Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_one_that_can_be_sent() {
        for (text, expected) in [
            ("SIGQUIT", Some(libc::SIGQUIT)),
            ("INT", Some(libc::SIGINT)),
            ("15", Some(libc::SIGTERM)),
            ("37", None),
            ("0", None),
            ("SIGRTMIN+3", None),
            ("", None),
        ] {
            assert_eq!(parse_signal(text), expected, "{text:?}");
        }
    }
}
