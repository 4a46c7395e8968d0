//! What is wrong with a definition: names, versions, and schemas that are not structural.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::json_path::JsonPath;
use super::schema::{MAX_DEPTH, Schema, Type, object};
use super::{has_condition, validate};
use crate::resources::{Problem, Problems, Reason, immutable, label_problem, subdomain_problem};

/// Most selectable fields of a version, as in Kubernetes.
const MAX_SELECTABLE: usize = 8;

const COLUMN_TYPES: &[&str] = &["boolean", "date", "integer", "number", "string"];

/// Checks a definition; on an update the state before is given.
pub fn definition(object: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &object["spec"];
    if let Some(old) = old {
        immutable(object, Some(old), "spec.group", problems);
        immutable(object, Some(old), "spec.names.plural", problems);
        if has_condition(old, "Established") {
            immutable(object, Some(old), "spec.scope", problems);
            immutable(object, Some(old), "spec.names.kind", problems);
        }
    }
    let name = &object["metadata"]["name"];
    let (group, plural) = (text(&spec["group"]), text(&spec["names"]["plural"]));
    if text(name) != format!("{plural}.{group}") {
        problems.invalid(
            "metadata.name",
            name,
            "must be spec.names.plural+\".\"+spec.group",
        );
    }
    if group.is_empty() {
        problems.required("spec.group", "");
    } else if let Some(problem) = subdomain_problem(group) {
        problems.invalid("spec.group", &spec["group"], &problem);
    } else if !group.contains('.') {
        problems.invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        );
    }
    protected_group(object, group, problems);
    match text(&spec["scope"]) {
        "" => problems.required("spec.scope", ""),
        "Cluster" | "Namespaced" => {}
        _ => problems.not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]),
    }
    if spec["preserveUnknownFields"] == true {
        problems.invalid("spec.preserveUnknownFields", &json!(true), "must be false");
    }
    let strategy = &spec["conversion"]["strategy"];
    if text(strategy) != "None" {
        problems.not_supported("spec.conversion.strategy", strategy, &["None"]);
    }
    names(&spec["names"], problems);
    versions(object, problems);
}

/// Groups of the Kubernetes project are not for everyone.
fn protected_group(object: &Value, group: &str, problems: &mut Problems) {
    const ANNOTATION: &str = "api-approved.kubernetes.io";
    let protected = ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|domain| group == *domain || group.ends_with(&format!(".{domain}")));
    let approval = text(&object["metadata"]["annotations"][ANNOTATION]);
    if protected && approval.is_empty() {
        problems.required(
            &format!("metadata.annotations[{ANNOTATION}]"),
            &format!(
                "protected groups must have approval annotation {ANNOTATION:?}, see \
                 https://github.com/kubernetes/enhancements/pull/1111"
            ),
        );
    } else if protected && !approval.starts_with("unapproved") && !approval.starts_with("http") {
        problems.invalid(
            &format!("metadata.annotations[{ANNOTATION}]"),
            &json!(approval),
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason \
             starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111",
        );
    }
}

const NAME_RULE: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
     alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
     validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn is_name(name: &str) -> bool {
    label_problem(name).is_none() && name.starts_with(|c: char| c.is_ascii_lowercase())
}

fn names(names: &Value, problems: &mut Problems) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let at = format!("spec.names.{key}");
        let name = text(&names[key]);
        let camel = matches!(key, "kind" | "listKind");
        if name.is_empty() {
            problems.required(&at, "");
        } else if camel && !is_name(&name.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {NAME_RULE}");
            problems.invalid(&at, &names[key], &detail);
        } else if !camel && !is_name(name) {
            problems.invalid(&at, &names[key], NAME_RULE);
        }
    }
    for key in ["shortNames", "categories"] {
        for (index, name) in list(&names[key]).enumerate() {
            if !is_name(text(name)) {
                problems.invalid(&format!("spec.names.{key}[{index}]"), name, NAME_RULE);
            }
        }
    }
    if !text(&names["kind"]).is_empty() && names["kind"] == names["listKind"] {
        problems.invalid(
            "spec.names.listKind",
            &names["listKind"],
            "kind and listKind may not be the same",
        );
    }
}

fn versions(definition: &Value, problems: &mut Problems) {
    let versions = &definition["spec"]["versions"];
    let mut seen = BTreeSet::new();
    let mut stored = 0;
    if list(versions).next().is_none() {
        problems.required("spec.versions", "must have at least one version");
        return;
    }
    for (index, version) in list(versions).enumerate() {
        let at = format!("spec.versions[{index}]");
        let name = text(&version["name"]);
        if !is_name(name) {
            problems.invalid(&format!("{at}.name"), &version["name"], NAME_RULE);
        }
        if !seen.insert(name) {
            problems.invalid("spec.versions", versions, "must contain unique version names");
        }
        stored += u32::from(version["storage"] == true);
        if version["deprecationWarning"].is_string() && version["deprecated"] != true {
            problems.invalid(
                &format!("{at}.deprecationWarning"),
                &version["deprecationWarning"],
                "can only be set for deprecated versions",
            );
        }
        schema(&version["schema"], &format!("{at}.schema"), problems);
        subresources(&version["subresources"], &format!("{at}.subresources"), problems);
        columns(&version["additionalPrinterColumns"], &at, problems);
        selectable(version, &at, problems);
    }
    if stored != 1 {
        problems.invalid(
            "spec.versions",
            versions,
            "must have exactly one version marked as storage version",
        );
    }
    for (index, version) in list(&definition["status"]["storedVersions"]).enumerate() {
        let name = text(version);
        if !seen.contains(name) {
            problems.invalid(
                &format!("status.storedVersions[{index}]"),
                version,
                &format!(
                    "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                     until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                     status.storedVersions"
                ),
            );
        }
    }
}

