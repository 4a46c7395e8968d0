//! A node goes on without its control plane: an agent that starts while the API is away serves from what it remembers.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use weft_lab::{
    Cluster, ClusterOptions,
    pods::{Attachment, all_reach},
    probe::check::Protocol,
    wait::wait_until,
};

const DEADLINE: Duration = Duration::from_secs(20);

#[test]
fn an_agent_starts_and_attaches_pods_while_the_api_is_away() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions::new("away"))?;
    let mut places = Vec::new();
    for (at, node) in cluster.nodes.iter().enumerate() {
        places.push(Attachment::add(node, &format!("early{at}"))?.place);
    }
    cluster.control.kill()?;
    cluster.nodes[0].kill_agent()?;
    cluster.nodes[0].start_agent()?;
    let socket = cluster.nodes[0].socket();
    wait_until("the agent to serve", DEADLINE, || {
        Ok(std::os::unix::net::UnixStream::connect(&socket).map(drop)?)
    })?;

    places.push(Attachment::add(&cluster.nodes[0], "late")?.place);

    let _servers = places
        .iter()
        .map(|place| place.serve(8080))
        .collect::<Result<Vec<_>>>()?;
    let targets: Vec<SocketAddr> = places.iter().flat_map(|place| place.sockets(8080)).collect();
    all_reach(&places, &targets, &[Protocol::Tcp, Protocol::Udp], DEADLINE)?;

    cluster.control.start()?;
    cluster.wait_ready(DEADLINE)?;
    cluster.assert_no_error_logged(&[])
}
