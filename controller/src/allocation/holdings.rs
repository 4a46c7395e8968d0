//! What a Service holds of what can be had only once, and what it still lacks.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{
    Family, HEADLESS, is_external_name, is_headless, may_have_node_ports, needs_health_port,
    needs_node_ports, texts,
};

/// What a Service names as its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Its node ports, that for health checks among them.
    pub ports: BTreeSet<u16>,
}

impl Holdings {
    /// What the Service says it has.
    pub fn of(service: &Value) -> Self {
        let spec = &service["spec"];
        let mut holdings = Self::default();
        if !is_external_name(spec) {
            let written = texts(&spec["clusterIPs"]).into_iter();
            holdings.addresses = written
                .chain(spec["clusterIP"].as_str())
                .filter(|text| *text != HEADLESS)
                .filter_map(|text| text.parse().ok())
                .collect();
        }
        if may_have_node_ports(spec) {
            let ports = spec["ports"].as_array().into_iter().flatten();
            let numbers = ports.map(|port| &port["nodePort"]);
            holdings.ports = numbers.filter_map(port).collect();
        }
        if needs_health_port(spec) {
            holdings.ports.extend(port(&spec["healthCheckNodePort"]));
        }
        holdings
    }
}

fn port(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0)
}

/// Gives a Service the addresses of the families it has and names none of. `choose` finds one.
///
/// # Errors
/// What `choose` fails with.
pub fn fill_addresses<E>(
    service: &mut Value,
    mut choose: impl FnMut(Family) -> Result<IpAddr, E>,
) -> Result<(), E> {
    let spec = &mut service["spec"];
    if is_external_name(spec) || is_headless(spec) {
        return Ok(());
    }
    let families: Vec<_> = texts(&spec["ipFamilies"])
        .into_iter()
        .filter_map(Family::parse)
        .collect();
    let mut addresses: Vec<String> = texts(&spec["clusterIPs"])
        .into_iter()
        .map(str::to_owned)
        .collect();
    for family in families.into_iter().skip(addresses.len()) {
        addresses.push(choose(family)?.to_string());
    }
    if let Some(first) = addresses.first() {
        spec["clusterIP"] = json!(first);
        spec["clusterIPs"] = json!(addresses);
    }
    Ok(())
}

/// Gives a Service the node ports it needs and does not name. Ports of the same number in two protocols share one. `choose`
/// finds a port that is none of those the Service has.
///
/// # Errors
/// What `choose` fails with.
pub fn fill_ports<E>(
    service: &mut Value,
    mut choose: impl FnMut(&BTreeSet<u16>) -> Result<u16, E>,
) -> Result<(), E> {
    let mut own = Holdings::of(service).ports;
    let spec = &mut service["spec"];
    if needs_node_ports(spec) {
        let mut by_number: BTreeMap<u64, u16> = BTreeMap::new();
        let mut taken: BTreeSet<(String, u16)> = BTreeSet::new();
        for entry in spec["ports"].as_array().into_iter().flatten() {
            if let (Some(number), Some(node)) = (entry["port"].as_u64(), port(&entry["nodePort"])) {
                by_number.entry(number).or_insert(node);
                taken.insert((protocol(entry), node));
            }
        }
        for entry in spec["ports"].as_array_mut().into_iter().flatten() {
            if port(&entry["nodePort"]).is_some() {
                continue;
            }
            let number = entry["port"].as_u64().unwrap_or_default();
            let shared = by_number
                .get(&number)
                .copied()
                .filter(|node| !taken.contains(&(protocol(entry), *node)));
            let node = match shared {
                Some(node) => node,
                None => choose(&own)?,
            };
            own.insert(node);
            by_number.entry(number).or_insert(node);
            taken.insert((protocol(entry), node));
            entry["nodePort"] = json!(node);
        }
    }
    if needs_health_port(spec) && port(&spec["healthCheckNodePort"]).is_none() {
        spec["healthCheckNodePort"] = json!(choose(&own)?);
    }
    Ok(())
}

fn protocol(port: &Value) -> String {
    port["protocol"].as_str().unwrap_or("TCP").to_owned()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn what_is_missing_is_filled_in() {
        let mut service = json!({"spec": {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.9"], "ports": [
            {"port": 53, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}, {"port": 80, "nodePort": 30000},
            {"port": 81},
        ]}});
        fill_addresses(&mut service, |family| {
            assert_eq!(family, Family::V6);
            Ok::<_, Infallible>("fd00::7".parse().unwrap())
        })
        .unwrap();
        fill_ports(&mut service, |own| {
            Ok::<_, Infallible>((30_000..=u16::MAX).find(|port| !own.contains(port)).unwrap())
        })
        .unwrap();
        let spec = &service["spec"];
        assert_eq!(spec["clusterIPs"], json!(["10.96.0.9", "fd00::7"]));
        assert_eq!(spec["clusterIP"], "10.96.0.9");
        let ports: Vec<_> = spec["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["nodePort"].clone())
            .collect();
        assert_eq!(ports, [30_001, 30_001, 30_000, 30_002]);
        assert_eq!(spec["healthCheckNodePort"], 30_003);
        let holdings = Holdings::of(&service);
        assert_eq!(holdings.ports, (30_000..=30_003).collect());
        assert_eq!(holdings.addresses.len(), 2);
    }

    #[test]
    fn who_needs_nothing_gets_nothing() {
        for spec in [
            json!({"type": "ExternalName", "externalName": "example.com", "ports": [{"port": 80}]}),
            json!({"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"], "ipFamilies": ["IPv4"], "ports": [{"port": 80}]}),
            json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "clusterIP": "None", "ports": [{"port": 80}]}),
        ] {
            let mut service = json!({ "spec": spec });
            let before = service.clone();
            fill_addresses(&mut service, |_| Err("an address")).unwrap();
            fill_ports(&mut service, |_| Err("a port")).unwrap();
            assert_eq!(service, before);
            assert_eq!(Holdings::of(&service), Holdings::default());
        }
    }
}
