//! Questions that are answered and not kept: who am I, may I.

use std::ops::Deref as _;

use http::StatusCode;
use serde_json::{Value, json};

use super::negotiate::Decoded;
use super::request::{ResourcePath, Verb};
use super::status::ApiError;
use super::write::Reply;
use super::{Call, subresources};
use crate::auth::Identity;
use crate::auth::authorizer::{Attributes, Decision, PathAttributes};
use crate::auth::rbac::Rule;
use crate::auth::service_account::ISSUER;
use crate::resources::Problems;

/// POST to a resource that only answers.
pub(super) async fn answer(call: &Call, decoded: Decoded) -> Result<Reply, ApiError> {
    let mut review = decoded.value;
    if !review.is_object() {
        return Err(ApiError::bad_request("the body is not an object"));
    }
    subresources::check_types(call.resource.deref().schema(), &review)?;
    if call.resource.kind == "Binding" {
        return bind(call, &review).await;
    }
    review["kind"] = json!(call.resource.kind);
    review["apiVersion"] = json!(call.resource.api_version());
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    review["status"] = match call.resource.kind {
        "SelfSubjectReview" => json!({"userInfo": user_info(&call.identity)}),
        "TokenReview" => token(call, &review["spec"])?,
        "SelfSubjectAccessReview" => access(call, &call.identity, &review["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let identity = subject(call, &review["spec"])?;
            access(call, &identity, &review["spec"])?
        }
        _ => rules(call, &review["spec"])?,
    };
    Ok(Reply::status(StatusCode::CREATED, review))
}

/// A binding posted to the collection names its pod itself.
async fn bind(call: &Call, binding: &Value) -> Result<Reply, ApiError> {
    let pods = crate::resources::find("", "v1", "pods").ok_or_else(ApiError::no_such_path)?;
    let on_pod = Call {
        server: std::sync::Arc::clone(&call.server),
        identity: call.identity.clone(),
        form: call.form,
        headers: call.headers.clone(),
        query: call.query.clone(),
        resource: crate::resources::ResourceRef::BuiltIn(pods),
        verb: Verb::Create,
        path: ResourcePath {
            plural: "pods".to_owned(),
            name: super::objects::name(binding).to_owned(),
            subresource: "binding".to_owned(),
            ..call.path.clone()
        },
        now: call.now,
    };
    subresources::bind(&on_pod, binding).await
}

fn user_info(identity: &Identity) -> Value {
    let mut info = json!({"username": identity.user, "groups": identity.groups});
    if !identity.uid.is_empty() {
        info["uid"] = json!(identity.uid);
    }
    if !identity.extra.is_empty() {
        info["extra"] = json!(identity.extra);
    }
    info
}

fn token(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let token = spec["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let mut audiences = list(&spec["audiences"]);
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    Ok(
        match call.server.authenticator.review(token, &audiences, call.now) {
            Ok(holder) => json!({
                "authenticated": true, "user": user_info(&holder.identity), "audiences": holder.audiences,
            }),
            Err(error) => json!({"authenticated": false, "user": {}, "error": error.to_string()}),
        },
    )
}

fn list(value: &Value) -> Vec<String> {
    let values = value.as_array().into_iter().flatten();
    values
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

/// The subject of a question about someone else.
fn subject(call: &Call, spec: &Value) -> Result<Identity, ApiError> {
    let extra = spec["extra"].as_object().into_iter().flatten();
    let identity = Identity {
        user: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: list(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.clone(), list(values))).collect(),
    };
    if identity.user.is_empty() && identity.groups.is_empty() {
        let mut problems = Problems::default();
        let detail = "at least one of user or group must be specified";
        problems.invalid("spec.user", &spec["user"], detail);
        return Err(ApiError::invalid(&call.resource, "", &problems));
    }
    Ok(identity)
}

fn access(call: &Call, identity: &Identity, spec: &Value) -> Result<Value, ApiError> {
    let text = |value: &'_ Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let (on_resource, on_path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let decision = match (on_resource.is_object(), on_path.is_object()) {
        (true, false) => {
            if call.resource.namespaced && on_resource["namespace"] != call.path.namespace.as_str() {
                let mut problems = Problems::default();
                let namespace = &on_resource["namespace"];
                let detail = "must match metadata.namespace";
                problems.invalid("spec.resourceAttributes.namespace", namespace, detail);
                return Err(ApiError::invalid(&call.resource, "", &problems));
            }
            let [verb, group, resource, subresource, namespace, name] =
                ["verb", "group", "resource", "subresource", "namespace", "name"]
                    .map(|key| text(on_resource, key));
            let request = Attributes {
                verb: &verb,
                group: &group,
                resource: &resource,
                subresource: &subresource,
                namespace: &namespace,
                name: &name,
            };
            call.server.authorizer.decide(identity, &request)
        }
        (false, true) => {
            let (verb, path) = (text(on_path, "verb"), text(on_path, "path"));
            let request = PathAttributes {
                verb: &verb,
                path: &path,
            };
            call.server.authorizer.decide_path(identity, &request)
        }
        (both, _) => {
            let mut problems = Problems::default();
            let detail = if both {
                "cannot be specified in combination with resourceAttributes"
            } else {
                "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            };
            let (field, value) = if both {
                ("spec.nonResourceAttributes", on_path)
            } else {
                ("spec.resourceAttributes", on_resource)
            };
            problems.invalid(field, value, detail);
            return Err(ApiError::invalid(&call.resource, "", &problems));
        }
    };
    let allowed = decision.is_allowed();
    let (Decision::Allowed(reason) | Decision::Denied(reason)) = decision;
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(status)
}

fn rules(call: &Call, spec: &Value) -> Result<Value, ApiError> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    let (rules, errors) = call.server.authorizer.rules(&call.identity, namespace);
    let part = |paths: bool| -> Vec<Value> {
        let rules = rules.iter().filter(|rule| rule.paths.is_empty() != paths);
        rules.map(Rule::to_value).collect()
    };
    let mut status = json!({
        "resourceRules": part(false), "nonResourceRules": part(true), "incomplete": !errors.is_empty(),
    });
    if !errors.is_empty() {
        status["evaluationError"] = json!(errors.join(", "));
    }
    Ok(status)
}
