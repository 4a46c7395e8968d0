//! Nothing blocks the deletion of a pod, least of all an agent that is down (N8).

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use weft_lab::leaks::Snapshot;
use weft_lab::plugin::Invocation;
use weft_lab::pods::make_netns;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

#[test]
fn deletions_wait_for_the_agent_and_are_drained_before_it_serves() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new("agent-down")
    })?;
    let before = snapshot(&cluster.nodes[0])?;
    let mut calls = Vec::new();
    for i in 0..4 {
        let node = &cluster.nodes[0];
        let name = format!("down-{i}");
        let netns = make_netns(node.machine(), &name)?;
        let call = Invocation::new(node, &name, &netns);
        let result = call.call("ADD")?.result()?;
        calls.push((call.with("prevResult", result), netns));
    }
    cluster.nodes[0].kill_agent()?;

    // Two are deleted while the agent is down, one of them twice and with its netns gone.
    calls[0].0.call("DEL")?.silent()?;
    calls[1].0.call("DEL")?.silent()?;
    remove_netns(&cluster.nodes[0], &calls[1].1)?;
    calls[1]
        .0
        .clone()
        .with_variable("CNI_NETNS", "")
        .call("DEL")?
        .silent()?;
    // One loses its netns and nobody says so.
    remove_netns(&cluster.nodes[0], &calls[2].1)?;
    let queued = fs::read_dir(cluster.nodes[0].queue_dir())?
        .flatten()
        .filter(|file| {
            file.path()
                .extension()
                .is_some_and(|extension| extension == "json")
        })
        .count();
    ensure!(queued == 2, "{queued} deletions are queued");

    let error = calls[3].0.call("ADD")?.error(&[11])?;
    ensure!(error.to_string().contains("agent.sock"), "{error}");
    calls[3].0.call("CHECK")?.error(&[11])?;
    calls[3].0.call("STATUS")?.error(&[50])?;
    calls[3]
        .0
        .clone()
        .with("cni.dev/valid-attachments", serde_json::json!([]))
        .call("GC")?
        .error(&[11])?;

    cluster.nodes[0].start_agent()?;
    cluster.wait_ready(Duration::from_mins(1))?;
    let node = &cluster.nodes[0];
    wait_until("STATUS to be good", Duration::from_secs(30), || {
        calls[3].0.call("STATUS")?.silent()
    })?;
    let left = fs::read_dir(node.queue_dir())?
        .flatten()
        .filter(|file| file.path().extension().is_some())
        .count();
    ensure!(left == 0, "the queue is drained");
    calls[3].0.call("CHECK")?.silent().context("the one that lives")?;
    for (call, _) in &calls[..3] {
        call.call("CHECK")?.error(&[3, 4, 102])?;
    }
    calls[3].0.call("DEL")?.silent()?;
    for index in [0, 3] {
        remove_netns(node, &calls[index].1)?;
    }
    wait_until("the node to be as before", Duration::from_secs(20), || {
        before.assert_nothing_added(&snapshot(node)?)
    })
}

#[test]
fn an_agent_that_hangs_is_not_waited_for() -> Result<()> {
    let mut cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new("agent-hangs")
    })?;
    let netns = make_netns(cluster.nodes[0].machine(), "hangs")?;
    let call = Invocation::new(&cluster.nodes[0], "hangs", &netns);
    call.call("ADD")?.result()?;
    let call = call.with("timeoutMs", 1500.into());
    cluster.nodes[0].agent()?.signal(Signal::SIGSTOP)?;
    let started = std::time::Instant::now();
    let outcome = || -> Result<()> {
        call.call("STATUS")?.error(&[50])?;
        call.clone()
            .with_variable("CNI_CONTAINERID", "other")
            .call("ADD")?
            .error(&[11])?;
        call.call("DEL")?.silent()
    }();
    cluster.nodes[0].agent()?.signal(Signal::SIGCONT)?;
    outcome?;
    ensure!(
        started.elapsed() < Duration::from_secs(15),
        "{:?}",
        started.elapsed()
    );
    Ok(())
}

fn remove_netns(node: &Node, path: &std::path::Path) -> Result<()> {
    node.machine().run(&format!("umount {}", path.display()))?;
    node.machine().run(&format!("rm {}", path.display())).map(drop)
}

/// The underlay device's own addresses are still being checked for duplicates when the agent is ready already.
fn snapshot(node: &Node) -> Result<Snapshot> {
    let all = Snapshot::take(node.machine(), &[])?;
    Ok(all.filtered(|kind, thing| kind != "process" && !(kind == "route" && thing.contains("dev eth0 "))))
}
