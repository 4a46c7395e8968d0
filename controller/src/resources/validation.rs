//! What is wrong with an object, in the words of a Kubernetes server, and the checks that several kinds share.

use serde_json::{Value, json};

use crate::selector::{label_key_problem, label_value_problem};

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

/// Checks a pod's spec, in a pod or in a template; `at` is its path.
pub(crate) fn pod_spec(spec: &Value, at: &str, problems: &mut Problems) {
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        problems.required(&format!("{at}.containers"), "");
    }
    let mut volumes = Vec::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{at}.volumes[{index}].name");
        name_in(&volume["name"], &field, &volumes, problems);
        volumes.push(volume["name"].clone());
    }
    let mut names = Vec::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let field = format!("{at}.{list}[{index}]");
            name_in(&container["name"], &format!("{field}.name"), &names, problems);
            names.push(container["name"].clone());
            if container["image"].as_str().unwrap_or_default().is_empty() && at != "spec.template.spec" {
                problems.required(&format!("{field}.image"), "");
            } else if container["image"].as_str().unwrap_or_default().is_empty() {
                problems.required(&format!("{field}.image"), "");
            }
            for (number, mount) in container["volumeMounts"]
                .as_array()
                .into_iter()
                .flatten()
                .enumerate()
            {
                let field = format!("{field}.volumeMounts[{number}].name");
                if !volumes.contains(&mount["name"]) {
                    let message = format!("Not found: {}", mount["name"]);
                    problems.add(Reason::Invalid, &field, message);
                }
            }
            for (number, port) in container["ports"].as_array().into_iter().flatten().enumerate() {
                let value = port["containerPort"].as_i64().unwrap_or_default();
                if !(1..=65535).contains(&value) {
                    let field = format!("{field}.ports[{number}].containerPort");
                    problems.invalid(&field, &json!(value), "must be between 1 and 65535, inclusive");
                }
            }
            resources(&container["resources"], &format!("{field}.resources"), problems);
        }
    }
    supported(
        spec,
        at,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        problems,
    );
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    supported(spec, at, "dnsPolicy", &policies, problems);
}

fn resources(resources: &Value, at: &str, problems: &mut Problems) {
    use crate::quantity::Quantity;
    for list in ["limits", "requests"] {
        for (name, value) in resources[list].as_object().into_iter().flatten() {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let field = format!("{at}.{list}[{name}]");
            match text.parse::<Quantity>() {
                Ok(quantity) if quantity < Quantity::ZERO => {
                    problems.invalid(&field, value, "must be greater than or equal to 0");
                }
                Ok(quantity) if list == "requests" => {
                    let limit = &resources["limits"][name];
                    let limit = limit.as_str().and_then(|limit| limit.parse::<Quantity>().ok());
                    if let Some(limit) = limit.filter(|limit| quantity > *limit) {
                        let detail = format!("must be less than or equal to {name} limit of {limit}");
                        problems.invalid(&format!("{at}.requests"), value, &detail);
                    }
                }
                Ok(_) => {}
                Err(error) => problems.invalid(&field, value, &error.to_string()),
            }
        }
    }
}

fn name_in(name: &Value, field: &str, before: &[Value], problems: &mut Problems) {
    let text = name.as_str().unwrap_or_default();
    if text.is_empty() {
        problems.required(field, "");
    } else if let Some(problem) = label_problem(text) {
        problems.invalid(field, name, &problem);
    } else if before.contains(name) {
        problems.duplicate(field, name);
    }
}

fn supported(spec: &Value, at: &str, key: &str, known: &[&str], problems: &mut Problems) {
    if let Some(value) = spec[key].as_str()
        && !known.contains(&value)
    {
        problems.not_supported(&format!("{at}.{key}"), &spec[key], known);
    }
}
