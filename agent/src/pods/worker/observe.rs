//! What the shim says of containers, as records of them.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{Desired, Worker};
use crate::{
    pods::state::{Ended, Stage, container_of},
    shim::protocol::{ContainerState, Phase, ShimStatus},
};

impl Worker {
    /// Readiness is as it was until a probe says otherwise: a restart of the agent is no news about the pod.
    pub(super) fn restore_readiness(&mut self, desired: &Desired, told: &PodStatus) {
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

    /// Brings the records up to what the shim says.
    pub(in crate::pods) fn observe(&mut self, status: &ShimStatus) {
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
pub(super) fn mark_lost(container: &mut ContainerState) {
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
