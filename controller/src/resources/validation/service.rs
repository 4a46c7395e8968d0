//! Services and where their pods are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::container::{port_number, port_or_name};
use super::{Problems, is_set, items, label_problem, labels, subdomain_problem, supported, text};
use crate::selector::label_key_problem;

/// Most addresses, or families, of a Service.
const MAX_ADDRESSES: usize = 2;
/// The port on which nodes are served; load balancers may not take it.
const NODE_API_PORT: i64 = 10_250;

/// Checks a Service.
pub(crate) fn service(service: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &service["spec"];
    let kind = text(&spec["type"]);
    let headless = spec["clusterIP"] == "None" || spec["clusterIPs"][0] == "None";
    if spec["ports"].as_array().is_none_or(Vec::is_empty) && !headless && kind != "ExternalName" {
        problems.required("spec.ports", "");
    }
    by_type(spec, kind, headless, problems);
    ports(spec, kind, problems);
    labels(&spec["selector"], "spec.selector", problems);
    affinity(spec, problems);
    if kind != "ExternalName" {
        addresses(spec, problems);
    }
    for (field, address) in items(&spec["externalIPs"], "spec.externalIPs") {
        reachable_address(address, &field, problems);
    }
    let types = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    supported(spec, "spec", "type", &types, problems);
    traffic(spec, kind, problems);
    if let Some(old) = old {
        changes(spec, &old["spec"], problems);
    }
}

fn by_type(spec: &Value, kind: &str, headless: bool, problems: &mut Problems) {
    match kind {
        "LoadBalancer" | "NodePort" => {
            if headless {
                let detail = format!("may not be set to 'None' for {kind} services");
                problems.invalid("spec.clusterIPs[0]", &json!("None"), &detail);
            }
            for (field, port) in items(&spec["ports"], "spec.ports") {
                if kind == "LoadBalancer" && port["port"] == NODE_API_PORT {
                    let detail =
                        format!("may not expose port {NODE_API_PORT} externally since it is used by kubelet");
                    problems.invalid(&field, &port["port"], &detail);
                }
            }
        }
        "ExternalName" => {
            for key in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
                let set = match &spec[key] {
                    Value::Array(list) => list.iter().any(|entry| entry != ""),
                    other => !other.is_null(),
                };
                if set {
                    problems.forbidden(&format!("spec.{key}"), "may not be set for ExternalName services");
                }
            }
            let name = text(&spec["externalName"]);
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                problems.required("spec.externalName", "");
            } else if let Some(problem) = subdomain_problem(name) {
                problems.invalid("spec.externalName", &json!(name), &problem);
            }
        }
        _ => {}
    }
}

