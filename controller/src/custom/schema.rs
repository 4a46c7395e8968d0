//! The structural schema of a custom resource: which fields there are, how they merge, what is filled in.
//!
//! It is read once per definition, leniently: what a schema may say was checked when the definition was written.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::validate::Checks;
use crate::schema::KindSchema;

/// The JSON type that a value must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl Type {
    pub(super) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "object" => Self::Object,
            "array" => Self::Array,
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            _ => return None,
        })
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

/// How the items of a list are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    /// Not at all: the list is one value.
    #[default]
    Atomic,
    /// By their value.
    Set,
    /// By the values of these fields.
    Map(Vec<String>),
}

/// What properties beside the named ones may be.
#[derive(Debug, Default)]
pub(crate) enum Additional {
    /// There are none.
    #[default]
    None,
    /// Anything.
    Any,
    /// Values of this schema.
    Of(Box<Schema>),
}

/// How values of a schema merge.
#[derive(Debug)]
pub(crate) enum Merging<'a> {
    /// As one.
    Atomic,
    /// Lists: item by item, which are all different.
    Set,
    /// Lists: item by item, known by the values of the keys.
    Keyed(&'a [String], &'a Schema),
    /// Objects: entry by entry.
    Map(&'a Schema),
    /// Objects: field by field.
    Fields,
}

/// The schema of one value.
#[derive(Debug, Default)]
pub struct Schema {
    pub(super) value_type: Option<Type>,
    pub(super) nullable: bool,
    pub(super) int_or_string: bool,
    pub(super) preserve_unknown: bool,
    /// The value is an object with a kind and metadata of its own.
    pub(super) embedded: bool,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional: Additional,
    pub(super) items: Option<Box<Schema>>,
    pub(super) list_type: ListType,
    pub(super) atomic: bool,
    pub(super) default: Option<Value>,
    pub(super) checks: Checks,
}

/// Deepest nesting of schemas that is looked into; requests cannot nest deeper either.
pub(super) const MAX_DEPTH: usize = 120;

impl Schema {
    /// Reads an OpenAPI v3 schema in the form definitions have it.
    pub fn parse(value: &Value) -> Self {
        Self::parse_at(value, 0)
    }

    pub(super) fn parse_at(value: &Value, depth: usize) -> Self {
        if depth > MAX_DEPTH || !value.is_object() {
            return Self::default();
        }
        let flag = |key: &str| value[key] == true;
        let inner = |value: &Value| Self::parse_at(value, depth + 1);
        let boxed = |value: &Value| value.is_object().then(|| Box::new(inner(value)));
        Self {
            value_type: value["type"].as_str().and_then(Type::parse),
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            properties: object(&value["properties"])
                .map(|(name, schema)| (name.clone(), inner(schema)))
                .collect(),
            additional: match &value["additionalProperties"] {
                Value::Bool(true) => Additional::Any,
                Value::Null | Value::Bool(false) => Additional::None,
                schema => Additional::Of(Box::new(inner(schema))),
            },
            items: boxed(&value["items"]),
            list_type: match value["x-kubernetes-list-type"].as_str() {
                Some("set") => ListType::Set,
                Some("map") => {
                    let keys = value["x-kubernetes-list-map-keys"].as_array().into_iter();
                    let keys = keys.flatten().filter_map(Value::as_str);
                    ListType::Map(keys.map(str::to_owned).collect())
                }
                _ => ListType::Atomic,
            },
            atomic: value["x-kubernetes-map-type"] == "atomic",
            default: value.get("default").filter(|default| !default.is_null()).cloned(),
            checks: Checks::parse(value, depth),
        }
    }

    /// The schema of a property; `None` if only [`Schema::keeps`] speaks of it.
    pub(crate) fn property(&self, name: &str) -> Option<&Self> {
        match (self.properties.get(name), &self.additional) {
            (Some(schema), _) => Some(schema),
            (None, Additional::Of(schema)) => Some(schema),
            _ => None,
        }
    }

