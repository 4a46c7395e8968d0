//! The types that rules see: those of a structural schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::super::schema::MAX_DEPTH;
use super::text;
use crate::cel::{Field, ListKind, ObjectType, RESERVED, Type};

/// The type of a schema and of those within it. Each is made once, for objects are of the same type only if they stand at
/// the same place.
#[derive(Debug, Default)]
pub(super) struct Typed {
    /// `None` if the schema does not say what values are.
    pub(super) of: Option<Type>,
    /// In the schema's order.
    pub(super) properties: Vec<(String, Typed)>,
    pub(super) additional: Option<Box<Typed>>,
    pub(super) items: Option<Box<Typed>>,
}

impl Typed {
    /// Reads a schema; `root` is whether values are objects with a kind and metadata.
    pub(super) fn read(schema: &Json, root: bool, depth: usize) -> Self {
        if depth > MAX_DEPTH {
            return Self::default();
        }
        let inner = |schema: &Json| {
            let root = schema["x-kubernetes-embedded-resource"] == true;
            Self::read(schema, root, depth + 1)
        };
        let boxed = |schema: &Json| schema.is_object().then(|| Box::new(inner(schema)));
        let properties = schema["properties"].as_object().into_iter().flatten();
        let mut typed = Self {
            of: None,
            properties: properties
                .map(|(name, schema)| (name.clone(), inner(schema)))
                .collect(),
            additional: boxed(&schema["additionalProperties"]),
            items: boxed(&schema["items"]),
        };
        typed.of = typed.type_of(schema, root);
        typed
    }

    fn type_of(&self, schema: &Json, root: bool) -> Option<Type> {
        if schema["x-kubernetes-int-or-string"] == true {
            return Some(Type::Dynamic);
        }
        Some(match (text(&schema["type"]), text(&schema["format"])) {
            ("boolean", _) => Type::Bool,
            ("number", _) => Type::Double,
            ("integer", _) => Type::Int,
            ("string", "byte") => Type::Bytes,
            ("string", "duration") => Type::Duration,
            ("string", "date" | "date-time") => Type::Timestamp,
            ("string", _) => Type::String,
            ("array", _) => {
                let kind = match text(&schema["x-kubernetes-list-type"]) {
                    "set" => ListKind::Set,
                    "map" => {
                        let keys = super::list(&schema["x-kubernetes-list-map-keys"]);
                        ListKind::Map(keys.map(|key| text(key).to_owned()).collect())
                    }
                    _ => ListKind::Atomic,
                };
                Type::list_of(self.items.as_ref()?.of.clone()?, kind)
            }
            (kind, _) if kind == "object" || root => match &self.additional {
                Some(values) if !root => Type::map(Type::String, values.of.clone()?),
                _ => self.object(root),
            },
            _ => return None,
        })
    }

    fn object(&self, root: bool) -> Type {
        let mut fields = BTreeMap::new();
        for (name, inner) in &self.properties {
            if let (Some(escaped), Some(of)) = (escape(name), &inner.of) {
                fields.insert(escaped, field(name, of.clone()));
            }
        }
        if root {
            for name in ["apiVersion", "kind"] {
                fields.insert(name.to_owned(), field(name, Type::String));
            }
            let mut metadata = ObjectType::default();
            for name in ["name", "generateName"] {
                metadata.fields.insert(name.to_owned(), field(name, Type::String));
            }
            let metadata = Type::Object(Arc::new(metadata));
            fields.insert("metadata".to_owned(), field("metadata", metadata));
        }
        Type::Object(Arc::new(ObjectType { fields }))
    }
}

fn field(name: &str, of: Type) -> Field {
    Field {
        name: name.to_owned(),
        of,
    }
}

/// The name by which rules reach a property; `None` if they cannot.
fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) || matches!(name, "true" | "false" | "null" | "in") {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut escaped = String::new();
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        let (written, length) = match c {
            '_' if rest.starts_with("__") => ("__underscores__", 2),
            '.' => ("__dot__", 1),
            '-' => ("__dash__", 1),
            '/' => ("__slash__", 1),
            c if c.is_ascii_alphanumeric() || c == '_' => (&rest[..1], 1),
            _ => return None,
        };
        escaped.push_str(written);
        rest = &rest[length..];
    }
    Some(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_identifiers_are_escaped() {
        for (name, escaped) in [
            ("replicas", Some("replicas")),
            ("namespace", Some("__namespace__")),
            ("in", Some("__in__")),
            ("x-prop", Some("x__dash__prop")),
            ("redact__d", Some("redact__underscores__d")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("___", Some("__underscores___")),
            ("_a", Some("_a")),
            ("1a", None),
            ("", None),
            ("a b", None),
            ("ä", None),
        ] {
            assert_eq!(escape(name).as_deref(), escaped, "{name}");
        }
    }
}
