//! Keeps the EndpointSlices of Services that select pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::plan::{Group, Template, plan};
use super::trigger::Triggers;
use super::{
    HEADLESS, LOOK_AGAIN, MANAGED_BY, SERVICE_NAME, TRIGGER_TIME, Unseen, follow_services_and_pods, label_of,
    member, pods_of, selector, slices_of, write,
};
use crate::controllers::claim::controller_reference;
use crate::controllers::pod::PodView;
use crate::controllers::{Context, Outcome, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// The value of the label that marks our slices.
pub(crate) const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints of one slice at most, as in Kubernetes.
const CAPACITY: usize = 100;
/// Label of a node: where it is.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Labels of the Service that slices do not take over.
const OWN_LABELS: &[&str] = &[SERVICE_NAME, MANAGED_BY, HEADLESS];

#[derive(Debug, Default)]
struct State {
    unseen: Unseen,
    triggers: Triggers,
}

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    follow_services_and_pods(context, &queue);
    let (keys, services) = (queue.clone(), context.services.clone());
    context.endpoint_slices.subscribe(move |change| {
        let Some(slice) = change
            .latest()
            .filter(|slice| label_of(slice, MANAGED_BY) == Some(MANAGER))
        else {
            return;
        };
        let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
        let service = label_of(slice, SERVICE_NAME).map(|name| ObjectKey::new(namespace, name));
        if let Some(service) = service.filter(|service| services.get(service).is_some()) {
            keys.add(service);
        }
    });
    let synced = context.clone();
    let ready = async move {
        synced.services.wait_synced().await;
        synced.pods.wait_synced().await;
        synced.nodes.wait_synced().await;
        synced.endpoint_slices.wait_synced().await;
    };
    let (shared, state) = (context.clone(), Arc::new(State::default()));
    let workers = context.config.workers;
    spawn_workers(context, "endpointslice", &queue, workers, ready, move |key| {
        let (context, state) = (shared.clone(), state.clone());
        async move { reconcile(&context, &state, &key).await }
    });
}

async fn reconcile(context: &Context, state: &State, key: &ObjectKey) -> Outcome {
    // The slices of a Service that is gone go with it: it owns them.
    let Some(service) = context.services.get(key) else {
        state.triggers.forget(key);
        return Ok(None);
    };
    if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    if state.unseen.any(context, key, Instant::now()) {
        return Ok(Some(LOOK_AGAIN));
    }
    let pods = pods_of(context, &service);
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let trigger = state.triggers.earliest(key, created, &pods);
    let zone = |node: &str| {
        let node = context.nodes.get(&ObjectKey::cluster(node))?;
        node.metadata.labels.as_ref()?.get(ZONE).cloned()
    };
    let template = Template {
        metadata: metadata(&service),
        trigger: trigger.map(|time| (TRIGGER_TIME, time.to_string())),
        capacity: CAPACITY,
    };
    let existing = slices_of(context, key, MANAGER);
    let plan = plan(&existing, groups(&service, &pods, zone), &template);
    write(context, key, plan, &state.unseen).await?;
    Ok(None)
}

fn metadata(service: &Service) -> ObjectMeta {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.retain(|key, _| !OWN_LABELS.contains(&key.as_str()));
    let name = service.metadata.name.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), name.clone());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if service.spec.as_ref().is_some_and(member::is_headless) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![controller_reference(service)]),
        ..ObjectMeta::default()
    }
}

