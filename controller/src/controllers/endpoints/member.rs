//! Which pods belong to a Service, and what they are there.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::allocation::Family;
use crate::controllers::pod::PodView;

/// Whether a change of a pod can matter to its Services.
pub(crate) fn differ(old: &PodView, new: &PodView) -> bool {
    old.ips != new.ips
        || old.ready != new.ready
        || old.node != new.node
        || old.is_terminating() != new.is_terminating()
        || old.is_finished() != new.is_finished()
        || old.labels != new.labels
}

/// Whether the pod is listed at all: it has an address, and has not ended.
pub(crate) fn belongs(pod: &PodView, with_terminating: bool) -> bool {
    !pod.ips.is_empty() && !pod.is_finished() && (with_terminating || !pod.is_terminating())
}

/// The pod's addresses of a family.
pub(crate) fn addresses(pod: &PodView, family: Family) -> Vec<String> {
    let of_family = |ip: &&Arc<str>| {
        ip.parse::<IpAddr>()
            .is_ok_and(|address| Family::of(address) == family)
    };
    pod.ips
        .iter()
        .filter(of_family)
        .map(ToString::to_string)
        .collect()
}

/// The number behind a port of a Service in a pod; a name is looked up among the pod's ports.
pub(crate) fn target_port(pod: &PodView, port: &ServicePort) -> Option<i32> {
    match port.target_port.as_ref().filter(|target| is_set(target)) {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let mut named = pod.ports.iter();
            let named = named.find(|own| *own.name == **name && *own.protocol == *protocol);
            named.map(|own| own.number)
        }
    }
}

fn is_set(target: &IntOrString) -> bool {
    match target {
        IntOrString::Int(number) => *number != 0,
        IntOrString::String(name) => !name.is_empty(),
    }
}

/// The name under which the Service's DNS knows the pod.
pub(crate) fn hostname(pod: &PodView, service: &Service) -> Option<String> {
    let domain = pod.subdomain.as_deref()?;
    (service.metadata.name.as_deref() == Some(domain))
        .then(|| pod.hostname.as_deref().map(str::to_owned))
        .flatten()
}

/// The pod as something to refer to.
pub(crate) fn reference(pod: &PodView) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The families of a Service, the first one first. A server that does not say has one: that of the address.
pub(crate) fn families(spec: &ServiceSpec) -> Vec<Family> {
    let named: Vec<_> = spec
        .ip_families
        .iter()
        .flatten()
        .filter_map(|name| Family::parse(name))
        .collect();
    if !named.is_empty() {
        return named;
    }
    let address = spec
        .cluster_ip
        .as_deref()
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    vec![address.map_or(Family::V4, Family::of)]
}

/// Whether the Service has no address.
pub(crate) fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A pod that runs on `n1`, with a port `web`.
    pub(crate) fn pod(name: &str, ips: &[&str], ready: bool) -> Arc<PodView> {
        with(name, ips, ready, json!({}))
    }

    /// The same with more in its metadata.
    pub(crate) fn with(name: &str, ips: &[&str], ready: bool, metadata: Value) -> Arc<PodView> {
        let mut meta = json!({"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "web"}});
        for (key, value) in metadata.as_object().unwrap() {
            meta[key] = value.clone();
        }
        let ips: Vec<_> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(json!({
            "metadata": meta,
            "spec": {"nodeName": "n1", "hostname": name, "subdomain": "web",
                "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": ips, "conditions": [
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": "2030-01-01T00:00:00Z"},
            ]},
        }))
        .unwrap();
        Arc::new(pod.into())
    }

    /// A Service `web` with more in its spec.
    pub(crate) fn service(spec: Value) -> Service {
        let mut all = json!({"type": "ClusterIP", "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "uid-service", "labels": {"tier": "front"}}, "spec": all,
        }))
        .unwrap()
    }

    #[test]
    fn what_services_choose_by_and_what_they_show_matters() {
        let before = pod("a", &["10.0.0.1"], true);
        assert!(!differ(&before, &pod("a", &["10.0.0.1"], true)));
        for after in [
            pod("a", &["10.0.0.2"], true),
            pod("a", &["10.0.0.1"], false),
            with("a", &["10.0.0.1"], true, json!({"labels": {"app": "other"}})),
            with(
                "a",
                &["10.0.0.1"],
                true,
                json!({"deletionTimestamp": "2030-01-01T00:00:00Z"}),
            ),
        ] {
            assert!(differ(&before, &after), "{after:?}");
        }
    }

    #[test]
    fn ports_by_name_are_the_pods_own() {
        let pod = pod("a", &["10.0.0.1"], true);
        let port = |value: Value| -> ServicePort { serde_json::from_value(value).unwrap() };
        for (given, wanted) in [
            (json!({"port": 80, "targetPort": "http"}), Some(8080)),
            (json!({"port": 80, "targetPort": "http", "protocol": "UDP"}), None),
            (json!({"port": 80, "targetPort": "other"}), None),
            (json!({"port": 80, "targetPort": 90}), Some(90)),
            (json!({"port": 80}), Some(80)),
        ] {
            assert_eq!(target_port(&pod, &port(given.clone())), wanted, "{given}");
        }
    }

    #[test]
    fn addresses_are_of_one_family_and_names_of_one_domain() {
        let pod = pod("a", &["10.0.0.1", "fd00::1"], true);
        assert_eq!(addresses(&pod, Family::V6), ["fd00::1"]);
        assert_eq!(hostname(&pod, &service(json!({}))), Some("a".to_owned()));
        let mut other = service(json!({}));
        other.metadata.name = Some("other".to_owned());
        assert_eq!(hostname(&pod, &other), None);
    }
}
