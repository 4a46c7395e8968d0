//! Many containers at once, as after a node's restart.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use weft_lab::leaks::Snapshot;
use weft_lab::plugin::Invocation;
use weft_lab::pods::make_netns;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

const CONTAINERS: usize = 200;

#[test]
fn two_hundred_at_once_all_succeed() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new("burst")
    })?;
    let node = &cluster.nodes[0];
    let before = snapshot(node)?;
    let calls: Vec<Invocation> = in_parallel(16, CONTAINERS, |i| {
        let name = format!("burst-{i}");
        let call = Invocation::new(node, &name, &make_netns(node.machine(), &name)?);
        // That all succeed is asked for, not how fast the last of them does on a busy machine.
        Ok(call.with("timeoutMs", 300_000.into()))
    })?;

    let results = in_parallel(CONTAINERS, CONTAINERS, |i| calls[i].call("ADD")?.result())?;
    let addresses: BTreeSet<&str> = results
        .iter()
        .flat_map(|result| result["ips"].as_array().into_iter().flatten())
        .filter_map(|ip| ip["address"].as_str())
        .collect();
    ensure!(
        addresses.len() == 2 * CONTAINERS,
        "{} addresses for {CONTAINERS} containers",
        addresses.len()
    );

    in_parallel(CONTAINERS, CONTAINERS, |i| calls[i].call("DEL")?.silent())?;
    in_parallel(16, CONTAINERS, |i| {
        let path = node.machine().dir().join("netns").join(format!("burst-{i}"));
        node.machine().run(&format!("umount {}", path.display()))?;
        node.machine().run(&format!("rm {}", path.display()))
    })?;
    wait_until("the node to be as before", Duration::from_mins(1), || {
        before.assert_nothing_added(&snapshot(node)?)
    })?;
    cluster.assert_no_error_logged(&[])
}

/// Does `work` for every number below `count`, `threads` at a time.
fn in_parallel<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= count {
                        return;
                    }
                    let outcome = work(i);
                    done.lock().expect("no holder panics").push((i, outcome));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("no holder panicked");
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, outcome)| outcome).collect()
}

/// The underlay device's own addresses are still being checked for duplicates when the agent is ready already.
fn snapshot(node: &Node) -> Result<Snapshot> {
    let all = Snapshot::take(node.machine(), &[])?;
    Ok(all.filtered(|kind, thing| kind != "process" && !(kind == "route" && thing.contains("dev eth0 "))))
}
