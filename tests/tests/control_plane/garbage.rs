//! Objects go with their owners, and namespaces with everything in them.

use anyhow::Result;
use http::Request;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ReplicationController, Secret, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use serde_json::{Value, json};

use crate::world::{World, deployment, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_the_foreground_the_owner_goes_last() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 3, "img:1")).await?;
    world.wait_ready("app=web", 3).await?;
    world
        .api::<Deployment>()
        .delete("web", &DeleteParams::foreground())
        .await?;
    eventually("everything to go, the owner last", || async {
        let pods = world.pods("app=web").await.ok()?;
        let sets = world.sets().await.ok()?;
        let owner = world.api::<Deployment>().get_opt("web").await.ok()?;
        if owner.is_none() {
            assert!(
                world.pods("app=web").await.ok()?.is_empty(),
                "pods outlived the owner"
            );
        }
        (owner.is_none() && pods.is_empty() && sets.is_empty()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circles_and_second_owners() -> Result<()> {
    let world = World::start().await?;
    let map = |name: &str, owners: Value| json!({ "metadata": { "name": name, "ownerReferences": owners } });
    let owner = |map: &ConfigMap| json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": map.metadata.name, "uid": map.metadata.uid, "blockOwnerDeletion": true });
    let a = world.create::<ConfigMap>(map("a", json!([]))).await?;
    let b = world.create::<ConfigMap>(map("b", json!([owner(&a)]))).await?;
    let c = world.create::<ConfigMap>(map("c", json!([owner(&b)]))).await?;
    world
        .merge::<ConfigMap>("a", json!({ "metadata": { "ownerReferences": [owner(&c)] } }))
        .await?;
    let stays = world.create::<ConfigMap>(map("stays", json!([]))).await?;
    world
        .create::<ConfigMap>(map("shared", json!([owner(&a), owner(&stays)])))
        .await?;

    world
        .api::<ConfigMap>()
        .delete("a", &DeleteParams::foreground())
        .await?;
    eventually("the circle to go", || async {
        let names: Vec<_> = world
            .api::<ConfigMap>()
            .list(&ListParams::default())
            .await
            .ok()?
            .items;
        let left = |name: &str| names.iter().any(|map| map.metadata.name.as_deref() == Some(name));
        (!left("a") && !left("b") && !left("c")).then_some(())
    })
    .await?;
    let shared = world.api::<ConfigMap>().get("shared").await?;
    let owners: Vec<_> = shared.metadata.owner_references.unwrap_or_default();
    assert_eq!(owners.len(), 1);
    assert_eq!(Some(&owners[0].uid), stays.metadata.uid.as_ref());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_takes_everything_with_it() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let made: Namespace = serde_json::from_value(json!({ "metadata": { "name": "team" } }))?;
    namespaces.create(&PostParams::default(), &made).await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "team");
    eventually("account and certificate", || async {
        accounts.get("default").await.ok()?;
        maps.get("kube-root-ca.crt")
            .await
            .ok()?
            .data?
            .get("ca.crt")?
            .contains("BEGIN CERTIFICATE")
            .then_some(())
    })
    .await?;

    let pods: Api<Pod> = Api::namespaced(world.client.clone(), "team");
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), "team");
    deployments
        .create(
            &PostParams::default(),
            &serde_json::from_value(deployment("web", 3, "img:1"))?,
        )
        .await?;
    eventually("pods", || async {
        let pods = pods.list(&ListParams::default()).await.ok()?;
        (pods
            .items
            .iter()
            .filter(|pod| crate::world::is_ready(pod))
            .count()
            == 3)
            .then_some(())
    })
    .await?;
    namespaces.delete("team", &DeleteParams::default()).await?;
    eventually("the namespace to go", || async {
        namespaces.get_opt("team").await.ok()?.is_none().then_some(())
    })
    .await?;
    let sets: Api<ReplicaSet> = Api::all(world.client.clone());
    let left = sets.list(&ListParams::default()).await?;
    assert!(left.items.is_empty(), "nothing is left behind");
    let pods: Api<Pod> = Api::all(world.client.clone());
    assert!(pods.list(&ListParams::default()).await?.items.is_empty());
    Ok(())
}

