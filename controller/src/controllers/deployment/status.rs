//! What the status of a Deployment says, in the words that `kubectl rollout status` reads.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::decide::Limits;

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

pub const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub const FOUND_NEW_SET: &str = "FoundNewReplicaSet";
pub const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const SET_UPDATED: &str = "ReplicaSetUpdated";
pub const CREATE_ERROR: &str = "ReplicaSetCreateError";
pub const TIMED_OUT: &str = "ProgressDeadlineExceeded";
pub const PAUSED: &str = "DeploymentPaused";
pub const RESUMED: &str = "DeploymentResumed";

/// The condition of a kind.
pub fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == kind)
}

/// Sets a condition. One that says the same already stays untouched; one of the same status keeps its transition time.
pub fn set(
    status: &mut DeploymentStatus,
    kind: &str,
    value: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let known = condition(status, kind);
    if known.is_some_and(|known| known.status == value && known.reason.as_deref() == Some(reason)) {
        return;
    }
    let since = known
        .filter(|known| known.status == value)
        .and_then(|known| known.last_transition_time.clone());
    unset(status, kind);
    status
        .conditions
        .get_or_insert_default()
        .push(DeploymentCondition {
            type_: kind.into(),
            status: value.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            last_update_time: Some(Time(now)),
        });
}

/// Takes a condition away.
pub fn unset(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != kind);
    }
}

fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    // The greatest number stands for none.
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(seconds.into()))
}

/// The counts, and condition Available.
pub fn counted(
    deployment: &Deployment,
    limits: Limits,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    now: Timestamp,
) -> DeploymentStatus {
    let of = |read: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|set| read(set)).sum::<i32>();
    let asked = of(&|set| set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1));
    let exist = of(&|set| set.status.as_ref().map_or(0, |status| status.replicas));
    let ready = of(&|set| {
        set.status
            .as_ref()
            .and_then(|status| status.ready_replicas)
            .unwrap_or(0)
    });
    let available = of(&|set| {
        set.status
            .as_ref()
            .and_then(|status| status.available_replicas)
            .unwrap_or(0)
    });
    let before = deployment.status.clone().unwrap_or_default();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(exist),
        updated_replicas: Some(
            new.and_then(|set| set.status.as_ref())
                .map_or(0, |status| status.replicas),
        ),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        unavailable_replicas: Some((asked - available).max(0)),
        collision_count: before.collision_count,
        conditions: before.conditions,
        terminating_replicas: before.terminating_replicas,
    };
    if available >= limits.min_available() {
        let message = "Deployment has minimum availability.".into();
        set(
            &mut status,
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            message,
            now,
        );
    } else {
        let message = "Deployment does not have minimum availability.".into();
        set(
            &mut status,
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            message,
            now,
        );
    }
    status
}

