//! Killing, restarting and upgrading the agent disturbs no connection (N6).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use weft_lab::node::Encap;
use weft_lab::pods::{Attachment, all_reach, wait_serving};
use weft_lab::probe::check::Protocol;
use weft_lab::{Cluster, ClusterOptions};

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

    for node in &mut cluster.nodes {
        node.kill_agent()?;
        node.start_agent()?; // loads its programs and puts them in the place of the pinned ones
        wait_serving(node, DEADLINE)?;
    }
    for node in &mut cluster.nodes {
        node.stop_agent()?;
        node.start_agent()?;
        wait_serving(node, DEADLINE)?;
    }

    for stream in streams {
        let report = stream.finish()?;
        assert_eq!(report.tcp_error, None, "{report:?}");
        assert!(report.tcp_bytes > 0, "{report:?}");
        assert_eq!(report.udp_lost(), 0, "{report:?}");
        assert!(report.udp_sent > 1000, "{report:?}");
    }
    cluster.assert_no_error_logged(&[])
}
