//! Rules of custom resources, written in CEL: checked with the definition, evaluated when an object is written.

use anyhow::Result;
use http::StatusCode;
use kube::Client;
use serde_json::{Value, json as value};

use crate::custom::established;
use crate::server::{Server, json, send};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const ROUTES: &str = "/apis/example.com/v1/namespaces/default/routes";

fn definition(spec: &Value) -> Value {
    value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "routes.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": {"plural": "routes", "kind": "Route"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {
                "type": "object", "properties": {"spec": spec}}}}],
        },
    })
}

fn spec() -> Value {
    value!({
        "type": "object",
        "x-kubernetes-validations": [
            {"rule": "self.min <= self.max", "message": "min is above max", "fieldPath": ".min"},
            {"rule": "has(self.host) != has(self.address)"},
            {"rule": "!has(oldSelf.host) || has(self.host)", "reason": "FieldValueForbidden",
                "messageExpression": "'host cannot leave ' + oldSelf.host"},
        ],
        "properties": {
            "min": {"type": "integer", "default": 1}, "max": {"type": "integer", "default": 3},
            "host": {"type": "string", "maxLength": 40},
            "address": {"type": "string", "x-kubernetes-validations": [{"rule": "isIP(self) && ip(self).family() == 4"}]},
            "size": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "only grows"}]},
            "ports": {"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"}, "port": {"type": "integer"}}},
                "x-kubernetes-validations": [{"rule": "self.all(p, self.exists_one(q, q.port == p.port))"}]},
        },
    })
}

async fn define(client: &Client, spec: &Value) -> Result<()> {
    let (code, body) = json(client, "POST", DEFINITIONS, &definition(spec)).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    established(client, "routes.example.com").await
}

async fn write(client: &Client, verb: &str, spec: Value) -> Result<(StatusCode, Value)> {
    let route =
        value!({"apiVersion": "example.com/v1", "kind": "Route", "metadata": {"name": "a"}, "spec": spec});
    match verb {
        "POST" => json(client, verb, ROUTES, &route).await,
        _ => json(client, verb, &format!("{ROUTES}/a"), &route).await,
    }
}

#[tokio::test]
async fn rules_hold_for_what_is_written() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client, &spec()).await?;
    let refused: [(Value, &str, &str, &str); 4] = [
        (
            value!({"host": "x", "min": 5}),
            "spec.min",
            "FieldValueInvalid",
            "Invalid value: \"object\": min is above max",
        ),
        (
            value!({}),
            "spec",
            "FieldValueInvalid",
            "Invalid value: \"object\": failed rule: has(self.host) != has(self.address)",
        ),
        (
            value!({"address": "::1"}),
            "spec.address",
            "FieldValueInvalid",
            "Invalid value: \"string\": failed rule: isIP(self) && ip(self).family() == 4",
        ),
        (
            value!({"host": "x", "ports": [{"name": "a", "port": 1}, {"name": "b", "port": 1}]}),
            "spec.ports",
            "FieldValueInvalid",
            "Invalid value: \"array\": failed rule: self.all(p, self.exists_one(q, q.port == p.port))",
        ),
    ];
    for (spec, field, reason, message) in refused {
        let (code, body) = write(&client, "POST", spec).await?;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        let causes = value!([{"reason": reason, "message": message, "field": field}]);
        assert_eq!(body["details"]["causes"], causes);
    }
    let (code, _) = write(&client, "GET", Value::Null).await?;
    assert_eq!(code, StatusCode::NOT_FOUND);

    // What came before counts on a change, and only then.
    let (code, body) = write(&client, "POST", value!({"host": "x", "size": 4})).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    let patch = async |spec: Value| {
        let (path, patch) = (format!("{ROUTES}/a"), value!({"spec": spec}).to_string());
        send(&client, "PATCH", &path, "application/merge-patch+json", patch).await
    };
    let (code, body) = patch(value!({"size": 3})).await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    assert_eq!(
        body["details"]["causes"][0]["message"],
        "Invalid value: \"integer\": only grows"
    );
    let (code, body) = patch(value!({"host": null, "address": "10.0.0.1"})).await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let cause = &body["details"]["causes"][0];
    assert_eq!(
        (&cause["reason"], &cause["message"]),
        (
            &value!("FieldValueForbidden"),
            &value!("Forbidden: host cannot leave x")
        )
    );
    let (code, body) = patch(value!({"size": 5})).await?;
    assert_eq!((code, &body["spec"]["size"]), (StatusCode::OK, &value!(5)));
    Ok(())
}

#[tokio::test]
async fn rules_are_checked_with_their_definition() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let cases = [
        ("self.mim < 3", "undefined field 'mim'"),
        ("self.min + 1", "must evaluate to a bool"),
        ("self.min <", "Syntax error"),
        ("self.host.foo()", "undeclared reference to 'foo'"),
        ("  ", "rule is not specified"),
    ];
    for (rule, expected) in cases {
        let mut spec = spec();
        spec["x-kubernetes-validations"] = value!([{"rule": rule}]);
        let (code, body) = json(&client, "POST", DEFINITIONS, &definition(&spec)).await?;
        assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{rule}: {body}");
        let message = body["message"].as_str().unwrap_or_default();
        assert!(message.contains(expected), "{rule}: {message}");
        assert_eq!(
            body["details"]["causes"][0]["field"],
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule",
            "{rule}"
        );
    }
    Ok(())
}

/// Who may write definitions must not be able to keep the server busy, nor may who writes objects.
#[tokio::test]
async fn a_rule_that_costs_too_much_is_stopped() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    let mut spec = spec();
    spec["x-kubernetes-validations"] = value!([
        {"rule": "self.ports.all(a, self.ports.all(b, self.ports.all(c, a.name + b.name + c.name != 'x')))"},
    ]);
    define(&client, &spec).await?;
    let ports: Vec<_> = (0..1000)
        .map(|port| value!({"name": port.to_string(), "port": port}))
        .collect();
    let (code, body) = write(&client, "POST", value!({"host": "x", "ports": ports})).await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY, "{body}");
    let message = body["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("out of cost budget") || message.contains("cost limit"),
        "{message}"
    );
    Ok(())
}
