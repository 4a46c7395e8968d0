//! The control plane is killed between any two writes, again and again: nothing acknowledged is lost, nothing is doubled.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ListParams;
use serde_json::json;

use crate::world::{World, deployment, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_scaling_nothing_acknowledged_is_lost() -> Result<()> {
    let mut world = World::in_process().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<Deployment>(deployment("web", 0, "img:1")).await?;
    let mut acknowledged = BTreeSet::new();
    for round in 0..5 {
        let replicas = 10 + round * 10;
        world
            .merge::<Deployment>("web", json!({ "spec": { "replicas": replicas } }))
            .await?;
        for i in 0..20 {
            let name = format!("map-{round}-{i}");
            if world
                .create::<ConfigMap>(json!({ "metadata": { "name": name } }))
                .await
                .is_ok()
            {
                acknowledged.insert(name);
            }
        }
        // A different point of the work each time.
        tokio::time::sleep(Duration::from_millis(37 * round)).await;
        world.crash().await?;
        let kept = world.deployment("web").await?.spec.and_then(|spec| spec.replicas);
        assert_eq!(kept, Some(i32::try_from(replicas)?), "the acknowledged size");
    }
    let maps = world.api::<ConfigMap>().list(&ListParams::default()).await?;
    let there: BTreeSet<String> = maps
        .items
        .into_iter()
        .filter_map(|map| map.metadata.name)
        .collect();
    assert!(
        acknowledged.is_subset(&there),
        "lost: {:?}",
        acknowledged.difference(&there)
    );
    world
        .wait_ready("app=web", 50)
        .await
        .context("after the last crash")?;
    eventually("exactly the pods that were asked for", || async {
        (world.pods("app=web").await.ok()?.len() == 50).then_some(())
    })
    .await?;
    assert_eq!(
        world.sets().await?.len(),
        1,
        "no second set for the same template"
    );
    Ok(())
}

/// A pod that ended is counted in three writes; a crash between any two of them loses none and counts none twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_counting_a_job_counts_each_pod_once() -> Result<()> {
    let mut world = World::in_process().await?;
    world.join(&["n1", "n2"]).await?;
    world
        .create::<Job>(json!({
            "metadata": { "name": "many" },
            "spec": { "completions": 80, "parallelism": 20, "template": {
                "metadata": { "annotations": { "test/exit": "0" } },
                "spec": { "restartPolicy": "Never", "containers": [{ "name": "c", "image": "img:1" }] },
            } },
        }))
        .await?;
    for round in 1..5 {
        eventually("the Job to go on", || async {
            let status = world.api::<Job>().get("many").await.ok()?.status?;
            (status.succeeded.unwrap_or(0) >= 10 * round).then_some(())
        })
        .await?;
        tokio::time::sleep(Duration::from_millis(23 * u64::try_from(round)?)).await;
        world.crash().await?;
    }
    let done = eventually("the Job to be complete", || async {
        let status = world.api::<Job>().get("many").await.ok()?.status?;
        status.completion_time.is_some().then_some(status)
    })
    .await?;
    assert_eq!((done.succeeded, done.failed), (Some(80), None));
    assert_eq!(world.pods("job-name=many").await?.len(), 80, "not one too many");
    Ok(())
}
