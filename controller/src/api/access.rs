//! Who asks, on whose behalf, and whether they may.

use http::{Method, header, request::Parts};
use jiff::Timestamp;
use serde_json::{Value, json};
use tracing::debug;

use super::request::{Query, ResourcePath, Verb};
use super::status::ApiError;
use super::{Call, Server, objects};
use crate::auth::authorizer::{Attributes, Decision, PathAttributes, refusal};
use crate::auth::{self, ANONYMOUS, ConnectionIdentity, Identity, ImpersonationError};

/// Who makes a request: by certificate, by token, or nobody in particular.
pub(super) fn authenticate(server: &Server, parts: &Parts, now: Timestamp) -> Result<Identity, ApiError> {
    if let Some(ConnectionIdentity(identity)) = parts.extensions.get::<ConnectionIdentity>() {
        return Ok(Identity::clone(identity));
    }
    let Some(header) = parts.headers.get(header::AUTHORIZATION) else {
        return Ok(Identity::anonymous());
    };
    let token = header.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    token
        .and_then(|token| match server.authenticator.authenticate(token, now) {
            Ok(identity) => Some(identity),
            Err(error) => {
                debug!(%error, "a bearer token was refused");
                None
            }
        })
        .ok_or_else(ApiError::unauthorized)
}

/// On whose behalf a request is made.
pub(super) fn impersonate(server: &Server, parts: &Parts, identity: Identity) -> Result<Identity, ApiError> {
    match auth::impersonate(&server.authorizer, &parts.headers, &identity) {
        Ok(None) => Ok(identity),
        Ok(Some(wanted)) => Ok(wanted),
        Err(ImpersonationError::Incomplete(what)) => Err(ApiError::bad_request(format!(
            "requested {what} without impersonating a user"
        ))),
        Err(ImpersonationError::Unreadable(why)) => Err(ApiError::bad_request(why)),
        Err(ImpersonationError::Forbidden(wish)) => {
            let request = Attributes {
                verb: "impersonate",
                group: wish.group,
                resource: wish.resource,
                subresource: &wish.subresource,
                namespace: &wish.namespace,
                name: &wish.name,
            };
            Err(forbidden(&identity, &request, &wish.reason))
        }
    }
}

/// Refuses a request on a resource that the identity may not make.
pub(super) fn authorize(
    server: &Server,
    identity: &Identity,
    request: &Attributes<'_>,
) -> Result<(), ApiError> {
    match server.authorizer.decide(identity, request) {
        Decision::Allowed(_) => Ok(()),
        Decision::Denied(reason) => Err(forbidden(identity, request, &reason)),
    }
}

/// Refuses a request on a path that is no resource's.
pub(super) fn authorize_path(
    server: &Server,
    identity: &Identity,
    method: &Method,
    path: &str,
) -> Result<(), ApiError> {
    let verb = match *method {
        // What it tells is what a GET tells.
        Method::HEAD => "get".to_owned(),
        ref other => other.as_str().to_lowercase(),
    };
    let request = PathAttributes { verb: &verb, path };
    match server.authorizer.decide_path(identity, &request) {
        Decision::Allowed(_) => Ok(()),
        Decision::Denied(_) if identity.user == ANONYMOUS => Err(ApiError::unauthorized()),
        Decision::Denied(reason) => {
            let reason = if reason.is_empty() {
                reason
            } else {
                format!(": {reason}")
            };
            let user = &identity.user;
            Err(ApiError::forbidden_path(format!(
                "forbidden: User {user:?} cannot {verb} path {path:?}{reason}"
            )))
        }
    }
}

fn forbidden(identity: &Identity, request: &Attributes<'_>, reason: &str) -> ApiError {
    // Who has not said who they are is asked to; what they may not do is nobody's business.
    if identity.user == ANONYMOUS {
        return ApiError::unauthorized();
    }
    let qualified = if request.group.is_empty() {
        request.resource.to_owned()
    } else {
        format!("{}.{}", request.resource, request.group)
    };
    let name = if request.name.is_empty() {
        String::new()
    } else {
        format!(" {:?}", request.name)
    };
    let mut error = ApiError::forbidden_path(format!(
        "{qualified}{name} is forbidden: {}",
        refusal(&identity.user, request, reason)
    ));
    error.details = json!({"name": request.name, "group": request.group, "kind": request.resource});
    error
}

/// A request as authorisation sees it. Who selects one object by its name asks for that one.
pub(super) fn attributes<'a>(verb: Verb, path: &'a ResourcePath, query: &'a Query) -> Attributes<'a> {
    let selected = || {
        let terms = query.get("fieldSelector")?.split(',');
        let mut names = terms.filter_map(|term| {
            let name = term.trim().strip_prefix("metadata.name=")?;
            Some(name.strip_prefix('=').unwrap_or(name))
        });
        names.next()
    };
    let name = match verb {
        Verb::List | Verb::Watch | Verb::DeleteCollection if path.name.is_empty() => {
            selected().unwrap_or_default()
        }
        _ => &path.name,
    };
    Attributes {
        verb: verb.name(),
        group: &path.group,
        resource: &path.plural,
        subresource: &path.subresource,
        namespace: &path.namespace,
        name,
    }
}

impl Call {
    /// Refuses what else than the request's own verb the identity may not do with the object.
    pub(crate) fn require(&self, verb: Verb) -> Result<(), ApiError> {
        let request = attributes(verb, &self.path, &self.query);
        authorize(&self.server, &self.identity, &request)
    }

    /// Refuses what the identity may not write into an object, or which object it may not delete.
    pub(crate) fn admits(&self, new: &Value, old: Option<&Value>) -> Result<(), ApiError> {
        let request = attributes(self.verb, &self.path, &self.query);
        self.server
            .authorizer
            .admits(&self.identity, &request, &self.resource, new, old)
            .map_err(|why| ApiError::forbidden(&self.resource, objects::name(new), &why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_selected_by_name_is_asked_for_by_name() {
        let path = ResourcePath::parse("/api/v1/namespaces/n/secrets").unwrap_or_default();
        let name = |verb, query: &str| {
            let query = Query::parse(query).unwrap();
            attributes(verb, &path, &query).name.to_owned()
        };
        assert_eq!(name(Verb::Watch, "fieldSelector=metadata.name%3Da"), "a");
        assert_eq!(
            name(Verb::List, "fieldSelector=type%3Dx,metadata.name%3D%3Da"),
            "a"
        );
        assert_eq!(name(Verb::List, "fieldSelector=metadata.name!%3Da"), "");
        assert_eq!(name(Verb::Create, "fieldSelector=metadata.name%3Da"), "");
    }
}
