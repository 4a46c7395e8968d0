//! Makes EndpointSlices of Endpoints that people wrote for a Service without a selector: who reads slices finds them, too.

use std::net::IpAddr;
use std::sync::Arc;
use tokio::time::Instant;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Group, Plan, Template, plan};
use super::{
    HEADLESS, LOOK_AGAIN, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, Unseen, label_of, selector, slices_of,
    write,
};
use crate::allocation::Family;
use crate::controllers::claim::controller_reference;
use crate::controllers::{Context, Outcome, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// The value of the label that marks mirrored slices.
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// Label of Endpoints that are not mirrored.
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Annotation of Endpoints that only hold an election's result.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What a client noted for itself about the Endpoints.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Addresses of one subset that are mirrored at most, in one slice, as in Kubernetes.
const CAPACITY: usize = 1000;

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    let keys = queue.clone();
    context.endpoints.subscribe(move |change| {
        if let Some(endpoints) = change.latest() {
            keys.add(ObjectKey::of(&endpoints.metadata));
        }
    });
    let keys = queue.clone();
    context.services.subscribe(move |change| {
        if let Some(service) = change.latest() {
            keys.add(ObjectKey::of(&service.metadata));
        }
    });
    let keys = queue.clone();
    context.endpoint_slices.subscribe(move |change| {
        let mirrored = |slice: &&Arc<_>| label_of(slice, MANAGED_BY) == Some(MANAGER);
        let Some(slice) = change.latest().filter(mirrored) else {
            return;
        };
        if let Some(name) = label_of(slice, SERVICE_NAME) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            keys.add(ObjectKey::new(namespace, name));
        }
    });
    let synced = context.clone();
    let ready = async move {
        synced.services.wait_synced().await;
        synced.endpoints.wait_synced().await;
        synced.endpoint_slices.wait_synced().await;
    };
    let (shared, unseen) = (context.clone(), Arc::new(Unseen::default()));
    spawn_workers(context, "endpointslice-mirroring", &queue, 2, ready, move |key| {
        let (context, unseen) = (shared.clone(), unseen.clone());
        async move { reconcile(&context, &unseen, &key).await }
    });
}

async fn reconcile(context: &Context, unseen: &Unseen, key: &ObjectKey) -> Outcome {
    if unseen.any(context, key, Instant::now()) {
        return Ok(Some(LOOK_AGAIN));
    }
    let existing = slices_of(context, key, MANAGER);
    let service = context.services.get(key);
    let endpoints = context.endpoints.get(key);
    let plan = match (service.as_deref(), endpoints.as_deref()) {
        (Some(service), Some(endpoints)) if is_mirrored(service, endpoints) => {
            plan(&existing, groups(endpoints), &template(endpoints))
        }
        _ => Plan {
            delete: existing,
            ..Plan::default()
        },
    };
    write(context, key, plan, unseen).await?;
    Ok(None)
}

fn is_mirrored(service: &Service, endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    let labelled = meta.labels.as_ref().and_then(|labels| labels.get(SKIP));
    let elects = meta
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(LEADER));
    selector(service).is_none()
        && labelled.is_none_or(|value| value != "true")
        && !elects
        && meta.deletion_timestamp.is_none()
}

fn template(endpoints: &Endpoints) -> Template {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = endpoints.metadata.annotations.clone().unwrap_or_default();
    let trigger = annotations.remove(TRIGGER_TIME);
    annotations.remove(LAST_APPLIED);
    Template {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: endpoints.metadata.namespace.clone(),
            labels: Some(labels),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            owner_references: Some(vec![controller_reference(endpoints)]),
            ..ObjectMeta::default()
        },
        trigger: trigger.map(|time| (TRIGGER_TIME, time)),
        capacity: CAPACITY,
    }
}

fn groups(endpoints: &Endpoints) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        for family in [Family::V4, Family::V6] {
            let ready = subset.addresses.iter().flatten().map(|address| (address, true));
            let not_ready = subset
                .not_ready_addresses
                .iter()
                .flatten()
                .map(|address| (address, false));
            let of_family = |address: &EndpointAddress| {
                let parsed = address.ip.parse::<IpAddr>();
                parsed.is_ok_and(|ip| Family::of(ip) == family)
            };
            let found: Vec<Endpoint> = ready
                .chain(not_ready)
                .filter(|(address, _)| of_family(address))
                .take(CAPACITY)
                .map(|(address, ready)| endpoint(address, ready))
                .collect();
            if found.is_empty() {
                continue;
            }
            let same = |group: &&mut Group| group.address_type == family.name() && group.ports == ports;
            match groups.iter_mut().find(same) {
                Some(group) => group.endpoints.extend(found),
                None => groups.push(Group {
                    address_type: family.name(),
                    ports: ports.clone(),
                    endpoints: found,
                }),
            }
        }
    }
    groups
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::member::tests::service;
    use super::*;

    fn endpoints(metadata: Value) -> Endpoints {
        serde_json::from_value(json!({"metadata": metadata, "subsets": [
            {"addresses": [{"ip": "10.1.2.3"}, {"ip": "fd00::3"}], "notReadyAddresses": [{"ip": "10.1.2.4"}],
                "ports": [{"name": "http", "port": 80}]},
            {"addresses": [{"ip": "10.1.2.5"}], "ports": [{"name": "http", "port": 81}]},
        ]}))
        .unwrap()
    }

    #[test]
    fn every_family_and_port_has_a_slice() {
        let groups = groups(&endpoints(json!({"name": "web"})));
        let shown: Vec<_> = groups
            .iter()
            .map(|group| {
                let ready: Vec<_> = group
                    .endpoints
                    .iter()
                    .map(|e| (e.addresses[0].as_str(), e.conditions.as_ref().unwrap().ready))
                    .collect();
                (group.address_type, group.ports[0].port, ready)
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    "IPv4",
                    Some(80),
                    vec![("10.1.2.3", Some(true)), ("10.1.2.4", Some(false))]
                ),
                ("IPv6", Some(80), vec![("fd00::3", Some(true))]),
                ("IPv4", Some(81), vec![("10.1.2.5", Some(true))]),
            ]
        );
    }

    #[test]
    fn what_is_mirrored() {
        let selects = service(json!({}));
        let plain = service(json!({"selector": null}));
        assert!(is_mirrored(&plain, &endpoints(json!({}))));
        assert!(!is_mirrored(&selects, &endpoints(json!({}))));
        for metadata in [
            json!({"labels": {SKIP: "true"}}),
            json!({"annotations": {LEADER: "{}"}}),
            json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}),
        ] {
            assert!(!is_mirrored(&plain, &endpoints(metadata)));
        }
        let copied = template(&endpoints(json!({
            "name": "web", "labels": {"a": "b"}, "annotations": {"note": "x", LAST_APPLIED: "{}", TRIGGER_TIME: "t"},
        })));
        assert_eq!(
            copied.metadata.annotations,
            Some([("note".to_owned(), "x".to_owned())].into())
        );
        assert_eq!(copied.trigger, Some((TRIGGER_TIME, "t".to_owned())));
        assert_eq!(copied.metadata.labels.unwrap()["a"], "b");
    }
}
