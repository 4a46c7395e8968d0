//! What is wrong with a definition: names, versions, and schemas that are not structural.

mod walk;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use self::walk::schema;
use super::json_path::JsonPath;
use super::schema::{Schema, Type};
use super::{has_condition, validate};
use crate::resources::{Problem, Problems, Reason, dns_1035_problem, immutable, subdomain_problem};

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
    versions(object, old, problems);
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

fn names(names: &Value, problems: &mut Problems) {
    for key in ["plural", "singular", "kind", "listKind"] {
        let at = format!("spec.names.{key}");
        let name = text(&names[key]);
        let camel = matches!(key, "kind" | "listKind");
        if name.is_empty() {
            problems.required(&at, "");
        } else if camel && let Some(problem) = dns_1035_problem(&name.to_lowercase()) {
            let detail = format!("may have mixed case, but should otherwise match: {problem}");
            problems.invalid(&at, &names[key], &detail);
        } else if !camel && let Some(problem) = dns_1035_problem(name) {
            problems.invalid(&at, &names[key], &problem);
        }
    }
    for key in ["shortNames", "categories"] {
        for (index, name) in list(&names[key]).enumerate() {
            if let Some(problem) = dns_1035_problem(text(name)) {
                problems.invalid(&format!("spec.names.{key}[{index}]"), name, &problem);
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

fn versions(definition: &Value, old: Option<&Value>, problems: &mut Problems) {
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
        if let Some(problem) = dns_1035_problem(name) {
            problems.invalid(&format!("{at}.name"), &version["name"], &problem);
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
        let mut before = old.into_iter().flat_map(|old| list(&old["spec"]["versions"]));
        let known =
            before.any(|before| before["name"] == version["name"] && before["schema"] == version["schema"]);
        schema(&version["schema"], &format!("{at}.schema"), known, problems);
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

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

pub(super) fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

#[cfg(test)]
mod tests;
