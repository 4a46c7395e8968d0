//! Whether a pod can run on a node, and if not, why, in the words of kube-scheduler.

use std::fmt;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

use super::snapshot::{NodeInfo, PodInfo};

/// Taint that stands for a cordoned node.
const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// Why a node was passed over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rejection {
    /// The node is cordoned.
    Unschedulable,
    /// A taint is not tolerated.
    Taint {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Node selector or required affinity do not match.
    Affinity,
    /// A host port is taken.
    Ports,
    /// The node takes no more pods.
    TooManyPods,
    /// Not enough of a resource is left.
    Insufficient(String),
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejection::Unschedulable => f.write_str("node(s) were unschedulable"),
            Rejection::Taint { key, value } => write!(f, "node(s) had untolerated taint {{{key}: {value}}}"),
            Rejection::Affinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Rejection::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Rejection::TooManyPods => f.write_str("Too many pods"),
            Rejection::Insufficient(resource) => write!(f, "Insufficient {resource}"),
        }
    }
}

/// Whether the pod can run on the node. Cheap tests first; they allocate nothing.
pub fn fits(pod: &PodInfo, node: &NodeInfo) -> bool {
    resources_fit(pod, node)
        && untolerated(pod, node).is_none()
        && !cordoned(pod, node)
        && affinity_matches(pod, node)
        && ports_free(pod, node)
}

/// Every reason of the first test that the node fails, in kube-scheduler's order; empty if it fits.
pub fn rejections(pod: &PodInfo, node: &NodeInfo) -> Vec<Rejection> {
    if cordoned(pod, node) {
        return vec![Rejection::Unschedulable];
    }
    if let Some(taint) = untolerated(pod, node) {
        return vec![Rejection::Taint {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
        }];
    }
    if !affinity_matches(pod, node) {
        return vec![Rejection::Affinity];
    }
    if !ports_free(pod, node) {
        return vec![Rejection::Ports];
    }
    lacking(pod, node)
}

fn cordoned(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.unschedulable && {
        let taint = Taint {
            key: UNSCHEDULABLE_TAINT.into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        !pod.constraints
            .tolerations
            .iter()
            .any(|toleration| tolerates(toleration, &taint))
    }
}

fn untolerated<'a>(pod: &PodInfo, node: &'a NodeInfo) -> Option<&'a Taint> {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
        .find(|taint| {
            !pod.constraints
                .tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
        })
}

/// How many taints would rather not have the pod.
pub fn unwelcome(pod: &PodInfo, node: &NodeInfo) -> i64 {
    node.taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule")
        .filter(|taint| {
            !pod.constraints
                .tolerations
                .iter()
                .any(|toleration| tolerates(toleration, taint))
        })
        .count()
        .try_into()
        .unwrap_or(i64::MAX)
}

/// Whether a toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    if !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            !key.is_empty()
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

fn affinity_matches(pod: &PodInfo, node: &NodeInfo) -> bool {
    let wanted = &pod.constraints;
    wanted
        .selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value))
        && wanted
            .required
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

/// Whether a node selector term matches; an empty one matches nothing.
pub fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let labels = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if labels.is_empty() && fields.is_empty() {
        return false;
    }
    labels
        .iter()
        .all(|r| requirement_matches(r, node.labels.get(&r.key).map(String::as_str)))
        && fields
            .iter()
            .all(|r| r.key == "metadata.name" && requirement_matches(r, Some(&node.name)))
}

fn requirement_matches(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = |actual: &str| values.iter().any(|value| value == actual);
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|value| number(value));
    match requirement.operator.as_str() {
        "In" => actual.is_some_and(listed),
        "NotIn" => !actual.is_some_and(listed),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => actual
            .and_then(number)
            .zip(bound)
            .is_some_and(|(actual, bound)| actual > bound),
        "Lt" => actual
            .and_then(number)
            .zip(bound)
            .is_some_and(|(actual, bound)| actual < bound),
        _ => false,
    }
}

fn ports_free(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.constraints
        .host_ports
        .iter()
        .all(|wanted| !node.host_ports.iter().any(|used| wanted.conflicts(used)))
}

fn resources_fit(pod: &PodInfo, node: &NodeInfo) -> bool {
    let (want, used, has) = (&pod.demand.requests, &node.requested, &node.allocatable);
    // A resource that is not asked for may be overcommitted already without concerning this pod.
    let fits = |want: i64, used: i64, has: i64| want == 0 || want <= has - used;
    fits(want.pods, used.pods, has.pods)
        && fits(want.milli_cpu, used.milli_cpu, has.milli_cpu)
        && fits(want.memory, used.memory, has.memory)
        && fits(
            want.ephemeral_storage,
            used.ephemeral_storage,
            has.ephemeral_storage,
        )
        && want.extended.iter().all(|(name, want)| {
            let of = |amounts: &super::resources::Resources| amounts.extended.get(name).copied().unwrap_or(0);
            fits(*want, of(used), of(has))
        })
}

