//! Custom resources: served like the rows of the table, with everything that is their own as data.
//!
//! [`Registry`] keeps the definitions as the store has them; it takes in their changes whenever it is asked, so a resource
//! is there from the moment its definition is established. A definition that changes is read anew; requests that run
//! keep what they began with.

mod definition;
mod format;
pub mod json_path;
pub(crate) mod names;
pub(crate) mod object_schema;
mod open_api;
mod rules;
pub mod schema;
pub mod structural;
pub mod validate;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use self::definition::{Definition, Version};
use crate::resources::{Problems, Resource, cell_of_time, row};
use crate::schema::openapi::Document;
use crate::store::{Event, Revision, Store, Watch};

pub(crate) use self::definition::{Scale, has_condition};
pub use self::object_schema::ObjectSchema;

/// Where the store keeps definitions.
pub(crate) const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// Keeps a deleted definition until its objects are gone.
pub(crate) const CLEANUP_FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// One version of a custom resource.
#[derive(Debug)]
pub struct CustomResource {
    row: Resource,
    definition: Arc<Definition>,
    version: usize,
}

/// A name that lives as long as the process. Rows and the store's keys hold such names; custom resources have five each,
/// and a name that comes back takes no more room.
fn interned(name: &str) -> &'static str {
    static NAMES: LazyLock<Mutex<HashSet<&'static str>>> = LazyLock::new(Mutex::default);
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let name: &'static str = Box::leak(name.into());
    names.insert(name);
    name
}

/// The store's name of a custom resource.
fn storage(group: &str, plural: &str) -> &'static str {
    interned(&format!("{group}/{plural}"))
}

impl CustomResource {
    fn new(definition: &Arc<Definition>, version: usize) -> Self {
        let names = &definition.names;
        let own = &definition.versions[version];
        let group = interned(&definition.group);
        let row = Resource {
            namespaced: definition.namespaced,
            subresources: own.subresources(),
            generation: true,
            ..row(
                group,
                interned(&own.name),
                interned(&names.kind),
                (interned(&names.plural), interned(&names.singular)),
                storage(group, &names.plural),
            )
        };
        Self {
            row,
            definition: Arc::clone(definition),
            version,
        }
    }

    /// What it has in common with the table's rows.
    pub fn row(&self) -> &Resource {
        &self.row
    }

    /// Its definition.
    pub(crate) fn definition(&self) -> &Definition {
        &self.definition
    }

    fn version(&self) -> &Version {
        &self.definition.versions[self.version]
    }

    /// Its schema.
    pub(crate) fn schema(&self) -> &schema::Schema {
        &self.version().schema
    }

    /// The name of its lists.
    pub(crate) fn list_kind(&self) -> &str {
        &self.definition.names.list_kind
    }

    /// Abbreviations.
    pub(crate) fn short_names(&self) -> &[String] {
        &self.definition.names.abbreviations
    }

    /// Groups of resources it belongs to.
    pub(crate) fn categories(&self) -> &[String] {
        &self.definition.names.categories
    }

    /// What users of a version are told that will go.
    pub(crate) fn deprecation(&self) -> Option<&str> {
        self.version().deprecation.as_deref()
    }

    /// Where the number of replicas is.
    pub(crate) fn scale(&self) -> Option<&Scale> {
        self.version().scale.as_ref()
    }

    /// Cancelled when the definition changes or goes.
    pub(crate) fn ended(&self) -> &CancellationToken {
        &self.definition.ended
    }

    /// The form in which the store keeps objects.
    pub(crate) fn stored_api_version(&self) -> String {
        format!("{}/{}", self.row.group, self.definition.storage_version())
    }

    /// Whether an object's stored form, of a revision, is the served one.
    pub(crate) fn is_served_as_stored(&self, revision: Revision) -> bool {
        self.version().storage && revision > self.definition.since
    }

    /// Brings an object that was stored at a revision into the form of this version.
    pub(crate) fn serve(&self, object: &mut Value, revision: Revision) {
        object["apiVersion"] = json!(self.row.api_version());
        self.renew(object, revision);
    }

    /// Brings an object that was stored under an earlier schema into the form of this one.
    pub(crate) fn renew(&self, object: &mut Value, revision: Revision) {
        if self.is_served_as_stored(revision) {
            return;
        }
        self.schema().prune(object);
        if self.version().has_defaults {
            self.schema().fill(object);
        }
    }

    /// Whether selectors may ask about a field besides name and namespace.
    pub(crate) fn has_field(&self, name: &str) -> bool {
        self.version().fields.iter().any(|(field, _)| field == name)
    }

    /// The value of a selectable field.
    pub(crate) fn field_value(&self, object: &Value, name: &str) -> Option<String> {
        let (_, path) = self.version().fields.iter().find(|(field, _)| field == name)?;
        match path.find(object).first()? {
            Value::String(text) => Some(text.clone()),
            value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
            _ => None,
        }
    }

