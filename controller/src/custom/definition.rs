//! One CustomResourceDefinition, read: what its versions have, as data.

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::json_path::JsonPath;
use super::rules::Rules;
use super::schema::Schema;
use crate::resources::Subresource;
use crate::store::Revision;

/// A definition whose objects are served.
#[derive(Debug)]
pub(crate) struct Definition {
    pub(super) group: String,
    pub(super) names: Names,
    pub(super) namespaced: bool,
    pub(super) versions: Vec<Version>,
    /// Whether it is being deleted, with all its objects.
    pub(crate) terminating: bool,
    /// Since when it reads like this; older objects may not fit.
    pub(super) since: Revision,
    /// Cancelled when it is replaced or gone.
    pub(super) ended: CancellationToken,
    /// What it was read from, to see whether it has changed.
    source: Value,
}

/// The names that were accepted.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) plural: String,
    pub(super) singular: String,
    pub(super) kind: String,
    pub(super) list_kind: String,
    pub(super) abbreviations: Vec<String>,
    pub(super) categories: Vec<String>,
}

/// One version.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) name: String,
    pub(super) served: bool,
    pub(super) storage: bool,
    /// What users of it are told.
    pub(super) deprecation: Option<String>,
    pub(super) schema: Schema,
    pub(super) rules: Rules,
    pub(super) has_defaults: bool,
    pub(super) open_api: Value,
    pub(super) columns: Vec<Column>,
    pub(super) fields: Vec<(String, JsonPath)>,
    pub(super) has_status: bool,
    pub(super) scale: Option<Scale>,
}

/// A printed column.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) format: String,
    pub(super) description: String,
    pub(super) priority: i64,
    pub(super) path: JsonPath,
}

/// Where the number of replicas is.
#[derive(Debug)]
pub(crate) struct Scale {
    pub(crate) spec_replicas: JsonPath,
    pub(crate) status_replicas: JsonPath,
    pub(crate) selector: Option<JsonPath>,
}

/// Whether a condition of a definition is true.
pub(crate) fn has_condition(definition: &Value, kind: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

impl Definition {
    /// Reads a definition; `None` if it is not established.
    pub(super) fn read(object: &Value, revision: Revision) -> Option<Self> {
        if !has_condition(object, "Established") {
            return None;
        }
        let spec = &object["spec"];
        let accepted = &object["status"]["acceptedNames"];
        let texts = |value: &Value| texts(value);
        let group = text(&spec["group"]);
        let names = Names {
            plural: text(&accepted["plural"]),
            singular: text(&accepted["singular"]),
            kind: text(&accepted["kind"]),
            list_kind: text(&accepted["listKind"]),
            abbreviations: texts(&accepted["shortNames"]),
            categories: texts(&accepted["categories"]),
        };
        let versions = spec["versions"].as_array().into_iter().flatten();
        let mut versions: Vec<_> = versions
            .map(|version| Version::read(version, &group, &names.kind))
            .collect();
        versions.sort_by(|a, b| compare_versions(&a.name, &b.name));
        Some(Self {
            namespaced: spec["scope"] == "Namespaced",
            terminating: object["metadata"]["deletionTimestamp"].is_string(),
            since: revision,
            ended: CancellationToken::new(),
            source: source(object),
            group,
            names,
            versions,
        })
    }

    /// Whether reading `object` would give the same.
    pub(super) fn is_same(&self, object: &Value) -> bool {
        has_condition(object, "Established") && self.source == source(object)
    }

    /// The version in which objects are stored.
    pub(super) fn storage_version(&self) -> &str {
        let stored = self.versions.iter().find(|version| version.storage);
        stored.map_or("", |version| &version.name)
    }
}

/// The parts of a definition that serving depends on.
fn source(object: &Value) -> Value {
    json!([
        object["metadata"]["uid"],
        object["spec"],
        object["status"]["acceptedNames"],
        object["metadata"]["deletionTimestamp"].is_string(),
    ])
}

impl Version {
    fn read(value: &Value, group: &str, kind: &str) -> Self {
        let name = text(&value["name"]);
        let open_api = value["schema"]["openAPIV3Schema"].clone();
        let schema = Schema::parse(&open_api);
        let path = |value: &Value| JsonPath::parse(value.as_str()?).ok();
        let scale = &value["subresources"]["scale"];
        let list = |key: &str| value[key].as_array().into_iter().flatten();
        Self {
            served: value["served"] == true,
            storage: value["storage"] == true,
            deprecation: (value["deprecated"] == true).then(|| {
                let own = value["deprecationWarning"].as_str().map(str::to_owned);
                own.unwrap_or_else(|| format!("{group}/{name} {kind} is deprecated"))
            }),
            has_defaults: schema.has_defaults(),
            rules: Rules::compile(&open_api),
            columns: columns(&value["additionalPrinterColumns"]),
            fields: list("selectableFields")
                .filter_map(|field| {
                    let path = path(&field["jsonPath"])?;
                    let name = text(&field["jsonPath"]);
                    Some((name.trim_start_matches('.').to_owned(), path))
                })
                .collect(),
            has_status: value["subresources"]["status"].is_object(),
            scale: path(&scale["specReplicasPath"]).and_then(|spec_replicas| {
                Some(Scale {
                    spec_replicas,
                    status_replicas: path(&scale["statusReplicasPath"])?,
                    selector: path(&scale["labelSelectorPath"]),
                })
            }),
            name,
            schema,
            open_api,
        }
    }

    pub(super) fn subresources(&self) -> &'static [Subresource] {
        match (self.has_status, self.scale.is_some()) {
            (true, true) => &[Subresource::Status, Subresource::Scale],
            (true, false) => &[Subresource::Status],
            (false, true) => &[Subresource::Scale],
            (false, false) => &[],
        }
    }
}

/// The columns after the name; the age where a definition has none.
fn columns(list: &Value) -> Vec<Column> {
    let age = json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    let list = list.as_array().filter(|list| !list.is_empty());
    list.or(age.as_array())
        .into_iter()
        .flatten()
        .filter_map(|column| {
            Some(Column {
                name: text(&column["name"]),
                kind: text(&column["type"]),
                format: text(&column["format"]),
                description: text(&column["description"]),
                priority: column["priority"].as_i64().unwrap_or_default(),
                path: JsonPath::parse(column["jsonPath"].as_str()?).ok()?,
            })
        })
        .collect()
}

/// The order in which versions are preferred: stable before beta before alpha, each newest first, then all others by name.
pub(super) fn compare_versions(a: &str, b: &str) -> std::cmp::Ordering {
    match (version_rank(a), version_rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => std::cmp::Ordering::Less,
        (None, Some(_)) => std::cmp::Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

fn version_rank(version: &str) -> Option<(u8, u64, u64)> {
    let rest = version.strip_prefix('v')?;
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let major = rest[..end].parse().ok()?;
    let (stability, minor) = match &rest[end..] {
        "" => return Some((2, major, 0)),
        after => match (after.strip_prefix("beta"), after.strip_prefix("alpha")) {
            (Some(minor), _) => (1, minor),
            (_, Some(minor)) => (0, minor),
            _ => return None,
        },
    };
    Some((stability, major, minor.parse().ok()?))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_preferred_by_stability_and_age() {
        let mut versions = [
            "v1alpha1", "foo", "v1", "v2beta1", "v10", "v2", "v1beta2", "bar", "v3x",
        ];
        versions.sort_by(|a, b| compare_versions(a, b));
        assert_eq!(
            versions,
            [
                "v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "bar", "foo", "v3x"
            ]
        );
    }
}
