//! StatefulSets: order, identity, phased updates and claims.

use anyhow::Result;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::world::{World, eventually, is_ready, pod_template};

fn stateful_set(replicas: i32) -> Value {
    json!({
        "metadata": { "name": "db" },
        "spec": {
            "replicas": replicas, "serviceName": "db", "selector": { "matchLabels": { "app": "db" } },
            "template": pod_template("db", "img:1"),
        },
    })
}

fn images(pods: &[Pod]) -> Vec<(String, String)> {
    let mut images: Vec<_> = pods
        .iter()
        .map(|pod| {
            let image = pod
                .spec
                .as_ref()
                .and_then(|spec| spec.containers[0].image.clone());
            (pod.name_any(), image.unwrap_or_default())
        })
        .collect();
    images.sort();
    images
}

/// "Scaling should happen in predictable order and halt if any stateful pod is unhealthy".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaling_is_ordered_and_halts_at_an_unhealthy_pod() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<StatefulSet>(stateful_set(2)).await?;
    let mut pods = world.wait_ready("app=db", 2).await?;
    pods.sort_by_key(kube::ResourceExt::name_any);
    assert_eq!(pods[1].name_any(), "db-1");
    let labels = pods[1].labels();
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "db-1");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "1");
    let spec = pods[1].spec.clone().unwrap_or_default();
    assert_eq!(
        (spec.hostname.as_deref(), spec.subdomain.as_deref()),
        (Some("db-1"), Some("db"))
    );

    // The first pod falls ill: nothing comes and nothing goes.
    let ill = json!({ "metadata": { "annotations": { "test/never-ready": "yes" } } });
    world.merge::<Pod>("db-0", ill).await?;
    let status = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    let api = world.api::<Pod>();
    api.patch_status("db-0", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    for replicas in [3, 1] {
        let set = world
            .merge::<StatefulSet>("db", json!({ "spec": { "replicas": replicas } }))
            .await?;
        eventually("the set to have acted on its size", || async {
            let status = world.api::<StatefulSet>().get("db").await.ok()?.status?;
            (status.observed_generation == set.metadata.generation && status.ready_replicas == Some(1))
                .then_some(())
        })
        .await?;
        assert_eq!(world.pods("app=db").await?.len(), 2, "at {replicas}");
    }
    world
        .merge::<Pod>(
            "db-0",
            json!({ "metadata": { "annotations": { "test/never-ready": null } } }),
        )
        .await?;
    eventually("the second to go", || async {
        let pods = world.pods("app=db").await.ok()?;
        (pods.len() == 1 && pods[0].name_any() == "db-0" && is_ready(&pods[0])).then_some(())
    })
    .await?;
    eventually("the events", || async {
        let made = world.events("db", "SuccessfulCreate").await.ok()?;
        let gone = world.events("db", "SuccessfulDelete").await.ok()?;
        (made.contains(&"create Pod db-1 in StatefulSet db successful".to_owned())
            && gone == ["delete Pod db-1 in StatefulSet db successful"])
        .then_some(())
    })
    .await
}

