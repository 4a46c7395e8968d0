//! The core group.

mod node;
mod pod;
mod quota;
mod service;
mod volume;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
pub(crate) use pod::qos_class;
use serde_json::{Value, json};

use crate::auth::service_account::{ACCOUNT_ANNOTATION, SECRET_TYPE};

use super::Subresource::{
    Attach, Binding, EphemeralContainers, Eviction, Exec, Finalize, Log, PortForward, Proxy, Resize, Scale,
    Status, Token,
};
use super::{
    Field, NAME, Problems, READ, Resource, apps, events, field, flag, number, printing, question, row, text,
    validation, wide,
};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        ..question("", "Binding", ("bindings", "binding"), true)
    },
    Resource {
        short_names: &["cs"],
        namespaced: false,
        verbs: READ,
        deprecation: "v1 ComponentStatus is deprecated in v1.19+",
        columns: &[NAME, text("Status"), text("Message"), text("Error")],
        cells: |component, _| {
            let condition = &component["conditions"][0];
            let healthy = condition["status"] == "True";
            vec![
                component["metadata"]["name"].clone(),
                json!(if healthy { "Healthy" } else { "Unhealthy" }),
                condition["message"].clone(),
                json!(condition["error"].as_str().unwrap_or_default()),
            ]
        },
        ..row(
            "",
            "v1",
            "ComponentStatus",
            ("componentstatuses", "componentstatus"),
            "",
        )
    },
    Resource {
        short_names: &["cm"],
        columns: &[NAME, number("Data"), text("Age")],
        cells: |map, now| {
            let count = size(&map["data"]) + size(&map["binaryData"]);
            vec![
                map["metadata"]["name"].clone(),
                json!(count),
                printing::age(map, now),
            ]
        },
        validate: |map, old, problems| {
            data_keys(map, &["data", "binaryData"], problems);
            sealed(map, old, &["data", "binaryData"], problems);
        },
        ..row("", "v1", "ConfigMap", ("configmaps", "configmap"), "configmaps")
    },
    service::ENDPOINTS,
    events::CORE,
    quota::LIMIT_RANGE,
    Resource {
        short_names: &["ns"],
        namespaced: false,
        subresources: &[Finalize, Status],
        // There is no deletion of all namespaces.
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        fields: &[field("status.phase")],
        columns: &[NAME, text("Status"), text("Age")],
        cells: |namespace, now| {
            let phase = namespace["status"]["phase"].clone();
            vec![
                namespace["metadata"]["name"].clone(),
                phase,
                printing::age(namespace, now),
            ]
        },
        prepare: |namespace| {
            let name = namespace["metadata"]["name"].clone();
            namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
            let finalizers = namespace["spec"]["finalizers"].as_array_mut();
            match finalizers {
                Some(list) if list.iter().any(|finalizer| finalizer == "kubernetes") => {}
                Some(list) => list.push(json!("kubernetes")),
                None => namespace["spec"] = json!({"finalizers": ["kubernetes"]}),
            }
            namespace["status"] = json!({"phase": "Active"});
        },
        name_problem: validation::label_problem,
        ..row("", "v1", "Namespace", ("namespaces", "namespace"), "namespaces")
    },
    Resource {
        short_names: &["no"],
        namespaced: false,
        subresources: &[Proxy, Status],
        fields: &[flag("spec.unschedulable")],
        columns: &[
            NAME,
            text("Status"),
            text("Roles"),
            text("Age"),
            text("Version"),
            wide("Internal-IP"),
            wide("External-IP"),
            wide("OS-Image"),
            wide("Kernel-Version"),
            wide("Container-Runtime"),
        ],
        cells: node::cells,
        validate: node::validate,
        ..row("", "v1", "Node", ("nodes", "node"), "nodes")
    },
    volume::PERSISTENT_VOLUME_CLAIM,
    volume::PERSISTENT_VOLUME,
    Resource {
        short_names: &["po"],
        categories: &["all"],
        generation: true,
        subresources: &[
            Attach,
            Binding,
            EphemeralContainers,
            Eviction,
            Exec,
            Log,
            PortForward,
            Proxy,
            Resize,
            Status,
        ],
        fields: &[
            field("spec.nodeName"),
            field("spec.restartPolicy"),
            field("spec.schedulerName"),
            field("spec.serviceAccountName"),
            flag("spec.hostNetwork"),
            field("status.phase"),
            field("status.podIP"),
            Field {
                path: "status.podIPs.0.ip",
                ..field("status.podIPs")
            },
            field("status.nominatedNodeName"),
        ],
        columns: &[
            NAME,
            text("Ready"),
            text("Status"),
            text("Restarts"),
            text("Age"),
            wide("IP"),
            wide("Node"),
            wide("Nominated Node"),
            wide("Readiness Gates"),
        ],
        cells: pod::cells,
        prepare: pod::prepare,
        validate: pod::validate,
        ..row("", "v1", "Pod", ("pods", "pod"), "pods")
    },
    Resource {
        columns: &[NAME, text("Containers"), text("Images"), text("Pod Labels")],
        cells: |template, _| {
            let [names, images] = printing::containers(&template["template"]["spec"]);
            let labels = printing::labels(&template["template"]["metadata"]["labels"]);
            let labels = printing::none_if_empty(labels.join(","));
            vec![template["metadata"]["name"].clone(), names, images, labels]
        },
        validate: |template, _, problems| {
            validation::pod_template(&template["template"], "template", problems);
        },
        ..row(
            "",
            "v1",
            "PodTemplate",
            ("podtemplates", "podtemplate"),
            "podtemplates",
        )
    },
    Resource {
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[Scale, Status],
        generation: true,
        fields: &[field("status.replicas")],
        columns: apps::REPLICA_COLUMNS,
        cells: |controller, now| {
            let selector = printing::labels(&controller["spec"]["selector"]).join(",");
            apps::replica_cells(controller, now, printing::none_if_empty(selector))
        },
        prepare: |controller| {
            let labels = controller["spec"]["template"]["metadata"]["labels"].clone();
            if size(&controller["spec"]["selector"]) == 0 && labels.is_object() {
                controller["spec"]["selector"] = labels.clone();
            }
            if size(&controller["metadata"]["labels"]) == 0 && labels.is_object() {
                controller["metadata"]["labels"] = labels;
            }
        },
        validate: validation::workload::replication_controller,
        orphans: true,
        ..row(
            "",
            "v1",
            "ReplicationController",
            ("replicationcontrollers", "replicationcontroller"),
            "replicationcontrollers",
        )
    },
    quota::RESOURCE_QUOTA,
    Resource {
        fields: &[field("type")],
        columns: &[NAME, text("Type"), number("Data"), text("Age")],
        cells: |secret, now| {
            vec![
                secret["metadata"]["name"].clone(),
                secret["type"].clone(),
                json!(size(&secret["data"])),
                printing::age(secret, now),
            ]
        },
        validate: |secret, old, problems| {
            let annotations = &secret["metadata"]["annotations"];
            if secret["type"] == SECRET_TYPE && !annotations[ACCOUNT_ANNOTATION].is_string() {
                problems.required(&format!("metadata.annotations[{ACCOUNT_ANNOTATION}]"), "");
            }
            data_keys(secret, &["data"], problems);
            needed_keys(secret, problems);
            validation::immutable(secret, old, "type", problems);
            sealed(secret, old, &["data"], problems);
        },
        ..row("", "v1", "Secret", ("secrets", "secret"), "secrets")
    },
    Resource {
        short_names: &["sa"],
        subresources: &[Token],
        columns: &[NAME, number("Secrets"), text("Age")],
        cells: |account, now| {
            let secrets = account["secrets"].as_array().map_or(0, Vec::len);
            vec![
                account["metadata"]["name"].clone(),
                json!(secrets),
                printing::age(account, now),
            ]
        },
        ..row(
            "",
            "v1",
            "ServiceAccount",
            ("serviceaccounts", "serviceaccount"),
            "serviceaccounts",
        )
    },
    service::SERVICE,
];

