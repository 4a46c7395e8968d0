//! `rbac.authorization.k8s.io`: what users, groups and service accounts may do.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Column, NAME, Resource, printing, row, text, validation, wide};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: BINDING_COLUMNS,
        cells: binding_cells,
        name_problem: validation::path_segment_problem,
        validate: validation::rbac::cluster_role_binding,
        ..row(
            GROUP,
            "v1",
            "ClusterRoleBinding",
            ("clusterrolebindings", "clusterrolebinding"),
            "rbac.authorization.k8s.io/clusterrolebindings",
        )
    },
    Resource {
        namespaced: false,
        name_problem: validation::path_segment_problem,
        validate: validation::rbac::cluster_role,
        ..row(
            GROUP,
            "v1",
            "ClusterRole",
            ("clusterroles", "clusterrole"),
            "rbac.authorization.k8s.io/clusterroles",
        )
    },
    Resource {
        columns: BINDING_COLUMNS,
        cells: binding_cells,
        name_problem: validation::path_segment_problem,
        validate: validation::rbac::role_binding,
        ..row(
            GROUP,
            "v1",
            "RoleBinding",
            ("rolebindings", "rolebinding"),
            "rbac.authorization.k8s.io/rolebindings",
        )
    },
    Resource {
        name_problem: validation::path_segment_problem,
        validate: validation::rbac::role,
        ..row(
            GROUP,
            "v1",
            "Role",
            ("roles", "role"),
            "rbac.authorization.k8s.io/roles",
        )
    },
];

const GROUP: &str = "rbac.authorization.k8s.io";

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    text("Role"),
    text("Age"),
    wide("Users"),
    wide("Groups"),
    wide("ServiceAccounts"),
];

fn binding_cells(binding: &Value, now: Timestamp) -> Vec<Value> {
    let part = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let role = &binding["roleRef"];
    let subjects = |kind: &str| {
        let subjects = binding["subjects"].as_array().into_iter().flatten();
        let names: Vec<_> = subjects
            .filter(|subject| subject["kind"] == kind)
            .map(|subject| match kind {
                "ServiceAccount" => format!("{}/{}", part(subject, "namespace"), part(subject, "name")),
                _ => part(subject, "name"),
            })
            .collect();
        json!(names.join(", "))
    };
    vec![
        binding["metadata"]["name"].clone(),
        format!("{}/{}", part(role, "kind"), part(role, "name")).into(),
        printing::age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
