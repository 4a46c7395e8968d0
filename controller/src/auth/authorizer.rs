//! What an identity may do. Masters may do everything; nodes what nodes need, on their own objects; a bootstrapper may ask
//! for a certificate; everybody else may read the server's health and version.

use serde_json::Value;

use super::{AUTHENTICATED, BOOTSTRAPPERS, Identity, MASTERS};
use crate::api::request::Verb;
use crate::store::Store;

/// A request as authorisation sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// What is done.
    pub verb: Verb,
    /// The group.
    pub group: &'a str,
    /// The resource's plural.
    pub resource: &'a str,
    /// The subresource; empty for the object.
    pub subresource: &'a str,
    /// The namespace; empty for all or none.
    pub namespace: &'a str,
    /// The object's name; empty for the collection.
    pub name: &'a str,
}

/// Paths that anybody may read.
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];
/// Paths below which everybody whose identity is known may read.
const DISCOVERY: &[&str] = &["/api", "/apis", "/openapi", "/.well-known"];

/// Whether a path that is no resource's may be read.
pub fn may_read_path(identity: &Identity, path: &str) -> bool {
    let below =
        |root: &&str| path == *root || path.strip_prefix(*root).is_some_and(|rest| rest.starts_with('/'));
    identity.is_in(MASTERS)
        || PUBLIC.iter().any(below)
        || (identity.is_in(AUTHENTICATED) && DISCOVERY.iter().any(below))
}

/// Whether a request on a resource is allowed.
pub fn allows(store: &dyn Store, identity: &Identity, request: &Attributes<'_>) -> bool {
    if identity.is_in(MASTERS) {
        return true;
    }
    let own_question = matches!(
        (request.group, request.resource, request.verb),
        (
            "authorization.k8s.io",
            "selfsubjectaccessreviews" | "selfsubjectrulesreviews",
            Verb::Create
        ) | ("authentication.k8s.io", "selfsubjectreviews", Verb::Create)
    );
    if own_question && identity.is_in(AUTHENTICATED) {
        return true;
    }
    if identity.is_in(BOOTSTRAPPERS) {
        let requests = request.resource == "certificatesigningrequests" && request.subresource.is_empty();
        return requests && matches!(request.verb, Verb::Create | Verb::Get | Verb::List | Verb::Watch);
    }
    identity
        .node()
        .is_some_and(|node| node_allows(store, node, request))
}

fn node_allows(store: &dyn Store, node: &str, request: &Attributes<'_>) -> bool {
    let Attributes {
        verb,
        resource,
        subresource,
        namespace,
        name,
        ..
    } = *request;
    match (resource, subresource) {
        ("nodes", "" | "status") => {
            verb.reads()
                || verb == Verb::Create
                || (matches!(verb, Verb::Update | Verb::Patch) && name == node)
        }
        ("pods", "") => verb.reads() || (verb == Verb::Delete && is_bound(store, namespace, name, node)),
        ("pods", "status") => {
            matches!(verb, Verb::Get | Verb::Update | Verb::Patch) && is_bound(store, namespace, name, node)
        }
        ("leases", "") => {
            namespace == "kube-node-lease"
                && (verb == Verb::Create
                    || (matches!(verb, Verb::Get | Verb::Update | Verb::Patch) && name == node))
        }
        ("events", "") => matches!(verb, Verb::Create | Verb::Update | Verb::Patch),
        ("certificatesigningrequests", "") => verb == Verb::Create || verb.reads(),
        ("secrets" | "configmaps", "") => {
            matches!(verb, Verb::Get | Verb::List | Verb::Watch)
                && !name.is_empty()
                && uses(store, node, namespace, resource, name)
        }
        ("serviceaccounts" | "namespaces" | "services", "") => verb.reads(),
        _ => false,
    }
}

fn is_bound(store: &dyn Store, namespace: &str, name: &str, node: &str) -> bool {
    store
        .get("pods", &format!("{namespace}/{name}"))
        .is_none_or(|pod| pod.value()["spec"]["nodeName"] == node)
}

/// Whether a pod of the node names the object.
fn uses(store: &dyn Store, node: &str, namespace: &str, resource: &str, name: &str) -> bool {
    let pods = store.list("pods", &format!("{namespace}/")).items;
    let of_node = crate::resources::find("", "v1", "pods");
    pods.iter()
        .filter(|pod| of_node.and_then(|row| row.field_value(pod.meta(), "spec.nodeName")) == Some(node))
        .any(|pod| names(&pod.value()["spec"], resource, name))
}

/// Whether a pod's spec refers to a ConfigMap or Secret, wherever in it.
fn names(spec: &Value, resource: &str, name: &str) -> bool {
    let refers = |reference: &Value, key: &str| reference[key] == name;
    match spec {
        Value::Array(list) => list.iter().any(|value| names(value, resource, name)),
        Value::Object(map) => map.iter().any(|(key, value)| {
            let here = match (key.as_str(), resource) {
                ("configMap" | "configMapRef" | "configMapKeyRef", "configmaps")
                | ("secretRef" | "secretKeyRef", "secrets") => refers(value, "name"),
                ("secret", "secrets") => refers(value, "secretName") || refers(value, "name"),
                ("imagePullSecrets", "secrets") => value
                    .as_array()
                    .is_some_and(|list| list.iter().any(|entry| refers(entry, "name"))),
                _ => false,
            };
            here || names(value, resource, name)
        }),
        _ => false,
    }
}

/// What a node may write into an object: its own Node and Lease, and pods' requests of its own.
///
/// # Errors
/// The sentence that explains the refusal.
pub fn admits(identity: &Identity, request: &Attributes<'_>, object: &Value) -> Result<(), String> {
    let Some(node) = identity.node().filter(|_| !identity.is_in(MASTERS)) else {
        return Ok(());
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if request.verb == Verb::Create && matches!(request.resource, "nodes" | "leases") && name != node {
        return Err(format!(
            "node {node:?} is not allowed to create {} of another node",
            request.resource
        ));
    }
    Ok(())
}
