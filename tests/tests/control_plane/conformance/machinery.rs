//! Discovery, watches, namespaces, strict decoding, and objects that go with their owners.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use futures::stream::BoxStream;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ReplicationController, Service};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use weft_lab::raw::{get, json as send_json, next, send, send_with, watch};
use weft_lab::simulated::{deployment, pod_template};

use super::objects::{merge, must};
use super::workloads::controller;
use crate::world::{World, eventually};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn version(event: &Value) -> String {
    let version = &event["object"]["metadata"]["resourceVersion"];
    version.as_str().unwrap_or_default().to_owned()
}

/// `TYPE name value`.
async fn brief(events: &mut BoxStream<'static, Value>) -> Result<String> {
    let event = next(events).await?;
    let object = &event["object"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(format!(
        "{} {} {}",
        text(&event["type"]),
        text(&object["metadata"]["name"]),
        text(&object["data"]["v"])
    ))
}

fn map(name: &str, value: &str) -> Value {
    json!({ "metadata": { "name": name, "labels": { "set": name } }, "data": { "v": value } })
}

/// Group versions that the server serves, with their groups.
async fn group_versions(world: &World) -> Result<Vec<(Value, String)>> {
    let groups = get(&world.client, "/apis").await?;
    let mut found = Vec::new();
    for group in groups["groups"].as_array().context("no groups")? {
        for version in group["versions"].as_array().context("no versions")? {
            let name = version["groupVersion"].as_str().context("no name")?.to_owned();
            found.push((group.clone(), name));
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_should_locate_the_group_version_and_a_resource_within_each_api_group() -> Result<()> {
    let world = World::start().await?;
    let all = group_versions(&world).await?;
    ensure!(all.len() > 10, "{all:?}");
    for (_, version) in all {
        let list = get(&world.client, &format!("/apis/{version}")).await?;
        ensure!(list["groupVersion"] == *version, "{list}");
        let resources = list["resources"].as_array().context("no resources")?;
        ensure!(
            resources
                .iter()
                .all(|one| one["name"].is_string() && one["kind"].is_string())
        );
        ensure!(!resources.is_empty(), "{version} has no resource");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_should_validate_preferred_version_for_each_api_group() -> Result<()> {
    let world = World::start().await?;
    for (group, _) in group_versions(&world).await? {
        let name = group["name"].as_str().context("no name")?;
        let alone = get(&world.client, &format!("/apis/{name}")).await?;
        let preferred = &alone["preferredVersion"];
        ensure!(*preferred == group["preferredVersion"], "{group}");
        let versions = group["versions"].as_array().context("no versions")?;
        ensure!(versions.contains(preferred), "{group}");
    }
    Ok(())
}

/// Group, version and resources of both aggregated documents.
async fn aggregated(world: &World, accept: &str) -> Result<BTreeSet<(String, String, String)>> {
    let mut found = BTreeSet::new();
    for root in ["/api", "/apis"] {
        let (code, list) = send_with(&world.client, "GET", root, &[("accept", accept)], Vec::new()).await?;
        ensure!(
            code == 200 && list["kind"] == "APIGroupDiscoveryList",
            "{accept}: {list}"
        );
        for group in list["items"].as_array().context("no items")? {
            for version in group["versions"].as_array().context("no versions")? {
                for resource in version["resources"].as_array().context("no resources")? {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    found.insert((
                        text(&group["metadata"]["name"]),
                        text(&version["version"]),
                        text(&resource["resource"]),
                    ));
                }
            }
        }
    }
    Ok(found)
}

const BUILT_IN: &[(&str, &str, &str)] = &[
    ("", "v1", "namespaces"),
    ("", "v1", "nodes"),
    ("", "v1", "configmaps"),
    ("apps", "v1", "deployments"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregated_discovery_should_support_aggregated_discovery_interface() -> Result<()> {
    let world = World::start().await?;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let found = aggregated(&world, accept).await?;
    for (group, version, resource) in BUILT_IN {
        let wanted = ((*group).to_owned(), (*version).to_owned(), (*resource).to_owned());
        ensure!(found.contains(&wanted), "{wanted:?}");
    }
    // What the old form says is what the new one says.
    for (group, version) in group_versions(&world).await? {
        let list = get(&world.client, &format!("/apis/{version}")).await?;
        for resource in list["resources"].as_array().into_iter().flatten() {
            let name = resource["name"].as_str().unwrap_or_default();
            let version = version.split_once('/').context("a group version")?.1;
            let wanted = (
                group["name"].as_str().unwrap_or_default().to_owned(),
                version.to_owned(),
                name.to_owned(),
            );
            ensure!(name.contains('/') || found.contains(&wanted), "{wanted:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aggregated_discovery_should_support_raw_aggregated_discovery_endpoint_accept_headers() -> Result<()>
{
    let world = World::start().await?;
    let of = |version: &str| {
        format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
    };
    let (newer, older) = (
        aggregated(&world, &of("v2")).await?,
        aggregated(&world, &of("v2beta1")).await?,
    );
    ensure!(newer == older);
    for (accept, kind) in [
        ("application/json", "APIGroupList"),
        ("*/*", "APIGroupList"),
        (
            "application/json;g=apidiscovery.k8s.io;v=v99;as=APIGroupDiscoveryList,application/json",
            "APIGroupList",
        ),
    ] {
        let (code, list) =
            send_with(&world.client, "GET", "/apis", &[("accept", accept)], Vec::new()).await?;
        ensure!(code == 200 && list["kind"] == kind, "{accept}: {list}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_version_should_find_the_server_version() -> Result<()> {
    let world = World::start().await?;
    let version = get(&world.client, "/version").await?;
    for part in ["major", "minor"] {
        let text = version[part].as_str().unwrap_or_default();
        ensure!(
            !text.is_empty() && text.chars().all(|c| c.is_ascii_digit()),
            "{version}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_with_support_for_table_transformation_should_return_a_406_for_a_backend_which_does_not_implement_metadata()
-> Result<()> {
    let world = World::start().await?;
    let headers = [
        ("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"),
        ("content-type", "application/json"),
    ];
    let review = json!({ "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": { "namespace": "default", "verb": "get", "resource": "pods" } } });
    let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let (code, answer) = send_with(&world.client, "POST", path, &headers, review.to_string()).await?;
    ensure!(code == 406 && answer["reason"] == "NotAcceptable", "{answer}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_should_observe_add_update_and_delete_watch_notifications_on_configmaps() -> Result<()> {
    let world = World::start().await?;
    let client = &world.client;
    let watched = |selector: &str| format!("{CONFIG_MAPS}?watch=true&labelSelector={selector}");
    let mut a = watch(client, &watched("set%3Da")).await?;
    let mut b = watch(client, &watched("set%3Db")).await?;
    let mut both = watch(client, &watched("set+in+(a,b)")).await?;
    must(client, "POST", CONFIG_MAPS, &map("a", "1")).await?;
    for value in ["2", "3"] {
        merge(
            client,
            &format!("{CONFIG_MAPS}/a"),
            &json!({ "data": { "v": value } }),
        )
        .await?;
    }
    must(client, "DELETE", &format!("{CONFIG_MAPS}/a"), &Value::Null).await?;
    must(client, "POST", CONFIG_MAPS, &map("b", "1")).await?;
    must(client, "DELETE", &format!("{CONFIG_MAPS}/b"), &Value::Null).await?;
    let (of_a, of_b) = (
        ["ADDED a 1", "MODIFIED a 2", "MODIFIED a 3", "DELETED a 3"],
        ["ADDED b 1", "DELETED b 1"],
    );
    for expected in of_a {
        assert_eq!(brief(&mut a).await?, expected);
    }
    for expected in of_b {
        assert_eq!(brief(&mut b).await?, expected);
    }
    for expected in of_a.into_iter().chain(of_b) {
        assert_eq!(brief(&mut both).await?, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_should_be_able_to_restart_watching_from_the_last_resource_version_observed() -> Result<()> {
    let world = World::start().await?;
    let client = &world.client;
    let path = format!("{CONFIG_MAPS}?watch=true&labelSelector=set%3Da");
    let mut events = watch(client, &path).await?;
    must(client, "POST", CONFIG_MAPS, &map("a", "1")).await?;
    let one = format!("{CONFIG_MAPS}/a");
    merge(client, &one, &json!({ "data": { "v": "2" } })).await?;
    assert_eq!(brief(&mut events).await?, "ADDED a 1");
    let last = next(&mut events).await?;
    assert_eq!(last["type"], "MODIFIED");
    drop(events);
    merge(client, &one, &json!({ "data": { "v": "3" } })).await?;
    must(client, "DELETE", &one, &Value::Null).await?;
    let mut events = watch(client, &format!("{path}&resourceVersion={}", version(&last))).await?;
    assert_eq!(brief(&mut events).await?, "MODIFIED a 3");
    assert_eq!(brief(&mut events).await?, "DELETED a 3");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_should_receive_events_on_concurrent_watches_in_same_order() -> Result<()> {
    const WRITES: usize = 40;
    let world = World::start().await?;
    let client = &world.client;
    let start = get(client, CONFIG_MAPS).await?["metadata"]["resourceVersion"].clone();
    let from = |version: &str| format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}");
    let mut first = watch(client, &from(start.as_str().context("a version")?)).await?;
    let writers = (0..4).map(|writer| async move {
        for write in 0..WRITES / 4 {
            let (name, value) = (format!("m{writer}-{}", write / 3), write.to_string());
            let step = match write % 3 {
                0 => must(client, "POST", CONFIG_MAPS, &map(&name, &value)).await,
                1 => {
                    let patch = json!({ "data": { "v": value } });
                    merge(client, &format!("{CONFIG_MAPS}/{name}"), &patch).await
                }
                _ => must(client, "DELETE", &format!("{CONFIG_MAPS}/{name}"), &Value::Null).await,
            };
            step?;
        }
        anyhow::Ok(())
    });
    let reading = async {
        let (mut versions, mut others) = (Vec::new(), Vec::new());
        for _ in 0..WRITES {
            let event = next(&mut first).await?;
            others.push(watch(client, &from(&version(&event))).await?);
            versions.push(version(&event));
        }
        anyhow::Ok((versions, others))
    };
    let (written, read) = tokio::join!(futures::future::try_join_all(writers), reading);
    written?;
    let (versions, others) = read?;
    for (begun, mut events) in others.into_iter().enumerate() {
        for expected in &versions[begun + 1..] {
            assert_eq!(version(&next(&mut events).await?), *expected);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_validation_should_detect_unknown_and_duplicate_fields_of_a_typed_object() -> Result<()> {
    let world = World::start().await?;
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let body = r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web"},"unknown1":"val1","spec":{
        "unknownDupe":"valDupe","unknownDupe":"valDupe2","paused":true,"paused":false,"replicas":1,
        "selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},
        "spec":{"containers":[{"name":"c","image":"i","unknownNested":"val1","imagePullPolicy":"Always","imagePullPolicy":"Never"}]}}}}"#;
    let (code, answer) = send(&world.client, "POST", path, "application/json", body).await?;
    ensure!(code == 400, "{answer}");
    let message = answer["message"].as_str().unwrap_or_default();
    for part in [
        "strict decoding error",
        "unknown field \"unknown1\"",
        "unknown field \"spec.unknownDupe\"",
        "duplicate field \"spec.paused\"",
        "unknown field \"spec.template.spec.containers[0].unknownNested\"",
        "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
    ] {
        ensure!(message.contains(part), "{part} is not in {message}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_validation_should_detect_unknown_metadata_fields_of_a_typed_object() -> Result<()> {
    let world = World::start().await?;
    let mut web = deployment("web", 1, "img:1");
    web["metadata"]["unknownMeta"] = json!("x");
    web["spec"]["template"]["metadata"]["unknownMeta"] = json!("y");
    let path = "/apis/apps/v1/namespaces/default/deployments?fieldValidation=Strict";
    let (code, answer) = send_json(&world.client, "POST", path, &web).await?;
    let message = answer["message"].as_str().unwrap_or_default();
    ensure!(
        code == 400
            && message.contains("unknown field \"metadata.unknownMeta\"")
            && message.contains("unknown field \"spec.template.metadata.unknownMeta\""),
        "{answer}"
    );
    Ok(())
}

async fn gone<K>(world: &World, name: &str) -> Option<()>
where
    K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    world.api::<K>().get_opt(name).await.ok()?.is_none().then_some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_delete_rs_created_by_deployment_when_not_orphaning() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 2, "img:1")).await?;
    world.wait_ready("app=web", 2).await?;
    let api = world.api::<Deployment>();
    api.delete("web", &DeleteParams::background()).await?;
    gone::<Deployment>(&world, "web")
        .await
        .context("a Deployment goes at once")?;
    eventually("sets and pods to go", || async {
        let gone = world.sets().await.ok()?.is_empty() && world.pods("app=web").await.ok()?.is_empty();
        gone.then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_orphan_rs_created_by_deployment() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 2, "img:1")).await?;
    world.wait_ready("app=web", 2).await?;
    let api = world.api::<Deployment>();
    api.delete("web", &DeleteParams::orphan()).await?;
    eventually("the Deployment to go", || gone::<Deployment>(&world, "web")).await?;
    let sets = world.sets().await?;
    ensure!(
        sets.len() == 1 && sets[0].owner_references().is_empty(),
        "{sets:?}"
    );
    ensure!(world.ready("app=web").await?.len() == 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_delete_pods_created_by_rc_when_not_orphaning() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world
        .create::<ReplicationController>(controller("web", 2))
        .await?;
    world.wait_ready("app=web", 2).await?;
    let api = world.api::<ReplicationController>();
    api.delete("web", &DeleteParams::background()).await?;
    gone::<ReplicationController>(&world, "web")
        .await
        .context("it goes at once")?;
    eventually("its pods to go", || async {
        world.pods("app=web").await.ok()?.is_empty().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_orphan_pods_created_by_rc_if_delete_options_say_so() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world
        .create::<ReplicationController>(controller("web", 10))
        .await?;
    world.wait_ready("app=web", 10).await?;
    let api = world.api::<ReplicationController>();
    api.delete("web", &DeleteParams::orphan()).await?;
    eventually("the controller to go", || {
        gone::<ReplicationController>(&world, "web")
    })
    .await?;
    let pods = world.ready("app=web").await?;
    ensure!(pods.len() == 10 && pods.iter().all(|pod| pod.owner_references().is_empty()));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_keep_the_rc_around_until_all_its_pods_are_deleted() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world
        .create::<ReplicationController>(controller("web", 10))
        .await?;
    let held = world.wait_ready("app=web", 10).await?.remove(0).name_any();
    let hold = |finalizers: Value| json!({ "metadata": { "finalizers": finalizers } });
    world
        .merge::<Pod>(&held, hold(json!(["example.com/hold"])))
        .await?;
    let api = world.api::<ReplicationController>();
    api.delete("web", &DeleteParams::foreground()).await?;
    eventually("all pods but one to go", || async {
        (world.pods("app=web").await.ok()?.len() == 1).then_some(())
    })
    .await?;
    let waiting = api.get("web").await?;
    ensure!(waiting.metadata.deletion_timestamp.is_some());
    ensure!(
        waiting.finalizers() == ["foregroundDeletion"],
        "{:?}",
        waiting.finalizers()
    );
    world.merge::<Pod>(&held, hold(json!(null))).await?;
    eventually("the controller to go", || {
        gone::<ReplicationController>(&world, "web")
    })
    .await?;
    ensure!(world.pods("app=web").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_not_delete_dependents_that_have_both_valid_owner_and_owner_waiting_for_dependents()
-> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world
        .create::<ReplicationController>(controller("goes", 6))
        .await?;
    let stays = world
        .create::<ReplicationController>(controller("stays", 0))
        .await?;
    let pods = world.wait_ready("app=goes", 6).await?;
    let shared: BTreeSet<String> = pods[..3].iter().map(kube::ResourceExt::name_any).collect();
    for pod in &pods[..3] {
        let mut owners = serde_json::to_value(pod.owner_references())?;
        owners.as_array_mut().context("owners")?.push(json!({
            "apiVersion": "v1", "kind": "ReplicationController", "name": "stays", "uid": stays.uid() }));
        let patch = json!({ "metadata": { "ownerReferences": owners } });
        world.merge::<Pod>(&pod.name_any(), patch).await?;
    }
    let api = world.api::<ReplicationController>();
    api.delete("goes", &DeleteParams::foreground()).await?;
    eventually("the controller to go", || {
        gone::<ReplicationController>(&world, "goes")
    })
    .await?;
    let left = world.pods("app=goes").await?;
    ensure!(left.iter().all(|pod| pod.metadata.deletion_timestamp.is_none()
        && pod.owner_references().iter().all(|owner| owner.name == "stays")));
    let names: BTreeSet<String> = left.iter().map(kube::ResourceExt::name_any).collect();
    ensure!(names == shared, "{names:?} are left of {shared:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_collector_should_not_be_blocked_by_dependency_circle() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut made = Vec::new();
    for name in ["pod1", "pod2", "pod3"] {
        let mut pod = pod_template("circle", "img:1");
        pod["metadata"]["name"] = json!(name);
        made.push(world.create::<Pod>(pod).await?);
    }
    for (pod, owner) in [(0, 2), (1, 0), (2, 1)] {
        let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": made[owner].name_any(), "uid": made[owner].uid(),
            "controller": true, "blockOwnerDeletion": true });
        let patch = json!({ "metadata": { "ownerReferences": [owner] } });
        world.merge::<Pod>(&made[pod].name_any(), patch).await?;
    }
    let api = world.api::<Pod>();
    api.delete("pod1", &DeleteParams::foreground()).await?;
    eventually("the circle to go", || async {
        world.pods("app=circle").await.ok()?.is_empty().then_some(())
    })
    .await
}

/// A namespace `team`, complete with what every namespace gets.
async fn team(world: &World) -> Result<Api<Namespace>> {
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "name": "team" } }))?;
    namespaces.create(&PostParams::default(), &namespace).await?;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "team");
    eventually("the namespace to be complete", || async {
        maps.get_opt("kube-root-ca.crt").await.ok()?.map(|_| ())
    })
    .await?;
    Ok(namespaces)
}

async fn ends(namespaces: &Api<Namespace>) -> Result<()> {
    eventually("the namespace to go", || async {
        namespaces.get_opt("team").await.ok()?.is_none().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_should_apply_a_finalizer_to_a_namespace() -> Result<()> {
    let world = World::start().await?;
    team(&world).await?;
    let path = "/api/v1/namespaces/team";
    let own = json!(["kubernetes"]);
    for finalizers in [json!(["kubernetes", "example.com/fake"]), own] {
        let mut namespace = get(&world.client, path).await?;
        namespace["spec"]["finalizers"] = finalizers.clone();
        must(&world.client, "PUT", &format!("{path}/finalize"), &namespace).await?;
        ensure!(get(&world.client, path).await?["spec"]["finalizers"] == finalizers);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_should_patch_and_apply_an_update_to_a_namespace() -> Result<()> {
    let world = World::start().await?;
    let namespaces = team(&world).await?;
    let path = "/api/v1/namespaces/team";
    let patch = json!({ "metadata": { "labels": { "patched": "yes" } } }).to_string();
    let strategic = "application/strategic-merge-patch+json";
    let (code, patched) = send(&world.client, "PATCH", path, strategic, patch).await?;
    ensure!(
        code == 200 && patched["metadata"]["labels"]["patched"] == "yes",
        "{patched}"
    );
    let mut namespace = namespaces.get("team").await?;
    namespace
        .labels_mut()
        .insert("updated".to_owned(), "yes".to_owned());
    let updated = namespaces
        .replace("team", &PostParams::default(), &namespace)
        .await?;
    ensure!(updated.labels()["patched"] == "yes" && updated.labels()["updated"] == "yes");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_should_apply_changes_to_a_namespace_status() -> Result<()> {
    let world = World::start().await?;
    team(&world).await?;
    let path = "/api/v1/namespaces/team";
    ensure!(get(&world.client, path).await?["status"]["phase"] == "Active");
    super::objects::status_endpoints(&world, path).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_should_ensure_that_all_pods_and_services_are_removed_when_a_namespace_is_deleted()
-> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let namespaces = team(&world).await?;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "team");
    let services: Api<Service> = Api::namespaced(world.client.clone(), "team");
    let mut pod = pod_template("web", "img:1");
    pod["metadata"]["name"] = json!("web");
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } });
    services
        .create(&PostParams::default(), &serde_json::from_value(service)?)
        .await?;
    eventually("the pod to run", || async {
        crate::world::is_ready(&pods.get("web").await.ok()?).then_some(())
    })
    .await?;
    namespaces.delete("team", &DeleteParams::default()).await?;
    ends(&namespaces).await?;
    team(&world).await?;
    ensure!(pods.list(&ListParams::default()).await?.items.is_empty());
    ensure!(services.list(&ListParams::default()).await?.items.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordered_namespace_deletion_namespace_deletion_should_delete_pod_first() -> Result<()> {
    let world = World::start().await?;
    let namespaces = team(&world).await?;
    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "team");
    let mut pod = pod_template("web", "img:1");
    pod["metadata"] = json!({ "name": "web", "finalizers": ["example.com/hold"] });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
        .await?;
    let kept = serde_json::from_value(map("kept", "1"))?;
    maps.create(&PostParams::default(), &kept).await?;
    namespaces.delete("team", &DeleteParams::default()).await?;
    eventually(
        "the pod to be told, and what is in the way to be said",
        || async {
            pods.get("web").await.ok()?.metadata.deletion_timestamp?;
            let status = namespaces.get("team").await.ok()?.status?;
            let mut said = status.conditions?.into_iter();
            said.find(|condition| {
                condition.type_ == "NamespaceFinalizersRemaining" && condition.status == "True"
            })
        },
    )
    .await?;
    ensure!(
        maps.get_opt("kept").await?.is_some(),
        "it went before the pod was gone"
    );
    let free = json!({ "metadata": { "finalizers": null } });
    merge(&world.client, "/api/v1/namespaces/team/pods/web", &free).await?;
    ends(&namespaces).await
}
