//! A container's environment and command line: values, references to the pod's own fields, and `$(NAME)`.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};

use super::volumes::Claimed;
use crate::image::RunConfig;

/// The search path of images that do not set one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a container cannot be given its environment or command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvironmentError {
    /// Something that the variable refers to is not there.
    #[error("variable {variable}: {what} {namespace}/{name} has no key {key:?}")]
    NoKey {
        /// The variable.
        variable: String,
        /// `config map` or `secret`.
        what: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// An object that is referred to is not there.
    #[error("{what} {namespace}/{name} does not exist")]
    NoObject {
        /// `config map` or `secret`.
        what: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A field that cannot be given.
    #[error("variable {variable}: field {field:?} is not offered by this runtime")]
    Field {
        /// The variable.
        variable: String,
        /// The field.
        field: String,
    },
    /// A kind of reference that cannot be given.
    #[error("variable {variable}: this runtime does not offer this source of values")]
    Source {
        /// The variable.
        variable: String,
    },
    /// Neither the pod nor the image says what to run.
    #[error("neither the container nor the image names a command")]
    NoCommand,
}

/// What a pod refers to, by kind and name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Config maps; `None` for one that does not exist.
    pub config_maps: BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    /// Secrets; `None` for one that does not exist.
    pub secrets: BTreeMap<String, Option<BTreeMap<String, Vec<u8>>>>,
    /// Tokens of the pod's service account, by volume and path in it.
    pub tokens: BTreeMap<(String, String), String>,
    /// Whether the API could not be asked for what volumes are made of.
    pub unreachable: bool,
    /// What volume claims come to.
    pub claims: BTreeMap<String, Claimed>,
}

/// What the downward API gives beside the pod's own object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The node's addresses.
    pub node_ips: Vec<IpAddr>,
}

/// The environment of a container, `NAME=value`, the image's variables first.
pub fn environment(
    pod: &Pod,
    container: &Container,
    image: &RunConfig,
    hostname: &str,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Vec<String>, EnvironmentError> {
    let mut variables: Vec<(String, String)> = Vec::new();
    let mut set = |name: &str, value: String| match variables.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => *old = value,
        None => variables.push((name.to_owned(), value)),
    };
    for text in std::iter::once(DEFAULT_PATH).chain(image.env.iter().map(String::as_str)) {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        set(name, value.to_owned());
    }
    set("HOSTNAME", hostname.to_owned());
    // References see what the pod sets, and not what the image does.
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in from_whole_objects(pod, container, sources)? {
        set(&name, value.clone());
        own.insert(name, value);
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(expand(value, &own)),
            (None, Some(source)) => from_source(pod, variable, source, addresses, sources)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            set(&variable.name, value.clone());
            own.insert(variable.name.clone(), value);
        }
    }
    Ok(variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

/// The program and its arguments: the pod's command replaces the image's entry point and its arguments.
pub fn command_line(
    container: &Container,
    image: &RunConfig,
    environment: &[String],
) -> Result<Vec<String>, EnvironmentError> {
    let variables: BTreeMap<String, String> = environment
        .iter()
        .filter_map(|text| text.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let expanded =
        |words: &[String]| -> Vec<String> { words.iter().map(|word| expand(word, &variables)).collect() };
    let command = container.command.as_deref().unwrap_or_default();
    let args = container.args.as_deref().unwrap_or_default();
    let line: Vec<String> = match (command, args) {
        ([], []) => image.entrypoint.iter().chain(&image.cmd).cloned().collect(),
        ([], args) => image.entrypoint.iter().cloned().chain(expanded(args)).collect(),
        (command, args) => expanded(command).into_iter().chain(expanded(args)).collect(),
    };
    if line.is_empty() {
        return Err(EnvironmentError::NoCommand);
    }
    Ok(line)
}

/// Replaces `$(NAME)` where the variable is known, and `$$` by `$`.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            out.push('$');
            rest = escaped;
            continue;
        }
        let reference = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        let Some((name, remaining)) = reference else {
            out.push('$');
            rest = after;
            continue;
        };
        if let Some(value) = variables.get(name) {
            out.push_str(value);
        } else {
            out.push_str("$(");
            out.push_str(name);
            out.push(')');
        }
        rest = remaining;
    }
    out.push_str(rest);
    out
}

