//! The lab itself: machines reach each other, faults are felt, and nothing is left behind.

use std::time::Duration;

use anyhow::Result;
use weft_lab::pods::{Place, all_reach};
use weft_lab::probe::check::Protocol;
use weft_lab::probe::mtu::Fate;
use weft_lab::{Fabric, FabricOptions, Lab, Machine, leaks, observe, wait_for};

#[test]
fn machines_on_a_fabric_reach_each_other_in_both_families() -> Result<()> {
    let lab = Lab::new("lab-reach")?;
    let fabric = Fabric::new(
        &lab,
        FabricOptions {
            mtu: 1500,
            big_tcp: Some(185_000),
        },
    )?;
    let (a, b) = (Machine::new(&lab, "a")?, Machine::new(&lab, "b")?);
    let (_, at) = (fabric.plug(&a)?, fabric.plug(&b)?);

    for address in [at.ipv4.to_string(), at.ipv6.to_string()] {
        wait_for("the other machine", Duration::from_secs(5), || {
            reaches(&a, &address).then_some(())
        })?;
    }
    let eth0 = observe::link(&b, "eth0").expect("plugged in");
    assert_eq!(eth0["mtu"], 1500);
    assert_eq!(eth0["gso_max_size"], 185_000);
    Ok(())
}

#[test]
fn a_partition_cuts_two_ports_off_and_no_other() -> Result<()> {
    let lab = Lab::new("lab-cut")?;
    let fabric = Fabric::new(&lab, FabricOptions::default())?;
    let machines = ["a", "b", "c"].map(|name| Machine::new(&lab, name));
    let [a, b, c] = machines;
    let (a, b, c) = (a?, b?, c?);
    let (at_a, at_b, at_c) = (fabric.plug(&a)?, fabric.plug(&b)?, fabric.plug(&c)?);

    fabric.partition(&[&at_a, &at_b], true)?;
    assert!(!reaches(&a, &at_b.ipv4.to_string()));
    assert!(reaches(&a, &at_c.ipv4.to_string()));
    assert!(reaches(&b, &at_c.ipv4.to_string()));

    fabric.partition(&[&at_a, &at_b], false)?;
    wait_for("the partition to heal", Duration::from_secs(10), || {
        reaches(&a, &at_b.ipv4.to_string()).then_some(())
    })?;
    Ok(())
}

#[test]
fn a_lab_that_ends_leaves_nothing() -> Result<()> {
    let lab = Lab::new("lab-end")?;
    let id = lab.id().to_owned();
    let machine = Machine::new(&lab, "a")?;
    machine.run("mount -t tmpfs tmpfs /mnt")?;
    let process = machine.spawn("idle", "sleep", &["1000".to_owned()])?;
    let orphan = machine
        .command("sh")
        .args(["-c", "setsid sleep 1000 >/dev/null 2>&1 &"])
        .status()?;
    assert!(orphan.success());
    std::mem::forget(process);
    std::fs::create_dir_all(
        std::path::Path::new("/sys/fs/cgroup/memory")
            .join(lab.cgroup())
            .join("pod"),
    )?;

    drop(machine);
    drop(lab);

    assert_eq!(leaks::of_lab(&id), Vec::<String>::new());
    Ok(())
}

#[test]
fn a_killed_process_is_gone_and_its_orphans_are_reaped() -> Result<()> {
    let lab = Lab::new("lab-kill")?;
    let machine = Machine::new(&lab, "a")?;
    let before = leaks::Snapshot::take(&machine, &[])?;
    let mut process = machine.spawn(
        "parent",
        "sh",
        &["-c".to_owned(), "sleep 0.2 & exec sleep 1000".to_owned()],
    )?;
    process.kill_9()?;
    wait_for("the orphan to be reaped", Duration::from_secs(5), || {
        let after = leaks::Snapshot::take(&machine, &[]).ok()?;
        before.added(&after).is_empty().then_some(())
    })?;
    Ok(())
}

#[test]
fn the_probe_sees_sources_sizes_and_losses_as_they_are() -> Result<()> {
    let lab = Lab::new("lab-probe")?;
    let fabric = Fabric::new(&lab, FabricOptions::default())?;
    let (a, b) = (Machine::new(&lab, "a")?, Machine::new(&lab, "b")?);
    let (at_a, at_b) = (fabric.plug(&a)?, fabric.plug(&b)?);
    let a = Place::of_machine(&a, vec![at_a.ipv4.into(), at_a.ipv6.into()]);
    let b = Place::of_machine(&b, vec![at_b.ipv4.into(), at_b.ipv6.into()]);
    let _server = b.serve(8080)?;
    let targets = b.sockets(8080);

    let all = all_reach(
        std::slice::from_ref(&a),
        &targets,
        &[Protocol::Tcp, Protocol::Udp, Protocol::Icmp],
        Duration::from_secs(10),
    )?;
    assert_eq!(all[0].1.len(), 6);
    for target in targets {
        assert_eq!(a.send_unfragmented(target, 1500)?, Fate::Arrived);
        assert_eq!(a.send_unfragmented(target, 1501)?, Fate::TooBig);
        let stream = a.stream(target)?;
        fabric.set_link(&at_b, false)?;
        wait_for("the loss to be felt", Duration::from_secs(5), || {
            (!reaches(&a.machine, &target.ip().to_string())).then_some(())
        })?;
        fabric.set_link(&at_b, true)?;
        wait_for("the link", Duration::from_secs(10), || {
            reaches(&a.machine, &target.ip().to_string()).then_some(())
        })?;
        let report = stream.finish()?;
        assert_eq!(report.tcp_error, None, "{report:?}");
        assert!(report.udp_lost() > 0 && report.udp_received > 0, "{report:?}");
    }
    Ok(())
}

/// Whether a TCP connection attempt gets any answer: a refusal is one.
fn reaches(from: &Machine, address: &str) -> bool {
    let host = if address.contains(':') {
        format!("[{address}]")
    } else {
        address.to_owned()
    };
    let script = format!(
        "timeout 1 bash -c 'exec 3<>/dev/tcp/{}/9' 2>&1; true",
        host.trim_matches(['[', ']'])
    );
    let output = from
        .command("bash")
        .args(["-c", &script])
        .output()
        .expect("nsenter runs");
    String::from_utf8_lossy(&output.stdout).contains("refused")
}
