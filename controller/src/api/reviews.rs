//! Questions that are answered and not kept: who am I, may I.

use http::StatusCode;
use serde_json::{Value, json};

use super::negotiate::Decoded;
use super::request::{ResourcePath, Verb};
use super::status::ApiError;
use super::write::Reply;
use super::{Call, attributes, subresources};
use crate::auth::authorizer;
use crate::auth::{Identity, authenticate_token};

/// POST to a resource that only answers.
pub(super) async fn answer(call: &Call, decoded: Decoded) -> Result<Reply, ApiError> {
    let mut review = decoded.value;
    if !review.is_object() {
        return Err(ApiError::bad_request("the body is not an object"));
    }
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
        "TokenReview" => token(call, &review["spec"]),
        "SelfSubjectAccessReview" => access(call, &call.identity, &review["spec"])?,
        "SubjectAccessReview" | "LocalSubjectAccessReview" => {
            let identity = subject(&review["spec"]);
            access(call, &identity, &review["spec"])?
        }
        _ => rules(call),
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
    json!({"username": identity.user, "groups": identity.groups})
}

fn token(call: &Call, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    match authenticate_token(call.server.store.as_ref(), token, call.now) {
        Some(identity) => json!({"authenticated": true, "user": user_info(&identity)}),
        None => json!({"authenticated": false, "user": {}, "error": "invalid bearer token"}),
    }
}

fn subject(spec: &Value) -> Identity {
    let groups = spec["groups"].as_array().into_iter().flatten();
    Identity {
        user: spec["user"].as_str().unwrap_or_default().to_owned(),
        groups: groups
            .filter_map(|group| group.as_str().map(str::to_owned))
            .collect(),
    }
}

fn access(call: &Call, identity: &Identity, spec: &Value) -> Result<Value, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let on_resource = &spec["resourceAttributes"];
    let on_path = &spec["nonResourceAttributes"];
    let allowed = if on_resource.is_object() {
        let path = ResourcePath {
            group: text(&on_resource["group"]),
            version: text(&on_resource["version"]),
            namespace: text(&on_resource["namespace"]),
            plural: text(&on_resource["resource"]),
            name: text(&on_resource["name"]),
            subresource: text(&on_resource["subresource"]),
            rest: String::new(),
        };
        match verb(&text(&on_resource["verb"])) {
            Some(verb) => authorizer::allows(call.server.store.as_ref(), identity, &attributes(verb, &path)),
            None => identity.is_in(crate::auth::MASTERS),
        }
    } else if on_path.is_object() {
        text(&on_path["verb"]) == "get" && authorizer::may_read_path(identity, &text(&on_path["path"]))
            || identity.is_in(crate::auth::MASTERS)
    } else {
        return Err(ApiError::unprocessable(format!(
            "{}.{} \"\" is invalid: spec.resourceAttributes: Invalid value: \"null\": exactly one of \
             nonResourceAttributes or resourceAttributes must be specified",
            call.resource.kind, call.resource.group
        )));
    };
    Ok(json!({"allowed": allowed}))
}

fn verb(name: &str) -> Option<Verb> {
    [
        Verb::Get,
        Verb::List,
        Verb::Watch,
        Verb::Create,
        Verb::Update,
        Verb::Patch,
        Verb::Delete,
        Verb::DeleteCollection,
    ]
    .into_iter()
    .find(|verb| verb.name() == name)
}

fn rules(call: &Call) -> Value {
    let masters = call.identity.is_in(crate::auth::MASTERS);
    let resources = if masters {
        json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}])
    } else {
        json!([])
    };
    let paths = if masters {
        json!(["*"])
    } else {
        json!(["/healthz", "/livez", "/readyz", "/version"])
    };
    json!({
        "resourceRules": resources,
        "nonResourceRules": [{"verbs": if masters { json!(["*"]) } else { json!(["get"]) }, "nonResourceURLs": paths}],
        "incomplete": !masters,
    })
}
