//! The kernel is reconciled to the desired state: what another tool removes comes back (N7).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::node::Encap;
use weft_lab::pods::{Attachment, Place, all_reach};
use weft_lab::probe::check::Protocol;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Process, observe};

const DEADLINE: Duration = Duration::from_secs(40);
const ALL: &[Protocol] = &[Protocol::Tcp, Protocol::Udp, Protocol::Icmp];

struct World {
    cluster: Cluster,
    places: Vec<Place>,
    targets: Vec<SocketAddr>,
    _servers: Vec<Process>,
}

#[test]
fn what_another_tool_removes_comes_back() -> Result<()> {
    let world = World::start("repair")?;
    let machine = world.cluster.nodes[0].machine();

    let routes = observe::routes_through(machine, "weft0")?;
    ensure!(routes.len() >= 2, "a route for each cluster CIDR, not {routes:?}");
    for route in &routes {
        let family = if route.contains(':') { "-6" } else { "-4" };
        machine.run(&format!("ip {family} route del {route} dev weft0"))?;
    }
    wait_until("the routes to come back", DEADLINE, || {
        let mut back = observe::routes_through(machine, "weft0")?;
        back.retain(|route| routes.contains(route));
        ensure!(back.len() == routes.len(), "only {back:?} of {routes:?}");
        Ok(())
    })?;
    world.all_reach()?;

    machine.run("ip link del weft0")?;
    wait_until("the overlay device to come back", DEADLINE, || {
        ensure!(
            observe::link(machine, "weft0").is_some_and(|link| link["operstate"] != "DOWN"),
            "not yet"
        );
        Ok(())
    })?;
    world.all_reach()?;

    let veth = observe::link_names(machine)?
        .into_iter()
        .find(|name| name.starts_with("wv"))
        .expect("a pod's host end");
    machine.run(&format!("tc qdisc del dev {veth} clsact"))?;
    world.all_reach()?;

    machine.run("ip link set weft0 down")?;
    world.all_reach()
}

#[test]
fn the_filter_of_all_pods_comes_back() -> Result<()> {
    let world = World::start("repair-filter")?;
    let machine = world.cluster.nodes[1].machine();
    let veth = observe::link_names(machine)?
        .into_iter()
        .find(|name| name.starts_with("wv"))
        .expect("a pod's host end");
    let qdiscs = observe::tc(machine, &format!("qdisc show dev {veth}"))?;
    let block = qdiscs
        .iter()
        .find_map(|qdisc| qdisc["ingress_block"].as_u64())
        .expect("a shared block");

    machine.run(&format!("tc filter del block {block}"))?;

    world.all_reach()
}

impl World {
    fn start(name: &str) -> Result<Self> {
        let mut options = ClusterOptions::new(name);
        options.agent.encap = Encap::Auto;
        let cluster = Cluster::start(options)?;
        let mut places: Vec<Place> = cluster.nodes.iter().map(weft_lab::Node::place).collect();
        for node in &cluster.nodes {
            places.push(Attachment::add(node, &format!("pod-{}", node.name()))?.place);
        }
        let servers = places
            .iter()
            .map(|place| place.serve(8080))
            .collect::<Result<_>>()?;
        let targets = places.iter().flat_map(|place| place.sockets(8080)).collect();
        let world = Self {
            cluster,
            places,
            targets,
            _servers: servers,
        };
        world.all_reach()?;
        Ok(world)
    }

    fn all_reach(&self) -> Result<()> {
        all_reach(&self.places, &self.targets, ALL, DEADLINE).map(drop)
    }
}
