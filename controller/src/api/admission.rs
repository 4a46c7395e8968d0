//! What the server adds to objects because of who writes them or what they are.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

mod priority;

use super::status::ApiError;
use super::{Call, objects};
use crate::auth::signing;
use crate::resources::{Resource, Subresource};

/// On creation, before validation.
pub(super) fn on_create(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    if call.resource.storage == "certificates.k8s.io/certificatesigningrequests" {
        let spec = &mut object["spec"];
        spec["username"] = json!(call.identity.user);
        spec["groups"] = json!(call.identity.groups);
        let now = objects::timestamp(call.now);
        signing::approve_and_sign(&call.server.authority, &call.identity, object, &now)
            .map_err(|error| ApiError::bad_request(format!("spec.request: {error}")))?;
    }
    if call.resource.storage == "pods" {
        let seconds = call.server.limits.toleration_seconds;
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            tolerate(&mut object["spec"], key, seconds);
        }
        priority::of_pod(call, object)?;
        hold_back_if_gated(call, object);
    }
    if call.resource.storage == "scheduling.k8s.io/priorityclasses" {
        priority::only_default(call, object)?;
    }
    Ok(())
}

/// A pod that must not be scheduled yet says so from the start.
fn hold_back_if_gated(call: &Call, pod: &mut Value) {
    if pod["spec"]["schedulingGates"]
        .as_array()
        .is_some_and(|gates| !gates.is_empty())
    {
        pod["status"]["conditions"] = json!([{
            "type": "PodScheduled",
            "status": "False",
            "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
            "lastProbeTime": null,
            "lastTransitionTime": objects::timestamp(call.now),
        }]);
    }
}

/// A pod outlives the loss of its node by this long unless it says otherwise.
fn tolerate(spec: &mut Value, key: &str, seconds: u64) {
    let tolerated = |toleration: &Value| {
        let about = toleration["key"].as_str().unwrap_or_default();
        let effect = toleration["effect"].as_str().unwrap_or_default();
        (about == key || about.is_empty()) && (effect == "NoExecute" || effect.is_empty())
    };
    let wanted =
        json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
    match spec["tolerations"].as_array_mut() {
        Some(list) if list.iter().any(tolerated) => {}
        Some(list) => list.push(wanted),
        None => spec["tolerations"] = json!([wanted]),
    }
}

/// On every write.
pub(super) fn on_write(resource: &Resource, object: &mut Value) {
    if resource.storage == "secrets" {
        fold_string_data(object);
    }
    if resource.storage == crate::custom::DEFINITIONS {
        super::definitions::keep_stored_versions(object);
    }
}

/// On a change, once what may not change was put back.
pub(super) fn on_change(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    if call.resource.storage == "scheduling.k8s.io/priorityclasses" {
        priority::only_default(call, object)?;
    }
    if call.resource.subresource(&call.path.subresource) == Some(Subresource::Approval) {
        signing::sign_approved(&call.server.authority, object)
            .map_err(|error| ApiError::bad_request(format!("spec.request: {error}")))?;
    }
    Ok(())
}

/// Plain values of a Secret become encoded ones.
fn fold_string_data(secret: &mut Value) {
    let Some(fields) = secret.as_object_mut() else {
        return;
    };
    let Some(plain) = fields.remove("stringData") else {
        return;
    };
    for (key, value) in plain.as_object().into_iter().flatten() {
        let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
        secret["data"][key.as_str()] = json!(encoded);
    }
}
