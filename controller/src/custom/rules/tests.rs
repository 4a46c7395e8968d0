mod definition;
mod gateway;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// What the rules of a schema say of an object, as `field: message`.
fn said(schema: &Json, object: &Json, old: Option<&Json>) -> Vec<String> {
    let mut problems = Problems::default();
    Rules::compile(schema).check(object, old, &mut problems);
    shown(&problems)
}

fn shown(problems: &Problems) -> Vec<String> {
    let problems = problems.0.iter();
    problems
        .map(|problem| format!("{}: {}", problem.field, problem.message))
        .collect()
}

/// What is wrong with the rules of a schema.
fn refused(schema: &Json) -> Vec<String> {
    let mut problems = Problems::default();
    check_definition(schema, "s", true, &mut problems);
    shown(&problems)
}

/// A schema of `spec`, which is refused for nothing.
fn spec(spec: &Json) -> Json {
    let schema = json!({"type": "object", "properties": {"spec": spec}});
    assert_eq!(refused(&schema), Vec::<String>::new());
    schema
}

/// Whether a rule on `spec` holds.
fn holds(properties: &Json, rule: &str, value: &Json) -> bool {
    let schema = spec(&json!({"type": "object", "properties": properties,
        "x-kubernetes-validations": [{"rule": rule}]}));
    let said = said(&schema, &json!({"spec": value}), None);
    let failed = format!("spec: Invalid value: \"object\": failed rule: {rule}");
    assert!(said.is_empty() || said == [failed], "{said:?}");
    said.is_empty()
}

#[test]
fn the_rules_of_the_documentation_hold_and_fail() {
    let properties = json!({
        "replicas": {"type": "integer"}, "minReplicas": {"type": "integer"}, "maxReplicas": {"type": "integer"},
        "a": {"type": "string"}, "b": {"type": "string"}, "ttl": {"type": "string"}, "size": {"type": "string"},
        "addr": {"type": "string"}, "net": {"type": "string"}, "timeout": {"type": "string", "format": "duration"},
        "expires": {"type": "string", "format": "date-time"}, "day": {"type": "string", "format": "date"},
        "secret": {"type": "string", "format": "byte"}, "port": {"x-kubernetes-int-or-string": true},
        "x-prop": {"type": "integer"}, "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "list": {"type": "array", "items": {"type": "object", "properties": {
            "name": {"type": "string"}, "value": {"type": "integer"}}}},
        "set1": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
    });
    for (rule, good, bad) in [
        (
            "self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas",
            json!({"minReplicas": 1, "replicas": 2, "maxReplicas": 3}),
            json!({"minReplicas": 1, "replicas": 4, "maxReplicas": 3}),
        ),
        (
            "self.list.all(x, x.name.startsWith('v-'))",
            json!({"list": [{"name": "v-1"}]}),
            json!({"list": [{"name": "v-1"}, {"name": "1"}]}),
        ),
        (
            "has(self.a) != has(self.b)",
            json!({"a": ""}),
            json!({"a": "", "b": ""}),
        ),
        (
            "self.list.exists_one(e, e.name == 'x' && e.value == 1)",
            json!({"list": [{"name": "x", "value": 1}, {"name": "x", "value": 2}]}),
            json!({"list": []}),
        ),
        (
            "duration(self.ttl) <= duration('24h')",
            json!({"ttl": "23h59m"}),
            json!({"ttl": "25h"}),
        ),
        (
            "quantity(self.size).isGreaterThan(quantity('1Gi'))",
            json!({"size": "2Gi"}),
            json!({"size": "1G"}),
        ),
        (
            "isIP(self.addr)",
            json!({"addr": "fd00::1"}),
            json!({"addr": "x"}),
        ),
        (
            "cidr(self.net).containsIP(self.addr)",
            json!({"net": "10.0.0.0/8", "addr": "10.1.1.1"}),
            json!({"net": "10.0.0.0/8", "addr": "11.1.1.1"}),
        ),
        (
            "self.timeout < duration('2d1h'.replace('2d', '48h'))",
            json!({"timeout": "2 days"}),
            json!({"timeout": "1 week"}),
        ),
        (
            "self.expires > timestamp('2024-01-01T00:00:00Z') && self.day.getFullYear() == 2024",
            json!({"expires": "2024-01-02T00:00:00+01:00", "day": "2024-05-01"}),
            json!({"expires": "2023-01-02T00:00:00Z", "day": "2024-05-01"}),
        ),
        (
            "self.secret == b'hi'",
            json!({"secret": "aGk="}),
            json!({"secret": "aGg="}),
        ),
        (
            "type(self.port) == int ? self.port < 100 : self.port.endsWith('%')",
            json!({"port": "5%"}),
            json!({"port": 100}),
        ),
        (
            "self.x__dash__prop > 0 && self.__namespace__ != ''",
            json!({"x-prop": 1, "namespace": "n"}),
            json!({"x-prop": 0, "namespace": "n"}),
        ),
        (
            "'app' in self.labels && self.labels.all(k, self.labels[k].size() < 4)",
            json!({"labels": {"app": "web"}}),
            json!({"labels": {"app": "long"}}),
        ),
        (
            "self.set1 == ['b', 'a']",
            json!({"set1": ["a", "b"]}),
            json!({"set1": ["a"]}),
        ),
        (
            "self.list.map(e, e.value).sum() == 3",
            json!({"list": [{"value": 1}, {"value": 2}]}),
            json!({"list": [{"value": 1}]}),
        ),
        (
            "self.a.matches('^[a-z]+$') && self.a != 'none'",
            json!({"a": "x"}),
            json!({"a": "none"}),
        ),
        (
            "!format.dns1123Label().validate(self.a).hasValue()",
            json!({"a": "x"}),
            json!({"a": "X_"}),
        ),
    ] {
        assert!(holds(&properties, rule, &good), "{rule}");
        assert!(!holds(&properties, rule, &bad), "{rule}");
    }
}

