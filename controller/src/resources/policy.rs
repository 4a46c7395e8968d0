//! `policy`: how much of an application may be away at a time.

use serde_json::Value;

use super::Subresource::Status;
use super::{NAME, Resource, number, printing, row, text};

pub(super) static RESOURCES: &[Resource] = &[Resource {
    short_names: &["pdb"],
    subresources: &[Status],
    generation: true,
    columns: &[
        NAME,
        text("Min Available"),
        text("Max Unavailable"),
        number("Allowed Disruptions"),
        text("Age"),
    ],
    cells: |budget, now| {
        let spec = &budget["spec"];
        let bound = |value: &Value| match value {
            Value::String(text) => text.as_str().into(),
            Value::Number(number) => number.to_string().into(),
            _ => Value::from("N/A"),
        };
        vec![
            budget["metadata"]["name"].clone(),
            bound(&spec["minAvailable"]),
            bound(&spec["maxUnavailable"]),
            printing::count(&budget["status"]["disruptionsAllowed"]),
            printing::age(budget, now),
        ]
    },
    ..row(
        "policy",
        "v1",
        "PodDisruptionBudget",
        ("poddisruptionbudgets", "poddisruptionbudget"),
        "policy/poddisruptionbudgets",
    )
}];
