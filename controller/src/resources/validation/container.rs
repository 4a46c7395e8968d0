//! The containers of pods.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{Problems, is_set, items, name_in, supported, text, volume};
use crate::quantity::Quantity;

/// What a container's check needs to know of its pod.
pub(super) struct Context<'a> {
    pub(super) volumes: &'a BTreeSet<&'a str>,
    pub(super) host_network: bool,
}

/// Checks a list of containers; `names` has those of other lists before and gets these.
pub(super) fn containers<'a>(
    list: &'a Value,
    at: &str,
    context: &Context<'_>,
    names: &mut BTreeSet<&'a str>,
    problems: &mut Problems,
) {
    let mut host_ports = BTreeSet::new();
    for (field, container) in items(list, at) {
        name_in(&container["name"], &format!("{field}.name"), names, problems);
        let image = text(&container["image"]);
        if image.is_empty() {
            problems.required(&format!("{field}.image"), "");
        } else if image.trim() != image {
            let detail = "must not have leading or trailing whitespace";
            problems.invalid(&format!("{field}.image"), &container["image"], detail);
        }
        supported(
            container,
            &field,
            "imagePullPolicy",
            &["Always", "IfNotPresent", "Never"],
            problems,
        );
        supported(
            container,
            &field,
            "terminationMessagePolicy",
            &["FallbackToLogsOnError", "File"],
            problems,
        );
        ports(
            &container["ports"],
            &format!("{field}.ports"),
            context,
            &mut host_ports,
            problems,
        );
        env(&container["env"], &format!("{field}.env"), problems);
        mounts(
            &container["volumeMounts"],
            &format!("{field}.volumeMounts"),
            context,
            problems,
        );
        for kind in ["livenessProbe", "readinessProbe", "startupProbe"] {
            if container[kind].is_object() {
                probe(
                    &container[kind],
                    &format!("{field}.{kind}"),
                    kind != "readinessProbe",
                    problems,
                );
            }
        }
        for hook in ["postStart", "preStop"] {
            if container["lifecycle"][hook].is_object() {
                handler(
                    &container["lifecycle"][hook],
                    &format!("{field}.lifecycle.{hook}"),
                    problems,
                );
            }
        }
        resources(&container["resources"], &format!("{field}.resources"), problems);
    }
}

pub(super) fn port_number(value: &Value, field: &str, problems: &mut Problems) {
    let number = value.as_i64().unwrap_or_default();
    if !(1..=65535).contains(&number) {
        problems.invalid(field, &json!(number), "must be between 1 and 65535, inclusive");
    }
}

/// What is wrong with the name of a port.
pub(super) fn port_name_problems(name: &str) -> Vec<&'static str> {
    let mut problems = Vec::new();
    if name.len() > 15 {
        problems.push("must be no more than 15 characters");
    }
    if !name
        .bytes()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
    {
        problems.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
    }
    if !name.bytes().any(|c| c.is_ascii_lowercase()) {
        problems.push("must contain at least one letter (a-z)");
    }
    if name.contains("--") {
        problems.push("must not contain consecutive hyphens");
    }
    if name.starts_with('-') || name.ends_with('-') {
        problems.push("must not begin or end with a hyphen");
    }
    problems
}

fn ports(
    list: &Value,
    at: &str,
    context: &Context<'_>,
    host_ports: &mut BTreeSet<String>,
    problems: &mut Problems,
) {
    let mut names = BTreeSet::new();
    for (field, port) in items(list, at) {
        let name = &port["name"];
        if is_set(name) {
            let wrong = port_name_problems(text(name));
            for problem in &wrong {
                problems.invalid(&format!("{field}.name"), name, problem);
            }
            if wrong.is_empty() && !names.insert(text(name)) {
                problems.duplicate(&format!("{field}.name"), name);
            }
        }
        if port["containerPort"].as_i64().unwrap_or_default() == 0 {
            problems.required(&format!("{field}.containerPort"), "");
        } else {
            port_number(
                &port["containerPort"],
                &format!("{field}.containerPort"),
                problems,
            );
        }
        let host_port = port["hostPort"].as_i64().unwrap_or_default();
        if host_port != 0 {
            port_number(&port["hostPort"], &format!("{field}.hostPort"), problems);
            let taken = format!(
                "{}/{}/{host_port}",
                text(&port["protocol"]),
                text(&port["hostIP"])
            );
            if !host_ports.insert(taken.clone()) {
                problems.duplicate(&format!("{field}.hostPort"), &json!(taken));
            }
            if context.host_network && port["hostPort"] != port["containerPort"] {
                let detail = "must match `hostPort` when `hostNetwork` is true";
                problems.invalid(&format!("{field}.containerPort"), &port["containerPort"], detail);
            }
        }
        supported(port, &field, "protocol", &["SCTP", "TCP", "UDP"], problems);
    }
}

