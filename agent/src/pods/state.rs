//! What a pod's containers are, and what is to be done next. Pure: data and the time in, a decision out.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, PodSpec};

use super::BackOffConfig;

/// What becomes of a container that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// It is started again.
    Always,
    /// It is started again if it failed.
    OnFailure,
    /// It stays ended.
    Never,
}

/// The part of a pod's spec that decisions are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Run one after the other before all others.
    pub init: Vec<InitPlan>,
    /// Run side by side.
    pub main: Vec<String>,
    /// What becomes of containers that have ended.
    pub restart: RestartPolicy,
}

/// One init container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitPlan {
    /// Its name.
    pub name: String,
    /// Whether it goes on running beside the main containers; then the next one starts as soon as it runs.
    pub sidecar: bool,
}

impl Plan {
    /// Reads a pod's spec.
    pub fn of(spec: &PodSpec) -> Self {
        let restart = match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            Some(_) | None => RestartPolicy::Always,
        };
        let init = spec.init_containers.iter().flatten().map(|container| InitPlan {
            name: container.name.clone(),
            sidecar: container.restart_policy.as_deref() == Some("Always"),
        });
        Self {
            init: init.collect(),
            main: spec.containers.iter().map(|c| c.name.clone()).collect(),
            restart,
        }
    }
}

/// Finds a container of a pod, init containers included.
pub fn container_of<'a>(spec: &'a PodSpec, name: &str) -> Option<&'a Container> {
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|container| container.name == name)
}

/// How a container's attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// When its program was started, if it was.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Timestamp,
    /// Its exit code.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Kubernetes' word for it: `Completed`, `Error`, `OOMKilled`, `StartError`.
    pub reason: String,
    /// What there is to say.
    pub message: Option<String>,
}

/// How far a container's current attempt is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Stage {
    /// There was none.
    #[default]
    Never,
    /// It is being made, or waits to be started.
    Created,
    /// It runs.
    Running(Timestamp),
    /// It has ended.
    Ended(Ended),
}

/// Why a container that should be started is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Kubernetes' word for it.
    pub reason: String,
    /// What there is to say.
    pub message: String,
    /// When to try again.
    pub retry_at: Timestamp,
}

/// What the node knows of one container of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Record {
    /// How often it was started again: the number of the current attempt.
    pub attempt: u32,
    /// How many restarts count for the back-off: those since it last ran long enough.
    pub streak: u32,
    /// The current attempt.
    pub stage: Stage,
    /// How the attempt before ended.
    pub last: Option<Ended>,
    /// What keeps the next attempt from being made.
    pub obstacle: Option<Obstacle>,
    /// The image's id.
    pub image_id: String,
    /// The runtime's id of the current attempt.
    pub id: String,
    /// What its readiness probe says; without one, that it runs.
    pub ready: bool,
    /// What its startup probe says; without one, that it runs.
    pub started: bool,
    /// Whether the current attempt ran in a place of the pod that is gone. In the present one, nothing of it has begun.
    pub displaced: bool,
}

/// A pod's containers by name.
pub type Records = BTreeMap<String, Record>;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Containers to start, in order.
    pub start: Vec<String>,
    /// When to look again although nothing has changed.
    pub wake: Option<Timestamp>,
    /// Whether the pod has run its course, and how.
    pub finished: Option<Finished>,
}

/// How a pod ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finished {
    /// All its containers succeeded.
    Succeeded,
    /// One of them failed.
    Failed,
}

/// Whether any main container was started in the pod's present place: then its init containers have had their turn.
pub fn main_started(plan: &Plan, records: &Records) -> bool {
    let started = |record: &Record| record.stage != Stage::Never && !record.displaced;
    plan.main
        .iter()
        .any(|name| records.get(name).is_some_and(started))
}

/// Notes that all of these attempts ran in a place of the pod that is gone. In the next one, init containers that had
/// succeeded run again, for what they did may be gone with it; unless the pod has run its course.
pub fn displace(plan: &Plan, records: &mut Records, gone: impl Fn(&str) -> bool) {
    let comes_back = |name: &String| match records.get(name).map(|record| &record.stage) {
        Some(Stage::Ended(ended)) => restarts(plan.restart, ended),
        Some(_) | None => true,
    };
    if !plan.main.iter().any(comes_back) {
        return;
    }
    for (name, record) in records.iter_mut().filter(|(name, _)| gone(name)) {
        record.displaced = true;
        let init = plan.init.iter().any(|init| init.name == *name && !init.sidecar);
        if let Stage::Ended(ended) = &record.stage
            && init
            && ended.exit_code == 0
        {
            record.last = Some(ended.clone());
            record.stage = Stage::Never;
            record.attempt += 1;
            record.streak = 0;
        }
    }
}

