//! Services and their Endpoints.

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::Subresource::{Proxy, Status};
use crate::resources::{NAME, Resource, field, printing, row, text, validation, wide};

pub(super) const SERVICE: Resource = Resource {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Proxy, Status],
    fields: &[field("spec.clusterIP"), field("spec.type")],
    columns: &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        text("Age"),
        wide("Selector"),
    ],
    cells,
    prepare: |service| service["status"] = serde_json::json!({"loadBalancer": {}}),
    name_problem: validation::dns_1035_problem,
    validate: validation::service::service,
    ..row("", "v1", "Service", ("services", "service"), "services")
};

pub(super) const ENDPOINTS: Resource = Resource {
    short_names: &["ep"],
    columns: &[NAME, text("Endpoints"), text("Age")],
    cells: |endpoints, now| {
        let places = endpoints["subsets"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(places);
        vec![
            endpoints["metadata"]["name"].clone(),
            printing::none_if_empty(printing::first_three(places)),
            printing::age(endpoints, now),
        ]
    },
    validate: validation::service::endpoints,
    ..row("", "v1", "Endpoints", ("endpoints", "endpoints"), "endpoints")
};

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let selector = printing::labels(&spec["selector"]).join(",");
    let address = spec["clusterIPs"][0]
        .as_str()
        .or_else(|| spec["clusterIP"].as_str());
    vec![
        service["metadata"]["name"].clone(),
        spec["type"].clone(),
        printing::none_if_empty(address.unwrap_or_default()),
        outside(service).into(),
        printing::none_if_empty(ports(&spec["ports"])),
        printing::age(service, now),
        printing::none_if_empty(selector),
    ]
}

/// Where the Service is reached from outside.
fn outside(service: &Value) -> String {
    let spec = &service["spec"];
    let addresses = spec["externalIPs"].as_array().into_iter().flatten();
    let addresses: Vec<_> = addresses.filter_map(Value::as_str).collect();
    match spec["type"].as_str() {
        Some("ExternalName") => spec["externalName"].as_str().unwrap_or_default().to_owned(),
        Some("LoadBalancer") => {
            let balancer = printing::balancer(&service["status"]["loadBalancer"]);
            let given = (!balancer.is_empty()).then_some(balancer.as_str());
            let all: Vec<_> = given.into_iter().chain(addresses).collect();
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ if addresses.is_empty() => "<none>".to_owned(),
        _ => addresses.join(","),
    }
}

/// `80:30080/TCP,443/TCP`.
fn ports(ports: &Value) -> String {
    let ports = ports.as_array().into_iter().flatten().map(|port| {
        let number = port["port"].as_i64().unwrap_or_default();
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        match port["nodePort"].as_i64() {
            Some(node) if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    });
    ports.collect::<Vec<_>>().join(",")
}

/// Addresses with each port; without ports, the addresses alone.
fn places(subset: &Value) -> Vec<String> {
    let list = |key: &str| subset[key].as_array().map_or(&[][..], Vec::as_slice);
    let addresses = || {
        list("addresses")
            .iter()
            .filter_map(|address| address["ip"].as_str())
    };
    if list("ports").is_empty() {
        return addresses().map(str::to_owned).collect();
    }
    let ports = list("ports")
        .iter()
        .map(|port| port["port"].as_i64().unwrap_or_default());
    ports
        .flat_map(|port| {
            addresses().map(move |ip| {
                if ip.contains(':') {
                    format!("[{ip}]:{port}")
                } else {
                    format!("{ip}:{port}")
                }
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printed(resource: &Resource, object: &Value) -> Vec<String> {
        let cells = (resource.cells)(object, "2025-01-01T00:00:00Z".parse().unwrap());
        cells
            .iter()
            .map(|cell| cell.as_str().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn services_print_as_kubectl_shows_them() {
        for (spec, status, expected) in [
            (
                json!({"type": "ClusterIP", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 443, "protocol": "TCP"}]}),
                json!({}),
                [
                    "ClusterIP",
                    "10.0.0.1",
                    "<none>",
                    "443/TCP",
                    "<unknown>",
                    "<none>",
                ],
            ),
            (
                json!({"type": "NodePort", "clusterIPs": ["10.0.0.2"], "selector": {"app": "a", "tier": "b"},
                    "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}], "externalIPs": ["1.2.3.4"]}),
                json!({}),
                [
                    "NodePort",
                    "10.0.0.2",
                    "1.2.3.4",
                    "80:30080/TCP,53/UDP",
                    "<unknown>",
                    "app=a,tier=b",
                ],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.0.0.3"], "ports": [{"port": 80, "nodePort": 30000, "protocol": "TCP"}]}),
                json!({}),
                [
                    "LoadBalancer",
                    "10.0.0.3",
                    "<pending>",
                    "80:30000/TCP",
                    "<unknown>",
                    "<none>",
                ],
            ),
            (
                json!({"type": "LoadBalancer", "clusterIPs": ["10.0.0.3"], "externalIPs": ["9.9.9.9"]}),
                json!({"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "a.example"}]}}),
                [
                    "LoadBalancer",
                    "10.0.0.3",
                    "2.2.2.2,a.example,9.9.9.9",
                    "<none>",
                    "<unknown>",
                    "<none>",
                ],
            ),
            (
                json!({"type": "ExternalName", "externalName": "db.example"}),
                json!({}),
                [
                    "ExternalName",
                    "<none>",
                    "db.example",
                    "<none>",
                    "<unknown>",
                    "<none>",
                ],
            ),
            (
                json!({"type": "ClusterIP", "clusterIPs": ["None"]}),
                json!({}),
                ["ClusterIP", "None", "<none>", "<none>", "<unknown>", "<none>"],
            ),
        ] {
            let service = json!({"metadata": {"name": "s"}, "spec": spec, "status": status});
            assert_eq!(printed(&SERVICE, &service)[1..], expected);
        }
    }

    #[test]
    fn endpoints_print_as_kubectl_shows_them() {
        let ips = |ips: &[&str]| json!(ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>());
        for (subsets, expected) in [
            (json!([]), "<none>"),
            (json!([{"addresses": ips(&["10.0.0.1"])}]), "10.0.0.1"),
            (
                json!([{"notReadyAddresses": ips(&["10.0.0.1"]), "ports": [{"port": 80}]}]),
                "<none>",
            ),
            (
                json!([{"addresses": ips(&["fd00::1"]), "ports": [{"port": 80}]}]),
                "[fd00::1]:80",
            ),
            (
                json!([{"addresses": ips(&["10.0.0.1", "10.0.0.2"]), "ports": [{"port": 80}, {"port": 443}]}]),
                "10.0.0.1:80,10.0.0.2:80,10.0.0.1:443 + 1 more...",
            ),
        ] {
            let endpoints = json!({"metadata": {"name": "s"}, "subsets": subsets});
            assert_eq!(printed(&ENDPOINTS, &endpoints)[1], expected);
        }
    }
}
