//! Results in the JSON of each CNI version, and the joining of a plugin's result to those before it in a chain.

use serde_json::{Map, Value, json};

use crate::{result::AddResult, version::SpecVersion};

/// What an interface has from 1.1.0 on.
const INTERFACE_EXTENSIONS: [&str; 3] = ["mtu", "socketPath", "pciID"];

/// What a route has from 1.1.0 on.
const ROUTE_EXTENSIONS: [&str; 5] = ["mtu", "advmss", "priority", "table", "scope"];

/// The result as `version` prints it. What the version cannot say is left out.
pub fn result_json(result: &AddResult, version: SpecVersion) -> Value {
    let mut interfaces = objects(&result.interfaces);
    let mut ips = objects(&result.ips);
    let mut routes = objects(&result.routes);
    if version.names_address_family() {
        for (ip, config) in ips.iter_mut().zip(&result.ips) {
            let family = if config.address.is_ipv4() { "4" } else { "6" };
            ip.insert("version".to_owned(), family.into());
        }
    }
    if !version.has_extended_results() {
        for interface in &mut interfaces {
            strip(interface, &INTERFACE_EXTENSIONS);
        }
        for route in &mut routes {
            strip(route, &ROUTE_EXTENSIONS);
        }
    }
    let mut object = Map::new();
    object.insert("cniVersion".to_owned(), version.as_str().into());
    for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
        if !list.is_empty() {
            object.insert(key.to_owned(), list.into_iter().map(Value::Object).collect());
        }
    }
    object.insert("dns".to_owned(), json!(result.dns));
    Value::Object(object)
}

/// Reads a result in the JSON of any supported version: they differ in what is there, not in what it means.
pub fn parse_result(value: Value) -> Result<AddResult, serde_json::Error> {
    serde_json::from_value(value)
}

/// Appends to the result of the plugins before this one what this one made.
#[must_use]
pub fn append(previous: AddResult, own: AddResult) -> AddResult {
    let shift = previous.interfaces.len();
    let mut merged = previous;
    merged.interfaces.extend(own.interfaces);
    merged.ips.extend(own.ips.into_iter().map(|mut ip| {
        ip.interface = ip.interface.map(|index| index + shift);
        ip
    }));
    merged.routes.extend(own.routes);
    if merged.dns.is_empty() {
        merged.dns = own.dns;
    }
    merged
}

fn objects<T: serde::Serialize>(list: &[T]) -> Vec<Map<String, Value>> {
    list.iter()
        .map(|item| match json!(item) {
            Value::Object(object) => object,
            _ => unreachable!("interfaces, addresses and routes are structs"),
        })
        .collect()
}

