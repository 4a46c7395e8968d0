//! Controllers of pods, disruption budgets, Services and accounts.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, LimitRange, Pod, ReplicationController, ResourceQuota, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use weft_lab::raw::{get, json as send_json, next, send_with, watch};
use weft_lab::simulated::{deployment, pod_template};

use super::objects::{merge, must, status_endpoints};
use crate::world::{World, eventually};

const DEFAULT: &str = "/api/v1/namespaces/default";
const APPS: &str = "/apis/apps/v1/namespaces/default";

/// A ReplicationController.
pub(super) fn controller(name: &str, replicas: usize) -> Value {
    json!({ "metadata": { "name": name, "labels": { "app": name } },
        "spec": { "replicas": replicas, "selector": { "app": name }, "template": pod_template(name, "img:1") } })
}

fn set(name: &str, replicas: usize) -> Value {
    let mut set = deployment(name, replicas, "img:1");
    set["kind"] = json!("ReplicaSet");
    set["metadata"]["labels"] = json!({ "app": name });
    set
}

fn pod(name: &str) -> Value {
    let mut pod = pod_template(name, "img:1");
    pod["metadata"]["name"] = json!(name);
    pod
}

fn owned_by(pod: &Pod, uid: Option<&String>) -> bool {
    pod.owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && Some(&owner.uid) == uid)
}

