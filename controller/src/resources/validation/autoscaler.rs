//! HorizontalPodAutoscalers, in the form in which they are stored.

use serde_json::{Value, json};

use super::{Problems, is_set, items, label_selector, path_segment_problem, supported, text};
use crate::quantity::Quantity;

/// Longest period of a policy and longest window, in seconds.
const MAX_PERIOD: i64 = 1800;
const MAX_WINDOW: i64 = 3600;

/// Checks a HorizontalPodAutoscaler.
pub(crate) fn autoscaler(autoscaler: &Value, _old: Option<&Value>, problems: &mut Problems) {
    let spec = &autoscaler["spec"];
    let least = spec["minReplicas"].as_i64();
    if least.is_some_and(|least| least < 1) {
        let detail = "must be greater than or equal to 1";
        problems.invalid("spec.minReplicas", &spec["minReplicas"], detail);
    }
    let most = spec["maxReplicas"].as_i64().unwrap_or_default();
    if most < 1 {
        problems.invalid("spec.maxReplicas", &json!(most), "must be greater than 0");
    }
    if least.is_some_and(|least| most < least) {
        let detail = "must be greater than or equal to `minReplicas`";
        problems.invalid("spec.maxReplicas", &json!(most), detail);
    }
    reference(&spec["scaleTargetRef"], "spec.scaleTargetRef", problems);
    for (field, metric) in items(&spec["metrics"], "spec.metrics") {
        self::metric(metric, &field, problems);
    }
    for direction in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][direction];
        if rules.is_object() {
            scaling(rules, &format!("spec.behavior.{direction}"), problems);
        }
    }
}

fn reference(reference: &Value, at: &str, problems: &mut Problems) {
    for key in ["kind", "name"] {
        let (value, field) = (&reference[key], format!("{at}.{key}"));
        if !is_set(value) {
            problems.required(&field, "");
        } else if let Some(problem) = path_segment_problem(text(value)) {
            problems.invalid(&field, value, &problem);
        }
    }
}

fn metric(metric: &Value, at: &str, problems: &mut Problems) {
    const SOURCES: [(&str, &str); 5] = [
        ("ContainerResource", "containerResource"),
        ("External", "external"),
        ("Object", "object"),
        ("Pods", "pods"),
        ("Resource", "resource"),
    ];
    let kind = &metric["type"];
    if !is_set(kind) {
        problems.required(&format!("{at}.type"), "must specify a metric source type");
        return;
    }
    let Some((_, key)) = SOURCES.iter().find(|(name, _)| kind == name) else {
        let names = SOURCES.map(|(name, _)| name);
        problems.not_supported(&format!("{at}.type"), kind, &names);
        return;
    };
    for (_, other) in SOURCES
        .iter()
        .filter(|(_, other)| other != key && metric[other].is_object())
    {
        let detail = "must populate the given metric source only";
        problems.forbidden(&format!("{at}.{other}"), detail);
    }
    let (source, at) = (&metric[key], format!("{at}.{key}"));
    if !source.is_object() {
        problems.required(&at, "must populate information for the given metric source");
        return;
    }
    target(&source["target"], &format!("{at}.target"), problems);
    match *key {
        "resource" | "containerResource" => {
            if !is_set(&source["name"]) {
                problems.required(&format!("{at}.name"), "must specify a resource name");
            }
            if *key == "containerResource" && !is_set(&source["container"]) {
                problems.required(&format!("{at}.container"), "must specify a container name");
            }
            let target = &source["target"];
            match (
                target["averageUtilization"].is_null(),
                target["averageValue"].is_null(),
            ) {
                (true, true) => problems.required(
                    &format!("{at}.target.averageUtilization"),
                    "must set either a target raw value or a target utilization",
                ),
                (false, false) => problems.forbidden(
                    &format!("{at}.target.averageValue"),
                    "may not set both a target raw value and a target utilization",
                ),
                _ => {}
            }
        }
        _ => {
            identifier(&source["metric"], &format!("{at}.metric"), problems);
            if *key == "object" {
                reference(
                    &source["describedObject"],
                    &format!("{at}.describedObject"),
                    problems,
                );
            }
            custom_target(key, &source["target"], &at, problems);
        }
    }
}

fn identifier(metric: &Value, at: &str, problems: &mut Problems) {
    let (name, field) = (&metric["name"], format!("{at}.name"));
    if !is_set(name) {
        problems.required(&field, "must specify a metric name");
    } else if let Some(problem) = path_segment_problem(text(name)) {
        problems.invalid(&field, name, &problem);
    }
    if metric["selector"].is_object() {
        label_selector(&metric["selector"], &format!("{at}.selector"), problems);
    }
}

