//! What objects use of what a ResourceQuota may bound. Pure: the API server charges by it and the quota controller counts by it,
//! so both come to the same amounts.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::quantity::Quantity;

/// Amounts of resources by name.
pub type Amounts = BTreeMap<String, Quantity>;

/// Requests that a container must make, or limits it must have, where a quota bounds them.
const EXPLICIT: &[&str] = &[
    "cpu",
    "limits.cpu",
    "limits.memory",
    "memory",
    "requests.cpu",
    "requests.memory",
];

/// The name under which objects of a kind are counted: `count/deployments.apps`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() {
        format!("count/{plural}")
    } else {
        format!("count/{plural}.{group}")
    }
}

/// What an object of the kind uses.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    let mut used = Amounts::new();
    let mut add = |name: &str, amount: Quantity| {
        let entry = used.entry(name.to_owned()).or_insert(Quantity::ZERO);
        *entry += amount;
    };
    let one = Quantity::from_units(1);
    add(&count_name(group, plural), one);
    if !group.is_empty() {
        return used;
    }
    match plural {
        "pods" if counts(object, now) => {
            add("pods", one);
            let (requests, limits) = pod_resources(&object["spec"]);
            for (name, amount) in requests {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage")
                    || name.starts_with("hugepages-")
                {
                    add(&name, amount);
                }
                add(&format!("requests.{name}"), amount);
            }
            for (name, amount) in limits {
                if matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                    add(&format!("limits.{name}"), amount);
                }
            }
        }
        "services" => {
            add("services", one);
            let spec = &object["spec"];
            let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
            let numbered = ports
                .iter()
                .filter(|port| port["nodePort"].as_i64().unwrap_or_default() != 0);
            let on_nodes = match spec["type"].as_str() {
                Some("LoadBalancer") if spec["allocateLoadBalancerNodePorts"] == false => numbered.count(),
                Some("NodePort" | "LoadBalancer") => ports.len(),
                _ => 0,
            };
            add("services.nodeports", units(on_nodes));
            add(
                "services.loadbalancers",
                units(usize::from(spec["type"] == "LoadBalancer")),
            );
        }
        "persistentvolumeclaims" => {
            let spec = &object["spec"];
            let former = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
            let class = former
                .as_str()
                .or_else(|| spec["storageClassName"].as_str())
                .unwrap_or_default();
            let storage = quantity(&spec["resources"]["requests"]["storage"]);
            add("persistentvolumeclaims", one);
            add("requests.storage", storage);
            if !class.is_empty() {
                add(
                    &format!("{class}.storageclass.storage.k8s.io/requests.storage"),
                    storage,
                );
                add(
                    &format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"),
                    one,
                );
            }
        }
        "configmaps" | "replicationcontrollers" | "resourcequotas" | "secrets" => add(plural, one),
        _ => {}
    }
    used
}

fn units(count: usize) -> Quantity {
    Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX))
}

fn quantity(value: &Value) -> Quantity {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(Quantity::ZERO)
}

/// Whether a pod still uses anything: it has not ended, and its time to go has not passed.
fn counts(pod: &Value, now: Timestamp) -> bool {
    if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
        return false;
    }
    let metadata = &pod["metadata"];
    let end = metadata["deletionTimestamp"]
        .as_str()
        .and_then(|time| time.parse::<Timestamp>().ok());
    let grace = SignedDuration::from_secs(
        metadata["deletionGracePeriodSeconds"]
            .as_i64()
            .unwrap_or_default(),
    );
    // The deletion's time has the grace period in it; as long again is given to a node that is slow.
    end.is_none_or(|end| end.checked_add(grace).is_ok_and(|last| now <= last))
}

