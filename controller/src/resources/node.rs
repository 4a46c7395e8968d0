//! `node.k8s.io`: how nodes run containers.

use super::{NAME, Resource, printing, row, text};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    namespaced: false,
    columns: &[NAME, text("Handler"), text("Age")],
    cells: |class, now| {
        vec![
            class["metadata"]["name"].clone(),
            class["handler"].clone(),
            printing::age(class, now),
        ]
    },
    ..row(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        ("runtimeclasses", "runtimeclass"),
        "node.k8s.io/runtimeclasses",
    )
}];
