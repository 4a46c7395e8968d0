//! Network policies, what comes in from outside, and the ranges of Services' addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::container::{port_name_problems, port_number};
use super::{
    Problems, dns_1035_problem, immutable, is_set, items, label_selector, subdomain_problem, supported, text,
};

/// A range of addresses; `None` if the text is not one. The addresses are those of the range's beginning.
fn cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
    (length <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, length))
}

const NOT_A_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// Whether `part` lies within `whole` and is smaller.
fn strictly_within(part: (IpAddr, u8), whole: (IpAddr, u8)) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(whole.1)).unwrap_or(0);
    part.0.is_ipv4() == whole.0.is_ipv4() && part.1 > whole.1 && bits(part.0) & mask == bits(whole.0) & mask
}

/// Checks a NetworkPolicy.
pub(crate) fn policy(policy: &Value, _old: Option<&Value>, problems: &mut Problems) {
    let spec = &policy["spec"];
    label_selector(&spec["podSelector"], "spec.podSelector", problems);
    for (rules, peers) in [("ingress", "from"), ("egress", "to")] {
        for (at, rule) in items(&spec[rules], &format!("spec.{rules}")) {
            for (field, port) in items(&rule["ports"], &format!("{at}.ports")) {
                policy_port(port, &field, problems);
            }
            for (field, peer) in items(&rule[peers], &format!("{at}.{peers}")) {
                policy_peer(peer, &field, problems);
            }
        }
    }
    let types = spec["policyTypes"].as_array().map_or(&[][..], Vec::as_slice);
    if types.len() > 2 {
        let detail = "may not specify more than two policyTypes";
        problems.invalid("spec.policyTypes", &spec["policyTypes"], detail);
        return;
    }
    for (field, kind) in items(&spec["policyTypes"], "spec.policyTypes") {
        if !matches!(text(kind), "Ingress" | "Egress") {
            problems.not_supported(&field, kind, &["Egress", "Ingress"]);
        }
    }
}

fn policy_port(port: &Value, at: &str, problems: &mut Problems) {
    supported(port, at, "protocol", &["SCTP", "TCP", "UDP"], problems);
    let (first, last) = (&port["port"], &port["endPort"]);
    let field = format!("{at}.endPort");
    match first {
        Value::Number(_) => {
            port_number(first, &format!("{at}.port"), problems);
            if !last.is_null() {
                if last.as_i64() < first.as_i64() {
                    problems.invalid(&field, last, "must be greater than or equal to `port`");
                }
                port_number(last, &field, problems);
            }
        }
        Value::String(name) => {
            if !last.is_null() {
                problems.invalid(&field, last, "may not be specified when `port` is non-numeric");
            }
            for problem in port_name_problems(name) {
                problems.invalid(&format!("{at}.port"), first, problem);
            }
        }
        _ if !last.is_null() => {
            problems.invalid(&field, last, "may not be specified when `port` is not specified");
        }
        _ => {}
    }
}

fn policy_peer(peer: &Value, at: &str, problems: &mut Problems) {
    let mut peers = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if peer[key].is_object() {
            peers += 1;
            label_selector(&peer[key], &format!("{at}.{key}"), problems);
        }
    }
    let block = &peer["ipBlock"];
    if block.is_object() {
        peers += 1;
        ip_block(block, &format!("{at}.ipBlock"), problems);
    }
    if peers == 0 {
        problems.required(at, "must specify a peer");
    } else if peers > 1 && block.is_object() {
        problems.forbidden(at, "may not specify both ipBlock and another peer");
    }
}

fn ip_block(block: &Value, at: &str, problems: &mut Problems) {
    let field = format!("{at}.cidr");
    if !is_set(&block["cidr"]) {
        problems.required(&field, "");
        return;
    }
    let Some(whole) = cidr(text(&block["cidr"])) else {
        problems.invalid(&field, &block["cidr"], NOT_A_CIDR);
        return;
    };
    for (field, except) in items(&block["except"], &format!("{at}.except")) {
        match cidr(text(except)) {
            None => problems.invalid(&field, except, NOT_A_CIDR),
            Some(part) if !strictly_within(part, whole) => {
                problems.invalid(&field, except, "must be a strict subset of `cidr`");
            }
            Some(_) => {}
        }
    }
}

