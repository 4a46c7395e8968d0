//! Keeps the Endpoints of Services that select pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use super::trigger::Triggers;
use super::{HEADLESS, TRIGGER_TIME, follow_services_and_pods, member, pods_of, selector};
use crate::controllers::pod::PodView;
use crate::controllers::{Context, ControllerError, Outcome, is_not_found, spawn_workers};
use crate::informer::ObjectKey;
use crate::queue::{Backoff, Queue};

/// Addresses of one object at most, as in Kubernetes.
const CAPACITY: usize = 1000;
/// Annotation: addresses were left out.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Label: who writes it.
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";

pub(crate) fn start(context: &Arc<Context>) {
    let queue = Queue::new(Backoff::default());
    follow_services_and_pods(context, &queue);
    let (keys, services) = (queue.clone(), context.services.clone());
    context.endpoints.subscribe(move |change| {
        // Endpoints without a Service are their writer's.
        let key = change.latest().map(|object| ObjectKey::of(&object.metadata));
        if let Some(key) = key.filter(|key| services.get(key).is_some()) {
            keys.add(key);
        }
    });
    let (synced, keys) = (context.clone(), queue.clone());
    let ready = async move {
        synced.services.wait_synced().await;
        synced.pods.wait_synced().await;
        synced.endpoints.wait_synced().await;
        // A Service may have gone while nobody looked.
        for endpoints in synced.endpoints.all() {
            keys.add(ObjectKey::of(&endpoints.metadata));
        }
    };
    let (shared, triggers) = (context.clone(), Arc::new(Triggers::default()));
    let workers = context.config.workers;
    spawn_workers(context, "endpoints", &queue, workers, ready, move |key| {
        let (context, triggers) = (shared.clone(), triggers.clone());
        async move { reconcile(&context, &triggers, &key).await }
    });
}

async fn reconcile(context: &Context, triggers: &Triggers, key: &ObjectKey) -> Outcome {
    let api: Api<Endpoints> = Api::namespaced(context.client.clone(), &key.namespace);
    let failed = |verb| ControllerError::api(verb, format!("endpoints {key}"));
    let existing = context.endpoints.get(key);
    let Some(service) = context.services.get(key) else {
        triggers.forget(key);
        if existing.is_some() {
            match api.delete(&key.name, &DeleteParams::default()).await {
                Ok(_) => {}
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(failed("delete")(error)),
            }
        }
        return Ok(None);
    };
    if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let pods = pods_of(context, &service);
    let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let trigger = triggers.earliest(key, created, &pods);
    let wanted = endpoints(&service, &pods);
    if existing
        .as_ref()
        .is_some_and(|existing| is_right(existing, &wanted))
    {
        return Ok(None);
    }
    let mut object = existing.as_deref().cloned().unwrap_or_default();
    let has_existing = existing.is_some();
    object.subsets = wanted.subsets;
    object.metadata.labels = wanted.metadata.labels;
    let annotations = object.metadata.annotations.get_or_insert_default();
    annotations.retain(|key, _| key != TRIGGER_TIME && key != OVER_CAPACITY);
    annotations.extend(wanted.metadata.annotations.unwrap_or_default());
    annotations.extend(trigger.map(|time| (TRIGGER_TIME.to_owned(), time.to_string())));
    if has_existing {
        api.replace(&key.name, &PostParams::default(), &object)
            .await
            .map_err(failed("update"))?;
    } else {
        object.metadata.name = Some(key.name.to_string());
        object.metadata.namespace = Some(key.namespace.to_string());
        api.create(&PostParams::default(), &object)
            .await
            .map_err(failed("create"))?;
    }
    Ok(None)
}

fn is_right(existing: &Endpoints, wanted: &Endpoints) -> bool {
    let over = |meta: &ObjectMeta| {
        let annotations = meta.annotations.as_ref();
        annotations.and_then(|all| all.get(OVER_CAPACITY)).cloned()
    };
    existing.subsets.clone().unwrap_or_default() == wanted.subsets.clone().unwrap_or_default()
        && existing.metadata.labels == wanted.metadata.labels
        && over(&existing.metadata) == over(&wanted.metadata)
}

/// What one address offers: whether it is ready, and on which ports.
type Offer = (bool, EndpointAddress);

/// The Endpoints of a Service: addresses that offer the same ports make one subset.
fn endpoints(service: &Service, pods: &[Arc<PodView>]) -> Endpoints {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    labels.remove(HEADLESS);
    let mut result = Endpoints::default();
    let Some(spec) = &service.spec else {
        return result;
    };
    if member::is_headless(spec) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    let publish = spec.publish_not_ready_addresses == Some(true);
    let family = member::families(spec)[0];
    let mut subsets: Vec<(Vec<EndpointPort>, Vec<Offer>)> = Vec::new();
    for pod in pods.iter().filter(|pod| member::belongs(pod, publish)) {
        let Some(ip) = member::addresses(pod, family).into_iter().next() else {
            continue;
        };
        let mut ports: Vec<EndpointPort> = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                Some(EndpointPort {
                    name: port.name.clone().filter(|name| !name.is_empty()),
                    port: member::target_port(pod, port)?,
                    protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                    app_protocol: port.app_protocol.clone(),
                })
            })
            .collect();
        if ports.is_empty() && spec.ports.as_ref().is_some_and(|ports| !ports.is_empty()) {
            continue;
        }
        ports.sort_by(|a, b| (&a.name, a.port).cmp(&(&b.name, b.port)));
        let address = EndpointAddress {
            ip,
            hostname: member::hostname(pod, service),
            node_name: pod.node.as_deref().map(str::to_owned),
            target_ref: Some(member::reference(pod)),
        };
        let offer = (publish || pod.ready, address);
        match subsets.iter_mut().find(|(known, _)| *known == ports) {
            Some((_, offers)) => offers.push(offer),
            None => subsets.push((ports, vec![offer])),
        }
    }
    if truncate(&mut subsets) {
        result.metadata.annotations = Some(BTreeMap::from([(
            OVER_CAPACITY.to_owned(),
            "truncated".to_owned(),
        )]));
    }
    subsets.retain(|(_, offers)| !offers.is_empty());
    subsets.sort_by_key(|(ports, _)| ports.first().map(|port| (port.name.clone(), port.port)));
    result.subsets = Some(
        subsets
            .into_iter()
            .map(|(ports, offers)| subset(ports, offers))
            .collect(),
    );
    result.metadata.labels = Some(labels);
    result
}

