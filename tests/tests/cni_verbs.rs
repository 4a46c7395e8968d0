//! The plugin and the agent together, against the kernel: every verb, every version.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weft_lab::leaks::Snapshot;
use weft_lab::plugin::Invocation;
use weft_lab::pods::{Place, make_netns};
use weft_lab::wait::wait_until;
use weft_lab::{Cluster, ClusterOptions, Node};

/// What CHECK says when the kernel differs.
const CHECK_FAILED: u64 = 102;

#[test]
fn add_check_and_del_in_every_version() -> Result<()> {
    let cluster = one_node("verbs")?;
    let node = &cluster.nodes[0];
    let before = snapshot(node)?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let name = format!("v{}", version.replace('.', "-"));
        let netns = make_netns(node.machine(), &name)?;
        let pod = Place {
            name: name.clone(),
            machine: node.machine().clone(),
            netns: Some(netns.clone()),
            ips: vec![],
        };
        let call = Invocation::new(node, &name, &netns).with("cniVersion", version.into());

        let result = call.call("ADD")?.result().context(version)?;
        ensure!(result["cniVersion"] == version, "{result}");
        is_in_the_kernel(&result, &pod)?;
        let family = result["ips"][0].get("version").is_some();
        ensure!(family == (version < "1.0.0"), "{version}: {result}");
        ensure!(
            result["interfaces"][position(&result, "eth0")?]
                .get("mtu")
                .is_some()
                == (version == "1.1.0"),
            "{version}: {result}"
        );

        let checked = call.clone().with("prevResult", result.clone());
        if version >= "0.4.0" {
            checked.call("CHECK")?.silent()?;
        } else {
            checked.call("CHECK")?.error(&[1])?;
        }
        // The same attachment again, while it is there.
        call.call("ADD")?.error(&[101])?;
        is_in_the_kernel(&result, &pod).context("after ADD was repeated")?;

        checked.call("DEL")?.silent()?;
        checked.call("DEL")?.silent().context("repeated")?;
        // As a runtime that removes a sandbox whose netns is gone.
        let late = call.clone().with_variable("CNI_NETNS", "");
        late.call("DEL")?.silent().context("with an empty CNI_NETNS")?;
        call.clone()
            .without_variable("CNI_NETNS")
            .call("DEL")?
            .silent()
            .context("without CNI_NETNS")?;
        wait_until("the pod's link to go", Duration::from_secs(10), || {
            ensure!(ip(&pod, "link show dev eth0").is_err(), "it is there");
            Ok(())
        })?;
        node.machine().run(&format!("umount {}", netns.display()))?;
        node.machine().run(&format!("rm {}", netns.display()))?;
    }
    wait_until("the node to be as before", Duration::from_secs(20), || {
        before.assert_nothing_added(&snapshot(node)?)
    })?;
    cluster.assert_no_error_logged(&[])
}

#[test]
fn check_finds_what_differs() -> Result<()> {
    let cluster = one_node("check")?;
    let node = &cluster.nodes[0];
    for (name, harm) in [
        ("address", "addr flush dev eth0 scope global"),
        ("route", "route del default"),
        ("down", "link set eth0 down"),
        ("mac", "link set eth0 address 02:aa:bb:cc:dd:ee"),
        ("link", "link del eth0"),
    ] {
        let netns = make_netns(node.machine(), name)?;
        let pod = Place {
            name: name.to_owned(),
            machine: node.machine().clone(),
            netns: Some(netns.clone()),
            ips: vec![],
        };
        let call = Invocation::new(node, name, &netns);
        let result = call.call("ADD")?.result()?;
        let checked = call.clone().with("prevResult", result);
        checked.call("CHECK")?.silent()?;
        ip(&pod, harm).with_context(|| format!("do harm: {harm}"))?;
        let answer = checked.call("CHECK")?;
        // The agent mends a link that it misses, and may be faster than the question.
        let mended = name == "link" && answer.silent().is_ok() && ip(&pod, "link show dev eth0").is_ok();
        if !mended {
            let error = answer
                .error(&[CHECK_FAILED])
                .with_context(|| format!("after {harm}"))?;
            ensure!(error.to_string().len() > 40, "it says what differs: {error}");
        }
        call.call("DEL")?
            .silent()
            .with_context(|| format!("after {harm}"))?;
    }
    // A container that was never added.
    let netns = make_netns(node.machine(), "never")?;
    let call = Invocation::new(node, "never", &netns);
    call.clone()
        .with("prevResult", json!({"interfaces": [], "ips": []}))
        .call("CHECK")?
        .error(&[3, CHECK_FAILED])?;
    call.call("DEL")?.silent()
}

