//! What the server adds to objects because of who writes them or what they are.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

mod account;
mod priority;

pub(super) mod limits;

use super::status::ApiError;
use super::{Call, objects};
use crate::auth::signing;
use crate::controllers::volumes::FORMER_CLASS;
use crate::controllers::volumes::matching::default_class;
use crate::controllers::volumes::protection::{CLAIM_FINALIZER, VOLUME_FINALIZER};
use crate::quantity::Quantity;
use crate::resources::{self, Resource, Subresource};
use crate::store::Object;

/// On creation, before validation.
pub(super) async fn on_create(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    if call.resource.storage == "certificates.k8s.io/certificatesigningrequests" {
        let spec = &mut object["spec"];
        // Whatever the client says of itself.
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("uid");
            fields.remove("extra");
        }
        spec["username"] = json!(call.identity.user);
        spec["groups"] = json!(call.identity.groups);
        if !call.identity.uid.is_empty() {
            spec["uid"] = json!(call.identity.uid);
        }
        if !call.identity.extra.is_empty() {
            spec["extra"] = json!(call.identity.extra);
        }
        if let Some(why) = signing::refusal(object) {
            return Err(ApiError::forbidden(&call.resource, objects::name(object), &why));
        }
        // A certificate that nobody keeps a record of is not made.
        if !call.query.dry_run() {
            let now = objects::timestamp(call.now);
            let (authority, authorizer) = (&call.server.authority, &call.server.authorizer);
            signing::approve_and_sign(authority, authorizer, &call.identity, object, &now)
                .map_err(|error| ApiError::bad_request(format!("spec.request: {error}")))?;
        }
    }
    match call.resource.storage {
        "networking.k8s.io/ingresses" => class_of_ingress(call, object),
        "persistentvolumeclaims" => claim(call, object),
        "persistentvolumes" => finalize_by(object, VOLUME_FINALIZER),
        _ => {}
    }
    if call.resource.storage == "pods" {
        account::assign(call, object).await?;
        limits::fill(call, object);
        object["status"]["qosClass"] = json!(resources::qos_class(&object["spec"]));
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

/// A claim grows only if its class says that volumes can.
fn growth(call: &Call, claim: &Value, old: &Value) -> Result<(), ApiError> {
    let size = |claim: &Value| {
        let storage = claim["spec"]["resources"]["requests"]["storage"].as_str();
        storage.and_then(|storage| storage.parse::<Quantity>().ok())
    };
    if size(claim) <= size(old) {
        return Ok(());
    }
    let class = claim["spec"]["storageClassName"].as_str().unwrap_or_default();
    let class = call.server.store.get("storage.k8s.io/storageclasses", class);
    if class.is_some_and(|class| class.value()["allowVolumeExpansion"] == true) {
        return Ok(());
    }
    let why = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize";
    Err(ApiError::forbidden(&call.resource, objects::name(claim), why))
}

/// An Ingress of no class is of the default one, the newest of several.
fn class_of_ingress(call: &Call, ingress: &mut Value) {
    let annotation = &ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    if annotation.is_string() || ingress["spec"]["ingressClassName"].is_string() {
        return;
    }
    let classes = call
        .server
        .store
        .list("networking.k8s.io/ingressclasses", "")
        .items;
    let default = classes
        .iter()
        .map(|class| class.value())
        .filter(|class| {
            class["metadata"]["annotations"]["ingressclass.kubernetes.io/is-default-class"] == "true"
        })
        .max_by_key(|class| {
            let text = |key: &str| class["metadata"][key].as_str().unwrap_or_default().to_owned();
            (text("creationTimestamp"), std::cmp::Reverse(text("name")))
        });
    if let Some(class) = default {
        ingress["spec"]["ingressClassName"] = class["metadata"]["name"].clone();
    }
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

/// A claim is kept while a pod uses it, and one that leaves its class to the cluster gets the default.
fn claim(call: &Call, claim: &mut Value) {
    finalize_by(claim, CLAIM_FINALIZER);
    let former = &claim["metadata"]["annotations"][FORMER_CLASS];
    if former.is_string() || claim["spec"]["storageClassName"].is_string() {
        return;
    }
    let classes = call.server.store.list("storage.k8s.io/storageclasses", "").items;
    let typed = |class: Arc<Object>| serde_json::from_slice(class.body()).ok().map(Arc::new);
    let classes: Vec<_> = classes.into_iter().filter_map(typed).collect();
    if let Some(class) = default_class(&classes) {
        claim["spec"]["storageClassName"] = json!(class.metadata.name);
    }
}

fn finalize_by(object: &mut Value, finalizer: &str) {
    match object["metadata"]["finalizers"].as_array_mut() {
        Some(list) if list.iter().any(|found| found == finalizer) => {}
        Some(list) => list.push(json!(finalizer)),
        None => object["metadata"]["finalizers"] = json!([finalizer]),
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
pub(super) fn on_change(call: &Call, object: &mut Value, old: &Value) -> Result<(), ApiError> {
    if call.resource.storage == "persistentvolumeclaims" && call.path.subresource.is_empty() {
        growth(call, object, old)?;
    }
    if call.resource.storage == "scheduling.k8s.io/priorityclasses" {
        priority::only_default(call, object)?;
    }
    if call.resource.subresource(&call.path.subresource) == Some(Subresource::Approval) {
        signing::may_approve(&call.server.authorizer, &call.identity, object)
            .map_err(|why| ApiError::forbidden(&call.resource, objects::name(object), &why))?;
        if !call.query.dry_run() {
            signing::sign_approved(&call.server.authority, object, &objects::timestamp(call.now))
                .map_err(|error| ApiError::bad_request(format!("spec.request: {error}")))?;
        }
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
