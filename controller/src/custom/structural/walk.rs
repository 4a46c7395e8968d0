//! Whether a schema is structural: every value's type is said where it stands, and conditions say nothing of structure.

use serde_json::{Value, json};

use super::super::rules;
use super::super::schema::{MAX_DEPTH, Schema, Type, is_object_field, object};
use super::{list, text, validate};
use crate::resources::Problems;

/// Checks a schema. The rules of one that is `known`, for an update leaves it as it was, are let stand: status could not be
/// written otherwise, should this server ever understand less than the one that took the rules in.
pub(super) fn schema(value: &Value, at: &str, known: bool, problems: &mut Problems) {
    let (root, at) = (&value["openAPIV3Schema"], format!("{at}.openAPIV3Schema"));
    if !root.is_object() {
        problems.required(&at, "schemas are required");
        return;
    }
    match text(&root["type"]) {
        "" => problems.required(&format!("{at}.type"), "must not be empty at the root"),
        "object" => {}
        _ => problems.invalid(&format!("{at}.type"), &root["type"], "must be object at the root"),
    }
    let metadata = &root["properties"]["metadata"];
    let only = |value: &Value, known: &[&str]| object(value).all(|(key, _)| known.contains(&key.as_str()));
    if metadata.is_object()
        && !(only(metadata, &["type", "properties", "description"])
            && only(&metadata["properties"], &["name", "generateName"]))
    {
        problems.forbidden(
            &format!("{at}.properties[metadata]"),
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        );
    }
    let found = problems.0.len();
    let mut walk = Walk {
        path: at.clone(),
        problems,
        defaults: 0,
        left: rules::OBJECT_LIMIT,
    };
    walk.level(root, true, 0);
    if !known {
        let sound = problems.0.len() == found;
        rules::check_definition(root, &at, sound, problems);
    }
}

/// Most defaults of one schema that are checked against it: each check reads a schema anew.
const MAX_DEFAULTS: usize = 2_000;

struct Walk<'a> {
    path: String,
    problems: &'a mut Problems,
    defaults: usize,
    /// What rules may still cost that defaults are checked against.
    left: u64,
}

/// What no structural schema may have, and why.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("$ref", "$ref is not supported"),
    ("definitions", "definitions is not supported"),
    ("dependencies", "dependencies is not supported"),
    ("patternProperties", "patternProperties is not supported"),
    ("additionalItems", "additionalItems is not supported"),
    ("id", "id is not supported"),
    (
        "uniqueItems",
        "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
    ),
];

/// What describes a value's structure, and so does not belong into `allOf` and its like.
const STRUCTURE: &[(&str, &str)] = &[
    ("additionalProperties", "must be undefined to be structural"),
    ("type", "must be empty to be structural"),
    ("title", "must be empty to be structural"),
    ("description", "must be empty to be structural"),
    ("default", "must be undefined to be structural"),
    ("nullable", "must be false to be structural"),
    (
        "x-kubernetes-preserve-unknown-fields",
        "must be undefined to be structural",
    ),
    ("x-kubernetes-embedded-resource", "must be false to be structural"),
    ("x-kubernetes-int-or-string", "must be false to be structural"),
    ("x-kubernetes-list-type", "must be undefined to be structural"),
    ("x-kubernetes-list-map-keys", "must be empty to be structural"),
    ("x-kubernetes-map-type", "must be undefined to be structural"),
    ("x-kubernetes-validations", "must be empty to be structural"),
];

const JUNCTORS: &[&str] = &["allOf", "anyOf", "oneOf"];

