//! What keeps pods running: Deployments, ReplicaSets, DaemonSets, StatefulSets.

use serde_json::{Value, json};

use super::{
    Problems, at_least_zero, claim, count_or_percent, immutable, is_set, items, label_selector, non_negative,
    percent_at_most_100, pod_template, supported, text,
};
use crate::selector::LabelSelector;

/// Checks a ReplicaSet.
pub(crate) fn replica_set(set: &Value, old: Option<&Value>, problems: &mut Problems) {
    // Kubernetes calls an empty selector invalid for a deployment here as well.
    workload(set, old, "deployment", problems);
    non_negative(set, "spec.replicas", problems);
    immutable(set, old, "spec.selector", problems);
}

/// Checks a Deployment.
pub(crate) fn deployment(deployment: &Value, old: Option<&Value>, problems: &mut Problems) {
    workload(deployment, old, "deployment", problems);
    non_negative(deployment, "spec.replicas", problems);
    rolling_deployment(&deployment["spec"]["strategy"], problems);
    non_negative(deployment, "spec.revisionHistoryLimit", problems);
    non_negative(deployment, "spec.progressDeadlineSeconds", problems);
    let deadline = &deployment["spec"]["progressDeadlineSeconds"];
    let ready = deployment["spec"]["minReadySeconds"].as_i64().unwrap_or_default();
    if deadline.as_i64().is_some_and(|deadline| deadline <= ready) {
        let detail = "must be greater than minReadySeconds";
        problems.invalid("spec.progressDeadlineSeconds", deadline, detail);
    }
    immutable(deployment, old, "spec.selector", problems);
}

/// Checks a DaemonSet.
pub(crate) fn daemon_set(set: &Value, old: Option<&Value>, problems: &mut Problems) {
    workload(set, old, "daemonset", problems);
    let spec = &set["spec"];
    if !spec["template"]["spec"]["activeDeadlineSeconds"].is_null() {
        let detail = "activeDeadlineSeconds in DaemonSet is not Supported";
        problems.forbidden("spec.template.spec.activeDeadlineSeconds", detail);
    }
    non_negative(set, "spec.revisionHistoryLimit", problems);
    let strategy = &spec["updateStrategy"];
    match text(&strategy["type"]) {
        "OnDelete" => {}
        "RollingUpdate" if strategy["rollingUpdate"].is_null() => {
            problems.required("spec.updateStrategy.rollingUpdate", "");
        }
        "RollingUpdate" => {
            let at = "spec.updateStrategy.rollingUpdate";
            let rolling = &strategy["rollingUpdate"];
            for key in ["maxUnavailable", "maxSurge"] {
                count_or_percent(&rolling[key], &format!("{at}.{key}"), problems);
                percent_at_most_100(&rolling[key], &format!("{at}.{key}"), problems);
            }
            match (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"])) {
                (true, true) => {
                    problems.required(&format!("{at}.maxUnavailable"), "cannot be 0 when maxSurge is 0");
                }
                (false, false) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    problems.invalid(&format!("{at}.maxSurge"), &rolling["maxSurge"], detail);
                }
                _ => {}
            }
        }
        _ => supported(
            strategy,
            "spec.updateStrategy",
            "type",
            &["OnDelete", "RollingUpdate"],
            problems,
        ),
    }
    immutable(set, old, "spec.selector", problems);
}

/// What of a StatefulSet's spec may change.
const STATEFUL_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

