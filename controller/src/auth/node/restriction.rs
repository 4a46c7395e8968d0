//! What a node may not write although it may write the object.

use serde_json::Value;

use super::pods::Needs;
use super::{LEASES, text};
use crate::auth::MIRROR;
use crate::auth::authorizer::Attributes;

/// Refuses what a node may not write into an object that it may write, or which it may not delete.
///
/// # Errors
/// The sentence that explains the refusal.
pub(in crate::auth) fn admits(
    node: &str,
    request: &Attributes<'_>,
    new: &Value,
    old: Option<&Value>,
) -> Result<(), String> {
    let name = text(&new["metadata"]["name"]);
    match (request.resource, request.subresource) {
        // Reports of usage bear the names of what they are about; whose they are is decided by those.
        _ if request.group == "metrics.k8s.io" => Ok(()),
        ("pods", "") if request.verb == "create" => creates_pod(node, new),
        ("pods", "" | "eviction") if new["spec"]["nodeName"] != node => {
            let what = if request.subresource == "eviction" {
                "evict"
            } else {
                "delete"
            };
            Err(format!(
                "node {node:?} can only {what} pods with spec.nodeName set to itself"
            ))
        }
        ("pods", "status") => {
            let old = old.unwrap_or(new);
            if old["spec"]["nodeName"] != node {
                return Err(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if old["metadata"]["labels"] != new["metadata"]["labels"] {
                return Err(format!("node {node:?} cannot update labels through pod status"));
            }
            Ok(())
        }
        ("persistentvolumeclaims", "status") => {
            if told_by_node(old.unwrap_or(new)) == told_by_node(new) {
                return Ok(());
            }
            Err(format!(
                "node {node:?} is not allowed to update fields other than status.capacity and status.conditions"
            ))
        }
        ("nodes" | "csinodes", _) if name != node => {
            Err(format!("node {node:?} is not allowed to modify node {name:?}"))
        }
        ("nodes", _) => writes_node(node, new, old),
        ("leases", "") if request.namespace == LEASES && name != node => {
            Err("can only access node lease with the same name as the requesting node".to_owned())
        }
        _ => Ok(()),
    }
}

/// A claim without what its node tells of it, and without what the server notes of any write.
fn told_by_node(claim: &Value) -> Value {
    let mut rest = claim.clone();
    for (part, keys) in [
        (
            "status",
            &[
                "capacity",
                "conditions",
                "allocatedResources",
                "allocatedResourceStatuses",
            ][..],
        ),
        ("metadata", &["managedFields", "resourceVersion"][..]),
    ] {
        if let Some(fields) = rest.get_mut(part).and_then(Value::as_object_mut) {
            fields.retain(|key, _| !keys.contains(&key.as_str()));
        }
    }
    // A status of these alone is none.
    if rest["status"].as_object().is_some_and(serde_json::Map::is_empty)
        && let Some(fields) = rest.as_object_mut()
    {
        fields.remove("status");
    }
    rest
}

/// A node makes only the API's copies of pods that it runs on its own, and they need nothing of the API.
fn creates_pod(node: &str, pod: &Value) -> Result<(), String> {
    if !pod["metadata"]["annotations"][MIRROR].is_string() {
        return Err(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node {
        return Err(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let own = |owner: &Value| owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node;
    if !owners.is_none_or(|owners| owners.len() <= 1 && owners.iter().all(own)) {
        return Err(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    let needs = Needs::of(pod);
    let referred = [
        ("a service account", !needs.account.is_empty()),
        ("secrets", !needs.secrets.is_empty()),
        ("configmaps", !needs.config_maps.is_empty()),
        ("persistentvolumeclaims", !needs.claims.is_empty()),
    ];
    match referred.into_iter().find(|(_, refers)| *refers) {
        Some((what, _)) => Err(format!("node {node:?} can not create pods that reference {what}")),
        None => Ok(()),
    }
}

/// Labels under Kubernetes' domains that a node may set on itself.
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "node.kubernetes.io/instance-type",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];

fn may_set_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else {
        return true;
    };
    let is_in = |root: &str| {
        let rest = domain.strip_suffix(root);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if is_in("node-restriction.kubernetes.io") {
        return false;
    }
    if !is_in("kubernetes.io") && !is_in("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&key) || is_in("kubelet.kubernetes.io") || is_in("node.kubernetes.io")
}

fn writes_node(node: &str, new: &Value, old: Option<&Value>) -> Result<(), String> {
    let labels = |object: &Value| object["metadata"]["labels"].clone();
    let before = old.map(labels).unwrap_or_default();
    let after = labels(new);
    let keys = |labels: &Value| -> Vec<String> {
        let labels = labels.as_object().into_iter().flatten();
        labels.map(|(key, _)| key.clone()).collect()
    };
    let mut changed: Vec<String> = keys(&after)
        .into_iter()
        .chain(keys(&before))
        .filter(|key| before[key] != after[key] && !may_set_label(key))
        .collect();
    changed.sort_unstable();
    changed.dedup();
    if !changed.is_empty() {
        let verb = if old.is_some() {
            "modify labels"
        } else {
            "set the following labels"
        };
        return Err(format!(
            "node {node:?} is not allowed to {verb}: {}",
            changed.join(", ")
        ));
    }
    // What a node gives itself would be taken from others.
    let range = |key: &str| old.map_or(&Value::Null, |old| &old["spec"][key]) != &new["spec"][key];
    if range("podCIDR") || range("podCIDRs") {
        return Err(format!("node {node:?} is not allowed to set its pod CIDRs"));
    }
    let Some(old) = old else { return Ok(()) };
    if old["spec"]["taints"] != new["spec"]["taints"] {
        return Err(format!("node {node:?} is not allowed to modify taints"));
    }
    if old["metadata"]["ownerReferences"] != new["metadata"]["ownerReferences"] {
        return Err(format!("node {node:?} is not allowed to modify ownerReferences"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::request;
    use super::*;

    #[test]
    fn a_node_writes_its_own_pods_only() {
        let own = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n1"}});
        let other = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n2"}});
        for (verb, below) in [("delete", ""), ("create", "eviction"), ("patch", "status")] {
            let request = request(verb, "pods", below, "p");
            assert_eq!(admits("n1", &request, &own, Some(&own)), Ok(()), "{verb} {below}");
            let refused = admits("n1", &request, &other, Some(&other)).unwrap_err();
            assert!(refused.contains("with spec.nodeName set to itself"), "{refused}");
        }
        let mut labelled = own.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(
            admits(
                "n1",
                &request("patch", "pods", "status", "p"),
                &labelled,
                Some(&own)
            )
            .is_err()
        );
        let create = request("create", "pods", "", "");
        assert!(admits("n1", &create, &own, None).unwrap_err().contains("mirror"));
        let mut mirror = own;
        mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
        assert_eq!(admits("n1", &create, &mirror, None), Ok(()));
        mirror["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
        assert!(
            admits("n1", &create, &mirror, None)
                .unwrap_err()
                .contains("reference secrets")
        );
    }

    #[test]
    fn a_node_tells_how_large_a_claim_is_and_no_more() {
        let claim =
            json!({"metadata": {"name": "c", "finalizers": ["kubernetes.io/pvc-protection"]}, "spec": {}});
        let request = request("patch", "persistentvolumeclaims", "status", "c");
        let mut larger = claim.clone();
        larger["status"] = json!({"capacity": {"storage": "2Gi"}});
        assert_eq!(admits("n1", &request, &larger, Some(&claim)), Ok(()));
        let mut unprotected = larger.clone();
        unprotected["metadata"]["finalizers"] = json!([]);
        let mut lost = larger.clone();
        lost["status"]["phase"] = json!("Lost");
        for bad in [unprotected, lost] {
            let refused = admits("n1", &request, &bad, Some(&larger)).unwrap_err();
            assert!(refused.contains("other than status.capacity"), "{refused}");
        }
    }

    #[test]
    fn a_node_reports_usage() {
        let report = Attributes {
            group: "metrics.k8s.io",
            ..request("patch", "pods", "", "p")
        };
        assert_eq!(
            admits("n1", &report, &json!({"metadata": {"name": "p"}}), None),
            Ok(())
        );
    }

    #[test]
    fn a_node_gives_itself_no_role_and_no_taint() {
        let node = |labels: Value| json!({"metadata": {"name": "n1", "labels": labels}, "spec": {}});
        let create = request("create", "nodes", "", "");
        let update = request("update", "nodes", "", "n1");
        let plain = node(json!({"kubernetes.io/hostname": "n1", "disk": "ssd", "node.kubernetes.io/x": "y"}));
        assert_eq!(admits("n1", &create, &plain, None), Ok(()));
        for label in [
            "node-role.kubernetes.io/control-plane",
            "node-restriction.kubernetes.io/x",
            "x.node-restriction.kubernetes.io/y",
            "foo.k8s.io/bar",
        ] {
            let bad = node(json!({label: ""}));
            assert!(admits("n1", &create, &bad, None).unwrap_err().contains(label));
            assert!(
                admits("n1", &update, &bad, Some(&plain))
                    .unwrap_err()
                    .contains(label)
            );
            // Others may, and the node may leave it.
            assert_eq!(admits("n1", &update, &bad, Some(&bad)), Ok(()));
        }
        let mut tainted = plain.clone();
        tainted["spec"]["taints"] = json!([{"key": "a", "effect": "NoSchedule"}]);
        assert!(
            admits("n1", &update, &tainted, Some(&plain))
                .unwrap_err()
                .contains("taints")
        );
        assert_eq!(admits("n1", &create, &tainted, None), Ok(()));
        let other = json!({"metadata": {"name": "n2"}});
        assert!(admits("n1", &create, &other, None).is_err());
        let lease = Attributes {
            group: "coordination.k8s.io",
            namespace: LEASES,
            ..request("create", "leases", "", "")
        };
        assert!(admits("n1", &lease, &other, None).is_err());
    }

    #[test]
    fn a_node_gives_itself_no_pod_cidrs() {
        let plain = json!({"metadata": {"name": "n1"}, "spec": {}});
        let given = json!({"metadata": {"name": "n1"}, "spec": {"podCIDR": "10.0.1.0/24", "podCIDRs": ["10.0.1.0/24"]}});
        let create = request("create", "nodes", "", "n1");
        assert_eq!(admits("n1", &create, &plain, None), Ok(()));
        assert!(
            admits("n1", &create, &given, None)
                .unwrap_err()
                .contains("pod CIDRs")
        );
        let patch = request("patch", "nodes", "", "n1");
        assert_eq!(admits("n1", &patch, &given, Some(&given)), Ok(()));
        assert!(
            admits("n1", &patch, &given, Some(&plain))
                .unwrap_err()
                .contains("pod CIDRs")
        );
    }
}