/// Checks an Ingress.
pub(crate) fn ingress(ingress: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &ingress["spec"];
    let class = &spec["ingressClassName"];
    let annotation = &ingress["metadata"]["annotations"]["kubernetes.io/ingress.class"];
    if old.is_none() && annotation.is_string() && class.is_string() && annotation != class {
        let detail = "must match `ingressClassName` when both are specified";
        problems.invalid("annotations.kubernetes.io/ingress.class", annotation, detail);
    }
    if spec["rules"].as_array().is_none_or(Vec::is_empty) && spec["defaultBackend"].is_null() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        problems.invalid("spec", &json!([]), detail);
    }
    if spec["defaultBackend"].is_object() {
        backend(&spec["defaultBackend"], "spec.defaultBackend", problems);
    }
    if is_set(class)
        && let Some(problem) = subdomain_problem(text(class))
    {
        problems.invalid("spec.ingressClassName", class, &problem);
    }
    for (at, rule) in items(&spec["rules"], "spec.rules") {
        host(&rule["host"], &format!("{at}.host"), problems);
        if !rule["http"].is_object() {
            continue;
        }
        let at = format!("{at}.http.paths");
        if rule["http"]["paths"].as_array().is_none_or(Vec::is_empty) {
            problems.required(&at, "");
        }
        for (field, path) in items(&rule["http"]["paths"], &at) {
            ingress_path(path, &field, problems);
            backend(&path["backend"], &format!("{field}.backend"), problems);
        }
    }
    for (at, entry) in items(&spec["tls"], "spec.tls") {
        for (field, name) in items(&entry["hosts"], &format!("{at}.hosts")) {
            host(name, &field, problems);
        }
    }
}

fn host(host: &Value, field: &str, problems: &mut Problems) {
    const WILDCARD: &str = "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
         of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. '*.example.com', regex used for \
         validation is '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    let name = text(host);
    if name.is_empty() {
        return;
    }
    if name.parse::<IpAddr>().is_ok() {
        problems.invalid(field, host, "must be a DNS name, not an IP address");
    }
    if name.contains('*') {
        let rest = name
            .strip_prefix("*.")
            .filter(|rest| subdomain_problem(rest).is_none());
        if rest.is_none() {
            problems.invalid(field, host, WILDCARD);
        }
    } else if let Some(problem) = subdomain_problem(name) {
        problems.invalid(field, host, &problem);
    }
}

fn ingress_path(path: &Value, at: &str, problems: &mut Problems) {
    const SEQUENCES: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
    const SUFFIXES: [&str; 2] = ["/..", "/."];
    let (kind, value) = (text(&path["pathType"]), text(&path["path"]));
    let field = format!("{at}.path");
    match kind {
        "" => problems.required(&format!("{at}.pathType"), "pathType must be specified"),
        "Exact" | "Prefix" => {
            if !value.starts_with('/') {
                problems.invalid(&field, &json!(value), "must be an absolute path");
            }
            for sequence in SEQUENCES.iter().filter(|sequence| value.contains(**sequence)) {
                problems.invalid(&field, &path["path"], &format!("must not contain '{sequence}'"));
            }
            for suffix in SUFFIXES.iter().filter(|suffix| value.ends_with(**suffix)) {
                problems.invalid(&field, &path["path"], &format!("cannot end with '{suffix}'"));
            }
        }
        "ImplementationSpecific" => {
            if !value.is_empty() && !value.starts_with('/') {
                problems.invalid(&field, &path["path"], "must be an absolute path");
            }
        }
        _ => problems.not_supported(
            &format!("{at}.pathType"),
            &path["pathType"],
            &["Exact", "ImplementationSpecific", "Prefix"],
        ),
    }
}

