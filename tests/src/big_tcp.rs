//! Raising a device's segment limits, which Debian's `ip` cannot do for IPv4.

use std::fs::File;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::machine::Machine;

/// Lets `device` of `machine` carry segments of up to `limit` bytes, both families, both directions.
///
/// # Errors
/// If the device does not exist or the kernel refuses.
pub fn raise(machine: &Machine, device: &str, limit: u32) -> Result<()> {
    let netns = File::open(machine.netns_path()).context("open the machine's network namespace")?;
    let index: u32 = machine
        .run(&format!("cat /sys/class/net/{device}/ifindex"))?
        .trim()
        .parse()
        .context("an interface index")?;
    raise_in(netns, index, limit)
        .with_context(|| format!("raise the segment limits of {device} on {}", machine.name()))
}

/// The same for the device of that index in a network namespace.
///
/// # Errors
/// If the device does not exist or the kernel refuses.
pub fn raise_in(netns: File, index: u32, limit: u32) -> Result<()> {
    // A network namespace belongs to a thread, so this one is made for it and ends in it.
    thread::spawn(move || -> Result<()> {
        setns(netns, CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async move {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            tokio::spawn(connection);
            let mut message = LinkMessageBuilder::<LinkUnspec>::default().index(index).build();
            message.attributes.extend([
                LinkAttribute::GsoMaxSize(limit),
                LinkAttribute::GroMaxSize(limit),
                LinkAttribute::GsoIpv4MaxSize(limit),
                LinkAttribute::GroIpv4MaxSize(limit),
            ]);
            handle
                .link()
                .set(message)
                .execute()
                .await
                .context("set the limits")
        })
    })
    .join()
    .map_err(|_| anyhow!("the thread panicked"))?
}
