//! The table of resources: what the API server serves. A kind is a row here, with functions for what is its own;
//! nothing else in the server knows a kind by name unless its meaning is special (Namespaces, Pods that end gracefully).

mod apiextensions;
mod apps;
mod authentication;
mod autoscaling;
mod batch;
mod certificates;
mod column;
mod coordination;
mod core;
mod discovery;
mod events;
mod metrics;
mod networking;
mod node;
mod pick;
mod policy;
mod printing;
mod rbac;
mod scheduling;
mod storage;
mod subresource;
mod validation;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::custom::{CustomResource, ObjectSchema};
use crate::schema::{self, KindSchema};
use crate::store::{Meta, Object};

pub(crate) use autoscaling::SCALE;
pub use column::Column;
pub(crate) use column::{NAME, PLAIN_COLUMNS, boolean, number, text, wide};
pub(crate) use core::qos_class;
pub(crate) use printing::since as cell_of_time;
pub(crate) use scheduling::SYSTEM_PRIORITY_CLASSES;
pub use subresource::Subresource;
pub use validation::{Problem, Problems, Reason};
pub(crate) use validation::{dns_1035_problem, immutable, label_problem, subdomain_problem};

/// A field that selectors may ask about.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name in selectors.
    pub name: &'static str,
    /// Where it is in the object.
    pub path: &'static str,
    /// Its value where the object has none.
    pub default: &'static str,
}

/// A field whose name is its path.
pub(crate) const fn field(name: &'static str) -> Field {
    Field {
        name,
        path: name,
        default: "",
    }
}

/// A flag whose name is its path.
pub(crate) const fn flag(name: &'static str) -> Field {
    Field {
        default: "false",
        ..field(name)
    }
}

/// How a version of a kind differs from the form in which the store keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Conversion {
    /// From the store's form to this version.
    pub served: fn(&mut Value),
    /// From this version to the store's form.
    pub stored: fn(&mut Value),
}

/// One row: a resource in one version.
#[derive(Debug)]
pub struct Resource {
    /// The API group; empty for the core.
    pub group: &'static str,
    /// The version.
    pub version: &'static str,
    /// The kind.
    pub kind: &'static str,
    /// The resource's name in paths.
    pub plural: &'static str,
    /// The name of one object of it.
    pub singular: &'static str,
    /// Abbreviations.
    pub short_names: &'static [&'static str],
    /// Groups of resources it belongs to, such as `all`.
    pub categories: &'static [&'static str],
    /// Whether objects belong to a namespace.
    pub namespaced: bool,
    /// Where the store keeps it; versions of one kind share it.
    pub storage: &'static str,
    /// What can be done with it; only `create` for a question that is answered and not kept.
    pub verbs: &'static [&'static str],
    /// What is below an object.
    pub subresources: &'static [Subresource],
    /// The table's columns.
    pub columns: &'static [Column],
    /// The cells of an object's row; takes the object and the time.
    pub cells: fn(&Value, jiff::Timestamp) -> Vec<Value>,
    /// Fields that selectors may ask about besides name and namespace.
    pub fields: &'static [Field],
    /// What is wrong with an object's name.
    pub name_problem: fn(&str) -> Option<String>,
    /// What the server fills in on creation beyond the schema's defaults.
    pub prepare: fn(&mut Value),
    /// Checks an object; on an update the state before is given.
    pub validate: fn(&Value, Option<&Value>, &mut Problems),
    /// Whether the spec's changes are counted in `metadata.generation`.
    pub generation: bool,
    /// Set where the store keeps another version.
    pub conversion: Option<Conversion>,
    /// Whether an object that is deleted without a word on its dependents leaves them behind: what Kubernetes' oldest kinds do.
    pub orphans: bool,
    /// Whether nodes write what others only read.
    pub reported: bool,
    /// What clients are warned of who use it; empty if there is nothing.
    pub deprecation: &'static str,
}

/// A resource that is served.
#[derive(Clone, Debug)]
pub enum ResourceRef {
    /// A row of the table.
    BuiltIn(&'static Resource),
    /// One that a CustomResourceDefinition made.
    Custom(Arc<CustomResource>),
}

impl Deref for ResourceRef {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        match self {
            Self::BuiltIn(resource) => resource,
            Self::Custom(resource) => resource.row(),
        }
    }
}

impl ResourceRef {
    /// The custom resource, if it is one.
    pub(crate) fn custom(&self) -> Option<&Arc<CustomResource>> {
        match self {
            Self::BuiltIn(_) => None,
            Self::Custom(resource) => Some(resource),
        }
    }

