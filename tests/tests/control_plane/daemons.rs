//! DaemonSets: a pod on each node that should have one, and updates that go from node to node.

use std::collections::BTreeMap;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};

use crate::world::{World, eventually, pod_template};

fn daemon_set(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "selector": { "matchLabels": { "app": name } }, "template": pod_template(name, "img:1") },
    })
}

/// Name and uid of the ready pod of each node.
async fn placed(world: &World, selector: &str) -> Option<BTreeMap<String, (String, String)>> {
    let pods = world.ready(selector).await.ok()?;
    Some(
        pods.iter()
            .map(|pod| {
                let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
                (
                    node.unwrap_or_default(),
                    (pod.name_any(), pod.uid().unwrap_or_default()),
                )
            })
            .collect(),
    )
}

async fn wait_placed(
    world: &World,
    selector: &str,
    nodes: &[&str],
) -> Result<BTreeMap<String, (String, String)>> {
    eventually(&format!("one pod of {selector} on each of {nodes:?}"), || async {
        let placed = placed(world, selector).await?;
        let pods = world.pods(selector).await.ok()?;
        (pods.len() == nodes.len() && placed.keys().eq(nodes)).then_some(placed)
    })
    .await
}

async fn taint(world: &World, node: &str, effect: Option<&str>) -> Result<()> {
    let taints = effect.map(|effect| json!([{ "key": "test", "effect": effect }]));
    let nodes: Api<Node> = Api::all(world.client.clone());
    let patch = json!({ "spec": { "taints": taints } });
    nodes
        .patch(node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    Ok(())
}

/// "should run and stop simple daemon", "should run and stop complex daemon", "should retry creating failed daemon pods".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn daemon_pods_follow_the_nodes() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<DaemonSet>(daemon_set("log")).await?;
    let first = wait_placed(&world, "app=log", &["n1", "n2"]).await?;
    world.join(&["n3"]).await?;
    wait_placed(&world, "app=log", &["n1", "n2", "n3"]).await?;

    taint(&world, "n3", Some("NoSchedule")).await?;
    eventually("n3's pod to count as misplaced", || async {
        let status = world.api::<DaemonSet>().get("log").await.ok()?.status?;
        (status.number_misscheduled == 1 && status.desired_number_scheduled == 2).then_some(())
    })
    .await?;
    assert_eq!(world.ready("app=log").await?.len(), 3, "it stays");
    taint(&world, "n3", Some("NoExecute")).await?;
    wait_placed(&world, "app=log", &["n1", "n2"]).await?;
    taint(&world, "n3", None).await?;
    wait_placed(&world, "app=log", &["n1", "n2", "n3"]).await?;

    let (failed, uid) = first["n1"].clone();
    let status = json!({ "status": { "phase": "Failed" } });
    world
        .api::<Pod>()
        .patch_status(&failed, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    eventually("the failed pod to be replaced", || async {
        let placed = placed(&world, "app=log").await?;
        placed.get("n1").filter(|(_, fresh)| *fresh != uid).map(|_| ())
    })
    .await?;
    eventually("the event", || async {
        let events = world.events("log", "FailedDaemonPod").await.ok()?;
        events
            .iter()
            .any(|message| message.contains(&failed))
            .then_some(())
    })
    .await?;
    eventually("the status", || async {
        let set = world.api::<DaemonSet>().get("log").await.ok()?;
        let status = set.status?;
        (status.number_ready == 3
            && status.current_number_scheduled == 3
            && status.number_available == Some(3)
            && status.number_unavailable.unwrap_or(0) == 0
            && status.updated_number_scheduled == Some(3)
            && status.observed_generation == set.metadata.generation)
            .then_some(())
    })
    .await
}

/// "should update pod when spec was updated and update strategy is RollingUpdate", "should rollback without unnecessary restarts",
/// with what `kubectl rollout` sees of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_rolls_and_rolls_back_without_unnecessary_restarts() -> Result<()> {
    let world = World::start().await?;
    let nodes = ["n1", "n2", "n3"];
    world.join(&nodes).await?;
    world.create::<DaemonSet>(daemon_set("log")).await?;
    wait_placed(&world, "app=log", &nodes).await?;
    world.kubectl(&["set", "image", "ds/log", "c=img:2"]).await?;
    let done = world
        .kubectl(&["rollout", "status", "ds/log", "--timeout=60s"])
        .await?;
    assert!(
        done.ends_with("daemon set \"log\" successfully rolled out\n"),
        "{done}"
    );
    let second = wait_placed(&world, "app=log", &nodes).await?;
    let image = |pod: &Pod| {
        pod.spec
            .as_ref()
            .and_then(|spec| spec.containers[0].image.clone())
    };
    let pods = world.ready("app=log").await?;
    assert!(pods.iter().all(|pod| image(pod).as_deref() == Some("img:2")));

    // The third template never becomes ready, so the update stops at its first node.
    let stuck =
        json!({ "spec": { "template": { "metadata": { "annotations": { "test/never-ready": "yes" } } } } });
    world.merge::<DaemonSet>("log", stuck).await?;
    eventually("the first pod of the third template", || async {
        let status = world.api::<DaemonSet>().get("log").await.ok()?.status?;
        (status.updated_number_scheduled == Some(1) && status.number_unavailable == Some(1)).then_some(())
    })
    .await?;
    let kept = placed(&world, "app=log").await.unwrap_or_default();
    assert_eq!(kept.len(), 2, "one may be missing");
    let history = world.kubectl(&["rollout", "history", "ds/log"]).await?;
    let revisions: Vec<&str> = history
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .next()?
                .parse::<u32>()
                .ok()
                .and(line.split_whitespace().next())
        })
        .collect();
    assert_eq!(revisions, ["1", "2", "3"], "{history}");

    world.kubectl(&["rollout", "undo", "ds/log"]).await?;
    let back = wait_placed(&world, "app=log", &nodes).await?;
    for (node, pod) in kept {
        assert_eq!(
            (&back[&node], &second[&node]),
            (&pod, &pod),
            "{node}'s pod was not touched"
        );
    }
    let mut revisions: Vec<i64> = world
        .api::<ControllerRevision>()
        .list(&ListParams::default())
        .await?
        .items
        .iter()
        .map(|revision| revision.revision)
        .collect();
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 3, 4], "the second came back as the fourth");
    Ok(())
}
