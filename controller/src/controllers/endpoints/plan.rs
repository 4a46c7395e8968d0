//! How the slices of a Service become what they should be with few writes (pure).
//!
//! Watchers of slices are many: every node. So a slice that is right is left alone, one that must change anyhow takes up what is
//! new, and what is to go becomes what is to come, as far as their kinds allow.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Endpoints that share an address type and ports.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Group {
    pub(crate) address_type: &'static str,
    pub(crate) ports: Vec<EndpointPort>,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What all slices of a Service have in common.
#[derive(Clone, Debug, Default)]
pub(crate) struct Template {
    /// Namespace, name prefix, owner and labels; the annotations count, too.
    pub(crate) metadata: ObjectMeta,
    /// Set on slices that are written, and no reason to write one.
    pub(crate) trigger: Option<(&'static str, String)>,
    /// How many endpoints a slice takes.
    pub(crate) capacity: usize,
}

/// What to write.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub(crate) create: Vec<EndpointSlice>,
    pub(crate) update: Vec<EndpointSlice>,
    pub(crate) delete: Vec<Arc<EndpointSlice>>,
}

/// Compares what is there with what should be. A group without endpoints asks for a slice without any.
pub(crate) fn plan(existing: &[Arc<EndpointSlice>], groups: Vec<Group>, template: &Template) -> Plan {
    let mut plan = Plan::default();
    let mut left: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for group in groups {
        let (own, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|slice| {
            slice.address_type == group.address_type
                && same_ports(slice.ports.as_deref().unwrap_or_default(), &group.ports)
        });
        left = others;
        place(own, group, template, &mut plan);
    }
    plan.delete.extend(left);
    recycle(&mut plan);
    plan.update.iter_mut().for_each(|slice| stamp(slice, template));
    plan.create.iter_mut().for_each(|slice| stamp(slice, template));
    plan
}

/// Brings the slices of one group to its endpoints.
fn place(own: Vec<Arc<EndpointSlice>>, group: Group, template: &Template, plan: &mut Plan) {
    let empty = group.endpoints.is_empty();
    let mut wanted: HashMap<String, (usize, Endpoint)> = HashMap::new();
    for (order, endpoint) in group.endpoints.into_iter().enumerate() {
        wanted.insert(identity(&endpoint), (order, endpoint));
    }
    let mut unchanged: Vec<Arc<EndpointSlice>> = Vec::new();
    let mut changed: Vec<EndpointSlice> = Vec::new();
    let mut placeholder = !empty;
    for slice in own {
        let mut next = EndpointSlice::clone(&slice);
        next.endpoints = slice
            .endpoints
            .iter()
            .filter_map(|old| wanted.remove(&identity(old)))
            .map(|(_, endpoint)| endpoint)
            .collect();
        if next.endpoints.is_empty() && (placeholder || !slice.endpoints.is_empty()) {
            plan.delete.push(slice);
            continue;
        }
        placeholder = true;
        next.metadata.labels.clone_from(&template.metadata.labels);
        next.metadata
            .owner_references
            .clone_from(&template.metadata.owner_references);
        if next.endpoints.len() > template.capacity {
            // The limit was higher once: what is too much is placed anew.
            for (order, endpoint) in next
                .endpoints
                .split_off(template.capacity)
                .into_iter()
                .enumerate()
            {
                wanted.insert(identity(&endpoint), (order, endpoint));
            }
        }
        let right = next.endpoints == slice.endpoints
            && next.metadata == slice.metadata
            && annotations_right(&slice, template);
        if right {
            unchanged.push(slice);
        } else {
            changed.push(next);
        }
    }
    let mut new: Vec<(usize, Endpoint)> = wanted.into_values().collect();
    new.sort_by_key(|(order, endpoint)| (*order, endpoint.addresses.clone()));
    let mut new: Vec<Endpoint> = new.into_iter().map(|(_, endpoint)| endpoint).collect();
    // What is written anyhow comes first, the fullest before others.
    changed.sort_by_key(|slice| std::cmp::Reverse(slice.endpoints.len()));
    for slice in &mut changed {
        let room = template.capacity.saturating_sub(slice.endpoints.len());
        slice.endpoints.extend(new.drain(..room.min(new.len())));
    }
    plan.update.append(&mut changed);
    let fits = |slice: &Arc<EndpointSlice>| slice.endpoints.len() + new.len() <= template.capacity;
    if !new.is_empty()
        && let Some(fullest) = unchanged
            .iter()
            .filter(|slice| fits(slice))
            .max_by_key(|slice| slice.endpoints.len())
    {
        let mut slice = EndpointSlice::clone(fullest);
        slice.endpoints.append(&mut new);
        plan.update.push(slice);
    }
    let fresh = |endpoints: Vec<Endpoint>| EndpointSlice {
        metadata: template.metadata.clone(),
        address_type: group.address_type.to_owned(),
        ports: Some(group.ports.clone()),
        endpoints,
    };
    if !placeholder {
        plan.create.push(fresh(Vec::new()));
    }
    while !new.is_empty() {
        let rest = new.split_off(template.capacity.min(new.len()));
        plan.create.push(fresh(std::mem::replace(&mut new, rest)));
    }
}

