//! `networking.k8s.io`: who may talk to whom, what comes in from outside, and which addresses Services have.

use serde_json::{Value, json};

use super::Subresource::Status;
use super::{NAME, Resource, printing, row, text, validation};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: &[NAME, text("Controller"), text("Parameters"), text("Age")],
        generation: true,
        cells: |class, now| {
            let parameters = &class["spec"]["parameters"];
            let mut what = parameters["kind"].as_str().unwrap_or_default().to_owned();
            if let Some(group) = parameters["apiGroup"].as_str() {
                what = format!("{what}.{group}");
            }
            if parameters.is_object() {
                what = format!("{what}/{}", parameters["name"].as_str().unwrap_or_default());
            }
            vec![
                class["metadata"]["name"].clone(),
                class["spec"]["controller"].clone(),
                printing::none_if_empty(what),
                printing::age(class, now),
            ]
        },
        validate: validation::network::ingress_class,
        ..row(
            GROUP,
            "v1",
            "IngressClass",
            ("ingressclasses", "ingressclass"),
            "networking.k8s.io/ingressclasses",
        )
    },
    Resource {
        short_names: &["ing"],
        subresources: &[Status],
        generation: true,
        columns: &[
            NAME,
            text("Class"),
            text("Hosts"),
            text("Address"),
            text("Ports"),
            text("Age"),
        ],
        cells: |ingress, now| {
            let spec = &ingress["spec"];
            let tls = spec["tls"].as_array().is_some_and(|list| !list.is_empty());
            vec![
                ingress["metadata"]["name"].clone(),
                printing::or_none(&spec["ingressClassName"]),
                hosts(&spec["rules"]).into(),
                printing::balancer(&ingress["status"]["loadBalancer"]).into(),
                if tls { "80, 443" } else { "80" }.into(),
                printing::age(ingress, now),
            ]
        },
        validate: validation::network::ingress,
        ..row(
            GROUP,
            "v1",
            "Ingress",
            ("ingresses", "ingress"),
            "networking.k8s.io/ingresses",
        )
    },
    Resource {
        short_names: &["ip"],
        namespaced: false,
        columns: &[NAME, text("ParentRef"), text("Age")],
        cells: |address, now| {
            let parent = &address["spec"]["parentRef"];
            let part = |key: &str| parent[key].as_str().unwrap_or_default();
            let mut what = part("resource").to_owned();
            if !part("group").is_empty() {
                what = format!("{what}.{}", part("group"));
            }
            for key in ["namespace", "name"] {
                if !part(key).is_empty() {
                    what = format!("{what}/{}", part(key));
                }
            }
            vec![
                address["metadata"]["name"].clone(),
                printing::none_if_empty(what),
                printing::age(address, now),
            ]
        },
        validate: validation::network::ip_address,
        name_problem: validation::path_segment_problem,
        ..row(
            GROUP,
            "v1",
            "IPAddress",
            ("ipaddresses", "ipaddress"),
            "networking.k8s.io/ipaddresses",
        )
    },
    Resource {
        short_names: &["netpol"],
        generation: true,
        columns: &[NAME, text("Pod-Selector"), text("Age")],
        cells: |policy, now| {
            vec![
                policy["metadata"]["name"].clone(),
                printing::selector(&policy["spec"]["podSelector"]),
                printing::age(policy, now),
            ]
        },
        validate: validation::network::policy,
        ..row(
            GROUP,
            "v1",
            "NetworkPolicy",
            ("networkpolicies", "networkpolicy"),
            "networking.k8s.io/networkpolicies",
        )
    },
    Resource {
        namespaced: false,
        subresources: &[Status],
        columns: &[NAME, text("CIDRs"), text("Age")],
        cells: |range, now| {
            let cidrs = range["spec"]["cidrs"].as_array().into_iter().flatten();
            let cidrs: Vec<_> = cidrs.filter_map(Value::as_str).collect();
            vec![
                range["metadata"]["name"].clone(),
                json!(cidrs.join(",")),
                printing::age(range, now),
            ]
        },
        validate: validation::network::service_cidr,
        ..row(
            GROUP,
            "v1",
            "ServiceCIDR",
            ("servicecidrs", "servicecidr"),
            "networking.k8s.io/servicecidrs",
        )
    },
];

const GROUP: &str = "networking.k8s.io";

/// The first three hosts; `*` where none is named.
fn hosts(rules: &Value) -> String {
    let rules = rules.as_array().map_or(&[][..], Vec::as_slice);
    let (mut shown, mut more): (Vec<&str>, bool) = (Vec::new(), false);
    for rule in rules {
        more |= shown.len() == 3;
        let host = rule["host"].as_str().unwrap_or_default();
        if !more && !host.is_empty() {
            shown.push(host);
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => "*".to_owned(),
        (false, true) => format!("{} + {} more...", shown.join(","), rules.len() - 3),
        (false, false) => shown.join(","),
    }
}