/// Whether everything is as the Deployment asks.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = Some(super::replicas(deployment));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether `fresh` is nearer to the end of the rollout than what the Deployment says.
fn has_progressed(before: &DeploymentStatus, fresh: &DeploymentStatus) -> bool {
    let old_pods =
        |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    fresh.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old_pods(fresh) < old_pods(before)
        || fresh.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || fresh.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

/// When the rollout counts as stuck, if it does not move before.
pub fn stuck_at(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let deadline = deadline(deployment)?;
    let progressing = condition(status, PROGRESSING)?;
    if [NEW_SET_AVAILABLE, TIMED_OUT, PAUSED].contains(&progressing.reason.as_deref().unwrap_or_default()) {
        return None;
    }
    progressing
        .last_update_time
        .as_ref()?
        .0
        .checked_add(deadline)
        .ok()
}

/// Condition Progressing and ReplicaFailure, put into `fresh`.
pub fn judge_progress(
    deployment: &Deployment,
    new: Option<&ReplicaSet>,
    all: &[&ReplicaSet],
    fresh: &mut DeploymentStatus,
    now: Timestamp,
) {
    let before = deployment.status.clone().unwrap_or_default();
    let subject = match new.and_then(|set| set.metadata.name.as_deref()) {
        Some(name) => format!("ReplicaSet \"{name}\""),
        None => format!(
            "Deployment \"{}\"",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    if deadline(deployment).is_none() {
        unset(fresh, PROGRESSING);
    } else {
        let reason = condition(&before, PROGRESSING).and_then(|c| c.reason.as_deref());
        let was_complete = fresh.replicas == fresh.updated_replicas && reason == Some(NEW_SET_AVAILABLE);
        if !was_complete {
            if is_complete(deployment, fresh) {
                let message = format!("{subject} has successfully progressed.");
                set(fresh, PROGRESSING, "True", NEW_SET_AVAILABLE, message, now);
            } else if has_progressed(&before, fresh) {
                let since = condition(fresh, PROGRESSING)
                    .filter(|known| known.status == "True")
                    .and_then(|known| known.last_transition_time.clone());
                unset(fresh, PROGRESSING);
                set(
                    fresh,
                    PROGRESSING,
                    "True",
                    SET_UPDATED,
                    format!("{subject} is progressing."),
                    now,
                );
                // Progress without a change of status moves the update time only.
                if let Some(condition) = fresh
                    .conditions
                    .iter_mut()
                    .flatten()
                    .find(|condition| condition.type_ == PROGRESSING)
                    && since.is_some()
                {
                    condition.last_transition_time = since;
                }
            } else if stuck_at(deployment, &before).is_some_and(|at| at < now) {
                let message = format!("{subject} has timed out progressing.");
                set(fresh, PROGRESSING, "False", TIMED_OUT, message, now);
            }
        }
    }
    let failure = new.iter().chain(all).find_map(|set| {
        set.status
            .as_ref()?
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == REPLICA_FAILURE)
    });
    match failure {
        Some(failure) => set(
            fresh,
            REPLICA_FAILURE,
            &failure.status,
            failure.reason.as_deref().unwrap_or_default(),
            failure.message.clone().unwrap_or_default(),
            now,
        ),
        None => unset(fresh, REPLICA_FAILURE),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T00:00:00Z".parse().unwrap()
    }

    fn deployment(replicas: i32, status: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "generation": 3 },
            "spec": { "replicas": replicas, "progressDeadlineSeconds": 600, "selector": {}, "template": {} },
            "status": status,
        }))
        .unwrap()
    }

    fn set_of(name: &str, replicas: i32, ready: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": { "replicas": replicas, "selector": {} },
            "status": { "replicas": replicas, "readyReplicas": ready, "availableReplicas": ready },
        }))
        .unwrap()
    }

    fn judge(deployment: &Deployment, sets: &[ReplicaSet], now: Timestamp) -> DeploymentStatus {
        let all: Vec<&ReplicaSet> = sets.iter().collect();
        let limits = Limits::rolling(super::super::replicas(deployment), None, None);
        let mut status = counted(deployment, limits, sets.first(), &all, now);
        judge_progress(deployment, sets.first(), &all, &mut status, now);
        status
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        let condition = condition(status, kind).unwrap();
        format!("{} {}", condition.status, condition.reason.as_deref().unwrap())
    }

    #[test]
    fn a_rollout_from_start_to_end() {
        let mut web = deployment(4, json!({}));
        let mut status = judge(&web, &[set_of("new", 1, 0), set_of("old", 4, 4)], now());
        assert_eq!(reason(&status, PROGRESSING), "True ReplicaSetUpdated");
        assert_eq!(reason(&status, AVAILABLE), "True MinimumReplicasAvailable");
        assert_eq!(
            (
                status.replicas,
                status.updated_replicas,
                status.unavailable_replicas
            ),
            (Some(5), Some(1), Some(1))
        );
        assert_eq!(status.observed_generation, Some(3));
        let message = condition(&status, PROGRESSING).unwrap().message.clone().unwrap();
        assert_eq!(message, "ReplicaSet \"new\" is progressing.");

        web.status = Some(status);
        let later = now() + SignedDuration::from_secs(10);
        status = judge(&web, &[set_of("new", 4, 4)], later);
        assert_eq!(reason(&status, PROGRESSING), "True NewReplicaSetAvailable");
        let progressing = condition(&status, PROGRESSING).unwrap();
        assert_eq!(
            progressing.message.as_deref(),
            Some("ReplicaSet \"new\" has successfully progressed.")
        );
        assert_eq!(progressing.last_transition_time, Some(Time(now())), "still True");
        assert_eq!(progressing.last_update_time, Some(Time(later)));

        web.status = Some(status);
        status = judge(&web, &[set_of("new", 4, 1)], later);
        assert_eq!(reason(&status, AVAILABLE), "False MinimumReplicasUnavailable");
        assert_eq!(
            reason(&status, PROGRESSING),
            "True NewReplicaSetAvailable",
            "the rollout is over"
        );
    }

    #[test]
    fn a_stuck_rollout_times_out() {
        let mut web = deployment(4, json!({}));
        web.status = Some(judge(&web, &[set_of("new", 1, 0), set_of("old", 4, 4)], now()));
        assert_eq!(
            stuck_at(&web, web.status.as_ref().unwrap()),
            Some(now() + SignedDuration::from_secs(600))
        );
        let soon = now() + SignedDuration::from_secs(599);
        assert_eq!(
            reason(
                &judge(&web, &[set_of("new", 1, 0), set_of("old", 4, 4)], soon),
                PROGRESSING
            ),
            "True ReplicaSetUpdated"
        );
        let late = now() + SignedDuration::from_secs(601);
        let status = judge(&web, &[set_of("new", 1, 0), set_of("old", 4, 4)], late);
        assert_eq!(reason(&status, PROGRESSING), "False ProgressDeadlineExceeded");
        web.status = Some(status);
        let status = judge(&web, &[set_of("new", 1, 1), set_of("old", 4, 4)], late);
        assert_eq!(
            reason(&status, PROGRESSING),
            "True ReplicaSetUpdated",
            "progress after the deadline counts"
        );
    }

    #[test]
    fn failures_of_sets_are_shown() {
        let mut failing = set_of("new", 1, 0);
        failing.status.as_mut().unwrap().conditions = serde_json::from_value(
            json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota" }]),
        )
        .unwrap();
        let mut old = failing.clone();
        old.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].reason = Some("FailedDelete".into());
        let web = deployment(4, json!({}));
        let all = [&old, &failing];
        let mut status = counted(&web, Limits::rolling(4, None, None), Some(&failing), &all, now());
        judge_progress(&web, Some(&failing), &all, &mut status, now());
        assert_eq!(
            reason(&status, REPLICA_FAILURE),
            "True FailedCreate",
            "the new set's comes first"
        );
    }
}
