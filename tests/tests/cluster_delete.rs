//! A pod is deleted whether the agent runs or not (N8).

use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::pods::{Attachment, wait_serving};
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, observe};

const DEADLINE: Duration = Duration::from_secs(30);

#[test]
fn a_deletion_while_the_agent_is_down_succeeds_and_is_done_later() -> Result<()> {
    let mut options = ClusterOptions::new("delete");
    options.nodes = 1;
    let mut cluster = Cluster::start(options)?;
    let node = &mut cluster.nodes[0];
    let gone = Attachment::add(node, "gone")?;
    let kept = Attachment::add(node, "kept")?;
    let veths = || -> Result<usize> {
        Ok(observe::link_names(cluster.nodes[0].machine())?
            .iter()
            .filter(|name| name.starts_with("wv"))
            .count())
    };
    assert_eq!(veths()?, 2);

    cluster.nodes[0].kill_agent()?;
    gone.del()?;
    gone.del()?; // again, as runtimes do

    cluster.nodes[0].start_agent()?;
    wait_serving(&mut cluster.nodes[0], DEADLINE)?;
    let machine = cluster.nodes[0].machine();
    wait_until("the device of the deleted pod to go", DEADLINE, || {
        let left = observe::link_names(machine)?
            .iter()
            .filter(|name| name.starts_with("wv"))
            .count();
        ensure!(left == 1, "{left} devices are left");
        Ok(())
    })?;
    kept.check()?;
    cluster.nodes[0].ipam_check()?;
    kept.del()
}
