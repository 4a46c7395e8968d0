//! The managers in `metadata.managedFields`.

use serde_json::{Map, Value, json};

use super::field_set::FieldSet;
use super::{Manager, Target};

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

    fn into_json(self) -> Value {
        let operation = if self.operation == Operation::Apply {
            "Apply"
        } else {
            "Update"
        };
        let mut value = json!({
            "manager": self.manager,
            "operation": operation,
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.into_json(),
        });
        if let Some(time) = self.time {
            value["time"] = Value::String(time);
        }
        if let Some(subresource) = self.subresource {
            value["subresource"] = Value::String(subresource);
        }
        value
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

/// The list as it stands.
pub(super) fn list(object: &Value) -> Option<&Vec<Value>> {
    object.get("metadata")?.get("managedFields")?.as_array()
}

/// Gives an object the list that was set aside.
pub(super) fn put_back(object: &mut Value, kept: Option<Value>) {
    if let Some(kept) = kept.filter(Value::is_array)
        && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
    {
        metadata.insert("managedFields".to_owned(), kept);
    }
}

/// Notes an update of fields that no other manager has, as most are, without reading what others have; yields whether it
/// was one. The list is as the last write left it.
pub(super) fn note(
    target: &Target<'_>,
    new: &mut Value,
    manager: &Manager<'_>,
    changed: &FieldSet,
    removed: &FieldSet,
) -> bool {
    if changed.is_empty() && removed.is_empty() {
        return true;
    }
    let before = list(new);
    let before = before.map_or(&[][..], Vec::as_slice);
    let is_own = |entry: &Value| {
        let is =
            |name: &str, wanted: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default() == wanted;
        is("manager", manager.name)
            && is("operation", "Update")
            && is("apiVersion", &target.api_version)
            && is("subresource", manager.subresource.unwrap_or_default())
    };
    let fields_of = |entry: &Value| entry.get("fieldsV1").map(FieldSet::from_json).unwrap_or_default();
    let own = before.iter().position(is_own);
    let shared = |entry: &Value| {
        let fields = entry.get("fieldsV1").unwrap_or(&Value::Null);
        changed.meets(fields) || removed.meets(fields)
    };
    let mut others = before.iter().enumerate().filter(|(at, _)| Some(*at) != own);
    if before.len() >= MAX_UPDATERS || others.any(|(_, entry)| shared(entry)) {
        return false;
    }
    let mut fields = own.map(|at| fields_of(&before[at])).unwrap_or_default();
    fields.subtract(removed);
    fields.union(changed.clone());
    if fields.is_empty() {
        return false;
    }
    let entry = Entry {
        manager: manager.name.to_owned(),
        operation: Operation::Update,
        api_version: target.api_version.clone(),
        subresource: manager.subresource.map(str::to_owned),
        time: Some(manager.time.to_owned()),
        fields,
    };
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else {
        return false;
    };
    let list = metadata
        .entry("managedFields")
        .or_insert_with(|| Value::Array(Vec::new()));
    let Value::Array(list) = list else { return false };
    match own {
        Some(at) => list[at] = entry.into_json(),
        None => list.push(entry.into_json()),
    }
    list.sort_by(|a, b| place(a).cmp(&place(b)));
    true
}

/// By what entries are ordered.
fn place(entry: &Value) -> [Option<&str>; 3] {
    ["operation", "time", "manager"].map(|key| entry.get(key).and_then(Value::as_str))
}

/// Writes the list, without managers that manage nothing.
pub(super) fn write(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |entry: &Entry| (entry.operation, entry.time.clone(), entry.manager.clone());
        key(a).cmp(&key(b))
    });
    cap_updaters(&mut entries);
    let list: Vec<Value> = entries.into_iter().map(Entry::into_json).collect();
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