fn subset(ports: Vec<EndpointPort>, offers: Vec<Offer>) -> EndpointSubset {
    let mut offers = offers;
    offers.sort_by_key(|(_, address)| address.ip.parse::<IpAddr>().ok());
    let (ready, not_ready): (Vec<Offer>, Vec<Offer>) = offers.into_iter().partition(|(ready, _)| *ready);
    let list = |offers: Vec<Offer>| {
        let addresses: Vec<_> = offers.into_iter().map(|(_, address)| address).collect();
        Some(addresses).filter(|list| !list.is_empty())
    };
    EndpointSubset {
        addresses: list(ready),
        not_ready_addresses: list(not_ready),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    }
}

/// Leaves out what is too much, what is not ready first.
fn truncate(subsets: &mut [(Vec<EndpointPort>, Vec<Offer>)]) -> bool {
    let total: usize = subsets.iter().map(|(_, offers)| offers.len()).sum();
    let mut surplus = total.saturating_sub(CAPACITY);
    let truncated = surplus > 0;
    for ready in [false, true] {
        for (_, offers) in subsets.iter_mut().rev() {
            while surplus > 0
                && let Some(last) = offers.iter().rposition(|offer| offer.0 == ready)
            {
                offers.remove(last);
                surplus -= 1;
            }
        }
    }
    truncated
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::member::tests::{pod, service, with};
    use super::*;

    fn shown(service: &Service, pods: &[Arc<PodView>]) -> Value {
        let subsets = endpoints(service, pods).subsets.unwrap();
        let ips = |list: Option<Vec<EndpointAddress>>| -> Vec<String> {
            list.into_iter().flatten().map(|address| address.ip).collect()
        };
        subsets
            .into_iter()
            .map(|subset| {
                let ports: Vec<_> = subset.ports.into_iter().flatten().map(|port| port.port).collect();
                json!([ips(subset.addresses), ips(subset.not_ready_addresses), ports])
            })
            .collect()
    }

    #[test]
    fn addresses_with_the_same_ports_make_one_subset() {
        let pods = [
            pod("b", &["10.0.0.10", "fd00::a"], true),
            pod("a", &["10.0.0.9"], true),
            pod("starting", &["10.0.0.2"], false),
            with(
                "leaving",
                &["10.0.0.3"],
                true,
                json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}),
            ),
        ];
        let plain = service(json!({}));
        assert_eq!(
            shown(&plain, &pods),
            json!([[["10.0.0.9", "10.0.0.10"], ["10.0.0.2"], [8080]]])
        );
        let published = service(json!({"publishNotReadyAddresses": true}));
        assert_eq!(
            shown(&published, &pods),
            json!([[["10.0.0.2", "10.0.0.3", "10.0.0.9", "10.0.0.10"], [], [8080]]])
        );
        let six = service(json!({"ipFamilies": ["IPv6", "IPv4"]}));
        assert_eq!(shown(&six, &pods), json!([[["fd00::a"], [], [8080]]]));
        let headless = service(json!({"clusterIP": "None", "ports": []}));
        assert_eq!(shown(&headless, &pods[..1]), json!([[["10.0.0.10"], [], []]]));
        let unknown = service(json!({"ports": [{"port": 80, "targetPort": "other"}]}));
        assert_eq!(shown(&unknown, &pods), json!([]), "no pod has the port");
        assert_eq!(endpoints(&headless, &[]).metadata.labels.unwrap()[HEADLESS], "");
    }

    #[test]
    fn too_many_addresses_are_cut_off_and_said_so() {
        let pods: Vec<_> = (0..CAPACITY + 10)
            .map(|n| {
                pod(
                    &format!("p{n}"),
                    &[&format!("10.0.{}.{}", n / 250, n % 250 + 1)],
                    n % 100 != 0,
                )
            })
            .collect();
        let object = endpoints(&service(json!({})), &pods);
        let subset = &object.subsets.unwrap()[0];
        let count = |list: &Option<Vec<EndpointAddress>>| list.as_ref().map_or(0, Vec::len);
        assert_eq!(
            (count(&subset.addresses), count(&subset.not_ready_addresses)),
            (CAPACITY + 10 - 11, 1),
            "those that are not ready go first"
        );
        assert_eq!(object.metadata.annotations.unwrap()[OVER_CAPACITY], "truncated");
    }
}
