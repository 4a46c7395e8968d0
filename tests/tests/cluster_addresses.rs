//! No address is used twice, none leaks, and a freed one rests (N5).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::leaks::Snapshot;
use weft_lab::pods::Attachment;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

const PER_NODE: usize = 12;

#[test]
fn addresses_are_unique_rest_after_use_and_do_not_leak() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions::new("addresses"))?;
    let before: Vec<Snapshot> = cluster.nodes.iter().map(snapshot).collect::<Result<_>>()?;

    let first = attach_everywhere(&cluster, "first")?;
    let used = addresses(&first);
    assert_eq!(used.len(), 2 * 2 * PER_NODE, "every address of every family once");
    check_ledgers(&cluster)?;

    for attachment in &first {
        attachment.del()?;
        attachment.remove_netns()?;
    }
    let second = attach_everywhere(&cluster, "second")?;
    let reused: Vec<IpAddr> = addresses(&second).intersection(&used).copied().collect();
    assert_eq!(
        reused,
        Vec::<IpAddr>::new(),
        "a freed address rests before it is used again"
    );

    for attachment in &second {
        attachment.del()?;
        attachment.remove_netns()?;
    }
    check_ledgers(&cluster)?;
    for (node, before) in cluster.nodes.iter().zip(before) {
        wait_until("the node to be as before", Duration::from_secs(20), || {
            before.assert_nothing_added(&snapshot(node)?)
        })?;
    }
    cluster.assert_no_error_logged(&[])
}

fn attach_everywhere(cluster: &Cluster, name: &str) -> Result<Vec<Attachment>> {
    thread::scope(|scope| {
        let threads: Vec<_> = (0..PER_NODE)
            .flat_map(|number| cluster.nodes.iter().map(move |node| (node, number)))
            .map(|(node, number)| scope.spawn(move || Attachment::add(node, &format!("{name}-{number}"))))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

fn addresses(attachments: &[Attachment]) -> BTreeSet<IpAddr> {
    attachments
        .iter()
        .flat_map(|attachment| attachment.place.ips.iter().copied())
        .collect()
}

fn check_ledgers(cluster: &Cluster) -> Result<()> {
    for node in &cluster.nodes {
        let said = node.ipam_check()?;
        ensure!(!said.is_empty(), "weft ipam check says what it found");
    }
    Ok(())
}

/// Devices, mounts, namespaces and the routes that are not the underlay's own, which the kernel completes in its own time.
fn snapshot(node: &Node) -> Result<Snapshot> {
    let keep = |kind: &str, thing: &str| match kind {
        "process" => false,
        "route" => !thing.contains("dev eth0"),
        _ => true,
    };
    Ok(Snapshot::take(node.machine(), &[])?.filtered(keep))
}