/// "should perform canary updates and phased rolling updates of template modifications", "should perform rolling updates and
/// roll backs of template modifications", with what `kubectl rollout` sees of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_phased_and_can_be_undone() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut set = stateful_set(3);
    set["spec"]["updateStrategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } });
    world.create::<StatefulSet>(set).await?;
    world
        .kubectl(&["rollout", "status", "sts/db", "--timeout=60s"])
        .await?;
    world.kubectl(&["set", "image", "sts/db", "c=img:2"]).await?;
    let canary = world
        .kubectl(&["rollout", "status", "sts/db", "--timeout=60s"])
        .await?;
    assert!(
        canary.contains("partitioned roll out complete: 1 new pods have been updated"),
        "{canary}"
    );
    let of = |third: [&str; 3]| {
        let named = |(at, image): (usize, &&str)| (format!("db-{at}"), format!("img:{image}"));
        third.iter().enumerate().map(named).collect::<Vec<_>>()
    };
    assert_eq!(images(&world.wait_ready("app=db", 3).await?), of(["1", "1", "2"]));
    // A pod below the partition comes back as it was.
    world
        .api::<Pod>()
        .delete("db-1", &DeleteParams::default())
        .await?;
    eventually("db-1 to be back", || async {
        let pods = world.ready("app=db").await.ok()?;
        (pods.len() == 3)
            .then(|| images(&pods) == of(["1", "1", "2"]))
            .filter(|same| *same)
    })
    .await?;

    let all = json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": 0 } } } });
    world.merge::<StatefulSet>("db", all).await?;
    world
        .kubectl(&["rollout", "status", "sts/db", "--timeout=60s"])
        .await?;
    assert_eq!(images(&world.wait_ready("app=db", 3).await?), of(["2", "2", "2"]));
    let status = world
        .api::<StatefulSet>()
        .get("db")
        .await?
        .status
        .unwrap_or_default();
    assert_eq!(status.current_revision, status.update_revision);

    world.kubectl(&["rollout", "undo", "sts/db"]).await?;
    world
        .kubectl(&["rollout", "status", "sts/db", "--timeout=60s"])
        .await?;
    assert_eq!(images(&world.wait_ready("app=db", 3).await?), of(["1", "1", "1"]));
    let history = world.kubectl(&["rollout", "history", "sts/db"]).await?;
    assert!(
        history.contains("\n2 ") && history.contains("\n3 ") && !history.contains("\n1 "),
        "{history}"
    );
    let before: Vec<_> = world
        .ready("app=db")
        .await?
        .iter()
        .map(kube::ResourceExt::uid)
        .collect();
    world.kubectl(&["rollout", "restart", "sts/db"]).await?;
    world
        .kubectl(&["rollout", "status", "sts/db", "--timeout=60s"])
        .await?;
    let restarted = world.wait_ready("app=db", 3).await?;
    assert!(restarted.iter().all(|pod| !before.contains(&pod.uid())));
    Ok(())
}

/// "should have PVCs removed according to persistentVolumeClaimRetentionPolicy".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_outlive_their_pods_as_the_policy_says() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut set = stateful_set(2);
    set["spec"]["podManagementPolicy"] = json!("Parallel");
    set["spec"]["ordinals"] = json!({ "start": 4 });
    set["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({ "whenScaled": "Delete", "whenDeleted": "Retain" });
    set["spec"]["volumeClaimTemplates"] = json!([{ "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } } }]);
    world.create::<StatefulSet>(set).await?;
    let claims = || async {
        let list = world
            .api::<PersistentVolumeClaim>()
            .list(&ListParams::default())
            .await
            .ok()?;
        let mut names: Vec<String> = list.items.iter().map(kube::ResourceExt::name_any).collect();
        names.sort();
        Some(names)
    };
    let exactly = |wanted: &'static [&'static str]| async move {
        eventually(&format!("the claims {wanted:?}"), || async {
            claims().await.filter(|names| names == wanted).map(|_| ())
        })
        .await
    };
    exactly(&["data-db-4", "data-db-5"]).await?;
    let pod = eventually("the second pod", || async {
        world.api::<Pod>().get("db-5").await.ok()
    })
    .await?;
    let volumes = pod.spec.and_then(|spec| spec.volumes).unwrap_or_default();
    let mounted = volumes.iter().find(|volume| volume.name == "data");
    let claim = mounted.and_then(|volume| volume.persistent_volume_claim.clone());
    assert_eq!(claim.map(|claim| claim.claim_name).as_deref(), Some("data-db-5"));

    world
        .merge::<StatefulSet>("db", json!({ "spec": { "replicas": 1 } }))
        .await?;
    exactly(&["data-db-4"]).await?;
    world
        .api::<StatefulSet>()
        .delete("db", &DeleteParams::default())
        .await?;
    eventually("the pods to go", || async {
        world.pods("app=db").await.ok()?.is_empty().then_some(())
    })
    .await?;
    exactly(&["data-db-4"]).await
}
