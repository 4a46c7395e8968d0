//! What a server fills in.
//!
//! Defaults that are constants stand in the table of facts; those that depend on other fields are here, one function per
//! type. They are applied to every struct of that type wherever it occurs, outer ones first, so that what an outer one
//! creates is filled in too. Filling in twice is the same as once.

use serde_json::{Map, Value, json};

use super::KindSchema;
use super::facts::{Shape, TypeDef};

mod core;
mod workloads;

type Object = Map<String, Value>;

pub(super) fn apply(schema: &KindSchema, object: &mut Value) {
    if let (Shape::Struct(id), Value::Object(object)) = (schema.root(), object) {
        fill(id.definition(), object);
    }
}

fn walk(shape: Shape, value: &mut Value) {
    match (shape.unwrapped(), value) {
        (Shape::Struct(id), Value::Object(object)) => fill(id.definition(), object),
        (Shape::List(inner), Value::Array(items)) if inner.has_struct() => {
            for item in items {
                walk(*inner, item);
            }
        }
        (Shape::Map(inner), Value::Object(entries)) if inner.has_struct() => {
            for item in entries.values_mut() {
                walk(*inner, item);
            }
        }
        _ => {}
    }
}

fn fill(definition: &TypeDef, object: &mut Object) {
    for field in definition.json_fields() {
        if let Some(default) = &field.default
            && (field.pointer || !is_zero(default))
        {
            set(object, field.name, default.clone());
        }
    }
    by_type(definition.name, object);
    for field in definition.json_fields().filter(|field| field.shape.has_struct()) {
        if let Some(value) = object.get_mut(field.name) {
            walk(field.shape, value);
        }
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Null => true,
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn by_type(name: &str, object: &mut Object) {
    match name {
        "core.v1.Namespace" => core::namespace(object),
        "core.v1.Secret" => core::secret(object),
        "core.v1.Pod" => core::pod(object),
        "core.v1.PodSpec" => core::pod_spec(object),
        "core.v1.Container" | "core.v1.EphemeralContainer" => core::container(object),
        "core.v1.Probe" => core::probe(object),
        "core.v1.HTTPGetAction" => {
            set(object, "path", "/");
            set(object, "scheme", "HTTP");
        }
        "core.v1.Volume" => core::volume(object),
        "core.v1.SecretVolumeSource"
        | "core.v1.ConfigMapVolumeSource"
        | "core.v1.DownwardAPIVolumeSource"
        | "core.v1.ProjectedVolumeSource" => set(object, "defaultMode", 420),
        "core.v1.HostPathVolumeSource" => set(object, "type", ""),
        "core.v1.ServiceAccountTokenProjection" | "authentication.v1.TokenRequestSpec" => {
            set(object, "expirationSeconds", 3600);
        }
        "core.v1.ObjectFieldSelector" => set(object, "apiVersion", "v1"),
        "core.v1.ServiceSpec" => core::service_spec(object),
        "core.v1.ReplicationController" => core::replication_controller(object),
        "core.v1.PersistentVolume" => core::persistent_volume(object),
        "core.v1.PersistentVolumeClaim" => core::persistent_volume_claim(object),
        "core.v1.LimitRangeItem" => core::limit_range_item(object),
        "core.v1.NodeStatus" => core::node_status(object),
        "apps.v1.Deployment" => workloads::deployment(object),
        "apps.v1.ReplicaSet" => set(child(object, "spec"), "replicas", 1),
        "apps.v1.DaemonSet" => workloads::daemon_set(object),
        "apps.v1.StatefulSet" => workloads::stateful_set(object),
        "batch.v1.Job" => workloads::job(object),
        "batch.v1.CronJob" => workloads::cron_job(object),
        "autoscaling.v1.HorizontalPodAutoscaler" => set(child(object, "spec"), "minReplicas", 1),
        "autoscaling.v2.HorizontalPodAutoscaler" => workloads::horizontal_pod_autoscaler(object),
        "networking.v1.NetworkPolicy" => network_policy(object),
        "networking.v1.NetworkPolicyPort" => set(object, "protocol", "TCP"),
        "networking.v1.IngressClassParametersReference" => set(object, "scope", "Cluster"),
        "discovery.v1.EndpointPort" => {
            set(object, "name", "");
            set(object, "protocol", "TCP");
        }
        "rbac.v1.RoleRef" => set(object, "apiGroup", "rbac.authorization.k8s.io"),
        "rbac.v1.Subject" => {
            if matches!(text(object, "kind"), Some("User" | "Group")) {
                set(object, "apiGroup", "rbac.authorization.k8s.io");
            }
        }
        "apiextensions.v1.CustomResourceDefinitionSpec" => custom_resource_definition_spec(object),
        "scheduling.v1.PriorityClass" => set(object, "preemptionPolicy", "PreemptLowerPriority"),
        "storage.v1.StorageClass" => {
            set(object, "reclaimPolicy", "Delete");
            set(object, "volumeBindingMode", "Immediate");
        }
        "storage.v1.CSIDriverSpec" => csi_driver_spec(object),
        _ => {}
    }
}

fn network_policy(object: &mut Object) {
    let spec = child(object, "spec");
    let mut types = vec!["Ingress"];
    if spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|rules| !rules.is_empty())
    {
        types.push("Egress");
    }
    set(spec, "podSelector", json!({}));
    set(spec, "policyTypes", types);
}

fn custom_resource_definition_spec(object: &mut Object) {
    set(object, "conversion", json!({"strategy": "None"}));
    let names = child(object, "names");
    if let Some(kind) = text(names, "kind")
        .filter(|kind| !kind.is_empty())
        .map(str::to_owned)
    {
        set(names, "singular", kind.to_lowercase());
        set(names, "listKind", format!("{kind}List"));
    }
}

fn csi_driver_spec(object: &mut Object) {
    set(object, "attachRequired", true);
    set(object, "podInfoOnMount", false);
    set(object, "storageCapacity", false);
    set(object, "fsGroupPolicy", "ReadWriteOnceWithFSType");
    set(object, "volumeLifecycleModes", vec!["Persistent"]);
    set(object, "requiresRepublish", false);
    set(object, "seLinuxMount", false);
}

/// Sets a field that is absent, null or an empty list.
fn set(object: &mut Object, name: &str, value: impl Into<Value>) {
    let absent = match object.get(name) {
        None | Some(Value::Null) => true,
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    if absent {
        object.insert(name.to_owned(), value.into());
    }
}

/// The struct in a field, made if there is none. A value of another type is left for validation to refuse.
fn child<'a>(object: &'a mut Object, name: &str) -> &'a mut Object {
    let value = object.entry(name).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Object::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("made an object just above"),
    }
}

fn text<'a>(object: &'a Object, name: &str) -> Option<&'a str> {
    object.get(name).and_then(Value::as_str)
}

fn items<'a>(object: &'a mut Object, name: &str) -> impl Iterator<Item = &'a mut Object> {
    let list = object.get_mut(name).and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

#[cfg(test)]
mod tests;