fn backend(backend: &Value, at: &str, problems: &mut Problems) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_object(), resource.is_object()) {
        (true, true) => problems.invalid(at, &json!(""), "cannot set both resource and service backends"),
        (false, true) => {
            for key in ["kind", "name"] {
                if !is_set(&resource[key]) {
                    problems.required(&format!("{at}.resource.{key}"), "");
                }
            }
        }
        (true, false) => {
            let (name, port) = (&service["name"], &service["port"]);
            if !is_set(name) {
                problems.required(&format!("{at}.service.name"), "");
            } else if let Some(problem) = dns_1035_problem(text(name)) {
                problems.invalid(&format!("{at}.service.name"), name, &problem);
            }
            let number = port["number"].as_i64().unwrap_or_default();
            match (is_set(&port["name"]), number != 0) {
                (true, true) => problems.invalid(at, &json!(""), "cannot set both port name & port number"),
                (true, false) => {
                    for problem in port_name_problems(text(&port["name"])) {
                        problems.invalid(&format!("{at}.service.port.name"), &port["name"], problem);
                    }
                }
                (false, true) => port_number(&port["number"], &format!("{at}.service.port.number"), problems),
                (false, false) => problems.required(at, "port name or number is required"),
            }
        }
        (false, false) => problems.invalid(at, &json!(""), "either service or resource backend is required"),
    }
}

/// Checks an IngressClass.
pub(crate) fn ingress_class(class: &Value, old: Option<&Value>, problems: &mut Problems) {
    const MAX_CONTROLLER: usize = 250;
    let controller = &class["spec"]["controller"];
    if !is_set(controller) {
        problems.required("spec.controller", "");
    } else if text(controller).len() > MAX_CONTROLLER {
        let detail = format!("Too long: may not be more than {MAX_CONTROLLER} bytes");
        problems.invalid("spec.controller", controller, &detail);
    } else {
        let (domain, path) = text(controller).split_once('/').unwrap_or_default();
        if domain.is_empty() || path.is_empty() || subdomain_problem(domain).is_some() {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            problems.invalid("spec.controller", controller, detail);
        }
    }
    let parameters = &class["spec"]["parameters"];
    if parameters.is_object() {
        let at = "spec.parameters";
        for key in ["kind", "name"] {
            if !is_set(&parameters[key]) {
                problems.required(&format!("{at}.{key}"), &format!("{key} is required"));
            }
        }
        supported(parameters, at, "scope", &["Cluster", "Namespace"], problems);
        let namespaced = parameters["scope"] == "Namespace";
        if namespaced && !is_set(&parameters["namespace"]) {
            let detail = "`parameters.scope` is set to 'Namespace'";
            problems.required(&format!("{at}.namespace"), detail);
        } else if !namespaced && is_set(&parameters["namespace"]) {
            let detail = "`parameters.scope` is set to 'Cluster'";
            problems.forbidden(&format!("{at}.namespace"), detail);
        }
    }
    immutable(class, old, "spec.controller", problems);
}

/// Checks a ServiceCIDR.
pub(crate) fn service_cidr(range: &Value, old: Option<&Value>, problems: &mut Problems) {
    let cidrs = range["spec"]["cidrs"].as_array().map_or(&[][..], Vec::as_slice);
    if cidrs.is_empty() {
        problems.required("spec.cidrs", "at least one CIDR required");
    }
    let mut families = BTreeSet::new();
    for (field, value) in items(&range["spec"]["cidrs"], "spec.cidrs") {
        match cidr(text(value)) {
            None => problems.invalid(&field, value, NOT_A_CIDR),
            Some((address, _)) => _ = families.insert(address.is_ipv4()),
        }
    }
    if cidrs.len() > 2 || (cidrs.len() == 2 && families.len() == 1) {
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        problems.invalid("spec", &range["spec"]["cidrs"], detail);
    }
    immutable(range, old, "spec.cidrs", problems);
}

