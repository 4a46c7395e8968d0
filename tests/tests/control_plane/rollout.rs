//! From one template to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::world::{World, deployment, eventually, pod_template};

fn image_patch(image: &str) -> Value {
    json!({ "spec": { "template": { "spec": pod_template("web", image)["spec"] } } })
}

fn image(set: &ReplicaSet) -> String {
    let template = set
        .spec
        .as_ref()
        .and_then(|spec| spec.template.clone())
        .unwrap_or_default();
    template
        .spec
        .and_then(|spec| spec.containers.into_iter().next()?.image)
        .unwrap_or_default()
}

/// What `kubectl rollout status` waits for.
async fn rolled_out(world: &World, name: &str, replicas: i32) -> Result<Deployment> {
    eventually("the rollout to end", || async {
        let deployment = world.deployment(name).await.ok()?;
        let status = deployment.status.clone()?;
        let progressing = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Progressing")?;
        (status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas == Some(replicas)
            && status.replicas == Some(replicas)
            && status.available_replicas == Some(replicas)
            && progressing.reason.as_deref() == Some("NewReplicaSetAvailable"))
        .then_some(deployment)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_keeps_pods_available_and_can_be_undone() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    let mut web = deployment("web", 8, "img:1");
    web["spec"]["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 2, "maxUnavailable": 1 } });
    web["spec"]["revisionHistoryLimit"] = json!(1);
    world.create::<Deployment>(web).await?;
    rolled_out(&world, "web", 8).await?;

    let (least, over) = (
        Arc::new(AtomicUsize::new(usize::MAX)),
        Arc::new(AtomicBool::new(false)),
    );
    let watching = {
        let (client, least, over) = (world.client.clone(), least.clone(), over.clone());
        tokio::spawn(async move {
            let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, "default");
            while let Ok(list) = pods
                .list(&kube::api::ListParams::default().labels("app=web"))
                .await
            {
                let alive = list
                    .items
                    .iter()
                    .filter(|pod| pod.metadata.deletion_timestamp.is_none());
                let ready = alive.clone().filter(|pod| crate::world::is_ready(pod)).count();
                least.fetch_min(ready, Ordering::Relaxed);
                over.fetch_or(alive.count() > 10, Ordering::Relaxed);
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
    };
    world.merge::<Deployment>("web", image_patch("img:2")).await?;
    let done = rolled_out(&world, "web", 8).await?;
    watching.abort();
    assert!(
        least.load(Ordering::Relaxed) >= 7,
        "at least 7 ready at any time: {least:?}"
    );
    assert!(!over.load(Ordering::Relaxed), "at most 10 pods at any time");
    assert_eq!(done.annotations()["deployment.kubernetes.io/revision"], "2");

    // As `kubectl rollout undo` does: the old template again.
    world.merge::<Deployment>("web", image_patch("img:1")).await?;
    let back = rolled_out(&world, "web", 8).await?;
    assert_eq!(back.annotations()["deployment.kubernetes.io/revision"], "3");
    let sets = world.sets().await?;
    assert_eq!(sets.len(), 2, "the old set is used again");
    let active = sets.iter().find(|set| image(set) == "img:1").unwrap();
    assert_eq!(
        active.annotations()["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(active.labels()["app"], "web");
    assert!(active.labels().contains_key("pod-template-hash"));

    world.merge::<Deployment>("web", image_patch("img:3")).await?;
    rolled_out(&world, "web", 8).await?;
    eventually("the history to be trimmed", || async {
        let sets = world.sets().await.ok()?;
        (sets.len() == 2).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recreate_ends_the_old_before_the_new() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut web = deployment("web", 3, "img:1");
    web["spec"]["strategy"] = json!({ "type": "Recreate" });
    world.create::<Deployment>(web).await?;
    rolled_out(&world, "web", 3).await?;
    let old: Vec<_> = world
        .pods("app=web")
        .await?
        .into_iter()
        .map(|pod| pod.metadata.uid)
        .collect();
    world.merge::<Deployment>("web", image_patch("img:2")).await?;
    eventually("the first new pod", || async {
        let pods = world.pods("app=web").await.ok()?;
        let both = pods.iter().any(|pod| old.contains(&pod.metadata.uid));
        let new = pods.iter().any(|pod| !old.contains(&pod.metadata.uid));
        assert!(!(both && new), "old and new pods at once");
        new.then_some(())
    })
    .await?;
    rolled_out(&world, "web", 3).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_deployment_scales_but_does_not_roll() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 2, "img:1")).await?;
    rolled_out(&world, "web", 2).await?;
    world
        .merge::<Deployment>("web", json!({ "spec": { "paused": true } }))
        .await?;
    eventually("the pause to be noted", || async {
        let status = world.deployment("web").await.ok()?.status?;
        status
            .conditions?
            .iter()
            .any(|c| c.reason.as_deref() == Some("DeploymentPaused"))
            .then_some(())
    })
    .await?;
    let mut patch = image_patch("img:2");
    patch["spec"]["replicas"] = json!(4);
    world.merge::<Deployment>("web", patch).await?;
    world.wait_ready("app=web", 4).await?;
    assert_eq!(world.sets().await?.len(), 1, "no new set while paused");
    let paused = eventually("the new size in the status", || async {
        let status = world.deployment("web").await.ok()?.status?;
        (status.available_replicas == Some(4)).then_some(status)
    })
    .await?;
    let reasons: Vec<_> = paused
        .conditions
        .iter()
        .flatten()
        .filter_map(|c| c.reason.as_deref())
        .collect();
    assert!(
        reasons.contains(&"DeploymentPaused"),
        "a paused rollout is not judged: {reasons:?}"
    );
    world
        .merge::<Deployment>("web", json!({ "spec": { "paused": null } }))
        .await?;
    rolled_out(&world, "web", 4).await?;
    assert_eq!(world.sets().await?.len(), 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_that_does_not_move_is_reported() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut web = deployment("web", 2, "img:1");
    web["spec"]["progressDeadlineSeconds"] = json!(2);
    web["spec"]["template"]["metadata"]["annotations"] = json!({ "test/never-ready": "yes" });
    world.create::<Deployment>(web).await?;
    eventually("the deadline", || async {
        let status = world.deployment("web").await.ok()?.status?;
        let progressing = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Progressing")?;
        (progressing.status == "False" && progressing.reason.as_deref() == Some("ProgressDeadlineExceeded"))
            .then_some(())
    })
    .await
}

/// `kubectl rollout status`, `history`, `undo`, `pause`, `resume` and `restart`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_rolls_back_pauses_and_restarts() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 3, "img:1")).await?;
    let status = || world.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let done = "deployment \"web\" successfully rolled out\n";
    assert!(status().await?.ends_with(done));
    world.kubectl(&["set", "image", "deploy/web", "c=img:2"]).await?;
    assert!(status().await?.ends_with(done));
    let history = world.kubectl(&["rollout", "history", "deploy/web"]).await?;
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    let first = world
        .kubectl(&["rollout", "history", "deploy/web", "--revision=1"])
        .await?;
    assert!(first.contains("img:1"), "{first}");
    world
        .kubectl(&["rollout", "undo", "deploy/web", "--to-revision=1"])
        .await?;
    assert!(status().await?.ends_with(done));
    let back = world.deployment("web").await?;
    assert_eq!(back.annotations()["deployment.kubernetes.io/revision"], "3");
    let sets = world.sets().await?;
    let active = sets
        .iter()
        .find(|set| set.spec.as_ref().and_then(|spec| spec.replicas) == Some(3));
    assert_eq!(active.map(image).as_deref(), Some("img:1"));

    world.kubectl(&["rollout", "pause", "deploy/web"]).await?;
    let refused = world.kubectl(&["rollout", "restart", "deploy/web"]).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("can't restart paused deployment")));
    world.kubectl(&["rollout", "resume", "deploy/web"]).await?;
    let before = world.deployment("web").await?.metadata.generation;
    world.kubectl(&["rollout", "restart", "deploy/web"]).await?;
    assert!(status().await?.ends_with(done));
    let restarted = world.deployment("web").await?;
    assert!(restarted.metadata.generation > before);
    assert_eq!(restarted.annotations()["deployment.kubernetes.io/revision"], "4");
    Ok(())
}

/// "deployment should support proportional scaling".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_in_a_rollout_is_shared_out() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut web = deployment("web", 10, "img:1");
    web["spec"]["strategy"] =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 3, "maxUnavailable": 2 } });
    world.create::<Deployment>(web).await?;
    rolled_out(&world, "web", 10).await?;
    let stuck =
        json!({ "spec": { "template": { "metadata": { "annotations": { "test/never-ready": "yes" } } } } });
    world.merge::<Deployment>("web", stuck).await?;
    let sizes = |wanted: [i32; 2]| {
        let world = &world;
        async move {
            eventually(&format!("sets of {wanted:?}"), || async {
                let mut sizes: Vec<i32> = world
                    .sets()
                    .await
                    .ok()?
                    .iter()
                    .filter_map(|set| set.spec.as_ref()?.replicas)
                    .collect();
                sizes.sort_unstable();
                (sizes == wanted).then_some(())
            })
            .await
        }
    };
    sizes([5, 8]).await?;
    world
        .merge::<Deployment>("web", json!({ "spec": { "replicas": 30 } }))
        .await?;
    sizes([13, 20]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_taken_is_given_up() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    rolled_out(&world, "web", 1).await?;
    let taken = world.sets().await?[0].name_any();
    world
        .api::<Deployment>()
        .delete("web", &kube::api::DeleteParams::foreground())
        .await?;
    eventually("it to be gone", || async {
        let gone = world.deployment("web").await.is_err();
        (gone && world.sets().await.ok()?.is_empty()).then_some(())
    })
    .await?;
    world
        .create::<ReplicaSet>(json!({
            "metadata": { "name": taken },
            "spec": { "replicas": 0, "selector": { "matchLabels": { "app": "other" } }, "template": pod_template("other", "img:9") },
        }))
        .await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    let web = rolled_out(&world, "web", 1).await?;
    assert_eq!(web.status.and_then(|status| status.collision_count), Some(1));
    Ok(())
}
