//! Checking an object against its structural schema, in the words of a Kubernetes server.
//!
//! A part that an update leaves as it was is not checked again: a schema that became stricter does not lock out objects that
//! were there before.

use std::cmp::Ordering;

use regex::Regex;
use serde_json::{Map, Number, Value, json};

use super::format;
use super::schema::{Additional, ListType, MAX_DEPTH, Schema, Type, is_object_field};
use crate::re2;
use crate::resources::{Problem, Problems, Reason};

/// What a schema demands of a value beyond its type.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    one_of_values: Vec<Value>,
    format: Option<String>,
    /// As it is written, and compiled.
    pattern: Option<(String, Regex)>,
    lengths: (Option<u64>, Option<u64>),
    items: (Option<u64>, Option<u64>),
    properties: (Option<u64>, Option<u64>),
    minimum: Option<(Number, bool)>,
    maximum: Option<(Number, bool)>,
    multiple_of: Option<f64>,
    unique: bool,
    required: Vec<String>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

/// Largest compiled form of a pattern.
pub(super) const MAX_PATTERN_BYTES: usize = 1 << 20;

/// Compiles a pattern.
pub(super) fn pattern(text: &str) -> Result<Regex, regex::Error> {
    re2::builder(text).size_limit(MAX_PATTERN_BYTES).build()
}

impl Checks {
    pub(super) fn parse(value: &Value, depth: usize) -> Self {
        let list = |key: &str| value[key].as_array().into_iter().flatten();
        let schemas = |key: &str| {
            list(key)
                .map(|schema| Schema::parse_at(schema, depth + 1))
                .collect()
        };
        let range = |least: &str, most: &str| (value[least].as_u64(), value[most].as_u64());
        let bound = |key: &str, exclusive: &str| {
            let number = value[key].as_number()?.clone();
            Some((number, value[exclusive] == true))
        };
        let text = |key: &str| value[key].as_str().filter(|text| !text.is_empty());
        Self {
            one_of_values: list("enum").cloned().collect(),
            format: text("format").map(str::to_owned),
            pattern: text("pattern").and_then(|text| Some((text.to_owned(), pattern(text).ok()?))),
            lengths: range("minLength", "maxLength"),
            items: range("minItems", "maxItems"),
            properties: range("minProperties", "maxProperties"),
            minimum: bound("minimum", "exclusiveMinimum"),
            maximum: bound("maximum", "exclusiveMaximum"),
            multiple_of: value["multipleOf"].as_f64().filter(|number| *number > 0.0),
            unique: value["uniqueItems"] == true,
            required: list("required")
                .filter_map(|name| name.as_str().map(str::to_owned))
                .collect(),
            all_of: schemas("allOf"),
            any_of: schemas("anyOf"),
            one_of: schemas("oneOf"),
            not: value["not"]
                .is_object()
                .then(|| Box::new(Schema::parse_at(&value["not"], depth + 1))),
        }
    }
}

/// The field of problems that Kubernetes gives none.
const NO_FIELD: &str = "<nil>";

/// Checks an object; on an update the state before is given.
pub fn object(schema: &Schema, object: &Value, old: Option<&Value>, problems: &mut Problems) {
    let mut walk = Walk {
        path: String::new(),
        problems,
    };
    walk.value(schema, object, old, true, 0);
}

/// Checks a value that stands at `path`, such as a default within a schema.
pub(super) fn value_at(schema: &Schema, value: &Value, path: &str, problems: &mut Problems) {
    let mut walk = Walk {
        path: path.to_owned(),
        problems,
    };
    walk.value(schema, value, None, false, 0);
}

struct Walk<'a> {
    path: String,
    problems: &'a mut Problems,
}

