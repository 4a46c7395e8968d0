//! Nodes.

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::{Problems, printing, validation};

pub(super) fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    vec![
        node["metadata"]["name"].clone(),
        status(node).into(),
        printing::none_if_empty(roles(node)),
        printing::age(node, now),
        info["kubeletVersion"].as_str().unwrap_or_default().into(),
        address(node, "InternalIP"),
        address(node, "ExternalIP"),
        unknown(&info["osImage"]),
        unknown(&info["kernelVersion"]),
        unknown(&info["containerRuntimeVersion"]),
    ]
}

pub(super) fn validate(node: &Value, old: Option<&Value>, problems: &mut Problems) {
    // A node's pod CIDRs are given once: addresses from them may be in use.
    if let Some(old) = old {
        for key in ["podCIDR", "podCIDRs"] {
            if !old["spec"][key].is_null() {
                validation::immutable(node, Some(old), &format!("spec.{key}"), problems);
            }
        }
    }
    for (index, taint) in node["spec"]["taints"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        if !taint["effect"]
            .as_str()
            .is_some_and(|effect| effects.contains(&effect))
        {
            problems.not_supported(
                &format!("spec.taints[{index}].effect"),
                &taint["effect"],
                &effects,
            );
        }
    }
}

fn status(node: &Value) -> String {
    let conditions = node["status"]["conditions"].as_array();
    let ready = conditions.and_then(|list| list.iter().find(|condition| condition["type"] == "Ready"));
    let mut text = match ready.map(|condition| condition["status"] == "True") {
        Some(true) => "Ready",
        Some(false) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if node["spec"]["unschedulable"] == true {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(|(key, value)| {
            key.strip_prefix("node-role.kubernetes.io/")
                .or_else(|| (key == "kubernetes.io/role").then(|| value.as_str().unwrap_or_default()))
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.join(",")
}

fn address(node: &Value, kind: &str) -> Value {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut addresses = addresses.filter(|address| address["type"] == kind);
    addresses
        .next()
        .map_or_else(|| "<none>".into(), |address| address["address"].clone())
}

fn unknown(value: &Value) -> Value {
    match value.as_str() {
        Some(text) if !text.is_empty() => text.into(),
        _ => "<unknown>".into(),
    }
}