#[test]
fn rules_of_the_whole_object_see_its_name() {
    let schema = json!({"type": "object",
        "properties": {"spec": {"type": "object", "properties": {"name": {"type": "string"}}}},
        "x-kubernetes-validations": [
            {"rule": "self.metadata.name == 'x' && self.kind == 'K' && self.apiVersion == 'g/v1'"},
            {"rule": "self.metadata.name == self.spec.name", "fieldPath": ".spec.name", "reason": "FieldValueForbidden",
             "messageExpression": "'must be ' + self.metadata.name"}]});
    assert_eq!(refused(&schema), Vec::<String>::new());
    let object = |name: &str, own: &str| json!({"apiVersion": "g/v1", "kind": "K", "metadata": {"name": name, "labels": {"a": "b"}}, "spec": {"name": own}});
    assert_eq!(said(&schema, &object("x", "x"), None), Vec::<String>::new());
    assert_eq!(
        said(&schema, &object("y", "x"), None),
        [
            "<nil>: Invalid value: \"object\": failed rule: self.metadata.name == 'x' && self.kind == 'K' && \
             self.apiVersion == 'g/v1'",
            "spec.name: Forbidden: must be y"
        ]
    );
    let embedded = spec(&json!({"type": "object", "x-kubernetes-embedded-resource": true,
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-validations": [{"rule": "self.metadata.name != '' && self.kind == 'Pod'"}]}));
    let object = json!({"spec": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "more": 1}});
    assert_eq!(said(&embedded, &object, None), Vec::<String>::new());
}

#[test]
fn rules_that_look_back_run_where_there_was_a_value() {
    let schema = spec(&json!({"type": "object", "properties": {
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "is immutable"}]},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "items": {"type": "object", "properties": {"name": {"type": "string"}, "port": {
                "type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "messageExpression":
                    "'%d is less than %d'.format([self, oldSelf])"}]}}}},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [
            {"rule": "self == oldSelf"}]}},
        "once": {"type": "integer", "x-kubernetes-validations": [
            {"rule": "oldSelf.hasValue() || self == 1", "optionalOldSelf": true, "message": "begins with 1"},
            {"rule": "oldSelf.orValue(0) <= self", "optionalOldSelf": true, "message": "only grows"}]},
        "words": {"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": [
            {"rule": "self.all(w, w in oldSelf)"}]},
    }, "x-kubernetes-validations": [{"rule": "!has(oldSelf.fixed) || has(self.fixed)", "message": "fixed stays"}]}));
    let old = json!({"spec": {"fixed": "a", "ports": [{"name": "a", "port": 5}, {"name": "b", "port": 5}],
        "labels": {"x": "1"}, "once": 3, "words": ["a"]}});
    assert_eq!(said(&schema, &old, Some(&old)), Vec::<String>::new());
    let new = json!({"spec": {"fixed": "b", "ports": [{"name": "b", "port": 4}, {"name": "c", "port": 1}],
        "labels": {"x": "2", "y": "1"}, "once": 2, "words": ["a", "b"]}});
    assert_eq!(
        said(&schema, &new, Some(&old)),
        [
            "spec.fixed: Invalid value: \"string\": is immutable",
            "spec.labels[x]: Invalid value: \"string\": failed rule: self == oldSelf",
            "spec.once: Invalid value: \"integer\": only grows",
            "spec.ports[0].port: Invalid value: \"integer\": 4 is less than 5",
            "spec.words: Invalid value: \"array\": failed rule: self.all(w, w in oldSelf)",
        ]
    );
    assert_eq!(
        said(&schema, &new, None),
        ["spec.once: Invalid value: \"integer\": begins with 1"]
    );
    assert_eq!(
        said(&schema, &json!({"spec": {}}), Some(&old)),
        ["spec: Invalid value: \"object\": fixed stays"]
    );
}

