//! Node selectors: which nodes a pod may run on, or would like to.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use crate::scheduler::node::NodeInfo;
use crate::scheduler::pod::Labels;

/// Whether the node has all the labels, and matches one of the terms if there are terms.
pub(in crate::scheduler) fn matches(
    selector: &Labels,
    required: Option<&[NodeSelectorTerm]>,
    node: &NodeInfo,
) -> bool {
    selector
        .iter()
        .all(|(key, value)| node.labels.get(key) == Some(value))
        && required.is_none_or(|terms| terms.iter().any(|term| term_matches(term, node)))
}

/// The names of the only nodes that can match, if every term names some.
pub(in crate::scheduler) fn named_nodes(terms: &[NodeSelectorTerm]) -> Option<Vec<String>> {
    let mut all = Vec::new();
    for term in terms {
        let named = term
            .match_fields
            .iter()
            .flatten()
            .find(|field| field.key == "metadata.name" && field.operator == "In")?;
        all.extend(named.values.clone().unwrap_or_default());
    }
    all.sort();
    all.dedup();
    Some(all)
}

/// Whether a node selector term matches; an empty one matches nothing.
pub(in crate::scheduler) fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
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

/// Whether one requirement of a term matches the value that the node has, if it has one.
pub fn requirement_matches(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
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
