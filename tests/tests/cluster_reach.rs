//! Everyone reaches everyone without NAT, by both ways of encapsulating (N1, N2, N3), and the outside with it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use weft_lab::node::Encap;
use weft_lab::pods::{Attachment, Place, all_reach};
use weft_lab::probe::check::Protocol;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Machine, Process};

const DEADLINE: Duration = Duration::from_secs(20);
const ALL: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

#[test]
fn everyone_reaches_everyone_when_the_programs_encapsulate() -> Result<()> {
    everyone_reaches_everyone("reach-direct", Encap::Direct)
}

#[test]
fn everyone_reaches_everyone_when_the_device_encapsulates() -> Result<()> {
    everyone_reaches_everyone("reach-device", Encap::Device)
}

fn everyone_reaches_everyone(name: &str, encap: Encap) -> Result<()> {
    let mut options = ClusterOptions::new(name);
    options.agent.encap = encap;
    let cluster = Cluster::start(options)?;
    let mut places: Vec<Place> = cluster.nodes.iter().map(weft_lab::Node::place).collect();
    for (at, node) in cluster.nodes.iter().enumerate() {
        for pod in ["a", "b"] {
            places.push(Attachment::add(node, &format!("{pod}{at}"))?.place);
        }
    }
    let _servers = serve(&places)?;
    let targets: Vec<SocketAddr> = places.iter().flat_map(|place| place.sockets(8080)).collect();
    assert_eq!(targets.len(), 12, "six places, two families");

    all_reach(&places, &targets, ALL, DEADLINE)?;

    cluster.assert_no_error_logged(&[])
}

#[test]
fn only_what_leaves_the_cluster_is_masqueraded() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::new("reach-outside"))?;
    let pod = Attachment::add(&cluster.nodes[0], "a")?.place;
    let machine = Machine::new(cluster.lab(), "outside")?;
    let port = cluster.fabric.plug(&machine)?;
    let outside = Place::of_machine(&machine, vec![port.ipv4.into(), port.ipv6.into()]);
    let _servers = serve(std::slice::from_ref(&outside))?;
    let node: Vec<IpAddr> = cluster.nodes[0].ips();

    let outcomes = wait_until("the outside", DEADLINE, || {
        let outcomes = pod.check(&outside.sockets(8080), &[Protocol::Tcp, Protocol::Udp])?;
        anyhow::ensure!(
            outcomes.iter().all(weft_lab::probe::check::Outcome::is_reached),
            "{outcomes:?}"
        );
        Ok(outcomes)
    })?;

    for outcome in outcomes {
        let seen = outcome.seen.expect("reached");
        assert!(
            node.contains(&seen),
            "the outside sees the node's address, not {seen}"
        );
    }
    Ok(())
}

fn serve(places: &[Place]) -> Result<Vec<Process>> {
    places.iter().map(|place| place.serve(8080)).collect()
}
