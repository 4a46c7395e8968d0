//! Mends what Services have of the cluster: records that no Service stands behind are dropped, and what a Service uses
//! without a record gets one. Transactions keep the two together; people who delete `IPAddress` objects, or a store from before
//! there were records, do not.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

use super::Server;
use super::allocate::{ADDRESSES, ALLOCATOR, MANAGED_BY, PORTS, hold_address, hold_port, holdings, owner_of};
use super::objects;
use crate::allocation::holdings::Holdings;
use crate::store::{Expect, Operation, Revision, Store, Write};

/// How often to look. A leak is dropped when it is seen twice.
const INTERVAL: Duration = Duration::from_mins(3);

/// What can be had once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Thing {
    Address(IpAddr),
    Port(u16),
}

/// A record of who has what.
#[derive(Clone, Debug, PartialEq)]
struct Record {
    thing: Thing,
    owner: Value,
    revision: Revision,
}

/// What is wrong.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    /// Records that no Service stands behind.
    leaks: Vec<Record>,
    /// What Services use without a record.
    missing: Vec<(Thing, Value)>,
    /// What Services use that is recorded for another.
    double: Vec<(Thing, Value)>,
}

/// Compares the records with what Services say.
fn compare(records: Vec<Record>, services: &[(Value, Holdings)]) -> Findings {
    let mut used: BTreeMap<Thing, Vec<&Value>> = BTreeMap::new();
    for (owner, holdings) in services {
        let addresses = holdings.addresses.iter().copied().map(Thing::Address);
        for thing in addresses.chain(holdings.ports.iter().copied().map(Thing::Port)) {
            used.entry(thing).or_default().push(owner);
        }
    }
    let mut findings = Findings::default();
    let mut recorded: BTreeMap<Thing, Value> = BTreeMap::new();
    for record in records {
        let stands = used
            .get(&record.thing)
            .is_some_and(|owners| owners.contains(&&record.owner));
        if stands {
            recorded.insert(record.thing, record.owner);
        } else {
            // A record of another's is in the way of the right one: it goes first.
            findings.leaks.push(record);
        }
    }
    let leaked: BTreeSet<Thing> = findings.leaks.iter().map(|record| record.thing).collect();
    for (thing, owners) in used {
        let mut rest = owners.into_iter();
        match recorded.get(&thing) {
            Some(owner) => {
                let others = rest.filter(|other| *other != owner);
                findings.double.extend(others.map(|other| (thing, other.clone())));
            }
            None if leaked.contains(&thing) => {}
            None => {
                findings
                    .missing
                    .extend(rest.next().map(|owner| (thing, owner.clone())));
                findings.double.extend(rest.map(|other| (thing, other.clone())));
            }
        }
    }
    findings
}

/// Looks again and again until the server stops.
pub(super) async fn run(server: &Server) {
    let mut suspects = BTreeSet::new();
    loop {
        suspects = round(server, &suspects).await;
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

/// Mends what can be; returns the leaks that are to be dropped if they are still there next time.
async fn round(server: &Server, suspects: &BTreeSet<(Thing, Revision)>) -> BTreeSet<(Thing, Revision)> {
    let store = server.store.as_ref();
    // Records first: a Service made in between has its records in the same transaction, and they are no leak.
    let records = records(store);
    let findings = compare(records, &holdings(store));
    for (thing, owner) in &findings.double {
        tracing::warn!(?thing, %owner, "a Service uses what another has");
    }
    let mut writes: Vec<(Thing, Write)> = Vec::new();
    for (thing, owner) in findings.missing {
        let write = match thing {
            Thing::Address(address) => hold_address(store, &owner, address, Timestamp::now()),
            Thing::Port(port) => hold_port(store, &owner, port),
        };
        if write.expect == Expect::Absent {
            writes.push((thing, write));
        }
    }
    let mut next = BTreeSet::new();
    for leak in findings.leaks {
        let seen = (leak.thing, leak.revision);
        if !suspects.contains(&seen) {
            next.insert(seen);
            continue;
        }
        let (resource, key) = match leak.thing {
            Thing::Address(address) => (ADDRESSES, address.to_string()),
            Thing::Port(port) => (PORTS, port.to_string()),
        };
        let write = Write {
            resource,
            key,
            expect: Expect::Revision(leak.revision),
            operation: Operation::Delete,
        };
        writes.push((leak.thing, write));
    }
    for (thing, write) in writes {
        let deleted = matches!(write.operation, Operation::Delete);
        // One that fails has changed meanwhile, or comes up again next time.
        if store.commit(vec![write]).await.is_ok() {
            tracing::info!(
                ?thing,
                deleted,
                "the record of a Service's address or port was mended"
            );
        }
    }
    next
}

fn records(store: &dyn Store) -> Vec<Record> {
    let list = |resource: &'static str| store.list(resource, "").items.into_iter();
    let addresses = list(ADDRESSES).filter_map(|object| {
        let value = object.value();
        // Addresses that others keep here are not ours to judge.
        let ours = value["metadata"]["labels"][MANAGED_BY] == ALLOCATOR;
        ours.then_some(Record {
            thing: Thing::Address(objects::name(&value).parse().ok()?),
            owner: owner_of(&value),
            revision: object.revision(),
        })
    });
    let ports = list(PORTS).filter_map(|object| {
        let value = object.value();
        Some(Record {
            thing: Thing::Port(objects::name(&value).parse().ok()?),
            owner: owner_of(&value),
            revision: object.revision(),
        })
    });
    addresses.chain(ports).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn leaks_gaps_and_doubles_are_found() {
        let owner = |name: &str| json!({"namespace": "default", "name": name});
        let address = |text: &str| Thing::Address(text.parse().unwrap());
        let record = |thing, name: &str| Record {
            thing,
            owner: owner(name),
            revision: 7,
        };
        let uses = |name: &str, addresses: &[&str], ports: &[u16]| {
            let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
            let ports = ports.iter().copied().collect();
            (owner(name), Holdings { addresses, ports })
        };
        let found = compare(
            vec![
                record(address("10.96.0.5"), "good"),
                record(address("10.96.0.6"), "gone"),
                record(Thing::Port(30_000), "good"),
                record(Thing::Port(30_001), "good"),
            ],
            &[
                uses("good", &["10.96.0.5"], &[30_000]),
                uses("bare", &["10.96.0.7"], &[30_001]),
                uses("thief", &["10.96.0.5", "10.96.0.7"], &[]),
            ],
        );
        assert_eq!(
            found,
            Findings {
                leaks: vec![
                    record(address("10.96.0.6"), "gone"),
                    record(Thing::Port(30_001), "good")
                ],
                missing: vec![(address("10.96.0.7"), owner("bare"))],
                double: vec![
                    (address("10.96.0.5"), owner("thief")),
                    (address("10.96.0.7"), owner("thief"))
                ],
            }
        );
    }
}
