//! The OpenAPI documents of custom resources: their own schemas, with what the server adds to every object.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::CustomResource;
use crate::schema::openapi::{Document, Served, add_object_meta, add_paths, whole};

/// One document for each group version.
pub(super) fn documents(resources: &[Arc<CustomResource>]) -> BTreeMap<String, Document> {
    let mut by_path: BTreeMap<String, Vec<&CustomResource>> = BTreeMap::new();
    for resource in resources {
        let path = format!("apis/{}", resource.row.api_version());
        by_path.entry(path).or_default().push(resource);
    }
    by_path
        .into_iter()
        .map(|(path, resources)| {
            let document = Document::new(&document(&path, &resources));
            (path, document)
        })
        .collect()
}

fn document(path: &str, resources: &[&CustomResource]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    let metadata = add_object_meta(&mut schemas);
    let list_metadata = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
    schemas.insert(
        list_metadata.to_owned(),
        json!({"type": "object", "properties": {
            "continue": {"type": "string"}, "remainingItemCount": {"type": "integer", "format": "int64"},
            "resourceVersion": {"type": "string"}, "selfLink": {"type": "string"},
        }}),
    );
    for resource in resources {
        let row = &resource.row;
        let (name, list_name) = (schema_name(row.group, row.version, row.kind), {
            schema_name(row.group, row.version, resource.list_kind())
        });
        let gvk = json!({"group": row.group, "version": row.version, "kind": row.kind});
        schemas.insert(name.clone(), object(resource, &metadata, &gvk));
        let reference = json!({"$ref": format!("#/components/schemas/{name}")});
        let list_gvk = json!([{"group": row.group, "version": row.version, "kind": resource.list_kind()}]);
        schemas.insert(
            list_name.clone(),
            json!({
                "type": "object", "required": ["items"], "x-kubernetes-group-version-kind": list_gvk,
                "properties": {
                    "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                    "items": {"type": "array", "items": reference},
                    "metadata": {"$ref": format!("#/components/schemas/{list_metadata}")},
                },
            }),
        );
        let served = Served {
            plural: row.plural,
            namespaced: row.namespaced,
            schema: &name,
            list: Some(&list_name),
            patches: &[
                "application/apply-patch+yaml",
                "application/json-patch+json",
                "application/merge-patch+json",
            ],
        };
        add_paths(path, &served, &gvk, &mut paths);
    }
    whole(paths, schemas)
}

/// `example.com/v1` CronTab is `com.example.v1.CronTab`.
fn schema_name(group: &str, version: &str, kind: &str) -> String {
    let mut parts: Vec<_> = group.split('.').rev().collect();
    parts.extend([version, kind]);
    parts.join(".")
}

fn object(resource: &CustomResource, metadata: &Value, gvk: &Value) -> Value {
    let mut schema = resource.version().open_api.clone();
    if !schema.is_object() {
        schema = json!({"type": "object"});
    }
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    let properties = &mut schema["properties"];
    for name in ["apiVersion", "kind"] {
        properties[name] = json!({"type": "string"});
    }
    properties["metadata"] = metadata.clone();
    schema["x-kubernetes-group-version-kind"] = json!([gvk]);
    schema
}
