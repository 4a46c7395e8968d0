//! `policy`: how much of an application may be away at a time.

use serde_json::Value;

use super::Subresource::Status;
use super::{NAME, Resource, number, printing, row, text, validation};

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
    validate: |budget, _, problems| {
        let spec = &budget["spec"];
        if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
            let detail = "minAvailable and maxUnavailable cannot be both set";
            problems.invalid("spec", spec, detail);
        }
        for key in ["minAvailable", "maxUnavailable"] {
            let (value, field) = (&spec[key], format!("spec.{key}"));
            validation::count_or_percent(value, &field, problems);
            validation::percent_at_most_100(value, &field, problems);
        }
        if spec["selector"].is_object() {
            validation::label_selector(&spec["selector"], "spec.selector", problems);
        }
        let policy = &spec["unhealthyPodEvictionPolicy"];
        if !matches!(policy.as_str(), None | Some("AlwaysAllow" | "IfHealthyBudget")) {
            let known = ["AlwaysAllow", "IfHealthyBudget"];
            problems.not_supported("spec.unhealthyPodEvictionPolicy", policy, &known);
        }
    },
    ..row(
        "policy",
        "v1",
        "PodDisruptionBudget",
        ("poddisruptionbudgets", "poddisruptionbudget"),
        "policy/poddisruptionbudgets",
    )
}];
