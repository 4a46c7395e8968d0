//! Nodes are cut off from each other, die, and come back.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use weft_lab::cluster::condition;
use weft_lab::pods::{Attachment, all_reach};
use weft_lab::probe::check::Protocol;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, demo};

const DEADLINE: Duration = Duration::from_mins(1);

#[test]
fn a_partition_between_two_nodes_heals() -> Result<()> {
    let mut options = ClusterOptions::new("partition");
    options.nodes = 3;
    let cluster = Cluster::start(options)?;
    let mut places = Vec::new();
    let mut servers = Vec::new();
    for node in &cluster.nodes {
        let place = Attachment::add(node, &format!("pod-{}", node.name()))?.place;
        servers.push(place.serve(8080)?);
        places.push(place);
    }
    let targets: Vec<SocketAddr> = places.iter().flat_map(|place| place.sockets(8080)).collect();
    let protocols = &[Protocol::Tcp, Protocol::Udp];
    all_reach(&places, &targets, protocols, DEADLINE)?;

    let ports = [cluster.nodes[0].port(), cluster.nodes[1].port()];
    cluster.fabric.partition(&ports, true)?;
    let cut = places[0].check(&places[1].sockets(8080), protocols)?;
    assert!(cut.iter().all(|outcome| !outcome.is_reached()), "{cut:?}");
    all_reach(&places[..1], &places[2].sockets(8080), protocols, DEADLINE)?;
    for node in &cluster.nodes {
        cluster.wait_node(node.name(), true, DEADLINE)?; // all still reach the controller
    }

    cluster.fabric.partition(&ports, false)?;
    all_reach(&places, &targets, protocols, DEADLINE)?;
    Ok(())
}

#[test]
fn replicas_of_a_dead_node_run_elsewhere_and_it_may_come_back() -> Result<()> {
    let mut options = ClusterOptions::new("death");
    options.agent.runs_pods = true;
    let mut cluster = Cluster::start(options)?;
    let archive = cluster.lab().root().join("probe.tar");
    demo::write_image(&archive)?;
    cluster.load_image(&archive)?;
    cluster.client.apply(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 4,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "probe", "image": demo::IMAGE, "imagePullPolicy": "Never", "args": ["serve"]}],
                },
            },
        },
    }))?;
    let nodes = wait_replicas(&cluster, 4, None)?;
    assert!(
        nodes.contains(&"node-1".to_owned()) && nodes.contains(&"node-2".to_owned()),
        "spread: {nodes:?}"
    );

    cluster.nodes[1].kill_agent()?;
    cluster.fabric.set_link(cluster.nodes[1].port(), false)?;
    cluster.wait_node("node-2", false, DEADLINE)?;
    wait_replicas(&cluster, 4, Some("node-2"))?;

    cluster.fabric.set_link(cluster.nodes[1].port(), true)?;
    cluster.nodes[1].start_agent()?;
    cluster.wait_node("node-2", true, DEADLINE)?;
    let node = &cluster.nodes[1];
    wait_until("the node to drop the pods it lost", DEADLINE, || {
        let kept = node.pod_netns()?;
        ensure!(kept.is_empty(), "it still has {kept:?}");
        Ok(())
    })
}

/// Waits until `count` replicas are ready, none of them on `without`; says on which nodes they are.
fn wait_replicas(cluster: &Cluster, count: usize, without: Option<&str>) -> Result<Vec<String>> {
    wait_until("the replicas to be ready", DEADLINE, || {
        let pods = cluster.client.list("Pod", "default", "app=web")?;
        let nodes: Vec<String> = pods
            .iter()
            .filter(|pod| condition(pod, "Ready").as_deref() == Some("True"))
            .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
            .filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned))
            .filter(|node| Some(node.as_str()) != without)
            .collect();
        ensure!(nodes.len() == count, "{} of {count} are ready", nodes.len());
        Ok(nodes)
    })
}
