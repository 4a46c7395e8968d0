//! Custom resources: what a definition brings about, and an operator that works with its objects.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, TryStreamExt as _, pin_mut};
use http::{Request, StatusCode};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json as value};
use tokio::time::timeout;
use weft_lab::wait::wait_for;

use crate::server::{Server, json, send};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

/// A definition that has a bit of everything.
fn definition() -> Value {
    value!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                    "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"}},
                    "selectableFields": [{"jsonPath": ".spec.colour"}],
                    "additionalPrinterColumns": [
                        {"name": "Colour", "type": "string", "jsonPath": ".spec.colour"},
                        {"name": "Replicas", "type": "integer", "jsonPath": ".spec.replicas"},
                        {"name": "Ready", "type": "string",
                            "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
                        {"name": "Ports", "type": "string", "priority": 1, "jsonPath": ".spec.ports[*].port"},
                        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]},
                {"name": "v1beta1", "served": true, "storage": false, "deprecated": true,
                    "schema": {"openAPIV3Schema": schema()}},
            ],
        },
    })
}

fn schema() -> Value {
    value!({"type": "object", "description": "A widget.", "properties": {
        "spec": {"type": "object", "description": "What the widget should be.", "required": ["colour"], "properties": {
            "colour": {"type": "string", "enum": ["red", "green"], "description": "Its colour."},
            "replicas": {"type": "integer", "minimum": 0, "maximum": 10, "default": 1},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                "items": {"type": "object", "required": ["name"], "properties": {
                    "name": {"type": "string"}, "port": {"type": "integer"}}}},
            "settings": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}},
        "status": {"type": "object", "properties": {
            "replicas": {"type": "integer"}, "selector": {"type": "string"},
            "conditions": {"type": "array", "items": {"type": "object", "properties": {
                "type": {"type": "string"}, "status": {"type": "string"}}}}}},
    }})
}

