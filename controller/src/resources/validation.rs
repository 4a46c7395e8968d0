//! What is wrong with an object, in the words of a Kubernetes server, and the checks that several kinds share.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::selector::{label_key_problem, label_value_problem};

pub(crate) mod autoscaler;
pub(crate) mod claim;
mod container;
pub(crate) mod job;
pub(crate) mod network;
mod pod;
pub(crate) mod quota;
pub(crate) mod rbac;
pub(crate) mod service;
mod volume;
pub(crate) mod workload;

pub(crate) use pod::{pod_spec, pod_template};

/// The kind of a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A field must be set.
    Required,
    /// A value is not right.
    Invalid,
    /// A value is none of those known.
    NotSupported,
    /// A field may not be set or changed.
    Forbidden,
    /// A value is there twice.
    Duplicate,
    /// A value names what is not there.
    NotFound,
    /// A text is too long.
    TooLong,
    /// A list or map has too many entries.
    TooMany,
    /// A value is not of the right type.
    TypeInvalid,
}

/// One problem.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What kind of problem.
    pub reason: Reason,
    /// The field's path.
    pub field: String,
    /// What it says, without the field.
    pub message: String,
}

impl Problem {
    /// The problem as a cause of a `Status`.
    pub fn cause(&self) -> Value {
        let reason = match self.reason {
            Reason::Required => "FieldValueRequired",
            Reason::Invalid => "FieldValueInvalid",
            Reason::NotSupported => "FieldValueNotSupported",
            Reason::Forbidden => "FieldValueForbidden",
            Reason::Duplicate => "FieldValueDuplicate",
            Reason::NotFound => "FieldValueNotFound",
            Reason::TooLong => "FieldValueTooLong",
            Reason::TooMany => "FieldValueTooMany",
            Reason::TypeInvalid => "FieldValueTypeInvalid",
        };
        json!({"reason": reason, "message": self.message, "field": self.field})
    }
}

/// Problems in the order found.
#[derive(Debug, Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    fn add(&mut self, reason: Reason, field: &str, message: String) {
        self.0.push(Problem {
            reason,
            field: field.to_owned(),
            message,
        });
    }

    /// A field must be set.
    pub fn required(&mut self, field: &str, detail: &str) {
        self.add(Reason::Required, field, with_detail("Required value", detail));
    }

    /// A value is not right.
    pub fn invalid(&mut self, field: &str, value: &Value, detail: &str) {
        self.add(
            Reason::Invalid,
            field,
            with_detail(&format!("Invalid value: {value}"), detail),
        );
    }

    /// A list of texts is not right; clients know it printed like this.
    pub fn invalid_list(&mut self, field: &str, list: &Value, detail: &str) {
        let texts = list.as_array().into_iter().flatten().map(Value::to_string);
        let shown = format!("[]string{{{}}}", texts.collect::<Vec<_>>().join(", "));
        self.add(
            Reason::Invalid,
            field,
            with_detail(&format!("Invalid value: {shown}"), detail),
        );
    }

    /// A value is none of those known.
    pub fn not_supported(&mut self, field: &str, value: &Value, known: &[&str]) {
        let known: Vec<_> = known.iter().map(|k| format!("{k:?}")).collect();
        let message = format!(
            "Unsupported value: {value}: supported values: {}",
            known.join(", ")
        );
        self.add(Reason::NotSupported, field, message);
    }

    /// A field may not be set or changed.
    pub fn forbidden(&mut self, field: &str, detail: &str) {
        self.add(Reason::Forbidden, field, with_detail("Forbidden", detail));
    }

    /// A value names what is not there.
    pub fn not_found(&mut self, field: &str, value: &Value) {
        self.add(Reason::NotFound, field, format!("Not found: {value}"));
    }

    /// A list is too long.
    pub fn too_many(&mut self, field: &str, have: usize, most: usize) {
        let message = format!("Too many: {have}: must have at most {most} items");
        self.add(Reason::TooMany, field, message);
    }

    /// A value is there twice.
    pub fn duplicate(&mut self, field: &str, value: &Value) {
        self.add(Reason::Duplicate, field, format!("Duplicate value: {value}"));
    }
}

