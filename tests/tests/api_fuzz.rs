//! The API server's decoders take any bytes, and what they read obeys its laws.

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};
use weft_controller::api::continuation::Token;
use weft_controller::api::negotiate;
use weft_controller::api::request::{Query, ResourcePath};
use weft_controller::cel;
use weft_controller::custom::json_path::JsonPath;
use weft_controller::custom::schema::Schema;
use weft_controller::custom::{structural, validate};
use weft_controller::quantity::Quantity;
use weft_controller::resources::Problems;
use weft_controller::schema::{self, ApplyRequest, KindSchema, Manager, patch};
use weft_controller::selector::{FieldSelector, LabelSelector};
use weft_lab::fuzz::{mutate, replay};

/// What a rule may cost, and the bytes of all its patterns.
const COST: u64 = 20_000;
const PATTERNS: usize = 4 << 20;

fn decode(content_type: &'static str, data: &[u8]) -> Option<negotiate::Decoded> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    negotiate::decode(&headers, &data.to_vec().into()).ok()
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or_default()
}

/// What our parser reads is what any other reads; a key that came twice is told of.
fn json_body(data: &[u8]) {
    let ours = decode("application/json", data);
    if let Some(decoded) = &ours
        && !data.is_empty()
    {
        let theirs: Value = serde_json::from_slice(data).expect("what we read is JSON");
        assert_eq!(decoded.value, theirs);
        let again = decode("application/json", decoded.value.to_string().as_bytes()).expect("it is JSON");
        assert!(again.duplicates.is_empty());
    }
}

fn yaml_body(data: &[u8]) {
    if let Some(decoded) = decode("application/yaml", data) {
        // It is stored as JSON, so it must be that.
        serde_json::from_str::<Value>(&decoded.value.to_string()).expect("JSON");
    }
}

/// What was read from protobuf can be stored as its kind.
fn protobuf_body(data: &[u8]) {
    if let Some(mut decoded) = decode("application/vnd.kubernetes.protobuf", data)
        && let Some(schema) = schema_of(&decoded.value)
    {
        schema.prune(&mut decoded.value);
        assert_eq!(schema.unknown_fields(&decoded.value), Vec::<String>::new());
    }
}

fn schema_of(object: &Value) -> Option<KindSchema> {
    let version = object["apiVersion"].as_str()?;
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    schema::kind(group, version, object["kind"].as_str()?)
}

/// A selector's text means the same when it is read again.
fn selectors(data: &[u8]) {
    let labels = json!({"a": "b", "tier": "web", "x": ""});
    if let Ok(selector) = LabelSelector::parse(text(data)) {
        let again = LabelSelector::parse(&selector.to_string()).expect("its own text");
        assert_eq!(again.to_string(), selector.to_string());
        assert_eq!(again.matches(&labels), selector.matches(&labels));
    }
    if let Ok(selector) = FieldSelector::parse(text(data)) {
        let again = FieldSelector::parse(&selector.to_string()).expect("its own text");
        assert_eq!(again, selector);
    }
}

fn tokens(data: &[u8]) {
    if let Some(token) = Token::decode(text(data)) {
        assert_eq!(Token::decode(&token.encode()), Some(token));
    }
}

/// All four patches of `[object, patch]`; what comes out can be stored, and storing it is stable.
fn patches(data: &[u8]) {
    let Ok(Value::Array(parts)) = serde_json::from_slice(data) else {
        return;
    };
    let [object, change] = parts.as_slice() else {
        return;
    };
    let _ = patch::json_patch(object, change);
    if let Ok(merged) = patch::json_merge(object, change) {
        assert_eq!(patch::json_merge(&merged, change).expect("it did before"), merged);
    }
    let Some(schema) = schema_of(object) else { return };
    let mut object = object.clone();
    schema.prune(&mut object);
    let object = &object;
    let manager = Manager {
        name: "fuzz",
        subresource: None,
        time: "2030-01-01T00:00:00Z",
    };
    let applied = [false, true].map(|force| {
        let request = ApplyRequest {
            applied: change,
            manager,
            force,
        };
        schema.apply(Some(object), &request).ok()
    });
    let merged = schema.strategic_merge(object, change).ok();
    for mut result in applied.into_iter().chain([merged]).flatten() {
        schema.prune(&mut result);
        assert_eq!(schema.unknown_fields(&result), Vec::<String>::new());
        schema.track_update(Some(object), &mut result, &manager);
        schema.prune(&mut result);
        let once = result.clone();
        schema.prune(&mut result);
        assert_eq!(result, once);
    }
}

/// An expression of a rule ends within what it may cost, always with the same result; known fields are checked, too.
fn rules(data: &[u8]) {
    let object = json!({
        "min": 1, "max": 3, "name": "a-b", "size": "2Gi", "address": "10.1.2.3", "at": "2030-01-01T01:00:00Z",
        "link": "http://[::1]/", "items": ["a", "b"], "labels": {"a": "x", "b": "y", "x": ""}, "a": {"b": "c"},
    });
    let known = cel::Type::map(cel::Type::String, cel::Type::Dynamic);
    for of in [cel::Type::Dynamic, known] {
        let Ok(program) = cel::Program::compile(text(data), &[("self", of.clone())], &mut PATTERNS.clone())
        else {
            continue;
        };
        let [first, second] = [(), ()].map(|()| {
            let value = cel::Value::new(&object, &of).expect("it is an object");
            let (result, cost) = program.evaluate(vec![value], COST);
            (format!("{result:?}"), cost)
        });
        assert_eq!(first, second);
    }
}

/// A schema that is accepted prunes and fills any object, and doing either twice is doing it once.
fn definitions(data: &[u8]) {
    let Ok(mut input) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    let mut problems = Problems::default();
    structural::definition(&input["definition"], None, &mut problems);
    let schema = Schema::parse(&input["definition"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
    let mut object = input.get_mut("object").map(Value::take).unwrap_or_default();
    let before = object.clone();
    schema.prune(&mut object);
    if !problems.0.is_empty() {
        return;
    }
    assert_eq!(schema.unknown_fields(&object), Vec::<String>::new());
    schema.fill(&mut object);
    let once = object.clone();
    schema.fill(&mut object);
    schema.prune(&mut object);
    assert_eq!(object, once);
    let mut problems = Problems::default();
    validate::object(&schema, &object, Some(&before), &mut problems);
    validate::object(&schema, &object, None, &mut problems);
}

fn paths(data: &[u8]) {
    let _ = ResourcePath::parse(text(data));
    let _ = Query::parse(text(data));
    if let Ok(path) = JsonPath::parse(text(data)) {
        path.find(&json!({"spec": {"a": [1, {"b": "c"}]}, "status": {"conditions": [{"type": "Ready"}]}}));
    }
    if let Ok(quantity) = text(data).parse::<Quantity>() {
        let again: Quantity = quantity.to_string().parse().expect("its own text");
        assert_eq!(again.to_string(), quantity.to_string());
    }
}

type Target = (&'static str, fn(&[u8]));

const TARGETS: &[Target] = &[
    ("json", json_body),
    ("yaml", yaml_body),
    ("protobuf", protobuf_body),
    ("selector", selectors),
    ("token", tokens),
    ("patch", patches),
    ("definition", definitions),
    ("path", paths),
    ("rule", rules),
];

#[test]
fn the_corpus_is_decoded() {
    for (name, run) in TARGETS {
        replay(name, *run);
    }
}

#[test]
#[ignore = "long"]
fn mutations_of_the_corpus_are_decoded() {
    for (name, run) in TARGETS {
        mutate(name, *run);
    }
}
