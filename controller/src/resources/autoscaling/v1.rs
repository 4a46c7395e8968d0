//! The older version of HorizontalPodAutoscalers. It has a field for one metric, the utilisation of CPU; all that it has no
//! field for travels in annotations, so that a client that knows only this version loses nothing by writing back.

use serde_json::{Value, json};

/// The annotations, each with the field of the stored form that it carries.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// One metric's fields in the stored form and their names in this version's annotations.
type Renames = &'static [(&'static [&'static str], &'static str)];

const RESOURCE: Renames = &[
    (&["name"], "name"),
    (&["container"], "container"),
    (&["target", "averageUtilization"], "targetAverageUtilization"),
    (&["target", "averageValue"], "targetAverageValue"),
    (&["current", "averageUtilization"], "currentAverageUtilization"),
    (&["current", "averageValue"], "currentAverageValue"),
];

const SOURCES: &[(&str, Renames)] = &[
    ("resource", RESOURCE),
    ("containerResource", RESOURCE),
    (
        "pods",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "averageValue"], "targetAverageValue"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
    (
        "object",
        &[
            (&["describedObject"], "target"),
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "selector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "averageValue"),
            (&["current", "value"], "currentValue"),
            (&["current", "averageValue"], "averageValue"),
        ],
    ),
    (
        "external",
        &[
            (&["metric", "name"], "metricName"),
            (&["metric", "selector"], "metricSelector"),
            (&["target", "value"], "targetValue"),
            (&["target", "averageValue"], "targetAverageValue"),
            (&["current", "value"], "currentValue"),
            (&["current", "averageValue"], "currentAverageValue"),
        ],
    ),
];

/// From the stored form to this version.
pub(super) fn from_stored(autoscaler: &mut Value) {
    let mut annotations: Vec<(&str, Value)> = Vec::new();
    if let Some(fields) = fields(autoscaler, &["spec"]) {
        let metrics = fields.remove("metrics").unwrap_or_default();
        let (cpu, others) = split_cpu(&metrics, "target");
        if let Some(percent) = cpu.map(|cpu| cpu["resource"]["target"]["averageUtilization"].clone()) {
            fields.insert("targetCPUUtilizationPercentage".to_owned(), percent);
        }
        annotations.push((
            METRICS,
            others.iter().map(|metric| flatten(metric, "target")).collect(),
        ));
        annotations.push((BEHAVIOR, fields.remove("behavior").unwrap_or_default()));
    }
    if let Some(fields) = fields(autoscaler, &["status"]) {
        let metrics = fields.remove("currentMetrics").unwrap_or_default();
        let cpu = metrics
            .as_array()
            .into_iter()
            .flatten()
            .find(|metric| is_cpu(metric));
        if let Some(percent) = cpu.and_then(|cpu| cpu["resource"]["current"]["averageUtilization"].as_i64()) {
            fields.insert("currentCPUUtilizationPercentage".to_owned(), percent.into());
        }
        let metrics = metrics.as_array().into_iter().flatten();
        annotations.push((
            CURRENT_METRICS,
            metrics.map(|metric| flatten(metric, "current")).collect(),
        ));
        annotations.push((CONDITIONS, fields.remove("conditions").unwrap_or_default()));
    }
    for (key, value) in annotations {
        let empty = value.as_array().is_some_and(Vec::is_empty) || value.is_null();
        if !empty {
            autoscaler["metadata"]["annotations"][key] = json!(value.to_string());
        }
    }
    autoscaler["apiVersion"] = json!("autoscaling/v1");
}

/// From this version to the stored form.
pub(super) fn to_stored(autoscaler: &mut Value) {
    let mut taken = |key: &str| -> Value {
        let annotations = fields(autoscaler, &["metadata", "annotations"]);
        let text = annotations.and_then(|annotations| annotations.remove(key));
        let text = text
            .as_ref()
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        serde_json::from_str(&text).unwrap_or_default()
    };
    let [metrics, behavior, current, conditions] =
        [METRICS, BEHAVIOR, CURRENT_METRICS, CONDITIONS].map(&mut taken);
    if autoscaler["metadata"]["annotations"]
        .as_object()
        .is_some_and(serde_json::Map::is_empty)
        && let Some(metadata) = autoscaler["metadata"].as_object_mut()
    {
        metadata.remove("annotations");
    }
    if let Some(fields) = fields(autoscaler, &["spec"]) {
        let cpu = fields
            .remove("targetCPUUtilizationPercentage")
            .filter(|percent| !percent.is_null());
        let cpu = cpu.map(|percent| {
            let target = json!({"type": "Utilization", "averageUtilization": percent});
            json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
        });
        let others = metrics.as_array().into_iter().flatten();
        let all: Vec<_> = others
            .map(|metric| unflatten(metric, "target"))
            .chain(cpu)
            .collect();
        if !all.is_empty() {
            fields.insert("metrics".to_owned(), all.into());
        }
        if behavior.is_object() {
            fields.insert("behavior".to_owned(), behavior);
        }
    }
    if let Some(fields) = fields(autoscaler, &["status"]) {
        fields.remove("currentCPUUtilizationPercentage");
        let all: Vec<_> = current
            .as_array()
            .into_iter()
            .flatten()
            .map(|metric| unflatten(metric, "current"))
            .collect();
        if !all.is_empty() {
            fields.insert("currentMetrics".to_owned(), all.into());
        }
        if conditions.is_array() {
            fields.insert("conditions".to_owned(), conditions);
        }
    }
    autoscaler["apiVersion"] = json!("autoscaling/v2");
}