fn ports(spec: &Value, kind: &str, problems: &mut Problems) {
    let many = spec["ports"].as_array().is_some_and(|ports| ports.len() > 1);
    let (mut names, mut on_nodes, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (field, port) in items(&spec["ports"], "spec.ports") {
        let name = &port["name"];
        if is_set(name) {
            if let Some(problem) = label_problem(text(name)) {
                problems.invalid(&format!("{field}.name"), name, &problem);
            }
            if !names.insert(text(name)) {
                problems.duplicate(&format!("{field}.name"), name);
            }
        } else if many {
            problems.required(&format!("{field}.name"), "");
        }
        port_number(&port["port"], &format!("{field}.port"), problems);
        supported(port, &field, "protocol", &["SCTP", "TCP", "UDP"], problems);
        port_or_name(&port["targetPort"], &format!("{field}.targetPort"), problems);
        if let Some(protocol) = port["appProtocol"].as_str()
            && let Some(problem) = label_key_problem(protocol)
        {
            problems.invalid(&format!("{field}.appProtocol"), &port["appProtocol"], &problem);
        }
        let on_node = port["nodePort"].as_i64().unwrap_or_default();
        let protocol = text(&port["protocol"]);
        if on_node != 0 && kind == "ClusterIP" {
            let detail = "may not be used when `type` is 'ClusterIP'";
            problems.forbidden(&format!("{field}.nodePort"), detail);
        }
        if on_node != 0 && !on_nodes.insert((protocol, on_node)) {
            problems.duplicate(&format!("{field}.nodePort"), &port["nodePort"]);
        }
        if !taken.insert((protocol, port["port"].as_i64())) {
            let value = json!({"name": "", "protocol": protocol, "port": port["port"]});
            problems.duplicate(&field, &value);
        }
    }
}

fn affinity(spec: &Value, problems: &mut Problems) {
    const MOST_SECONDS: i64 = 86_400;
    supported(spec, "spec", "sessionAffinity", &["ClientIP", "None"], problems);
    let config = &spec["sessionAffinityConfig"];
    if spec["sessionAffinity"] == "ClientIP" {
        let seconds = &config["clientIP"]["timeoutSeconds"];
        if seconds
            .as_i64()
            .is_some_and(|seconds| !(1..=MOST_SECONDS).contains(&seconds))
        {
            let detail = format!("must be greater than 0 and less than {MOST_SECONDS}");
            problems.invalid(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                seconds,
                &detail,
            );
        }
    } else if config.is_object() {
        let detail = "must not be set when session affinity is None";
        problems.forbidden("spec.sessionAffinityConfig", detail);
    }
}

fn addresses(spec: &Value, problems: &mut Problems) {
    let list = spec["clusterIPs"].as_array().map_or(&[][..], Vec::as_slice);
    if list.len() > MAX_ADDRESSES {
        problems.invalid_list(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            "may only hold up to 2 values",
        );
    }
    for (field, address) in items(&spec["clusterIPs"], "spec.clusterIPs") {
        if address == "None" {
            if list.len() > 1 {
                let detail = "'None' must be the first and only value";
                problems.invalid_list(&field, &spec["clusterIPs"], detail);
            }
        } else if is_set(address) {
            ip(address, &field, problems);
        }
    }
    let families: Vec<_> = list
        .iter()
        .filter_map(|ip| Some(text(ip).parse::<IpAddr>().ok()?.is_ipv6()))
        .collect();
    if let [first, second] = families[..]
        && first == second
    {
        let detail = "may specify no more than one IP for each IP family";
        problems.invalid_list("spec.clusterIPs", &spec["clusterIPs"], detail);
    }
    let given = &spec["clusterIP"];
    if let (Some(first), Some(given)) = (list.first(), given.as_str())
        && first != given
    {
        problems.invalid_list(
            "spec.clusterIPs",
            &spec["clusterIPs"],
            "first value must match `clusterIP`",
        );
    }
    if !list.is_empty() && !is_set(given) {
        let detail = "must be empty when `clusterIP` is not specified";
        problems.invalid_list("spec.clusterIPs", &spec["clusterIPs"], detail);
    }
    let mut seen = BTreeSet::new();
    for (field, family) in items(&spec["ipFamilies"], "spec.ipFamilies") {
        if !matches!(text(family), "IPv4" | "IPv6") {
            problems.not_supported(&field, family, &["IPv4", "IPv6"]);
        } else if !seen.insert(text(family)) {
            problems.duplicate(&field, family);
        }
    }
    let policies = ["SingleStack", "PreferDualStack", "RequireDualStack"];
    supported(spec, "spec", "ipFamilyPolicy", &policies, problems);
}

fn traffic(spec: &Value, kind: &str, problems: &mut Problems) {
    let outside = matches!(kind, "LoadBalancer" | "NodePort")
        || (kind == "ClusterIP" && spec["externalIPs"].as_array().is_some_and(|ips| !ips.is_empty()));
    let policy = &spec["externalTrafficPolicy"];
    if outside {
        supported(
            spec,
            "spec",
            "externalTrafficPolicy",
            &["Cluster", "Local"],
            problems,
        );
    } else if is_set(policy) {
        let detail = "may only be set for externally-accessible services";
        problems.invalid("spec.externalTrafficPolicy", policy, detail);
    }
    supported(
        spec,
        "spec",
        "internalTrafficPolicy",
        &["Cluster", "Local"],
        problems,
    );
    let health = &spec["healthCheckNodePort"];
    if health.as_i64().is_some_and(|port| port != 0) && !(kind == "LoadBalancer" && policy == "Local") {
        let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        problems.invalid("spec.healthCheckNodePort", health, detail);
    }
    for (key, allowed) in [
        ("loadBalancerClass", kind == "LoadBalancer"),
        ("allocateLoadBalancerNodePorts", kind == "LoadBalancer"),
    ] {
        if !allowed && !spec[key].is_null() {
            let detail = "may only be used when `type` is 'LoadBalancer'";
            problems.forbidden(&format!("spec.{key}"), detail);
        }
    }
    supported(spec, "spec", "trafficDistribution", &["PreferClose"], problems);
}

fn changes(spec: &Value, old: &Value, problems: &mut Problems) {
    let named = spec["type"] == "ExternalName" || old["type"] == "ExternalName";
    let (first, before) = (text(&spec["clusterIPs"][0]), text(&old["clusterIPs"][0]));
    if named || before.is_empty() || first == before {
        return;
    }
    let detail = if first.is_empty() {
        "primary clusterIP can not be unset"
    } else {
        "may not change once set"
    };
    problems.invalid_list("spec.clusterIPs[0]", &spec["clusterIPs"], detail);
}

/// Checks Endpoints.
pub(crate) fn endpoints(endpoints: &Value, _old: Option<&Value>, problems: &mut Problems) {
    for (at, subset) in items(&endpoints["subsets"], "subsets") {
        let lists = ["addresses", "notReadyAddresses"];
        if lists
            .iter()
            .all(|list| subset[list].as_array().is_none_or(Vec::is_empty))
        {
            problems.required(&at, "must specify `addresses` or `notReadyAddresses`");
        }
        for list in lists {
            for (field, address) in items(&subset[list], &format!("{at}.{list}")) {
                reachable_address(&address["ip"], &format!("{field}.ip"), problems);
                if is_set(&address["hostname"])
                    && let Some(problem) = label_problem(text(&address["hostname"]))
                {
                    problems.invalid(&format!("{field}.hostname"), &address["hostname"], &problem);
                }
            }
        }
        let many = subset["ports"].as_array().is_some_and(|ports| ports.len() > 1);
        for (field, port) in items(&subset["ports"], &format!("{at}.ports")) {
            let name = &port["name"];
            if many && !is_set(name) {
                problems.required(&format!("{field}.name"), "");
            } else if is_set(name)
                && let Some(problem) = label_problem(text(name))
            {
                problems.invalid(&format!("{field}.name"), name, &problem);
            }
            port_number(&port["port"], &format!("{field}.port"), problems);
            supported(port, &field, "protocol", &["SCTP", "TCP", "UDP"], problems);
        }
    }
}

/// Limits of a slice, as in Kubernetes.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ENDPOINT_ADDRESSES: usize = 100;
const MAX_SLICE_PORTS: usize = 20_000;

/// Checks an EndpointSlice.
pub(crate) fn endpoint_slice(slice: &Value, old: Option<&Value>, problems: &mut Problems) {
    let kind = &slice["addressType"];
    let types = ["FQDN", "IPv4", "IPv6"];
    if is_set(kind) {
        supported(slice, "", "addressType", &types, problems);
    } else {
        problems.required("addressType", "");
    }
    super::immutable(slice, old, "addressType", problems);
    let count = |list: &Value| list.as_array().map_or(0, Vec::len);
    if count(&slice["endpoints"]) > MAX_ENDPOINTS {
        problems.too_many("endpoints", count(&slice["endpoints"]), MAX_ENDPOINTS);
        return;
    }
    for (at, endpoint) in items(&slice["endpoints"], "endpoints") {
        let at = format!("{at}.addresses");
        match count(&endpoint["addresses"]) {
            0 => problems.required(&at, "must contain at least 1 address"),
            many if many > MAX_ENDPOINT_ADDRESSES => problems.too_many(&at, many, MAX_ENDPOINT_ADDRESSES),
            _ => {}
        }
        for (field, address) in items(&endpoint["addresses"], &at) {
            let parsed = text(address).parse::<IpAddr>();
            match (text(kind), parsed) {
                ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                    reachable_address(address, &field, problems);
                }
                ("IPv4", _) => problems.invalid(&field, address, "must be an IPv4 address"),
                ("IPv6", _) => problems.invalid(&field, address, "must be an IPv6 address"),
                _ => {
                    if let Some(problem) = subdomain_problem(text(address)) {
                        problems.invalid(&field, address, &problem);
                    }
                }
            }
        }
    }
    if count(&slice["ports"]) > MAX_SLICE_PORTS {
        problems.too_many("ports", count(&slice["ports"]), MAX_SLICE_PORTS);
    }
    let mut names = BTreeSet::new();
    for (field, port) in items(&slice["ports"], "ports") {
        let name = &port["name"];
        if is_set(name)
            && let Some(problem) = label_problem(text(name))
        {
            problems.invalid(&format!("{field}.name"), name, &problem);
        }
        if !names.insert(text(name)) {
            problems.duplicate(&format!("{field}.name"), &json!(text(name)));
        }
        supported(port, &field, "protocol", &["SCTP", "TCP", "UDP"], problems);
    }
}

