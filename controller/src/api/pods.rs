//! The parts of a pod's spec that change through subresources of their own and through nothing else.

use std::borrow::Cow;

use serde_json::{Value, json};

use super::Call;
use super::status::ApiError;
use crate::resources::{Problems, Subresource};

const EPHEMERAL: &str = "ephemeralContainers";

/// The pod as it was, with the ephemeral containers of `new`, which may only become more.
pub(super) fn with_ephemeral_containers_of(call: &Call, old: &Value, new: &Value) -> Result<Value, ApiError> {
    let list = |pod: &Value| pod["spec"][EPHEMERAL].as_array().cloned().unwrap_or_default();
    let (before, after) = (list(old), list(new));
    let mut problems = Problems::default();
    for container in &before {
        let name = &container["name"];
        let what = match after.iter().find(|other| other["name"] == *name) {
            None => "removed",
            Some(other) if other != container => "changed",
            Some(_) => continue,
        };
        let detail = format!("existing ephemeral containers {name} may not be {what}");
        problems.forbidden("spec.ephemeralContainers", &detail);
    }
    if !problems.0.is_empty() {
        return Err(ApiError::invalid(&call.resource, &call.path.name, &problems));
    }
    let mut pod = old.clone();
    if !after.is_empty() {
        pod["spec"][EPHEMERAL] = Value::Array(after);
    }
    Ok(pod)
}

/// The pod as it was, with the containers' resources of `new`.
pub(super) fn with_resources_of(old: &Value, new: &Value) -> Value {
    let mut pod = old.clone();
    for list in ["containers", "initContainers"] {
        let containers = pod["spec"].get_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten() {
            let after = new["spec"][list].as_array().into_iter().flatten();
            let after = after.into_iter().find(|other| other["name"] == container["name"]);
            if let Some(resources) = after.map(|after| &after["resources"]) {
                container["resources"] = if resources.is_null() {
                    json!({})
                } else {
                    resources.clone()
                };
            }
        }
    }
    pod
}

/// The state before a change that validation compares with: what the subresource is there to change is no change.
pub(super) fn before_change<'a>(
    subresource: Option<Subresource>,
    old: &'a Value,
    new: &Value,
) -> Cow<'a, Value> {
    match subresource {
        Some(Subresource::EphemeralContainers) => {
            let mut before = old.clone();
            before["spec"][EPHEMERAL] = new["spec"][EPHEMERAL].clone();
            Cow::Owned(before)
        }
        Some(Subresource::Resize) => Cow::Owned(with_resources_of(old, new)),
        _ => Cow::Borrowed(old),
    }
}
