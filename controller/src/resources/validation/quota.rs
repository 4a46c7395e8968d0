//! Quotas and limit ranges.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Problems, is_set, items, label_key_problem, text};
use crate::quantity::Quantity;

/// What a quota may bound, besides counts of other kinds and extended resources.
const RESOURCES: &[&str] = &[
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
    "requests.storage",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

/// What is counted in whole objects.
const WHOLE: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
];

const SCOPES: &[&str] = &[
    "BestEffort",
    "CrossNamespacePodAffinity",
    "NotBestEffort",
    "NotTerminating",
    "PriorityClass",
    "Terminating",
];

/// Checks a ResourceQuota.
pub(crate) fn quota(quota: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &quota["spec"];
    for (name, value) in spec["hard"].as_object().into_iter().flatten() {
        let field = format!("spec.hard[{name}]");
        if let Some(problem) = label_key_problem(name) {
            problems.invalid(&field, &json!(name), &problem);
        } else if !name.contains('/') && !is_quota_resource(name) {
            problems.invalid(&field, &json!(name), "must be a standard resource for quota");
        }
        amount(name, value, &field, problems);
    }
    for (at, scope) in items(&spec["scopes"], "spec.scopes") {
        scope_known(scope, &at, problems);
    }
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        let has = |name: &str| {
            spec["scopes"]
                .as_array()
                .is_some_and(|list| list.iter().any(|s| s == name))
        };
        if pair.into_iter().all(has) {
            problems.invalid("spec.scopes", &spec["scopes"], "conflicting scopes");
        }
    }
    if spec["scopes"].as_array().is_some_and(|scopes| !scopes.is_empty()) {
        let hard = spec["hard"].as_object().into_iter().flatten();
        let pods_only = |name: &str| {
            let bare = name
                .strip_prefix("requests.")
                .or_else(|| name.strip_prefix("limits."))
                .unwrap_or(name);
            matches!(
                bare,
                "pods" | "cpu" | "memory" | "ephemeral-storage" | "count/pods"
            ) || bare.contains('/')
        };
        for (name, _) in hard.filter(|(name, _)| !pods_only(name)) {
            let _ = name;
            problems.invalid(
                "spec.scopes",
                &spec["scopes"],
                "unsupported scope applied to resource",
            );
        }
    }
    for (at, term) in items(
        &spec["scopeSelector"]["matchExpressions"],
        "spec.scopeSelector.matchExpressions",
    ) {
        scope_known(&term["scopeName"], &format!("{at}.scopeName"), problems);
        let values = term["values"].as_array().map_or(0, Vec::len);
        match text(&term["operator"]) {
            "In" | "NotIn" if values == 0 => problems.required(
                &format!("{at}.values"),
                "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            ),
            "Exists" | "DoesNotExist" if values > 0 => problems.invalid(
                &format!("{at}.values"),
                &term["values"],
                "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => problems.invalid(
                &format!("{at}.operator"),
                &term["operator"],
                "not a valid selector operator",
            ),
        }
    }
    super::immutable(quota, old, "spec.scopes", problems);
}

fn is_quota_resource(name: &str) -> bool {
    let bare = name.strip_prefix("requests.").unwrap_or(name);
    RESOURCES.contains(&name) || bare.starts_with("hugepages-")
}

fn scope_known(scope: &Value, field: &str, problems: &mut Problems) {
    if !SCOPES.contains(&text(scope)) {
        problems.invalid(field, scope, "unsupported scope");
    }
}

fn amount(name: &str, value: &Value, field: &str, problems: &mut Problems) {
    match text(value).parse::<Quantity>() {
        Ok(quantity) if quantity.is_negative() => {
            problems.invalid(field, value, "must be greater than or equal to 0");
        }
        Ok(quantity) if !quantity.is_whole() && (WHOLE.contains(&name) || name.starts_with("count/")) => {
            problems.invalid(field, value, "must be an integer");
        }
        Ok(_) => {}
        Err(error) => problems.invalid(field, value, &error.to_string()),
    }
}