/// Checks an address; `None` if it is not one.
fn ip(address: &Value, field: &str, problems: &mut Problems) -> Option<IpAddr> {
    let parsed = text(address).parse::<IpAddr>().ok();
    if parsed.is_none() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        problems.invalid(field, &json!(text(address)), detail);
    }
    parsed
}

/// An address to which traffic can be sent from anywhere.
fn reachable_address(address: &Value, field: &str, problems: &mut Problems) {
    let Some(parsed) = ip(address, field, problems) else {
        return;
    };
    let link_local = match parsed {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let multicast = match parsed {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let detail = if parsed.is_unspecified() {
        format!("may not be unspecified ({parsed})")
    } else if parsed.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return;
    };
    problems.invalid(field, address, &detail);
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    fn base(more: Value) -> Value {
        let mut spec = json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            spec[key.as_str()] = value;
        }
        json!({"spec": spec})
    }

    #[test]
    fn services_are_checked_as_kubernetes_does() {
        let port = |port: i64, more: Value| {
            let mut port = json!({"port": port, "protocol": "TCP", "targetPort": 80});
            for (key, value) in more.as_object().cloned().unwrap_or_default() {
                port[key.as_str()] = value;
            }
            port
        };
        for (spec, expected) in [
            (json!({}), None),
            (
                json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": null}),
                None,
            ),
            (
                json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
                None,
            ),
            (
                json!({"type": "ExternalName", "externalName": "db.example.", "ports": null, "internalTrafficPolicy": null}),
                None,
            ),
            (json!({"ports": []}), Some("spec.ports: Required value")),
            (
                json!({"type": "Magic"}),
                Some(
                    "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
                ),
            ),
            (
                json!({"ports": [port(70000, json!({}))]}),
                Some("spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"),
            ),
            (
                json!({"ports": [port(1, json!({"name": "a"})), port(2, json!({}))]}),
                Some("spec.ports[1].name: Required value"),
            ),
            (
                json!({"ports": [port(1, json!({"nodePort": 30000}))]}),
                Some("spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"),
            ),
            (
                json!({"type": "NodePort", "clusterIP": "None", "clusterIPs": ["None"]}),
                Some(
                    "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
                ),
            ),
            (
                json!({"type": "ExternalName", "ports": null}),
                Some("spec.externalName: Required value"),
            ),
            (
                json!({"externalTrafficPolicy": "Local"}),
                Some(
                    "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
                ),
            ),
            (
                json!({"externalIPs": ["127.0.0.1"]}),
                Some(
                    "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                ),
            ),
            (
                json!({"sessionAffinity": "Sticky"}),
                Some(
                    "spec.sessionAffinity: Unsupported value: \"Sticky\": supported values: \"ClientIP\", \"None\"",
                ),
            ),
            (
                json!({"clusterIP": "x", "clusterIPs": ["x"]}),
                Some(
                    "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ),
            ),
        ] {
            let object = base(spec.clone());
            assert_eq!(
                said(service, &object, None),
                expected.into_iter().collect::<Vec<_>>(),
                "{spec}"
            );
        }
        let (old, new) = (
            base(json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]})),
            base(json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.2"]})),
        );
        assert_eq!(
            said(service, &new, Some(&old)),
            ["spec.clusterIPs[0]: Invalid value: []string{\"10.0.0.2\"}: may not change once set"]
        );
    }

    #[test]
    fn endpoints_and_slices_are_checked_as_kubernetes_does() {
        let good = json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}]});
        assert!(said(endpoints, &good, None).is_empty());
        assert_eq!(
            said(
                endpoints,
                &json!({"subsets": [{"ports": [{"port": 0, "protocol": "TCP"}]}]}),
                None
            ),
            [
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
        let slice = |kind: &str, addresses: Value| json!({"addressType": kind, "endpoints": [{"addresses": addresses}], "ports": [{"name": "a", "port": 1, "protocol": "TCP"}]});
        assert!(said(endpoint_slice, &slice("IPv4", json!(["10.0.0.1"])), None).is_empty());
        for (object, expected) in [
            (
                slice("IPv4", json!(["fd00::1"])),
                "endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be an IPv4 address",
            ),
            (
                slice("IPv6", json!([])),
                "endpoints[0].addresses: Required value: must contain at least 1 address",
            ),
            (
                slice("IPX", json!(["a"])),
                "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
            ),
            (json!({}), "addressType: Required value"),
        ] {
            assert_eq!(said(endpoint_slice, &object, None), [expected]);
        }
        let (old, new) = (
            slice("IPv4", json!(["10.0.0.1"])),
            slice("IPv6", json!(["fd00::1"])),
        );
        assert_eq!(
            said(endpoint_slice, &new, Some(&old)),
            ["addressType: Invalid value: \"IPv6\": field is immutable"]
        );
    }
}