/// Checks a StatefulSet.
pub(crate) fn stateful_set(set: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &set["spec"];
    let management = &spec["podManagementPolicy"];
    match text(management) {
        "" => problems.required("spec.podManagementPolicy", ""),
        "OrderedReady" | "Parallel" => {}
        _ => problems.invalid(
            "spec.podManagementPolicy",
            management,
            "must be 'OrderedReady' or 'Parallel'",
        ),
    }
    let strategy = &spec["updateStrategy"];
    match text(&strategy["type"]) {
        "" => problems.required("spec.updateStrategy", ""),
        "OnDelete" if !strategy["rollingUpdate"].is_null() => problems.invalid(
            "spec.updateStrategy.rollingUpdate",
            &strategy["rollingUpdate"],
            "only allowed for updateStrategy 'RollingUpdate'",
        ),
        "OnDelete" => {}
        "RollingUpdate" => {
            non_negative(set, "spec.updateStrategy.rollingUpdate.partition", problems);
            let unavailable = &strategy["rollingUpdate"]["maxUnavailable"];
            let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
            count_or_percent(unavailable, field, problems);
            percent_at_most_100(unavailable, field, problems);
            if is_zero(unavailable) && !unavailable.is_null() {
                problems.invalid(field, unavailable, "cannot be 0");
            }
        }
        _ => problems.invalid(
            "spec.updateStrategy",
            strategy,
            "must be 'RollingUpdate' or 'OnDelete'",
        ),
    }
    let retention = &spec["persistentVolumeClaimRetentionPolicy"];
    for key in ["whenDeleted", "whenScaled"] {
        let at = "spec.persistentVolumeClaimRetentionPolicy";
        supported(retention, at, key, &["Delete", "Retain"], problems);
    }
    non_negative(set, "spec.replicas", problems);
    non_negative(set, "spec.ordinals.start", problems);
    non_negative(set, "spec.revisionHistoryLimit", problems);
    workload(set, old, "statefulset", problems);
    for (field, template) in items(&spec["volumeClaimTemplates"], "spec.volumeClaimTemplates") {
        if !is_set(&template["metadata"]["name"]) {
            problems.required(&format!("{field}.metadata.name"), "");
        }
    }
    claim::claim_templates(
        &spec["volumeClaimTemplates"],
        "spec.volumeClaimTemplates",
        problems,
    );
    let Some(old) = old else { return };
    let fixed = |set: &Value| {
        let mut spec = set["spec"].as_object().cloned().unwrap_or_default();
        spec.retain(|key, _| !STATEFUL_MUTABLE.contains(&key.as_str()));
        // Sets of before the server filled these in are the same.
        let templates = spec.get_mut("volumeClaimTemplates").and_then(Value::as_array_mut);
        for template in templates.into_iter().flatten().filter_map(Value::as_object_mut) {
            template.retain(|key, _| key != "apiVersion" && key != "kind");
        }
        spec
    };
    if fixed(set) != fixed(old) {
        problems.forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

fn workload(object: &Value, _old: Option<&Value>, noun: &str, problems: &mut Problems) {
    let spec = &object["spec"];
    non_negative(object, "spec.minReadySeconds", problems);
    selector(spec, noun, problems);
    // The pods of a StatefulSet mount volumes that come from its claims.
    let mut template = spec["template"].clone();
    for (_, claim) in items(&spec["volumeClaimTemplates"], "") {
        let name = &claim["metadata"]["name"];
        let volumes = &mut template["spec"]["volumes"];
        let list = volumes.as_array_mut();
        let known = list
            .as_ref()
            .is_some_and(|list| list.iter().any(|volume| volume["name"] == *name));
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        match list {
            Some(_) if known => {}
            Some(list) => list.push(volume),
            None => *volumes = json!([volume]),
        }
    }
    pod_template(&template, "spec.template", problems);
    always(&spec["template"]["spec"], problems);
}

/// The selector must select something, and its own pods at that.
fn selector(spec: &Value, noun: &str, problems: &mut Problems) {
    let selector = &spec["selector"];
    if selector.is_null() {
        problems.required("spec.selector", "");
        return;
    }
    label_selector(selector, "spec.selector", problems);
    let labels = &spec["template"]["metadata"]["labels"];
    let Ok(parsed) = LabelSelector::from_value(selector) else {
        return;
    };
    if parsed.is_everything() {
        let detail = format!("empty selector is invalid for {noun}");
        problems.invalid("spec.selector", selector, &detail);
    } else if !parsed.matches(labels) {
        let detail = "`selector` does not match template `labels`";
        problems.invalid("spec.template.metadata.labels", labels, detail);
    }
}

/// Pods that are replaced must be restarted as well.
pub(crate) fn always(spec: &Value, problems: &mut Problems) {
    let policy = &spec["restartPolicy"];
    if policy.as_str().is_some_and(|policy| policy != "Always") {
        problems.not_supported("spec.template.spec.restartPolicy", policy, &["Always"]);
    }
}

fn is_zero(value: &Value) -> bool {
    value.is_null() || *value == 0 || *value == "0%" || *value == "0"
}

fn rolling_deployment(strategy: &Value, problems: &mut Problems) {
    let rolling = &strategy["rollingUpdate"];
    match text(&strategy["type"]) {
        "Recreate" if rolling.is_object() => problems.forbidden(
            "spec.strategy.rollingUpdate",
            "may not be specified when strategy `type` is 'Recreate'",
        ),
        "RollingUpdate" => {
            let at = "spec.strategy.rollingUpdate";
            for key in ["maxUnavailable", "maxSurge"] {
                count_or_percent(&rolling[key], &format!("{at}.{key}"), problems);
            }
            percent_at_most_100(
                &rolling["maxUnavailable"],
                &format!("{at}.maxUnavailable"),
                problems,
            );
            let zero = |key: &str| !rolling[key].is_null() && is_zero(&rolling[key]);
            if zero("maxUnavailable") && zero("maxSurge") {
                problems.invalid(
                    "spec.strategy.rollingUpdate.maxUnavailable",
                    &rolling["maxUnavailable"],
                    "may not be 0 when `maxSurge` is 0",
                );
            }
        }
        _ => supported(
            strategy,
            "spec.strategy",
            "type",
            &["Recreate", "RollingUpdate"],
            problems,
        ),
    }
}

/// Checks a ReplicationController.
pub(crate) fn replication_controller(controller: &Value, _old: Option<&Value>, problems: &mut Problems) {
    let spec = &controller["spec"];
    non_negative(controller, "spec.replicas", problems);
    at_least_zero(&spec["minReadySeconds"], "spec.minReadySeconds", problems);
    let labels = &spec["template"]["metadata"]["labels"];
    let selector = spec["selector"]
        .as_object()
        .filter(|selector| !selector.is_empty());
    match selector {
        None => problems.required("spec.selector", ""),
        Some(selector) if !selector.iter().all(|(key, value)| labels[key] == *value) => {
            let detail = "`selector` does not match template `labels`";
            problems.invalid("spec.template.metadata.labels", labels, detail);
        }
        Some(_) => {}
    }
    pod_template(&spec["template"], "spec.template", problems);
    always(&spec["template"]["spec"], problems);
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn base(more: &Value) -> Value {
        let mut spec = json!({"replicas": 1, "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"restartPolicy": "Always", "containers": [{"name": "c", "image": "x"}]}}});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key.as_str()] = value;
        }
        json!({"metadata": {"name": "w"}, "spec": spec})
    }

    #[test]
    fn deployments_are_checked_as_kubernetes_does() {
        let rolling = |unavailable: Value, surge: Value| json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}});
        assert!(said(deployment, &base(&rolling(json!("25%"), json!("125%"))), None).is_empty());
        for (more, expected) in [
            (
                rolling(json!(0), json!("0%")),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ),
            (
                rolling(json!("101%"), json!(1)),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            ),
            (
                json!({"selector": {}}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                json!({"selector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}),
                "spec.selector.matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator",
            ),
            (
                json!({"minReadySeconds": 5, "progressDeadlineSeconds": 5}),
                "spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds",
            ),
        ] {
            assert_eq!(said(deployment, &base(&more), None), [expected]);
        }
    }

    #[test]
    fn daemon_sets_are_checked_as_kubernetes_does() {
        let rolling = |unavailable: Value, surge: Value| json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}}});
        assert!(said(daemon_set, &base(&rolling(json!(1), json!(0))), None).is_empty());
        for (more, expected) in [
            (
                rolling(json!(0), json!(0)),
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ),
            (
                rolling(json!(1), json!("10%")),
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: \"10%\": may not be set when maxUnavailable is non-zero",
            ),
            (
                json!({"updateStrategy": {"type": "Recreate"}}),
                "spec.updateStrategy.type: Unsupported value: \"Recreate\": supported values: \"OnDelete\", \"RollingUpdate\"",
            ),
            (
                json!({"selector": {}, "updateStrategy": {"type": "OnDelete"}}),
                "spec.selector: Invalid value: {}: empty selector is invalid for daemonset",
            ),
        ] {
            assert_eq!(said(daemon_set, &base(&more), None), [expected]);
        }
    }

    #[test]
    fn stateful_sets_are_checked_as_kubernetes_does() {
        let good = base(&json!({"podManagementPolicy": "OrderedReady", "serviceName": "s",
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}]}));
        let with = |key: &str, value: Value| {
            let mut set = good.clone();
            set["spec"][key] = value;
            set
        };
        let mut mounting = good.clone();
        mounting["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/d"}]);
        assert!(said(stateful_set, &mounting, None).is_empty());
        for (object, expected) in [
            (
                with("podManagementPolicy", json!("Any")),
                "spec.podManagementPolicy: Invalid value: \"Any\": must be 'OrderedReady' or 'Parallel'",
            ),
            (
                with(
                    "updateStrategy",
                    json!({"type": "OnDelete", "rollingUpdate": {"partition": 1}}),
                ),
                "spec.updateStrategy.rollingUpdate: Invalid value: {\"partition\":1}: only allowed for updateStrategy 'RollingUpdate'",
            ),
            (
                with(
                    "volumeClaimTemplates",
                    json!([{"metadata": {"name": "d"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]),
                ),
                "spec.volumeClaimTemplates[0].spec.resources[storage]: Required value",
            ),
        ] {
            assert_eq!(said(stateful_set, &object, None), [expected]);
        }
        assert!(said(stateful_set, &with("replicas", json!(3)), Some(&good)).is_empty());
        assert_eq!(
            said(stateful_set, &with("serviceName", json!("t")), Some(&good)),
            [
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
              'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
              forbidden"
            ]
        );
    }
}
