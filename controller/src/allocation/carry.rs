//! What a change of a Service keeps of what was allocated, and what it drops because the type has no use for it.

use serde_json::{Value, json};

use super::{
    is_empty, is_external_name, may_have_node_ports, needs_health_port, needs_node_ports, remove, texts,
};

/// Completes a written Service from the one before: what the writer left out stays as it was, what a change of type makes
/// useless goes, and `clusterIP` and `clusterIPs` say the same.
pub fn carry_over(service: &mut Value, old: Option<&Value>) {
    let spec = &mut service["spec"];
    if !spec.is_object() {
        return;
    }
    for key in [
        "clusterIP",
        "clusterIPs",
        "ipFamilies",
        "ipFamilyPolicy",
        "healthCheckNodePort",
    ] {
        if is_empty(&spec[key]) {
            remove(spec, key);
        }
    }
    for port in spec["ports"].as_array_mut().into_iter().flatten() {
        if is_empty(&port["nodePort"]) {
            remove(port, "nodePort");
        }
    }
    if let Some(old) = old {
        let before = &old["spec"];
        drop_useless(spec, before);
        keep_addresses(spec, before);
        keep_ports(spec, before);
    }
    agree(spec, old.map(|old| &old["spec"]));
}

fn keep_addresses(spec: &mut Value, before: &Value) {
    if is_external_name(before) || is_external_name(spec) {
        return;
    }
    let keep = |spec: &mut Value, key: &str| {
        if is_empty(&spec[key]) && !is_empty(&before[key]) {
            spec[key] = before[key].clone();
        }
    };
    if is_empty(&spec["clusterIPs"]) {
        keep(spec, "clusterIP");
    }
    if is_empty(&spec["clusterIPs"]) && spec["clusterIP"] == before["clusterIP"] {
        keep(spec, "clusterIPs");
    }
    keep(spec, "ipFamilies");
    keep(spec, "ipFamilyPolicy");
}

fn keep_ports(spec: &mut Value, before: &Value) {
    if needs_node_ports(spec) && may_have_node_ports(before) {
        let taken = numbers(spec);
        for port in spec["ports"].as_array_mut().into_iter().flatten() {
            if !port["nodePort"].is_null() {
                continue;
            }
            let same = |other: &&Value| {
                other["port"] == port["port"]
                    && other["protocol"].as_str().unwrap_or("TCP")
                        == port["protocol"].as_str().unwrap_or("TCP")
            };
            let found = before["ports"].as_array().into_iter().flatten().find(same);
            let number = found.map(|found| found["nodePort"].clone()).unwrap_or_default();
            if !is_empty(&number) && !taken.contains(&number) {
                port["nodePort"] = number;
            }
        }
    }
    if needs_health_port(spec)
        && needs_health_port(before)
        && spec["healthCheckNodePort"].is_null()
        && !is_empty(&before["healthCheckNodePort"])
    {
        spec["healthCheckNodePort"] = before["healthCheckNodePort"].clone();
    }
}

fn numbers(spec: &Value) -> Vec<Value> {
    let ports = spec["ports"].as_array().into_iter().flatten();
    ports
        .map(|port| port["nodePort"].clone())
        .filter(|number| !is_empty(number))
        .collect()
}

/// What the writer did not touch and the new type does not know.
fn drop_useless(spec: &mut Value, before: &Value) {
    let unchanged = |spec: &Value, key: &str| spec[key] == before[key];
    if is_external_name(spec) && !is_external_name(before) {
        for key in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            if unchanged(spec, key) {
                remove(spec, key);
            }
        }
    }
    if !may_have_node_ports(spec) && may_have_node_ports(before) {
        if numbers(spec) == numbers(before) {
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                remove(port, "nodePort");
            }
        }
        if unchanged(spec, "externalTrafficPolicy") && is_empty(&spec["externalIPs"]) {
            remove(spec, "externalTrafficPolicy");
        }
    }
    if !needs_health_port(spec) && needs_health_port(before) && unchanged(spec, "healthCheckNodePort") {
        remove(spec, "healthCheckNodePort");
    }
    if spec["type"] != "LoadBalancer" && before["type"] == "LoadBalancer" {
        for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if unchanged(spec, key) {
                remove(spec, key);
            }
        }
    }
}

/// Clients know one address or a list of them; what they changed tells which they mean.
fn agree(spec: &mut Value, before: Option<&Value>) {
    let one = spec["clusterIP"].as_str().map(str::to_owned);
    let first = texts(&spec["clusterIPs"]).first().map(|ip| (*ip).to_owned());
    let before = |key: &str| before.map(|before| before[key].clone()).unwrap_or_default();
    match (one, first) {
        (Some(one), None) => spec["clusterIPs"] = json!([one]),
        (Some(one), Some(first)) if one != first => {
            // Only the old field was written: it counts.
            if spec["clusterIPs"] == before("clusterIPs") && spec["clusterIP"] != before("clusterIP") {
                spec["clusterIPs"] = json!([one]);
            } else if spec["clusterIP"] == before("clusterIP") {
                spec["clusterIP"] = json!(first);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn carried(new: Value, old: Value) -> Value {
        let mut service = json!({ "spec": new });
        carry_over(&mut service, Some(&json!({ "spec": old })));
        service["spec"].clone()
    }

    #[test]
    fn a_put_without_allocated_fields_keeps_them() {
        let old = json!({"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]});
        let new = json!({"type": "NodePort", "clusterIP": "", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 0}]});
        assert_eq!(carried(new, old.clone()), old);
        let moved = json!({"type": "NodePort", "ports": [{"port": 81, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]});
        let ports = carried(moved, old)["ports"].clone();
        assert_eq!(
            ports,
            json!([{"port": 81, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}]),
            "another port gets another node port"
        );
    }

    #[test]
    fn a_change_of_type_drops_what_it_has_no_use_for() {
        let old = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "externalTrafficPolicy": "Local", "healthCheckNodePort": 30001, "allocateLoadBalancerNodePorts": true,
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "nodePort": 30080}]});
        let mut new = old.clone();
        new["type"] = json!("ClusterIP");
        assert_eq!(
            carried(new, old.clone()),
            json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "ports": [{"port": 80}]})
        );
        let mut new = old.clone();
        new["type"] = json!("ExternalName");
        new["externalName"] = json!("example.com");
        assert_eq!(
            carried(new, old),
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]})
        );
    }

    #[test]
    fn either_address_field_may_be_written() {
        let mut service = json!({"spec": {"clusterIP": "10.96.0.9"}});
        carry_over(&mut service, None);
        assert_eq!(service["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        let old = json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]});
        let new = carried(
            json!({"clusterIP": "10.96.0.8", "clusterIPs": ["10.96.0.9"]}),
            old.clone(),
        );
        assert_eq!(new["clusterIPs"], json!(["10.96.0.8"]));
        let new = carried(
            json!({"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.8"]}),
            old,
        );
        assert_eq!(new["clusterIP"], "10.96.0.8");
    }
}
