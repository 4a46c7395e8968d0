//! What the API does with objects of every kind, asked of those that conformance tests ask it of.

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use serde_json::{Value, json};
use weft_lab::raw::{self, get, json as send_json, next, watch};
use weft_lab::simulated::pod_template;

use crate::world::{World, eventually};

pub(super) const MERGE: &str = "application/merge-patch+json";

/// A resource, and an object of it that can be made under several names.
struct Kind {
    group_version: &'static str,
    plural: &'static str,
    namespaced: bool,
    names: [&'static str; 3],
    body: Value,
}

impl Kind {
    fn new(group_version: &'static str, plural: &'static str, body: Value) -> Self {
        Self {
            group_version,
            plural,
            namespaced: true,
            names: ["one", "two", "three"],
            body,
        }
    }

    fn of_the_cluster(self) -> Self {
        Self {
            namespaced: false,
            ..self
        }
    }

    fn prefix(&self) -> String {
        let root = if self.group_version.contains('/') {
            "apis"
        } else {
            "api"
        };
        format!("/{root}/{}", self.group_version)
    }

    /// The collection in all namespaces.
    fn everywhere(&self) -> String {
        format!("{}/{}", self.prefix(), self.plural)
    }

    /// The collection in the namespace `default`, if there are several.
    fn here(&self) -> String {
        if self.namespaced {
            format!("{}/namespaces/default/{}", self.prefix(), self.plural)
        } else {
            self.everywhere()
        }
    }

    fn labels(&self) -> String {
        format!("labelSelector=conformance%3D{}", self.plural)
    }