/// The subresource scale is read, replaced and patched, and the pods follow.
async fn scale_endpoints(world: &World, path: &str, selector: &str) -> Result<()> {
    let scale = format!("{path}/scale");
    let mut read = get(&world.client, &scale).await?;
    ensure!(read["kind"] == "Scale" && read["spec"]["replicas"] == 1, "{read}");
    ensure!(read["status"]["selector"] == selector, "{read}");
    read["spec"]["replicas"] = json!(2);
    let updated = eventually("an update of the scale", || async {
        let mut scaled = get(&world.client, &scale).await.ok()?;
        scaled["spec"]["replicas"] = json!(2);
        must(&world.client, "PUT", &scale, &scaled).await.ok()
    })
    .await?;
    ensure!(updated["spec"]["replicas"] == 2);
    world.wait_ready(selector, 2).await?;
    let patched = merge(&world.client, &scale, &json!({ "spec": { "replicas": 4 } })).await?;
    ensure!(patched["spec"]["replicas"] == 4);
    world.wait_ready(selector, 4).await?;
    ensure!(get(&world.client, path).await?["spec"]["replicas"] == 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_should_have_a_working_scale_subresource() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    world.wait_ready("app=web", 1).await?;
    scale_endpoints(&world, &format!("{APPS}/deployments/web"), "app=web").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_set_should_have_a_working_scale_subresource() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<ReplicaSet>(set("web", 1)).await?;
    world.wait_ready("app=web", 1).await?;
    scale_endpoints(&world, &format!("{APPS}/replicasets/web"), "app=web").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controller_should_get_and_update_a_replication_controller_scale() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world
        .create::<ReplicationController>(controller("web", 1))
        .await?;
    world.wait_ready("app=web", 1).await?;
    scale_endpoints(
        &world,
        &format!("{DEFAULT}/replicationcontrollers/web"),
        "app=web",
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_and_replica_set_should_validate_status_endpoints() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    world.create::<ReplicaSet>(set("alone", 1)).await?;
    world.wait_ready("app=web", 1).await?;
    world.wait_ready("app=alone", 1).await?;
    status_endpoints(&world, &format!("{APPS}/deployments/web")).await?;
    status_endpoints(&world, &format!("{APPS}/replicasets/alone")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deployment_should_run_the_lifecycle_of_a_deployment() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let client = &world.client;
    let path = format!("{APPS}/deployments/web");
    let query = "fieldSelector=metadata.name%3Dweb&watch=true";
    let mut events = watch(client, &format!("/apis/apps/v1/deployments?{query}")).await?;
    let mut web = deployment("web", 2, "img:1");
    web["metadata"]["labels"] = json!({ "static": "true" });
    must(client, "POST", &format!("{APPS}/deployments"), &web).await?;
    world.wait_ready("app=web", 2).await?;
    let patch = json!({ "metadata": { "labels": { "patched": "true" } },
        "spec": { "replicas": 3, "template": { "spec": { "terminationGracePeriodSeconds": 0 } } } });
    merge(client, &path, &patch).await?;
    eventually("the patched template to be rolled out", || async {
        let web = world.deployment("web").await.ok()?;
        let status = web.status?;
        (status.updated_replicas == Some(3) && status.ready_replicas == Some(3) && status.replicas == Some(3))
            .then_some(())
    })
    .await?;
    let everywhere = get(client, "/apis/apps/v1/deployments?labelSelector=static%3Dtrue").await?;
    ensure!(everywhere["items"].as_array().is_some_and(|all| all.len() == 1));
    ensure!(get(client, &format!("{path}/status")).await?["status"]["readyReplicas"] == 3);
    let image =
        json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "image": "img:2" }] } } } });
    merge(client, &path, &image).await?;
    eventually("the new image to be everywhere", || async {
        let pods = world.ready("app=web").await.ok()?;
        let images: BTreeSet<_> = pods
            .iter()
            .filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone())
            .collect();
        (pods.len() == 3 && images == BTreeSet::from(["img:2".to_owned()])).then_some(())
    })
    .await?;
    let selected = format!("{APPS}/deployments?labelSelector=static%3Dtrue");
    must(client, "DELETE", &selected, &Value::Null).await?;
    let mut told = Vec::new();
    while told.last().is_none_or(|kind| kind != "DELETED") {
        told.push(
            next(&mut events).await?["type"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
        );
    }
    ensure!(told[0] == "ADDED" && told[1..told.len() - 1].iter().all(|kind| kind == "MODIFIED"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_set_replace_and_patch_tests() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<ReplicaSet>(set("web", 1)).await?;
    world.wait_ready("app=web", 1).await?;
    let path = format!("{APPS}/replicasets/web");
    eventually("a replacement", || async {
        let mut object = get(&world.client, &path).await.ok()?;
        object["spec"]["replicas"] = json!(2);
        must(&world.client, "PUT", &path, &object).await.ok()
    })
    .await?;
    world.wait_ready("app=web", 2).await?;
    let patch = json!({ "metadata": { "labels": { "patched": "yes" } },
        "spec": { "replicas": 3, "template": { "spec": { "terminationGracePeriodSeconds": 0 } } } });
    let patched = merge(&world.client, &path, &patch).await?;
    ensure!(patched["metadata"]["labels"]["patched"] == "yes");
    ensure!(patched["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 0);
    world.wait_ready("app=web", 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_set_should_list_and_delete_a_collection_of_replica_sets() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    for name in ["one", "two", "three"] {
        let mut made = set(name, 1);
        made["metadata"]["labels"] = json!({ "e2e": "true" });
        world.create::<ReplicaSet>(made).await?;
    }
    let everywhere = "/apis/apps/v1/replicasets?labelSelector=e2e%3Dtrue";
    let list = get(&world.client, everywhere).await?;
    ensure!(list["items"].as_array().is_some_and(|all| all.len() == 3));
    let here = format!("{APPS}/replicasets?labelSelector=e2e%3Dtrue");
    must(&world.client, "DELETE", &here, &Value::Null).await?;
    ensure!(world.sets().await?.is_empty());
    eventually("their pods to go", || async {
        world.pods("").await.ok()?.is_empty().then_some(())
    })
    .await
}

/// A pod that was there is taken over; one whose labels change is let go and replaced.
async fn adopts_and_releases(world: &World, selector: &str, uid: Option<String>) -> Result<()> {
    let adopted = eventually("the pod to be adopted", || async {
        let pods = world.ready(selector).await.ok()?;
        pods.into_iter()
            .find(|pod| pod.name_any() == "web" && owned_by(pod, uid.as_ref()))
    })
    .await?;
    let other = json!({ "metadata": { "labels": { "app": "other" } } });
    world.merge::<Pod>(&adopted.name_any(), other).await?;
    eventually("it to be released and replaced", || async {
        let released = world.api::<Pod>().get("web").await.ok()?;
        let replaced = world.ready(selector).await.ok()?;
        let all_owned = replaced.iter().all(|pod| owned_by(pod, uid.as_ref()));
        (released.owner_references().is_empty() && replaced.len() == 1 && all_owned).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_set_should_adopt_matching_pods_on_creation_and_release_no_longer_matching_pods() -> Result<()>
{
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Pod>(pod("web")).await?;
    let made = world.create::<ReplicaSet>(set("web", 1)).await?;
    adopts_and_releases(&world, "app=web", made.uid()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controller_should_adopt_matching_pods_and_release_no_longer_matching_pods() -> Result<()>
{
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Pod>(pod("web")).await?;
    let made = world
        .create::<ReplicationController>(controller("web", 1))
        .await?;
    adopts_and_releases(&world, "app=web", made.uid()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controller_should_surface_a_failure_condition_on_a_common_issue_like_exceeded_quota()
-> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": { "pods": "2" } } });
    world.create::<ResourceQuota>(quota).await?;
    eventually("the quota to be counted", || async {
        world
            .api::<ResourceQuota>()
            .get("q")
            .await
            .ok()?
            .status?
            .used
            .map(|_| ())
    })
    .await?;
    world
        .create::<ReplicationController>(controller("web", 3))
        .await?;
    let failure = || async {
        let status = world
            .api::<ReplicationController>()
            .get("web")
            .await
            .ok()?
            .status?;
        let mut conditions = status.conditions.into_iter().flatten();
        Some(conditions.find(|one| one.type_ == "ReplicaFailure"))
    };
    let said = eventually("the failure", || async { failure().await.flatten() }).await?;
    ensure!(said.reason.as_deref() == Some("FailedCreate"), "{said:?}");
    ensure!(
        said.message
            .is_some_and(|text| text.contains("exceeded quota: q")),
        "why"
    );
    world
        .merge::<ReplicationController>("web", json!({ "spec": { "replicas": 2 } }))
        .await?;
    eventually("the failure to be over", || async {
        failure().await?.is_none().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controller_should_test_the_lifecycle_of_a_replication_controller() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let client = &world.client;
    let collection = format!("{DEFAULT}/replicationcontrollers");
    let query = "watch=true&labelSelector=static%3Dtrue";
    let mut events = watch(client, &format!("{collection}?{query}")).await?;
    let mut made = controller("web", 1);
    made["metadata"]["labels"] = json!({ "static": "true" });
    must(client, "POST", &collection, &made).await?;
    world.wait_ready("app=web", 1).await?;
    let path = format!("{collection}/web");
    merge(
        client,
        &path,
        &json!({ "metadata": { "labels": { "patched": "true" } } }),
    )
    .await?;
    let told = merge(
        client,
        &format!("{path}/status"),
        &json!({ "status": { "readyReplicas": 0, "availableReplicas": 0 } }),
    )
    .await?;
    ensure!(
        told["status"]["readyReplicas"].as_i64().unwrap_or(0) == 0,
        "{told}"
    );
    eventually("the controller to say how it is", || async {
        let status = get(client, &format!("{path}/status")).await.ok()?;
        (status["status"]["readyReplicas"] == 1).then_some(())
    })
    .await?;
    merge(
        client,
        &format!("{path}/scale"),
        &json!({ "spec": { "replicas": 2 } }),
    )
    .await?;
    world.wait_ready("app=web", 2).await?;
    eventually("an update", || async {
        let mut object = get(client, &path).await.ok()?;
        object["metadata"]["labels"]["updated"] = json!("true");
        must(client, "PUT", &path, &object).await.ok()
    })
    .await?;
    let everywhere = "/api/v1/replicationcontrollers?labelSelector=updated%3Dtrue";
    let list = get(client, everywhere).await?;
    ensure!(list["items"].as_array().is_some_and(|all| all.len() == 1));
    let selected = format!("{collection}?labelSelector=static%3Dtrue");
    must(client, "DELETE", &selected, &Value::Null).await?;
    let first = next(&mut events).await?;
    ensure!(first["type"] == "ADDED", "{first}");
    while next(&mut events).await?["type"] != "DELETED" {}
    Ok(())
}

/// The number of disruptions that a budget allows.
async fn allowed(world: &World, name: &str, count: i32) -> Result<()> {
    let what = format!("{count} disruptions to be allowed");
    eventually(&what, || async {
        let status = world.api::<PodDisruptionBudget>().get(name).await.ok()?.status?;
        (status.disruptions_allowed == count).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_observe_pod_disruption_budget_status_updated() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let budget = json!({ "metadata": { "name": "b" },
        "spec": { "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } } });
    world.create::<PodDisruptionBudget>(budget).await?;
    allowed(&world, "b", 0).await?;
    world.create::<ReplicaSet>(set("web", 3)).await?;
    world.wait_ready("app=web", 3).await?;
    allowed(&world, "b", 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disruption_controller_should_block_an_eviction_until_the_pdb_is_updated_to_allow_it() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<ReplicaSet>(set("web", 3)).await?;
    let pods = world.wait_ready("app=web", 3).await?;
    let budget = json!({ "metadata": { "name": "b" },
        "spec": { "minAvailable": 3, "selector": { "matchLabels": { "app": "web" } } } });
    world.create::<PodDisruptionBudget>(budget).await?;
    allowed(&world, "b", 0).await?;
    eventually("all to be counted", || async {
        let status = world.api::<PodDisruptionBudget>().get("b").await.ok()?.status?;
        (status.current_healthy == 3).then_some(())
    })
    .await?;
    let name = pods[0].name_any();
    let path = format!("{DEFAULT}/pods/{name}/eviction");
    let eviction = json!({ "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name } });
    let (code, answer) = send_json(&world.client, "POST", &path, &eviction).await?;
    ensure!(code == StatusCode::TOO_MANY_REQUESTS, "{answer}");
    ensure!(
        answer["details"]["causes"][0]["reason"] == "DisruptionBudget",
        "{answer}"
    );
    world
        .merge::<PodDisruptionBudget>("b", json!({ "spec": { "minAvailable": 2 } }))
        .await?;
    allowed(&world, "b", 1).await?;
    must(&world.client, "POST", &path, &eviction).await?;
    eventually("the pod to go", || async {
        world
            .api::<Pod>()
            .get_opt(&name)
            .await
            .ok()?
            .is_none()
            .then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controller_revision_should_manage_the_lifecycle_of_a_controller_revision() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let daemons = json!({ "metadata": { "name": "d" }, "spec": {
        "selector": { "matchLabels": { "app": "d" } }, "template": pod_template("d", "img:1") } });
    world.create::<DaemonSet>(daemons).await?;
    let pods = world.wait_ready("app=d", 1).await?;
    let api = world.api::<ControllerRevision>();
    let revisions = || async {
        let list = api.list(&ListParams::default().labels("app=d")).await.ok()?;
        Some(list.items)
    };
    let first = eventually("the first revision", || async { revisions().await?.pop() }).await?;
    ensure!(first.revision == 1);
    ensure!(
        pods[0].labels().get("controller-revision-hash") == first.labels().get("controller-revision-hash")
    );
    let patched = world
        .merge::<ControllerRevision>(
            &first.name_any(),
            json!({ "metadata": { "labels": { "patched": "yes" } } }),
        )
        .await?;
    ensure!(patched.labels()["patched"] == "yes");

    // One more by hand, which goes as it came.
    let mut another = serde_json::to_value(&first)?;
    another["metadata"] = json!({ "name": "by-hand", "labels": { "app": "d" },
        "ownerReferences": first.metadata.owner_references });
    another["revision"] = json!(2);
    world.create::<ControllerRevision>(another).await?;
    ensure!(revisions().await.context("a list")?.len() == 2);
    api.delete("by-hand", &DeleteParams::default()).await?;
    eventually("it to be gone", || async {
        (revisions().await?.len() == 1).then_some(())
    })
    .await?;

    let patch = json!({ "spec": { "template": { "spec": { "terminationGracePeriodSeconds": 1 } } } });
    world.merge::<DaemonSet>("d", patch).await?;
    let newer = eventually("another revision", || async {
        let all = revisions().await?;
        (all.len() == 2).then_some(())?;
        all.into_iter().find(|one| one.revision > 1)
    })
    .await?;
    eventually("the pod of the new revision", || async {
        let pods = world.ready("app=d").await.ok()?;
        let hash = "controller-revision-hash";
        (pods.len() == 1 && pods[0].labels().get(hash) == newer.labels().get(hash)).then_some(())
    })
    .await?;
    let kept = newer.name_any();
    let label = json!({ "metadata": { "labels": { "current": "yes" } } });
    world.merge::<ControllerRevision>(&kept, label).await?;
    api.delete_collection(
        &DeleteParams::default(),
        &ListParams::default().labels("app=d,current!=yes"),
    )
    .await?;
    eventually("the newer one alone to be left", || async {
        let all = revisions().await?;
        (all.len() == 1 && all[0].name_any() == kept).then_some(())
    })
    .await
}

fn service(name: &str, labels: &Value) -> Value {
    json!({ "metadata": { "name": name, "labels": labels },
        "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_should_provide_secure_master_service_and_be_found_in_all_namespaces() -> Result<()> {
    let world = World::start().await?;
    let all = get(&world.client, "/api/v1/services").await?;
    let mut all = all["items"].as_array().into_iter().flatten();
    let master = all
        .find(|found| {
            found["metadata"]["name"] == "kubernetes" && found["metadata"]["namespace"] == "default"
        })
        .context("not in the list of all namespaces")?;
    let port = &master["spec"]["ports"][0];
    ensure!(
        port["name"] == "https" && port["port"] == 443 && port["protocol"] == "TCP",
        "{master}"
    );
    ensure!(master["spec"]["clusterIP"] == "10.96.0.1");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_should_complete_a_service_status_lifecycle() -> Result<()> {
    let world = World::start().await?;
    let client = &world.client;
    let collection = format!("{DEFAULT}/services");
    let labels = json!({ "svc": "test" });
    let mut events = watch(
        client,
        &format!("{collection}?watch=true&labelSelector=svc%3Dtest"),
    )
    .await?;
    let mut made = service("web", &labels);
    made["spec"]["type"] = json!("LoadBalancer");
    must(client, "POST", &collection, &made).await?;
    let path = format!("{collection}/web");
    let everywhere = get(client, "/api/v1/services?labelSelector=svc%3Dtest").await?;
    ensure!(everywhere["items"].as_array().is_some_and(|all| all.len() == 1));
    ensure!(get(client, &format!("{path}/status")).await?["status"]["loadBalancer"] == json!({}));
    let patch = json!({ "metadata": { "annotations": { "patchedstatus": "true" } },
        "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.1" }] } } });
    let patched = merge(client, &format!("{path}/status"), &patch).await?;
    ensure!(
        patched["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.1",
        "{patched}"
    );
    ensure!(patched["metadata"]["annotations"]["patchedstatus"] == "true");
    let mut object = get(client, &path).await?;
    object["status"]["conditions"] = json!([{ "type": "StatusUpdate", "status": "True", "reason": "E2E", "message": "m",
        "lastTransitionTime": "2020-01-01T00:00:00Z" }]);
    let updated = must(client, "PUT", &format!("{path}/status"), &object).await?;
    ensure!(
        updated["status"]["conditions"][0]["type"] == "StatusUpdate",
        "{updated}"
    );
    let patched = merge(
        client,
        &path,
        &json!({ "metadata": { "labels": { "patched": "yes" } } }),
    )
    .await?;
    ensure!(patched["metadata"]["labels"]["patched"] == "yes");
    must(client, "DELETE", &path, &Value::Null).await?;
    ensure!(next(&mut events).await?["type"] == "ADDED");
    while next(&mut events).await?["type"] != "DELETED" {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_should_delete_a_collection_of_services() -> Result<()> {
    let world = World::start().await?;
    for (name, mine) in [("one", "yes"), ("two", "yes"), ("three", "no")] {
        world
            .create::<Service>(service(name, &json!({ "mine": mine })))
            .await?;
    }
    let api = world.api::<Service>();
    let mine = ListParams::default().labels("mine=yes");
    api.delete_collection(&DeleteParams::default(), &mine).await?;
    let left = api.list(&ListParams::default()).await?;
    let left: BTreeSet<String> = left.items.iter().map(kube::ResourceExt::name_any).collect();
    ensure!(
        left == BTreeSet::from(["kubernetes".to_owned(), "three".to_owned()]),
        "{left:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_slice_should_create_endpoints_and_endpoint_slices_for_pods_matching_a_service() -> Result<()>
{
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Service>(service("web", &json!({}))).await?;
    let listed = || async {
        let endpoints = world.api::<Endpoints>().get("web").await.ok()?;
        let subsets = endpoints.subsets.into_iter().flatten();
        let of: BTreeSet<String> = subsets
            .flat_map(|subset| subset.addresses.into_iter().flatten())
            .map(|address| address.ip)
            .collect();
        let selector = ListParams::default().labels("kubernetes.io/service-name=web");
        let slices = world.api::<EndpointSlice>().list(&selector).await.ok()?.items;
        (!slices.is_empty()).then_some(())?;
        let sliced: BTreeSet<String> = slices
            .into_iter()
            .flat_map(|slice| slice.endpoints)
            .flat_map(|endpoint| endpoint.addresses)
            .collect();
        (of == sliced).then_some(of)
    };
    // "… for a Service with a selector that matches no pods".
    eventually("both to be there and empty", || async {
        listed().await?.is_empty().then_some(())
    })
    .await?;
    for name in ["a", "b"] {
        let mut pod = pod("web");
        pod["metadata"]["name"] = json!(name);
        world.create::<Pod>(pod).await?;
    }
    let pods = world.wait_ready("app=web", 2).await?;
    let wanted: BTreeSet<String> = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone())
        .collect();
    eventually("both to list the pods", || async {
        (listed().await? == wanted).then_some(())
    })
    .await?;
    let api = world.api::<Service>();
    api.delete("web", &DeleteParams::default()).await?;
    eventually("both to go", || async {
        let endpoints = world.api::<Endpoints>().get_opt("web").await.ok()?;
        let selector = ListParams::default().labels("kubernetes.io/service-name=web");
        let slices = world.api::<EndpointSlice>().list(&selector).await.ok()?;
        (endpoints.is_none() && slices.items.is_empty()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limit_range_should_create_a_limit_range_with_defaults_and_ensure_pod_has_those_defaults_applied()
-> Result<()> {
    let world = World::start().await?;
    let range = json!({ "metadata": { "name": "l" }, "spec": { "limits": [{ "type": "Container",
        "min": { "cpu": "50m", "memory": "100Mi" }, "max": { "cpu": "500m", "memory": "500Mi" },
        "default": { "cpu": "500m", "memory": "500Mi" }, "defaultRequest": { "cpu": "100m", "memory": "200Mi" } }] } });
    world.create::<LimitRange>(range).await?;
    let with = |name: &str, resources: Value| {
        json!({ "metadata": { "name": name }, "spec": { "containers": [
            { "name": "c", "image": "img:1", "resources": resources }] } })
    };
    let resources =
        |pod: &Pod| serde_json::to_value(pod.spec.as_ref().map(|spec| &spec.containers[0].resources));
    let plain = world.create::<Pod>(with("plain", json!({}))).await?;
    ensure!(
        resources(&plain)?
            == json!({ "requests": { "cpu": "100m", "memory": "200Mi" }, "limits": { "cpu": "500m", "memory": "500Mi" } })
    );
    let partly = json!({ "requests": { "cpu": "300m" }, "limits": { "cpu": "300m" } });
    let partly = world.create::<Pod>(with("partly", partly)).await?;
    ensure!(
        resources(&partly)?
            == json!({ "requests": { "cpu": "300m", "memory": "200Mi" }, "limits": { "cpu": "300m", "memory": "500Mi" } })
    );
    for (amount, word) in [("10m", "minimum"), ("600m", "maximum")] {
        let asked = json!({ "requests": { "cpu": amount }, "limits": { "cpu": amount } });
        let refusal = world.create::<Pod>(with("odd", asked)).await.unwrap_err();
        ensure!(format!("{refusal:#}").contains(word), "{refusal:#}");
    }
    // What changes holds for pods that are made later.
    let lower = json!({ "spec": { "limits": [{ "type": "Container", "min": { "cpu": "9m" }, "max": { "cpu": "500m" } }] } });
    world.merge::<LimitRange>("l", lower).await?;
    let asked = json!({ "requests": { "cpu": "10m" }, "limits": { "cpu": "10m" } });
    world.create::<Pod>(with("odd", asked)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_should_delete_a_collection_of_pods() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    for name in ["one", "two", "three"] {
        let mut pod = pod("web");
        pod["metadata"]["name"] = json!(name);
        world.create::<Pod>(pod).await?;
    }
    world.wait_ready("app=web", 3).await?;
    let selected = ListParams::default().labels("app=web");
    let params = DeleteParams::default().grace_period(30);
    world.api::<Pod>().delete_collection(&params, &selected).await?;
    eventually("the pods to go", || async {
        world.pods("app=web").await.ok()?.is_empty().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_should_patch_a_pod_status() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Pod>(pod("web")).await?;
    world.wait_ready("app=web", 1).await?;
    let patch = json!({ "metadata": { "annotations": { "patched": "yes" } },
        "status": { "message": "Patched by e2e test", "reason": "E2E" } });
    let status = format!("{DEFAULT}/pods/web/status");
    merge(&world.client, &status, &patch).await?;
    let read = get(&world.client, &status).await?;
    ensure!(read["status"]["message"] == "Patched by e2e test" && read["status"]["reason"] == "E2E");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_extended_qos_class_should_be_set_on_pods() -> Result<()> {
    let world = World::start().await?;
    let amounts =
        |factor: u32| json!({ "cpu": format!("{}m", 100 * factor), "memory": format!("{}Mi", 100 * factor) });
    for (resources, class) in [
        (
            json!({ "requests": amounts(1), "limits": amounts(1) }),
            "Guaranteed",
        ),
        (
            json!({ "requests": amounts(1), "limits": amounts(2) }),
            "Burstable",
        ),
        (json!({}), "BestEffort"),
    ] {
        let mut made = pod(&class.to_lowercase());
        made["spec"]["containers"][0]["resources"] = resources;
        let made = world.create::<Pod>(made).await?;
        ensure!(made.status.and_then(|status| status.qos_class).as_deref() == Some(class));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_accounts_should_guarantee_kube_root_ca_crt_exist_in_any_namespace() -> Result<()> {
    let world = World::start().await?;
    let namespace = json!({ "metadata": { "name": "team" } });
    must(&world.client, "POST", "/api/v1/namespaces", &namespace).await?;
    let api: Api<ConfigMap> = Api::namespaced(world.client.clone(), "team");
    let there = || async {
        let map = api.get_opt("kube-root-ca.crt").await.ok()??;
        let certificate = map.data.as_ref()?.get("ca.crt")?;
        let whole = map.data.as_ref()?.len() == 1 && certificate.starts_with("-----BEGIN CERTIFICATE-----");
        whole.then_some(map)
    };
    let first = eventually("the certificate", there).await?;
    api.delete("kube-root-ca.crt", &DeleteParams::default()).await?;
    eventually("it to be made again", || async {
        there().await.filter(|map| map.uid() != first.uid())
    })
    .await?;
    let path = "/api/v1/namespaces/team/configmaps/kube-root-ca.crt";
    merge(
        &world.client,
        path,
        &json!({ "data": { "ca.crt": "changed", "more": "x" } }),
    )
    .await?;
    eventually("it to be put right", there).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_accounts_should_create_a_service_account_token_and_ensure_a_successful_token_review()
-> Result<()> {
    let world = World::start().await?;
    let client = &world.client;
    let account = json!({ "metadata": { "name": "bot" } });
    must(client, "POST", &format!("{DEFAULT}/serviceaccounts"), &account).await?;
    let request = json!({ "spec": { "expirationSeconds": 600 } });
    let token = must(
        client,
        "POST",
        &format!("{DEFAULT}/serviceaccounts/bot/token"),
        &request,
    )
    .await?["status"]["token"]
        .clone();
    let review = json!({ "spec": { "token": token } });
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    let answer = must(client, "POST", path, &review).await?;
    ensure!(answer["status"]["authenticated"] == true, "{answer}");
    ensure!(
        answer["status"]["user"]["username"] == "system:serviceaccount:default:bot",
        "{answer}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subject_review_should_support_subject_review_api_operations() -> Result<()> {
    let world = World::start().await?;
    let client = &world.client;
    let account = json!({ "metadata": { "name": "bot" } });
    must(client, "POST", &format!("{DEFAULT}/serviceaccounts"), &account).await?;
    let user = "system:serviceaccount:default:bot";
    let list = || async {
        let as_bot = [("impersonate-user", user)];
        let path = format!("{DEFAULT}/configmaps");
        anyhow::Ok(send_with(client, "GET", &path, &as_bot, Vec::new()).await?.0)
    };
    let groups = "/apis/authorization.k8s.io/v1";
    let asked = json!({ "spec": { "user": user,
        "resourceAttributes": { "namespace": "default", "verb": "list", "resource": "configmaps" } } });
    let mut local = asked.clone();
    local["metadata"] = json!({ "namespace": "default" });
    for (allowed, code) in [(false, StatusCode::FORBIDDEN), (true, StatusCode::OK)] {
        if allowed {
            world
                .kubectl(&[
                    "create",
                    "rolebinding",
                    "bot",
                    "--clusterrole=view",
                    "--serviceaccount=default:bot",
                ])
                .await?;
        }
        ensure!(list().await? == code);
        for (path, review) in [
            (format!("{groups}/subjectaccessreviews"), &asked),
            (
                format!("{groups}/namespaces/default/localsubjectaccessreviews"),
                &local,
            ),
        ] {
            let answer = must(client, "POST", &path, review).await?;
            ensure!(answer["status"]["allowed"] == allowed, "{path}: {answer}");
        }
    }
    Ok(())
}