    /// The schema of the kind.
    pub fn schema(&self) -> Option<ObjectSchema<'_>> {
        match self {
            Self::BuiltIn(resource) => resource.schema().map(ObjectSchema::BuiltIn),
            Self::Custom(resource) => Some(ObjectSchema::Custom(resource)),
        }
    }

    /// What clients are warned of who use it.
    pub(crate) fn deprecation(&self) -> Option<&str> {
        match self {
            Self::BuiltIn(resource) => Some(resource.deprecation).filter(|text| !text.is_empty()),
            Self::Custom(resource) => resource.deprecation(),
        }
    }

    /// The name of its lists.
    pub fn list_kind(&self) -> Cow<'_, str> {
        match self {
            Self::BuiltIn(resource) => format!("{}List", resource.kind).into(),
            Self::Custom(resource) => resource.list_kind().into(),
        }
    }

    /// Abbreviations.
    pub fn short_names(&self) -> Vec<&str> {
        match self {
            Self::BuiltIn(resource) => resource.short_names.to_vec(),
            Self::Custom(resource) => resource.short_names().iter().map(String::as_str).collect(),
        }
    }

    /// Groups of resources it belongs to.
    pub fn categories(&self) -> Vec<&str> {
        match self {
            Self::BuiltIn(resource) => resource.categories.to_vec(),
            Self::Custom(resource) => resource.categories().iter().map(String::as_str).collect(),
        }
    }

    /// The definitions of the table's columns.
    pub(crate) fn column_definitions(&self) -> Value {
        match self {
            Self::BuiltIn(resource) => resource
                .columns
                .iter()
                .map(|column| {
                    json!({
                        "name": column.name, "type": column.kind, "format": column.format,
                        "description": "", "priority": column.priority,
                    })
                })
                .collect(),
            Self::Custom(resource) => resource.columns(),
        }
    }

    /// The cells of an object's row.
    pub(crate) fn row_cells(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value> {
        match self {
            Self::BuiltIn(resource) => (resource.cells)(object, now),
            Self::Custom(resource) => resource.cells(object, now),
        }
    }

    /// Checks an object; on an update the state before is given.
    pub(crate) fn check(&self, object: &Value, old: Option<&Value>, problems: &mut Problems) {
        match self {
            Self::BuiltIn(resource) => (resource.validate)(object, old, problems),
            Self::Custom(resource) => resource.validate(object, old, problems),
        }
    }

    /// Whether selectors may ask about a field.
    pub(crate) fn selects_by(&self, name: &str) -> bool {
        self.has_field(name) || self.custom().is_some_and(|resource| resource.has_field(name))
    }

    /// The value of a selectable field of a stored object; empty if it has none.
    pub(crate) fn selected_value<'a>(&self, object: &'a Object, name: &str) -> Cow<'a, str> {
        match (self.field_value(object.meta(), name), self.custom()) {
            (Some(value), _) => value.into(),
            (None, Some(resource)) => {
                let value = resource.field_value(&object.value(), name);
                value.unwrap_or_default().into()
            }
            (None, None) => "".into(),
        }
    }
}

/// Verbs of a resource that is stored.
const STORED: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// Verbs of what clients only read.
pub(crate) const READ: &[&str] = &["get", "list"];
/// Verbs of a question.
const ASKED: &[&str] = &["create"];

/// A row to build upon: namespaced, stored, printed by name and creation time.
pub(crate) const fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    names: (&'static str, &'static str),
    storage: &'static str,
) -> Resource {
    Resource {
        group,
        version,
        kind,
        plural: names.0,
        singular: names.1,
        short_names: &[],
        categories: &[],
        namespaced: true,
        storage,
        verbs: STORED,
        subresources: &[],
        columns: PLAIN_COLUMNS,
        cells: printing::name_and_creation,
        fields: &[],
        name_problem: subdomain_problem,
        prepare: |_| {},
        validate: |_, _, _| {},
        generation: false,
        conversion: None,
        orphans: false,
        reported: false,
        deprecation: "",
    }
}

/// A row for a question that is answered at once.
pub(crate) const fn question(
    group: &'static str,
    kind: &'static str,
    names: (&'static str, &'static str),
    namespaced: bool,
) -> Resource {
    Resource {
        namespaced,
        verbs: ASKED,
        ..row(group, "v1", kind, names, "")
    }
}

/// The groups in the order in which discovery names them, which is the order in which clients print them.
static GROUPS: &[&[Resource]] = &[
    core::RESOURCES,
    apps::RESOURCES,
    events::RESOURCES,
    authentication::RESOURCES,
    autoscaling::RESOURCES,
    batch::RESOURCES,
    certificates::RESOURCES,
    networking::RESOURCES,
    policy::RESOURCES,
    rbac::RESOURCES,
    storage::RESOURCES,
    apiextensions::RESOURCES,
    scheduling::RESOURCES,
    coordination::RESOURCES,
    node::RESOURCES,
    discovery::RESOURCES,
    metrics::RESOURCES,
];

static BY_PATH: LazyLock<HashMap<(&str, &str, &str), &'static Resource>> = LazyLock::new(|| {
    all()
        .map(|resource| ((resource.group, resource.version, resource.plural), resource))
        .collect()
});

