//! What goes along with a write in one transaction: a report of usage goes with what it is about, and Services take and release what
//! they have of the cluster. Every address is an
//! `IPAddress` and every node port a record under its number, so that the store's compare-and-swap lets nobody have one
//! twice, whichever process decides.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Value, json};

use super::status::ApiError;
use super::{Call, objects};
use crate::allocation::holdings::{Holdings, fill_addresses, fill_ports};
use crate::allocation::ranges::{NODE_PORTS, ServiceRange, node_ports};
use crate::allocation::{Family, carry, families};
use crate::resources::{self, Problems, Resource};
use crate::store::{Encoded, Expect, Object, Operation, Store, Write};

/// Where Services are.
pub(super) const SERVICES: &str = "services";
/// Where their addresses are.
pub(super) const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
/// Where the ranges are that addresses come from.
const RANGES: &str = "networking.k8s.io/servicecidrs";
/// Where node ports are: no API shows them.
pub(super) const PORTS: &str = "servicenodeports";
/// Label of an `IPAddress`: who looks after it.
pub(super) const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] for addresses of Services.
pub(super) const ALLOCATOR: &str = "ipallocator.k8s.io";

/// Whether writes of the resource take or release anything.
pub(super) fn concerns(resource: &Resource) -> bool {
    resource.storage == SERVICES
}

/// Completes a Service that is written before it is compared with the one that is there.
pub(super) fn complete(resource: &Resource, new: &mut Value, old: Option<&Value>) {
    if concerns(resource) {
        carry::carry_over(new, old);
    }
}

/// The writes that go with the one that turns `old` into `new`; `None` is no object. Fills in what `new` lacks.
pub(super) fn companions(
    call: &Call,
    old: Option<&Value>,
    new: Option<&mut Value>,
) -> Result<Vec<Write>, ApiError> {
    if !concerns(&call.resource) {
        let gone = old.filter(|_| new.is_none());
        return Ok(gone.and_then(|object| report(call, object)).into_iter().collect());
    }
    let store = call.server.store.as_ref();
    let before = old.map(Holdings::of).unwrap_or_default();
    let Some(new) = new else {
        let owner = old.map(owner).unwrap_or_default();
        return Ok(release(store, &owner, &before));
    };
    let offered = offered(&call.server.service_ranges);
    let mut problems = Problems::default();
    families::settle(new, old, &offered, &mut problems);
    refuse(call, new, &problems)?;
    let owner = owner(new);
    let ranges = ranges(store, &call.server.service_ranges);
    take_named(store, &owner, &ranges, new, &before, &mut problems);
    refuse(call, new, &problems)?;
    let mut random = rand::rng();
    fill_addresses(new, |family| {
        free_address(store, &ranges, family, random.random())
            .ok_or_else(|| ApiError::internal("failed to allocate a serviceIP: range is full"))
    })?;
    fill_ports(new, |own| {
        let free = |port: &u16| !own.contains(port) && store.get(PORTS, &port.to_string()).is_none();
        node_ports(random.random())
            .find(free)
            .ok_or_else(|| ApiError::internal("failed to allocate a nodePort: range is full"))
    })?;
    let after = Holdings::of(new);
    let mut writes: Vec<Write> = after
        .addresses
        .difference(&before.addresses)
        .map(|address| hold_address(store, &owner, *address, call.now))
        .collect();
    writes.extend(
        after
            .ports
            .difference(&before.ports)
            .map(|port| hold_port(store, &owner, *port)),
    );
    let gone = Holdings {
        addresses: before.addresses.difference(&after.addresses).copied().collect(),
        ports: before.ports.difference(&after.ports).copied().collect(),
    };
    writes.extend(release(store, &owner, &gone));
    Ok(writes)
}

/// The write that takes away what a node has reported about an object that goes.
fn report(call: &Call, object: &Value) -> Option<Write> {
    let resource = match call.resource.storage {
        "nodes" => "metrics.k8s.io/nodes",
        "pods" => "metrics.k8s.io/pods",
        _ => return None,
    };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
    let key = call.resource.key(namespace, objects::name(object));
    let found = call.server.store.get(resource, &key)?;
    Some(Write {
        resource,
        key,
        expect: Expect::Revision(found.revision()),
        operation: Operation::Delete,
    })
}

fn refuse(call: &Call, service: &Value, problems: &Problems) -> Result<(), ApiError> {
    if problems.0.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(
            &call.resource,
            objects::name(service),
            problems,
        ))
    }
}

/// The families of the cluster, the default first.
fn offered(configured: &[IpNetwork]) -> Vec<Family> {
    let mut families: Vec<_> = configured
        .iter()
        .map(|network| Family::of(network.network()))
        .collect();
    families.dedup();
    families
}

