//! LimitRanges: what pods get that ask for nothing, and the bounds of what they and claims may ask for.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::api::status::ApiError;
use crate::api::{Call, objects};
use crate::quantity::Quantity;
use crate::quota::{Amounts, amounts, pod_resources};

const RANGES: &str = "limitranges";
/// Says what a pod was given.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The limits of the namespace, in the order of their ranges' names.
fn limits(call: &Call) -> Vec<Value> {
    let store = &call.server.store;
    if store.count(RANGES) == 0 {
        return Vec::new();
    }
    let ranges = store.list(RANGES, &format!("{}/", call.path.namespace)).items;
    let limits = ranges
        .iter()
        .flat_map(|range| match range.value()["spec"]["limits"].take() {
            Value::Array(limits) => limits,
            _ => Vec::new(),
        });
    limits.collect()
}

/// Gives a new pod's containers what they do not ask for themselves.
pub(super) fn fill(call: &Call, pod: &mut Value) {
    for limit in limits(call).iter().filter(|limit| limit["type"] == "Container") {
        fill_pod(limit, pod);
    }
}

fn fill_pod(limit: &Value, pod: &mut Value) {
    let mut set = Vec::new();
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            fill_container(limit, container, list == "initContainers", &mut set);
        }
    }
    if !set.is_empty() {
        pod["metadata"]["annotations"][ANNOTATION] =
            json!(format!("LimitRanger plugin set: {}", set.join("; ")));
    }
}