/// What a pod requests and is limited to: its containers together, or its greediest init container, and its overhead.
pub fn pod_resources(spec: &Value) -> (Amounts, Amounts) {
    let sum = |part: &str| {
        let mut running = Amounts::new();
        for container in items(&spec["containers"]) {
            add_all(&mut running, &container["resources"][part]);
        }
        let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
        for container in items(&spec["initContainers"]) {
            let mut at_its_time = sidecars.clone();
            add_all(&mut at_its_time, &container["resources"][part]);
            if container["restartPolicy"] == "Always" {
                add_all(&mut running, &container["resources"][part]);
                sidecars.clone_from(&at_its_time);
            }
            take_greater(&mut most, at_its_time);
        }
        take_greater(&mut running, most);
        // Overhead counts against limits that are set, and against all requests.
        for (name, amount) in spec["overhead"].as_object().into_iter().flatten() {
            if part == "requests" || running.contains_key(name) {
                let entry = running.entry(name.clone()).or_insert(Quantity::ZERO);
                *entry += quantity(amount);
            }
        }
        running
    };
    (sum("requests"), sum("limits"))
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

fn add_all(amounts: &mut Amounts, more: &Value) {
    for (name, amount) in more.as_object().into_iter().flatten() {
        let entry = amounts.entry(name.clone()).or_insert(Quantity::ZERO);
        *entry += quantity(amount);
    }
}

fn take_greater(amounts: &mut Amounts, others: Amounts) {
    for (name, other) in others {
        let entry = amounts.entry(name).or_insert(other);
        *entry = (*entry).max(other);
    }
}

/// Whether a quota's scopes take in an object; other things than pods have none.
pub fn in_scope(quota: &Value, plural: &str, object: &Value) -> bool {
    let spec = &quota["spec"];
    let scopes =
        items(&spec["scopes"]).map(|scope| (scope.as_str().unwrap_or_default(), "Exists", &Value::Null));
    let terms = items(&spec["scopeSelector"]["matchExpressions"]).map(|term| {
        let operator = term["operator"].as_str().unwrap_or_default();
        (
            term["scopeName"].as_str().unwrap_or_default(),
            operator,
            &term["values"],
        )
    });
    scopes.chain(terms).all(|(scope, operator, values)| {
        plural == "pods" && pod_in_scope(&object["spec"], scope, operator, values)
    })
}

fn pod_in_scope(spec: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let terminating = spec["activeDeadlineSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds >= 0);
    let best_effort = || crate::resources::qos_class(spec) == "BestEffort";
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = spec["priorityClassName"].as_str().unwrap_or_default();
            let named = items(values).any(|value| value == class);
            match operator {
                "In" => !class.is_empty() && named,
                "NotIn" => !named,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(&spec["affinity"]),
        _ => false,
    }
}

/// Whether a pod has affinity terms about the pods of other namespaces.
fn crosses_namespaces(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required = items(&affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"]);
        let preferred = items(&affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"]);
        let mut terms = required.chain(preferred.map(|term| &term["podAffinityTerm"]));
        terms.any(|term| items(&term["namespaces"]).next().is_some() || !term["namespaceSelector"].is_null())
    })
}

/// The names that a quota's status bounds.
pub fn amounts(value: &Value) -> Amounts {
    let fields = value.as_object().into_iter().flatten();
    fields
        .map(|(name, amount)| (name.clone(), quantity(amount)))
        .collect()
}

/// What containers of a pod lack that a quota needs to be told: `must specify cpu for: web`.
pub fn unsaid<'a>(bounded: impl Iterator<Item = &'a str>, spec: &Value) -> Option<String> {
    let needed: BTreeSet<&str> = bounded.filter(|name| EXPLICIT.contains(name)).collect();
    let all = || items(&spec["containers"]).chain(items(&spec["initContainers"]));
    let lacks = |container: &Value, name: &str| {
        let (part, resource) = match name.split_once('.') {
            Some((part, resource)) => (part, resource),
            None => ("requests", name),
        };
        container["resources"][part][resource].is_null()
    };
    let missing: Vec<_> = needed
        .into_iter()
        .filter_map(|name| {
            let containers = all().filter(|container| lacks(container, name));
            let names: BTreeSet<_> = containers
                .filter_map(|container| container["name"].as_str())
                .collect();
            let names: Vec<_> = names.into_iter().collect();
            (!names.is_empty()).then(|| format!("{name} for: {}", names.join(",")))
        })
        .collect();
    (!missing.is_empty()).then(|| format!("must specify {}", missing.join("; ")))
}

/// What has been used once `change` is added to what a quota's status says; `Ok(None)` if the quota does not bound it.
///
/// # Errors
/// Says in Kubernetes' words by what the quota would be exceeded.
pub fn charge(quota: &Value, change: &Amounts) -> Result<Option<Amounts>, String> {
    let (hard, mut used) = (
        amounts(&quota["status"]["hard"]),
        amounts(&quota["status"]["used"]),
    );
    let bounded: Amounts = change
        .iter()
        .filter(|(name, amount)| hard.contains_key(*name) && !amount.is_zero())
        .map(|(name, amount)| (name.clone(), *amount))
        .collect();
    if bounded.is_empty() {
        return Ok(None);
    }
    let mut exceeded = Vec::new();
    for (name, amount) in &bounded {
        let entry = used.entry(name.clone()).or_insert(Quantity::ZERO);
        if !amount.is_negative() && *entry + *amount > hard[name] {
            exceeded.push((name, *amount, *entry));
        }
        *entry += *amount;
    }
    if exceeded.is_empty() {
        return Ok(Some(used));
    }
    let print = |amount: &dyn Fn(&(&String, Quantity, Quantity)) -> Quantity| {
        let texts: Vec<_> = exceeded
            .iter()
            .map(|entry| format!("{}={}", entry.0, amount(entry)))
            .collect();
        texts.join(",")
    };
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        print(&|entry| entry.1),
        print(&|entry| entry.2),
        print(&|entry| hard[entry.0]),
    ))
}