fn widget(name: &str, spec: Value) -> Value {
    value!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

async fn define(client: &Client) -> Result<()> {
    let (code, body) = json(client, "POST", DEFINITIONS, &definition()).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    established(client, "widgets.example.com").await
}

async fn read(client: &Client, path: &str) -> Result<Value> {
    let (_, body) = json(client, "GET", path, &Value::Null).await?;
    Ok(body)
}

/// Waits until a definition's objects are served.
pub(crate) async fn established(client: &Client, name: &str) -> Result<()> {
    let path = format!("{DEFINITIONS}/{name}");
    timeout(Duration::from_secs(10), async {
        loop {
            let found = read(client, &path).await?;
            let conditions = found["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if conditions
                .iter()
                .any(|c| c["type"] == "Established" && c["status"] == "True")
            {
                return anyhow::Ok(());
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .context("the definition is not established")?
}

#[tokio::test]
async fn a_definition_makes_a_resource_with_a_schema() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let found = read(&client, &format!("{DEFINITIONS}/widgets.example.com")).await?;
    assert_eq!(found["spec"]["names"]["singular"], "widget");
    assert_eq!(found["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(found["status"]["storedVersions"], value!(["v1"]));

    // Defaults are filled in, unknown fields dropped, free ones kept.
    let spec = value!({"colour": "red", "odd": 1, "settings": {"x": {"y": 1}}});
    let (code, made) = json(&client, "POST", WIDGETS, &widget("a", spec)).await?;
    assert_eq!(code, StatusCode::CREATED, "{made}");
    assert_eq!(
        made["spec"],
        value!({"colour": "red", "replicas": 1, "settings": {"x": {"y": 1}}})
    );
    assert_eq!(made["metadata"]["generation"], 1);

    let refused = |what: &'static str, path: String, object: Value, code: u16, message: &'static str| {
        let client = client.clone();
        async move {
            let (got, body) = json(&client, "POST", &path, &object).await?;
            assert_eq!(got.as_u16(), code, "{what}: {body}");
            assert_eq!(body["message"], message, "{what}");
            anyhow::Ok(body)
        }
    };
    let body = refused(
        "wrong values",
        WIDGETS.to_owned(),
        widget("b", value!({"replicas": 11, "ports": [{"name": "x"}, {"name": "x"}]})),
        422,
        "Widget.example.com \"b\" is invalid: [spec.colour: Required value, spec.ports[1]: Duplicate value: \
         {\"name\":\"x\"}, spec.replicas: Invalid value: 11: spec.replicas in body should be less than or equal to 10]",
    )
    .await?;
    assert_eq!(body["details"]["causes"][0]["reason"], "FieldValueRequired");
    refused(
        "wrong type",
        WIDGETS.to_owned(),
        widget("b", value!({"colour": "red", "replicas": "many"})),
        422,
        "Widget.example.com \"b\" is invalid: spec.replicas: Invalid value: \"string\": spec.replicas in body must be of \
         type integer: \"string\"",
    )
    .await?;
    refused(
        "strict",
        format!("{WIDGETS}?fieldValidation=Strict"),
        widget("b", value!({"colour": "red", "odd": 1})),
        400,
        "Widget in version \"v1\" cannot be handled as a Widget: strict decoding error: unknown field \"spec.odd\"",
    )
    .await?;

    // Another version of the same object, of which the client is warned.
    let path = "/apis/example.com/v1beta1/namespaces/default/widgets/a";
    let request = Request::get(path).body(kube::client::Body::empty())?;
    let response = client.send(request).await?;
    assert_eq!(
        response.headers()["warning"],
        "299 - \"example.com/v1beta1 Widget is deprecated\""
    );
    let other = read(&client, "/apis/example.com/v1beta1/namespaces/default/widgets").await?;
    assert_eq!(
        (&other["kind"], &other["items"][0]["apiVersion"]),
        (&value!("WidgetList"), &value!("example.com/v1beta1"))
    );

    // Patches: no strategic ones.
    let api = widgets(&client);
    let merge = Patch::Merge(value!({"spec": {"colour": "green"}}));
    let patched = api.patch("a", &PatchParams::default(), &merge).await?;
    assert_eq!(patched.metadata.generation, Some(2));
    let strategic = Patch::Strategic(value!({"spec": {"colour": "red"}}));
    match api.patch("a", &PatchParams::default(), &strategic).await {
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 415, "{status:?}"),
        other => bail!("a strategic merge patch: {other:?}"),
    }

    // Selectors over fields that the definition names.
    let greens = ListParams::default().fields("spec.colour=green");
    assert_eq!(api.list(&greens).await?.items.len(), 1);
    let reds = ListParams::default().fields("spec.colour=red");
    assert_eq!(api.list(&reds).await?.items.len(), 0);
    let (code, _) = json(
        &client,
        "GET",
        &format!("{WIDGETS}?fieldSelector=spec.replicas%3D1"),
        &Value::Null,
    )
    .await?;
    assert_eq!(code, StatusCode::BAD_REQUEST);
    Ok(())
}

fn widgets(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("example.com", "v1", "Widget");
    Api::default_namespaced_with(client.clone(), &ApiResource::from_gvk(&kind))
}

#[tokio::test]
async fn lists_of_custom_resources_merge_when_applied() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let api = widgets(&client);
    let one = widget(
        "a",
        value!({"colour": "red", "ports": [{"name": "a", "port": 1}]}),
    );
    let two = widget("a", value!({"ports": [{"name": "b", "port": 2}]}));
    api.patch("a", &PatchParams::apply("one"), &Patch::Apply(&one))
        .await?;
    let both = api
        .patch("a", &PatchParams::apply("two"), &Patch::Apply(&two))
        .await?;
    assert_eq!(
        both.data["spec"]["ports"],
        value!([{"name": "a", "port": 1}, {"name": "b", "port": 2}])
    );
    let stolen = widget("a", value!({"ports": [{"name": "a", "port": 9}]}));
    match api
        .patch("a", &PatchParams::apply("three"), &Patch::Apply(&stolen))
        .await
    {
        Err(kube::Error::Api(status)) => assert_eq!(
            (status.code, status.message.as_str()),
            (
                409,
                "Apply failed with 1 conflict: conflict with \"one\": .spec.ports[name=\"a\"].port"
            )
        ),
        other => bail!("a conflict: {other:?}"),
    }
    // What a manager leaves out goes.
    let less = widget("a", value!({"colour": "red"}));
    let after = api
        .patch("a", &PatchParams::apply("one"), &Patch::Apply(&less))
        .await?;
    assert_eq!(after.data["spec"]["ports"], value!([{"name": "b", "port": 2}]));
    Ok(())
}

#[tokio::test]
async fn an_operator_watches_reconciles_reports_and_scales() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let api = widgets(&client);
    let operator = tokio::spawn(operate(client.clone()));
    let object: DynamicObject =
        serde_json::from_value(widget("a", value!({"colour": "red", "replicas": 3})))?;
    api.create(&PostParams::default(), &object).await?;
    wait_for_replicas(&api, 3).await?;

    let scale = api.get_scale("a").await?;
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(3));
    let status = scale.status.context("a status")?;
    assert_eq!(
        (status.replicas, status.selector.as_deref()),
        (3, Some("widget=a"))
    );
    let five = Patch::Merge(value!({"spec": {"replicas": 5}}));
    api.patch_scale("a", &PatchParams::default(), &five).await?;
    wait_for_replicas(&api, 5).await?;
    let found = api.get("a").await?;
    assert_eq!(found.metadata.generation, Some(2), "the status does not count");
    operator.abort();
    Ok(())
}

async fn wait_for_replicas(api: &Api<DynamicObject>, count: i64) -> Result<()> {
    let stream = watcher(api.clone(), watcher::Config::default()).applied_objects();
    pin_mut!(stream);
    timeout(Duration::from_secs(20), async {
        while let Some(object) = stream.try_next().await? {
            if object.data["status"]["replicas"] == count {
                return anyhow::Ok(());
            }
        }
        bail!("the watch ended")
    })
    .await
    .with_context(|| format!("the operator never reported {count} replicas"))?
}

/// Reports as many replicas as are wanted.
async fn operate(client: Client) -> Result<()> {
    let api = widgets(&client);
    let stream = watcher(api.clone(), watcher::Config::default()).applied_objects();
    pin_mut!(stream);
    while let Some(object) = stream.next().await {
        let object = object?;
        let (name, wanted) = (
            object.metadata.name.unwrap_or_default(),
            &object.data["spec"]["replicas"],
        );
        if object.data["status"]["replicas"] == *wanted {
            continue;
        }
        let status = value!({"apiVersion": "example.com/v1", "kind": "Widget", "status": {
            "replicas": wanted, "selector": format!("widget={name}"),
            "conditions": [{"type": "Ready", "status": "True"}]}});
        api.patch_status(&name, &PatchParams::apply("operator"), &Patch::Apply(&status))
            .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_definition_that_goes_takes_its_objects_along() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let api = widgets(&client);
    let mut object = widget("a", value!({"colour": "red"}));
    object["metadata"]["finalizers"] = value!(["example.com/hold"]);
    json(&client, "POST", WIDGETS, &object).await?;
    json(&client, "POST", WIDGETS, &widget("b", value!({"colour": "red"}))).await?;
    let watch = watcher(api.clone(), watcher::Config::default());
    pin_mut!(watch);
    let mut gone = Vec::new();
    while !matches!(watch.try_next().await?, Some(watcher::Event::InitDone)) {}

    let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
    definitions
        .delete("widgets.example.com", &DeleteParams::default())
        .await?;
    // One object goes at once; the other is held by its finalizer, and so is the definition.
    timeout(Duration::from_secs(20), async {
        while gone.len() < 2 {
            match watch.try_next().await? {
                Some(watcher::Event::Delete(object)) => gone.push(object.metadata.name.unwrap_or_default()),
                Some(watcher::Event::Apply(object)) if object.metadata.deletion_timestamp.is_some() => {
                    let found = definitions.get("widgets.example.com").await?;
                    assert_eq!(
                        found.metadata.finalizers,
                        Some(vec!["customresourcecleanup.apiextensions.k8s.io".to_owned()])
                    );
                    let (code, body) =
                        json(&client, "POST", WIDGETS, &widget("c", value!({"colour": "red"}))).await?;
                    assert_eq!(code, StatusCode::METHOD_NOT_ALLOWED);
                    assert_eq!(
                        body["message"],
                        "create not allowed while custom resource definition is terminating"
                    );
                    let free = Patch::Merge(value!({"metadata": {"finalizers": null}}));
                    api.patch("a", &PatchParams::default(), &free).await?;
                }
                _ => {}
            }
        }
        anyhow::Ok(())
    })
    .await
    .context("the objects do not go")??;
    gone.sort_unstable();
    assert_eq!(gone, ["a", "b"]);
    timeout(Duration::from_secs(10), async {
        while definitions.get_opt("widgets.example.com").await?.is_some() {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    })
    .await
    .context("the definition does not go")??;
    let (code, _) = json(&client, "GET", WIDGETS, &Value::Null).await?;
    assert_eq!(code, StatusCode::NOT_FOUND);
    // And it can come again.
    define(&client).await?;
    assert_eq!(api.list(&ListParams::default()).await?.items.len(), 0);
    Ok(())
}

/// Words of a table, so that widths and ages do not matter.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn kubectl_treats_them_like_any_other() -> Result<()> {
    let server = Server::api_only()?;
    let run = |arguments: &[&str]| server.kubectl(arguments);
    let file = server.write("crd.json", &definition().to_string())?;
    assert_eq!(
        run(&["apply", "-f", &file])?,
        "customresourcedefinition.apiextensions.k8s.io/widgets.example.com created\n"
    );
    run(&[
        "wait",
        "--for=condition=Established",
        "crd/widgets.example.com",
        "--timeout=20s",
    ])?;
    let mut object = widget(
        "a",
        value!({"colour": "red", "ports": [{"name": "x", "port": 1}, {"name": "y", "port": 2}]}),
    );
    let file = server.write("a.json", &object.to_string())?;
    assert_eq!(run(&["apply", "-f", &file])?, "widget.example.com/a created\n");
    assert_eq!(run(&["apply", "-f", &file])?, "widget.example.com/a unchanged\n");
    object["spec"]["colour"] = value!("green");
    let changed = server.write("b.json", &object.to_string())?;
    let diff = server.try_kubectl(&["diff", "-f", &changed])?;
    assert!(String::from_utf8_lossy(&diff.stdout).contains("+  colour: green"));
    assert_eq!(
        run(&["apply", "-f", &changed])?,
        "widget.example.com/a configured\n"
    );
    assert_eq!(
        run(&["apply", "--server-side", "--force-conflicts", "-f", &changed])?,
        "widget.example.com/a serverside-applied\n"
    );

    let table = run(&["get", "wd", "-o", "wide"])?;
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(
        words(lines[0]),
        ["NAME", "COLOUR", "REPLICAS", "READY", "PORTS", "AGE"]
    );
    assert_eq!(words(lines[1])[..4], ["a", "green", "1", "1"]);
    assert!(run(&["get", "all"])?.contains("widget.example.com/a"));
    assert_eq!(run(&["get", "widgets", "-o", "name"])?, "widget.example.com/a\n");
    assert!(
        run(&["api-resources", "--api-group=example.com"])?.contains("widgets   wd           example.com/v1")
    );
    let described = run(&["describe", "widget", "a"])?;
    assert!(
        described.lines().any(|line| words(line) == ["Colour:", "green"]),
        "{described}"
    );
    let explained = run(&["explain", "widget.spec"])?;
    assert!(
        explained.contains("Its colour.") && explained.contains("-required-"),
        "{explained}"
    );
    assert!(run(&["explain", "crd.spec.versions"])?.contains("additionalPrinterColumns"));
    assert_eq!(
        run(&["scale", "widget/a", "--replicas=4"])?,
        "widget.example.com/a scaled\n"
    );
    assert_eq!(run(&["get", "wd", "a", "-o", "jsonpath={.spec.replicas}"])?, "4");
    assert_eq!(
        run(&["label", "wd", "a", "k=v"])?,
        "widget.example.com/a labeled\n"
    );

    object["spec"]["odd"] = value!(1);
    let odd = server.write("odd.json", &object.to_string())?;
    let refused = server.try_kubectl(&["apply", "-f", &odd])?;
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("unknown field \"spec.odd\""), "{text}");
    let wrong = server.try_kubectl(&[
        "patch",
        "wd",
        "a",
        "--type=merge",
        "-p",
        r#"{"spec":{"colour":"blue"}}"#,
    ])?;
    assert_eq!(
        String::from_utf8_lossy(&wrong.stderr),
        "The Widget \"a\" is invalid: spec.colour: Unsupported value: \"blue\": supported values: \"red\", \"green\"\n"
    );
    assert_eq!(
        run(&["delete", "crd", "widgets.example.com"])?,
        "customresourcedefinition.apiextensions.k8s.io \"widgets.example.com\" deleted\n"
    );
    let gone = server.try_kubectl(&["get", "widgets"])?;
    assert!(!gone.status.success());
    Ok(())
}

#[tokio::test]
async fn namespaces_and_owners_know_custom_resources() -> Result<()> {
    let server = Server::complete()?;
    let client = server.client().await?;
    define(&client).await?;
    json(
        &client,
        "POST",
        "/api/v1/namespaces",
        &value!({"metadata": {"name": "other"}}),
    )
    .await?;
    let elsewhere = "/apis/example.com/v1/namespaces/other/widgets";
    let (code, body) = json(
        &client,
        "POST",
        elsewhere,
        &widget("x", value!({"colour": "red"})),
    )
    .await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    let (_, owner) = json(
        &client,
        "POST",
        WIDGETS,
        &widget("owner", value!({"colour": "red"})),
    )
    .await?;
    let owned = value!({"metadata": {"name": "owned", "ownerReferences": [{
        "apiVersion": "example.com/v1", "kind": "Widget", "name": "owner", "uid": owner["metadata"]["uid"]}]}});
    let (code, body) = json(&client, "POST", "/api/v1/namespaces/default/configmaps", &owned).await?;
    assert_eq!(code, StatusCode::CREATED, "{body}");
    json(&client, "DELETE", &format!("{WIDGETS}/owner"), &value!({})).await?;
    json(&client, "DELETE", "/api/v1/namespaces/other", &value!({})).await?;
    for path in [
        "/api/v1/namespaces/default/configmaps/owned",
        "/api/v1/namespaces/other",
        "/apis/example.com/v1/namespaces/other/widgets/x",
    ] {
        timeout(Duration::from_secs(40), async {
            while read(&client, path).await?["code"] != 404 {
                tokio::task::yield_now().await;
            }
            anyhow::Ok(())
        })
        .await
        .with_context(|| format!("{path} does not go"))??;
    }
    Ok(())
}

#[test]
fn a_restart_forgets_nothing() -> Result<()> {
    let mut server = Server::api_only()?;
    let file = server.write("crd.json", &definition().to_string())?;
    server.kubectl(&["apply", "-f", &file])?;
    server.kubectl(&[
        "wait",
        "--for=condition=Established",
        "crd/widgets.example.com",
        "--timeout=20s",
    ])?;
    let file = server.write("a.json", &widget("a", value!({"colour": "red"})).to_string())?;
    server.kubectl(&["apply", "-f", &file])?;
    server.crash_and_restart(&["--api-only"])?;
    let found = wait_for("the object after the restart", Duration::from_secs(10), || {
        server
            .kubectl(&["get", "widgets", "--field-selector=spec.colour=red", "-o", "name"])
            .ok()
    })?;
    assert_eq!(found, "widget.example.com/a\n");
    Ok(())
}

#[tokio::test]
async fn an_object_is_replaced_by_those_who_have_read_it() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let path = format!("{WIDGETS}/a");
    let (_, mut made) = json(&client, "POST", WIDGETS, &widget("a", value!({"colour": "red"}))).await?;
    let (code, body) = json(&client, "PUT", &path, &widget("a", value!({"colour": "green"}))).await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(
        body["message"],
        "Widget.example.com \"a\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
    );
    made["spec"]["colour"] = value!("green");
    let (code, body) = json(&client, "PUT", &path, &made).await?;
    assert_eq!(
        (code, &body["spec"]["colour"]),
        (StatusCode::OK, &value!("green"))
    );
    Ok(())
}

#[tokio::test]
async fn names_in_use_and_versions_that_were_stored_are_kept() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let mut other = definition();
    other["metadata"]["name"] = value!("gadgets.example.com");
    other["spec"]["names"] = value!({"plural": "gadgets", "kind": "Widget"});
    json(&client, "POST", DEFINITIONS, &other).await?;
    let path = format!("{DEFINITIONS}/gadgets.example.com");
    let refused = timeout(Duration::from_secs(10), async {
        loop {
            let found = read(&client, &path).await?;
            let conditions = found["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            if let Some(names) = conditions.into_iter().find(|c| c["type"] == "NamesAccepted") {
                return anyhow::Ok(names);
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .context("the names are not looked at")??;
    assert_eq!(
        (&refused["status"], &refused["message"]),
        (&value!("False"), &value!("\"WidgetList\" is already in use"))
    );
    let (code, _) = json(&client, "GET", "/apis/example.com/v1/gadgets", &Value::Null).await?;
    assert_eq!(code, StatusCode::NOT_FOUND);

    // The other version becomes the stored one; objects are still read in both, and the first stays on record.
    json(&client, "POST", WIDGETS, &widget("a", value!({"colour": "red"}))).await?;
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let swap = value!([{"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true}]);
    let (code, body) = send(
        &client,
        "PATCH",
        &path,
        "application/json-patch+json",
        swap.to_string(),
    )
    .await?;
    assert_eq!(code, StatusCode::OK, "{body}");
    assert_eq!(body["status"]["storedVersions"], value!(["v1", "v1beta1"]));
    for version in ["v1", "v1beta1"] {
        let found = read(
            &client,
            &format!("/apis/example.com/{version}/namespaces/default/widgets/a"),
        )
        .await?;
        assert_eq!(found["apiVersion"], format!("example.com/{version}"));
    }
    let gone = value!([{"op": "remove", "path": "/spec/versions/0"}]);
    let (code, body) = send(
        &client,
        "PATCH",
        &path,
        "application/json-patch+json",
        gone.to_string(),
    )
    .await?;
    assert_eq!(code, StatusCode::UNPROCESSABLE_ENTITY);
    let message = body["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("v1 was previously a storage version"),
        "{message}"
    );
    Ok(())
}

/// Whoever may write the status may write no more than that.
#[tokio::test]
async fn through_its_status_a_custom_resource_keeps_its_metadata() -> Result<()> {
    let server = Server::api_only()?;
    let client = server.client().await?;
    define(&client).await?;
    let mut object = widget("w", value!({"colour": "red"}));
    object["metadata"]["finalizers"] = value!(["example.com/keep"]);
    object["metadata"]["labels"] = value!({"a": "b"});
    let (code, mut object) = json(&client, "POST", WIDGETS, &object).await?;
    assert_eq!(code, StatusCode::CREATED, "{object}");
    object["metadata"]["finalizers"] = value!([]);
    object["metadata"]["labels"] = value!({"a": "c"});
    object["status"] = value!({"replicas": 3});
    let (code, answer) = json(&client, "PUT", &format!("{WIDGETS}/w/status"), &object).await?;
    assert_eq!(code, StatusCode::OK, "{answer}");
    assert_eq!(answer["status"]["replicas"], 3);
    assert_eq!(answer["metadata"]["finalizers"], value!(["example.com/keep"]));
    assert_eq!(answer["metadata"]["labels"], value!({"a": "b"}));
    Ok(())
}
