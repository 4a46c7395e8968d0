//! Roles and to whom they are given.

use serde_json::{Value, json};

use super::{Problems, is_set, items, label_selector, path_segment_problem, subdomain_problem, text};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a Role.
pub(crate) fn role(role: &Value, _old: Option<&Value>, problems: &mut Problems) {
    rules(role, true, problems);
}

/// Checks a ClusterRole.
pub(crate) fn cluster_role(role: &Value, _old: Option<&Value>, problems: &mut Problems) {
    rules(role, false, problems);
    let aggregation = &role["aggregationRule"];
    if aggregation.is_object() {
        let at = "aggregationRule.clusterRoleSelectors";
        let selectors = &aggregation["clusterRoleSelectors"];
        if selectors.as_array().is_none_or(Vec::is_empty) {
            problems.required(
                at,
                "at least one clusterRoleSelector required if aggregationRule is non-nil",
            );
        }
        for (field, selector) in items(selectors, at) {
            label_selector(selector, &field, problems);
        }
    }
}

fn rules(role: &Value, namespaced: bool, problems: &mut Problems) {
    for (at, rule) in items(&role["rules"], "rules") {
        let empty = |key: &str| rule[key].as_array().is_none_or(Vec::is_empty);
        if empty("verbs") {
            problems.required(&format!("{at}.verbs"), "verbs must contain at least one value");
        }
        let (urls, field) = (&rule["nonResourceURLs"], format!("{at}.nonResourceURLs"));
        if !empty("nonResourceURLs") {
            if namespaced {
                let detail = "namespaced rules cannot apply to non-resource URLs";
                problems.invalid(&field, urls, detail);
            }
            if ["apiGroups", "resources", "resourceNames"]
                .iter()
                .any(|key| !empty(key))
            {
                let detail = "rules cannot apply to both regular resources and non-resource URLs";
                problems.invalid(&field, urls, detail);
            }
            continue;
        }
        for (key, noun) in [("apiGroups", "api group"), ("resources", "resource")] {
            if empty(key) {
                let detail = format!("resource rules must supply at least one {noun}");
                problems.required(&format!("{at}.{key}"), &detail);
            }
        }
    }
}

/// Checks a RoleBinding.
pub(crate) fn role_binding(binding: &Value, old: Option<&Value>, problems: &mut Problems) {
    self::binding(binding, old, true, problems);
}

/// Checks a ClusterRoleBinding.
pub(crate) fn cluster_role_binding(binding: &Value, old: Option<&Value>, problems: &mut Problems) {
    self::binding(binding, old, false, problems);
}

fn binding(binding: &Value, old: Option<&Value>, namespaced: bool, problems: &mut Problems) {
    let role = &binding["roleRef"];
    if role["apiGroup"] != GROUP {
        problems.not_supported("roleRef.apiGroup", &json!(text(&role["apiGroup"])), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced {
        &["Role", "ClusterRole"]
    } else {
        &["ClusterRole"]
    };
    if !kinds.contains(&text(&role["kind"])) {
        problems.not_supported("roleRef.kind", &json!(text(&role["kind"])), kinds);
    }
    let name = &role["name"];
    if !is_set(name) {
        problems.required("roleRef.name", "");
    } else if let Some(problem) = path_segment_problem(text(name)) {
        problems.invalid("roleRef.name", name, &problem);
    }
    for (at, subject) in items(&binding["subjects"], "subjects") {
        self::subject(subject, &at, namespaced, problems);
    }
    if let Some(old) = old
        && old["roleRef"] != *role
    {
        problems.invalid("roleRef", role, "cannot change roleRef");
    }
}

fn subject(subject: &Value, at: &str, namespaced: bool, problems: &mut Problems) {
    let (name, group) = (&subject["name"], &subject["apiGroup"]);
    if !is_set(name) {
        problems.required(&format!("{at}.name"), "");
    }
    let expected = match text(&subject["kind"]) {
        "ServiceAccount" => {
            if is_set(name)
                && let Some(problem) = subdomain_problem(text(name))
            {
                problems.invalid(&format!("{at}.name"), name, &problem);
            }
            if !namespaced && !is_set(&subject["namespace"]) {
                problems.required(&format!("{at}.namespace"), "");
            }
            ""
        }
        "User" | "Group" => GROUP,
        _ => {
            let kinds = ["ServiceAccount", "User", "Group"];
            problems.not_supported(&format!("{at}.kind"), &json!(text(&subject["kind"])), &kinds);
            return;
        }
    };
    if text(group) != expected {
        problems.not_supported(&format!("{at}.apiGroup"), &json!(text(group)), &[expected]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn roles_are_checked_as_kubernetes_does() {
        let with = |rule: Value| json!({"rules": [rule]});
        let pods = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        let health = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]});
        assert!(said(role, &with(pods), None).is_empty());
        assert!(said(cluster_role, &with(health.clone()), None).is_empty());
        for (rule, expected) in [
            (
                json!({"apiGroups": [""], "resources": ["pods"]}),
                "rules[0].verbs: Required value: verbs must contain at least one value",
            ),
            (
                json!({"verbs": ["get"], "resources": ["pods"]}),
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
            ),
            (
                json!({"verbs": ["get"], "apiGroups": [""]}),
                "rules[0].resources: Required value: resource rules must supply at least one resource",
            ),
            (
                health,
                "rules[0].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource URLs",
            ),
        ] {
            assert_eq!(said(role, &with(rule), None), [expected]);
        }
    }

    #[test]
    fn bindings_are_checked_as_kubernetes_does() {
        let to = |kind: &str, subject: Value| json!({"roleRef": {"apiGroup": GROUP, "kind": kind, "name": "r"}, "subjects": [subject]});
        let user = json!({"kind": "User", "name": "u", "apiGroup": GROUP});
        assert!(said(role_binding, &to("Role", user.clone()), None).is_empty());
        for (object, expected) in [
            (
                to("Role", user.clone()),
                "roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\"",
            ),
            (
                to("ClusterRole", json!({"kind": "ServiceAccount", "name": "s"})),
                "subjects[0].namespace: Required value",
            ),
            (
                to("ClusterRole", json!({"kind": "Robot", "name": "s"})),
                "subjects[0].kind: Unsupported value: \"Robot\": supported values: \"ServiceAccount\", \"User\", \"Group\"",
            ),
            (
                to("ClusterRole", json!({"kind": "User", "name": "s"})),
                "subjects[0].apiGroup: Unsupported value: \"\": supported values: \"rbac.authorization.k8s.io\"",
            ),
        ] {
            assert_eq!(said(cluster_role_binding, &object, None), [expected]);
        }
        let changed = said(
            role_binding,
            &to("Role", user.clone()),
            Some(&to("ClusterRole", user)),
        );
        assert!(changed[0].ends_with(": cannot change roleRef"), "{changed:?}");
    }
}
