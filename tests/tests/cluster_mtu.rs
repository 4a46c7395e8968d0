//! Packets pass up to the exact size of the path, and larger ones are answered, not lost.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use weft_lab::node::Encap;
use weft_lab::pods::{Attachment, all_reach};
use weft_lab::probe::check::Protocol;
use weft_lab::probe::mtu::Fate;
use weft_lab::{Cluster, ClusterOptions};

const DEADLINE: Duration = Duration::from_secs(20);

/// What VXLAN over IPv4 takes: outer IPv4, UDP and VXLAN headers, and the inner Ethernet header.
const OVERHEAD: usize = 50;

#[test]
fn sizes_are_exact_when_the_programs_encapsulate() -> Result<()> {
    sizes_are_exact("mtu-direct", Encap::Direct, 1500)
}

#[test]
fn sizes_are_exact_when_the_device_encapsulates() -> Result<()> {
    sizes_are_exact("mtu-device", Encap::Device, 1500)
}

#[test]
fn sizes_follow_a_smaller_underlay() -> Result<()> {
    sizes_are_exact("mtu-small", Encap::Auto, 1400)
}

fn sizes_are_exact(name: &str, encap: Encap, underlay: u32) -> Result<()> {
    let mut options = ClusterOptions::new(name);
    options.agent.encap = encap;
    options.fabric.mtu = underlay;
    let cluster = Cluster::start(options)?;
    let client = Attachment::add(&cluster.nodes[0], "client")?.place;
    let neighbour = Attachment::add(&cluster.nodes[0], "neighbour")?.place;
    let server = Attachment::add(&cluster.nodes[1], "server")?.place;
    let _servers = [neighbour.serve(8080)?, server.serve(8080)?];
    let remote: Vec<SocketAddr> = server.sockets(8080);
    let local: Vec<SocketAddr> = neighbour.sockets(8080);
    let all: Vec<SocketAddr> = remote.iter().chain(&local).copied().collect();
    all_reach(std::slice::from_ref(&client), &all, &[Protocol::Tcp], DEADLINE)?;
    let path = underlay as usize - OVERHEAD;

    for target in &remote {
        assert_eq!(
            client.send_unfragmented(*target, path)?,
            Fate::Arrived,
            "{path} to {target}"
        );
        assert_eq!(
            client.send_unfragmented(*target, path + 1)?,
            Fate::TooBig,
            "{} to {target}",
            path + 1
        );
        let full = underlay as usize;
        assert_eq!(
            client.send_unfragmented(*target, full)?,
            Fate::TooBig,
            "{full} to {target}"
        );
    }
    for target in &local {
        let full = underlay as usize;
        assert_eq!(
            client.send_unfragmented(*target, full)?,
            Fate::Arrived,
            "{full} to {target}"
        );
    }
    Ok(())
}