impl Walk<'_> {
    fn add(&mut self, reason: Reason, field: String, message: String) {
        self.problems.0.push(Problem {
            reason,
            field,
            message,
        });
    }

    /// A value that is not as it should be: `spec.a in body should …`.
    fn invalid(&mut self, value: &Value, should: &str) {
        let message = format!("Invalid value: {value}: {} in body {should}", self.path);
        self.add(Reason::Invalid, self.path.clone(), message);
    }

    fn wrong_type(&mut self, shown: &Value, wanted: &str) {
        let message = format!(
            "Invalid value: {shown}: {} in body must be of type {wanted}: {shown}",
            self.path
        );
        self.add(Reason::TypeInvalid, self.path.clone(), message);
    }

    fn too_many(&mut self, actual: usize, most: u64) {
        let message = format!("Too many: {actual}: must have at most {most} items");
        self.add(Reason::TooMany, self.path.clone(), message);
    }

    fn within(&mut self, name: &str, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        if length > 0 {
            self.path.push('.');
        }
        self.path.push_str(name);
        visit(self);
        self.path.truncate(length);
    }

    fn at_index(&mut self, index: usize, visit: impl FnOnce(&mut Self)) {
        let length = self.path.len();
        self.path.extend(["[", &index.to_string(), "]"]);
        visit(self);
        self.path.truncate(length);
    }

    fn value(&mut self, schema: &Schema, value: &Value, old: Option<&Value>, root: bool, depth: usize) {
        if depth > MAX_DEPTH || old == Some(value) {
            return;
        }
        if !self.has_type(schema, value) {
            return;
        }
        if value.is_null() && schema.nullable {
            return;
        }
        self.combinations(&schema.checks, value, depth);
        self.scalar(&schema.checks, value);
        match value {
            Value::Object(map) => self.map(schema, map, old, root, depth),
            Value::Array(list) => self.list(schema, list, old, depth),
            _ => {}
        }
    }

    /// Whether the value has the schema's type; a problem if not.
    fn has_type(&mut self, schema: &Schema, value: &Value) -> bool {
        if schema.int_or_string {
            if value.is_string() || is_integer(value) || (value.is_null() && schema.nullable) {
                return true;
            }
            self.wrong_type(&json!(type_name(value)), "integer,string");
            return false;
        }
        let Some(wanted) = schema.value_type else {
            return true;
        };
        let fits = match (wanted, value) {
            (_, Value::Null) => schema.nullable,
            (Type::Object, Value::Object(_))
            | (Type::Array, Value::Array(_))
            | (Type::String, Value::String(_))
            | (Type::Number, Value::Number(_))
            | (Type::Boolean, Value::Bool(_)) => true,
            (Type::Integer, Value::Number(_)) => is_integer(value),
            _ => false,
        };
        if !fits {
            self.wrong_type(&json!(type_name(value)), wanted.name());
        }
        fits
    }

    fn scalar(&mut self, checks: &Checks, value: &Value) {
        if !checks.one_of_values.is_empty() && !checks.one_of_values.contains(value) {
            let known: Vec<_> = checks
                .one_of_values
                .iter()
                .map(|known| match known {
                    Value::String(text) => format!("{text:?}"),
                    other => format!("{:?}", other.to_string()),
                })
                .collect();
            let message = format!(
                "Unsupported value: {value}: supported values: {}",
                known.join(", ")
            );
            self.add(Reason::NotSupported, self.path.clone(), message);
        }
        match value {
            Value::String(text) => self.text(checks, value, text),
            Value::Number(number) => self.number(checks, value, number),
            _ => {}
        }
        if let Some(format) = &checks.format
            && !format::fits(format, value)
        {
            self.wrong_type(value, format);
        }
    }

    fn text(&mut self, checks: &Checks, value: &Value, text: &str) {
        let (least, most) = checks.lengths;
        let length = text.chars().count() as u64;
        if let Some(most) = most.filter(|most| length > *most) {
            let message = format!("Too long: may not be more than {most} bytes");
            self.add(Reason::TooLong, self.path.clone(), message);
        }
        if let Some(least) = least.filter(|least| length < *least) {
            self.invalid(value, &format!("should be at least {least} chars long"));
        }
        if let Some((written, pattern)) = &checks.pattern
            && !pattern.is_match(text)
        {
            self.invalid(value, &format!("should match '{written}'"));
        }
    }

    fn number(&mut self, checks: &Checks, value: &Value, number: &Number) {
        if let Some((most, exclusive)) = &checks.maximum {
            let order = compare(number, most);
            if *exclusive && order != Ordering::Less {
                self.invalid(value, &format!("should be less than {most}"));
            } else if order == Ordering::Greater {
                self.invalid(value, &format!("should be less than or equal to {most}"));
            }
        }
        if let Some((least, exclusive)) = &checks.minimum {
            let order = compare(number, least);
            if *exclusive && order != Ordering::Greater {
                self.invalid(value, &format!("should be greater than {least}"));
            } else if order == Ordering::Less {
                self.invalid(value, &format!("should be greater than or equal to {least}"));
            }
        }
        if let (Some(divisor), Some(number)) = (checks.multiple_of, number.as_f64()) {
            let times = number / divisor;
            if (times - times.round()).abs() > 1e-9 {
                self.invalid(value, &format!("should be a multiple of {divisor}"));
            }
        }
    }

    fn map(
        &mut self,
        schema: &Schema,
        map: &Map<String, Value>,
        old: Option<&Value>,
        root: bool,
        depth: usize,
    ) {
        let checks = &schema.checks;
        for name in checks.required.iter().filter(|name| !map.contains_key(*name)) {
            self.within(name, |walk| {
                walk.add(Reason::Required, walk.path.clone(), "Required value".to_owned());
            });
        }
        let (least, most) = checks.properties;
        if let Some(most) = most.filter(|most| map.len() as u64 > *most) {
            self.too_many(map.len(), most);
        }
        if let Some(least) = least.filter(|least| (map.len() as u64) < *least) {
            let value = Value::Object(map.clone());
            self.invalid(&value, &format!("should have at least {least} properties"));
        }
        if schema.embedded && !root {
            for name in ["apiVersion", "kind"] {
                if map.get(name).and_then(Value::as_str).is_none_or(str::is_empty) {
                    self.within(name, |walk| {
                        let message = "Required value: must not be empty".to_owned();
                        walk.add(Reason::Required, walk.path.clone(), message);
                    });
                }
            }
        }
        for (name, value) in map {
            // The metadata of objects has rules of its own; a schema can only narrow names.
            if root && is_object_field(name) && name != "metadata" {
                continue;
            }
            let child = match (schema.properties.get(name), &schema.additional) {
                (Some(child), _) => child,
                (None, Additional::Of(child)) => child,
                _ => continue,
            };
            let old = old.and_then(|old| old.get(name));
            self.within(name, |walk| walk.value(child, value, old, false, depth + 1));
        }
    }

    fn list(&mut self, schema: &Schema, list: &[Value], old: Option<&Value>, depth: usize) {
        let checks = &schema.checks;
        let (least, most) = checks.items;
        if let Some(most) = most.filter(|most| list.len() as u64 > *most) {
            self.too_many(list.len(), most);
        }
        if let Some(least) = least.filter(|least| (list.len() as u64) < *least) {
            let value = Value::Array(list.to_vec());
            self.invalid(&value, &format!("should have at least {least} items"));
        }
        if checks.unique && first_repeated(list, Value::clone).is_some() {
            let value = Value::Array(list.to_vec());
            self.invalid(&value, "shouldn't contain duplicates");
        }
        match &schema.list_type {
            ListType::Atomic => {}
            ListType::Set => self.distinct(list, Value::clone),
            ListType::Map(keys) => self.distinct(list, |item| key_of(schema, keys, item)),
        }
        let Some(items) = &schema.items else { return };
        let before = old.and_then(Value::as_array);
        for (index, item) in list.iter().enumerate() {
            let old = before.and_then(|before| match &schema.list_type {
                ListType::Map(keys) => {
                    let key = key_of(schema, keys, item);
                    before.iter().find(|old| key_of(schema, keys, old) == key)
                }
                ListType::Atomic | ListType::Set => None,
            });
            self.at_index(index, |walk| walk.value(items, item, old, false, depth + 1));
        }
    }

    /// A problem for each item whose key another had before.
    fn distinct(&mut self, list: &[Value], key: impl Fn(&Value) -> Value) {
        let mut seen = std::collections::BTreeSet::new();
        for (index, item) in list.iter().enumerate() {
            let key = key(item);
            if !seen.insert(key.to_string()) {
                self.at_index(index, |walk| {
                    let message = format!("Duplicate value: {key}");
                    walk.add(Reason::Duplicate, walk.path.clone(), message);
                });
            }
        }
    }

    /// The problems that a value has with a schema, apart from all others.
    fn trial(&mut self, schema: &Schema, value: &Value, depth: usize) -> Problems {
        let mut found = Problems::default();
        let mut walk = Walk {
            path: self.path.clone(),
            problems: &mut found,
        };
        walk.value(schema, value, None, false, depth + 1);
        found
    }

    fn combinations(&mut self, checks: &Checks, value: &Value, depth: usize) {
        let combination = |walk: &mut Self, rule: &str| {
            let message = format!("Invalid value: \"\": \"{}\" must {rule}", walk.path);
            walk.add(Reason::Invalid, NO_FIELD.to_owned(), message);
        };
        let mut fails = false;
        for schema in &checks.all_of {
            let found = self.trial(schema, value, depth);
            fails |= !found.0.is_empty();
            self.problems.0.extend(found.0);
        }
        if fails {
            combination(self, "validate all the schemas (allOf)");
        }
        if !checks.any_of.is_empty() {
            let trials: Vec<_> = checks
                .any_of
                .iter()
                .map(|schema| self.trial(schema, value, depth))
                .collect();
            if trials.iter().all(|found| !found.0.is_empty()) {
                combination(self, "validate at least one schema (anyOf)");
                let best = trials.into_iter().min_by_key(|found| found.0.len());
                self.problems.0.extend(best.into_iter().flat_map(|found| found.0));
            }
        }
        if !checks.one_of.is_empty() {
            let trials: Vec<_> = checks
                .one_of
                .iter()
                .map(|schema| self.trial(schema, value, depth))
                .collect();
            match trials.iter().filter(|found| found.0.is_empty()).count() {
                0 => {
                    combination(self, "validate one and only one schema (oneOf). Found none valid");
                    let best = trials.into_iter().min_by_key(|found| found.0.len());
                    self.problems.0.extend(best.into_iter().flat_map(|found| found.0));
                }
                1 => {}
                valid => {
                    let rule =
                        format!("validate one and only one schema (oneOf). Found {valid} valid alternatives");
                    combination(self, &rule);
                }
            }
        }
        if let Some(schema) = &checks.not
            && self.trial(schema, value, depth).0.is_empty()
        {
            combination(self, "not validate the schema (not)");
        }
    }
}

/// What an item of a list is known by: its keys, with their defaults where they are absent.
fn key_of(schema: &Schema, keys: &[String], item: &Value) -> Value {
    let default = |key: &str| {
        let items = schema.items.as_ref()?;
        items.properties.get(key)?.default.clone()
    };
    keys.iter()
        .filter_map(|key| {
            let value = item.get(key).cloned().or_else(|| default(key))?;
            Some((key.clone(), value))
        })
        .collect()
}

fn first_repeated(list: &[Value], key: impl Fn(&Value) -> Value) -> Option<usize> {
    let mut seen = std::collections::BTreeSet::new();
    list.iter().position(|item| !seen.insert(key(item).to_string()))
}

fn is_integer(value: &Value) -> bool {
    value.is_i64()
        || value.is_u64()
        || value
            .as_f64()
            .is_some_and(|number| number.fract() == 0.0 && number.abs() < 9.007e15)
}

fn compare(a: &Number, b: &Number) -> Ordering {
    match (a.as_i128(), b.as_i128()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests;