/// The endpoints of a Service, by family and by what its ports are in the pods. A family without any has an empty group.
fn groups(service: &Service, pods: &[Arc<PodView>], zone: impl Fn(&str) -> Option<String>) -> Vec<Group> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let publish = spec.publish_not_ready_addresses == Some(true);
    let mut groups = Vec::new();
    for family in member::families(spec) {
        let mut by_ports: BTreeMap<Vec<(String, Option<i32>)>, Group> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| member::belongs(pod, true)) {
            let addresses = member::addresses(pod, family);
            if addresses.is_empty() {
                continue;
            }
            let ports: Vec<EndpointPort> = spec
                .ports
                .iter()
                .flatten()
                .filter_map(|port| {
                    Some(EndpointPort {
                        name: Some(port.name.clone().unwrap_or_default()),
                        port: Some(member::target_port(pod, port)?),
                        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                        app_protocol: port.app_protocol.clone(),
                    })
                })
                .collect();
            let terminating = pod.is_terminating();
            let endpoint = Endpoint {
                addresses,
                conditions: Some(EndpointConditions {
                    ready: Some(publish || (pod.ready && !terminating)),
                    serving: Some(pod.ready),
                    terminating: Some(terminating),
                }),
                hostname: member::hostname(pod, service),
                node_name: pod.node.as_deref().map(str::to_owned),
                target_ref: Some(member::reference(pod)),
                zone: pod.node.as_deref().and_then(&zone),
                ..Endpoint::default()
            };
            let key = ports
                .iter()
                .map(|port| (port.name.clone().unwrap_or_default(), port.port))
                .collect();
            let group = by_ports.entry(key).or_insert_with(|| Group {
                address_type: family.name(),
                ports,
                endpoints: Vec::new(),
            });
            group.endpoints.push(endpoint);
        }
        if by_ports.is_empty() {
            groups.push(Group {
                address_type: family.name(),
                ..Group::default()
            });
        }
        groups.extend(by_ports.into_values());
    }
    groups
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::member::tests::{pod, service, with};
    use super::*;

    #[test]
    fn endpoints_say_what_pods_are() {
        let pods = [
            pod("ready", &["10.0.0.1", "fd00::1"], true),
            pod("starting", &["10.0.0.2"], false),
            with(
                "leaving",
                &["10.0.0.3"],
                true,
                json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}),
            ),
            pod("no-address", &[], true),
        ];
        let service = service(json!({"ipFamilies": ["IPv4", "IPv6"]}));
        let groups = groups(&service, &pods, |node| Some(format!("zone-of-{node}")));
        assert_eq!(groups.len(), 2);
        let shown: Vec<_> = groups[0]
            .endpoints
            .iter()
            .map(|endpoint| {
                let conditions = endpoint.conditions.as_ref().unwrap();
                let flags = [conditions.ready, conditions.serving, conditions.terminating];
                (
                    endpoint.addresses[0].as_str(),
                    flags.map(|flag| flag == Some(true)),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("10.0.0.1", [true, true, false]),
                ("10.0.0.2", [false, false, false]),
                ("10.0.0.3", [false, true, true]),
            ]
        );
        assert_eq!(groups[0].ports[0].port, Some(8080));
        let first = &groups[0].endpoints[0];
        assert_eq!(first.zone.as_deref(), Some("zone-of-n1"));
        assert_eq!(first.hostname.as_deref(), Some("ready"));
        assert_eq!(
            first.target_ref.as_ref().unwrap().uid.as_deref(),
            Some("uid-ready")
        );
        assert_eq!(groups[1].address_type, "IPv6");
        assert_eq!(groups[1].endpoints[0].addresses, ["fd00::1"]);
    }

    #[test]
    fn unready_pods_are_published_on_request_and_none_make_an_empty_slice() {
        let pods = [pod("starting", &["10.0.0.2"], false)];
        let published = service(json!({"publishNotReadyAddresses": true, "clusterIP": "None"}));
        let group = groups(&published, &pods, |_| None).remove(0);
        let conditions = group.endpoints[0].conditions.as_ref().unwrap();
        assert_eq!((conditions.ready, conditions.serving), (Some(true), Some(false)));
        assert_eq!(metadata(&published).labels.unwrap()[HEADLESS], "");
        let none = groups(&published, &[], |_| None);
        assert_eq!(none.len(), 1);
        assert!(none[0].endpoints.is_empty() && none[0].ports.is_empty());
    }
}
