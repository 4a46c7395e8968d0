//! Killing, restarting and upgrading the agent disturbs no connection (N6).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use weft_lab::node::Encap;
use weft_lab::pods::{Attachment, all_reach, wait_serving};
use weft_lab::probe::check::Protocol;
use weft_lab::{Cluster, ClusterOptions, observe};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn traffic_of_the_programs_survives_a_killed_and_restarted_agent() -> Result<()> {
    traffic_survives("upgrade-direct", Encap::Direct)
}

#[test]
fn traffic_of_the_device_survives_a_killed_and_restarted_agent() -> Result<()> {
    traffic_survives("upgrade-device", Encap::Device)
}

fn traffic_survives(name: &str, encap: Encap) -> Result<()> {
    let mut options = ClusterOptions::new(name);
    options.agent.encap = encap;
    let mut cluster = Cluster::start(options)?;
    let client = Attachment::add(&cluster.nodes[0], "client")?.place;
    let server = Attachment::add(&cluster.nodes[1], "server")?.place;
    let _server = server.serve(8080)?;
    let targets: Vec<SocketAddr> = server.sockets(8080);
    all_reach(
        std::slice::from_ref(&client),
        &targets,
        &[Protocol::Tcp],
        DEADLINE,
    )?;
    let streams = targets
        .iter()
        .map(|target| client.stream(*target))
        .collect::<Result<Vec<_>>>()?;

    let before = filter_programs(&cluster)?;

    for _ in 0..4 {
        for node in &mut cluster.nodes {
            node.kill_agent()?;
            node.start_agent()?; // loads its programs and puts them in the place of the pinned ones
            wait_serving(node, DEADLINE)?;
        }
    }
    for node in &mut cluster.nodes {
        node.stop_agent()?;
        node.start_agent()?;
        wait_serving(node, DEADLINE)?;
    }

    let after = filter_programs(&cluster)?;
    assert!(
        before.iter().zip(&after).all(|(before, after)| before != after),
        "{before:?} {after:?}"
    );
    for stream in streams {
        let report = stream.finish()?;
        assert_eq!(report.tcp_error, None, "{report:?}");
        assert!(report.tcp_bytes > 0, "{report:?}");
        assert_eq!(report.udp_lost(), 0, "{report:?}");
        assert!(report.udp_sent > 1000, "{report:?}");
    }
    cluster.assert_no_error_logged(&[])
}

/// The kernel's numbers of the programs that serve pods, one for each node.
fn filter_programs(cluster: &Cluster) -> Result<Vec<u64>> {
    cluster
        .nodes
        .iter()
        .map(|node| {
            let machine = node.machine();
            let veth = observe::link_names(machine)?
                .into_iter()
                .find(|name| name.starts_with("wv"));
            let veth = veth.context("a pod's host end")?;
            let filters = observe::tc(machine, &format!("filter show dev {veth} ingress"))?;
            let id = filters
                .iter()
                .find_map(|filter| filter["options"]["prog"]["id"].as_u64());
            id.with_context(|| format!("a program in {filters:?}"))
        })
        .collect()
}