fn with_detail(head: &str, detail: &str) -> String {
    if detail.is_empty() {
        head.to_owned()
    } else {
        format!("{head}: {detail}")
    }
}

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

const DNS_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
     character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
     '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn is_label(text: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if edge(*first) && edge(*last))
        && bytes.iter().all(|c| edge(*c) || *c == b'-')
}

/// What is wrong with a DNS subdomain: the names of most objects.
pub(crate) fn subdomain_problem(name: &str) -> Option<String> {
    if name.len() > 253 {
        return Some("must be no more than 253 bytes".to_owned());
    }
    (!name.split('.').all(is_label)).then(|| SUBDOMAIN.to_owned())
}

/// What is wrong with a DNS label: the names of namespaces, containers, volumes.
pub(crate) fn label_problem(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    (!is_label(name)).then(|| LABEL.to_owned())
}

/// What is wrong with the name of a Service, which begins with a letter.
pub(crate) fn dns_1035_problem(name: &str) -> Option<String> {
    if name.len() > 63 {
        return Some("must be no more than 63 bytes".to_owned());
    }
    let fine = is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase());
    (!fine).then(|| DNS_1035.to_owned())
}

/// Names of kinds that only have to be safe in a path.
pub(crate) fn path_segment_problem(name: &str) -> Option<String> {
    if name == "." || name == ".." {
        return Some(format!("may not be '{name}'"));
    }
    ['/', '%']
        .iter()
        .find(|c| name.contains(**c))
        .map(|c| format!("may not contain '{c}'"))
}

/// Checks labels, annotations, finalizers and owners.
pub(crate) fn metadata(metadata: &Value, problems: &mut Problems) {
    labels(&metadata["labels"], "metadata.labels", problems);
    if let Some(annotations) = metadata["annotations"].as_object() {
        let mut size = 0;
        for (key, value) in annotations {
            size += key.len() + value.as_str().map_or(0, str::len);
            if let Some(problem) = label_key_problem(&key.to_lowercase()) {
                problems.invalid("metadata.annotations", &json!(key), &problem);
            }
        }
        if size > 256 << 10 {
            let message = "Too long: may not be more than 262144 bytes";
            problems.add(Reason::Invalid, "metadata.annotations", message.to_owned());
        }
    }
    let mut controllers = 0;
    for (index, owner) in metadata["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().unwrap_or_default().is_empty() {
                problems.invalid(
                    &format!("metadata.ownerReferences[{index}].{key}"),
                    &json!(""),
                    "must not be empty",
                );
            }
        }
        controllers += u32::from(owner["controller"] == true);
    }
    if controllers > 1 {
        problems.invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            "Only one reference can have Controller set to true",
        );
    }
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten() {
        if let Some(problem) = label_key_problem(finalizer.as_str().unwrap_or_default()) {
            problems.invalid("metadata.finalizers", finalizer, &problem);
        }
    }
}

/// Checks labels.
pub(crate) fn labels(labels: &Value, at: &str, problems: &mut Problems) {
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(problem) = label_key_problem(key) {
            problems.invalid(at, &json!(key), &problem);
        }
        if let Some(problem) = label_value_problem(text(value)) {
            problems.invalid(at, value, &problem);
        }
    }
}