/// Decides what is to be done for a pod that should run.
pub fn decide(plan: &Plan, records: &Records, back_off: &BackOffConfig, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let absent = Record::default();
    let record = |name: &str| records.get(name).unwrap_or(&absent);
    // Init containers are not run again once the main ones were started.
    let main_started = main_started(plan, records);
    for init in &plan.init {
        let record = record(&init.name);
        match &record.stage {
            Stage::Never if main_started && !init.sidecar => {}
            Stage::Never => {
                start_when(&mut decision, &init.name, record, None, now);
                if !main_started {
                    return decision;
                }
            }
            Stage::Running(_) if init.sidecar && (record.started || main_started) => {}
            Stage::Created | Stage::Running(_) => return decision,
            Stage::Ended(ended) if init.sidecar => {
                start_when(
                    &mut decision,
                    &init.name,
                    record,
                    Some(restart_at(record, ended, back_off)),
                    now,
                );
                if !main_started {
                    return decision;
                }
            }
            Stage::Ended(ended) if ended.exit_code == 0 || main_started => {}
            Stage::Ended(_) if plan.restart == RestartPolicy::Never => {
                decision.finished = Some(Finished::Failed);
                return decision;
            }
            Stage::Ended(ended) => {
                let at = restart_at(record, ended, back_off);
                start_when(&mut decision, &init.name, record, Some(at), now);
                return decision;
            }
        }
    }
    let mut failed = false;
    let mut over = true;
    for name in &plan.main {
        let record = record(name);
        match &record.stage {
            Stage::Never => {
                over = false;
                start_when(&mut decision, name, record, None, now);
            }
            Stage::Created | Stage::Running(_) => over = false,
            Stage::Ended(ended) if restarts(plan.restart, ended) => {
                over = false;
                let at = restart_at(record, ended, back_off);
                start_when(&mut decision, name, record, Some(at), now);
            }
            Stage::Ended(ended) => failed |= ended.exit_code != 0,
        }
    }
    if over {
        // Sidecars end with the pod.
        decision.start.clear();
        decision.finished = Some(if failed {
            Finished::Failed
        } else {
            Finished::Succeeded
        });
    }
    decision
}

/// Whether a main container that ended so is started again.
pub fn restarts(policy: RestartPolicy, ended: &Ended) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => ended.exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// When a container that ended may be started again.
pub fn restart_at(record: &Record, ended: &Ended, config: &BackOffConfig) -> Timestamp {
    let delay = back_off(config, streak_after(record, ended, config));
    ended.finished_at.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// The streak of restarts that counts once this attempt has ended.
pub fn streak_after(record: &Record, ended: &Ended, config: &BackOffConfig) -> u32 {
    let ran = ended
        .started_at
        .map(|started| Duration::try_from(ended.finished_at.duration_since(started)).unwrap_or_default());
    if ran.is_some_and(|ran| ran >= config.reset_after) {
        0
    } else {
        record.streak
    }
}

/// How long to wait before the restart that follows `streak` others: the first is immediate, as kubelet's.
pub fn back_off(config: &BackOffConfig, streak: u32) -> Duration {
    match streak.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => config
            .base
            .saturating_mul(2_u32.saturating_pow(doublings))
            .min(config.max),
    }
}

fn start_when(
    decision: &mut Decision,
    name: &str,
    record: &Record,
    not_before: Option<Timestamp>,
    now: Timestamp,
) {
    let obstacle = record.obstacle.as_ref().map(|obstacle| obstacle.retry_at);
    match not_before.max(obstacle) {
        Some(at) if at > now => decision.wake = Some(decision.wake.map_or(at, |wake| wake.min(at))),
        Some(_) | None => decision.start.push(name.to_owned()),
    }
}

#[cfg(test)]
mod tests;
