//! apiextensions.k8s.io/v1: CustomResourceDefinitions.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, NAME, Problems, Resource, Subresource, row, text};
use crate::custom::structural;

pub(super) const RESOURCES: &[Resource] = &[Resource {
    short_names: &["crd", "crds"],
    categories: &["api-extensions"],
    namespaced: false,
    subresources: &[Subresource::Status],
    columns: &[
        NAME,
        Column {
            kind: "date",
            ..text("Created At")
        },
    ],
    cells,
    validate,
    generation: true,
    ..row(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        ("customresourcedefinitions", "customresourcedefinition"),
        crate::custom::DEFINITIONS,
    )
}];

fn cells(object: &Value, _now: Timestamp) -> Vec<Value> {
    let metadata = &object["metadata"];
    vec![metadata["name"].clone(), metadata["creationTimestamp"].clone()]
}

fn validate(object: &Value, old: Option<&Value>, problems: &mut Problems) {
    structural::definition(object, old, problems);
}