    fn object(&self, name: &str) -> Value {
        let mut object = self.body.clone();
        object["metadata"] = json!({ "name": name, "labels": { "conformance": self.plural } });
        object
    }
}

/// Sends a request that must succeed.
pub(super) async fn must(client: &Client, method: &str, path: &str, body: &Value) -> Result<Value> {
    let (code, answer) = send_json(client, method, path, body).await?;
    ensure!(code.is_success(), "{method} {path}: {answer}");
    Ok(answer)
}

/// Merges into an object; that must succeed.
pub(super) async fn merge(client: &Client, path: &str, patch: &Value) -> Result<Value> {
    let (code, answer) = raw::send(client, "PATCH", path, MERGE, patch.to_string()).await?;
    ensure!(code.is_success(), "PATCH {path}: {answer}");
    Ok(answer)
}

fn count(list: &Value) -> usize {
    list["items"].as_array().map_or(0, Vec::len)
}

/// Discovery, create, get, list, watch, patch, update, delete and delete of a collection.
async fn operations(world: &World, kind: &Kind) -> Result<()> {
    let client = &world.client;
    let served = get(client, &kind.prefix()).await?;
    let mut served = served["resources"].as_array().into_iter().flatten();
    let found = served.find(|resource| resource["name"] == kind.plural);
    let verbs = &found.context("it is not served")?["verbs"];
    for verb in [
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    ] {
        ensure!(
            verbs.as_array().is_some_and(|all| all.contains(&json!(verb))),
            "{verb} is not in {verbs}"
        );
    }
    if let Some((group, _)) = kind.group_version.split_once('/') {
        let groups = get(client, "/apis").await?;
        let mut groups = groups["groups"].as_array().into_iter().flatten();
        let found = groups.find(|found| found["name"] == group);
        let versions = &found.context("its group is not served")?["versions"];
        let named = |version: &Value| version["groupVersion"] == kind.group_version;
        ensure!(versions.as_array().is_some_and(|all| all.iter().any(named)));
    }

    let (here, labels) = (kind.here(), kind.labels());
    let lists = [
        format!("{here}?{labels}"),
        format!("{}?{labels}", kind.everywhere()),
    ];
    let start = get(client, &lists[0]).await?["metadata"]["resourceVersion"].clone();
    let start = start.as_str().context("no version")?;
    let mut events = watch(
        client,
        &format!("{}&watch=true&resourceVersion={start}", lists[1]),
    )
    .await?;

    let [first, second, third] = kind.names;
    let path = format!("{here}/{first}");
    let made = must(client, "POST", &here, &kind.object(first)).await?;
    ensure!(made["metadata"]["uid"] == get(client, &path).await?["metadata"]["uid"]);
    for list in &lists {
        ensure!(count(&get(client, list).await?) == 1, "{list}");
    }
    let patched = merge(
        client,
        &path,
        &json!({ "metadata": { "annotations": { "patched": "true" } } }),
    )
    .await?;
    ensure!(patched["metadata"]["annotations"]["patched"] == "true");
    // Others may write it, too.
    let updated = eventually("an update", || async {
        let mut object = get(client, &path).await.ok()?;
        object["metadata"]["annotations"]["updated"] = json!("true");
        must(client, "PUT", &path, &object).await.ok()
    })
    .await?;
    ensure!(updated["metadata"]["annotations"]["updated"] == "true");
    must(client, "DELETE", &path, &Value::Null).await?;

    let mut told = Vec::new();
    loop {
        let event = next(&mut events).await?;
        let annotations = &event["object"]["metadata"]["annotations"];
        let note = |name: &str| annotations[name] == "true";
        told.push((
            event["type"].as_str().unwrap_or_default().to_owned(),
            note("patched"),
            note("updated"),
        ));
        if event["type"] == "DELETED" {
            break;
        }
    }
    ensure!(told[0] == ("ADDED".to_owned(), false, false), "{told:?}");
    for seen in [(true, false), (true, true)] {
        ensure!(
            told.iter()
                .any(|(kind, patched, updated)| kind == "MODIFIED" && (*patched, *updated) == seen),
            "{told:?}"
        );
    }

    for name in [second, third] {
        must(client, "POST", &here, &kind.object(name)).await?;
    }
    ensure!(count(&get(client, &lists[0]).await?) == 2);
    must(client, "DELETE", &lists[0], &Value::Null).await?;
    eventually("the collection to be gone", || async {
        (count(&get(client, &lists[0]).await.ok()?) == 0).then_some(())
    })
    .await
}

/// The subresource status is read, replaced and patched; the spec does not change by that.
pub(super) async fn status_endpoints(world: &World, path: &str) -> Result<()> {
    let client = &world.client;
    let status = format!("{path}/status");
    let condition = |kind: &str| {
        json!({ "type": kind, "status": "True", "reason": "Test", "message": "set by a test",
        "lastTransitionTime": "2020-01-01T00:00:00Z" })
    };
    let has = |object: &Value, kind: &str| {
        let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|condition| condition["type"] == kind)
    };
    let plain = get(client, path).await?;
    ensure!(get(client, &status).await?["kind"] == plain["kind"]);
    let replaced = eventually("an update of the status", || async {
        let mut object = get(client, path).await.ok()?;
        object["spec"] = json!({});
        let mut conditions = object["status"]["conditions"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        conditions.push(condition("Replaced"));
        object["status"]["conditions"] = json!(conditions);
        must(client, "PUT", &status, &object).await.ok()
    })
    .await?;
    ensure!(has(&replaced, "Replaced"), "{replaced}");
    ensure!(replaced["spec"] == plain["spec"], "{replaced}");
    let patched = merge(
        client,
        &status,
        &json!({ "status": { "conditions": [condition("Patched")] } }),
    )
    .await?;
    ensure!(has(&patched, "Patched"), "{patched}");
    ensure!(patched["spec"] == plain["spec"], "{patched}");
    Ok(())
}

macro_rules! operations {
    ($($name:ident: $kind:expr;)+) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() -> Result<()> {
            operations(&World::start().await?, &$kind).await
        })+
    };
}