fn from_whole_objects(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, EnvironmentError> {
    let mut found = Vec::new();
    for from in container.env_from.iter().flatten() {
        let (what, name, optional, table) = if let Some(map) = &from.config_map_ref {
            ("config map", &map.name, map.optional, &sources.config_maps)
        } else if let Some(secret) = &from.secret_ref {
            ("secret", &secret.name, secret.optional, &sources.secrets)
        } else {
            continue;
        };
        let Some(data) = table.get(name).and_then(Option::as_ref) else {
            if optional == Some(true) {
                continue;
            }
            return Err(EnvironmentError::NoObject {
                what,
                namespace: pod.metadata.namespace.clone().unwrap_or_default(),
                name: name.clone(),
            });
        };
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in data {
            found.push((
                format!("{prefix}{key}"),
                String::from_utf8_lossy(value).into_owned(),
            ));
        }
    }
    Ok(found)
}

fn from_source(
    pod: &Pod,
    variable: &EnvVar,
    source: &EnvVarSource,
    addresses: &Addresses,
    sources: &Sources,
) -> Result<Option<String>, EnvironmentError> {
    if let Some(field) = &source.field_ref {
        return field_value(pod, &variable.name, field, addresses).map(Some);
    }
    let (what, name, key, optional, table) = if let Some(r) = &source.config_map_key_ref {
        ("config map", &r.name, &r.key, r.optional, &sources.config_maps)
    } else if let Some(r) = &source.secret_key_ref {
        ("secret", &r.name, &r.key, r.optional, &sources.secrets)
    } else {
        return Err(EnvironmentError::Source {
            variable: variable.name.clone(),
        });
    };
    let value = table
        .get(name)
        .and_then(Option::as_ref)
        .and_then(|data| data.get(key));
    match value {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(EnvironmentError::NoKey {
            variable: variable.name.clone(),
            what,
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: name.clone(),
            key: key.clone(),
        }),
    }
}

pub(super) fn field_value(
    pod: &Pod,
    variable: &str,
    field: &ObjectFieldSelector,
    addresses: &Addresses,
) -> Result<String, EnvironmentError> {
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let list = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    let first = |ips: &[IpAddr]| list(ips).into_iter().next().unwrap_or_default();
    let path = field.field_path.as_str();
    let value = match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.podIP" => first(&addresses.pod_ips),
        "status.podIPs" => list(&addresses.pod_ips).join(","),
        "status.hostIP" => first(&addresses.node_ips),
        "status.hostIPs" => list(&addresses.node_ips).join(","),
        _ => {
            let entry = |prefix: &str, map: &Option<BTreeMap<String, String>>| {
                let key = path
                    .strip_prefix(prefix)?
                    .strip_prefix("['")?
                    .strip_suffix("']")?;
                Some(
                    map.as_ref()
                        .and_then(|map| map.get(key).cloned())
                        .unwrap_or_default(),
                )
            };
            entry("metadata.labels", &metadata.labels)
                .or_else(|| entry("metadata.annotations", &metadata.annotations))
                .ok_or_else(|| EnvironmentError::Field {
                    variable: variable.to_owned(),
                    field: path.to_owned(),
                })?
        }
    };
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(json: serde_json::Value) -> Container {
        serde_json::from_value(json).unwrap()
    }

    fn image() -> RunConfig {
        RunConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["default".to_owned()],
            env: vec!["A=image".to_owned(), "B=image".to_owned()],
            ..RunConfig::default()
        }
    }

    #[test]
    fn command_and_args_replace_what_kubernetes_says_they_replace() {
        for (json, expected) in [
            (serde_json::json!({"name": "c"}), vec!["/entry", "default"]),
            (
                serde_json::json!({"name": "c", "args": ["x"]}),
                vec!["/entry", "x"],
            ),
            (
                serde_json::json!({"name": "c", "command": ["/run"]}),
                vec!["/run"],
            ),
            (
                serde_json::json!({"name": "c", "command": ["/run"], "args": ["$(V)", "$(W)", "$$(V)"]}),
                vec!["/run", "value", "$(W)", "$(V)"],
            ),
        ] {
            let line = command_line(&container(json), &image(), &["V=value".to_owned()]).unwrap();
            assert_eq!(line, expected);
        }
        let nothing = command_line(
            &container(serde_json::json!({"name": "c"})),
            &RunConfig::default(),
            &[],
        );
        assert_eq!(nothing, Err(EnvironmentError::NoCommand));
    }

    #[test]
    fn references_are_expanded_as_kubernetes_does() {
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, expected) in [
            ("$(A)-$(A)", "1-1"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("cost: 5$", "cost: 5$"),
            ("$A", "$A"),
        ] {
            assert_eq!(expand(text, &variables), expected, "{text}");
        }
    }

    #[test]
    fn the_pod_overrides_the_image_and_sees_its_own_fields() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app": "web"}},
            "spec": {"nodeName": "node-1", "containers": []},
        }))
        .unwrap();
        let field = |path: &str| serde_json::json!({"fieldRef": {"fieldPath": path}});
        let container = container(serde_json::json!({"name": "c", "env": [
            {"name": "A", "value": "pod"},
            {"name": "NAME", "valueFrom": field("metadata.name")},
            {"name": "LABEL", "valueFrom": field("metadata.labels['app']")},
            {"name": "IP", "valueFrom": field("status.podIP")},
            {"name": "NODE", "valueFrom": field("spec.nodeName")},
            {"name": "BOTH", "value": "$(A)/$(NAME)/$(B)"},
            {"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}},
            {"name": "MISSING", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "x", "optional": true}}},
        ]}));
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "m".to_owned(),
                Some(BTreeMap::from([("k".to_owned(), b"v".to_vec())])),
            )]),
            ..Sources::default()
        };
        let addresses = Addresses {
            pod_ips: vec!["10.0.0.1".parse().unwrap()],
            node_ips: vec![],
        };
        let got = environment(&pod, &container, &image(), "host", &addresses, &sources).unwrap();
        assert_eq!(
            got,
            [
                DEFAULT_PATH,
                "A=pod",
                "B=image",
                "HOSTNAME=host",
                "NAME=p",
                "LABEL=web",
                "IP=10.0.0.1",
                "NODE=node-1",
                "BOTH=pod/p/$(B)",
                "KEY=v",
            ]
        );
    }

    #[test]
    fn what_cannot_be_given_is_an_error() {
        let pod = Pod::default();
        for (from, text) in [
            (
                serde_json::json!({"configMapKeyRef": {"name": "m", "key": "k"}}),
                "config map",
            ),
            (serde_json::json!({"fieldRef": {"fieldPath": "spec.x"}}), "spec.x"),
            (
                serde_json::json!({"resourceFieldRef": {"resource": "limits.cpu"}}),
                "does not offer",
            ),
        ] {
            let container =
                container(serde_json::json!({"name": "c", "env": [{"name": "V", "valueFrom": from}]}));
            let error = environment(
                &pod,
                &container,
                &image(),
                "h",
                &Addresses::default(),
                &Sources::default(),
            )
            .unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
