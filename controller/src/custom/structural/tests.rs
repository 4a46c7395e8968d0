//! Definitions that are refused, and what is said of them.

use serde_json::{Value, json};

use super::*;

fn good() -> Value {
    json!({
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "conversion": {"strategy": "None"},
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "default": 1},
                        "percent": {"x-kubernetes-int-or-string": true,
                            "anyOf": [{"type": "integer"}, {"type": "string"}]},
                        "ports": {"type": "array", "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["port"], "items": {"type": "object", "required": ["port"],
                                "properties": {"port": {"type": "integer"}}}},
                        "labels": {"type": "object", "additionalProperties": {"type": "string"}}},
                        "anyOf": [{"required": ["size"]}, {"properties": {"size": {"minimum": 1}}}]}}}},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.size", "statusReplicasPath": ".status.size"}},
                "selectableFields": [{"jsonPath": ".spec.size"}],
                "additionalPrinterColumns": [{"name": "Size", "type": "integer", "jsonPath": ".spec.size"}]}],
        },
    })
}

fn problems(object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut problems = Problems::default();
    definition(object, old, &mut problems);
    let told = problems.0.iter();
    told.map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect()
}

const SCHEMA: &str = "spec.versions[0].schema.openAPIV3Schema";

/// The problems of the good definition with one value changed.
fn changed(pointer: &str, value: Value) -> Vec<String> {
    let mut object = good();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = object.pointer_mut(parent).expect(pointer);
    match key.parse::<usize>() {
        Ok(index) => parent[index] = value,
        Err(_) => parent[key.replace("~1", "/")] = value,
    }
    problems(&object, None)
}

#[test]
fn a_good_definition_passes() {
    assert_eq!(problems(&good(), None), Vec::<String>::new());
    assert_eq!(problems(&good(), Some(&good())), Vec::<String>::new());
}

