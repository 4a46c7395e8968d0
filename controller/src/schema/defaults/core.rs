//! Defaults of the core group.

use base64::Engine as _;
use serde_json::{Value, json};

use super::{Object, child, items, set, text};

pub(super) fn namespace(object: &mut Object) {
    if let Some(name) = object.get("metadata").and_then(|m| m.get("name")).cloned() {
        let labels = child(child(object, "metadata"), "labels");
        labels.insert("kubernetes.io/metadata.name".to_owned(), name);
    }
    set(child(object, "status"), "phase", "Active");
}

/// `stringData` is write-only: its entries win over those of `data`.
pub(super) fn secret(object: &mut Object) {
    if let Some(Value::Object(plain)) = object.remove("stringData") {
        let data = child(object, "data");
        for (key, value) in plain {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            data.insert(key, Value::String(encoded));
        }
    }
    set(object, "type", "Opaque");
}

/// What pods get and pod templates do not.
pub(super) fn pod(object: &mut Object) {
    let spec = child(object, "spec");
    set(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            requests_from_limits(container);
            if host_network {
                for port in items(container, "ports") {
                    if let Some(number) = port.get("containerPort").cloned() {
                        set(port, "hostPort", number);
                    }
                }
            }
        }
    }
    if let Some(resources) = spec.get_mut("resources").and_then(Value::as_object_mut) {
        copy_limits(resources);
    }
}

fn requests_from_limits(container: &mut Object) {
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) {
        copy_limits(resources);
    }
}

fn copy_limits(resources: &mut Object) {
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    let requests = child(resources, "requests");
    for (name, limit) in limits {
        set(requests, &name, limit);
    }
}

pub(super) fn pod_spec(spec: &mut Object) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    // The old name of the field always says the same.
    match (
        text(spec, "serviceAccountName").map(str::to_owned),
        text(spec, "serviceAccount").map(str::to_owned),
    ) {
        (Some(name), _) => _ = spec.insert("serviceAccount".to_owned(), Value::String(name)),
        (None, Some(name)) => _ = spec.insert("serviceAccountName".to_owned(), Value::String(name)),
        (None, None) => {}
    }
}

pub(super) fn container(container: &mut Object) {
    let policy = match text(container, "image") {
        Some(image) if is_latest(image) => Some("Always"),
        Some(_) => Some("IfNotPresent"),
        None => None,
    };
    if let Some(policy) = policy {
        set(container, "imagePullPolicy", policy);
    }
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
}

/// Whether the reference has the tag `latest`, or neither tag nor digest.
fn is_latest(image: &str) -> bool {
    let (name, digest) = match image.split_once('@') {
        Some((name, _)) => (name, true),
        None => (image, false),
    };
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

pub(super) fn probe(probe: &mut Object) {
    set(probe, "timeoutSeconds", 1);
    set(probe, "periodSeconds", 10);
    set(probe, "successThreshold", 1);
    set(probe, "failureThreshold", 3);
}

/// A volume that names no source is an empty directory.
pub(super) fn volume(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), json!({}));
    }
}

pub(super) fn service_spec(spec: &mut Object) {
    set(spec, "sessionAffinity", "None");
    if text(spec, "sessionAffinity") == Some("ClientIP") {
        set(
            child(child(spec, "sessionAffinityConfig"), "clientIP"),
            "timeoutSeconds",
            10_800,
        );
    } else {
        spec.remove("sessionAffinityConfig");
    }
    set(spec, "type", "ClusterIP");
    for port in items(spec, "ports") {
        let unset = matches!(port.get("targetPort"), None | Some(Value::Null))
            || port.get("targetPort") == Some(&Value::from(0))
            || port.get("targetPort") == Some(&Value::from(""));
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let kind = text(spec, "type").unwrap_or_default().to_owned();
    let outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer");
    let external_addresses = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|ips| !ips.is_empty());
    if outside || (kind == "ClusterIP" && external_addresses) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if outside || kind == "ClusterIP" {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
}

pub(super) fn replication_controller(object: &mut Object) {
    let labels = object
        .get("spec")
        .and_then(|spec| spec.get("template")?.get("metadata")?.get("labels"))
        .filter(|labels| labels.as_object().is_some_and(|labels| !labels.is_empty()))
        .cloned();
    let spec = child(object, "spec");
    set(spec, "replicas", 1);
    if let Some(labels) = labels {
        set(spec, "selector", labels.clone());
        set(child(object, "metadata"), "labels", labels);
    }
}

pub(super) fn persistent_volume(object: &mut Object) {
    set(child(object, "status"), "phase", "Pending");
    let spec = child(object, "spec");
    set(spec, "persistentVolumeReclaimPolicy", "Retain");
    set(spec, "volumeMode", "Filesystem");
}

pub(super) fn persistent_volume_claim(object: &mut Object) {
    set(child(object, "status"), "phase", "Pending");
    set(child(object, "spec"), "volumeMode", "Filesystem");
}

/// Limits of containers: the default is the maximum, the default request is the default or the minimum.
pub(super) fn limit_range_item(item: &mut Object) {
    if text(item, "type") != Some("Container") {
        return;
    }
    for (from, to) in [
        ("max", "default"),
        ("default", "defaultRequest"),
        ("min", "defaultRequest"),
    ] {
        if let Some(Value::Object(limits)) = item.get(from).cloned() {
            let target = child(item, to);
            for (name, limit) in limits {
                set(target, &name, limit);
            }
        }
    }
}

pub(super) fn node_status(status: &mut Object) {
    if let Some(capacity) = status.get("capacity").cloned() {
        set(status, "allocatable", capacity);
    }
}