#[test]
fn what_an_update_leaves_alone_is_not_checked_again() {
    let schema = spec(&json!({"type": "object", "properties": {
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]},
        "list": {"type": "array", "items": {"type": "string", "x-kubernetes-validations": [{"rule": "self != 'bad'"}]}},
        "other": {"type": "integer"}}}));
    let old = json!({"spec": {"name": "bad", "list": ["bad"], "other": 1}});
    let mut new = old.clone();
    new["spec"]["other"] = json!(2);
    assert_eq!(said(&schema, &new, Some(&old)), Vec::<String>::new());
    new["spec"]["list"] = json!(["bad", "good"]);
    assert_eq!(
        said(&schema, &new, Some(&old)),
        ["spec.list[0]: Invalid value: \"string\": failed rule: self != 'bad'"]
    );
    assert_eq!(said(&schema, &old, None).len(), 2);
}

#[test]
fn failures_give_their_reason_and_words() {
    let schema = spec(&json!({"type": "object", "properties": {
    "a": {"type": "string"}, "port": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "self != 1"}]},
    "labels": {"type": "object", "additionalProperties": {"type": "string"}}, "nothing": {"type": "string", "nullable": true,
        "x-kubernetes-validations": [{"rule": "false"}]}},
    "x-kubernetes-validations": [
        {"rule": "has(self.a)", "reason": "FieldValueRequired", "fieldPath": ".a", "message": " say it "},
        {"rule": "1 > 2", "reason": "FieldValueDuplicate", "fieldPath": ".labels['a.b']"},
        {"rule": "2 > 3", "messageExpression": "self.a + '!'", "message": "fallback"},
        {"rule": "3 > 4", "messageExpression": "'a\\nb'"},
        {"rule": "4 > 5", "messageExpression": "' '"},
        {"rule": "self.a == 'x'", "message": "is x"},
        {"rule": "self.port + 1 > 2"},
    ]}));
    assert_eq!(
        said(&schema, &json!({"spec": {"port": 1, "nothing": null}}), None),
        [
            "spec.a: Required value: say it",
            "spec.labels[a.b]: Duplicate value: \"object\"",
            "spec: Invalid value: \"object\": fallback",
            "spec: Invalid value: \"object\": failed rule: 3 > 4",
            "spec: Invalid value: \"object\": failed rule: 4 > 5",
            "spec: Invalid value: \"object\": no such key: a evaluating rule: is x",
            "spec: Invalid value: \"object\": failed rule: self.port + 1 > 2",
            "spec.port: Invalid value: \"\": failed rule: self != 1",
        ]
    );
    let said = said(&schema, &json!({"spec": {"a": "x", "port": "y"}}), None);
    assert_eq!(
        said.last().map(String::as_str),
        Some(
            "spec: Invalid value: \"object\": 'no such overload': call arguments did not match a supported operator, \
             function or macro signature for rule: self.port + 1 > 2"
        )
    );
}

#[test]
fn budgets_end_the_evaluation() {
    let words = json!({"type": "array", "items": {"type": "string"}});
    let schema = spec(
        &json!({"type": "object", "properties": {"words": words}, "x-kubernetes-validations": [
        {"rule": "self.words.all(a, self.words.all(b, self.words.all(c, a != b || b != c || a == c)))"},
        {"rule": "false"}]}),
    );
    let many: Vec<_> = (0..200).map(|index| format!("word-{index}")).collect();
    assert_eq!(
        said(&schema, &json!({"spec": {"words": many}}), None),
        [
            "spec: Invalid value: \"object\": 'operation cancelled: actual cost limit exceeded': no further validation rules \
             will be run due to call cost exceeds limit for rule: self.words.all(a, self.words.all(b, self.words.all(c, a != b \
             || b != c || a == c)))"
        ]
    );
    let schema = spec(
        &json!({"type": "object", "properties": {"lists": {"type": "array", "items": {
        "type": "array", "items": {"type": "integer"},
        "x-kubernetes-validations": [{"rule": "self.all(a, self.all(b, a + b > 0))"}]}}}}),
    );
    let list: Vec<_> = (1..250).collect();
    let said = said(&schema, &json!({"spec": {"lists": vec![list; 40]}}), None);
    assert_eq!(said.len(), 1);
    assert!(
        said[0].ends_with(
            "]: Invalid value: \"array\": validation failed due to running out of cost budget, no further validation rules \
             will be run"
        ),
        "{said:?}"
    );
}