fn subresources(value: &Value, at: &str, problems: &mut Problems) {
    let scale = &value["scale"];
    if !scale.is_object() {
        return;
    }
    for (key, below, required) in [
        ("specReplicasPath", &[".spec."][..], true),
        ("statusReplicasPath", &[".status."], true),
        ("labelSelectorPath", &[".spec.", ".status."], false),
    ] {
        let (path, at) = (text(&scale[key]), format!("{at}.scale.{key}"));
        if path.is_empty() {
            if required {
                problems.required(&at, "");
            }
            continue;
        }
        if JsonPath::parse(path)
            .ok()
            .is_none_or(|path| path.fields().is_none())
        {
            problems.invalid(&at, &scale[key], "must be a simple json path of fields");
        } else if !below.iter().any(|prefix| path.starts_with(prefix)) {
            let places: Vec<_> = below.iter().map(|place| place.trim_end_matches('.')).collect();
            let detail = format!("should be a json path under {}", places.join(" or "));
            problems.invalid(&at, &scale[key], &detail);
        }
    }
}

fn columns(columns: &Value, at: &str, problems: &mut Problems) {
    for (index, column) in list(columns).enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{index}]");
        if text(&column["name"]).is_empty() {
            problems.required(&format!("{at}.name"), "");
        }
        let kind = text(&column["type"]);
        if kind.is_empty() {
            problems.required(
                &format!("{at}.type"),
                &format!("must be one of {}", COLUMN_TYPES.join(",")),
            );
        } else if !COLUMN_TYPES.contains(&kind) {
            let detail = format!("must be one of {}", COLUMN_TYPES.join(","));
            problems.invalid(&format!("{at}.type"), &column["type"], &detail);
        }
        let path = text(&column["jsonPath"]);
        if path.is_empty() {
            problems.required(&format!("{at}.jsonPath"), "");
        } else if let Err(error) = JsonPath::parse(path) {
            problems.invalid(&format!("{at}.jsonPath"), &column["jsonPath"], &error.to_string());
        }
    }
}

fn selectable(version: &Value, at: &str, problems: &mut Problems) {
    let fields = &version["selectableFields"];
    let at = format!("{at}.selectableFields");
    let count = list(fields).count();
    if count > MAX_SELECTABLE {
        problems.0.push(Problem {
            reason: Reason::TooMany,
            field: at.clone(),
            message: format!("Too many: {count}: must have at most {MAX_SELECTABLE} items"),
        });
    }
    let mut seen = BTreeSet::new();
    for (index, field) in list(fields).enumerate() {
        let at = format!("{at}[{index}].jsonPath");
        let path = &field["jsonPath"];
        if text(path).is_empty() {
            problems.required(&at, "");
            continue;
        }
        if !seen.insert(text(path)) {
            problems.duplicate(&at, path);
        }
        let parsed = JsonPath::parse(text(path)).ok();
        let Some(names) = parsed.as_ref().and_then(JsonPath::fields) else {
            problems.invalid(&at, path, "is an invalid path: must be a simple path of fields");
            continue;
        };
        if names.first() == Some(&"metadata") {
            problems.invalid(&at, path, "must not point to fields in metadata");
            continue;
        }
        let schema = Schema::parse(&version["schema"]["openAPIV3Schema"]);
        let found = names
            .iter()
            .try_fold(&schema, |schema, name| schema.property(name));
        match found.map(|schema| schema.value_type) {
            Some(Some(Type::String | Type::Boolean | Type::Integer)) => {}
            Some(_) => problems.invalid(
                &at,
                path,
                "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are \
                 allowed.",
            ),
            None => problems.invalid(&at, path, "is an invalid path: does not refer to a valid field"),
        }
    }
}

fn schema(value: &Value, at: &str, problems: &mut Problems) {
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
    let mut walk = Walk {
        path: at,
        problems,
        defaults: 0,
    };
    walk.level(root, true, 0);
}

/// Most defaults of one schema that are checked against it: each check reads a schema anew.
const MAX_DEFAULTS: usize = 2_000;

struct Walk<'a> {
    path: String,
    problems: &'a mut Problems,
    defaults: usize,
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
            let implied = root && super::schema::is_object_field(name);
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
        validate::value_at(&own, &pruned["default"], &at, self.problems);
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
