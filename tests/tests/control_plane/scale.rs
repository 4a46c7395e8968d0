//! Numbers of pods: up, down, adopted, released, refused.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod, ReplicationController};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::world::{World, by_node, deployment, eventually, pod_template};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_scales_from_1_to_50_to_0() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2", "n3"]).await?;
    world.create::<Deployment>(deployment("web", 1, "img:1")).await?;
    world.wait_ready("app=web", 1).await?;

    world
        .merge::<Deployment>("web", json!({ "spec": { "replicas": 50 } }))
        .await?;
    let pods = world.wait_ready("app=web", 50).await?;
    let spread = by_node(&pods);
    assert!(
        spread.values().all(|count| (15..=18).contains(count)),
        "spread over the nodes: {spread:?}"
    );
    assert_eq!(world.pods("app=web").await?.len(), 50, "not one too many");
    eventually("the status to say so", || async {
        let status = world.deployment("web").await.ok()?.status?;
        (status.available_replicas == Some(50) && status.updated_replicas == Some(50)).then_some(())
    })
    .await?;

    world
        .merge::<Deployment>("web", json!({ "spec": { "replicas": 0 } }))
        .await?;
    eventually("no pods", || async {
        world.pods("app=web").await.ok()?.is_empty().then_some(())
    })
    .await?;
    let events = world.events("web", "ScalingReplicaSet").await?;
    assert!(
        events.iter().any(|message| message.ends_with("from 1 to 50")),
        "{events:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_pods_are_replaced_and_surplus_ones_go() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let controller = json!({
        "metadata": { "name": "rc" },
        "spec": { "replicas": 3, "selector": { "app": "rc" }, "template": pod_template("rc", "img:1") },
    });
    world.create::<ReplicationController>(controller).await?;
    let pods = world.wait_ready("app=rc", 3).await?;
    let victim = pods[0].metadata.clone();
    world
        .api::<Pod>()
        .delete(
            victim.name.as_deref().unwrap_or_default(),
            &DeleteParams::default(),
        )
        .await?;
    eventually("a replacement", || async {
        let pods = world.ready("app=rc").await.ok()?;
        (pods.len() == 3 && pods.iter().all(|pod| pod.metadata.uid != victim.uid)).then_some(())
    })
    .await?;
    eventually("the status", || async {
        let status = world
            .api::<ReplicationController>()
            .get("rc")
            .await
            .ok()?
            .status?;
        (status.ready_replicas == Some(3) && status.replicas == 3).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn matching_pods_are_adopted_and_others_released() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut orphan = pod_template("web", "img:1");
    orphan["metadata"]["name"] = json!("orphan");
    let orphan = world.create::<Pod>(orphan).await?;
    world.wait_ready("app=web", 1).await?;
    let set = world
        .create::<ReplicaSet>(json!({
            "metadata": { "name": "web" },
            "spec": { "replicas": 2, "selector": { "matchLabels": { "app": "web" } }, "template": pod_template("web", "img:1") },
        }))
        .await?;
    let owned = |pod: &Pod| {
        pod.metadata
            .owner_references
            .iter()
            .flatten()
            .any(|o| Some(&o.uid) == set.metadata.uid.as_ref())
    };
    let pods = world.wait_ready("app=web", 2).await?;
    assert!(
        pods.iter().any(|pod| pod.metadata.uid == orphan.metadata.uid),
        "the orphan counts"
    );
    assert!(pods.iter().all(owned));

    world
        .merge::<Pod>("orphan", json!({ "metadata": { "labels": { "app": "other" } } }))
        .await?;
    eventually("its release and a replacement", || async {
        let released = world
            .api::<Pod>()
            .get("orphan")
            .await
            .ok()
            .is_some_and(|pod| !owned(&pod));
        (released && world.ready("app=web").await.ok()?.len() == 2).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_fit_nowhere_say_why_and_go_when_there_is_room() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut big = pod_template("big", "img:1");
    big["metadata"]["name"] = json!("big");
    big["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!("6");
    world.create::<Pod>(big.clone()).await?;
    world.wait_ready("app=big", 1).await?;
    big["metadata"]["name"] = json!("big2");
    world.create::<Pod>(big).await?;
    let message = eventually("the condition", || async {
        let status = world.api::<Pod>().get("big2").await.ok()?.status?;
        let condition = status
            .conditions?
            .into_iter()
            .find(|condition| condition.type_ == "PodScheduled")?;
        (condition.status == "False" && condition.reason.as_deref() == Some("Unschedulable"))
            .then_some(condition.message?)
    })
    .await?;
    assert!(
        message.starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1"),
        "{message}"
    );
    eventually("the event", || async {
        let events = world.events("big2", "FailedScheduling").await.ok()?;
        events.contains(&message).then_some(())
    })
    .await?;
    world.join(&["n2"]).await?;
    world.wait_ready("app=big", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_when_nothing_changes() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<Deployment>(deployment("web", 4, "img:1")).await?;
    eventually("the rollout to end", || async {
        let status = world.deployment("web").await.ok()?.status?;
        (status.available_replicas == Some(4) && status.observed_generation.is_some()).then_some(())
    })
    .await?;
    let versions = || async {
        let mut versions = Vec::new();
        let params = ListParams::default();
        let nodes: Api<Node> = Api::all(world.client.clone());
        versions.extend(
            world
                .api::<Deployment>()
                .list(&params)
                .await?
                .items
                .into_iter()
                .map(|o| o.metadata),
        );
        versions.extend(world.sets().await?.into_iter().map(|o| o.metadata));
        versions.extend(world.pods("").await?.into_iter().map(|o| o.metadata));
        versions.extend(nodes.list(&params).await?.items.into_iter().map(|o| o.metadata));
        anyhow::Ok(
            versions
                .into_iter()
                .map(|meta| (meta.name, meta.resource_version))
                .collect::<Vec<_>>(),
        )
    };
    // The last status may be on its way still; after that there is silence for several rounds of every controller.
    eventually("silence", || async {
        let before = versions().await.ok()?;
        tokio::time::sleep(Duration::from_secs(2)).await;
        (versions().await.ok()? == before).then_some(())
    })
    .await
}

/// "should surface a failure condition on a common issue like exceeded quota".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_pods_from_being_made_is_said_until_it_is_over() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut web = deployment("web", 2, "img:1");
    web["spec"]["template"]["spec"]["priorityClassName"] = json!("urgent");
    world.create::<Deployment>(web).await?;
    let failure = || async {
        let status = world.deployment("web").await.ok()?.status?;
        let conditions = status.conditions.into_iter().flatten();
        Some(
            conditions
                .into_iter()
                .find(|condition| condition.type_ == "ReplicaFailure"),
        )
    };
    let said = eventually("the failure", || async { failure().await.flatten() }).await?;
    assert_eq!(
        (said.status.as_str(), said.reason.as_deref()),
        ("True", Some("FailedCreate"))
    );
    let message = said.message.unwrap_or_default();
    assert!(
        message.starts_with("pods ") && message.ends_with("no PriorityClass with name urgent was found"),
        "the server's words alone: {message}"
    );
    let classes: Api<PriorityClass> = Api::all(world.client.clone());
    let class = serde_json::from_value(json!({ "metadata": { "name": "urgent" }, "value": 1000 }))?;
    classes.create(&PostParams::default(), &class).await?;
    world.wait_ready("app=web", 2).await?;
    eventually("the failure to be forgotten", || async {
        failure().await?.is_none().then_some(())
    })
    .await
}