/// A deletion and a creation of the same address type are one update.
fn recycle(plan: &mut Plan) {
    let mut create = Vec::new();
    for slice in std::mem::take(&mut plan.create) {
        let same = |old: &Arc<EndpointSlice>| old.address_type == slice.address_type;
        let Some(index) = plan.delete.iter().position(same) else {
            create.push(slice);
            continue;
        };
        let old = plan.delete.remove(index);
        let mut metadata = old.metadata.clone();
        metadata.labels.clone_from(&slice.metadata.labels);
        metadata
            .owner_references
            .clone_from(&slice.metadata.owner_references);
        plan.update.push(EndpointSlice { metadata, ..slice });
    }
    plan.create = create;
}

/// Sets the annotations that every written slice has.
fn stamp(slice: &mut EndpointSlice, template: &Template) {
    let mut annotations = template.metadata.annotations.clone().unwrap_or_default();
    if let Some((key, value)) = &template.trigger {
        annotations.insert((*key).to_owned(), value.clone());
    }
    slice.metadata.annotations = Some(annotations).filter(|annotations| !annotations.is_empty());
}

/// Whether the slice's annotations are the template's, but for the time of the change.
fn annotations_right(slice: &EndpointSlice, template: &Template) -> bool {
    let without = |annotations: &Option<BTreeMap<String, String>>| -> BTreeMap<String, String> {
        let mut all = annotations.clone().unwrap_or_default();
        all.remove(super::TRIGGER_TIME);
        all
    };
    without(&slice.metadata.annotations) == without(&template.metadata.annotations)
}

/// What makes an endpoint the same one: its addresses and what is behind them.
fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint
        .target_ref
        .as_ref()
        .and_then(|target| target.uid.as_deref());
    format!("{}|{}", endpoint.addresses.join(","), uid.unwrap_or_default())
}

