//! `node.k8s.io`: how nodes run containers.

use super::{NAME, Resource, printing, row, text, validation};

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
    validate: |class, old, problems| {
        let handler = &class["handler"];
        match handler.as_str().unwrap_or_default() {
            "" => problems.required("handler", ""),
            text => {
                if let Some(problem) = validation::label_problem(text) {
                    problems.invalid("handler", handler, &problem);
                }
            }
        }
        validation::immutable(class, old, "handler", problems);
    },
    ..row(
        "node.k8s.io",
        "v1",
        "RuntimeClass",
        ("runtimeclasses", "runtimeclass"),
        "node.k8s.io/runtimeclasses",
    )
}];
