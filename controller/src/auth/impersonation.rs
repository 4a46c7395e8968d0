//! Acting as someone else: the headers, and whether the one who asks may.

use std::collections::BTreeMap;

use http::HeaderMap;

use super::authorizer::{Attributes, Authorizer, Decision};
use super::{ANONYMOUS, AUTHENTICATED, Identity, SERVICE_ACCOUNTS, UNAUTHENTICATED, service_account_of};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// Why a request on behalf of someone else is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ImpersonationError {
    /// Something of a user and no user.
    Incomplete(&'static str),
    /// A header that cannot be read.
    Unreadable(String),
    /// The one who asks may not.
    Forbidden(Box<Wish>),
}

/// A part of someone else that may not be taken on, as the attributes of the request for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) group: &'static str,
    pub(crate) resource: &'static str,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Why not; may be empty.
    pub(crate) reason: String,
}

/// Who the headers ask to be; `None` if they do not.
fn wanted(headers: &HeaderMap) -> Result<Option<Identity>, ImpersonationError> {
    let text = |value: &http::HeaderValue| {
        let text = value.to_str().map(str::to_owned);
        text.map_err(|_| ImpersonationError::Unreadable("a header of impersonation is no text".to_owned()))
    };
    let one = |name: &str| headers.get(name).map(text).transpose();
    let user = one(USER)?.filter(|user| !user.is_empty());
    let uid = one(UID)?.unwrap_or_default();
    let groups = headers
        .get_all(GROUP)
        .iter()
        .map(text)
        .collect::<Result<Vec<_>, _>>()?;
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(EXTRA) else {
            continue;
        };
        // Keys may hold what headers may not, such as a slash.
        let key = crate::api::request::percent_decode(key)
            .ok_or_else(|| ImpersonationError::Unreadable(format!("header {name} has a broken escape")))?;
        extra.entry(key).or_default().push(text(value)?);
    }
    let Some(user) = user else {
        let given = [
            (!groups.is_empty(), "groups"),
            (!uid.is_empty(), "a uid"),
            (!extra.is_empty(), "extra values"),
        ];
        let given = given.into_iter().find(|(given, _)| *given);
        return match given {
            Some((_, what)) => Err(ImpersonationError::Incomplete(what)),
            None => Ok(None),
        };
    };
    Ok(Some(Identity {
        user,
        uid,
        groups,
        extra,
    }))
}

/// The identity to act under: the one in the headers if there is one and `identity` may act as it.
pub(crate) fn impersonate(
    authorizer: &Authorizer,
    headers: &HeaderMap,
    identity: &Identity,
) -> Result<Option<Identity>, ImpersonationError> {
    let Some(mut wanted) = wanted(headers)? else {
        return Ok(None);
    };
    let may =
        |group: &'static str, resource: &'static str, subresource: &str, namespace: &str, name: &str| {
            let request = Attributes {
                verb: "impersonate",
                group,
                resource,
                subresource,
                namespace,
                name,
            };
            match authorizer.decide(identity, &request) {
                Decision::Allowed(_) => Ok(()),
                Decision::Denied(reason) => Err(ImpersonationError::Forbidden(Box::new(Wish {
                    group,
                    resource,
                    subresource: subresource.to_owned(),
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                    reason,
                }))),
            }
        };
    const AUTHENTICATION: &str = "authentication.k8s.io";
    match service_account_of(&wanted.user) {
        Some((namespace, name)) => {
            may("", "serviceaccounts", "", namespace, name)?;
            if wanted.groups.is_empty() {
                wanted.groups = vec![
                    SERVICE_ACCOUNTS.to_owned(),
                    format!("{SERVICE_ACCOUNTS}:{namespace}"),
                ];
            }
        }
        None => may("", "users", "", "", &wanted.user)?,
    }
    let asked = identity_groups(&wanted);
    for group in &asked {
        may("", "groups", "", "", group)?;
    }
    if !wanted.uid.is_empty() {
        may(AUTHENTICATION, "uids", "", "", &wanted.uid)?;
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may(AUTHENTICATION, "userextras", key, "", value)?;
        }
    }
    let group = if wanted.user == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !wanted.is_in(AUTHENTICATED) && !wanted.is_in(UNAUTHENTICATED) {
        wanted.groups.push(group.to_owned());
    }
    Ok(Some(wanted))
}

/// The groups that must be allowed: those that a service account has by itself need not be.
fn identity_groups(wanted: &Identity) -> Vec<String> {
    let own =
        service_account_of(&wanted.user).map(|(namespace, _)| format!("{SERVICE_ACCOUNTS}:{namespace}"));
    let is_own = |group: &String| own.is_some() && (group == SERVICE_ACCOUNTS || Some(group) == own.as_ref());
    wanted
        .groups
        .iter()
        .filter(|group| !is_own(group))
        .cloned()
        .collect()
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(list: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn headers_say_who() {
        let found = wanted(&headers(&[
            (USER, "u"),
            (GROUP, "a"),
            (GROUP, "b"),
            (UID, "7"),
            ("impersonate-extra-acme.com%2fproject", "x"),
        ]));
        let extra = BTreeMap::from([("acme.com/project".to_owned(), vec!["x".to_owned()])]);
        assert_eq!(
            found,
            Ok(Some(Identity {
                user: "u".to_owned(),
                uid: "7".to_owned(),
                groups: vec!["a".to_owned(), "b".to_owned()],
                extra,
            }))
        );
        assert_eq!(wanted(&HeaderMap::new()), Ok(None));
        for (name, what) in [
            (GROUP, "groups"),
            (UID, "a uid"),
            ("impersonate-extra-x", "extra values"),
        ] {
            let found = wanted(&headers(&[(name, "x")]));
            assert_eq!(found, Err(ImpersonationError::Incomplete(what)));
        }
    }
}