fn size(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

/// What is immutable stays so, and with it these parts.
fn sealed(object: &Value, old: Option<&Value>, parts: &[&str], problems: &mut Problems) {
    let Some(old) = old.filter(|old| old["immutable"] == true) else {
        return;
    };
    for part in std::iter::once(&"immutable").chain(parts) {
        if old[part] != object[part] {
            problems.forbidden(part, "field is immutable when `immutable` is set");
        }
    }
}

/// What Secrets of certain types must have.
const NEEDED_KEYS: &[(&str, &[&str])] = &[
    ("kubernetes.io/tls", &["tls.crt", "tls.key"]),
    ("kubernetes.io/ssh-auth", &["ssh-privatekey"]),
    ("kubernetes.io/dockercfg", &[".dockercfg"]),
    ("kubernetes.io/dockerconfigjson", &[".dockerconfigjson"]),
];

fn needed_keys(secret: &Value, problems: &mut Problems) {
    let kind = secret["type"].as_str().unwrap_or_default();
    let data = &secret["data"];
    let mut missing: Vec<&str> = Vec::new();
    if let Some((_, keys)) = NEEDED_KEYS.iter().find(|(of, _)| *of == kind) {
        missing.extend(keys.iter().filter(|key| !data[**key].is_string()));
    }
    let either = ["username", "password"];
    if kind == "kubernetes.io/basic-auth" && either.iter().all(|key| !data[*key].is_string()) {
        missing.extend(either);
    }
    for key in missing {
        problems.required(&format!("data[{key}]"), "");
    }
    if kind.starts_with("kubernetes.io/dockerc")
        && let Some((_, [key])) = NEEDED_KEYS.iter().find(|(of, _)| *of == kind)
        && let Some(text) = data[*key].as_str()
        && !STANDARD
            .decode(text)
            .is_ok_and(|bytes| serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok())
    {
        let redacted = json!("<secret contents redacted>");
        problems.invalid(&format!("data[{key}]"), &redacted, "invalid JSON");
    }
}

/// Largest sum of the values of a ConfigMap or Secret, as in Kubernetes.
const MAX_DATA: usize = 1 << 20;

fn data_keys(object: &Value, parts: &[&str], problems: &mut Problems) {
    let mut total = 0;
    for part in parts {
        for (key, value) in object[part].as_object().into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            // Three bytes in four letters, but for the padding.
            let encoded = *part == "binaryData" || object["kind"] == "Secret";
            total += if encoded {
                let padding = text.bytes().rev().take(2).filter(|c| *c == b'=').count();
                (text.len() / 4 * 3).saturating_sub(padding)
            } else {
                text.len()
            };
            let safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if key.is_empty()
                || key.len() > 253
                || !key.chars().all(safe)
                || key == "."
                || key.starts_with("..")
            {
                problems.invalid(
                    &format!("{part}[{key}]"),
                    &json!(key),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
                     'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                );
            }
        }
    }
    if total > MAX_DATA {
        problems.invalid(
            "",
            &json!(""),
            &format!("Too long: may not be more than {MAX_DATA} bytes"),
        );
    }
}