#[test]
fn gc_keeps_what_is_valid_and_status_says_ready() -> Result<()> {
    let cluster = one_node("gc")?;
    let node = &cluster.nodes[0];
    let mut calls = Vec::new();
    for name in ["keep-1", "keep-2", "lost-1", "lost-2"] {
        let netns = make_netns(node.machine(), name)?;
        let call = Invocation::new(node, name, &netns);
        let result = call.call("ADD")?.result()?;
        calls.push(call.with("prevResult", result));
    }
    calls[0].call("STATUS")?.silent()?;
    let valid: Vec<Value> = ["keep-1", "keep-2"]
        .iter()
        .map(|id| json!({"containerID": id, "ifname": "eth0"}))
        .collect();
    calls[0]
        .clone()
        .with("cni.dev/valid-attachments", valid.into())
        .call("GC")?
        .silent()?;
    for call in &calls[..2] {
        call.call("CHECK")?.silent()?;
    }
    for call in &calls[2..] {
        call.call("CHECK")?.error(&[3, CHECK_FAILED])?;
    }
    calls[0].call("GC")?.error(&[7]).context("without the list")?;
    for call in &calls[..2] {
        call.call("CHECK")?.silent().context("after GC without a list")?;
    }
    cluster.assert_no_error_logged(&[])
}

#[test]
fn a_chain_gets_the_results_of_both_plugins() -> Result<()> {
    let cluster = one_node("chain")?;
    let node = &cluster.nodes[0];
    let netns = make_netns(node.machine(), "chain")?;
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "first0", "sandbox": netns}],
        "ips": [{"address": "192.0.2.7/24", "interface": 0}],
    });
    let call = Invocation::new(node, "chain", &netns).with("cniVersion", "1.0.0".into());
    let result = call.clone().with("prevResult", previous).call("ADD")?.result()?;
    ensure!(
        result["interfaces"][0]["name"] == "first0" && result["ips"][0]["interface"] == 0,
        "{result}"
    );
    let own = result["ips"][1]["interface"].as_u64().context("an index")? as usize;
    ensure!(result["interfaces"][own]["name"] == "eth0", "{result}");
    // What another plugin made is not Weft's to check.
    call.clone().with("prevResult", result).call("CHECK")?.silent()?;
    call.call("DEL")?.silent()
}

/// Compares a result with what another tool sees in the pod.
fn is_in_the_kernel(result: &Value, pod: &Place) -> Result<()> {
    let links = ip(pod, "link show dev eth0")?;
    let index = position(result, "eth0")?;
    let interface = &result["interfaces"][index];
    ensure!(
        interface["name"] == "eth0" && interface["mac"] == links[0]["address"],
        "{interface} {links}"
    );
    ensure!(
        interface["sandbox"].as_str() == pod.netns.as_ref().and_then(|path| path.to_str()),
        "{interface}"
    );
    ensure!(
        interface["mtu"].is_null() || interface["mtu"] == links[0]["mtu"],
        "{interface} {links}"
    );
    let addresses = ip(pod, "addr show dev eth0 scope global")?;
    let present: Vec<String> = addresses[0]["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|info| Some(format!("{}/{}", info["local"].as_str()?, info["prefixlen"])))
        .collect();
    let ips = result["ips"].as_array().context("the addresses")?;
    ensure!(ips.len() == 2, "one of each family: {result}");
    for address in ips {
        ensure!(address["interface"] == index, "{result}");
        ensure!(
            present.iter().any(|known| address["address"] == known.as_str()),
            "{address} {present:?}"
        );
    }
    for (family, destination) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
        let routes = result["routes"].as_array().context("the routes")?;
        let route = routes
            .iter()
            .find(|route| route["dst"] == destination)
            .context("a default route")?;
        let actual = ip(pod, &format!("{family} route show default"))?;
        ensure!(route["gw"] == actual[0]["gateway"], "{route} {actual}");
        let metrics = &actual[0]["metrics"][0];
        ensure!(
            route["mtu"].is_null() || route["mtu"] == metrics["mtu"],
            "{route} {actual}"
        );
        ensure!(
            route["advmss"].is_null() || route["advmss"] == metrics["advmss"],
            "{route} {actual}"
        );
    }
    Ok(())
}

/// Where in a result an interface is.
fn position(result: &Value, name: &str) -> Result<usize> {
    let interfaces = result["interfaces"].as_array().context("the interfaces")?;
    let found = interfaces.iter().position(|interface| interface["name"] == name);
    found.with_context(|| format!("{name} in {result}"))
}

/// What `ip` prints in a pod, as JSON; null if it prints nothing.
fn ip(pod: &Place, args: &str) -> Result<Value> {
    let mut command = pod.command("ip");
    command.arg("-j").args(args.split_whitespace());
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn one_node(name: &str) -> Result<Cluster> {
    Cluster::start(ClusterOptions {
        nodes: 1,
        ..ClusterOptions::new(name)
    })
}

/// The underlay device's own addresses are still being checked for duplicates when the agent is ready already.
fn snapshot(node: &Node) -> Result<Snapshot> {
    let all = Snapshot::take(node.machine(), &[&node.queue_dir()])?;
    Ok(all.filtered(|kind, thing| kind != "process" && !(kind == "route" && thing.contains("dev eth0 "))))
}
