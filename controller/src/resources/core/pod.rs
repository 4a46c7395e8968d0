//! Pods: the status column, what is filled in at creation, what may change later.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resources::{Problems, printing, validation};

pub(super) fn prepare(pod: &mut Value) {
    pod["status"] = json!({"phase": "Pending", "qosClass": qos_class(&pod["spec"])});
}

/// The quality of service that a pod's requests and limits come to.
pub(crate) fn qos_class(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let resources = &container["resources"];
            for name in ["cpu", "memory"] {
                let (request, limit) = (&resources["requests"][name], &resources["limits"][name]);
                any |= !request.is_null() || !limit.is_null();
                guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What of a pod's spec may change after its creation, each in its way.
const MUTABLE: &[&str] = &["activeDeadlineSeconds", "tolerations", "schedulingGates"];

pub(super) fn validate(pod: &Value, old: Option<&Value>, problems: &mut Problems) {
    validation::pod_spec(&pod["spec"], "spec", problems);
    validation::non_negative(pod, "spec.terminationGracePeriodSeconds", problems);
    let Some(old) = old else { return };
    let gated = old["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty());
    let differ = if gated {
        fixed_parts_differ(&but_narrowed(&pod["spec"], &old["spec"]), &old["spec"])
    } else {
        fixed_parts_differ(&pod["spec"], &old["spec"])
    };
    if differ {
        problems.forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
             `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
             `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
    changes(&pod["spec"], &old["spec"], problems);
}

/// Checks how what may change has changed.
fn changes(new: &Value, old: &Value, problems: &mut Problems) {
    let field = "spec.activeDeadlineSeconds";
    match (
        &new["activeDeadlineSeconds"],
        old["activeDeadlineSeconds"].as_i64(),
    ) {
        (given @ Value::Null, Some(_)) => {
            problems.invalid(
                field,
                given,
                "must not update from a positive integer to nil value",
            );
        }
        (given, Some(before)) if given.as_i64() > Some(before) => {
            problems.invalid(field, given, "must be less than or equal to previous value");
        }
        _ => {}
    }
    let list = |spec: &Value, key: &str| spec[key].as_array().cloned().unwrap_or_default();
    let before = list(old, "schedulingGates");
    for gate in list(new, "schedulingGates") {
        if !before.contains(&gate) {
            let name = gate["name"].as_str().unwrap_or_default();
            problems.forbidden(
                "spec.schedulingGates",
                &format!("only deletion is allowed, but found new scheduling gate '{name}'"),
            );
        }
    }
    // How long one lasts may change.
    let lasting = |mut toleration: Value| {
        if toleration["effect"] == "NoExecute"
            && let Some(fields) = toleration.as_object_mut()
        {
            fields.remove("tolerationSeconds");
        }
        toleration
    };
    let after: Vec<_> = list(new, "tolerations").into_iter().map(lasting).collect();
    if list(old, "tolerations")
        .into_iter()
        .any(|old| !after.contains(&lasting(old)))
    {
        problems.forbidden(
            "spec.tolerations",
            "existing toleration can not be modified except its tolerationSeconds",
        );
    }
}

/// Whether two specs differ in what may not change.
fn fixed_parts_differ(a: &Value, b: &Value) -> bool {
    let fixed = |spec: &Value, other: &Value| {
        let fields = spec.as_object().into_iter().flatten();
        fields
            .filter(|(key, _)| !MUTABLE.contains(&key.as_str()))
            .all(|(key, value)| match (key.as_str(), other.get(key)) {
                ("containers" | "initContainers", Some(other)) => same_but_images(value, other),
                (_, other) => other == Some(value),
            })
    };
    !(fixed(a, b) && fixed(b, a))
}

/// The spec of a pod that is held back without what it may be given meanwhile: it may ask for more of its node, not for another.
fn but_narrowed(new: &Value, old: &Value) -> Value {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let mut rest = new.clone();
    let labels = |spec: &Value| spec["nodeSelector"].as_object().cloned().unwrap_or_default();
    let (before, after) = (labels(old), labels(new));
    if before.iter().all(|(key, value)| after.get(key) == Some(value)) {
        put(&mut rest, old, "nodeSelector");
    }
    let terms = |spec: &Value| -> Option<Vec<Value>> {
        let terms = &spec["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"];
        terms.as_array().cloned()
    };
    // Each term is one way to suit; what it asks for may become more.
    let narrowed = |(new, old): (&Value, &Value)| {
        ["matchExpressions", "matchFields"].iter().all(|key| {
            let list = |term: &Value| term[*key].as_array().cloned().unwrap_or_default();
            list(new).starts_with(&list(old))
        })
    };
    let fits = match (terms(new), terms(old)) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(new), Some(old)) => new.len() == old.len() && new.iter().zip(&old).all(narrowed),
    };
    if fits {
        let mut affinity = rest["affinity"].take();
        put(&mut affinity, &old["affinity"], "nodeAffinity");
        if affinity.as_object().is_none_or(serde_json::Map::is_empty) && old["affinity"].is_null() {
            affinity = Value::Null;
        }
        put(&mut rest, &json!({ "affinity": affinity }), "affinity");
    }
    rest
}

/// Makes a field what it is in `from`, absent if it is not there.
fn put(to: &mut Value, from: &Value, key: &str) {
    match &from[key] {
        Value::Null => {
            if let Some(fields) = to.as_object_mut() {
                fields.remove(key);
            }
        }
        value => to[key] = value.clone(),
    }
}

fn same_but_images(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else {
        return a == b;
    };
    let same = |(a, b): (&Value, &Value)| {
        let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
            return a == b;
        };
        let but_image = |(key, _): &(&String, &Value)| *key != "image";
        a.iter().filter(but_image).eq(b.iter().filter(but_image))
    };
    a.len() == b.len() && a.iter().zip(b).all(same)
}

pub(super) fn cells(pod: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let summary = Summary::of(pod);
    let restarts = match summary.last_restart {
        Some(time) if summary.restarts > 0 => {
            let ago = printing::duration(now.as_second() - time.as_second());
            format!("{} ({ago} ago)", summary.restarts)
        }
        _ => summary.restarts.to_string(),
    };
    let ip = status["podIPs"][0]["ip"]
        .as_str()
        .or_else(|| status["podIP"].as_str());
    let gates = spec["readinessGates"]
        .as_array()
        .filter(|gates| !gates.is_empty());
    let gates = gates.map_or_else(
        || "<none>".to_owned(),
        |gates| {
            let conditions = status["conditions"].as_array().map_or(&[][..], Vec::as_slice);
            let met = |gate: &Value| {
                let met = |c: &Value| c["type"] == gate["conditionType"] && c["status"] == "True";
                conditions.iter().any(met)
            };
            format!(
                "{}/{}",
                gates.iter().filter(|gate| met(gate)).count(),
                gates.len()
            )
        },
    );
    vec![
        pod["metadata"]["name"].clone(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        printing::age(pod, now),
        printing::none_if_empty(ip.unwrap_or_default()),
        printing::or_none(&spec["nodeName"]),
        printing::or_none(&status["nominatedNodeName"]),
        gates.into(),
    ]
}

/// What a pod's row says about its containers.
struct Summary {
    ready: usize,
    total: usize,
    restarts: i64,
    last_restart: Option<Timestamp>,
    reason: String,
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let (spec, status) = (&pod["spec"], &pod["status"]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut summary = Self {
            ready: 0,
            total: spec["containers"].as_array().map_or(0, Vec::len),
            restarts: 0,
            last_restart: None,
            reason: text(&status["phase"]),
        };
        if let Some(reason) = status["reason"].as_str().filter(|reason| !reason.is_empty()) {
            reason.clone_into(&mut summary.reason);
        }
        let gated = |c: &Value| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated";
        if status["conditions"]
            .as_array()
            .is_some_and(|list| list.iter().any(gated))
        {
            "SchedulingGated".clone_into(&mut summary.reason);
        }
        let initializing = summary.read_init(spec, status);
        let initialized = |c: &Value| c["type"] == "Initialized" && c["status"] == "True";
        let conditions = status["conditions"].as_array();
        if !initializing || conditions.is_some_and(|list| list.iter().any(initialized)) {
            summary.read_containers(spec, status);
        }
        if pod["metadata"]["deletionTimestamp"].is_string() {
            let lost = status["reason"] == "NodeLost";
            if lost {
                "Unknown".clone_into(&mut summary.reason);
            } else if !matches!(text(&status["phase"]).as_str(), "Succeeded" | "Failed") {
                "Terminating".clone_into(&mut summary.reason);
            }
        }
        summary
    }

    /// Init containers: whether the pod is still at them.
    fn read_init(&mut self, spec: &Value, status: &Value) -> bool {
        let empty = Vec::new();
        let specs = spec["initContainers"].as_array().unwrap_or(&empty);
        self.total += specs
            .iter()
            .filter(|container| container["restartPolicy"] == "Always")
            .count();
        let mut initializing = false;
        for (index, container) in status["initContainerStatuses"]
            .as_array()
            .unwrap_or(&empty)
            .iter()
            .enumerate()
        {
            self.count_restarts(container);
            let state = &container["state"];
            let is_sidecar = is_sidecar(spec, container);
            if is_sidecar && container["ready"] == true {
                self.ready += 1;
            }
            if initializing {
                continue;
            }
            if state["terminated"]["exitCode"] == 0 || (is_sidecar && container["started"] == true) {
                continue;
            }
            initializing = true;
            self.reason = if state["terminated"].is_object() {
                format!("Init:{}", terminated(&state["terminated"]))
            } else {
                match state["waiting"]["reason"].as_str() {
                    Some(reason) if !reason.is_empty() && reason != "PodInitializing" => {
                        format!("Init:{reason}")
                    }
                    _ => format!("Init:{index}/{}", specs.len()),
                }
            };
        }
        initializing
    }

    fn read_containers(&mut self, spec: &Value, status: &Value) {
        let empty = Vec::new();
        // What it took to initialize is over; sidecars go on.
        (self.restarts, self.last_restart) = (0, None);
        let init = status["initContainerStatuses"].as_array().unwrap_or(&empty);
        for container in init.iter().filter(|container| is_sidecar(spec, container)) {
            self.count_restarts(container);
        }
        let mut running = false;
        for container in status["containerStatuses"]
            .as_array()
            .unwrap_or(&empty)
            .iter()
            .rev()
        {
            self.count_restarts(container);
            let state = &container["state"];
            if let Some(reason) = state["waiting"]["reason"]
                .as_str()
                .filter(|reason| !reason.is_empty())
            {
                reason.clone_into(&mut self.reason);
            } else if state["terminated"].is_object() {
                self.reason = terminated(&state["terminated"]);
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            let ready = |c: &Value| c["type"] == "Ready" && c["status"] == "True";
            let ready = status["conditions"]
                .as_array()
                .is_some_and(|list| list.iter().any(ready));
            if ready { "Running" } else { "NotReady" }.clone_into(&mut self.reason);
        }
    }

    fn count_restarts(&mut self, container: &Value) {
        self.restarts += container["restartCount"].as_i64().unwrap_or_default();
        let finished = container["lastState"]["terminated"]["finishedAt"].as_str();
        let finished = finished.and_then(|time| time.parse::<Timestamp>().ok());
        self.last_restart = self.last_restart.max(finished);
    }
}

/// Whether a container of `status.initContainerStatuses` goes on beside the main ones.
fn is_sidecar(spec: &Value, status: &Value) -> bool {
    let specs = spec["initContainers"].as_array().into_iter().flatten();
    specs
        .filter(|container| container["restartPolicy"] == "Always")
        .any(|container| container["name"] == status["name"])
}

fn terminated(state: &Value) -> String {
    match (state["reason"].as_str(), state["signal"].as_i64()) {
        (Some(reason), _) if !reason.is_empty() => reason.to_owned(),
        (_, Some(signal)) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", state["exitCode"].as_i64().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_a_bound_pods_spec_little_may_change() {
        let spec = json!({
            "nodeName": "n", "serviceAccountName": "default", "tolerations": [{"key": "a"}],
            "containers": [{"name": "c", "image": "x", "command": ["y"]}],
        });
        let differs = |change: &dyn Fn(&mut Value)| {
            let mut new = spec.clone();
            change(&mut new);
            [fixed_parts_differ(&new, &spec), fixed_parts_differ(&spec, &new)]
        };
        assert_eq!(differs(&|_| {}), [false; 2]);
        assert_eq!(
            differs(&|spec| spec["containers"][0]["image"] = json!("z")),
            [false; 2]
        );
        assert_eq!(differs(&|spec| spec["initContainers"] = json!([])), [true; 2]);
        assert_eq!(differs(&|spec| spec["tolerations"] = json!([])), [false; 2]);
        assert_eq!(
            differs(&|spec| spec["containers"][0]["command"] = json!([])),
            [true; 2]
        );
        assert_eq!(
            differs(&|spec| spec["containers"][0]["tty"] = json!(true)),
            [true; 2]
        );
        assert_eq!(differs(&|spec| spec["containers"] = json!([])), [true; 2]);
        assert_eq!(
            differs(&|spec| spec["serviceAccountName"] = json!("other")),
            [true; 2]
        );
        assert_eq!(differs(&|spec| spec["hostNetwork"] = json!(true)), [true; 2]);
    }

    #[test]
    fn a_pod_that_is_held_back_may_ask_for_more_of_its_node() {
        let problems = |old: &Value, new: &Value| {
            let mut problems = Problems::default();
            let pod = |spec: &Value| json!({ "spec": spec });
            validate(&pod(new), Some(&pod(old)), &mut problems);
            problems
                .0
                .iter()
                .filter(|problem| problem.field == "spec")
                .count()
        };
        let term = |keys: &[&str]| {
            let all: Vec<_> = keys
                .iter()
                .map(|key| json!({"key": key, "operator": "Exists"}))
                .collect();
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": all}]}}})
        };
        let free = json!({"containers": [{"name": "c", "image": "x"}], "nodeSelector": {"a": "1"}});
        let mut gated = free.clone();
        gated["schedulingGates"] = json!([{"name": "g"}]);
        let with = |key: &str, value: Value| {
            let mut spec = free.clone();
            spec[key] = value;
            spec
        };
        for (new, fine) in [
            (free.clone(), true),
            (with("nodeSelector", json!({"a": "1", "b": "2"})), true),
            (with("nodeSelector", json!({"a": "2"})), false),
            (with("affinity", term(&["x"])), true),
            (with("hostname", json!("h")), false),
        ] {
            assert_eq!(problems(&gated, &new) == 0, fine, "{new}");
            let unchanged = new == free;
            assert_eq!(problems(&free, &new) == 0, unchanged, "{new} of one that is free");
        }
        let mut asks = gated.clone();
        asks["affinity"] = term(&["x"]);
        assert_eq!(problems(&asks, &with("affinity", term(&["x", "y"]))), 0);
        assert_eq!(problems(&asks, &with("affinity", term(&["y"]))), 1);
        assert_eq!(problems(&asks, &free), 1);
    }
}
