//! The priority of pods: computed from their class when they are made.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::Call;
use crate::api::objects;
use crate::api::status::ApiError;

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
const PREEMPTS: &str = "PreemptLowerPriority";

/// What a pod gets from its class.
struct Granted {
    class: String,
    priority: i64,
    preemption: String,
}

impl Granted {
    fn by(class: &Value) -> Self {
        Granted {
            class: objects::name(class).to_owned(),
            priority: class["value"].as_i64().unwrap_or_default(),
            preemption: class["preemptionPolicy"].as_str().unwrap_or(PREEMPTS).to_owned(),
        }
    }

    fn without_class() -> Self {
        Granted {
            class: String::new(),
            priority: 0,
            preemption: PREEMPTS.to_owned(),
        }
    }
}

/// The class that pods get which name none; if there are several, the one that grants least.
fn default_class(call: &Call) -> Option<Value> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Rank {
        #[serde(default)]
        global_default: bool,
        #[serde(default)]
        value: i64,
    }
    let classes = call.server.store.list(CLASSES, "").items;
    let ranked = classes.iter().filter_map(|class| {
        let rank: Rank = serde_json::from_slice(class.body()).ok()?;
        rank.global_default.then_some((rank.value, class))
    });
    let (_, class) = ranked.min_by_key(|(value, _)| *value)?;
    Some(class.value())
}

/// Gives a new pod the priority of its class, or of the default class.
pub(super) fn of_pod(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    let name = pod["spec"]["priorityClassName"].as_str().unwrap_or_default();
    let granted = if name.is_empty() {
        default_class(call).map_or_else(Granted::without_class, |class| Granted::by(&class))
    } else {
        let Some(class) = call.server.store.get(CLASSES, name) else {
            let why = format!("no PriorityClass with name {name} was found");
            return Err(ApiError::forbidden(&call.resource, objects::name(pod), &why));
        };
        Granted::by(&class.value())
    };
    grant(&mut pod["spec"], &granted)
        .map_err(|why| ApiError::forbidden(&call.resource, objects::name(pod), &why))
}

fn grant(spec: &mut Value, granted: &Granted) -> Result<(), String> {
    let Granted {
        class,
        priority,
        preemption,
    } = granted;
    if let Some(given) = spec["priority"].as_i64()
        && given != *priority
    {
        return Err(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {priority} from the given PriorityClass name"
        ));
    }
    if let Some(given) = spec["preemptionPolicy"].as_str()
        && given != preemption
    {
        return Err(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {preemption} from the given PriorityClass name"
        ));
    }
    if !class.is_empty() {
        spec["priorityClassName"] = json!(class);
    }
    spec["priority"] = json!(priority);
    spec["preemptionPolicy"] = json!(preemption);
    Ok(())
}

/// Refuses a second default.
pub(super) fn only_default(call: &Call, class: &Value) -> Result<(), ApiError> {
    if class["globalDefault"] != true {
        return Ok(());
    }
    let name = objects::name(class);
    match default_class(call) {
        Some(other) if objects::name(&other) != name => {
            let why = format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                objects::name(&other)
            );
            Err(ApiError::forbidden(&call.resource, name, &why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_gets_what_its_class_grants_and_may_not_claim_more() {
        let class = json!({ "metadata": { "name": "high" }, "value": 1000, "preemptionPolicy": "Never" });
        let granted = Granted::by(&class);
        let mut spec = json!({ "priorityClassName": "high" });
        grant(&mut spec, &granted).unwrap();
        assert_eq!(
            spec,
            json!({ "priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never" })
        );
        grant(&mut spec, &granted).unwrap();
        let why = grant(&mut json!({ "priority": 7 }), &granted).unwrap_err();
        assert!(
            why.starts_with("the integer value of priority (7) must not be provided"),
            "{why}"
        );
        assert!(why.contains("computed 1000 from"), "{why}");
        let why = grant(&mut json!({ "preemptionPolicy": PREEMPTS }), &granted).unwrap_err();
        assert!(
            why.contains("(PreemptLowerPriority)") && why.contains("computed Never"),
            "{why}"
        );
        let mut plain = json!({});
        grant(&mut plain, &Granted::without_class()).unwrap();
        assert_eq!(plain, json!({ "priority": 0, "preemptionPolicy": PREEMPTS }));
    }
}
