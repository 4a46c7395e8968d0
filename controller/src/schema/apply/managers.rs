//! The managers in `metadata.managedFields`.

use serde_json::{Map, Value, json};

use super::field_set::FieldSet;

/// More updaters than this are put together, oldest first.
const MAX_UPDATERS: usize = 10;

const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One entry: who set which fields.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) manager: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: Option<String>,
    pub(super) time: Option<String>,
    pub(super) fields: FieldSet,
}

impl Entry {
    pub(super) fn is(
        &self,
        manager: &str,
        operation: Operation,
        api_version: &str,
        subresource: Option<&str>,
    ) -> bool {
        self.manager == manager
            && self.operation == operation
            && self.subresource.as_deref() == subresource
            && (self.api_version == api_version || operation == Operation::Apply)
    }

    /// How conflicts name the manager.
    pub(super) fn described(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if let Some(subresource) = &self.subresource {
            text.extend([" with subresource \"", subresource, "\""]);
        }
        if self.operation == Operation::Update {
            text.extend([" using ", &self.api_version]);
        }
        text
    }
}

/// Reads the list. `None` if the object has none; entries that are malformed are left out.
pub(super) fn read(object: &Value) -> Option<Vec<Entry>> {
    let list = object.get("metadata")?.get("managedFields")?.as_array()?;
    let entry = |value: &Value| {
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        Some(Entry {
            manager: text("manager").unwrap_or_default(),
            operation: match value.get("operation")?.as_str()? {
                "Apply" => Operation::Apply,
                "Update" => Operation::Update,
                _ => return None,
            },
            api_version: text("apiVersion").unwrap_or_default(),
            subresource: text("subresource").filter(|name| !name.is_empty()),
            time: text("time"),
            fields: FieldSet::from_json(value.get("fieldsV1").unwrap_or(&Value::Null)),
        })
    };
    Some(list.iter().filter_map(entry).collect())
}

/// Writes the list, without managers that manage nothing.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| (entry.operation, entry.time.clone(), entry.manager.clone());
        key(a).cmp(&key(b))
    });
    cap_updaters(&mut entries);
    let list: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let operation = if entry.operation == Operation::Apply {
                "Apply"
            } else {
                "Update"
            };
            let mut value = json!({
                "manager": entry.manager,
                "operation": operation,
                "apiVersion": entry.api_version,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_json(),
            });
            if let Some(time) = entry.time {
                value["time"] = Value::String(time);
            }
            if let Some(subresource) = entry.subresource {
                value["subresource"] = Value::String(subresource);
            }
            value
        })
        .collect();
    let Value::Object(object) = object else { return };
    let metadata = object
        .entry("metadata")
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(metadata) = metadata {
        if list.is_empty() {
            metadata.remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(list));
        }
    }
}

/// The list is sorted: updaters come last, the oldest first.
fn cap_updaters(entries: &mut Vec<Entry>) {
    loop {
        let updaters = entries
            .iter()
            .filter(|entry| entry.operation == Operation::Update)
            .count();
        if updaters <= MAX_UPDATERS {
            return;
        }
        let first = entries.len() - updaters;
        let oldest = entries.remove(first);
        let next = &mut entries[first];
        ANCIENT.clone_into(&mut next.manager);
        next.subresource = None;
        next.fields.union(oldest.fields);
    }
}