    /// The table's columns.
    pub(crate) fn columns(&self) -> Value {
        let name =
            json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0});
        let own = self.version().columns.iter().map(|column| {
            json!({
                "name": column.name, "type": column.kind, "format": column.format,
                "description": column.description, "priority": column.priority,
            })
        });
        std::iter::once(name).chain(own).collect()
    }

    /// The cells of an object's row.
    pub(crate) fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let own = self.version().columns.iter().map(|column| {
            let found = column.path.find(object);
            let Some(first) = found.first() else {
                return Value::Null;
            };
            match (column.kind.as_str(), first) {
                ("string", _) => {
                    let texts: Vec<_> = found.iter().map(|value| cell_text(value)).collect();
                    Value::from(texts.join(" "))
                }
                ("integer", Value::Number(number)) => number.as_i64().map_or_else(
                    || {
                        number
                            .as_f64()
                            .map_or(Value::Null, |number| json!(number.trunc() as i64))
                    },
                    Value::from,
                ),
                ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => (*first).clone(),
                ("date", Value::String(text)) if text.parse::<Timestamp>().is_err() => json!("<invalid>"),
                ("date", Value::String(_)) => cell_of_time(first, now),
                _ => Value::Null,
            }
        });
        std::iter::once(object["metadata"]["name"].clone())
            .chain(own)
            .collect()
    }

    /// Checks an object; on an update the state before is given.
    pub(crate) fn validate(&self, object: &Value, old: Option<&Value>, problems: &mut Problems) {
        validate::object(self.schema(), object, old, problems);
        self.version().rules.check(object, old, problems);
    }
}

fn cell_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// All custom resources at one time.
#[derive(Debug, Default)]
pub(crate) struct Table {
    definitions: BTreeMap<String, Arc<Definition>>,
    /// In discovery's order.
    resources: Vec<Arc<CustomResource>>,
    by_path: HashMap<(&'static str, &'static str, &'static str), usize>,
    documents: OnceLock<BTreeMap<String, Document>>,
}

impl Table {
    fn new(definitions: BTreeMap<String, Arc<Definition>>) -> Self {
        let mut resources: Vec<_> = definitions
            .values()
            .flat_map(|definition| {
                let served = definition.versions.iter().enumerate();
                let served = served.filter(|(_, version)| version.served);
                served.map(|(index, _)| Arc::new(CustomResource::new(definition, index)))
            })
            .collect();
        resources.sort_by(|a, b| {
            let versions = definition::compare_versions(a.row.version, b.row.version);
            let names = || a.row.plural.cmp(b.row.plural);
            a.row.group.cmp(b.row.group).then(versions).then_with(names)
        });
        let by_path = resources.iter().enumerate();
        let by_path = by_path
            .map(|(index, resource)| {
                let row = &resource.row;
                ((row.group, row.version, row.plural), index)
            })
            .collect();
        Self {
            definitions,
            resources,
            by_path,
            documents: OnceLock::new(),
        }
    }

    /// The resource of a path.
    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<CustomResource>> {
        let index = *self.by_path.get(&(group, version, plural))?;
        self.resources.get(index)
    }

    /// All that is served, in discovery's order.
    pub(crate) fn resources(&self) -> &[Arc<CustomResource>] {
        &self.resources
    }

    /// A definition's resource in the version in which it is stored, whether that is served or not.
    pub(crate) fn stored(&self, name: &str) -> Option<CustomResource> {
        let definition = self.definitions.get(name)?;
        let index = definition.versions.iter().position(|version| version.storage)?;
        Some(CustomResource::new(definition, index))
    }

    /// The OpenAPI document of `apis/<group>/<version>`.
    pub(crate) fn document(&self, path: &str) -> Option<Document> {
        let documents = self
            .documents
            .get_or_init(|| open_api::documents(&self.resources));
        documents.get(path).cloned()
    }
}

/// The custom resources that a server has.
#[derive(Debug, Default)]
pub(crate) struct Registry(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    changes: Option<Watch>,
    table: Arc<Table>,
}

impl Registry {
    /// What there is, as of this moment.
    pub(crate) fn table(&self, store: &dyn Store) -> Arc<Table> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.changes.as_mut().map(Watch::ready) {
            Some(Ok(events)) if events.is_empty() => {}
            Some(Ok(mut events)) => {
                // A reader gets a part of the changes at a time.
                while let Some(Ok(more)) = state.changes.as_mut().map(Watch::ready)
                    && !more.is_empty()
                {
                    events.extend(more);
                }
                state.apply(&events);
            }
            Some(Err(_)) | None => state.list(store),
        }
        Arc::clone(&state.table)
    }
}

impl State {
    fn list(&mut self, store: &dyn Store) {
        let listing = store.list(DEFINITIONS, "");
        let mut definitions = BTreeMap::new();
        for object in &listing.items {
            self.take(&mut definitions, &object.value(), object.revision());
        }
        for (name, old) in &self.table.definitions {
            if !definitions.get(name).is_some_and(|new| Arc::ptr_eq(old, new)) {
                old.ended.cancel();
            }
        }
        self.table = Arc::new(Table::new(definitions));
        self.changes = store.watch(DEFINITIONS, listing.revision).ok();
    }

    fn apply(&mut self, events: &[Arc<Event>]) {
        let mut definitions = self.table.definitions.clone();
        for event in events {
            let name: &str = &event.object.meta().name;
            let old = definitions.remove(name);
            if !event.deleted {
                let value = event.object.value();
                match &old {
                    Some(old) if old.is_same(&value) => {
                        definitions.insert(name.to_owned(), Arc::clone(old));
                        continue;
                    }
                    _ => self.take(&mut definitions, &value, event.revision()),
                }
            }
            if let Some(old) = old {
                old.ended.cancel();
            }
        }
        self.table = Arc::new(Table::new(definitions));
    }

    /// Reads a definition, unless it is as it was.
    fn take(&self, definitions: &mut BTreeMap<String, Arc<Definition>>, object: &Value, revision: Revision) {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let known = self.table.definitions.get(name);
        if let Some(known) = known.filter(|known| known.is_same(object) && !known.ended.is_cancelled()) {
            definitions.insert(name.to_owned(), Arc::clone(known));
        } else if let Some(read) = Definition::read(object, revision) {
            definitions.insert(name.to_owned(), Arc::new(read));
        }
    }
}