/// The fields of a struct that is there.
fn fields<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut serde_json::Map<String, Value>> {
    let mut value = object;
    for key in path {
        value = value.get_mut(key)?;
    }
    value.as_object_mut()
}

fn is_cpu(metric: &Value) -> bool {
    metric["type"] == "Resource" && metric["resource"]["name"] == "cpu"
}

/// The metric that has a field of its own, and the others.
fn split_cpu<'a>(metrics: &'a Value, part: &str) -> (Option<&'a Value>, Vec<&'a Value>) {
    let metrics = metrics.as_array().map_or(&[][..], Vec::as_slice);
    let own = |metric: &Value| is_cpu(metric) && metric["resource"][part]["averageUtilization"].is_number();
    let index = metrics.iter().position(own);
    let others = metrics.iter().enumerate().filter(|(at, _)| Some(*at) != index);
    (
        index.map(|index| &metrics[index]),
        others.map(|(_, metric)| metric).collect(),
    )
}

/// Fields that a metric of the other part (`target` or `current`) has do not belong to this one.
fn belongs(path: &[&str], part: &str) -> bool {
    path.len() < 2 || path[0] == "metric" || path[0] == part
}

fn flatten(metric: &Value, part: &str) -> Value {
    let mut flat = json!({"type": metric["type"]});
    for (source, renames) in SOURCES.iter().filter(|(source, _)| metric[source].is_object()) {
        for (path, name) in renames.iter().filter(|(path, _)| belongs(path, part)) {
            let value = path.iter().fold(&metric[source], |value, key| &value[key]);
            if !value.is_null() {
                flat[source][name] = value.clone();
            }
        }
    }
    flat
}

fn unflatten(flat: &Value, part: &str) -> Value {
    let mut metric = json!({"type": flat["type"]});
    for (source, renames) in SOURCES.iter().filter(|(source, _)| flat[source].is_object()) {
        for (path, name) in renames.iter().filter(|(path, _)| belongs(path, part)) {
            let value = &flat[source][name];
            if !value.is_null() {
                let place = path
                    .iter()
                    .fold(&mut metric[source], |value, key| &mut value[key]);
                *place = value.clone();
            }
        }
        if part == "target" {
            let target = &metric[source]["target"];
            let kind = [
                ("averageUtilization", "Utilization"),
                ("averageValue", "AverageValue"),
                ("value", "Value"),
            ]
            .into_iter()
            .find(|(key, _)| !target[key].is_null());
            if let Some((_, kind)) = kind {
                metric[source]["target"]["type"] = json!(kind);
            }
        }
    }
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_versions_convert_there_and_back() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"},
            "spec": {
                "scaleTargetRef": {"kind": "Deployment", "name": "web", "apiVersion": "apps/v1"}, "minReplicas": 1, "maxReplicas": 5,
                "metrics": [
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "Object", "object": {"describedObject": {"kind": "Ingress", "name": "i"},
                        "metric": {"name": "hits", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "5"}}},
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                ],
                "behavior": {"scaleUp": {"stabilizationWindowSeconds": 3}},
            },
            "status": {"currentReplicas": 2, "desiredReplicas": 3,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 70, "averageValue": "7m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}]},
        });
        let mut older = stored.clone();
        from_stored(&mut older);
        assert_eq!(older["spec"]["targetCPUUtilizationPercentage"], 50);
        assert_eq!(older["status"]["currentCPUUtilizationPercentage"], 70);
        assert!(older["spec"]["metrics"].is_null() && older["spec"]["behavior"].is_null());
        assert_eq!(
            older["metadata"]["annotations"][CURRENT_METRICS],
            r#"[{"resource":{"currentAverageUtilization":70,"currentAverageValue":"7m","name":"cpu"},"type":"Resource"}]"#
        );
        to_stored(&mut older);
        assert_eq!(older, stored);
    }

    #[test]
    fn what_kubectl_autoscale_sends_needs_no_annotations() {
        let mut older = json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "web"},
            "spec": {"scaleTargetRef": {}, "maxReplicas": 3, "targetCPUUtilizationPercentage": 80}, "status": {"currentReplicas": 0}});
        let sent = older.clone();
        to_stored(&mut older);
        assert_eq!(
            older["spec"]["metrics"][0]["resource"]["target"],
            json!({"type": "Utilization", "averageUtilization": 80})
        );
        from_stored(&mut older);
        assert_eq!(older, sent);
    }
}
