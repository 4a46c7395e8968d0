//! Subresources that are not just another way to write the object: scale, binding.

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use super::negotiate::{Decoded, Form, content_type, decode_json, decode_yaml};
use super::status::{ApiError, json_response, success};
use super::table::{self, Include};
use super::write::{self, Change, Managers, Outcome, Reply};
use super::{Call, eviction, objects, token_request};
use crate::custom::json_path::JsonPath;
use crate::resources::{Problems, ResourceRef, SCALE, Subresource, subdomain_problem};
use crate::schema::{self, KindSchema, patch as json_patches};

/// GET below an object.
pub(crate) fn get(call: &Call) -> Result<Response<Body>, ApiError> {
    let object = call.find()?;
    match call.resource.subresource(&call.path.subresource) {
        Some(Subresource::Scale) => {
            let mut scale = scale_of(call, &object.value());
            if call.form == Form::Table {
                let metadata = json!({"resourceVersion": scale["metadata"]["resourceVersion"]});
                let include = Include::parse(call.query.get("includeObject"));
                scale = table::table(
                    &ResourceRef::BuiltIn(&SCALE),
                    &[scale],
                    metadata,
                    include,
                    call.now,
                    true,
                );
            }
            Ok(json_response(StatusCode::OK, scale.to_string()))
        }
        Some(
            Subresource::Status
            | Subresource::Approval
            | Subresource::EphemeralContainers
            | Subresource::Resize,
        ) => Ok(call.render(StatusCode::OK, &object)),
        Some(other) => Err(needs_node(other)),
        None => Err(ApiError::no_such_path()),
    }
}

/// POST below an object.
pub(crate) async fn create(call: &Call, decoded: Decoded) -> Result<Reply, ApiError> {
    let below = call.resource.subresource(&call.path.subresource);
    let kind = below.and_then(
        |below| match (below.foreign_kind(), below.own_kind(call.resource.kind)) {
            (Some((group, version, kind)), _) => schema::kind(group, version, kind),
            (None, kind) => schema::kind(call.resource.group, call.resource.version, kind?),
        },
    );
    check_types(kind, &decoded.value)?;
    match below {
        Some(Subresource::Binding) => bind(call, &decoded.value).await,
        Some(Subresource::Eviction) => eviction::evict(call, &decoded.value).await,
        Some(Subresource::Token) => token_request::create(call, &decoded.value),
        Some(other) => Err(needs_node(other)),
        None => Err(ApiError::no_such_path()),
    }
}

/// Refuses a body whose values do not have the types of their fields.
pub(super) fn check_types(kind: Option<KindSchema>, body: &Value) -> Result<(), ApiError> {
    let checked = kind.map_or(Ok(()), |kind| kind.check_types(body));
    checked.map_err(|error| ApiError::bad_request(error.to_string()))
}

pub(crate) fn needs_node(subresource: Subresource) -> ApiError {
    ApiError::not_implemented(format!(
        "{} is not served by this version of the API server",
        subresource.name()
    ))
}

/// Puts a pod on a node, once.
pub(crate) async fn bind(call: &Call, binding: &Value) -> Result<Reply, ApiError> {
    let target = &binding["target"];
    let node = target["name"].as_str().unwrap_or_default();
    let kind = target["kind"].as_str().unwrap_or_default();
    let mut problems = Problems::default();
    if !kind.is_empty() && kind != "Node" {
        problems.not_supported("target.kind", &target["kind"], &["Node", "<empty>"]);
    }
    if node.is_empty() {
        problems.required("target.name", "");
    } else if let Some(problem) = subdomain_problem(node) {
        problems.invalid("target.name", &target["name"], &problem);
    }
    if !problems.0.is_empty() {
        return Err(ApiError::invalid(&call.resource, &call.path.name, &problems));
    }
    let uid = binding["metadata"]["uid"].as_str().unwrap_or_default();
    write::change(call, Managers::SetAside, |pod| {
        let name = &call.path.name;
        if !uid.is_empty() && pod["metadata"]["uid"] != uid {
            let is = pod["metadata"]["uid"].as_str().unwrap_or_default();
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {is}");
            return Err(ApiError::conflict(&call.resource, name, &why));
        }
        if objects::is_terminating(pod) {
            let why = format!("pod {name} is being deleted, cannot be assigned to a host");
            return Err(ApiError::conflict(&call.resource, name, &why));
        }
        if let Some(bound) = pod["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
            let why = format!("pod {name} is already assigned to node {bound:?}");
            return Err(ApiError::conflict(&call.resource, name, &why));
        }
        if pod["spec"]["schedulingGates"]
            .as_array()
            .is_some_and(|gates| !gates.is_empty())
        {
            let why = format!("pod {name} has non-empty .spec.schedulingGates");
            return Err(ApiError::conflict(&call.resource, name, &why));
        }
        let mut pod = pod.clone();
        pod["spec"]["nodeName"] = json!(node);
        let annotations = binding["metadata"]["annotations"]
            .as_object()
            .into_iter()
            .flatten();
        for (key, value) in annotations {
            pod["metadata"]["annotations"][key.as_str()] = value.clone();
        }
        set_scheduled(&mut pod["status"], &objects::timestamp(call.now));
        Ok(Change {
            object: pod,
            warnings: Vec::new(),
            // Where a pod is bound to is nobody's field, as in Kubernetes.
            tracked: true,
        })
    })
    .await?;
    Ok(Reply::status(StatusCode::CREATED, success(Value::Null)))
}