#[test]
fn other_problems_come_first() {
    let schema = spec(&json!({"type": "object", "x-kubernetes-validations": [{"rule": "false"}]}));
    let mut problems = Problems::default();
    problems.required("spec.a", "");
    Rules::compile(&schema).check(&json!({"spec": {}}), None, &mut problems);
    assert_eq!(
        shown(&problems),
        [
            "spec.a: Required value",
            "<nil>: Invalid value: \"null\": some validation rules were not checked because the object was invalid; correct \
             the existing errors to complete validation"
        ]
    );
    let mut problems = Problems::default();
    problems.invalid("spec.a", &json!(1), "is odd");
    Rules::compile(&schema).check(&json!({"spec": {}}), None, &mut problems);
    assert_eq!(problems.0.len(), 2);
}

#[test]
fn rules_that_do_not_compile_are_told_at_each_write() {
    let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.a"}, {"rule": ""}]});
    assert_eq!(
        said(&schema, &json!({}), None),
        [
            "<nil>: Invalid value: \"object\": rule compile error: compilation failed: ERROR: <input>:1:5: undefined field \
             'a'\n | self.a\n | ....^"
        ]
    );
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        "[a-z0-9:%-]{0,8}".prop_map(Json::from),
    ];
    leaf.prop_recursive(4, 30, 4, |inner| {
        let name = prop::sample::select(vec!["spec", "a", "b", "labels", "list", "name", "k"]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Json::from),
            prop::collection::btree_map(name, inner, 0..4)
                .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()),
        ]
    })
}

proptest! {
    #[test]
    fn no_object_makes_it_panic(object in any_json(), old in prop::option::of(any_json())) {
        let rule = |text: &str| json!([{"rule": text, "messageExpression": "string(size('x')) + 'y'"}]);
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
            "a": {"type": "integer", "x-kubernetes-validations": rule("self > 0 && oldSelf > 0")},
            "b": {"type": "string", "format": "date-time", "x-kubernetes-validations": rule("self.getFullYear() > 1")},
            "labels": {"type": "object", "additionalProperties": {"type": "string",
                "x-kubernetes-validations": rule("self.size() < 3")}, "x-kubernetes-validations": rule("self.all(k, k != self[k])")},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "name": {"type": "string", "format": "byte"}},
                    "x-kubernetes-validations": rule("self == oldSelf")}, "x-kubernetes-validations": rule("self == oldSelf + self")},
        }, "x-kubernetes-validations": rule("has(self.a) && self.a == 1 || self == oldSelf")}}});
        let _ = said(&schema, &object, old.as_ref());
    }

    #[test]
    fn no_schema_makes_it_panic(schema in any_json(), rules in prop::collection::vec(any_json(), 0..3)) {
        let schema = json!({"type": "object", "properties": schema, "x-kubernetes-validations": rules,
            "items": schema, "additionalProperties": schema});
        let _ = refused(&schema);
        let _ = said(&schema, &schema, Some(&schema));
    }
}

#[test]
fn what_is_told_is_limited() {
    let schema = spec(
        &json!({"type": "array", "items": {"type": "object", "x-kubernetes-validations": [
        {"rule": "false", "message": "m".repeat(100_000)}]}}),
    );
    let told = said(&schema, &json!({"spec": vec![json!({}); 1_000]}), None);
    let length: usize = told.iter().map(String::len).sum();
    assert!((1 << 20..2 << 20).contains(&length), "{length}");
}

#[test]
fn deep_schemas_fit_into_a_small_stack() {
    let rule = json!([{"rule": "self == self && (!has(self.missing) || true)"}]);
    let mut schema = json!({"type": "object", "x-kubernetes-validations": rule,
        "properties": {"missing": {"type": "string"}}});
    let mut object = json!({});
    for level in 0..110 {
        (schema, object) = match level % 3 {
            0 => (json!({"type": "array", "items": schema}), json!([object])),
            1 => (
                json!({"type": "object", "additionalProperties": schema}),
                json!({"x": object}),
            ),
            _ => (
                json!({"type": "object", "properties": {"x": schema}}),
                json!({"x": object}),
            ),
        };
    }
    let schema = spec(&schema);
    let object = json!({"spec": object});
    let check = move || {
        assert_eq!(said(&schema, &object, Some(&json!({}))), Vec::<String>::new());
        let mut problems = Problems::default();
        check_default(
            &schema,
            &object,
            "s.default",
            &mut OBJECT_LIMIT.clone(),
            &mut problems,
        );
        assert_eq!(shown(&problems), Vec::<String>::new());
    };
    let thread = std::thread::Builder::new().stack_size(1 << 20).spawn(check);
    thread.expect("starts").join().expect("fits into the stack");
}