fn env(list: &Value, at: &str, problems: &mut Problems) {
    const SOURCES: [&str; 4] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"];
    for (field, variable) in items(list, at) {
        let name = &variable["name"];
        if !is_set(name) {
            problems.required(&format!("{field}.name"), "");
        } else if !text(name).chars().all(|c| (' '..='~').contains(&c) && c != '=') {
            let detail = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            problems.invalid(&format!("{field}.name"), name, detail);
        }
        let from = &variable["valueFrom"];
        if !from.is_object() {
            continue;
        }
        let field = format!("{field}.valueFrom");
        let sources = SOURCES.iter().filter(|source| from[**source].is_object()).count();
        let detail = match sources {
            0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
            _ if is_set(&variable["value"]) => "may not be specified when `value` is not empty",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        problems.invalid(&field, &json!(""), detail);
    }
}

fn mounts(list: &Value, at: &str, context: &Context<'_>, problems: &mut Problems) {
    let mut paths = BTreeSet::new();
    for (field, mount) in items(list, at) {
        if !is_set(&mount["name"]) {
            problems.required(&format!("{field}.name"), "");
        } else if !context.volumes.contains(text(&mount["name"])) {
            problems.not_found(&format!("{field}.name"), &mount["name"]);
        }
        let path = &mount["mountPath"];
        if !is_set(path) {
            problems.required(&format!("{field}.mountPath"), "");
        } else if !paths.insert(text(path)) {
            problems.invalid(&format!("{field}.mountPath"), path, "must be unique");
        }
        volume::relative_path(&mount["subPath"], &format!("{field}.subPath"), problems);
    }
}

fn probe(probe: &Value, at: &str, once: bool, problems: &mut Problems) {
    handler(probe, at, problems);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if probe[key].as_i64().is_some_and(|number| number < 0) {
            problems.invalid(
                &format!("{at}.{key}"),
                &probe[key],
                "must be greater than or equal to 0",
            );
        }
    }
    if once
        && probe["successThreshold"]
            .as_i64()
            .is_some_and(|threshold| threshold != 1)
    {
        problems.invalid(
            &format!("{at}.successThreshold"),
            &probe["successThreshold"],
            "must be 1",
        );
    }
}

fn handler(handler: &Value, at: &str, problems: &mut Problems) {
    let kinds = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];
    let mut given = kinds.iter().filter(|kind| handler[**kind].is_object());
    let Some(kind) = given.next() else {
        problems.required(at, "must specify a handler type");
        return;
    };
    for other in given {
        problems.forbidden(
            &format!("{at}.{other}"),
            "may not specify more than 1 handler type",
        );
    }
    let (action, at) = (&handler[*kind], format!("{at}.{kind}"));
    match *kind {
        "exec" if action["command"].as_array().is_none_or(Vec::is_empty) => {
            problems.required(&format!("{at}.command"), "");
        }
        "httpGet" => {
            if !is_set(&action["path"]) {
                problems.required(&format!("{at}.path"), "");
            }
            port_or_name(&action["port"], &format!("{at}.port"), problems);
            supported(action, &at, "scheme", &["HTTP", "HTTPS"], problems);
        }
        "tcpSocket" => port_or_name(&action["port"], &format!("{at}.port"), problems),
        "grpc" => port_number(&action["port"], &format!("{at}.port"), problems),
        _ => {}
    }
}

pub(super) fn port_or_name(port: &Value, field: &str, problems: &mut Problems) {
    match port.as_str() {
        Some(name) => {
            for problem in port_name_problems(name) {
                problems.invalid(field, port, problem);
            }
        }
        None => port_number(port, field, problems),
    }
}

fn resources(resources: &Value, at: &str, problems: &mut Problems) {
    let parse = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        text.parse::<Quantity>()
    };
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let field = format!("{at}.{list}[{name}]");
            if !name.contains('/') && !is_standard_resource(name) {
                let detail = "must be a standard resource type or fully qualified";
                problems.invalid(&format!("{at}.{list}"), &json!(name), detail);
            }
            let quantity = match parse(value) {
                Ok(quantity) => quantity,
                Err(error) => {
                    problems.invalid(&field, value, &error.to_string());
                    continue;
                }
            };
            if quantity.is_negative() {
                problems.invalid(&field, value, "must be greater than or equal to 0");
            }
            if name.contains('/') && !quantity.is_whole() {
                problems.invalid(&field, value, "must be an integer");
            }
            let limit = &resources["limits"][name];
            if list == "requests"
                && !limit.is_null()
                && let Ok(limit) = parse(limit)
                && quantity > limit
            {
                let detail = format!("must be less than or equal to {name} limit of {limit}");
                problems.invalid(&format!("{at}.requests"), value, &detail);
            }
        }
    }
}

fn is_standard_resource(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage" | "storage") || name.starts_with("hugepages-")
}
