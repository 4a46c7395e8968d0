//! The OpenAPI documents, generated from the table of facts.
//!
//! Clients use them to check fields before they send an object, to compute patches (merge keys), and to explain kinds.
//! There are no descriptions in them: the facts have none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::KindSchema;
use super::facts::{Field, KindEntry, ListType, Shape, TypeDef, table};

/// The content type of [`v2_stub`].
pub const V2_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Kinds that are bodies of requests or answers only, and so have no path of their own.
const WITHOUT_PATH: &[&str] = &[
    "DeleteOptions",
    "Status",
    "PodStatusResult",
    "RangeAllocation",
    "Scale",
    "Eviction",
    "TokenRequest",
];

/// One v3 document, ready to be served.
#[derive(Clone, Debug)]
pub struct Document {
    /// The JSON text.
    pub body: bytes::Bytes,
    /// Hex digest of the text, for `?hash=` and the ETag.
    pub hash: String,
}

/// The smallest OpenAPI v2 document that clients accept, in protobuf.
pub fn v2_stub() -> &'static [u8] {
    // Document { swagger: "2.0", info: { title: "Kubernetes", version: "v1.33.0" }, paths: {}, definitions: {} }
    b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.33.0\x42\x00\x4a\x00"
}

/// The v3 index over `group_versions` (`api/v1`, `apis/apps/v1`, …): each with the path and hash of its document.
/// Group versions without a document are left out.
pub fn v3_root<'a>(
    group_versions: impl IntoIterator<Item = &'a str>,
    find: impl Fn(&str) -> Option<Document>,
) -> Value {
    let mut paths = Map::new();
    for path in group_versions {
        if let Some(document) = find(path) {
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            paths.insert(path.to_owned(), json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// The v3 document of `api/v1` or `apis/<group>/<version>`; `None` where the table has no kind.
pub fn v3_group(path: &str) -> Option<Document> {
    static DOCUMENTS: LazyLock<BTreeMap<String, Document>> = LazyLock::new(documents);
    DOCUMENTS.get(path).cloned()
}

fn documents() -> BTreeMap<String, Document> {
    let mut by_path: BTreeMap<String, Vec<&KindEntry>> = BTreeMap::new();
    for kind in table().kinds() {
        let path = match kind.group {
            "" => format!("api/{}", kind.version),
            group => format!("apis/{group}/{}", kind.version),
        };
        by_path.entry(path).or_default().push(kind);
    }
    by_path
        .into_iter()
        .map(|(path, kinds)| {
            let document = Document::new(&document(&path, &kinds));
            (path, document)
        })
        .collect()
}

fn document(path: &str, kinds: &[&KindEntry]) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    let mut seen = BTreeSet::new();
    for kind in kinds {
        let definition = kind.root.definition();
        add_schema(definition, &mut seen, &mut schemas);
        let gvk = json!({ "group": kind.group, "version": kind.version, "kind": kind.kind });
        if let Some(Value::Object(schema)) = schemas.get_mut(&schema_name(definition.name)) {
            schema.insert("x-kubernetes-group-version-kind".to_owned(), json!([gvk]));
        }
        if !WITHOUT_PATH.contains(&kind.kind) {
            let served = Served {
                plural: &plural(kind.kind),
                namespaced: !kind.cluster_scoped,
                schema: &schema_name(definition.name),
                patches: &[
                    "application/apply-patch+yaml",
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ],
                list: None,
            };
            add_paths(path, &served, &gvk, &mut paths);
        }
    }
    whole(paths, schemas)
}

/// A document made of its parts.
pub(crate) fn whole(paths: Map<String, Value>, schemas: Map<String, Value>) -> Value {
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

impl Document {
    /// A document, ready to be served.
    pub(crate) fn new(value: &Value) -> Self {
        let body = value.to_string();
        let hash = hex::encode_upper(&Sha256::digest(body.as_bytes())[..16]);
        Self {
            body: body.into(),
            hash,
        }
    }
}

/// A resource as far as its paths go.
pub(crate) struct Served<'a> {
    pub(crate) plural: &'a str,
    pub(crate) namespaced: bool,
    /// The name of its schema.
    pub(crate) schema: &'a str,
    /// The name of the schema of its lists, if there is one.
    pub(crate) list: Option<&'a str>,
    /// The kinds of patches it takes.
    pub(crate) patches: &'a [&'a str],
}

/// The schema of all objects' metadata, and whatever it refers to.
pub(crate) fn add_object_meta(schemas: &mut Map<String, Value>) -> Value {
    let root = KindSchema::object_meta().root();
    add_reached(root, &mut BTreeSet::new(), schemas);
    shape_schema(root)
}

/// The paths of a resource below `path`, such as `apis/apps/v1`.
pub(crate) fn add_paths(path: &str, served: &Served<'_>, gvk: &Value, paths: &mut Map<String, Value>) {
    let resource = served.plural;
    let namespaces = if served.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    let by_name = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let one = by_name(served.schema);
    let many = served.list.map_or_else(|| one.clone(), by_name);
    let query = |name: &str, value_type: &str| json!({ "name": name, "in": "query", "schema": { "type": value_type, "uniqueItems": true } });
    let in_path =
        |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
    let write = [
        query("dryRun", "string"),
        query("fieldManager", "string"),
        query("fieldValidation", "string"),
    ];
    let operation = |action: &str, parameters: &[Value], body: &[&str]| {
        let reference = if action == "list" { &many } else { &one };
        let mut operation = json!({
            "parameters": parameters,
            "responses": { "200": { "description": "OK", "content": { "application/json": { "schema": reference } } } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk,
        });
        if !body.is_empty() {
            let content: Map<String, Value> = body
                .iter()
                .map(|media| ((*media).to_owned(), json!({ "schema": reference })))
                .collect();
            operation["requestBody"] = json!({ "content": content, "required": true });
        }
        operation
    };
    let mut parameters = Vec::new();
    if served.namespaced {
        parameters.push(in_path("namespace"));
    }
    let collection = json!({
        "get": operation("list", &[query("labelSelector", "string"), query("fieldSelector", "string")], &[]),
        "post": operation("post", &write, &["application/json"]),
        "parameters": parameters,
    });
    paths.insert(format!("/{path}/{namespaces}{resource}"), collection);
    parameters.push(in_path("name"));
    let patch = [&write[..], &[query("force", "boolean")]].concat();
    let item = json!({
        "get": operation("get", &[], &[]),
        "put": operation("put", &write, &["application/json"]),
        "patch": operation("patch", &patch, served.patches),
        "delete": operation("delete", &[query("dryRun", "string")], &[]),
        "parameters": parameters,
    });
    paths.insert(format!("/{path}/{namespaces}{resource}/{{name}}"), item);
}

/// The resource name of a kind.
fn plural(kind: &str) -> String {
    let name = kind.to_lowercase();
    if name == "endpoints" {
        name
    } else if let Some(measured) = name.strip_suffix("metrics") {
        format!("{measured}s")
    } else if let Some(stem) = name.strip_suffix('y') {
        format!("{stem}ies")
    } else if name.ends_with('s') {
        format!("{name}es")
    } else {
        format!("{name}s")
    }
}

/// `core.v1.Pod` is `io.k8s.api.core.v1.Pod`.
fn schema_name(type_name: &str) -> String {
    match type_name.strip_prefix("meta.") {
        Some(rest) => format!("io.k8s.apimachinery.pkg.apis.meta.{rest}"),
        None => format!("io.k8s.api.{type_name}"),
    }
}

fn add_schema(definition: &TypeDef, seen: &mut BTreeSet<&'static str>, schemas: &mut Map<String, Value>) {
    if !seen.insert(definition.name) {
        return;
    }
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in definition.json_fields() {
        properties.insert(field.name.to_owned(), property(field));
        if field.required {
            required.push(field.name);
        }
        add_reached(field.shape, seen, schemas);
    }
    let mut schema = json!({ "type": "object" });
    if !properties.is_empty() {
        schema["properties"] = Value::Object(properties);
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if definition.atomic {
        schema["x-kubernetes-map-type"] = json!("atomic");
    }
    schemas.insert(schema_name(definition.name), schema);
}

fn add_reached(shape: Shape, seen: &mut BTreeSet<&'static str>, schemas: &mut Map<String, Value>) {
    match shape {
        Shape::Struct(id) => add_schema(id.definition(), seen, schemas),
        Shape::List(inner) | Shape::Map(inner) | Shape::Wrapped(inner) => add_reached(*inner, seen, schemas),
        Shape::Quantity => {
            let schema = json!({ "oneOf": [{ "type": "string" }, { "type": "number" }] });
            schemas.insert(QUANTITY.to_owned(), schema);
        }
        Shape::IntOrString => {
            let schema =
                json!({ "format": "int-or-string", "oneOf": [{ "type": "integer" }, { "type": "string" }] });
            schemas.insert(INT_OR_STRING.to_owned(), schema);
        }
        Shape::Time => {
            schemas.insert(
                schema_name("meta.v1.Time"),
                json!({ "type": "string", "format": "date-time" }),
            );
        }
        Shape::MicroTime => {
            schemas.insert(
                schema_name("meta.v1.MicroTime"),
                json!({ "type": "string", "format": "date-time" }),
            );
        }
        Shape::FieldsV1 => _ = schemas.insert(schema_name("meta.v1.FieldsV1"), json!({ "type": "object" })),
        Shape::Raw => _ = schemas.insert(RAW.to_owned(), json!({ "type": "object" })),
        Shape::Str | Shape::Bool | Shape::I32 | Shape::I64 | Shape::F64 | Shape::Bytes | Shape::Duration => {}
    }
}

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

fn property(field: &Field) -> Value {
    let mut property = shape_schema(field.shape);
    if field.patch.merge || field.patch.retain_keys {
        let parts = [
            ("merge", field.patch.merge),
            ("retainKeys", field.patch.retain_keys),
        ];
        let strategy: Vec<&str> = parts
            .into_iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| name)
            .collect();
        property["x-kubernetes-patch-strategy"] = json!(strategy.join(","));
    }
    if let Some(key) = field.merge_key {
        property["x-kubernetes-patch-merge-key"] = json!(key);
    }
    match &field.list_type {
        Some(ListType::Atomic) => property["x-kubernetes-list-type"] = json!("atomic"),
        Some(ListType::Set) => property["x-kubernetes-list-type"] = json!("set"),
        Some(ListType::Map(keys)) => {
            property["x-kubernetes-list-type"] = json!("map");
            property["x-kubernetes-list-map-keys"] = json!(keys);
        }
        None => {}
    }
    match field.atomic {
        Some(true) => property["x-kubernetes-map-type"] = json!("atomic"),
        Some(false) => property["x-kubernetes-map-type"] = json!("granular"),
        None => {}
    }
    if let Some(default) = &field.default {
        property["default"] = default.clone();
    }
    property
}

fn shape_schema(shape: Shape) -> Value {
    let by_name = |name: &str| json!({ "allOf": [{ "$ref": format!("#/components/schemas/{name}") }] });
    match shape {
        Shape::Str | Shape::Duration => json!({ "type": "string" }),
        Shape::Bool => json!({ "type": "boolean" }),
        Shape::I32 => json!({ "type": "integer", "format": "int32" }),
        Shape::I64 => json!({ "type": "integer", "format": "int64" }),
        Shape::F64 => json!({ "type": "number", "format": "double" }),
        Shape::Bytes => json!({ "type": "string", "format": "byte" }),
        Shape::Quantity => by_name(QUANTITY),
        Shape::IntOrString => by_name(INT_OR_STRING),
        Shape::Raw => by_name(RAW),
        Shape::Time => by_name(&schema_name("meta.v1.Time")),
        Shape::MicroTime => by_name(&schema_name("meta.v1.MicroTime")),
        Shape::FieldsV1 => by_name(&schema_name("meta.v1.FieldsV1")),
        Shape::Struct(id) => by_name(&schema_name(id.definition().name)),
        Shape::List(inner) => json!({ "type": "array", "items": shape_schema(*inner) }),
        Shape::Map(inner) => json!({ "type": "object", "additionalProperties": shape_schema(*inner) }),
        Shape::Wrapped(inner) => shape_schema(*inner),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(path: &str) -> Value {
        serde_json::from_slice(&v3_group(path).expect(path).body).expect("JSON")
    }

    #[test]
    fn documents_name_kinds_paths_and_keys() {
        let core = group("api/v1");
        let schemas = &core["components"]["schemas"];
        assert_eq!(
            schemas["io.k8s.api.core.v1.Pod"]["x-kubernetes-group-version-kind"],
            json!([{"group": "", "version": "v1", "kind": "Pod"}])
        );
        let ports = &schemas["io.k8s.api.core.v1.Container"]["properties"]["ports"];
        assert_eq!(
            ports["x-kubernetes-list-map-keys"],
            json!(["containerPort", "protocol"])
        );
        assert_eq!(ports["x-kubernetes-patch-merge-key"], "containerPort");
        let protocol = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"]["protocol"];
        assert_eq!(protocol, &json!({"type": "string", "default": "TCP"}));
        let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Pod");
        assert!(
            patch["parameters"]
                .as_array()
                .expect("list")
                .iter()
                .any(|p| p["name"] == "fieldValidation")
        );
        assert!(
            core["paths"].get("/api/v1/nodes/{name}").is_some(),
            "nodes have no namespace"
        );
        let networking = group("apis/networking.k8s.io/v1");
        for resource in [
            "ingressclasses",
            "namespaces/{namespace}/networkpolicies",
            "ipaddresses",
            "servicecidrs",
        ] {
            let path = format!("/apis/networking.k8s.io/v1/{resource}");
            assert!(networking["paths"].get(&path).is_some(), "{path}");
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(value: &Value, schemas: &Value) {
            match value {
                Value::Object(object) => {
                    if let Some(Value::String(target)) = object.get("$ref") {
                        let name = target.strip_prefix("#/components/schemas/").expect("local");
                        assert!(schemas.get(name).is_some(), "{name}");
                    }
                    object.values().for_each(|value| check(value, schemas));
                }
                Value::Array(items) => items.iter().for_each(|value| check(value, schemas)),
                _ => {}
            }
        }
        for kind in table().kinds() {
            let path = match kind.group {
                "" => format!("api/{}", kind.version),
                group => format!("apis/{group}/{}", kind.version),
            };
            let document = group(&path);
            check(&document, &document["components"]["schemas"]);
        }
    }

    #[test]
    fn the_index_has_what_there_is() {
        let root = v3_root(["api/v1", "apis/apps/v1", "apis/none/v1"], v3_group);
        let url = root["paths"]["apis/apps/v1"]["serverRelativeURL"]
            .as_str()
            .expect("listed");
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
        assert!(root["paths"].get("apis/none/v1").is_none());
        assert_eq!(v2_stub().len(), 32);
    }
}