/// The ranges that addresses may come from now: those of the configuration first, which may be more than the object that was
/// once made of it says.
fn ranges(store: &dyn Store, configured: &[IpNetwork]) -> Vec<ServiceRange> {
    let listed = store.list(RANGES, "").items;
    let mut ranges: Vec<_> = configured.iter().copied().map(ServiceRange::new).collect();
    for object in listed {
        let range = object.value();
        let unready = range["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "False");
        if objects::is_terminating(&range) || unready {
            continue;
        }
        let texts = range["spec"]["cidrs"].as_array().into_iter().flatten();
        for network in texts.filter_map(|text| text.as_str()?.parse().ok()) {
            let range = ServiceRange::new(network);
            if !ranges.contains(&range) {
                ranges.push(range);
            }
        }
    }
    ranges
}

/// An object that an address or port belongs to.
pub(super) fn owner(service: &Value) -> Value {
    json!({
        "group": "", "resource": "services",
        "namespace": service["metadata"]["namespace"], "name": service["metadata"]["name"],
    })
}

/// The owner that a record names.
pub(super) fn owner_of(record: &Value) -> Value {
    let parent = &record["spec"]["parentRef"];
    let part = |key: &str| parent[key].as_str().unwrap_or_default().to_owned();
    json!({
        "group": part("group"), "resource": part("resource"), "namespace": part("namespace"), "name": part("name"),
    })
}

/// Whether somebody else than `owner` has it.
fn taken(found: Option<&Object>, owner: &Value) -> bool {
    found.is_some_and(|object| owner_of(&object.value()) != *owner)
}

/// Checks what the Service names and did not have.
fn take_named(
    store: &dyn Store,
    owner: &Value,
    ranges: &[ServiceRange],
    service: &Value,
    before: &Holdings,
    problems: &mut Problems,
) {
    let wanted = Holdings::of(service);
    let list = &service["spec"]["clusterIPs"];
    for address in wanted.addresses.difference(&before.addresses) {
        let why = if !ranges.iter().any(|range| range.network().contains(*address)) {
            "the provided network does not match the current range".to_owned()
        } else if !ranges.iter().any(|range| range.allows(*address)) {
            let valid: Vec<_> = ranges
                .iter()
                .map(|range| range.network())
                .filter(|network| network.contains(*address))
                .map(|network| network.to_string())
                .collect();
            format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                valid.join(", ")
            )
        } else if taken(store.get(ADDRESSES, &address.to_string()).as_deref(), owner) {
            "provided IP is already allocated".to_owned()
        } else {
            continue;
        };
        let detail = format!("failed to allocate IP {address}: {why}");
        problems.invalid_list("spec.clusterIPs", list, &detail);
    }
    let mut check = |field: String, value: &Value| {
        let Some(port) = value.as_u64().filter(|port| *port != 0) else {
            return;
        };
        let known = u16::try_from(port).ok().filter(|port| NODE_PORTS.contains(port));
        if known.is_some_and(|port| before.ports.contains(&port)) {
            return;
        }
        let why = match known {
            None => format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                NODE_PORTS.start(),
                NODE_PORTS.end()
            ),
            Some(port) if taken(store.get(PORTS, &port.to_string()).as_deref(), owner) => {
                "provided port is already allocated".to_owned()
            }
            Some(_) => return,
        };
        problems.invalid(&field, value, &why);
    };
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    for (index, port) in ports.enumerate() {
        check(format!("spec.ports[{index}].nodePort"), &port["nodePort"]);
    }
    let health = &service["spec"]["healthCheckNodePort"];
    check("spec.healthCheckNodePort".to_owned(), health);
}

fn free_address(store: &dyn Store, ranges: &[ServiceRange], family: Family, random: u64) -> Option<IpAddr> {
    let of_family = ranges
        .iter()
        .filter(|range| Family::of(range.network().network()) == family);
    // One more than are taken is enough to find a free one, if there is any.
    let tries = store.count(ADDRESSES) + 1;
    of_family.copied().find_map(|range| {
        range
            .candidates(random)
            .take(tries)
            .find(|address| store.get(ADDRESSES, &address.to_string()).is_none())
    })
}

/// The write that takes an address.
pub(super) fn hold_address(store: &dyn Store, owner: &Value, address: IpAddr, now: Timestamp) -> Write {
    let name = address.to_string();
    let mut object = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {"name": name, "labels": {
            "ipaddress.kubernetes.io/ip-family": Family::of(address).name(), MANAGED_BY: ALLOCATOR,
        }},
        "spec": {"parentRef": owner},
    });
    objects::stamp_new(&mut object, true, now);
    hold(store, owner, ADDRESSES, name, &object)
}

/// The write that takes a node port.
pub(super) fn hold_port(store: &dyn Store, owner: &Value, port: u16) -> Write {
    let name = port.to_string();
    let record = json!({"metadata": {"name": name}, "spec": {"parentRef": owner}});
    hold(store, owner, PORTS, name, &record)
}

fn hold(store: &dyn Store, owner: &Value, resource: &'static str, key: String, object: &Value) -> Write {
    // The owner's own record may be there already; another's must make the commit fail, whenever it came.
    let expect = match store.get(resource, &key) {
        Some(found) if !taken(Some(&found), owner) => Expect::Revision(found.revision()),
        _ => Expect::Absent,
    };
    Write {
        resource,
        key,
        expect,
        operation: Operation::Put(Encoded::new(object, resources::index(resource, object))),
    }
}

/// The writes that give back what is the owner's of `holdings`.
fn release(store: &dyn Store, owner: &Value, holdings: &Holdings) -> Vec<Write> {
    let addresses = holdings.addresses.iter().map(|ip| (ADDRESSES, ip.to_string()));
    let ports = holdings.ports.iter().map(|port| (PORTS, port.to_string()));
    addresses
        .chain(ports)
        .filter_map(|(resource, key)| {
            let found = store.get(resource, &key)?;
            (!taken(Some(&found), owner)).then(|| Write {
                resource,
                key,
                expect: Expect::Revision(found.revision()),
                operation: Operation::Delete,
            })
        })
        .collect()
}

/// What all Services name as theirs.
pub(super) fn holdings(store: &dyn Store) -> Vec<(Value, Holdings)> {
    let listed = store.list(SERVICES, "").items;
    let services = listed.into_iter().map(|object| object.value());
    services
        .map(|service| (owner(&service), Holdings::of(&service)))
        .collect()
}