/// Checks a LimitRange.
pub(crate) fn limit_range(range: &Value, _old: Option<&Value>, problems: &mut Problems) {
    let mut types = BTreeSet::new();
    for (at, limit) in items(&range["spec"]["limits"], "spec.limits") {
        let kind = text(&limit["type"]);
        if !is_set(&limit["type"]) {
            problems.required(&format!("{at}.type"), "");
        } else if !matches!(kind, "Pod" | "Container" | "PersistentVolumeClaim") && !kind.contains('/') {
            let detail = "must be a standard limit type or fully qualified";
            problems.invalid(&format!("{at}.type"), &limit["type"], detail);
        }
        if !types.insert(kind) {
            problems.duplicate(&format!("{at}.type"), &limit["type"]);
        }
        if kind == "Pod" {
            for key in ["default", "defaultRequest"] {
                if limit[key].as_object().is_some_and(|map| !map.is_empty()) {
                    problems.forbidden(
                        &format!("{at}.{key}"),
                        "may not be specified when `type` is 'Pod'",
                    );
                }
            }
        }
        if kind == "PersistentVolumeClaim"
            && limit["min"]["storage"].is_null()
            && limit["max"]["storage"].is_null()
        {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            problems.required(&format!("{at}.limits"), detail);
        }
        bounds(&at, limit, problems);
    }
}

/// No bound may contradict another.
fn bounds(at: &str, limit: &Value, problems: &mut Problems) {
    // Which must not be above which, the field that is blamed, and what they are called.
    const ORDER: &[(&str, &str, &str, &str)] = &[
        ("min", "max", "min", "min value {} is greater than max value {}"),
        (
            "min",
            "defaultRequest",
            "defaultRequest",
            "min value {} is greater than default request value {}",
        ),
        (
            "defaultRequest",
            "max",
            "defaultRequest",
            "default request value {} is greater than max value {}",
        ),
        (
            "defaultRequest",
            "default",
            "defaultRequest",
            "default request value {} is greater than default limit value {}",
        ),
        (
            "min",
            "default",
            "default",
            "min value {} is greater than default value {}",
        ),
        (
            "default",
            "max",
            "default",
            "default value {} is greater than max value {}",
        ),
    ];
    let maps = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];
    let mut names = BTreeSet::new();
    for map in maps {
        for (name, value) in limit[map].as_object().into_iter().flatten() {
            names.insert(name);
            if let Err(error) = text(value).parse::<Quantity>() {
                problems.invalid(&format!("{at}.{map}[{name}]"), value, &error.to_string());
            }
        }
    }
    for name in names {
        let get = |map: &str| text(&limit[map][name]).parse::<Quantity>().ok();
        for (low, high, blamed, says) in ORDER {
            if let (Some(below), Some(above)) = (get(low), get(high))
                && below > above
            {
                let detail = says
                    .replacen("{}", &below.to_string(), 1)
                    .replacen("{}", &above.to_string(), 1);
                let field = format!("{at}.{blamed}[{name}]");
                problems.invalid(&field, &limit[blamed][name], &detail);
            }
        }
        if let Some(ratio) = get("maxLimitRequestRatio")
            && ratio < Quantity::from_units(1)
        {
            let detail = format!("ratio {ratio} is less than 1");
            let field = format!("{at}.maxLimitRequestRatio[{name}]");
            problems.invalid(&field, &limit["maxLimitRequestRatio"][name], &detail);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn quotas_are_checked_as_kubernetes_does() {
        let good = json!({"spec": {"hard": {"pods": "10", "requests.cpu": "4", "count/deployments.apps": "2",
            "requests.nvidia.com/gpu": "1", "fast.storageclass.storage.k8s.io/requests.storage": "5Gi"}}});
        assert!(said(quota, &good, None).is_empty());
        for (spec, expected) in [
            (
                json!({"hard": {"ships": "1"}}),
                "spec.hard[ships]: Invalid value: \"ships\": must be a standard resource for quota",
            ),
            (
                json!({"hard": {"pods": "-1"}}),
                "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({"hard": {"pods": "500m"}}),
                "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
            ),
            (
                json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}),
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
            ),
            (
                json!({"hard": {"services": "1"}, "scopes": ["BestEffort"]}),
                "spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource",
            ),
            (
                json!({"scopes": ["Big"]}),
                "spec.scopes[0]: Invalid value: \"Big\": unsupported scope",
            ),
        ] {
            assert_eq!(said(quota, &json!({"spec": spec}), None), [expected]);
        }
    }

    #[test]
    fn limit_ranges_are_checked_as_kubernetes_does() {
        let good = json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "100m"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}});
        assert!(said(limit_range, &json!({"spec": {"limits": [good]}}), None).is_empty());
        for (limit, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}}),
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ),
            (
                json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "2"}}),
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1",
            ),
            (
                json!({"type": "Pod", "default": {"cpu": "1"}}),
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                json!({"type": "PersistentVolumeClaim"}),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
            ),
            (json!({}), "spec.limits[0].type: Required value"),
        ] {
            assert_eq!(
                said(limit_range, &json!({"spec": {"limits": [limit]}}), None),
                [expected]
            );
        }
    }
}