fn same_ports(a: &[EndpointPort], b: &[EndpointPort]) -> bool {
    let sorted = |ports: &[EndpointPort]| {
        let mut keys: Vec<_> = ports
            .iter()
            .map(|port| {
                (
                    port.name.clone().unwrap_or_default(),
                    port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                    port.port,
                    port.app_protocol.clone(),
                )
            })
            .collect();
        keys.sort();
        keys
    };
    sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn endpoint(ip: &str, ready: bool) -> Endpoint {
        serde_json::from_value(json!({"addresses": [ip], "conditions": {"ready": ready}})).unwrap()
    }

    fn group(port: i32, ips: impl IntoIterator<Item = u8>) -> Group {
        Group {
            address_type: "IPv4",
            ports: vec![EndpointPort {
                port: Some(port),
                ..EndpointPort::default()
            }],
            endpoints: ips
                .into_iter()
                .map(|last| endpoint(&format!("10.0.0.{last}"), true))
                .collect(),
        }
    }

    fn template(capacity: usize) -> Template {
        Template {
            metadata: serde_json::from_value(json!({"generateName": "web-", "labels": {"a": "b"}})).unwrap(),
            trigger: Some((super::super::TRIGGER_TIME, "now".to_owned())),
            capacity,
        }
    }

    /// Carries a plan out.
    fn done(existing: &[Arc<EndpointSlice>], plan: Plan, serial: &mut usize) -> Vec<Arc<EndpointSlice>> {
        let mut slices: Vec<_> = existing
            .iter()
            .filter(|slice| {
                !plan
                    .delete
                    .iter()
                    .any(|gone| gone.metadata.name == slice.metadata.name)
            })
            .cloned()
            .collect();
        for update in plan.update {
            let slot = slices
                .iter_mut()
                .find(|slice| slice.metadata.name == update.metadata.name);
            *slot.expect("an update of what is there") = Arc::new(update);
        }
        for mut created in plan.create {
            *serial += 1;
            created.metadata.name = Some(format!("web-{serial}"));
            created.metadata.generate_name = None;
            slices.push(Arc::new(created));
        }
        slices
    }

    fn counts(plan: &Plan) -> (usize, usize, usize) {
        (plan.create.len(), plan.update.len(), plan.delete.len())
    }

    #[test]
    fn each_change_costs_as_few_writes_as_it_can() {
        let template = template(3);
        let mut serial = 0;
        let mut step = |slices: &mut Vec<Arc<EndpointSlice>>, groups: Vec<Group>| {
            let plan = plan(slices, groups, &template);
            let counts = counts(&plan);
            *slices = done(slices, plan, &mut serial);
            counts
        };
        let mut slices = Vec::new();
        assert_eq!(
            step(&mut slices, vec![group(80, [])]),
            (1, 0, 0),
            "a slice without endpoints"
        );
        assert_eq!(step(&mut slices, vec![group(80, [])]), (0, 0, 0));
        assert_eq!(step(&mut slices, vec![group(80, 1..=5)]), (1, 1, 0));
        assert_eq!(
            step(&mut slices, vec![group(80, 1..=5)]),
            (0, 0, 0),
            "nothing changed"
        );
        assert_eq!(
            step(&mut slices, vec![group(80, 1..=6)]),
            (0, 1, 0),
            "there is room"
        );
        assert_eq!(
            step(&mut slices, vec![group(80, 2..=7)]),
            (0, 1, 0),
            "one goes, one comes"
        );
        assert_eq!(
            step(&mut slices, vec![group(81, 2..=7)]),
            (0, 2, 0),
            "other ports, the same slices"
        );
        assert_eq!(step(&mut slices, vec![group(81, [])]), (0, 1, 1));
        assert_eq!(step(&mut slices, vec![]), (0, 0, 1));
    }

    #[test]
    fn labels_and_conditions_are_reasons_to_write_and_times_are_not() {
        let mut template = template(3);
        let mut serial = 0;
        let slices = done(&[], plan(&[], vec![group(80, 1..=2)], &template), &mut serial);
        template.trigger = Some((super::super::TRIGGER_TIME, "later".to_owned()));
        assert_eq!(
            counts(&plan(&slices, vec![group(80, 1..=2)], &template)),
            (0, 0, 0)
        );
        let mut changed = group(80, 1..=2);
        changed.endpoints[0].conditions.as_mut().unwrap().ready = Some(false);
        let written = plan(&slices, vec![changed], &template);
        assert_eq!(counts(&written), (0, 1, 0));
        let annotations = written.update[0].metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations[super::super::TRIGGER_TIME], "later");
        template.metadata.labels = Some([("a".to_owned(), "c".to_owned())].into());
        assert_eq!(
            counts(&plan(&slices, vec![group(80, 1..=2)], &template)),
            (0, 1, 0)
        );
    }

    proptest! {
        /// Whatever happened before, the slices come to hold every endpoint once, none holds too many, and doing it again
        /// changes nothing.
        #[test]
        fn slices_come_to_hold_what_they_should(rounds in prop::collection::vec(
            (prop::collection::btree_set(0u8..40, 0..30), prop::collection::btree_set(0u8..40, 0..10)), 1..8,
        )) {
            let template = template(5);
            let mut slices = Vec::new();
            let mut serial = 0;
            for (first, second) in rounds {
                let groups = vec![group(80, first.clone()), group(90, second.clone())];
                let written = plan(&slices, groups.clone(), &template);
                slices = done(&slices, written, &mut serial);
                prop_assert!(slices.iter().all(|slice| slice.endpoints.len() <= 5));
                for (port, wanted) in [(80, first), (90, second)] {
                    let of_port = slices.iter().filter(|s| s.ports.as_ref().unwrap()[0].port == Some(port));
                    let mut held: Vec<_> = of_port.flat_map(|s| &s.endpoints).map(|e| e.addresses[0].clone()).collect();
                    held.sort();
                    let mut wanted: Vec<_> = wanted.iter().map(|last| format!("10.0.0.{last}")).collect();
                    wanted.sort();
                    prop_assert_eq!(held, wanted);
                }
                prop_assert_eq!(counts(&plan(&slices, groups, &template)), (0, 0, 0));
            }
        }
    }
}
