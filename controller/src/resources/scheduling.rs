//! `scheduling.k8s.io`: which pods go first.

use super::{NAME, Resource, boolean, number, printing, row, text};

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
    ..row(
        "scheduling.k8s.io",
        "v1",
        "PriorityClass",
        ("priorityclasses", "priorityclass"),
        "scheduling.k8s.io/priorityclasses",
    )
}];
