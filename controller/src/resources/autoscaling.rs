//! `autoscaling`: one store of HorizontalPodAutoscalers, kept as `v2` and served as `v1` too.

use jiff::Timestamp;
use serde_json::Value;

use super::Subresource::Status;
use super::{Column, Conversion, NAME, Resource, number, printing, row, text, validation};

mod v1;

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[Status],
        columns: COLUMNS,
        cells,
        validate: validation::autoscaler::autoscaler,
        ..row(
            "autoscaling",
            "v2",
            "HorizontalPodAutoscaler",
            ("horizontalpodautoscalers", "horizontalpodautoscaler"),
            "autoscaling/horizontalpodautoscalers",
        )
    },
    Resource {
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &[Status],
        columns: COLUMNS,
        cells: |autoscaler, now| {
            let mut stored = autoscaler.clone();
            v1::to_stored(&mut stored);
            cells(&stored, now)
        },
        conversion: Some(Conversion {
            served: v1::from_stored,
            stored: v1::to_stored,
        }),
        ..row(
            "autoscaling",
            "v1",
            "HorizontalPodAutoscaler",
            ("horizontalpodautoscalers", "horizontalpodautoscaler"),
            "autoscaling/horizontalpodautoscalers",
        )
    },
];

/// What the subresource `scale` of other kinds is printed by; no resource of its own.
pub(crate) static SCALE: Resource = Resource {
    columns: &[NAME, number("Desired"), number("Available"), text("Age")],
    cells: |scale, now| {
        vec![
            scale["metadata"]["name"].clone(),
            printing::count(&scale["spec"]["replicas"]),
            printing::count(&scale["status"]["replicas"]),
            printing::age(scale, now),
        ]
    },
    ..row("autoscaling", "v1", "Scale", ("", ""), "")
};

const COLUMNS: &[Column] = &[
    NAME,
    text("Reference"),
    text("Targets"),
    text("MinPods"),
    text("MaxPods"),
    text("Replicas"),
    text("Age"),
];

fn cells(autoscaler: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&autoscaler["spec"], &autoscaler["status"]);
    let part = |key: &str| spec["scaleTargetRef"][key].as_str().unwrap_or_default();
    let least = spec["minReplicas"].as_i64();
    vec![
        autoscaler["metadata"]["name"].clone(),
        format!("{}/{}", part("kind"), part("name")).into(),
        targets(&spec["metrics"], &status["currentMetrics"]).into(),
        least.map_or_else(|| "<unset>".into(), |least| least.to_string().into()),
        printing::count(&spec["maxReplicas"]),
        printing::count(&status["currentReplicas"]),
        printing::age(autoscaler, now),
    ]
}

/// Metrics printed; the others are counted.
const SHOWN: usize = 2;

/// Each metric's current value and its target.
fn targets(metrics: &Value, current: &Value) -> String {
    let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let shown: Vec<_> = metrics
        .iter()
        .enumerate()
        .take(SHOWN)
        .map(|(index, metric)| target(metric, &current[index]))
        .collect();
    let shown = shown.join(", ");
    match metrics.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

fn target(metric: &Value, current: &Value) -> String {
    let (source, average) = match metric["type"].as_str() {
        Some("Resource") => ("resource", true),
        Some("ContainerResource") => ("containerResource", true),
        Some("Pods") => ("pods", true),
        Some("Object") => ("object", false),
        Some("External") => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let (target, current) = (&metric[source]["target"], &current[source]["current"]);
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let percent = |value: &Value| value.as_i64().map(|percent| format!("{percent}%"));
    let unknown = || "<unknown>".to_owned();
    let (is, wanted) = match (text(&target["averageValue"]), average) {
        (Some(wanted), _) => (text(&current["averageValue"]), wanted),
        (None, true) => (
            percent(&current["averageUtilization"]),
            percent(&target["averageUtilization"]).unwrap_or_else(|| "<auto>".to_owned()),
        ),
        (None, false) => (
            text(&current["value"]),
            text(&target["value"]).unwrap_or_else(|| "0".to_owned()),
        ),
    };
    let is = is.unwrap_or_else(unknown);
    let averaged = !average && target["averageValue"].is_string();
    match metric[source]["name"].as_str() {
        Some(name) => format!("{name}: {is}/{wanted}"),
        None if averaged => format!("{is}/{wanted} (avg)"),
        None => format!("{is}/{wanted}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_print_as_kubectl_shows_them() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}});
        let memory = json!({"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "100Mi"}}});
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "rps"}, "target": {"type": "AverageValue", "averageValue": "1k"}}});
        let external = json!({"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "30"}}});
        let object = json!({"type": "Object", "object": {"metric": {"name": "hits"}, "target": {"type": "Value", "value": "5"}}});
        let used = json!([{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 12, "averageValue": "24m"}}}]);
        for (metrics, current, printed) in [
            (json!([]), json!([]), "<none>"),
            (json!([cpu]), json!(null), "cpu: <unknown>/80%"),
            (json!([cpu]), used.clone(), "cpu: 12%/80%"),
            (
                json!([cpu, memory]),
                used.clone(),
                "cpu: 12%/80%, memory: <unknown>/100Mi",
            ),
            (
                json!([pods, external]),
                json!([]),
                "<unknown>/1k, <unknown>/30 (avg)",
            ),
            (
                json!([object]),
                json!([{"type": "Object", "object": {"current": {"value": "7"}}}]),
                "7/5",
            ),
            (
                json!([cpu, memory, pods, external]),
                used,
                "cpu: 12%/80%, memory: <unknown>/100Mi + 2 more...",
            ),
        ] {
            assert_eq!(targets(&metrics, &current), printed);
        }
    }
}