/// Amounts as an object has them.
pub fn printed(amounts: &Amounts) -> Value {
    amounts
        .iter()
        .map(|(name, amount)| (name.clone(), Value::from(amount.to_string())))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Timestamp {
        "2025-01-01T00:00:00Z".parse().unwrap()
    }

    fn used(group: &str, plural: &str, object: &Value) -> Value {
        printed(&usage(group, plural, object, now()))
    }

    #[test]
    fn usage_is_counted_as_kubernetes_counts_it() {
        let container = |cpu: &str, limit: &str| json!({"resources": {"requests": {"cpu": cpu, "nvidia.com/gpu": "1"}, "limits": {"memory": limit}}});
        let mut sidecar = container("100m", "1Mi");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"containers": [container("200m", "10Mi"), container("300m", "10Mi")],
            "initContainers": [sidecar, container("2", "5Mi")], "overhead": {"cpu": "10m"}});
        let pod = json!({"spec": spec});
        assert_eq!(
            used("", "pods", &pod),
            json!({"count/pods": "1", "pods": "1", "cpu": "2110m", "requests.cpu": "2110m", "requests.nvidia.com/gpu": "3",
                "limits.memory": "21Mi"})
        );
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}});
        assert_eq!(used("", "pods", &ended), json!({"count/pods": "1"}));
        let overdue = json!({"metadata": {"deletionTimestamp": "2024-12-31T23:59:00Z", "deletionGracePeriodSeconds": 30}, "spec": {}});
        assert_eq!(used("", "pods", &overdue), json!({"count/pods": "1"}));
        let ports = json!([{"port": 1, "nodePort": 30000}, {"port": 2}]);
        assert_eq!(
            used(
                "",
                "services",
                &json!({"spec": {"type": "LoadBalancer", "ports": ports}})
            ),
            json!({"count/services": "1", "services": "1", "services.nodeports": "2", "services.loadbalancers": "1"})
        );
        let claim =
            json!({"spec": {"storageClassName": "fast", "resources": {"requests": {"storage": "2Gi"}}}});
        assert_eq!(
            used("", "persistentvolumeclaims", &claim),
            json!({"count/persistentvolumeclaims": "1", "persistentvolumeclaims": "1", "requests.storage": "2Gi",
                "fast.storageclass.storage.k8s.io/requests.storage": "2Gi",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1"})
        );
        assert_eq!(
            used("apps", "deployments", &json!({})),
            json!({"count/deployments.apps": "1"})
        );
    }

    #[test]
    fn scopes_choose_pods() {
        let scoped = |scope: &str| json!({"spec": {"scopes": [scope]}});
        let pod = |spec: Value| json!({"spec": spec});
        let small = pod(json!({"containers": [{}]}));
        let timed = pod(
            json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}], "activeDeadlineSeconds": 5}),
        );
        for (scope, of_small, of_timed) in [
            ("BestEffort", true, false),
            ("NotBestEffort", false, true),
            ("Terminating", false, true),
            ("NotTerminating", true, false),
        ] {
            assert_eq!(in_scope(&scoped(scope), "pods", &small), of_small, "{scope}");
            assert_eq!(in_scope(&scoped(scope), "pods", &timed), of_timed, "{scope}");
        }
        assert!(!in_scope(&scoped("BestEffort"), "services", &json!({})));
        assert!(in_scope(&json!({"spec": {}}), "services", &json!({})));
        let class = json!({"spec": {"scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}}});
        assert!(in_scope(
            &class,
            "pods",
            &pod(json!({"priorityClassName": "high"}))
        ));
        assert!(!in_scope(
            &class,
            "pods",
            &pod(json!({"priorityClassName": "low"}))
        ));
        assert!(!in_scope(&class, "pods", &small));
    }

    #[test]
    fn charges_are_refused_as_kubernetes_refuses_them() {
        let quota = json!({"metadata": {"name": "q"}, "status": {
            "hard": {"pods": "2", "requests.cpu": "1"}, "used": {"pods": "1", "requests.cpu": "800m"}}});
        let change = |pods: i64, cpu: i64| {
            Amounts::from([
                ("pods".to_owned(), Quantity::from_units(pods)),
                ("requests.cpu".to_owned(), Quantity::from_millis(cpu)),
                ("x".to_owned(), Quantity::from_units(1)),
            ])
        };
        let charged = charge(&quota, &change(1, 200)).unwrap().unwrap();
        assert_eq!(printed(&charged), json!({"pods": "2", "requests.cpu": "1"}));
        assert_eq!(
            charge(&quota, &change(1, 300)).unwrap_err(),
            "exceeded quota: q, requested: requests.cpu=300m, used: requests.cpu=800m, limited: requests.cpu=1"
        );
        assert_eq!(
            charge(&quota, &change(2, 300)).unwrap_err(),
            "exceeded quota: q, requested: pods=2,requests.cpu=300m, used: pods=1,requests.cpu=800m, limited: pods=2,requests.cpu=1"
        );
        assert!(
            charge(
                &quota,
                &Amounts::from([("y".to_owned(), Quantity::from_units(1))])
            )
            .unwrap()
            .is_none()
        );
    }

    #[test]
    fn containers_must_say_what_a_quota_bounds() {
        let spec =
            json!({"containers": [{"name": "b"}, {"name": "a", "resources": {"requests": {"cpu": "1"}}}]});
        let bounded = ["pods", "requests.cpu", "limits.memory"];
        assert_eq!(
            unsaid(bounded.into_iter(), &spec).unwrap(),
            "must specify limits.memory for: a,b; requests.cpu for: b"
        );
        assert_eq!(unsaid(["pods"].into_iter(), &spec), None);
    }
}
