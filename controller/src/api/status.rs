//! Answers that are not objects: the `Status` that clients read their errors from.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::resources::{Problems, Resource};
use crate::schema::{ApplyError, PatchError};
use crate::store::StoreError;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The HTTP status.
    pub code: u16,
    /// The machine-readable reason.
    pub reason: &'static str,
    /// What people read.
    pub message: String,
    /// What it is about.
    pub details: Value,
    /// A token with which a list can go on all the same.
    pub go_on: Option<String>,
}

impl ApiError {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            details: Value::Null,
            go_on: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = json!({"name": name, "group": resource.group, "kind": resource.plural});
        if resource.group.is_empty()
            && let Some(details) = self.details.as_object_mut()
        {
            details.remove("group");
        }
        self
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 about an object.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let quoted = if name.is_empty() {
            String::new()
        } else {
            format!(" {name:?}")
        };
        let message = format!("{}{quoted} is forbidden: {why}", resource.qualified());
        Self::new(403, "Forbidden", message).about(resource, name)
    }

    /// 403 about a path.
    pub fn forbidden_path(why: impl Into<String>) -> Self {
        Self::new(403, "Forbidden", why)
    }

    /// 404 about an object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", resource.qualified());
        Self::new(404, "NotFound", message).about(resource, name)
    }

    /// 404 about a path.
    pub fn no_such_path() -> Self {
        Self::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        Self::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 406.
    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(406, "NotAcceptable", message)
    }

    /// 409 on creation.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", resource.qualified());
        Self::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409 on a change.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {name:?}: {why}",
            resource.qualified()
        );
        Self::new(409, "Conflict", message).about(resource, name)
    }

    /// 409 because the object has changed since it was read.
    pub fn stale(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415.
    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted}"
        );
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 422 with what is wrong with an object.
    pub fn invalid(resource: &Resource, name: &str, problems: &Problems) -> Self {
        Self::invalid_kind(resource.kind, resource.group, name, problems)
    }

    /// 422 with what is wrong with a request's options.
    pub fn invalid_options(kind: &str, problems: &Problems) -> Self {
        Self::invalid_kind(kind, "meta.k8s.io", "", problems)
    }

    /// 422 with what is wrong with an object whose kind is not a resource's.
    pub fn invalid_kind(kind: &str, group: &str, name: &str, problems: &Problems) -> Self {
        let texts: Vec<_> = problems
            .0
            .iter()
            .map(|problem| {
                if problem.field.is_empty() {
                    problem.message.clone()
                } else {
                    format!("{}: {}", problem.field, problem.message)
                }
            })
            .collect();
        let list = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if group.is_empty() {
            kind.to_owned()
        } else {
            format!("{kind}.{group}")
        };
        let mut error = Self::new(422, "Invalid", format!("{qualified} {name:?} is invalid: {list}"));
        let causes: Vec<_> = problems.0.iter().map(crate::resources::Problem::cause).collect();
        error.details = json!({"name": name, "group": group, "kind": kind, "causes": causes});
        if kind.is_empty()
            && let Some(details) = error.details.as_object_mut()
        {
            details.retain(|_, value| *value != "");
        }
        error
    }

    /// 422 for a request whose parameters make no sense.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::new(422, "Invalid", message)
    }

    /// 429 with the time to wait.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u64) -> Self {
        let mut error = Self::new(429, "TooManyRequests", message);
        error.details = json!({"retryAfterSeconds": retry_after_seconds});
        error
    }

    /// 500 for an eviction that nobody can decide.
    pub fn several_budgets() -> Self {
        let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        Self::new(500, "InternalError", message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(
            500,
            "InternalError",
            format!("Internal error occurred: {}", message.into()),
        )
    }

    /// 501: the API exists, but this server cannot do it.
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(501, "NotImplemented", message)
    }

    /// 503.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    pub fn timeout(message: impl Into<String>) -> Self {
        let mut error = Self::new(504, "Timeout", message);
        error.details = json!({"retryAfterSeconds": 1});
        error
    }

    /// A patch that cannot be used.
    pub fn patch(error: &PatchError) -> Self {
        match error {
            PatchError::Malformed(why) => Self::bad_request(why),
            // Kubernetes says no more than this, and clients print it as it is.
            PatchError::Unprocessable(_) => {
                tracing::debug!(%error, "a patch does not fit");
                let message = "the server rejected our request due to an error in our request";
                Self::new(422, "Invalid", message)
            }
            PatchError::TooManyOperations(_) | PatchError::TooMuchCopied => {
                Self::too_large(error.to_string())
            }
        }
    }

    /// A server-side apply that was refused.
    pub fn apply(resource: &Resource, name: &str, error: &ApplyError) -> Self {
        match error {
            ApplyError::Conflict(conflicts) => {
                let causes: Vec<_> = conflicts
                    .iter()
                    .map(
                        |c| json!({"reason": "FieldManagerConflict", "message": c.message, "field": c.field}),
                    )
                    .collect();
                let mut refused = Self::new(409, "Conflict", error.to_string()).about(resource, name);
                refused.details = json!({"causes": causes});
                refused
            }
            ApplyError::Malformed(why) => Self::bad_request(why),
        }
    }

    /// The `Status` object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = json!(token);
        }
        status
    }

    /// The HTTP status.
    pub fn code(&self) -> StatusCode {
        StatusCode::from_u16(self.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The HTTP answer.
    pub fn response(&self) -> Response<Body> {
        let mut response = json_response(self.code(), self.status().to_string());
        if let Some(seconds) = self.details["retryAfterSeconds"].as_u64() {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    /// What the store says where no request-specific answer fits better.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict { resource, key, .. } => Self::new(
                409,
                "Conflict",
                format!("Operation cannot be fulfilled on {resource} {key:?}: the object has been modified"),
            ),
            StoreError::Expired { .. } => Self::expired(error.to_string()),
            StoreError::Busy => Self::too_many_requests("Too many requests, please try again later.", 1),
            StoreError::Closed => Self::unavailable("the server is shutting down"),
            StoreError::Etcd(_) => Self::unavailable(crate::controllers::chain(&error)),
            StoreError::Engine(_) | StoreError::Damaged { .. } => Self::internal(error.to_string()),
        }
    }
}

/// A `Status` that says a deletion or binding is done.
pub fn success(details: Value) -> Value {
    let mut status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
    if !details.is_null() {
        status["details"] = details;
    }
    status
}

/// A JSON answer.
pub fn json_response(code: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = code;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
