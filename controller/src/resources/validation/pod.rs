//! The spec of pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::container::{Context, containers};
use super::{Problems, is_set, items, label_problem, labels, subdomain_problem, supported, text, volume};
use crate::selector::{label_key_problem, label_value_problem};

/// Checks a template for pods; `at` is its path.
pub(crate) fn pod_template(template: &Value, at: &str, problems: &mut Problems) {
    labels(&template["metadata"]["labels"], &format!("{at}.labels"), problems);
    pod_spec(&template["spec"], &format!("{at}.spec"), problems);
}

/// Checks a pod's spec, in a pod or in a template; `at` is its path.
pub(crate) fn pod_spec(spec: &Value, at: &str, problems: &mut Problems) {
    let volumes = volume::volumes(&spec["volumes"], &format!("{at}.volumes"), problems);
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        problems.required(&format!("{at}.containers"), "");
    }
    let context = Context {
        volumes: &volumes,
        host_network: spec["hostNetwork"] == true,
    };
    let mut names = BTreeSet::new();
    containers(
        &spec["containers"],
        &format!("{at}.containers"),
        &context,
        &mut names,
        problems,
    );
    containers(
        &spec["initContainers"],
        &format!("{at}.initContainers"),
        &context,
        &mut names,
        problems,
    );
    supported(
        spec,
        at,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        problems,
    );
    supported(
        spec,
        at,
        "dnsPolicy",
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        problems,
    );
    if let Some(seconds) = spec["activeDeadlineSeconds"].as_i64()
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let field = format!("{at}.activeDeadlineSeconds");
        problems.invalid(
            &field,
            &json!(seconds),
            "must be between 1 and 2147483647, inclusive",
        );
    }
    for (key, value) in spec["nodeSelector"].as_object().into_iter().flatten() {
        let field = format!("{at}.nodeSelector");
        if let Some(problem) = label_key_problem(key) {
            problems.invalid(&field, &json!(key), &problem);
        }
        if let Some(problem) = label_value_problem(value.as_str().unwrap_or_default()) {
            problems.invalid(&field, value, &problem);
        }
    }
    let account = &spec["serviceAccountName"];
    if is_set(account)
        && let Some(problem) = subdomain_problem(text(account))
    {
        problems.invalid(&format!("{at}.serviceAccountName"), account, &problem);
    }
    for name in ["hostname", "subdomain"] {
        let value = &spec[name];
        if is_set(value)
            && let Some(problem) = label_problem(text(value))
        {
            problems.invalid(&format!("{at}.{name}"), value, &problem);
        }
    }
    tolerations(&spec["tolerations"], &format!("{at}.tolerations"), problems);
    spread(
        &spec["topologySpreadConstraints"],
        &format!("{at}.topologySpreadConstraints"),
        problems,
    );
}

fn tolerations(list: &Value, at: &str, problems: &mut Problems) {
    for (field, toleration) in items(list, at) {
        let (key, operator, effect) = (&toleration["key"], &toleration["operator"], &toleration["effect"]);
        if is_set(key)
            && let Some(problem) = label_key_problem(text(key))
        {
            problems.invalid(&format!("{field}.key"), key, &problem);
        }
        if !is_set(key) && operator != "Exists" {
            let detail =
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            problems.invalid(&format!("{field}.operator"), &json!(text(operator)), detail);
        }
        if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            problems.invalid(&format!("{field}.effect"), &json!(text(effect)), detail);
        }
        match text(operator) {
            "Equal" | "" => {
                if let Some(problem) = label_value_problem(text(&toleration["value"])) {
                    problems.invalid(&format!("{field}.operator"), &toleration["value"], &problem);
                }
            }
            "Exists" => {
                if is_set(&toleration["value"]) {
                    let detail = "value must be empty when `operator` is 'Exists'";
                    problems.invalid(&format!("{field}.operator"), toleration, detail);
                }
            }
            _ => problems.not_supported(&format!("{field}.operator"), operator, &["Equal", "Exists"]),
        }
        if is_set(effect) {
            supported(
                toleration,
                &field,
                "effect",
                &["NoSchedule", "PreferNoSchedule", "NoExecute"],
                problems,
            );
        }
    }
}