operations! {
    ingress_api_should_support_creating_ingress_api_operations:
        Kind::new("networking.k8s.io/v1", "ingresses", json!({
            "spec": { "defaultBackend": { "service": { "name": "s", "port": { "number": 80 } } } } }));
    ingress_class_api_should_support_creating_ingress_class_api_operations:
        Kind::new("networking.k8s.io/v1", "ingressclasses", json!({ "spec": { "controller": "example.com/c" } }))
            .of_the_cluster();
    service_cidr_and_ip_address_api_should_support_service_cidr_api_operations:
        Kind::new("networking.k8s.io/v1", "servicecidrs", json!({ "spec": { "cidrs": ["10.97.0.0/24"] } }))
            .of_the_cluster();
    service_cidr_and_ip_address_api_should_support_ip_address_api_operations:
        Kind { names: ["192.0.2.1", "192.0.2.2", "2001:db8::1"], ..Kind::new("networking.k8s.io/v1", "ipaddresses", json!({
            "spec": { "parentRef": { "group": "example.com", "resource": "things", "namespace": "default", "name": "x" } } })) }
            .of_the_cluster();
    endpoint_slice_should_support_creating_endpoint_slice_api_operations:
        Kind::new("discovery.k8s.io/v1", "endpointslices", json!({ "addressType": "IPv4",
            "endpoints": [{ "addresses": ["10.1.2.3"] }], "ports": [{ "name": "p", "port": 80 }] }));
    runtime_class_should_support_runtime_classes_api_operations:
        Kind::new("node.k8s.io/v1", "runtimeclasses", json!({ "handler": "h" })).of_the_cluster();
    lease_lease_api_should_be_available:
        Kind::new("coordination.k8s.io/v1", "leases", json!({ "spec": { "holderIdentity": "h", "leaseDurationSeconds": 30,
            "acquireTime": "2020-01-01T00:00:00.000000Z", "renewTime": "2020-01-01T00:00:05.000000Z", "leaseTransitions": 0 } }));
    limit_range_should_list_patch_and_delete_a_limit_range_by_collection:
        Kind::new("v1", "limitranges", json!({ "spec": { "limits": [{ "type": "Container", "default": { "cpu": "1" } }] } }));
    config_map_should_run_through_a_config_map_lifecycle: Kind::new("v1", "configmaps", json!({ "data": { "k": "v" } }));
    service_accounts_should_run_through_the_lifecycle_of_a_service_account: Kind::new("v1", "serviceaccounts", json!({}));
    pod_templates_should_run_the_lifecycle_of_pod_templates:
        Kind::new("v1", "podtemplates", json!({ "template": pod_template("web", "img:1") }));
    events_should_manage_the_lifecycle_of_an_event:
        Kind::new("v1", "events", json!({ "reason": "Test", "message": "first", "type": "Normal", "count": 1,
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": "x" } }));
    events_api_should_ensure_that_an_event_can_be_fetched_patched_deleted_and_listed:
        Kind::new("events.k8s.io/v1", "events", json!({ "reason": "Test", "note": "first", "type": "Normal", "action": "Do",
            "reportingController": "example.com/c", "reportingInstance": "c-1", "eventTime": "2020-01-01T00:00:00.000000Z",
            "regarding": { "kind": "Pod", "namespace": "default", "name": "x" } }));
    disruption_controller_should_create_a_pod_disruption_budget:
        Kind::new("policy/v1", "poddisruptionbudgets", json!({
            "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } }));
    endpoints_should_test_the_lifecycle_of_an_endpoint:
        Kind::new("v1", "endpoints", json!({ "subsets": [{ "addresses": [{ "ip": "10.1.2.3" }], "ports": [{ "port": 80 }] }] }));
    secrets_should_patch_a_secret: Kind::new("v1", "secrets", json!({ "stringData": { "k": "v" } }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cron_job_should_support_cron_job_api_operations() -> Result<()> {
    let world = World::start().await?;
    let mut template = pod_template("c", "img:1");
    template["spec"]["restartPolicy"] = json!("OnFailure");
    // Suspended: with a last run years ago the controller would start one, and write the status as well.
    let body = json!({ "spec": { "schedule": "0 0 1 1 *", "suspend": true,
        "jobTemplate": { "spec": { "template": template } } } });
    let kind = Kind::new("batch/v1", "cronjobs", body);
    operations(&world, &kind).await?;
    must(&world.client, "POST", &kind.here(), &kind.object("one")).await?;
    let status = format!("{}/one/status", kind.here());
    let at = |time: &str| json!({ "status": { "lastScheduleTime": time } });
    let patched = merge(&world.client, &status, &at("2020-01-01T00:00:00Z")).await?;
    ensure!(patched["status"]["lastScheduleTime"] == "2020-01-01T00:00:00Z");
    let mut object = get(&world.client, &status).await?;
    object["status"] = at("2021-01-01T00:00:00Z")["status"].clone();
    let updated = must(&world.client, "PUT", &status, &object).await?;
    ensure!(updated["status"]["lastScheduleTime"] == "2021-01-01T00:00:00Z");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_api_should_support_csr_api_operations() -> Result<()> {
    use base64::Engine as _;

    let world = World::start().await?;
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default()
        .serialize_request(&key)?
        .pem()?;
    let body = json!({ "spec": { "signerName": "example.com/nobody", "usages": ["client auth"],
        "request": base64::engine::general_purpose::STANDARD.encode(request) } });
    let kind = Kind::new("certificates.k8s.io/v1", "certificatesigningrequests", body).of_the_cluster();
    operations(&world, &kind).await?;
    must(&world.client, "POST", &kind.here(), &kind.object("one")).await?;
    let path = format!("{}/one", kind.here());
    let mut object = get(&world.client, &format!("{path}/approval")).await?;
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "reason": "Test", "message": "by a test" });
    object["status"]["conditions"] = json!([condition("Approved")]);
    let approved = must(&world.client, "PUT", &format!("{path}/approval"), &object).await?;
    ensure!(
        approved["status"]["conditions"][0]["type"] == "Approved",
        "{approved}"
    );
    let mut object = get(&world.client, &format!("{path}/status")).await?;
    let certificate = rcgen::CertificateParams::default().self_signed(&key)?.pem();
    object["status"]["certificate"] = json!(base64::engine::general_purpose::STANDARD.encode(certificate));
    let issued = must(&world.client, "PUT", &format!("{path}/status"), &object).await?;
    ensure!(
        issued["status"]["certificate"] == object["status"]["certificate"],
        "{issued}"
    );
    let patched = merge(
        &world.client,
        &format!("{path}/status"),
        &json!({ "metadata": { "annotations": { "patched": "true" } } }),
    )
    .await?;
    ensure!(patched["kind"] == "CertificateSigningRequest");
    Ok(())
}

/// Both ways to name events.
async fn events_go_together(group_version: &'static str, more: Value) -> Result<()> {
    let world = World::start().await?;
    let kind = Kind::new(group_version, "events", more);
    let names = ["one", "two", "three"];
    for name in names {
        must(&world.client, "POST", &kind.here(), &kind.object(name)).await?;
    }
    let selected = format!("{}?{}", kind.here(), kind.labels());
    ensure!(count(&get(&world.client, &selected).await?) == 3);
    must(&world.client, "DELETE", &selected, &Value::Null).await?;
    ensure!(count(&get(&world.client, &selected).await?) == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_should_delete_a_collection_of_events() -> Result<()> {
    let body = json!({ "reason": "Test", "message": "m", "type": "Normal",
        "involvedObject": { "kind": "Pod", "namespace": "default", "name": "x" } });
    events_go_together("v1", body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_api_should_delete_a_collection_of_events() -> Result<()> {
    let body = json!({ "reason": "Test", "note": "n", "type": "Normal", "action": "Do", "reportingController": "example.com/c",
        "reportingInstance": "c-1", "eventTime": "2020-01-01T00:00:00.000000Z",
        "regarding": { "kind": "Pod", "namespace": "default", "name": "x" } });
    events_go_together("events.k8s.io/v1", body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_templates_should_replace_a_pod_template_and_delete_a_collection() -> Result<()> {
    let world = World::start().await?;
    let kind = Kind::new(
        "v1",
        "podtemplates",
        json!({ "template": pod_template("web", "img:1") }),
    );
    for name in kind.names {
        must(&world.client, "POST", &kind.here(), &kind.object(name)).await?;
    }
    let path = format!("{}/one", kind.here());
    let mut object = get(&world.client, &path).await?;
    object["template"]["spec"]["containers"][0]["image"] = json!("img:2");
    let replaced = must(&world.client, "PUT", &path, &object).await?;
    ensure!(replaced["template"]["spec"]["containers"][0]["image"] == "img:2");
    let selected = format!("{}?{}", kind.here(), kind.labels());
    must(&world.client, "DELETE", &selected, &Value::Null).await?;
    ensure!(count(&get(&world.client, &selected).await?) == 0);
    Ok(())
}

/// An empty key names nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn config_maps_and_secrets_should_fail_to_be_created_with_an_empty_key() -> Result<()> {
    let world = World::start().await?;
    for (plural, data) in [("configmaps", "value-1"), ("secrets", "dmFsdWUtMQ==")] {
        let kind = Kind::new("v1", plural, json!({ "data": { "": data } }));
        let (code, answer) = send_json(&world.client, "POST", &kind.here(), &kind.object("one")).await?;
        ensure!(
            code == 422 && answer["reason"] == "Invalid",
            "{plural}: {code} {answer}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_accounts_should_update_a_service_account() -> Result<()> {
    let world = World::start().await?;
    let kind = Kind::new("v1", "serviceaccounts", json!({}));
    let mut account = must(&world.client, "POST", &kind.here(), &kind.object("one")).await?;
    account["automountServiceAccountToken"] = json!(true);
    let path = format!("{}/one", kind.here());
    must(&world.client, "PUT", &path, &account).await?;
    ensure!(get(&world.client, &path).await?["automountServiceAccountToken"] == true);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_list_and_delete_a_collection_in_all_namespaces() -> Result<()> {
    let world = World::start().await?;
    let namespace = json!({ "metadata": { "name": "other" } });
    must(&world.client, "POST", "/api/v1/namespaces", &namespace).await?;
    let body = json!({ "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    let kind = Kind::new("policy/v1", "poddisruptionbudgets", body);
    let other = kind.here().replace("/default/", "/other/");
    for (collection, name) in [(&kind.here(), "one"), (&kind.here(), "two"), (&other, "three")] {
        must(&world.client, "POST", collection, &kind.object(name)).await?;
    }
    let everywhere = format!("{}?{}", kind.everywhere(), kind.labels());
    ensure!(count(&get(&world.client, &everywhere).await?) == 3);
    must(
        &world.client,
        "DELETE",
        &format!("{}?{}", kind.here(), kind.labels()),
        &Value::Null,
    )
    .await?;
    let left = get(&world.client, &everywhere).await?;
    ensure!(count(&left) == 1 && left["items"][0]["metadata"]["namespace"] == "other");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_update_and_patch_its_status() -> Result<()> {
    let world = World::start().await?;
    let body = json!({ "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    let kind = Kind::new("policy/v1", "poddisruptionbudgets", body);
    must(&world.client, "POST", &kind.here(), &kind.object("one")).await?;
    let path = format!("{}/one", kind.here());
    eventually("the controller to have counted", || async {
        get(&world.client, &path).await.ok()?["status"]["observedGeneration"]
            .as_i64()
            .filter(|seen| *seen > 0)
    })
    .await?;
    let status = format!("{path}/status");
    let pods = |name: &str| json!({ "status": { "disruptedPods": { name: "2020-01-01T00:00:00Z" } } });
    let patched = merge(&world.client, &status, &pods("patched")).await?;
    ensure!(
        patched["status"]["disruptedPods"]["patched"] == "2020-01-01T00:00:00Z",
        "{patched}"
    );
    let updated = eventually("an update of the status", || async {
        let mut object = get(&world.client, &status).await.ok()?;
        object["status"]["disruptedPods"] = pods("updated")["status"]["disruptedPods"].clone();
        must(&world.client, "PUT", &status, &object).await.ok()
    })
    .await?;
    ensure!(
        updated["status"]["disruptedPods"]["updated"] == "2020-01-01T00:00:00Z",
        "{updated}"
    );
    Ok(())
}
