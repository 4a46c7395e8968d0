//! What is said of rules when a definition is written.

use serde_json::{Value as Json, json};

use super::super::{OBJECT_LIMIT, check_default, check_definition, definition};
use super::refused;
use crate::resources::Problems;

#[test]
fn a_definition_tells_what_is_wrong_with_its_rules() {
    let schema = |rules: Json| {
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-validations": rules, "properties": {
            "a": {"type": "string"}, "labels": {"type": "object", "additionalProperties": {"type": "string"}}}}}})
    };
    for (rule, at, problem) in [
        (json!({}), "rule", "Required value: rule is not specified"),
        (
            json!({"rule": " "}),
            "rule",
            "Required value: rule is not specified",
        ),
        (
            json!({"rule": "true", "message": " "}),
            "message",
            "Invalid value: \" \": message must be non-empty if specified",
        ),
        (
            json!({"rule": "true", "message": "a\nb"}),
            "message",
            "Invalid value: \"a\\nb\": message must not contain line breaks",
        ),
        (
            json!({"rule": "true &&\ntrue"}),
            "message",
            "Required value: message must be specified if rule contains line breaks",
        ),
        (
            json!({"rule": "true", "messageExpression": " "}),
            "messageExpression",
            "Required value: messageExpression must be non-empty if specified",
        ),
        (
            json!({"rule": "true", "reason": "Odd"}),
            "reason",
            "Unsupported value: \"Odd\": supported values: \"FieldValueDuplicate\", \"FieldValueForbidden\", \
             \"FieldValueInvalid\", \"FieldValueRequired\"",
        ),
        (
            json!({"rule": "true", "fieldPath": ".b"}),
            "fieldPath",
            "Invalid value: \".b\": fieldPath must be a valid path",
        ),
        (
            json!({"rule": "true", "fieldPath": "a"}),
            "fieldPath",
            "Invalid value: \"a\": fieldPath must be a valid path",
        ),
        (
            json!({"rule": "self.b == 1"}),
            "rule",
            "Invalid value: \"self.b == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'b'\n | self.b == 1\n | \
             ....^",
        ),
        (
            json!({"rule": "self.a"}),
            "rule",
            "Invalid value: \"self.a\": cel expression must evaluate to a bool",
        ),
        (
            json!({"rule": "true", "messageExpression": "1"}),
            "messageExpression",
            "Invalid value: \"1\": messageExpression must evaluate to a string",
        ),
        (
            json!({"rule": "true", "messageExpression": "1 +"}),
            "messageExpression",
            "Invalid value: \"1 +\": messageExpression compilation failed: ERROR: <input>:1:4: Syntax error: mismatched input \
             '<EOF>' expecting {'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
             BYTES, IDENTIFIER}\n | 1 +\n | ...^",
        ),
        (
            json!({"rule": "true", "optionalOldSelf": true}),
            "optionalOldSelf",
            "Invalid value: true: may not be set if oldSelf is not used in rule",
        ),
    ] {
        assert_eq!(
            refused(&schema(json!([{"rule": "true"}, rule]))),
            [format!(
                "s.properties[spec].x-kubernetes-validations[1].{at}: {problem}"
            )]
        );
    }
    let free = json!({"type": "object", "properties": {"spec": {"x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-validations": [{"rule": "true"}]}}});
    assert_eq!(
        refused(&free),
        [
            "s.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"true\": rule declared on schema that does not \
             support validation rules type: '' x-kubernetes-preserve-unknown-fields: 'true'"
        ]
    );
    let mut problems = Problems::default();
    check_definition(&schema(json!([{"rule": "self.b"}])), "s", false, &mut problems);
    assert!(problems.0.is_empty());
}

#[test]
fn looking_back_is_refused_where_values_cannot_be_correlated() {
    let inner = json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
        "items": {"type": "object", "properties": {"k": {"type": "string", "x-kubernetes-validations": [
            {"rule": "self == oldSelf"}]}}}});
    let list = |kind: &str| {
        json!({"type": "object", "properties": {"l": {"type": "array", "x-kubernetes-list-type": kind,
            "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}, "i": inner}},
            "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}})
    };
    assert_eq!(refused(&list("map")), Vec::<String>::new());
    for kind in ["atomic", "set"] {
        assert_eq!(
            refused(&list(kind)),
            [
                "s.properties[l].items.properties[i].items.properties[k].x-kubernetes-validations[0].rule: Invalid value: \"self \
                 == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within s.properties[l]"
            ]
        );
    }
    let atomic = json!({"type": "object", "properties": {"m": {"type": "object", "x-kubernetes-map-type": "atomic",
        "properties": {"k": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}}});
    assert_eq!(refused(&atomic).len(), 1);
}

#[test]
fn defaults_follow_the_rules() {
    let schema = json!({"type": "object", "default": {}, "properties": {"a": {"type": "integer",
        "x-kubernetes-validations": [{"rule": "self == oldSelf && self > 1"}, {"rule": "self."}]}}});
    for (default, count) in [
        (json!({"a": 2}), 0),
        (json!({"a": 1}), 1),
        (json!({}), 0),
        (json!(null), 0),
    ] {
        let mut problems = Problems::default();
        check_default(
            &schema,
            &default,
            "s.default",
            &mut OBJECT_LIMIT.clone(),
            &mut problems,
        );
        assert_eq!(problems.0.len(), count, "{default}");
        assert!(problems.0.iter().all(|problem| problem.field == "s.default.a"));
    }
}

#[test]
fn defaults_share_what_they_may_cost() {
    let schema = json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1"}]});
    let (mut left, mut problems) = (OBJECT_LIMIT, Problems::default());
    check_default(&schema, &json!(2), "s.default", &mut left, &mut problems);
    let cost = OBJECT_LIMIT - left;
    assert!(cost > 0 && problems.0.is_empty());
    left = 2 * cost - 1;
    for _ in 0..3 {
        check_default(&schema, &json!(2), "s.default", &mut left, &mut problems);
    }
    assert_eq!(
        (left, problems.0.len()),
        (0, 1),
        "told once, and nothing is evaluated any more"
    );
}

#[test]
fn paths_lead_to_fields_of_the_schema() {
    let schema = json!({"properties": {"spec": {"properties": {"a.b": {}, "labels": {"additionalProperties": {"type": "string"}}}}}});
    for (path, shown) in [
        (".spec", Some("spec")),
        (".spec['a.b']", Some("spec.a.b")),
        ("['spec']['labels']['x\\'y']", Some("spec.labels[x'y]")),
        (".spec.labels.x", Some("spec.labels[x]")),
        (".spec.labels.x.y", None),
        ("spec", None),
        (".spec.", None),
        (".spec[0]", None),
        (".spec['labels'", None),
        (".spec['la\\qels']", None),
        ("", None),
    ] {
        assert_eq!(definition::field_path(&schema, path).as_deref(), shown, "{path}");
    }
}