fn set_scheduled(status: &mut Value, now: &str) {
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    });
    match status["conditions"].as_array_mut() {
        Some(list) => {
            list.retain(|condition| condition["type"] != "PodScheduled");
            list.push(condition);
        }
        None => status["conditions"] = json!([condition]),
    }
}

/// Where an object has its number of replicas, as it should be and as it is, and the selector in its string form.
fn replicas(call: &Call, object: &Value) -> (i64, i64, String) {
    let number = |value: &Value| value.as_i64().unwrap_or_default();
    if let Some(scale) = call.resource.custom().and_then(|custom| custom.scale()) {
        let first = |path: &JsonPath| path.find(object).first().map_or(0, |value| number(value));
        let selector = scale
            .selector
            .as_ref()
            .and_then(|path| path.find(object).first()?.as_str());
        return (
            first(&scale.spec_replicas),
            first(&scale.status_replicas),
            selector.unwrap_or_default().to_owned(),
        );
    }
    let selector = &object["spec"]["selector"];
    let labels = if call.resource.group.is_empty() {
        json!({"matchLabels": selector})
    } else {
        selector.clone()
    };
    let selector = crate::selector::LabelSelector::from_value(&labels).map(|s| s.to_string());
    (
        number(&object["spec"]["replicas"]),
        number(&object["status"]["replicas"]),
        selector.unwrap_or_default(),
    )
}

fn set_replicas(call: &Call, object: &mut Value, count: i64) {
    let scale = call.resource.custom().and_then(|custom| custom.scale());
    let path = scale.and_then(|scale| scale.spec_replicas.fields());
    let mut place = object;
    for name in path.as_deref().unwrap_or(&["spec", "replicas"]) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[*name];
    }
    *place = json!(count);
}

/// The object's scale.
fn scale_of(call: &Call, object: &Value) -> Value {
    let metadata = &object["metadata"];
    let (wanted, there, selector) = replicas(call, object);
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"], "namespace": metadata["namespace"], "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"], "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": wanted},
        "status": {"replicas": there, "selector": selector},
    });
    objects::drop_nulls(&mut scale);
    scale
}

/// PATCH of a scale.
pub(crate) async fn patch_scale(call: &Call, body: &Bytes) -> Result<Reply, ApiError> {
    let kind = content_type(&call.headers);
    let patch = if kind == "application/apply-patch+yaml" {
        decode_yaml(body)?.value
    } else {
        decode_json(body)?.value
    };
    if !matches!(
        kind,
        "application/json-patch+json"
            | "application/merge-patch+json"
            | "application/strategic-merge-patch+json"
            | "application/apply-patch+yaml"
    ) {
        return Err(ApiError::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json",
        ));
    }
    scale(call, |current| {
        // A scale has no lists, so a strategic merge is a merge.
        let patched = if kind == "application/json-patch+json" {
            json_patches::json_patch(current, &patch)
        } else {
            json_patches::json_merge(current, &patch)
        };
        patched.map_err(|error| ApiError::patch(&error))
    })
    .await
}

/// PUT of a scale.
pub(crate) async fn replace_scale(call: &Call, scale_object: &Value) -> Result<Reply, ApiError> {
    write::check_name(call, scale_object)?;
    scale(call, |_| Ok(scale_object.clone())).await
}

async fn scale(call: &Call, compute: impl Fn(&Value) -> Result<Value, ApiError>) -> Result<Reply, ApiError> {
    let reply = write::change(call, Managers::SetAside, |object| {
        let current = scale_of(call, object);
        let scaled = compute(&current)?;
        check_types(schema::kind("autoscaling", "v1", "Scale"), &scaled)?;
        let replicas = &scaled["spec"]["replicas"];
        let count = replicas.as_i64().unwrap_or_default();
        if count < 0 {
            let mut problems = Problems::default();
            problems.invalid("spec.replicas", replicas, "must be greater than or equal to 0");
            return Err(ApiError::invalid(&call.resource, &call.path.name, &problems));
        }
        let mut object = object.clone();
        set_replicas(call, &mut object, count);
        for precondition in ["uid", "resourceVersion"] {
            let given = &scaled["metadata"][precondition];
            if given.as_str().is_some_and(|given| !given.is_empty()) {
                object["metadata"][precondition] = given.clone();
            }
        }
        Ok(Change {
            object,
            warnings: Vec::new(),
            tracked: false,
        })
    })
    .await?;
    let object = match reply.outcome {
        Outcome::Stored(object) => object.value(),
        Outcome::Value(value) | Outcome::Status(value) => value,
    };
    Ok(Reply {
        code: reply.code,
        outcome: Outcome::Status(scale_of(call, &object)),
        warnings: reply.warnings,
    })
}
