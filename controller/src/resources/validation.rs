//! What is wrong with an object, in the words of a Kubernetes server, and the checks that several kinds share.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::selector::{label_key_problem, label_value_problem};

mod container;
mod pod;
mod volume;

pub(crate) use pod::pod_spec;

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
    if let Some(labels) = metadata["labels"].as_object() {
        for (key, value) in labels {
            if let Some(problem) = label_key_problem(key) {
                problems.invalid("metadata.labels", &json!(key), &problem);
            }
            if let Some(problem) = label_value_problem(value.as_str().unwrap_or_default()) {
                problems.invalid("metadata.labels", value, &problem);
            }
        }
    }
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

/// Checks a label selector of a workload and that it selects the workload's own pods.
pub(crate) fn workload_selector(spec: &Value, problems: &mut Problems) {
    use crate::selector::LabelSelector;
    let selector = &spec["selector"];
    if selector.is_null() {
        problems.required("spec.selector", "");
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    match LabelSelector::from_value(selector) {
        Err(error) => problems.invalid("spec.selector", selector, &error.to_string()),
        Ok(selector_) if selector_.is_everything() => {
            problems.invalid(
                "spec.selector",
                selector,
                "empty selector is invalid for deployment",
            );
        }
        Ok(selector_) if !selector_.matches(labels) => problems.invalid(
            "spec.template.metadata.labels",
            labels,
            "`selector` does not match template `labels`",
        ),
        Ok(_) => {}
    }
}

/// Checks that a number is not negative.
pub(crate) fn non_negative(object: &Value, path: &str, problems: &mut Problems) {
    let value = path.split('.').fold(object, |value, part| &value[part]);
    if value.as_i64().is_some_and(|number| number < 0) {
        problems.invalid(path, value, "must be greater than or equal to 0");
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
        problems.not_supported(&format!("{at}.{key}"), &object[key], known);
    }
}