impl Walk<'_> {
    fn within(&mut self, step: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.push_str(step);
        visit(self);
        self.path.truncate(length);
    }

    fn at(&self, key: &str) -> String {
        format!("{}.{key}", self.path)
    }

    fn forbidden(&mut self, key: &str, why: &str) {
        let at = self.at(key);
        self.problems.forbidden(&at, why);
    }

    fn invalid(&mut self, key: &str, value: &Value, why: &str) {
        let at = self.at(key);
        self.problems.invalid(&at, value, why);
    }

    fn required(&mut self, key: &str, why: &str) {
        let at = self.at(key);
        self.problems.required(&at, why);
    }

    /// A schema that stands for a value of the object.
    fn level(&mut self, schema: &Value, root: bool, depth: usize) {
        if depth > MAX_DEPTH {
            let path = self.path.clone();
            self.problems.forbidden(&path, "the schema is nested too deeply");
            return;
        }
        self.common(schema);
        let kind = text(&schema["type"]);
        if !kind.is_empty() && Type::parse(kind).is_none() {
            let at = self.at("type");
            let known = ["array", "boolean", "integer", "number", "object", "string"];
            self.problems.not_supported(&at, &schema["type"], &known);
        }
        self.extensions(schema, root, kind);
        let properties = schema["properties"]
            .as_object()
            .is_some_and(|map| !map.is_empty());
        match &schema["additionalProperties"] {
            Value::Null => {}
            Value::Bool(false) => self.forbidden("additionalProperties", "must not be false"),
            _ if properties => self.forbidden(
                "additionalProperties",
                "additionalProperties and properties are mutual exclusive",
            ),
            _ if root => self.forbidden("additionalProperties", "must not be used at the root"),
            inner => self.within(".additionalProperties", |walk| {
                walk.typed(inner, "object fields", depth);
            }),
        }
        if kind == "array" && !schema["items"].is_object() {
            self.required("items", "must be specified");
        }
        if schema["items"].is_object() {
            self.within(".items", |walk| {
                walk.typed(&schema["items"], "array items", depth);
            });
        }
        for (name, inner) in object(&schema["properties"]) {
            // What the server knows of every object needs no type here.
            let implied = root && is_object_field(name);
            self.within(&format!(".properties[{name}]"), |walk| {
                if implied {
                    walk.level(inner, false, depth + 1);
                } else {
                    walk.typed(inner, "object fields", depth);
                }
            });
        }
        self.default(schema, root);
        for key in JUNCTORS {
            for (index, inner) in list(&schema[*key]).enumerate() {
                self.within(&format!(".{key}[{index}]"), |walk| {
                    walk.condition(inner, schema, &format!("{key}[{index}]"), depth + 1);
                });
            }
        }
        if schema["not"].is_object() {
            self.within(".not", |walk| {
                walk.condition(&schema["not"], schema, "not", depth + 1);
            });
        }
    }

    /// A schema that must say its type.
    fn typed(&mut self, schema: &Value, what: &str, depth: usize) {
        let free = schema["x-kubernetes-int-or-string"] == true
            || schema["x-kubernetes-preserve-unknown-fields"] == true;
        if schema.is_object() && text(&schema["type"]).is_empty() && !free {
            self.required("type", &format!("must not be empty for specified {what}"));
        }
        self.level(schema, false, depth + 1);
    }

    /// A schema within `allOf` and its like: it narrows values and says nothing of their structure.
    fn condition(&mut self, schema: &Value, core: &Value, from: &str, depth: usize) {
        if depth > MAX_DEPTH {
            let path = self.path.clone();
            self.problems.forbidden(&path, "the schema is nested too deeply");
            return;
        }
        self.common(schema);
        let either = core["x-kubernetes-int-or-string"] == true;
        for (key, why) in STRUCTURE {
            let set = match &schema[*key] {
                Value::Null | Value::Bool(false) => false,
                Value::String(text) => !text.is_empty(),
                _ => true,
            };
            // `anyOf: [{type: integer}, {type: string}]` is how an int-or-string may be written.
            if set && !(either && *key == "type") {
                self.forbidden(key, why);
            }
        }
        for (name, inner) in object(&schema["properties"]) {
            let outer = match &core["properties"][name] {
                Value::Null if core["additionalProperties"].is_object() => &core["additionalProperties"],
                outer => outer,
            };
            if outer.is_null() && core["x-kubernetes-preserve-unknown-fields"] != true {
                let base = self.path.rsplit_once(&format!(".{from}"));
                let at = base.map_or(&*self.path, |(base, _)| base);
                let (at, why) = (
                    format!("{at}.properties[{name}]"),
                    format!("because it is defined in {from}.properties[{name}]"),
                );
                self.problems.required(&at, &why);
            }
            let from = format!("properties[{name}]");
            self.within(&format!(".{from}"), |walk| {
                walk.condition(inner, outer, &from, depth + 1);
            });
        }
        if schema["items"].is_object() {
            self.within(".items", |walk| {
                walk.condition(&schema["items"], &core["items"], "items", depth + 1);
            });
        }
        for key in JUNCTORS {
            for (index, inner) in list(&schema[*key]).enumerate() {
                let from = format!("{key}[{index}]");
                self.within(&format!(".{from}"), |walk| {
                    walk.condition(inner, core, &from, depth + 1);
                });
            }
        }
        if schema["not"].is_object() {
            self.within(".not", |walk| {
                walk.condition(&schema["not"], core, "not", depth + 1);
            });
        }
    }

    fn common(&mut self, schema: &Value) {
        for (key, why) in UNSUPPORTED {
            let set = match &schema[*key] {
                Value::Null | Value::Bool(false) => false,
                Value::String(text) => !text.is_empty(),
                _ => true,
            };
            if set {
                self.forbidden(key, why);
            }
        }
        if let Some(text) = schema["pattern"].as_str()
            && let Err(error) = validate::pattern(text)
        {
            let why = format!("must be a valid regular expression, but isn't: {error}");
            self.invalid("pattern", &schema["pattern"], &why);
        }
    }

    fn extensions(&mut self, schema: &Value, root: bool, kind: &str) {
        if schema["x-kubernetes-preserve-unknown-fields"] == false {
            self.invalid(
                "x-kubernetes-preserve-unknown-fields",
                &json!(false),
                "must be true or undefined",
            );
        }
        if schema["x-kubernetes-int-or-string"] == true && !kind.is_empty() {
            self.invalid(
                "type",
                &schema["type"],
                "must be empty if x-kubernetes-int-or-string is true",
            );
        }
        if schema["x-kubernetes-embedded-resource"] == true {
            if root {
                self.forbidden("x-kubernetes-embedded-resource", "must be undefined at the root");
            }
            if kind != "object" {
                self.invalid(
                    "type",
                    &schema["type"],
                    "must be object if x-kubernetes-embedded-resource is true",
                );
            }
            if !schema["properties"].is_object() && schema["x-kubernetes-preserve-unknown-fields"] != true {
                self.required(
                    "properties",
                    "must not be empty if x-kubernetes-embedded-resource is true without \
                     x-kubernetes-preserve-unknown-fields",
                );
            }
        }
        if schema["nullable"] == true && root {
            self.forbidden("nullable", "nullable cannot be true at the root");
        }
        self.list_type(schema, kind);
        let map_type = &schema["x-kubernetes-map-type"];
        if map_type.is_string() {
            if !matches!(text(map_type), "atomic" | "granular") {
                let at = self.at("x-kubernetes-map-type");
                self.problems
                    .not_supported(&at, map_type, &["atomic", "granular"]);
            }
            if kind != "object" {
                self.invalid(
                    "type",
                    &schema["type"],
                    "must be object if x-kubernetes-map-type is specified",
                );
            }
        }
    }

    fn list_type(&mut self, schema: &Value, kind: &str) {
        let list_type = &schema["x-kubernetes-list-type"];
        let keys = &schema["x-kubernetes-list-map-keys"];
        if list_type.is_string() {
            if !matches!(text(list_type), "atomic" | "set" | "map") {
                let at = self.at("x-kubernetes-list-type");
                self.problems
                    .not_supported(&at, list_type, &["atomic", "map", "set"]);
            }
            if kind != "array" {
                self.invalid(
                    "type",
                    &schema["type"],
                    "must be array if x-kubernetes-list-type is specified",
                );
            }
        }
        let items = &schema["items"];
        match text(list_type) {
            "map" => {
                if list(keys).next().is_none() {
                    self.required(
                        "x-kubernetes-list-map-keys",
                        "must not be empty if x-kubernetes-list-type is map",
                    );
                }
                if text(&items["type"]) != "object" {
                    self.invalid(
                        "items.type",
                        &items["type"],
                        "must be object if parent array's x-kubernetes-list-type is map",
                    );
                }
                for (index, key) in list(keys).enumerate() {
                    let property = &items["properties"][text(key)];
                    if property.is_null() {
                        self.invalid(
                            &format!("x-kubernetes-list-map-keys[{index}]"),
                            key,
                            "entries must all be names of item properties",
                        );
                    } else if property.get("default").is_none()
                        && !list(&items["required"]).any(|name| name == key)
                    {
                        self.required(
                            &format!("items.properties[{}].default", text(key)),
                            "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                             property",
                        );
                    }
                }
            }
            "set" => {
                let atomic = items["x-kubernetes-map-type"] == "atomic"
                    || (text(&items["type"]) == "array"
                        && matches!(text(&items["x-kubernetes-list-type"]), "" | "atomic"));
                if matches!(text(&items["type"]), "object" | "array") && !atomic {
                    self.invalid(
                        "items.x-kubernetes-map-type",
                        &items["x-kubernetes-map-type"],
                        "must be atomic as item of a list with x-kubernetes-list-type=set",
                    );
                }
                if items["nullable"] == true {
                    self.forbidden(
                        "items.nullable",
                        "cannot be nullable when x-kubernetes-list-type is set",
                    );
                }
            }
            _ if keys.as_array().is_some_and(|keys| !keys.is_empty()) => self.forbidden(
                "x-kubernetes-list-map-keys",
                "must not be set if x-kubernetes-list-type is not map",
            ),
            _ => {}
        }
    }

    /// A default must be what its own schema lets stand.
    fn default(&mut self, schema: &Value, root: bool) {
        let Some(default) = schema.get("default").filter(|default| !default.is_null()) else {
            return;
        };
        if root {
            self.forbidden("default", "must not be set at the root");
            return;
        }
        self.defaults += 1;
        if self.defaults > MAX_DEFAULTS {
            self.forbidden("default", "there are too many defaults in one schema");
            return;
        }
        let own = Schema::parse(schema);
        let mut pruned = json!({"default": default});
        let wrapper = json!({"type": "object", "properties": {"default": schema}});
        let wrapper = Schema::parse(&wrapper);
        wrapper.prune(&mut pruned);
        if pruned["default"] != *default {
            self.invalid("default", default, "must not have unknown fields");
        }
        wrapper.fill(&mut pruned);
        let at = self.at("default");
        let found = self.problems.0.len();
        validate::value_at(&own, &pruned["default"], &at, self.problems);
        if self.problems.0.len() == found {
            rules::check_default(schema, &pruned["default"], &at, &mut self.left, self.problems);
        }
    }
}
