//! `apps`: workloads.

use serde_json::Value;

use super::Subresource::{Scale, Status};
use super::{NAME, Resource, field, number, printing, row, text, validation, wide};

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
        validate: validation::workload::daemon_set,
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
        validate: validation::workload::deployment,
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
        validate: validation::workload::replica_set,
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
        validate: validation::workload::stateful_set,
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