/// All rows in discovery's order.
pub fn all() -> impl Iterator<Item = &'static Resource> {
    GROUPS.iter().copied().flatten()
}

/// The row of a path's group, version and plural.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    BY_PATH.get(&(group, version, plural)).copied()
}

/// Whether anything is served in the group version.
pub fn serves(group: &str, version: &str) -> bool {
    all().any(|resource| resource.group == group && resource.version == version)
}

/// The row in whose form the store keeps objects of `storage`.
pub fn stored_as(storage: &str) -> Option<&'static Resource> {
    all().find(|resource| resource.storage == storage && resource.conversion.is_none())
}

/// What the store is to know of an object of `storage`.
pub fn index(storage: &str, object: &Value) -> Meta {
    stored_as(storage).map_or_else(|| meta(object, &[]), |resource| resource.index(object))
}

/// The same of its text, which need not be read as a whole.
///
/// # Errors
/// If the text is not JSON.
pub fn index_text(storage: &str, text: &[u8]) -> Result<Meta, serde_json::Error> {
    let fields = stored_as(storage).map_or(&[][..], |resource| resource.fields);
    let mut paths = vec!["metadata.namespace", "metadata.name", "metadata.labels"];
    paths.extend(fields.iter().map(|field| field.path));
    Ok(meta(&pick::pick(text, &paths)?, fields))
}

impl Resource {
    /// `group/version`, or the version alone in the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `deployments.apps`; the plural alone in the core group.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_owned()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// The schema of the kind.
    pub fn schema(&self) -> Option<KindSchema> {
        schema::kind(self.group, self.version, self.kind)
    }

    /// Whether its objects are made up when somebody asks.
    pub fn is_looked_up(&self) -> bool {
        self.storage.is_empty() && self.verbs.contains(&"list")
    }

    /// Whether the status is written apart.
    pub fn has_status(&self) -> bool {
        self.subresources.contains(&Subresource::Status)
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<Subresource> {
        self.subresources.iter().copied().find(|s| s.name() == name)
    }

    /// The store's key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced {
            format!("{namespace}/{name}")
        } else {
            name.to_owned()
        }
    }

    /// What selectors ask about in an object in the store's form.
    pub fn index(&self, object: &Value) -> Meta {
        meta(object, self.fields)
    }

    /// Of the text of an object's `spec` what selectors ask about: enough to find the object by, and little to carry along.
    ///
    /// # Errors
    /// If the text is not JSON.
    pub fn index_of_spec(&self, text: &RawValue) -> Result<Value, serde_json::Error> {
        let paths = self
            .fields
            .iter()
            .filter_map(|field| field.path.strip_prefix("spec."));
        pick::pick(text.get().as_bytes(), &paths.collect::<Vec<_>>())
    }

    /// The value of a selectable field; `None` if selectors may not ask about it.
    pub fn field_value<'a>(&self, meta: &'a Meta, name: &str) -> Option<&'a str> {
        match name {
            "metadata.name" => Some(&meta.name),
            "metadata.namespace" => Some(&meta.namespace),
            _ => {
                let index = self.fields.iter().position(|field| field.name == name)?;
                meta.fields.get(index).map(|value| &**value)
            }
        }
    }

    /// Whether selectors may ask about a field.
    pub fn has_field(&self, name: &str) -> bool {
        matches!(name, "metadata.name" | "metadata.namespace")
            || self.fields.iter().any(|field| field.name == name)
    }
}

fn meta(object: &Value, fields: &[Field]) -> Meta {
    let metadata = &object["metadata"];
    let text = |value: &Value| Box::<str>::from(value.as_str().unwrap_or_default());
    Meta {
        namespace: text(&metadata["namespace"]),
        name: text(&metadata["name"]),
        labels: metadata["labels"]
            .as_object()
            .map(|labels| {
                labels
                    .iter()
                    .map(|(k, v)| (Box::from(k.as_str()), text(v)))
                    .collect()
            })
            .unwrap_or_default(),
        fields: fields.iter().map(|field| field.value(object)).collect(),
    }
}

impl Field {
    fn value(&self, object: &Value) -> Box<str> {
        let mut value = object;
        for part in self.path.split('.') {
            value = match part.parse::<usize>() {
                Ok(index) => &value[index],
                Err(_) => &value[part],
            };
        }
        match value {
            Value::String(text) => text.as_str().into(),
            Value::Bool(flag) => flag.to_string().into(),
            Value::Number(number) => number.to_string().into(),
            _ => self.default.into(),
        }
    }
}

/// Checks what all kinds have in common.
pub fn validate_metadata(resource: &Resource, object: &Value, old: Option<&Value>, problems: &mut Problems) {
    let name = &object["metadata"]["name"];
    let text = name.as_str().unwrap_or_default();
    if old.is_none()
        && let Some(problem) = (resource.name_problem)(text)
    {
        problems.invalid("metadata.name", name, &problem);
    }
    validation::metadata(&object["metadata"], problems);
}
