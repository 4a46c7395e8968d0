//! What is said about objects that do not fit.

use serde_json::{Value, json};

use super::*;

/// The problems of `spec` under the schema of one property.
fn check(schema: Value, spec: Value) -> Vec<String> {
    let schema = Schema::parse(&json!({"type": "object", "properties": {"spec": schema}}));
    let mut problems = Problems::default();
    object(&schema, &json!({"spec": spec}), None, &mut problems);
    let told = problems.0.iter();
    told.map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect()
}

#[test]
fn every_rule_says_what_it_wants() {
    for (schema, good, bad, told) in [
        (
            json!({"type": "integer"}),
            json!(1),
            json!("x"),
            "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "integer"}),
            json!(2.0),
            json!(1.5),
            "spec: Invalid value: \"number\": spec in body must be of type integer: \"number\"",
        ),
        (
            json!({"type": "string", "nullable": true}),
            Value::Null,
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type string: \"boolean\"",
        ),
        (
            json!({"type": "string"}),
            json!(""),
            Value::Null,
            "spec: Invalid value: \"null\": spec in body must be of type string: \"null\"",
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!("50%"),
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("b"),
            json!("c"),
            "spec: Unsupported value: \"c\": supported values: \"a\", \"b\"",
        ),
        (
            json!({"type": "integer", "maximum": 10}),
            json!(10),
            json!(15),
            "spec: Invalid value: 15: spec in body should be less than or equal to 10",
        ),
        (
            json!({"type": "integer", "minimum": 1, "exclusiveMinimum": true}),
            json!(2),
            json!(1),
            "spec: Invalid value: 1: spec in body should be greater than 1",
        ),
        (
            json!({"type": "number", "multipleOf": 0.5}),
            json!(1.5),
            json!(1.2),
            "spec: Invalid value: 1.2: spec in body should be a multiple of 0.5",
        ),
        (
            // As RE2 reads it: digits are ASCII's, and a brace that counts nothing is a brace.
            json!({"type": "string", "pattern": "^\\d{x}$"}),
            json!("1{x}"),
            json!("١{x}"),
            "spec: Invalid value: \"١{x}\": spec in body should match '^\\d{x}$'",
        ),
        (
            json!({"type": "string", "pattern": "^a+$"}),
            json!("aa"),
            json!("b"),
            "spec: Invalid value: \"b\": spec in body should match '^a+$'",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("ab"),
            json!("a"),
            "spec: Invalid value: \"a\": spec in body should be at least 2 chars long",
        ),
        (
            json!({"type": "string", "maxLength": 2}),
            json!("äö"),
            json!("abc"),
            "spec: Too long: may not be more than 2 bytes",
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("2020-01-01T00:00:00Z"),
            json!("today"),
            "spec: Invalid value: \"today\": spec in body must be of type date-time: \"today\"",
        ),
        (
            json!({"type": "array", "maxItems": 1, "items": {"type": "string"}}),
            json!(["a"]),
            json!(["a", "b"]),
            "spec: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "array", "minItems": 1, "items": {"type": "string"}}),
            json!(["a"]),
            json!([]),
            "spec: Invalid value: []: spec in body should have at least 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!(["a"]),
            json!(["a", 1]),
            "spec[1]: Invalid value: \"integer\": spec[1] in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
            json!(["a", "b"]),
            json!(["a", "a"]),
            "spec[1]: Duplicate value: \"a\"",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["p", "t"],
                "items": {"type": "object", "properties": {"p": {"type": "integer"},
                    "t": {"type": "string", "default": "TCP"}}}}),
            json!([{"p": 1}, {"p": 1, "t": "UDP"}]),
            json!([{"p": 1}, {"p": 1, "t": "TCP"}]),
            "spec[1]: Duplicate value: {\"p\":1,\"t\":\"TCP\"}",
        ),
        (
            json!({"type": "object", "required": ["a"], "properties": {"a": {"type": "string"}}}),
            json!({"a": "x"}),
            json!({}),
            "spec.a: Required value",
        ),
        (
            json!({"type": "object", "maxProperties": 1, "additionalProperties": {"type": "string"}}),
            json!({"a": "x"}),
            json!({"a": "x", "b": "y"}),
            "spec: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true,
                "x-kubernetes-preserve-unknown-fields": true}),
            json!({"apiVersion": "v1", "kind": "Pod"}),
            json!({"kind": "Pod"}),
            "spec.apiVersion: Required value: must not be empty",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "not": {"required": ["a", "b"]}}),
            json!({"a": "x"}),
            json!({"a": "x", "b": "y"}),
            "<nil>: Invalid value: \"\": \"spec\" must not validate the schema (not)",
        ),
        (
            json!({"type": "integer", "oneOf": [{"minimum": 5}, {"maximum": 7}]}),
            json!(1),
            json!(6),
            "<nil>: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid \
             alternatives",
        ),
    ] {
        assert_eq!(check(schema.clone(), good), Vec::<String>::new(), "{schema}");
        assert_eq!(check(schema.clone(), bad), [told], "{schema}");
    }
}

#[test]
fn combinations_say_which_rule_and_why() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}]});
    assert_eq!(check(schema.clone(), json!({"b": "x"})), Vec::<String>::new());
    assert_eq!(
        check(schema, json!({})),
        [
            "<nil>: Invalid value: \"\": \"spec\" must validate at least one schema (anyOf)",
            "spec.a: Required value"
        ]
    );
    let schema = json!({"type": "integer", "allOf": [{"minimum": 5}, {"maximum": 7}]});
    assert_eq!(check(schema.clone(), json!(6)), Vec::<String>::new());
    assert_eq!(
        check(schema, json!(8)),
        [
            "spec: Invalid value: 8: spec in body should be less than or equal to 7",
            "<nil>: Invalid value: \"\": \"spec\" must validate all the schemas (allOf)"
        ]
    );
}

#[test]
fn what_an_update_leaves_alone_is_not_held_against_it() {
    let schema = Schema::parse(
        &json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "small": {"type": "integer", "maximum": 3}, "other": {"type": "string"},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "properties": {"name": {"type": "string"},
                    "port": {"type": "integer", "maximum": 9}}}},
        }}}}),
    );
    let problems = |old: &Value, new: &Value| {
        let mut problems = Problems::default();
        object(&schema, new, Some(old), &mut problems);
        let fields = problems.0.into_iter().map(|problem| problem.field);
        fields.collect::<Vec<_>>()
    };
    let old = json!({"spec": {"small": 5, "ports": [{"name": "a", "port": 10}]}});
    let mut new = json!({"spec": {"small": 5, "other": "x",
        "ports": [{"name": "b", "port": 1}, {"name": "a", "port": 10}]}});
    assert_eq!(problems(&old, &new), Vec::<String>::new());
    new["spec"]["small"] = json!(4);
    new["spec"]["ports"][0]["port"] = json!(11);
    assert_eq!(problems(&old, &new), ["spec.ports[0].port", "spec.small"]);
}