fn lacking(pod: &PodInfo, node: &NodeInfo) -> Vec<Rejection> {
    let (want, used, has) = (&pod.demand.requests, &node.requested, &node.allocatable);
    let short = |want: i64, used: i64, has: i64| want != 0 && want > has - used;
    let mut out = Vec::new();
    if short(want.pods, used.pods, has.pods) {
        out.push(Rejection::TooManyPods);
    }
    for (name, want, used, has) in [
        ("cpu", want.milli_cpu, used.milli_cpu, has.milli_cpu),
        ("memory", want.memory, used.memory, has.memory),
        (
            "ephemeral-storage",
            want.ephemeral_storage,
            used.ephemeral_storage,
            has.ephemeral_storage,
        ),
    ] {
        if short(want, used, has) {
            out.push(Rejection::Insufficient(name.into()));
        }
    }
    for (name, want) in &want.extended {
        let of = |amounts: &super::resources::Resources| amounts.extended.get(name).copied().unwrap_or(0);
        if short(*want, of(used), of(has)) {
            out.push(Rejection::Insufficient(name.to_string()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::snapshot::Snapshot;
    use crate::scheduler::testing::{node, pod};

    fn check(pod: &PodInfo, node: &k8s_openapi::api::core::v1::Node) -> Vec<String> {
        let mut snapshot = Snapshot::default();
        snapshot.upsert_node(node);
        let info = snapshot.node(snapshot.order()[0]);
        let reasons = rejections(pod, info);
        assert_eq!(fits(pod, info), reasons.is_empty(), "the quick test agrees");
        reasons.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resources() {
        assert!(check(&pod("p").cpu("4").build(), &node("n", 4)).is_empty());
        assert_eq!(
            check(&pod("p").cpu("4001m").build(), &node("n", 4)),
            ["Insufficient cpu"]
        );
        let greedy = pod("p")
            .request("memory", "100Ti")
            .request("example.com/gpu", "1")
            .build();
        assert_eq!(
            check(&greedy, &node("n", 4)),
            ["Insufficient memory", "Insufficient example.com/gpu"]
        );
        let mut full = node("n", 4);
        full.status
            .as_mut()
            .unwrap()
            .allocatable
            .as_mut()
            .unwrap()
            .insert(
                "pods".into(),
                k8s_openapi::apimachinery::pkg::api::resource::Quantity("0".into()),
            );
        assert_eq!(check(&pod("p").build(), &full), ["Too many pods"]);
    }

    #[test]
    fn taints_and_tolerations() {
        let tainted = |effect: &str| {
            let mut node = node("n", 4);
            node.spec.get_or_insert_default().taints = Some(vec![Taint {
                key: "k".into(),
                value: Some("v".into()),
                effect: effect.into(),
                time_added: None,
            }]);
            node
        };
        let reason = ["node(s) had untolerated taint {k: v}"];
        assert_eq!(check(&pod("p").build(), &tainted("NoSchedule")), reason);
        assert_eq!(check(&pod("p").build(), &tainted("NoExecute")), reason);
        assert!(check(&pod("p").build(), &tainted("PreferNoSchedule")).is_empty());
        for (toleration, covers) in [
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
            (
                json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
                true,
            ),
            (
                json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
                false,
            ),
            (json!({"operator": "Exists"}), true),
            (json!({"value": "v"}), false),
        ] {
            let pod = pod("p").toleration(toleration.clone()).build();
            assert_eq!(
                check(&pod, &tainted("NoSchedule")).is_empty(),
                covers,
                "{toleration}"
            );
        }
    }

    #[test]
    fn cordoned_nodes() {
        let mut cordoned = node("n", 4);
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(
            check(&pod("p").build(), &cordoned),
            ["node(s) were unschedulable"]
        );
        let daemon = pod("p")
            .toleration(json!({"key": UNSCHEDULABLE_TAINT, "operator": "Exists"}))
            .build();
        assert!(check(&daemon, &cordoned).is_empty());
    }

    #[test]
    fn selectors_and_affinity() {
        let mut labelled = node("n", 4);
        labelled.metadata.labels = Some(
            [
                ("disk".to_owned(), "ssd".to_owned()),
                ("gen".to_owned(), "7".to_owned()),
            ]
            .into(),
        );
        let no = ["node(s) didn't match Pod's node affinity/selector"];
        assert!(check(&pod("p").selector("disk", "ssd").build(), &labelled).is_empty());
        assert_eq!(check(&pod("p").selector("disk", "hdd").build(), &labelled), no);
        for (terms, matches) in [
            (
                json!([{"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}]),
                false,
            ),
            (
                json!([{"matchExpressions": [{"key": "nope", "operator": "NotIn", "values": ["x"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "gen", "operator": "Gt", "values": ["6"]}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "gen", "operator": "Lt", "values": ["7"]}]}]),
                false,
            ),
            (
                json!([{"matchExpressions": [{"key": "nope", "operator": "Exists"}]}, {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]),
                true,
            ),
            (
                json!([{"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]}]),
                false,
            ),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]),
                true,
            ),
            (
                json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["m"]}]}]),
                false,
            ),
            (json!([{}]), false),
        ] {
            let pod = pod("p").required(terms.clone()).build();
            assert_eq!(check(&pod, &labelled).is_empty(), matches, "{terms}");
        }
    }

    #[test]
    fn host_ports() {
        let mut snapshot = Snapshot::default();
        snapshot.upsert_node(&node("n", 4));
        snapshot.place(
            &std::sync::Arc::new(pod("a").host_port(80, "TCP", "10.0.0.1").build()),
            "n",
        );
        let info = |snapshot: &Snapshot, pod: &PodInfo| rejections(pod, snapshot.node(0));
        let other = |port, protocol, ip| pod("b").host_port(port, protocol, ip).build();
        assert_eq!(info(&snapshot, &other(80, "TCP", "0.0.0.0")), [Rejection::Ports]);
        assert_eq!(info(&snapshot, &other(80, "TCP", "10.0.0.1")), [Rejection::Ports]);
        assert!(info(&snapshot, &other(80, "TCP", "10.0.0.2")).is_empty());
        assert!(info(&snapshot, &other(80, "UDP", "10.0.0.1")).is_empty());
        assert!(info(&snapshot, &other(81, "TCP", "10.0.0.1")).is_empty());
        snapshot.unplace("a");
        assert!(info(&snapshot, &other(80, "TCP", "0.0.0.0")).is_empty());
    }
}