fn strip(object: &mut Map<String, Value>, keys: &[&str]) {
    for key in keys {
        object.remove(*key);
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::{collection::vec, option, prelude::*};

    use super::*;
    use crate::result::{Cidr, Dns, Interface, IpConfig, Route};

    fn sample() -> AddResult {
        AddResult {
            interfaces: vec![
                Interface {
                    name: "eth0".into(),
                    mac: Some("02:00:0a:f4:01:05".into()),
                    mtu: Some(1500),
                    sandbox: Some("/run/netns/a".into()),
                    ..Interface::default()
                },
                Interface {
                    name: "wv1".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
            ],
            ips: vec![
                IpConfig {
                    address: "10.244.1.5/32".parse().unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    interface: Some(0),
                },
                IpConfig {
                    address: "fd00::5/128".parse().unwrap(),
                    gateway: Some("fe80::1".parse().unwrap()),
                    interface: Some(0),
                },
            ],
            routes: vec![Route {
                dst: "0.0.0.0/0".parse().unwrap(),
                gw: Some("169.254.1.1".parse().unwrap()),
                mtu: Some(1450),
                advmss: Some(1410),
                priority: None,
                table: None,
                scope: None,
            }],
            dns: Dns::default(),
        }
    }

    #[test]
    fn each_version_has_its_shape() {
        for version in SpecVersion::ALL {
            let printed = result_json(&sample(), version);
            assert_eq!(printed["cniVersion"], version.as_str());
            let old = version < SpecVersion::V1_0_0;
            assert_eq!(printed["ips"][0].get("version"), old.then(|| json!("4")).as_ref());
            assert_eq!(printed["ips"][1].get("version"), old.then(|| json!("6")).as_ref());
            let new = version >= SpecVersion::V1_1_0;
            assert_eq!(
                printed["interfaces"][0].get("mtu"),
                new.then(|| json!(1500)).as_ref()
            );
            assert_eq!(
                printed["routes"][0].get("advmss"),
                new.then(|| json!(1410)).as_ref()
            );
            assert_eq!(printed["routes"][0]["gw"], "169.254.1.1");
            assert_eq!(printed["interfaces"][0]["sandbox"], "/run/netns/a");
            assert_eq!(printed["interfaces"][1].get("sandbox"), None);
        }
    }

    #[test]
    fn what_is_appended_points_at_its_own_interfaces() {
        let previous: AddResult = serde_json::from_value(json!({
            "interfaces": [{"name": "cni0"}, {"name": "other", "sandbox": "/n"}],
            "ips": [{"address": "192.0.2.1/24", "interface": 1}],
            "dns": {"nameservers": ["192.0.2.53"]},
            "routes": null,
        }))
        .unwrap();
        let merged = append(previous, sample());
        assert_eq!(merged.interfaces.len(), 4);
        assert_eq!(
            merged.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(1), Some(2), Some(2)]
        );
        assert_eq!(merged.interfaces[2].name, "eth0");
        assert_eq!(merged.dns.nameservers, ["192.0.2.53"]);
        assert_eq!(merged.routes.len(), 1);
    }

    fn cidr() -> impl Strategy<Value = Cidr> {
        (any::<IpAddr>(), any::<u8>()).prop_map(|(addr, len)| {
            Cidr::new(addr, len % if addr.is_ipv4() { 33 } else { 129 }).expect("the length fits")
        })
    }

    fn result() -> impl Strategy<Value = AddResult> {
        let interface = (
            "[a-z]{1,8}",
            option::of("[a-f0-9:]{0,17}"),
            option::of(any::<u32>()),
            option::of("/[a-z]{1,9}"),
        )
            .prop_map(|(name, mac, mtu, sandbox)| Interface {
                name,
                mac,
                mtu,
                sandbox,
                ..Interface::default()
            });
        let ip = (cidr(), option::of(any::<IpAddr>()), option::of(0_usize..4)).prop_map(
            |(address, gateway, interface)| IpConfig {
                address,
                gateway,
                interface,
            },
        );
        let route = (
            cidr(),
            option::of(any::<IpAddr>()),
            vec(option::of(any::<u32>()), 5),
        )
            .prop_map(|(dst, gw, more)| Route {
                dst,
                gw,
                mtu: more[0],
                advmss: more[1],
                priority: more[2],
                table: more[3],
                scope: more[4],
            });
        (
            vec(interface, 0..4),
            vec(ip, 0..4),
            vec(route, 0..4),
            vec("[a-z.]{1,9}", 0..3),
        )
            .prop_map(|(interfaces, ips, routes, search)| AddResult {
                interfaces,
                ips,
                routes,
                dns: Dns {
                    search,
                    ..Dns::default()
                },
            })
    }

    proptest! {
        #[test]
        fn the_newest_version_loses_nothing(result in result()) {
            let printed = result_json(&result, SpecVersion::LATEST);
            prop_assert_eq!(parse_result(printed).unwrap(), result);
        }

        #[test]
        fn older_versions_lose_only_the_extensions(result in result(), index in 0_usize..4) {
            let version = SpecVersion::ALL[index];
            let mut expected = result.clone();
            for interface in &mut expected.interfaces {
                interface.mtu = None;
            }
            for route in &mut expected.routes {
                *route = Route { dst: route.dst, gw: route.gw, mtu: None, advmss: None, priority: None, table: None, scope: None };
            }
            prop_assert_eq!(parse_result(result_json(&result, version)).unwrap(), expected);
        }

        #[test]
        fn cidr_reads_as_it_is_written(cidr in cidr(), text in "[0-9a-f.:/+ ]{0,20}") {
            prop_assert_eq!(cidr.to_string().parse::<Cidr>().unwrap(), cidr);
            if let Ok(read) = text.parse::<Cidr>() {
                prop_assert_eq!(read.to_string().parse::<Cidr>().unwrap(), read);
            }
        }
    }
}