/// Checks an IPAddress.
pub(crate) fn ip_address(address: &Value, old: Option<&Value>, problems: &mut Problems) {
    let name = &address["metadata"]["name"];
    let parsed = text(name).parse::<IpAddr>();
    if parsed.as_ref().map(ToString::to_string).as_deref() != Ok(text(name)) {
        problems.invalid("metadata.name", name, "not a valid address in canonical format");
    }
    let parent = &address["spec"]["parentRef"];
    if !parent.is_object() {
        problems.required("spec.parentRef", "");
    }
    for key in ["resource", "name"] {
        if parent.is_object() && !is_set(&parent[key]) {
            problems.required(&format!("spec.parentRef.{key}"), "");
        }
    }
    immutable(address, old, "spec.parentRef", problems);
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn network_policies_are_checked_as_kubernetes_does() {
        let with = |ingress: Value| json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [ingress]}});
        let good = json!({"from": [{"podSelector": {}, "namespaceSelector": {}}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
            "ports": [{"protocol": "TCP", "port": 80, "endPort": 90}, {"protocol": "UDP", "port": "dns"}, {}]});
        assert!(said(policy, &with(good), None).is_empty());
        for (rule, expected) in [
            (
                json!({"from": [{}]}),
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ),
            (
                json!({"from": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0"}}]}),
                "spec.ingress[0].from[0].ipBlock.cidr: Invalid value: \"10.0.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or \
                 2001:db8::/64)",
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}),
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
            ),
            (
                json!({"ports": [{"port": 90, "endPort": 80}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ),
            (
                json!({"ports": [{"port": "x", "endPort": 80}]}),
                "spec.ingress[0].ports[0].endPort: Invalid value: 80: may not be specified when `port` is non-numeric",
            ),
            (
                json!({"ports": [{"protocol": "ICMP"}]}),
                "spec.ingress[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
        ] {
            assert_eq!(said(policy, &with(rule), None), [expected]);
        }
    }

    #[test]
    fn ingresses_are_checked_as_kubernetes_does() {
        let service = json!({"service": {"name": "s", "port": {"number": 80}}});
        let with =
            |host: &str, path: Value| json!({"spec": {"rules": [{"host": host, "http": {"paths": [path]}}]}});
        let good = json!({"path": "/", "pathType": "Prefix", "backend": service});
        assert!(said(ingress, &with("*.example.com", good.clone()), None).is_empty());
        for (object, expected) in [
            (
                json!({"spec": {}}),
                "spec: Invalid value: []: either `defaultBackend` or `rules` must be specified",
            ),
            (
                with("10.0.0.1", good.clone()),
                "spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address",
            ),
            (
                with("a", json!({"path": "x", "pathType": "Exact", "backend": service})),
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
            ),
            (
                with("a", json!({"path": "/", "backend": service})),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                with(
                    "a",
                    json!({"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s"}}}),
                ),
                "spec.rules[0].http.paths[0].backend: Required value: port name or number is required",
            ),
        ] {
            assert_eq!(said(ingress, &object, None), [expected]);
        }
        let class = |controller: &str| json!({"spec": {"controller": controller}});
        assert!(said(ingress_class, &class("example.com/c"), None).is_empty());
        assert_eq!(
            said(ingress_class, &class("nginx"), None),
            [
                "spec.controller: Invalid value: \"nginx\": must be a domain-prefixed path (such as \"acme.io/foo\")"
            ]
        );
        assert_eq!(
            said(
                ingress_class,
                &class("example.com/d"),
                Some(&class("example.com/c"))
            ),
            ["spec.controller: Invalid value: \"example.com/d\": field is immutable"]
        );
    }

    #[test]
    fn address_ranges_are_checked_as_kubernetes_does() {
        let range = |cidrs: Value| json!({"spec": {"cidrs": cidrs}});
        assert!(said(service_cidr, &range(json!(["10.96.0.0/12", "fd00::/112"])), None).is_empty());
        assert_eq!(
            said(service_cidr, &range(json!([])), None),
            ["spec.cidrs: Required value: at least one CIDR required"]
        );
        assert_eq!(
            said(service_cidr, &range(json!(["10.96.0.0/12", "10.0.0.0/24"])), None).len(),
            1
        );
        let address = |name: &str| json!({"metadata": {"name": name}, "spec": {"parentRef": {"resource": "services", "name": "s"}}});
        assert!(said(ip_address, &address("10.0.0.1"), None).is_empty());
        assert_eq!(
            said(ip_address, &address("fd00::0:1"), None),
            ["metadata.name: Invalid value: \"fd00::0:1\": not a valid address in canonical format"]
        );
    }
}
