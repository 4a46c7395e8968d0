//! What the shim says of containers, as records of them.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, PodStatus};

use super::{Desired, Worker};
use crate::{
    pods::state::{Ended, Record, Records, Stage, container_of},
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
            // What was said of another attempt says nothing of this one.
            let told = told
                .iter()
                .find(|status| status.name == *name && attempt_of(status) == record.attempt);
            record.started = container.is_none_or(|c| c.startup_probe.is_none())
                || told.is_some_and(|status| status.started == Some(true));
            record.ready = record.started
                && (container.is_none_or(|c| c.readiness_probe.is_none())
                    || told.is_some_and(|status| status.ready));
        }
    }

    /// Brings the records up to what the shim says.
    pub(in crate::pods) fn observe(&mut self, status: &ShimStatus) {
        self.observed = status.revision;
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
            record.displaced = false;
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

/// Takes from what the API was told whatever no shim knows (any more): containers that could not be started, and those of a
/// place of the pod that is gone. Says which they are.
pub(super) fn recall(records: &mut Records, told: &PodStatus, now: Timestamp) -> BTreeSet<String> {
    let statuses = told
        .container_statuses
        .iter()
        .chain(&told.init_container_statuses);
    let mut names = BTreeSet::new();
    for status in statuses.flatten() {
        let attempt = attempt_of(status);
        let known = records
            .get(&status.name)
            .filter(|record| record.stage != Stage::Never);
        if known.is_some_and(|record| record.attempt >= attempt) {
            continue;
        }
        let before = status
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref());
        let before = before.map(|before| told_end(before, now));
        let state = status.state.as_ref();
        let (ended, mut last) = if let Some(end) = state.and_then(|state| state.terminated.as_ref()) {
            (told_end(end, now), before)
        } else if let Some(running) = state.and_then(|state| state.running.as_ref()) {
            (lost(running.started_at.as_ref().map(|time| time.0), now), before)
        } else if let Some(before) = before {
            // It waited for its next attempt.
            (before, None)
        } else {
            continue;
        };
        if let Some(Stage::Ended(ended)) = known.map(|record| &record.stage) {
            last = Some(ended.clone());
        }
        let id = status.container_id.as_deref().and_then(|id| id.split_once('.'));
        let record = Record {
            attempt,
            streak: attempt,
            stage: Stage::Ended(ended),
            last,
            image_id: status.image_id.clone(),
            id: id.map(|(_, id)| id.to_owned()).unwrap_or_default(),
            ..Record::default()
        };
        records.insert(status.name.clone(), record);
        names.insert(status.name.clone());
    }
    names
}

fn attempt_of(told: &ContainerStatus) -> u32 {
    u32::try_from(told.restart_count).unwrap_or_default()
}

fn told_end(told: &ContainerStateTerminated, now: Timestamp) -> Ended {
    Ended {
        started_at: told.started_at.as_ref().map(|time| time.0),
        finished_at: told.finished_at.as_ref().map_or(now, |time| time.0),
        exit_code: told.exit_code,
        signal: told.signal,
        reason: told.reason.clone().unwrap_or_default(),
        message: told.message.clone(),
    }
}

/// The exit code of what ended unseen: whatever it was, it is dead.
const KILLED: i32 = 128 + libc::SIGKILL;

/// The end of what ended unseen, as records have it.
fn lost(started_at: Option<Timestamp>, now: Timestamp) -> Ended {
    Ended {
        started_at,
        finished_at: now,
        exit_code: KILLED,
        signal: Some(libc::SIGKILL),
        reason: "Error".to_owned(),
        message: None,
    }
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
        exit_code: KILLED,
        signal: Some(libc::SIGKILL),
        oom_killed: false,
    };
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn what_no_shim_knows_is_recalled_from_what_was_told() {
        let ended = |code: i32| {
            json!({"terminated": {"exitCode": code, "reason": "Error", "finishedAt": at(5).to_string(),
                "startedAt": at(1).to_string(), "containerID": "weft://uid.x.7"}})
        };
        let told = |name: &str, count: i32, state: serde_json::Value, last: serde_json::Value| {
            json!({"name": name, "restartCount": count, "state": state, "lastState": last,
                "image": "i", "imageID": "sha256:i", "ready": false, "containerID": format!("weft://uid.{name}.{count}")})
        };
        let running = json!({"running": {"startedAt": at(2).to_string()}});
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let status: PodStatus = serde_json::from_value(json!({
            "initContainerStatuses": [told("init", 0, ended(0), json!({}))],
            "containerStatuses": [
                told("ran", 3, running.clone(), ended(1)),
                told("waits", 2, waiting.clone(), ended(2)),
                told("new", 0, waiting, json!({})),
                told("lives", 4, running.clone(), json!({})),
                told("moved", 5, ended(128), json!({})),
            ],
        }))
        .unwrap();
        let known = |attempt: u32, stage: Stage| Record {
            attempt,
            stage,
            ..Record::default()
        };
        let mut records = Records::from([
            ("lives".to_owned(), known(4, Stage::Running(at(2)))),
            ("moved".to_owned(), known(4, Stage::Ended(lost(None, at(3))))),
        ]);

        let recalled = recall(&mut records, &status, at(9));

        let names: Vec<_> = recalled.iter().map(String::as_str).collect();
        assert_eq!(names, ["init", "moved", "ran", "waits"]);
        let shown = |name: &str| {
            let record = &records[name];
            let Stage::Ended(ended) = &record.stage else {
                panic!("{name}: {record:?}")
            };
            let last = record.last.as_ref().map(|last| last.exit_code);
            (
                record.attempt,
                record.id.as_str(),
                ended.exit_code,
                ended.finished_at,
                last,
            )
        };
        assert_eq!(shown("init"), (0, "init.0", 0, at(5), None));
        // It ran: nobody saw how it ended.
        assert_eq!(shown("ran"), (3, "ran.3", 137, at(9), Some(1)));
        assert_eq!(shown("waits"), (2, "waits.2", 2, at(5), None));
        // It could not be started, which its shim does not remember.
        assert_eq!(shown("moved"), (5, "moved.5", 128, at(5), Some(137)));
        assert_eq!(records["lives"].stage, Stage::Running(at(2)));
        assert!(!records.contains_key("new"));
    }
}