    /// How the value merges when it is applied.
    pub(crate) fn merging(&self) -> Merging<'_> {
        if let Some(items) = &self.items {
            return match &self.list_type {
                ListType::Atomic => Merging::Atomic,
                ListType::Set => Merging::Set,
                ListType::Map(keys) => Merging::Keyed(keys, items),
            };
        }
        match (&self.additional, self.value_type) {
            (Additional::Of(values), _) => Merging::Map(values),
            (_, Some(Type::Object) | None) if !self.int_or_string => Merging::Fields,
            _ => Merging::Atomic,
        }
    }

    /// Whether the value merges as one, whatever it is made of.
    pub(crate) fn is_atomic(&self) -> bool {
        self.atomic
    }

    /// Whether the value is an object with a kind and metadata of its own.
    pub(crate) fn is_embedded(&self) -> bool {
        self.embedded
    }

    /// What is filled in where the value is absent.
    pub(crate) fn default_value(&self) -> Option<&Value> {
        self.default.as_ref()
    }

    /// Whether properties without a schema are kept.
    pub(crate) fn keeps(&self) -> bool {
        self.preserve_unknown || matches!(self.additional, Additional::Any)
    }

    /// Whether anything is filled in, here or below.
    pub(super) fn has_defaults(&self) -> bool {
        let below = match &self.additional {
            Additional::Of(schema) => schema.has_defaults(),
            Additional::None | Additional::Any => false,
        };
        self.default.is_some()
            || below
            || self.items.as_ref().is_some_and(|items| items.has_defaults())
            || self.properties.values().any(Self::has_defaults)
    }

    /// The fields of an object that the schema does not have.
    pub fn unknown_fields(&self, object: &Value) -> Vec<String> {
        let mut found = Vec::new();
        self.find_unknown(object, true, &mut String::new(), &mut found);
        found
    }

    fn find_unknown(&self, value: &Value, root: bool, path: &mut String, found: &mut Vec<String>) {
        let length = path.len();
        match value {
            Value::Object(map) => {
                for (name, child) in map {
                    if length > 0 {
                        path.push('.');
                    }
                    path.push_str(name);
                    if (root || self.embedded) && is_object_field(name) {
                        if name == "metadata" && child.is_object() {
                            let unknown = KindSchema::object_meta().unknown_fields(child);
                            found.extend(unknown.into_iter().map(|field| format!("{path}.{field}")));
                        }
                    } else if let Some(schema) = self.property(name) {
                        schema.find_unknown(child, false, path, found);
                    } else if !self.keeps() {
                        found.push(path.clone());
                    }
                    path.truncate(length);
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (index, item) in list.iter().enumerate() {
                        path.extend(["[", &index.to_string(), "]"]);
                        items.find_unknown(item, false, path, found);
                        path.truncate(length);
                    }
                }
            }
            _ => {}
        }
    }

    /// Takes out the fields that the schema does not have, and nulls where none may be.
    pub fn prune(&self, object: &mut Value) {
        self.prune_value(object, true);
    }

    fn prune_value(&self, value: &mut Value, root: bool) {
        match value {
            Value::Object(map) => map.retain(|name, child| {
                if (root || self.embedded) && is_object_field(name) {
                    if name == "metadata" && child.is_object() {
                        KindSchema::object_meta().prune(child);
                    }
                    return true;
                }
                match self.property(name) {
                    Some(schema) => {
                        if child.is_null() && !schema.nullable {
                            return false;
                        }
                        schema.prune_value(child, false);
                        true
                    }
                    None => self.keeps(),
                }
            }),
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for item in list {
                        items.prune_value(item, false);
                    }
                }
            }
            _ => {}
        }
    }

    /// Fills in what is absent and has a default. Filling in twice is the same as once.
    pub fn fill(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    if let Some(default) = &schema.default
                        && !map.contains_key(name)
                    {
                        map.insert(name.clone(), default.clone());
                    }
                }
                for (name, child) in map {
                    if let Some(schema) = self.property(name) {
                        schema.fill(child);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for item in list {
                        items.fill(item);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The fields that every object has.
pub(super) fn is_object_field(name: &str) -> bool {
    matches!(name, "apiVersion" | "kind" | "metadata")
}

/// The entries of an object; none of anything else.
pub(super) fn object(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::parse(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "properties": {
                "replicas": {"type": "integer", "default": 1},
                "note": {"type": "string", "nullable": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"known": {"type": "object", "properties": {"a": {"type": "string"}}}}},
                "ports": {"type": "array", "items": {"type": "object", "properties": {
                    "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                    "spec": {"type": "object", "properties": {}}}},
            }},
        }}))
    }

    #[test]
    fn only_fields_of_the_schema_stay() {
        let mut object = json!({
            "apiVersion": "g/v1", "kind": "K", "metadata": {"name": "x", "labels": {"a": "b"}, "odd": 1},
            "other": 1,
            "spec": {"replicas": null, "note": null, "bad": 1, "free": {"x": 1, "known": {"a": "1", "b": 2}},
                "ports": [{"port": 1, "nope": 2}], "labels": {"k": "v"},
                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "odd": 1}, "spec": {"q": 1}}},
        });
        assert_eq!(
            schema().unknown_fields(&object),
            [
                "metadata.odd",
                "other",
                "spec.bad",
                "spec.free.known.b",
                "spec.ports[0].nope",
                "spec.template.metadata.odd",
                "spec.template.spec.q"
            ]
        );
        schema().prune(&mut object);
        assert_eq!(schema().unknown_fields(&object), Vec::<String>::new());
        assert_eq!(
            object["spec"],
            json!({"note": null, "free": {"x": 1, "known": {"a": "1"}}, "ports": [{"port": 1}], "labels": {"k": "v"},
                "template": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {}}})
        );
        schema().fill(&mut object);
        assert_eq!(object["spec"]["replicas"], 1);
        assert_eq!(object["spec"]["ports"][0]["protocol"], "TCP");
        let once = object.clone();
        schema().fill(&mut object);
        assert_eq!(object, once);
        assert!(schema().has_defaults());
    }
}
