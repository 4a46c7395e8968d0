//! `apps`: workloads.

use serde_json::Value;

use super::Subresource::{Scale, Status};
use super::{NAME, Problems, Resource, field, number, printing, row, text, validation, wide};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        columns: &[NAME, text("Controller"), number("Revision"), text("Age")],
        cells: |revision, now| {
            let owners = revision["metadata"]["ownerReferences"].as_array();
            let owner = owners.and_then(|owners| owners.iter().find(|owner| owner["controller"] == true));
            let owner = owner.map_or_else(String::new, |owner| {
                let kind = owner["kind"].as_str().unwrap_or_default().to_lowercase();
                format!("{kind}.apps/{}", owner["name"].as_str().unwrap_or_default())
            });
            vec![
                revision["metadata"]["name"].clone(),
                printing::none_if_empty(owner),
                printing::count(&revision["revision"]),
                printing::age(revision, now),
            ]
        },
        validate: |revision, old, problems| {
            validation::non_negative(revision, "revision", problems);
            validation::immutable(revision, old, "data", problems);
        },
        ..row(
            "apps",
            "v1",
            "ControllerRevision",
            ("controllerrevisions", "controllerrevision"),
            "apps/controllerrevisions",
        )
    },
    Resource {
        short_names: &["ds"],
        categories: &["all"],
        subresources: &[Status],
        generation: true,
        columns: &[
            NAME,
            number("Desired"),
            number("Current"),
            number("Ready"),
            number("Up-to-date"),
            number("Available"),
            text("Node Selector"),
            text("Age"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: |set, now| {
            let (spec, status) = (&set["spec"], &set["status"]);
            let [names, images] = printing::containers(&spec["template"]["spec"]);
            let nodes = printing::labels(&spec["template"]["spec"]["nodeSelector"]).join(",");
            vec![
                set["metadata"]["name"].clone(),
                printing::count(&status["desiredNumberScheduled"]),
                printing::count(&status["currentNumberScheduled"]),
                printing::count(&status["numberReady"]),
                printing::count(&status["updatedNumberScheduled"]),
                printing::count(&status["numberAvailable"]),
                printing::none_if_empty(nodes),
                printing::age(set, now),
                names,
                images,
                printing::selector(&spec["selector"]),
            ]
        },
        validate: workload,
        ..row(
            "apps",
            "v1",
            "DaemonSet",
            ("daemonsets", "daemonset"),
            "apps/daemonsets",
        )
    },
    Resource {
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[Scale, Status],
        generation: true,
        columns: &[
            NAME,
            text("Ready"),
            number("Up-to-date"),
            number("Available"),
            text("Age"),
            wide("Containers"),
            wide("Images"),
            wide("Selector"),
        ],
        cells: |deployment, now| {
            let (spec, status) = (&deployment["spec"], &deployment["status"]);
            let ready = status["readyReplicas"].as_i64().unwrap_or_default();
            let wanted = spec["replicas"].as_i64().unwrap_or_default();
            let [names, images] = printing::containers(&spec["template"]["spec"]);
            vec![
                deployment["metadata"]["name"].clone(),
                format!("{ready}/{wanted}").into(),
                printing::count(&status["updatedReplicas"]),
                printing::count(&status["availableReplicas"]),
                printing::age(deployment, now),
                names,
                images,
                printing::selector(&spec["selector"]),
            ]
        },
        validate: |deployment, old, problems| {
            workload(deployment, old, problems);
            validation::non_negative(deployment, "spec.revisionHistoryLimit", problems);
            validation::non_negative(deployment, "spec.progressDeadlineSeconds", problems);
            strategy(&deployment["spec"]["strategy"], problems);
        },
        ..row(
            "apps",
            "v1",
            "Deployment",
            ("deployments", "deployment"),
            "apps/deployments",
        )
    },
    Resource {
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[Scale, Status],
        generation: true,
        fields: &[field("status.replicas")],
        columns: REPLICA_COLUMNS,
        cells: |set, now| {
            let selector = printing::selector(&set["spec"]["selector"]);
            replica_cells(set, now, selector)
        },
        validate: workload,
        ..row(
            "apps",
            "v1",
            "ReplicaSet",
            ("replicasets", "replicaset"),
            "apps/replicasets",
        )
    },
    Resource {
        short_names: &["sts"],
        categories: &["all"],
        subresources: &[Scale, Status],
        generation: true,
        columns: &[
            NAME,
            text("Ready"),
            text("Age"),
            wide("Containers"),
            wide("Images"),
        ],
        cells: |set, now| {
            let (spec, status) = (&set["spec"], &set["status"]);
            let ready = status["readyReplicas"].as_i64().unwrap_or_default();
            let wanted = spec["replicas"].as_i64().unwrap_or_default();
            let [names, images] = printing::containers(&spec["template"]["spec"]);
            vec![
                set["metadata"]["name"].clone(),
                format!("{ready}/{wanted}").into(),
                printing::age(set, now),
                names,
                images,
            ]
        },
        validate: workload,
        ..row(
            "apps",
            "v1",
            "StatefulSet",
            ("statefulsets", "statefulset"),
            "apps/statefulsets",
        )
    },
];

/// The columns of a set of replicas.
pub(super) const REPLICA_COLUMNS: &[super::Column] = &[
    NAME,
    number("Desired"),
    number("Current"),
    number("Ready"),
    text("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// The cells of a set of replicas.
pub(super) fn replica_cells(set: &Value, now: jiff::Timestamp, selector: Value) -> Vec<Value> {
    let (spec, status) = (&set["spec"], &set["status"]);
    let [names, images] = printing::containers(&spec["template"]["spec"]);
    vec![
        set["metadata"]["name"].clone(),
        printing::count(&spec["replicas"]),
        printing::count(&status["replicas"]),
        printing::count(&status["readyReplicas"]),
        printing::age(set, now),
        names,
        images,
        selector,
    ]
}

fn workload(object: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &object["spec"];
    validation::non_negative(object, "spec.replicas", problems);
    validation::non_negative(object, "spec.minReadySeconds", problems);
    validation::workload_selector(spec, problems);
    validation::pod_spec(&spec["template"]["spec"], "spec.template.spec", problems);
    always(&spec["template"]["spec"], problems);
    validation::immutable(object, old, "spec.selector", problems);
}

/// Pods that are replaced must be restarted as well.
pub(super) fn always(spec: &Value, problems: &mut Problems) {
    let policy = &spec["restartPolicy"];
    if policy.as_str().is_some_and(|policy| policy != "Always") {
        problems.not_supported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
}

fn strategy(strategy: &Value, problems: &mut Problems) {
    let kind = &strategy["type"];
    match kind.as_str() {
        Some("Recreate") if strategy["rollingUpdate"].is_object() => problems.forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        Some("RollingUpdate") => {
            let rolling = &strategy["rollingUpdate"];
            let zero = |value: &Value| *value == 0 || *value == "0%" || *value == "0";
            if zero(&rolling["maxUnavailable"]) && zero(&rolling["maxSurge"]) {
                problems.invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
        }
        Some("Recreate") | None => {}
        Some(_) => problems.not_supported("spec.strategy.type", kind, &["Recreate", "RollingUpdate"]),
    }
}