fn spread(list: &Value, at: &str, problems: &mut Problems) {
    for (field, constraint) in items(list, at) {
        let skew = constraint["maxSkew"].as_i64().unwrap_or_default();
        if skew <= 0 {
            problems.invalid(
                &format!("{field}.maxSkew"),
                &json!(skew),
                "must be greater than zero",
            );
        }
        if !is_set(&constraint["topologyKey"]) {
            problems.required(&format!("{field}.topologyKey"), "can not be empty");
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&text(&constraint["whenUnsatisfiable"])) {
            let value = json!(text(&constraint["whenUnsatisfiable"]));
            problems.not_supported(&format!("{field}.whenUnsatisfiable"), &value, &actions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(spec: &Value) -> Vec<String> {
        let mut problems = Problems::default();
        pod_spec(spec, "spec", &mut problems);
        problems
            .0
            .into_iter()
            .map(|problem| format!("{}: {}", problem.field, problem.message))
            .collect()
    }

    #[test]
    fn a_good_spec_has_no_problem() {
        let spec = json!({"restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "hostNetwork": true,
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
            "tolerations": [{"operator": "Exists"}, {"key": "a", "value": "b", "effect": "NoExecute", "tolerationSeconds": 3}],
            "initContainers": [{"name": "i", "image": "x", "terminationMessagePolicy": "File"}],
            "containers": [{"name": "c", "image": "x", "imagePullPolicy": "Always",
                "ports": [{"name": "http", "containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "env": [{"name": "A"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "volumeMounts": [{"name": "v", "mountPath": "/a"}, {"name": "v", "mountPath": "/b", "subPath": "x"}],
                "livenessProbe": {"httpGet": {"path": "/", "port": "http", "scheme": "HTTP"}, "successThreshold": 1},
                "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}}}]});
        assert_eq!(problems(&spec), Vec::<String>::new());
    }

    #[test]
    fn each_problem_is_worded_as_kubernetes_words_it() {
        let container = |more: Value| {
            let mut container = json!({"name": "c", "image": "x"});
            for (key, value) in more.as_object().cloned().unwrap_or_default() {
                container[key.as_str()] = value;
            }
            json!({"containers": [container]})
        };
        for (spec, expected) in [
            (json!({}), "spec.containers: Required value"),
            (
                json!({"containers": [{"image": "x"}]}),
                "spec.containers[0].name: Required value",
            ),
            (
                json!({"containers": [{"name": "c"}]}),
                "spec.containers[0].image: Required value",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x"}], "initContainers": [{"name": "c", "image": "x"}]}),
                "spec.initContainers[0].name: Duplicate value: \"c\"",
            ),
            (
                container(json!({"imagePullPolicy": "Often"})),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
            ),
            (
                container(json!({"ports": [{"containerPort": 70000, "protocol": "TCP"}]})),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                container(json!({"ports": [{"protocol": "TCP"}]})),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                container(json!({"ports": [{"containerPort": 1, "protocol": "X"}]})),
                "spec.containers[0].ports[0].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \
                 \"UDP\"",
            ),
            (
                container(json!({"ports": [{"containerPort": 1, "name": "12"}]})),
                "spec.containers[0].ports[0].name: Invalid value: \"12\": must contain at least one letter (a-z)",
            ),
            (
                container(
                    json!({"ports": [{"containerPort": 1, "name": "a"}, {"containerPort": 2, "name": "a"}]}),
                ),
                "spec.containers[0].ports[1].name: Duplicate value: \"a\"",
            ),
            (
                container(json!({"volumeMounts": [{"name": "v", "mountPath": "/x"}]})),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                container(json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {}}}]})),
                "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
            ),
            (
                container(json!({"livenessProbe": {}})),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                container(json!({"livenessProbe": {"exec": {"command": ["x"]}, "successThreshold": 2}})),
                "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
            ),
            (
                container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x"}], "volumes": [{"name": "v"}]}),
                "spec.volumes[0]: Required value: must specify a volume type",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x"}],
                    "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}}]}),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x"}], "restartPolicy": "Maybe"}),
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \"Never\"",
            ),
            (
                json!({"containers": [{"name": "c", "image": "x"}], "tolerations": [{"key": "a", "tolerationSeconds": 1}]}),
                "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
            ),
        ] {
            assert_eq!(problems(&spec), [expected], "{spec}");
        }
    }
}