/// Watches of two kinds say in any order what happened to a pair of owner and dependent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_orphaned_stays_whichever_watch_is_ahead() -> Result<()> {
    const EACH: usize = 40;
    let world = World::start().await?;
    for round in 0..5 {
        let owner = json!({ "metadata": { "name": format!("owner-{round}") } });
        let owner = world.create::<ConfigMap>(owner).await?;
        let reference = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name, "uid": owner.metadata.uid });
        for index in 0..EACH {
            let meta = json!({ "name": format!("of-{round}-{index}"), "ownerReferences": [reference] });
            world.create::<Secret>(json!({ "metadata": meta })).await?;
        }
        let orphaned = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Orphan),
            ..DeleteParams::default()
        };
        let name = format!("owner-{round}");
        world.api::<ConfigMap>().delete(&name, &orphaned).await?;
        eventually("the owner to go", || async {
            let owner = world.api::<ConfigMap>().get_opt(&name).await.ok()?;
            owner.is_none().then_some(())
        })
        .await?;
    }
    // Made and deleted with its owner after all that: whatever was to happen to the others has happened.
    let owner = world
        .create::<ConfigMap>(json!({ "metadata": { "name": "last" } }))
        .await?;
    let reference =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "last", "uid": owner.metadata.uid });
    world
        .create::<Secret>(json!({ "metadata": { "name": "last", "ownerReferences": [reference] } }))
        .await?;
    world
        .api::<ConfigMap>()
        .delete("last", &DeleteParams::background())
        .await?;
    eventually("the last one to go with its owner", || async {
        let last = world.api::<Secret>().get_opt("last").await.ok()?;
        last.is_none().then_some(())
    })
    .await?;
    let left = world.api::<Secret>().list(&ListParams::default()).await?;
    let orphans = left
        .iter()
        .filter(|secret| secret.metadata.owner_references.is_none());
    assert_eq!((left.items.len(), orphans.count()), (5 * EACH, 5 * EACH));
    Ok(())
}

/// As the oldest kinds have it; kubectl always says what it wants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replication_controllers_and_jobs_leave_their_pods_unless_told_otherwise() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let template = crate::world::pod_template("old", "img:1");
    let controller = json!({ "metadata": { "name": "old" }, "spec": {
        "replicas": 2, "selector": { "app": "old" }, "template": template } });
    world.create::<ReplicationController>(controller).await?;
    world.wait_ready("app=old", 2).await?;
    world
        .api::<ReplicationController>()
        .delete("old", &DeleteParams::default())
        .await?;
    eventually("the controller to go", || async {
        let found = world.api::<ReplicationController>().get_opt("old").await.ok()?;
        found.is_none().then_some(())
    })
    .await?;
    let pods = world.pods("app=old").await?;
    assert_eq!(pods.len(), 2);
    for pod in pods {
        assert_eq!(pod.metadata.owner_references, None);
        assert_eq!(pod.metadata.deletion_timestamp, None);
    }

    let mut template = crate::world::pod_template("once", "img:1");
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({ "metadata": { "name": "once" }, "spec": { "template": template } });
    world.create::<Job>(job).await?;
    world.wait_ready("app=once", 1).await?;
    let request = Request::builder()
        .method("DELETE")
        .uri("/apis/batch/v1/namespaces/default/jobs/once")
        .body(Vec::new())?;
    let job: Value = world.client.request(request).await?;
    assert_eq!(job["metadata"]["finalizers"], json!(["orphan"]), "{job:#}");
    eventually("the job to go", || async {
        world
            .api::<Job>()
            .get_opt("once")
            .await
            .ok()?
            .is_none()
            .then_some(())
    })
    .await?;
    assert_eq!(world.pods("app=once").await?.len(), 1);
    Ok(())
}