fn fill_container(limit: &Value, container: &mut Value, init: bool, set: &mut Vec<String>) {
    let name = container["name"].as_str().unwrap_or_default().to_owned();
    let noun = if init { "init container" } else { "container" };
    // Who sets a limit alone requests as much; that comes before any default request.
    let own_limits = container["resources"]["limits"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    for (part, defaults, what) in [
        ("requests", "defaultRequest", "request"),
        ("limits", "default", "limit"),
    ] {
        let mut given = Vec::new();
        for (resource, amount) in limit[defaults].as_object().into_iter().flatten() {
            let stands = !container["resources"][part][resource].is_null();
            if stands || (part == "requests" && own_limits.contains_key(resource)) {
                continue;
            }
            let resources = container["resources"].as_object_mut();
            let Some(resources) = resources else {
                container["resources"] = json!({part: {resource: amount}});
                given.push(resource.as_str());
                continue;
            };
            let entry = resources.entry(part).or_insert_with(|| Value::Object(Map::new()));
            if !entry.is_object() {
                *entry = Value::Object(Map::new());
            }
            entry[resource] = amount.clone();
            given.push(resource);
        }
        if !given.is_empty() {
            set.push(format!("{} {what} for {noun} {name}", given.join(", ")));
        }
    }
    // Looking for an absent field must not leave a null behind.
    if let Some(resources) = container["resources"].as_object_mut() {
        resources.retain(|_, value| !value.is_null());
    }
}

/// Refuses pods and claims that ask for less or more than they may.
pub(in crate::api) fn check(call: &Call, object: &Value) -> Result<(), ApiError> {
    let kind = call.resource.storage;
    if !matches!(kind, "pods" | "persistentvolumeclaims") {
        return Ok(());
    }
    let mut problems = Vec::new();
    for limit in &limits(call) {
        if kind == "pods" {
            pod_problems(limit, &object["spec"], &mut problems);
        } else if limit["type"] == "PersistentVolumeClaim" {
            let requests = amounts(&object["spec"]["resources"]["requests"]);
            claim_problems(limit, &requests, &mut problems);
        }
    }
    let mut seen = BTreeSet::new();
    problems.retain(|problem| seen.insert(problem.clone()));
    let why = match problems.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Err(ApiError::forbidden(&call.resource, objects::name(object), &why))
}

fn pod_problems(limit: &Value, spec: &Value, problems: &mut Vec<String>) {
    match limit["type"].as_str() {
        Some("Container") => {
            for list in ["containers", "initContainers"] {
                for container in spec[list].as_array().into_iter().flatten() {
                    let resources = &container["resources"];
                    let (requests, limits) = (amounts(&resources["requests"]), amounts(&resources["limits"]));
                    bounds("Container", limit, &requests, &limits, problems);
                }
            }
        }
        Some("Pod") => {
            let (requests, limits) = pod_resources(spec);
            bounds("Pod", limit, &requests, &limits, problems);
        }
        _ => {}
    }
}

fn bounds(kind: &str, limit: &Value, requests: &Amounts, limits: &Amounts, problems: &mut Vec<String>) {
    for (name, least) in amounts(&limit["min"]) {
        let head = format!("minimum {name} usage per {kind} is {least}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => problems.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < least => {
                problems.push(format!("{head}, but request is {request}"));
            }
            (_, Some(limit)) if *limit < least => problems.push(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, most) in amounts(&limit["max"]) {
        let head = format!("maximum {name} usage per {kind} is {most}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => problems.push(format!("{head}.  No limit is specified")),
            (_, Some(limit)) if *limit > most => problems.push(format!("{head}, but limit is {limit}")),
            (Some(request), _) if *request > most => {
                problems.push(format!("{head}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, ratio) in amounts(&limit["maxLimitRequestRatio"]) {
        let head = format!("{name} max limit to request ratio per {kind} is {ratio}");
        let given = |amounts: &Amounts| amounts.get(&name).copied().filter(|amount| !amount.is_zero());
        match (given(requests), given(limits)) {
            (None, _) => problems.push(format!("{head}, but no request is specified or request is 0")),
            (_, None) => problems.push(format!("{head}, but no limit is specified or limit is 0")),
            (Some(request), Some(limit)) => {
                let is = limit.as_f64() / request.as_f64();
                if is > ratio.as_f64() {
                    problems.push(format!("{head}, but provided ratio is {is:.6}"));
                }
            }
        }
    }
}

fn claim_problems(limit: &Value, requests: &Amounts, problems: &mut Vec<String>) {
    let mut check = |bound: &str, word: &str, outside: fn(&Quantity, &Quantity) -> bool| {
        for (name, value) in amounts(&limit[bound]) {
            let head = format!("{word} {name} usage per PersistentVolumeClaim is {value}");
            match requests.get(&name) {
                None => problems.push(format!("{head}.  No request is specified")),
                Some(request) if outside(request, &value) => {
                    problems.push(format!("{head}, but request is {request}"));
                }
                Some(_) => {}
            }
        }
    };
    check("min", "minimum", |request, least| request < least);
    check("max", "maximum", |request, most| request > most);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_get_what_they_do_not_ask_for() {
        let limit = json!({"type": "Container", "default": {"cpu": "500m", "memory": "64Mi"}, "defaultRequest": {"cpu": "100m", "memory": "32Mi"}});
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Mi"}}}]}});
        fill_pod(&limit, &mut pod);
        assert_eq!(
            pod["spec"]["containers"],
            json!([
                {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}}},
                {"name": "b", "resources": {"requests": {"memory": "1Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}}},
            ])
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu, memory request for container a; cpu, memory limit for container a; memory limit for container b"
        );
        let full = pod.clone();
        fill_pod(&limit, &mut pod);
        assert_eq!(pod, full);
    }

    #[test]
    fn bounds_are_worded_as_kubernetes_words_them() {
        let check = |limit: Value, containers: Value| {
            let mut problems = Vec::new();
            pod_problems(&limit, &json!({"containers": containers}), &mut problems);
            problems
        };
        let asks = |cpu: &str, limit: &str| json!({"resources": {"requests": {"cpu": cpu}, "limits": {"cpu": limit}}});
        for (limit, containers, expected) in [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!([asks("1", "1")]),
                None,
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!([asks("1", "2")]),
                Some("maximum cpu usage per Container is 1, but limit is 2"),
            ),
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!([{}]),
                Some("maximum cpu usage per Container is 1.  No limit is specified"),
            ),
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                json!([asks("50m", "1")]),
                Some("minimum cpu usage per Container is 100m, but request is 50m"),
            ),
            (
                json!({"type": "Pod", "max": {"cpu": "3"}}),
                json!([asks("1", "2"), asks("1", "2")]),
                Some("maximum cpu usage per Pod is 3, but limit is 4"),
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!([asks("1", "3")]),
                Some("cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000"),
            ),
        ] {
            assert_eq!(check(limit, containers), expected.into_iter().collect::<Vec<_>>());
        }
        let mut problems = Vec::new();
        let range = json!({"min": {"storage": "1Gi"}, "max": {"storage": "2Gi"}});
        claim_problems(&range, &amounts(&json!({"storage": "3Gi"})), &mut problems);
        assert_eq!(
            problems,
            ["maximum storage usage per PersistentVolumeClaim is 2Gi, but request is 3Gi"]
        );
    }
}