/// Checks a label selector.
pub(crate) fn label_selector(selector: &Value, at: &str, problems: &mut Problems) {
    labels(&selector["matchLabels"], &format!("{at}.matchLabels"), problems);
    for (field, term) in items(&selector["matchExpressions"], &format!("{at}.matchExpressions")) {
        let values = term["values"].as_array().map_or(&[][..], Vec::as_slice);
        match text(&term["operator"]) {
            "In" | "NotIn" if values.is_empty() => problems.required(
                &format!("{field}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            ),
            "Exists" | "DoesNotExist" if !values.is_empty() => problems.forbidden(
                &format!("{field}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => problems.invalid(
                &format!("{field}.operator"),
                &term["operator"],
                "not a valid selector operator",
            ),
        }
        if let Some(problem) = label_key_problem(text(&term["key"])) {
            problems.invalid(&format!("{field}.key"), &json!(text(&term["key"])), &problem);
        }
        for (field, value) in items(&term["values"], &format!("{field}.values")) {
            if let Some(problem) = label_value_problem(text(value)) {
                problems.invalid(&field, value, &problem);
            }
        }
    }
}

/// Checks that a number is not negative.
pub(crate) fn non_negative(object: &Value, path: &str, problems: &mut Problems) {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    at_least_zero(value, path, problems);
}

/// Checks that a value is not a negative number.
fn at_least_zero(value: &Value, field: &str, problems: &mut Problems) {
    if value.as_i64().is_some_and(|number| number < 0) {
        problems.invalid(field, value, "must be greater than or equal to 0");
    }
}

/// Checks a number, or a share such as `25%`.
pub(crate) fn count_or_percent(value: &Value, field: &str, problems: &mut Problems) {
    if let Some(text) = value.as_str() {
        let digits = text.strip_suffix('%').unwrap_or_default();
        if digits.is_empty() || !digits.bytes().all(|c| c.is_ascii_digit()) {
            let detail = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used \
                          for validation is '[0-9]+%')";
            problems.invalid(field, value, detail);
        }
    } else {
        at_least_zero(value, field, problems);
    }
}

/// Checks that a share is not more than all.
pub(crate) fn percent_at_most_100(value: &Value, field: &str, problems: &mut Problems) {
    let percent = value
        .as_str()
        .and_then(|text| text.strip_suffix('%')?.parse::<u64>().ok());
    if percent.is_some_and(|percent| percent > 100) {
        problems.invalid(field, value, "must not be greater than 100%");
    }
}

/// Checks that a field has not changed.
pub(crate) fn immutable(new: &Value, old: Option<&Value>, path: &str, problems: &mut Problems) {
    let Some(old) = old else { return };
    let at = |object| {
        path.split('.')
            .fold(object, |value: &Value, part| &value[part])
            .clone()
    };
    let (new, old) = (at(new), at(old));
    if new != old {
        problems.invalid(path, &new, "field is immutable");
    }
}

/// The text of a value; absent and other than text is empty.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn is_set(value: &Value) -> bool {
    !text(value).is_empty()
}

/// The items of a list with their paths.
fn items<'a>(list: &'a Value, at: &str) -> impl Iterator<Item = (String, &'a Value)> {
    let items = list.as_array().into_iter().flatten().enumerate();
    items.map(move |(index, item)| (format!("{at}[{index}]"), item))
}

/// A name that must be there, a DNS label, and not among those before; it joins them.
fn name_in<'a>(name: &'a Value, field: &str, before: &mut BTreeSet<&'a str>, problems: &mut Problems) {
    if !is_set(name) {
        problems.required(field, "");
    } else if let Some(problem) = label_problem(text(name)) {
        problems.invalid(field, name, &problem);
    } else if !before.insert(text(name)) {
        problems.duplicate(field, name);
    }
}

fn supported(object: &Value, at: &str, key: &str, known: &[&str], problems: &mut Problems) {
    if let Some(value) = object[key].as_str()
        && !known.contains(&value)
    {
        let field = if at.is_empty() {
            key.to_owned()
        } else {
            format!("{at}.{key}")
        };
        problems.not_supported(&field, &object[key], known);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a check says of an object.
    pub(super) fn said(
        check: fn(&Value, Option<&Value>, &mut Problems),
        object: &Value,
        old: Option<&Value>,
    ) -> Vec<String> {
        let mut problems = Problems::default();
        check(object, old, &mut problems);
        let texts = problems
            .0
            .into_iter()
            .map(|problem| format!("{}: {}", problem.field, problem.message));
        texts.collect()
    }

    #[test]
    fn label_selectors_are_checked_as_kubernetes_does() {
        let check = |object: &Value, _: Option<&Value>, problems: &mut Problems| {
            label_selector(object, "s", problems);
        };
        for (term, expected) in [
            (
                json!({"key": "a", "operator": "In"}),
                "s.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            ),
            (
                json!({"key": "a", "operator": "Exists", "values": ["b"]}),
                "s.matchExpressions[0].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            (
                json!({"key": "a", "operator": "Gt", "values": ["1"]}),
                "s.matchExpressions[0].operator: Invalid value: \"Gt\": not a valid selector operator",
            ),
        ] {
            assert_eq!(
                said(check, &json!({"matchExpressions": [term]}), None),
                [expected]
            );
        }
    }
}
