//! Tokens for service accounts: `serviceaccounts/<name>/token`.

use http::StatusCode;
use serde_json::{Value, json};

use super::status::ApiError;
use super::write::{self, Reply};
use super::{Call, objects};
use crate::auth::service_account::{Claims, ISSUER};
use crate::resources::{self, Problems};

/// How long a token lives whose request does not say.
const DEFAULT_SECONDS: i64 = 3600;
/// Shortest and longest life that can be asked for.
const SECONDS: std::ops::RangeInclusive<i64> = 600..=1 << 32;
/// What pods ask for by default: a token that is to be fetched anew every hour. Clients that do not know that keep theirs,
/// so it is good for as long as its pod, a year at most, and says from when on it is overdue.
const POD_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 86_400;

/// Makes a token.
pub(super) fn create(call: &Call, request: &Value) -> Result<Reply, ApiError> {
    let account = call.find()?.value();
    let spec = &request["spec"];
    let name = objects::name(&account);
    write::check_name(call, request)?;
    let seconds = match &spec["expirationSeconds"] {
        Value::Null => DEFAULT_SECONDS,
        given => lifetime(given).map_err(|problems| invalid(name, &problems))?,
    };
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|audience| audience.as_str().map(str::to_owned))
        .collect();
    let audiences = if audiences.is_empty() {
        vec![ISSUER.to_owned()]
    } else {
        audiences
    };
    let bound = bound(call, &account, &spec["boundObjectRef"])?;
    let pod = bound.iter().find(|(kind, _)| *kind == "pod").map(|(_, pod)| pod);
    if let Some(node) = call.identity.node() {
        node_may(node, &spec["boundObjectRef"], pod, &audiences)
            .map_err(|why| ApiError::forbidden(&call.resource, name, &why))?;
    }
    let end = call.now.as_second() + seconds;
    let extended = pod.is_some() && seconds == POD_SECONDS && audiences == [ISSUER];
    let claims = Claims {
        namespace: &call.path.namespace,
        account: &account,
        audiences: &audiences,
        issued: call.now,
        expires: if extended {
            call.now.as_second() + EXTENDED_SECONDS
        } else {
            end
        },
        warn_after: extended.then_some(end),
        bound: bound.iter().map(|(kind, object)| (*kind, object)).collect(),
    };
    let token = call
        .server
        .token_keys
        .sign(&claims.to_value())
        .map_err(|error| ApiError::internal(error.to_string()))?;
    let expiration = jiff::Timestamp::from_second(end).unwrap_or(jiff::Timestamp::MAX);
    let mut answer = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": name, "namespace": call.path.namespace, "creationTimestamp": objects::timestamp(call.now),
        },
        "spec": {"audiences": audiences, "expirationSeconds": seconds, "boundObjectRef": spec["boundObjectRef"]},
        "status": {"token": token, "expirationTimestamp": objects::timestamp(expiration)},
    });
    if call.query.dry_run() {
        answer["status"]["token"] = json!("");
    }
    Ok(Reply::status(StatusCode::CREATED, answer))
}

fn lifetime(given: &Value) -> Result<i64, Problems> {
    let mut problems = Problems::default();
    let seconds = given.as_i64().unwrap_or_default();
    let field = "spec.expirationSeconds";
    if seconds < *SECONDS.start() {
        problems.invalid(field, given, "may not specify a duration less than 10 minutes");
    } else if seconds > *SECONDS.end() {
        problems.invalid(
            field,
            given,
            "may not specify a duration larger than 2^32 seconds",
        );
    } else {
        return Ok(seconds);
    }
    Err(problems)
}

fn invalid(name: &str, problems: &Problems) -> ApiError {
    ApiError::invalid_kind("TokenRequest", "authentication.k8s.io", name, problems)
}

/// The objects that the token is bound to: the one that the request names, and a pod's node.
fn bound(call: &Call, account: &Value, reference: &Value) -> Result<Vec<(&'static str, Value)>, ApiError> {
    if reference.is_null() {
        return Ok(Vec::new());
    }
    let text = |key: &str| reference[key].as_str().unwrap_or_default();
    let (kind, name, uid) = (text("kind"), text("name"), text("uid"));
    let (claim, plural) = match (text("apiVersion"), kind) {
        ("v1", "Pod") => ("pod", "pods"),
        ("v1", "Secret") => ("secret", "secrets"),
        ("v1", "Node") => ("node", "nodes"),
        (version, kind) => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {version}, Kind={kind}"
            )));
        }
    };
    let find = |plural: &str, name: &str| {
        let row = resources::find("", "v1", plural).ok_or_else(ApiError::no_such_path)?;
        let found = call
            .server
            .store
            .get(row.storage, &row.key(&call.path.namespace, name));
        found
            .map(|object| object.value())
            .ok_or_else(|| ApiError::not_found(row, name))
    };
    let object = find(plural, name)?;
    let is = object["metadata"]["uid"].as_str().unwrap_or_default();
    if !uid.is_empty() && uid != is {
        let row = resources::find("", "v1", plural).ok_or_else(ApiError::no_such_path)?;
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been \
             deleted and then recreated"
        );
        return Err(ApiError::conflict(row, name, &why));
    }
    let mut bound = vec![(claim, object.clone())];
    if claim == "pod" {
        let own = objects::name(account);
        if object["spec"]["serviceAccountName"] != own {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount {own:?} to pod running with different serviceaccount name."
            )));
        }
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if !node.is_empty() {
            let known = find("nodes", node);
            bound.push((
                "node",
                known.unwrap_or_else(|_| json!({"metadata": {"name": node}})),
            ));
        }
    }
    Ok(bound)
}

/// A node gets tokens for its own pods only, and for whom their volumes say.
fn node_may(node: &str, reference: &Value, pod: Option<&Value>, audiences: &[String]) -> Result<(), String> {
    let Some(pod) = pod else {
        return Err("node requested token not bound to a pod".to_owned());
    };
    if reference["uid"].as_str().unwrap_or_default().is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    if pod["spec"]["nodeName"] != node {
        return Err("node requested token bound to a pod scheduled on a different node".to_owned());
    }
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.filter_map(|volume| volume["projected"]["sources"].as_array());
    let named: Vec<&str> = sources
        .flatten()
        .filter_map(|source| source["serviceAccountToken"]["audience"].as_str())
        .collect();
    let foreign = |audience: &&String| *audience != ISSUER && !named.contains(&audience.as_str());
    match audiences.iter().find(foreign) {
        Some(audience) => Err(format!("audience {audience:?} not found in pod spec volume")),
        None => Ok(()),
    }
}