fn custom_target(source: &str, target: &Value, at: &str, problems: &mut Problems) {
    let (value, average) = (&target["value"], &target["averageValue"]);
    match (source, value.is_null(), average.is_null()) {
        ("pods", _, true) => problems.required(
            &format!("{at}.target.averageValue"),
            "must specify a positive target averageValue",
        ),
        ("pods", ..) => {}
        (_, true, true) => problems.required(
            &format!("{at}.target.averageValue"),
            "must set either a target value or averageValue",
        ),
        ("external", false, false) => problems.forbidden(
            &format!("{at}.target.value"),
            "may not set both a target value for metric and a per-pod target",
        ),
        _ => {}
    }
}

fn target(target: &Value, at: &str, problems: &mut Problems) {
    if is_set(&target["type"]) {
        supported(
            target,
            at,
            "type",
            &["AverageValue", "Utilization", "Value"],
            problems,
        );
    } else {
        problems.required(&format!("{at}.type"), "must specify a metric target type");
    }
    for key in ["value", "averageValue"] {
        let field = format!("{at}.{key}");
        match target[key].as_str().map(str::parse::<Quantity>) {
            None => {}
            Some(Ok(amount)) if amount > Quantity::ZERO => {}
            Some(Ok(_)) => problems.invalid(&field, &target[key], "must be positive"),
            Some(Err(error)) => problems.invalid(&field, &target[key], &error.to_string()),
        }
    }
    let utilization = &target["averageUtilization"];
    if utilization.as_i64().is_some_and(|percent| percent < 1) {
        problems.invalid(
            &format!("{at}.averageUtilization"),
            utilization,
            "must be greater than 0",
        );
    }
}

fn scaling(rules: &Value, at: &str, problems: &mut Problems) {
    let (window, field) = (
        &rules["stabilizationWindowSeconds"],
        format!("{at}.stabilizationWindowSeconds"),
    );
    if let Some(seconds) = window.as_i64() {
        if seconds < 0 {
            problems.invalid(&field, window, "must be greater than or equal to zero");
        }
        if seconds > MAX_WINDOW {
            problems.invalid(
                &field,
                window,
                &format!("must be less than or equal to {MAX_WINDOW}"),
            );
        }
    }
    supported(rules, at, "selectPolicy", &["Disabled", "Max", "Min"], problems);
    if rules["policies"].as_array().is_none_or(Vec::is_empty) {
        problems.required(&format!("{at}.policies"), "must specify at least one Policy");
    }
    for (field, policy) in items(&rules["policies"], &format!("{at}.policies")) {
        supported(policy, &field, "type", &["Percent", "Pods"], problems);
        for key in ["value", "periodSeconds"] {
            let number = policy[key].as_i64().unwrap_or_default();
            if number <= 0 {
                problems.invalid(
                    &format!("{field}.{key}"),
                    &json!(number),
                    "must be greater than zero",
                );
            }
        }
        if policy["periodSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds > MAX_PERIOD)
        {
            let detail = format!("must be less than or equal to {MAX_PERIOD}");
            problems.invalid(
                &format!("{field}.periodSeconds"),
                &policy["periodSeconds"],
                &detail,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn autoscalers_are_checked_as_kubernetes_does() {
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let good = json!({"scaleTargetRef": {"kind": "Deployment", "name": "w"}, "minReplicas": 1, "maxReplicas": 3, "metrics": [cpu],
            "behavior": {"scaleDown": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}], "stabilizationWindowSeconds": 0}}});
        let with = |key: &str, value: Value| {
            let mut spec = good.clone();
            spec[key] = value;
            json!({"spec": spec})
        };
        assert!(said(autoscaler, &json!({"spec": good}), None).is_empty());
        for (object, expected) in [
            (
                with("minReplicas", json!(5)),
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
            ),
            (
                with("scaleTargetRef", json!({"kind": "Deployment"})),
                "spec.scaleTargetRef.name: Required value",
            ),
            (
                with("metrics", json!([{"type": "Guess"}])),
                "spec.metrics[0].type: Unsupported value: \"Guess\": supported values: \"ContainerResource\", \"External\", \"Object\", \
                 \"Pods\", \"Resource\"",
            ),
            (
                with(
                    "metrics",
                    json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization"}}}]),
                ),
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw value or a target \
                 utilization",
            ),
            (
                with("behavior", json!({"scaleUp": {"policies": []}})),
                "spec.behavior.scaleUp.policies: Required value: must specify at least one Policy",
            ),
            (
                with(
                    "behavior",
                    json!({"scaleUp": {"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]}}),
                ),
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
            ),
        ] {
            assert_eq!(said(autoscaler, &object, None), [expected]);
        }
    }
}
