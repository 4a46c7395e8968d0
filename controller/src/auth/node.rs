//! What a node may do: read what its pods need, and write its own Node, its Lease and the status of its pods.

mod pods;
mod restriction;

use std::sync::LazyLock;

use serde_json::Value;

pub(super) use self::pods::NodePods;
pub(super) use self::restriction::admits;
use super::authorizer::Attributes;
use super::rbac::Rule;

/// The namespace of nodes' leases.
const LEASES: &str = "kube-node-lease";

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What every node may do, whatever its pods are.
static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    const READ: &str = "get list watch";
    let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let rule = |verbs: &str, group: &str, resources: &str| Rule {
        verbs: list(verbs),
        groups: vec![group.to_owned()],
        resources: list(resources),
        ..Rule::default()
    };
    vec![
        rule(READ, "", "nodes services namespaces pods endpoints"),
        rule(READ, "discovery.k8s.io", "endpointslices"),
        rule(READ, "networking.k8s.io", "networkpolicies"),
        rule(READ, "node.k8s.io", "runtimeclasses"),
        rule(READ, "storage.k8s.io", "csidrivers storageclasses"),
        rule("create", "", "nodes"),
        rule("create delete", "", "pods"),
        rule("get update patch", "", "pods/status"),
        rule("create", "", "pods/eviction"),
        rule("create update patch", "", "events"),
        rule("create update patch", "events.k8s.io", "events"),
        rule(
            "create get list watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        ),
        rule("create", "authentication.k8s.io", "tokenreviews"),
        rule(
            "create",
            "authorization.k8s.io",
            "subjectaccessreviews localsubjectaccessreviews",
        ),
    ]
});

/// What is to be said about a node's request before its pods are looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may, whatever its pods are.
    Allowed,
    /// It may if a pod of it needs the object.
    IfNeeded,
    /// It may not; why is empty if there is nothing to say beyond that.
    Denied(String),
}

/// Whether a node may do something.
pub(super) fn decide(node: &str, request: &Attributes<'_>) -> Verdict {
    let Attributes {
        verb,
        group,
        resource,
        subresource,
        namespace,
        name,
    } = *request;
    let denied = |why: &str| Verdict::Denied(why.to_owned());
    let reads = matches!(verb, "get" | "list" | "watch");
    match (group, resource, subresource) {
        ("", "secrets" | "configmaps", "") if !reads => denied("can only read resources of this type"),
        ("", "secrets" | "configmaps", "") if name.is_empty() => denied("No Object name found"),
        // A list of all namespaces by one name.
        ("", "secrets" | "configmaps" | "persistentvolumeclaims", _) if namespace.is_empty() => {
            denied("can only read namespaced object of this type")
        }
        ("", "secrets" | "configmaps", "") => Verdict::IfNeeded,
        ("", "persistentvolumeclaims" | "persistentvolumes", "") if reads && !name.is_empty() => {
            Verdict::IfNeeded
        }
        ("", "persistentvolumeclaims", "status")
            if matches!(verb, "get" | "update" | "patch") && !name.is_empty() =>
        {
            Verdict::IfNeeded
        }
        ("", "persistentvolumeclaims" | "persistentvolumes", _) => {
            denied("can only get individual resources of this type")
        }
        ("", "serviceaccounts", "token") if verb == "create" => Verdict::IfNeeded,
        ("", "serviceaccounts", "token") => denied("can only create tokens for individual service accounts"),
        ("coordination.k8s.io", "leases", "") if namespace != LEASES => Verdict::Denied(format!(
            "can only access leases in the {LEASES:?} system namespace"
        )),
        ("coordination.k8s.io", "leases", "") => {
            if verb == "create" || (matches!(verb, "get" | "update" | "patch" | "delete") && name == node) {
                Verdict::Allowed
            } else {
                denied("can only access node lease with the same name as the requesting node")
            }
        }
        ("", "nodes", "" | "status") if matches!(verb, "update" | "patch") => {
            if name == node {
                Verdict::Allowed
            } else {
                Verdict::Denied(format!("node {node:?} is not allowed to modify node {name:?}"))
            }
        }
        // What the node and its pods use is told by the node.
        ("metrics.k8s.io", "nodes", "") if name == node => Verdict::Allowed,
        ("metrics.k8s.io", "pods", "") if !name.is_empty() => Verdict::IfNeeded,
        ("storage.k8s.io", "csinodes", "") if name == node || verb == "create" => Verdict::Allowed,
        _ if RULES.iter().any(|rule| rule.allows(request)) => Verdict::Allowed,
        _ => denied(""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn request<'a>(
        verb: &'a str,
        resource: &'a str,
        below: &'a str,
        name: &'a str,
    ) -> Attributes<'a> {
        Attributes {
            verb,
            group: "",
            resource,
            subresource: below,
            namespace: "default",
            name,
        }
    }

    #[test]
    fn what_is_decided_without_a_look_at_pods() {
        let decide = |request: Attributes<'_>| decide("n1", &request);
        assert_eq!(decide(request("get", "secrets", "", "s")), Verdict::IfNeeded);
        assert_eq!(
            decide(request("create", "serviceaccounts", "token", "s")),
            Verdict::IfNeeded
        );
        assert_eq!(
            decide(request("get", "persistentvolumes", "", "v")),
            Verdict::IfNeeded
        );
        for (verb, resource, below, name) in [
            ("list", "secrets", "", ""),
            ("update", "configmaps", "", "c"),
            ("delete", "persistentvolumeclaims", "", "c"),
            ("update", "nodes", "", "n2"),
            ("delete", "nodes", "", "n1"),
            ("create", "services", "", ""),
            ("get", "pods", "log", "p"),
        ] {
            let verdict = decide(request(verb, resource, below, name));
            assert!(matches!(verdict, Verdict::Denied(_)), "{verb} {resource}");
        }
        // A list of all namespaces that names one object.
        for resource in ["secrets", "configmaps", "persistentvolumeclaims"] {
            let everywhere = Attributes {
                namespace: "",
                ..request("list", resource, "", "s")
            };
            assert!(matches!(decide(everywhere), Verdict::Denied(_)), "{resource}");
        }
        assert_eq!(
            decide(request("patch", "nodes", "status", "n1")),
            Verdict::Allowed
        );
        assert_eq!(decide(request("patch", "pods", "status", "p")), Verdict::Allowed);
        let lease = |verb, name, namespace| Attributes {
            group: "coordination.k8s.io",
            namespace,
            ..request(verb, "leases", "", name)
        };
        assert_eq!(decide(lease("update", "n1", LEASES)), Verdict::Allowed);
        assert!(matches!(
            decide(lease("update", "n2", LEASES)),
            Verdict::Denied(_)
        ));
        assert!(matches!(
            decide(lease("update", "n1", "kube-system")),
            Verdict::Denied(_)
        ));
    }
}