#[test]
fn names_and_versions_are_checked() {
    for (pointer, value, told) in [
        (
            "/metadata/name",
            json!("x.example.com"),
            "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group",
        ),
        ("/spec/scope", json!(""), "spec.scope: Required value"),
        (
            "/spec/scope",
            json!("All"),
            "spec.scope: Unsupported value: \"All\": supported values: \"Cluster\", \"Namespaced\"",
        ),
        (
            "/spec/preserveUnknownFields",
            json!(true),
            "spec.preserveUnknownFields: Invalid value: true: must be false",
        ),
        (
            "/spec/conversion/strategy",
            json!("Webhook"),
            "spec.conversion.strategy: Unsupported value: \"Webhook\": supported values: \"None\"",
        ),
        (
            "/spec/names/listKind",
            json!("Widget"),
            "spec.names.listKind: Invalid value: \"Widget\": kind and listKind may not be the same",
        ),
        (
            "/spec/versions/0/schema",
            Value::Null,
            "spec.versions[0].schema.openAPIV3Schema: Required value: schemas are required",
        ),
        (
            "/spec/versions/0/subresources/scale/specReplicasPath",
            json!(".status.size"),
            "spec.versions[0].subresources.scale.specReplicasPath: Invalid value: \".status.size\": should be a json path \
             under .spec",
        ),
        (
            "/spec/versions/0/additionalPrinterColumns/0/type",
            json!("text"),
            "spec.versions[0].additionalPrinterColumns[0].type: Invalid value: \"text\": must be one of \
             boolean,date,integer,number,string",
        ),
        (
            "/spec/versions/0/selectableFields/0/jsonPath",
            json!(".spec.none"),
            "spec.versions[0].selectableFields[0].jsonPath: Invalid value: \".spec.none\": is an invalid path: does not refer \
             to a valid field",
        ),
        (
            "/spec/versions",
            json!([]),
            "spec.versions: Required value: must have at least one version",
        ),
    ] {
        let found = changed(pointer, value);
        assert!(found.contains(&told.to_owned()), "{pointer}: {found:?}");
    }
    let found = changed("/spec/versions/0/storage", json!(false));
    assert!(
        found[0].ends_with("must have exactly one version marked as storage version"),
        "{found:?}"
    );
    let mut protected = good();
    protected["metadata"]["name"] = json!("widgets.x.k8s.io");
    protected["spec"]["group"] = json!("x.k8s.io");
    assert!(
        problems(&protected, None)[0]
            .starts_with("metadata.annotations[api-approved.kubernetes.io]: Required")
    );
    protected["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "unapproved, experimental"});
    assert_eq!(problems(&protected, None), Vec::<String>::new());
}

#[test]
fn schemas_must_be_structural() {
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec";
    for (at, value, told) in [
        (
            "/properties/size",
            json!({}),
            ".properties[spec].properties[size].type: Required value: must not be empty for specified object fields",
        ),
        (
            "/properties/size",
            json!({"type": "float"}),
            ".properties[spec].properties[size].type: Unsupported value: \"float\": supported values: \"array\", \
             \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            "/properties/size",
            json!({"type": "integer", "default": "x"}),
            ".properties[spec].properties[size].default: Invalid value: \"string\": \
             spec.versions[0].schema.openAPIV3Schema.properties[spec].properties[size].default in body must be of type \
             integer: \"string\"",
        ),
        (
            "/properties/size",
            json!({"type": "array"}),
            ".properties[spec].properties[size].items: Required value: must be specified",
        ),
        (
            "/properties/size",
            json!({"type": "string", "anyOf": [{"type": "string", "description": "x"}]}),
            ".properties[spec].properties[size].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            "/anyOf",
            json!([{"properties": {"other": {"minimum": 1}}}]),
            ".properties[spec].properties[other]: Required value: because it is defined in anyOf[0].properties[other]",
        ),
        (
            "/additionalProperties",
            json!({"type": "string"}),
            ".properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            "/$ref",
            json!("#/x"),
            ".properties[spec].$ref: Forbidden: $ref is not supported",
        ),
        (
            "/x-kubernetes-preserve-unknown-fields",
            json!(false),
            ".properties[spec].x-kubernetes-preserve-unknown-fields: Invalid value: false: must be true or undefined",
        ),
        (
            "/properties/ports/x-kubernetes-list-map-keys",
            json!(["none"]),
            ".properties[spec].properties[ports].x-kubernetes-list-map-keys[0]: Invalid value: \"none\": entries must all be \
             names of item properties",
        ),
        (
            "/properties/ports/items/required",
            json!([]),
            ".properties[spec].properties[ports].items.properties[port].default: Required value: this property is in \
             x-kubernetes-list-map-keys, so it must have a default or be a required property",
        ),
        (
            "/x-kubernetes-list-type",
            json!("set"),
            ".properties[spec].type: Invalid value: \"object\": must be array if x-kubernetes-list-type is specified",
        ),
    ] {
        let found = changed(&format!("{spec}{at}"), value);
        assert!(found.contains(&format!("{SCHEMA}{told}")), "{at}: {found:#?}");
    }
    let found = changed(
        &format!("{spec}/properties/size"),
        json!({"type": "string", "pattern": "("}),
    );
    assert!(
        found[0].contains("must be a valid regular expression, but isn't"),
        "{found:?}"
    );
    let found = changed(
        "/spec/versions/0/schema/openAPIV3Schema/properties/metadata",
        json!({"type": "object", "properties": {"labels": {"type": "object"}}}),
    );
    assert!(found[0].contains("metadata is implicitly specified"), "{found:?}");
}

#[test]
fn what_is_served_does_not_move() {
    let mut old = good();
    old["status"] =
        json!({"conditions": [{"type": "Established", "status": "True"}], "storedVersions": ["v1"]});
    let mut new = old.clone();
    new["spec"]["scope"] = json!("Cluster");
    new["spec"]["versions"][0]["name"] = json!("v2");
    let found = problems(&new, Some(&old));
    assert_eq!(
        found[0],
        "spec.scope: Invalid value: \"Cluster\": field is immutable"
    );
    assert!(
        found[1].starts_with("status.storedVersions[0]: Invalid value: \"v1\": missing from spec.versions;"),
        "{found:?}"
    );
}

#[test]
fn depth_has_an_end() {
    let mut deep = json!({"type": "string"});
    for _ in 0..400 {
        deep = json!({"type": "object", "properties": {"a": deep}});
    }
    let found = changed("/spec/versions/0/schema/openAPIV3Schema", deep);
    assert!(
        found
            .iter()
            .any(|told| told.ends_with("the schema is nested too deeply")),
        "{found:?}"
    );
}
