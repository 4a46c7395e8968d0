//! What a runtime or an operator can get wrong: a clear error, and nothing half done.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use weft_lab::leaks::Snapshot;
use weft_lab::plugin::Invocation;
use weft_lab::pods::make_netns;
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

#[test]
fn mistakes_get_their_code_and_change_nothing() -> Result<()> {
    let cluster = Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new("mistakes")
    })?;
    let node = &cluster.nodes[0];
    let machine = node.machine();
    let netns = make_netns(machine, "pod")?;
    let taken = make_netns(machine, "taken")?;
    let enter = format!("nsenter --net={}", taken.display());
    machine.run(&format!("{enter} ip link add eth0 type veth peer name other"))?;
    let file = machine.dir().join("plain-file");
    std::fs::write(&file, "no netns")?;
    let good = Invocation::new(node, "mistakes", &netns);
    let before = snapshot(node)?;

    let at = |path: &str| good.clone().with_variable("CNI_NETNS", path);
    let named = |name: &str| good.clone().with_variable("CNI_IFNAME", name);
    // The call, the codes that fit, and what the error must name.
    let table = [
        (
            at("/run/netns/does-not-exist"),
            vec![3, 4],
            "/run/netns/does-not-exist",
        ),
        (at(&file.display().to_string()), vec![4], "plain-file"),
        (at("/proc/self/ns/mnt"), vec![4], "/ns/mnt"),
        (at("relative/path"), vec![4], "CNI_NETNS"),
        (good.clone().without_variable("CNI_NETNS"), vec![4], "CNI_NETNS"),
        (at(&taken.display().to_string()), vec![4, 101], "eth0"),
        (named("sixteen-bytes-xx"), vec![4], "CNI_IFNAME"),
        (named("eth/0"), vec![4], "CNI_IFNAME"),
        (named("lo"), vec![4, 101], "lo"),
        (
            good.clone().with_variable("CNI_CONTAINERID", "../x"),
            vec![4],
            "CNI_CONTAINERID",
        ),
        (good.clone().with("cniVersion", "0.2.0".into()), vec![1], "0.2.0"),
        (good.clone().with("name", json!(null)), vec![7], "name"),
        (good.clone().with("type", "bridge".into()), vec![7], "type"),
        (good.clone().with("mtu", 100.into()), vec![7], "mtu"),
        (good.clone().with("mtu", 9000.into()), vec![7], "9000"),
        (
            good.clone().with("timeoutMs", "soon".into()),
            vec![6],
            "timeoutMs",
        ),
        (
            good.clone()
                .with("prevResult", json!({"ips": [{"address": "x"}]})),
            vec![6],
            "prevResult",
        ),
    ];
    for (call, codes, name) in &table {
        let error = call
            .call("ADD")?
            .error(codes)
            .with_context(|| format!("the mistake about {name}"))?;
        ensure!(error.to_string().contains(name), "it names {name}: {error}");
    }
    wait_until("the node to be as before", Duration::from_secs(10), || {
        before.assert_nothing_added(&snapshot(node)?)
    })?;
    // None of it is in the way of the real one.
    good.call("ADD")?.result()?;
    good.call("DEL")?.silent()?;
    let foreign = machine.run(&format!("{enter} ip -br link show dev eth0"))?;
    ensure!(foreign.contains("eth0"), "what another made stays: {foreign}");
    Ok(())
}

/// The underlay device's own addresses are still being checked for duplicates when the agent is ready already.
fn snapshot(node: &Node) -> Result<Snapshot> {
    let all = Snapshot::take(node.machine(), &[])?;
    Ok(all.filtered(|kind, thing| kind != "process" && !(kind == "route" && thing.contains("dev eth0 "))))
}
