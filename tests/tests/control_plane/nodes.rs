//! Nodes that join, fall silent, come back and leave.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};

use crate::world::{World, by_node, deployment, eventually, on};

/// After how long a silent node is taken for dead, where a test waits for that.
const GRACE: Duration = Duration::from_secs(3);

fn taints(node: &Node) -> BTreeSet<String> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect()
}

fn ready(node: &Node) -> String {
    let conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .filter(|c| c.type_ == "Ready")
        .map(|c| c.status.clone())
        .next()
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_of_a_dead_node_are_replaced_elsewhere() -> Result<()> {
    let world = World::with(|config| config.node_monitor_grace_period = GRACE).await?;
    world.join(&["n1", "n2", "n3"]).await?;
    world.create::<Deployment>(deployment("web", 6, "img:1")).await?;
    let pods = world.wait_ready("app=web", 6).await?;
    assert_eq!(by_node(&pods).values().copied().collect::<Vec<_>>(), [2, 2, 2]);

    world.kill_node("n2");
    let nodes: Api<Node> = Api::all(world.client.clone());
    wait_unknown(&nodes, "n2", &["NoExecute", "NoSchedule"]).await?;
    eventually("six ready pods elsewhere", || async {
        let pods = world.ready("app=web").await.ok()?;
        (pods.len() == 6 && pods.iter().all(|pod| !on(pod, "n2"))).then_some(())
    })
    .await?;
    assert_eq!(
        world.events("n2", "NodeNotReady").await?,
        ["Node n2 status is now: NodeNotReady"]
    );

    world.heal_node("n2").await?;
    eventually("the taints to go", || async {
        let node = nodes.get("n2").await.ok()?;
        (ready(&node) == "True" && taints(&node).is_empty()).then_some(())
    })
    .await?;
    eventually("the evicted pods to be gone", || async {
        let pods = world.pods("app=web").await.ok()?;
        (pods.len() == 6).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_an_outage_pods_stay_where_they_are() -> Result<()> {
    let world = World::with(|config| {
        config.node_monitor_grace_period = GRACE;
        // Long enough that the first to be missed is not evicted before the others are.
        config.pod_eviction_timeout = Duration::from_secs(4);
    })
    .await?;
    world.join(&["n1", "n2", "n3", "n4", "n5"]).await?;
    world.create::<Deployment>(deployment("web", 10, "img:1")).await?;
    let before = names(&world.wait_ready("app=web", 10).await?);

    for node in ["n3", "n4", "n5"] {
        world.kill_node(node);
    }
    let nodes: Api<Node> = Api::all(world.client.clone());
    for node in ["n3", "n4", "n5"] {
        wait_unknown(&nodes, node, &["NoSchedule"]).await?;
    }
    assert_eq!(names(&world.pods("app=web").await?), before, "nothing is evicted");

    // Two of five are no outage.
    world.heal_node("n3").await?;
    wait_unknown(&nodes, "n4", &["NoSchedule", "NoExecute"]).await?;
    eventually("ten ready pods on those that are well", || async {
        let pods = world.ready("app=web").await.ok()?;
        let well = pods
            .iter()
            .all(|pod| ["n1", "n2", "n3"].iter().any(|node| on(pod, node)));
        (pods.len() == 10 && well).then_some(())
    })
    .await?;
    let after = names(&world.ready("app=web").await?);
    assert_eq!(
        after.intersection(&before).count(),
        6,
        "the pods of the node that came back are as they were"
    );
    Ok(())
}

async fn wait_unknown(nodes: &Api<Node>, name: &str, effects: &[&str]) -> Result<()> {
    let wanted: BTreeSet<_> = effects
        .iter()
        .map(|effect| format!("node.kubernetes.io/unreachable:{effect}"))
        .collect();
    eventually(&format!("{name} to have {wanted:?}"), || async {
        let node = nodes.get(name).await.ok()?;
        (ready(&node) == "Unknown" && taints(&node) == wanted).then_some(())
    })
    .await
}

fn names(pods: &[Pod]) -> BTreeSet<String> {
    pods.iter().map(ResourceExt::name_any).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_of_a_deleted_node_are_collected() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world.create::<Deployment>(deployment("web", 4, "img:1")).await?;
    world.wait_ready("app=web", 4).await?;
    world.kill_node("n2");
    let nodes: Api<Node> = Api::all(world.client.clone());
    nodes.delete("n2", &DeleteParams::default()).await?;
    eventually("all pods on the other node", || async {
        let pods = world.pods("app=web").await.ok()?;
        (pods.len() == 4 && pods.iter().all(|pod| on(pod, "n1"))).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gets_its_own_ranges_until_there_are_none() -> Result<()> {
    let world = World::with(|config| {
        config.cluster_cidrs = vec!["10.9.0.0/22".parse().unwrap(), "fd00:9::/56".parse().unwrap()];
    })
    .await?;
    world.join(&["a", "b", "c", "d"]).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let mut seen = BTreeSet::new();
    for node in nodes.list(&kube::api::ListParams::default()).await? {
        let spec = node.spec.unwrap_or_default();
        let cidrs = spec.pod_cidrs.unwrap_or_default();
        assert_eq!(cidrs.len(), 2);
        assert_eq!(spec.pod_cidr.as_ref(), Some(&cidrs[0]));
        assert!(
            cidrs[0].ends_with("/24") && cidrs[1].ends_with("/64"),
            "{cidrs:?}"
        );
        assert!(cidrs.into_iter().all(|cidr| seen.insert(cidr)), "given out twice");
    }
    let late: Node = serde_json::from_value(serde_json::json!({ "metadata": { "name": "e" } }))?;
    nodes.create(&kube::api::PostParams::default(), &late).await?;
    let message = eventually("the event", || async {
        world
            .events("e", "CIDRNotAvailable")
            .await
            .ok()?
            .into_iter()
            .next()
    })
    .await?;
    assert!(
        message.contains("10.9.0.0/22") && message.contains("--cluster-cidr"),
        "{message}"
    );
    nodes.delete("b", &DeleteParams::default()).await?;
    eventually("the freed range", || async {
        nodes.get("e").await.ok()?.spec?.pod_cidr
    })
    .await?;
    Ok(())
}
