//! A pod's status as the API shows it, computed from what the node knows. Pure.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use super::{
    BackOffConfig, quantity,
    state::{Ended, Finished, Plan, Record, Records, Stage, main_started, restart_at, restarts},
};

/// What a status is made of, beside the pod itself.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The pod's containers.
    pub records: &'a Records,
    /// How the pod ended, if it did.
    pub finished: Option<Finished>,
    /// Whether the pod has its netns and its shim.
    pub sandboxed: bool,
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// The node's addresses.
    pub node_ips: &'a [IpAddr],
    /// When the node took the pod up.
    pub started_at: Timestamp,
    /// How restarts are spaced.
    pub back_off: &'a BackOffConfig,
    /// The time.
    pub now: Timestamp,
}

/// The conditions that the node speaks of. Others are of the control plane and of whoever opens readiness gates.
pub const CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Computes the status; times of unchanged conditions are kept from the pod's present one. Conditions that others set are not
/// in it.
pub fn compute(pod: &Pod, facts: &Facts<'_>) -> PodStatus {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let plan = Plan::of(spec);
    let old = pod.status.clone().unwrap_or_default();
    let init: Vec<_> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| container_status(pod, container, facts, true, &plan))
        .collect();
    let main: Vec<_> = spec
        .containers
        .iter()
        .map(|container| container_status(pod, container, facts, false, &plan))
        .collect();
    let initialized = initialized(&plan, facts.records);
    let all_ready = facts.finished.is_none()
        && main.iter().all(|status| status.ready)
        && plan.init.iter().filter(|init| init.sidecar).all(|init| {
            facts
                .records
                .get(&init.name)
                .is_some_and(|record| record.ready && matches!(record.stage, Stage::Running(_)))
        });
    let phase = phase(&plan, facts);
    PodStatus {
        phase: Some(phase.to_owned()),
        conditions: Some(conditions(pod, facts, phase, initialized, all_ready, &old)),
        container_statuses: Some(main),
        init_container_statuses: (!init.is_empty()).then_some(init),
        host_ip: facts.node_ips.first().map(ToString::to_string),
        host_ips: Some(
            facts
                .node_ips
                .iter()
                .map(|ip| HostIP { ip: ip.to_string() })
                .collect(),
        ),
        pod_ip: facts.pod_ips.first().map(ToString::to_string),
        pod_ips: (!facts.pod_ips.is_empty()).then(|| {
            facts
                .pod_ips
                .iter()
                .map(|ip| PodIP { ip: ip.to_string() })
                .collect()
        }),
        start_time: Some(old.start_time.unwrap_or(Time(facts.started_at))),
        qos_class: Some(old.qos_class.unwrap_or_else(|| qos_class(spec).to_owned())),
        ..PodStatus::default()
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`, from the containers' requests and limits.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let containers = || {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    };
    let amount = |container: &Container, limits: bool, name: &str| {
        let resources = container.resources.as_ref()?;
        let map = if limits {
            &resources.limits
        } else {
            &resources.requests
        };
        map.as_ref()?
            .get(name)
            .and_then(quantity::milli)
            .filter(|value| *value > 0)
    };
    let names = ["cpu", "memory"];
    let any = containers().any(|c| {
        names
            .iter()
            .any(|name| amount(c, true, name).or(amount(c, false, name)).is_some())
    });
    if !any {
        return "BestEffort";
    }
    let guaranteed = containers().all(|c| {
        names.iter().all(|name| {
            let limit = amount(c, true, name);
            limit.is_some() && amount(c, false, name).is_none_or(|request| Some(request) == limit)
        })
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}

fn initialized(plan: &Plan, records: &Records) -> bool {
    main_started(plan, records)
        || plan.init.iter().all(|init| {
            records.get(&init.name).is_some_and(|record| match &record.stage {
                Stage::Ended(ended) => !init.sidecar && ended.exit_code == 0,
                Stage::Running(_) => init.sidecar && record.started,
                Stage::Never | Stage::Created => false,
            })
        })
}

fn phase(plan: &Plan, facts: &Facts<'_>) -> &'static str {
    match facts.finished {
        Some(Finished::Succeeded) => return "Succeeded",
        Some(Finished::Failed) => return "Failed",
        None => {}
    }
    let begun = |name: &String| {
        facts.records.get(name).is_some_and(|record| {
            record.attempt > 0 || matches!(record.stage, Stage::Running(_) | Stage::Ended(_))
        })
    };
    if plan.main.iter().all(begun) {
        "Running"
    } else {
        "Pending"
    }
}

fn container_status(
    pod: &Pod,
    container: &Container,
    facts: &Facts<'_>,
    is_init: bool,
    plan: &Plan,
) -> ContainerStatus {
    let absent = Record::default();
    let record = facts.records.get(&container.name).unwrap_or(&absent);
    let running = matches!(record.stage, Stage::Running(_));
    let sidecar = is_init && container.restart_policy.as_deref() == Some("Always");
    let comes_back = match &record.stage {
        Stage::Ended(_) if facts.finished.is_some() || pod.metadata.deletion_timestamp.is_some() => false,
        Stage::Ended(_) if sidecar => true,
        Stage::Ended(ended) if is_init => {
            ended.exit_code != 0 && plan.restart != super::state::RestartPolicy::Never
        }
        Stage::Ended(ended) => restarts(plan.restart, ended),
        Stage::Never | Stage::Created | Stage::Running(_) => false,
    };
    let waiting = |reason: &str, message: Option<String>| ContainerState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason.to_owned()),
            message,
        }),
        ..ContainerState::default()
    };
    let blocked = || {
        record
            .obstacle
            .as_ref()
            .map(|obstacle| waiting(&obstacle.reason, Some(obstacle.message.clone())))
    };
    let (state, last) = match &record.stage {
        Stage::Running(started_at) => {
            let state = ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(Time(*started_at)),
                }),
                ..ContainerState::default()
            };
            (state, record.last.as_ref())
        }
        Stage::Ended(ended) if comes_back => {
            let state = blocked().or_else(|| {
                let at = restart_at(record, ended, facts.back_off);
                (at > facts.now).then(|| {
                    let delay = at.duration_since(ended.finished_at).as_secs();
                    let message = format!(
                        "back-off {delay}s restarting failed container={} pod={}_{}({})",
                        container.name,
                        pod.metadata.name.as_deref().unwrap_or_default(),
                        pod.metadata.namespace.as_deref().unwrap_or_default(),
                        pod.metadata.uid.as_deref().unwrap_or_default(),
                    );
                    waiting("CrashLoopBackOff", Some(message))
                })
            });
            match state {
                Some(state) => (state, Some(ended)),
                None => (terminated(record, ended, pod), record.last.as_ref()),
            }
        }
        Stage::Ended(ended) => (terminated(record, ended, pod), record.last.as_ref()),
        Stage::Never | Stage::Created => {
            let reason = if !is_init && !initialized(plan, facts.records) {
                "PodInitializing"
            } else {
                "ContainerCreating"
            };
            (
                blocked().unwrap_or_else(|| waiting(reason, None)),
                record.last.as_ref(),
            )
        }
    };
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_id: record.image_id.clone(),
        container_id: (!record.id.is_empty()).then(|| container_id(pod, &record.id)),
        ready: match &record.stage {
            Stage::Running(_) => record.ready && facts.finished.is_none(),
            // An init container that did its work is ready.
            Stage::Ended(ended) => is_init && !sidecar && ended.exit_code == 0,
            Stage::Never | Stage::Created => false,
        },
        started: Some(running && record.started),
        restart_count: i32::try_from(record.attempt).unwrap_or(i32::MAX),
        state: Some(state),
        last_state: Some(last.map_or_else(ContainerState::default, |ended| terminated(record, ended, pod))),
        ..ContainerStatus::default()
    }
}

fn container_id(pod: &Pod, id: &str) -> String {
    format!("weft://{}.{id}", pod.metadata.uid.as_deref().unwrap_or_default())
}

fn terminated(record: &Record, ended: &Ended, pod: &Pod) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            container_id: (!record.id.is_empty()).then(|| container_id(pod, &record.id)),
            exit_code: ended.exit_code,
            signal: ended.signal,
            reason: Some(ended.reason.clone()),
            message: ended.message.clone(),
            started_at: ended.started_at.map(Time),
            finished_at: Some(Time(ended.finished_at)),
        }),
        ..ContainerState::default()
    }
}

fn conditions(
    pod: &Pod,
    facts: &Facts<'_>,
    phase: &str,
    initialized: bool,
    all_ready: bool,
    old: &PodStatus,
) -> Vec<PodCondition> {
    let completed = phase == "Succeeded";
    let gates_open = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten())
        .all(|gate| {
            old.conditions
                .iter()
                .flatten()
                .any(|c| c.type_ == gate.condition_type && c.status == "True")
        });
    let not_ready = |ready: bool| match (ready, completed) {
        (true, _) => None,
        (false, true) => Some("PodCompleted"),
        (false, false) => Some("ContainersNotReady"),
    };
    let ready = all_ready && gates_open;
    let ready_reason = if all_ready && !gates_open {
        Some("ReadinessGatesNotReady")
    } else {
        not_ready(ready)
    };
    let said = [
        (facts.sandboxed, None),
        (
            initialized || completed,
            (!initialized && !completed).then_some("ContainersNotInitialized"),
        ),
        (ready, ready_reason),
        (all_ready, not_ready(all_ready)),
        (true, None),
    ];
    let unready: Vec<&str> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .filter(|c| {
            !facts
                .records
                .get(&c.name)
                .is_some_and(|record| record.ready && matches!(record.stage, Stage::Running(_)))
        })
        .map(|c| c.name.as_str())
        .collect();
    CONDITIONS
        .into_iter()
        .zip(said)
        .map(|(type_, (status, reason))| {
            let status = if status { "True" } else { "False" };
            let before = old
                .conditions
                .iter()
                .flatten()
                .find(|c| c.type_ == type_ && c.status == status);
            let message = (reason == Some("ContainersNotReady"))
                .then(|| format!("containers with unready status: [{}]", unready.join(" ")));
            PodCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.map(str::to_owned),
                message,
                last_transition_time: before
                    .and_then(|c| c.last_transition_time.clone())
                    .or(Some(Time(facts.now))),
                ..PodCondition::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
