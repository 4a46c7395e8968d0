//! `scheduling.k8s.io`: which pods go first.

use serde_json::Value;

use super::{NAME, Problems, Resource, boolean, number, printing, row, text, validation};

/// Classes that every cluster has: name, value, description.
pub(crate) const SYSTEM_PRIORITY_CLASSES: [(&str, i64, &str); 2] = [
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
];

/// The highest value that users may give.
const HIGHEST_BY_USERS: i64 = 1_000_000_000;

pub(super) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["pc"],
    namespaced: false,
    generation: true,
    columns: &[
        NAME,
        number("Value"),
        boolean("Global-Default"),
        text("Age"),
        text("PreemptionPolicy"),
    ],
    cells: |class, now| {
        vec![
            class["metadata"]["name"].clone(),
            printing::count(&class["value"]),
            (class["globalDefault"] == true).into(),
            printing::age(class, now),
            class["preemptionPolicy"].clone(),
        ]
    },
    validate,
    ..row(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        ("priorityclasses", "priorityclass"),
        "scheduling.k8s.io/priorityclasses",
    )
}];

fn validate(class: &Value, old: Option<&Value>, problems: &mut Problems) {
    let name = class["metadata"]["name"].as_str().unwrap_or_default();
    let value = class["value"].as_i64().unwrap_or_default();
    if name.starts_with("system-") {
        let known = SYSTEM_PRIORITY_CLASSES
            .iter()
            .any(|(known, granted, _)| *known == name && *granted == value);
        if !known {
            problems.forbidden(
                "metadata.name",
                "priority class names with 'system-' prefix are reserved for system use only",
            );
        }
    } else if value > HIGHEST_BY_USERS {
        problems.forbidden(
            "value",
            &format!("maximum allowed value of a user defined priority is {HIGHEST_BY_USERS}"),
        );
    }
    let policy = class["preemptionPolicy"].as_str().unwrap_or_default();
    if !["PreemptLowerPriority", "Never"].contains(&policy) {
        problems.not_supported(
            "preemptionPolicy",
            &class["preemptionPolicy"],
            &["Never", "PreemptLowerPriority"],
        );
    }
    if let Some(old) = old {
        if class["value"] != old["value"] {
            problems.forbidden("value", "may not be changed in an update.");
        }
        validation::immutable(class, Some(old), "preemptionPolicy", problems);
    }
}
