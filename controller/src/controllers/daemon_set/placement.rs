//! On which nodes a DaemonSet's pods belong, and how a pod is told its node: the scheduler binds it, but to no other.

use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodSpec, Taint, Toleration,
};

use crate::scheduler::filter::{requirement_matches, tolerates};

/// What a node is to a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitness {
    /// A pod belongs there.
    pub should_run: bool,
    /// A pod that is there already may stay.
    pub may_stay: bool,
}

/// Judges a node by the pod's selectors and tolerations. Whether it has room is the scheduler's business.
pub fn fitness(spec: &PodSpec, node: &Node) -> Fitness {
    const NEVER: Fitness = Fitness {
        should_run: false,
        may_stay: false,
    };
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let named = spec.node_name.as_deref().unwrap_or_default();
    if (!named.is_empty() && named != name) || !selected(spec, node, name) {
        return NEVER;
    }
    let tolerations = tolerations(spec);
    let bears = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let hostile = |effect: &str| {
        taints
            .unwrap_or_default()
            .iter()
            .any(|taint| taint.effect == effect && !bears(taint))
    };
    let evicts = hostile("NoExecute");
    Fitness {
        should_run: !evicts && !hostile("NoSchedule"),
        may_stay: !evicts,
    }
}

fn selected(spec: &PodSpec, node: &Node, name: &str) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let selector_matches = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| label(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    selector_matches
        && required.is_none_or(|required| {
            required.node_selector_terms.iter().any(|term| {
                let labels = term.match_expressions.as_deref().unwrap_or_default();
                let fields = term.match_fields.as_deref().unwrap_or_default();
                (!labels.is_empty() || !fields.is_empty())
                    && labels
                        .iter()
                        .all(|asked| requirement_matches(asked, label(&asked.key)))
                    && fields
                        .iter()
                        .all(|asked| asked.key == "metadata.name" && requirement_matches(asked, Some(name)))
            })
        })
}

/// Taints that a DaemonSet's pod bears whatever its template says, with their effects.
const BORNE: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for a pod that shares the node's network.
const BORNE_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

fn tolerations(spec: &PodSpec) -> Vec<Toleration> {
    let mut all = spec.tolerations.clone().unwrap_or_default();
    let host = spec.host_network == Some(true);
    for (key, effect) in BORNE.iter().chain(host.then_some(&BORNE_ON_HOST)) {
        let wanted = Toleration {
            key: Some((*key).into()),
            operator: Some("Exists".into()),
            effect: Some((*effect).into()),
            ..Toleration::default()
        };
        // One with a limit gives way: the node's troubles are no reason to leave it.
        all.retain(|known| {
            let same = (&known.key, &known.operator, &known.effect)
                == (&wanted.key, &wanted.operator, &wanted.effect);
            !same || known.value != wanted.value
        });
        all.push(wanted);
    }
    all
}

/// Pins a pod to a node. The template's own required node affinity was judged already and gives way.
pub fn pin(spec: &mut PodSpec, node: &str) {
    spec.tolerations = Some(tolerations(spec));
    spec.affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_fields: Some(vec![NodeSelectorRequirement {
                key: "metadata.name".into(),
                operator: "In".into(),
                values: Some(vec![node.into()]),
            }]),
            match_expressions: None,
        }],
    });
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn judge(spec: Value, node: Value) -> (bool, bool) {
        let mut full = json!({ "containers": [] });
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let spec: PodSpec = serde_json::from_value(full).unwrap();
        let node: Node = serde_json::from_value(node).unwrap();
        let found = fitness(&spec, &node);
        (found.should_run, found.may_stay)
    }

    fn node(taints: Value) -> Value {
        json!({ "metadata": { "name": "n1", "labels": { "disk": "ssd" } }, "spec": { "taints": taints } })
    }

    #[test]
    fn nodes_are_judged_by_selectors_and_taints() {
        let plain = node(json!([]));
        assert_eq!(judge(json!({}), plain.clone()), (true, true));
        assert_eq!(judge(json!({ "nodeName": "n2" }), plain.clone()), (false, false));
        assert_eq!(
            judge(json!({ "nodeSelector": { "disk": "hdd" } }), plain.clone()),
            (false, false)
        );
        let affinity = |terms: Value| {
            json!({ "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": terms } } } })
        };
        let ssd = json!([{ "matchExpressions": [{ "key": "disk", "operator": "In", "values": ["ssd"] }] }]);
        assert_eq!(judge(affinity(ssd), plain.clone()), (true, true));
        let other =
            json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n2"] }] }]);
        assert_eq!(judge(affinity(other), plain), (false, false));

        let tainted = |key: &str, effect: &str| node(json!([{ "key": key, "effect": effect }]));
        assert_eq!(
            judge(json!({}), tainted("mine", "NoSchedule")),
            (false, true),
            "what runs stays"
        );
        assert_eq!(judge(json!({}), tainted("mine", "NoExecute")), (false, false));
        assert_eq!(
            judge(json!({}), tainted("mine", "PreferNoSchedule")),
            (true, true)
        );
        let bears = json!({ "tolerations": [{ "operator": "Exists" }] });
        assert_eq!(judge(bears, tainted("mine", "NoExecute")), (true, true));
        for (key, effect) in BORNE {
            assert_eq!(judge(json!({}), tainted(key, effect)), (true, true), "{key}");
        }
        let (key, effect) = BORNE_ON_HOST;
        assert_eq!(judge(json!({}), tainted(key, effect)), (false, true));
        assert_eq!(
            judge(json!({ "hostNetwork": true }), tainted(key, effect)),
            (true, true)
        );
    }

    #[test]
    fn a_pinned_pod_names_its_node_alone() {
        let mut spec: PodSpec = serde_json::from_value(json!({ "containers": [],
            "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms":
                [{ "matchExpressions": [{ "key": "a", "operator": "Exists" }] }] } },
                "podAntiAffinity": {} } }))
        .unwrap();
        pin(&mut spec, "n7");
        pin(&mut spec, "n7");
        assert_eq!(spec.tolerations.as_ref().unwrap().len(), BORNE.len(), "not twice");
        let affinity = serde_json::to_value(spec.affinity).unwrap();
        assert_eq!(
            affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"],
            json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n7"] }] }])
        );
        assert!(
            affinity["podAntiAffinity"].is_object(),
            "the rest of the affinity stays"
        );
    }
}
