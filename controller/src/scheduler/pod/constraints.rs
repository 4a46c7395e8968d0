//! Reads out of a pod's spec where it may or would like to go.

use k8s_openapi::api::core::v1::{Affinity, PodAffinityTerm, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as SelectorSpec;

use super::{Constraints, HostPort, Labels, NearTo, Spread};
use crate::informer::ObjectKey;
use crate::scheduler::selection::{PodSet, Term};
use crate::selector::{LabelSelector, Operator, Requirement};

pub(super) fn take(spec: &mut PodSpec, key: &ObjectKey, labels: &Labels) -> Constraints {
    let host_ports = host_ports(spec);
    let claims = claims(spec, &key.name);
    let images = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .filter_map(|container| container.image.clone())
        .collect();
    let namespace = &*key.namespace;
    let Affinity {
        node_affinity,
        pod_affinity,
        pod_anti_affinity,
    } = spec.affinity.take().unwrap_or_default();
    let on_nodes = node_affinity.unwrap_or_default();
    let near = pod_affinity.unwrap_or_default();
    let away = pod_anti_affinity.unwrap_or_default();
    let term = |term: PodAffinityTerm| near_to(term, namespace, labels);
    let liked = near
        .preferred_during_scheduling_ignored_during_execution
        .into_iter()
        .flatten()
        .map(|wish| (i64::from(wish.weight), term(wish.pod_affinity_term)));
    let disliked = away
        .preferred_during_scheduling_ignored_during_execution
        .into_iter()
        .flatten()
        .map(|wish| (-i64::from(wish.weight), term(wish.pod_affinity_term)));
    Constraints {
        selector: spec.node_selector.take().unwrap_or_default(),
        required: on_nodes
            .required_during_scheduling_ignored_during_execution
            .map(|selector| selector.node_selector_terms),
        preferred: on_nodes
            .preferred_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(|term| (term.weight, term.preference))
            .collect(),
        tolerations: spec.tolerations.take().unwrap_or_default().into(),
        host_ports,
        spreads: spec
            .topology_spread_constraints
            .take()
            .into_iter()
            .flatten()
            .map(|wish| spread(wish, namespace, labels))
            .collect(),
        leanings: liked.chain(disliked).collect(),
        near: near
            .required_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(term)
            .collect(),
        away: away
            .required_during_scheduling_ignored_during_execution
            .into_iter()
            .flatten()
            .map(term)
            .collect(),
        claims,
        images,
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = spec.host_network.unwrap_or_default();
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.or(host_network.then_some(port.container_port))?;
            (number > 0).then(|| HostPort {
                port: number,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
                ip: port
                    .host_ip
                    .clone()
                    .filter(|ip| !ip.is_empty())
                    .unwrap_or_else(|| "0.0.0.0".into()),
            })
        })
        .collect()
}

/// Claims named by the pod, and those made for its own volumes.
fn claims(spec: &PodSpec, pod: &str) -> Vec<String> {
    let mut claims = Vec::new();
    for volume in spec.volumes.iter().flatten() {
        if let Some(claim) = &volume.persistent_volume_claim {
            claims.push(claim.claim_name.clone());
        } else if volume.ephemeral.is_some() {
            claims.push(format!("{pod}-{}", volume.name));
        }
    }
    claims.sort();
    claims.dedup();
    claims
}

/// The selector with the values that the pod itself has for `same`, and without those it has for `other`. The API server
/// may have written them into the selector already; saying it twice changes nothing.
fn with_own_labels(
    selector: Option<&SelectorSpec>,
    same: Option<Vec<String>>,
    other: Option<Vec<String>>,
    labels: &Labels,
) -> LabelSelector {
    // The API refuses selectors that do not parse; one that got through selects nothing.
    let Ok(parsed) = LabelSelector::from_object(selector) else {
        return LabelSelector::nothing();
    };
    if parsed.is_nothing() || (same.is_none() && other.is_none()) {
        return parsed;
    }
    let mut all = parsed.requirements().to_vec();
    for (keys, operator) in [(same, Operator::In), (other, Operator::NotIn)] {
        for key in keys.into_iter().flatten() {
            if let Some(value) = labels.get(&key)
                && let Ok(requirement) = Requirement::new(&key, operator, vec![value.clone()])
                && !all.contains(&requirement)
            {
                all.push(requirement);
            }
        }
    }
    LabelSelector::new(all)
}

fn near_to(term: PodAffinityTerm, namespace: &str, labels: &Labels) -> NearTo {
    let selector = with_own_labels(
        term.label_selector.as_ref(),
        term.match_label_keys,
        term.mismatch_label_keys,
        labels,
    );
    let namespace_selector = term.namespace_selector.as_ref().map(|selector| {
        LabelSelector::from_object(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
    });
    let mut namespaces = term.namespaces.unwrap_or_default();
    if namespaces.is_empty() && namespace_selector.is_none() {
        namespaces.push(namespace.to_owned());
    }
    NearTo {
        topology_key: term.topology_key,
        pods: Term {
            namespaces: namespaces.into_iter().map(Into::into).collect(),
            namespace_selector,
            selector,
        },
    }
}

fn spread(wish: TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Spread {
    let selector = with_own_labels(wish.label_selector.as_ref(), wish.match_label_keys, None, labels);
    Spread {
        max_skew: wish.max_skew,
        topology_key: wish.topology_key,
        required: wish.when_unsatisfiable != "ScheduleAnyway",
        min_domains: wish.min_domains,
        honor_affinity: wish.node_affinity_policy.as_deref() != Some("Ignore"),
        honor_taints: wish.node_taints_policy.as_deref() == Some("Honor"),
        pods: PodSet::staying(Term {
            namespaces: vec![namespace.into()],
            namespace_selector: None,
            selector,
        }),
    }
}
