//! The underlay: one bridge in a machine of its own, and machines plugged into it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context as _, Result};

use crate::lab::Lab;
use crate::machine::Machine;

/// What an underlay can be told to be.
#[derive(Clone, Debug)]
pub struct FabricOptions {
    /// MTU of the bridge and of every device plugged into it.
    pub mtu: u32,
    /// Largest segment that devices may carry between machines (BIG TCP); the kernel's 64 KB where absent.
    pub big_tcp: Option<u32>,
}

impl Default for FabricOptions {
    fn default() -> Self {
        Self {
            mtu: 1500,
            big_tcp: None,
        }
    }
}

/// An underlay network. Addresses are the same in every lab: each is alone in its namespaces.
#[derive(Debug)]
pub struct Fabric {
    machine: Machine,
    options: FabricOptions,
    next: AtomicU8,
}

/// A machine's place on the underlay. Its own device is called `eth0`.
#[derive(Clone, Debug)]
pub struct Port {
    /// The bridge's device for it, in the fabric's namespace.
    pub name: String,
    /// Its underlay address.
    pub ipv4: Ipv4Addr,
    /// Its underlay address, IPv6.
    pub ipv6: Ipv6Addr,
}

/// The underlay networks, and the bridge's own address, which is every machine's default gateway.
pub const UNDERLAY_V4: &str = "192.168.77.0/24";
pub const UNDERLAY_V6: &str = "fd77::/64";
const GATEWAY: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 168, 77, 1),
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1),
);

impl Fabric {
    /// Makes an underlay with nothing plugged in.
    ///
    /// # Errors
    /// If the machine or the bridge cannot be made.
    pub fn new(lab: &Lab, options: FabricOptions) -> Result<Self> {
        let machine = Machine::new(lab, "fabric")?;
        machine.batch(&format!(
            "link add br0 mtu {} type bridge mcast_snooping 0\naddr add {}/24 dev br0\naddr add {}/64 dev br0 nodad\nlink set br0 up\n",
            options.mtu, GATEWAY.0, GATEWAY.1
        ))?;
        // A new namespace sends bridged packets through netfilter; an underlay has none.
        for table in ["ip", "ip6", "arp"] {
            let key = format!("net/bridge/bridge-nf-call-{table}tables");
            if machine.run(&format!("test -e /proc/sys/{key}")).is_ok() {
                machine.sysctl(&key, "0")?;
            }
        }
        Ok(Self {
            machine,
            options,
            next: AtomicU8::new(10),
        })
    }

    /// The machine that the bridge is on.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The underlay's MTU at start.
    pub fn mtu(&self) -> u32 {
        self.options.mtu
    }

    /// Gives a machine a device `eth0` on the underlay, with the next free address.
    ///
    /// # Errors
    /// If the device cannot be made.
    pub fn plug(&self, machine: &Machine) -> Result<Port> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let name = format!("p{number}");
        let mtu = self.options.mtu;
        // Run in the fabric's network namespace but the root pid namespace, so that a pid names the other end's.
        let mut command = std::process::Command::new("nsenter");
        command
            .arg(format!("--net={}", self.machine.netns_path().display()))
            .args(["--", "ip", "-batch", "-"]);
        crate::machine::feed(
            command,
            &format!(
                "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
                 link set {name} master br0 up\n",
                machine.holder_pid()
            ),
        )
        .with_context(|| format!("plug {} in", machine.name()))?;
        let port = Port {
            name,
            ipv4: Ipv4Addr::new(192, 168, 77, number),
            ipv6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)),
        };
        self.raise_limits(&self.machine, &port.name)?;
        self.raise_limits(machine, "eth0")?;
        machine.address(port.ipv4, port.ipv6, GATEWAY)?;
        Ok(port)
    }

    /// Takes a port down, as if its cable were pulled, or brings it back.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn set_link(&self, port: &Port, up: bool) -> Result<()> {
        let state = if up { "up" } else { "down" };
        self.machine
            .run(&format!("ip link set {} {state}", port.name))
            .map(drop)
    }

    /// Cuts the ports off from each other, or joins them again. Each still reaches every port that is not in the list.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn partition(&self, ports: &[&Port], cut: bool) -> Result<()> {
        let state = if cut { "on" } else { "off" };
        for port in ports {
            self.machine.run(&format!(
                "ip link set {} type bridge_slave isolated {state}",
                port.name
            ))?;
        }
        Ok(())
    }

    fn raise_limits(&self, machine: &Machine, device: &str) -> Result<()> {
        match self.options.big_tcp {
            Some(limit) => crate::big_tcp::raise(machine, device, limit),
            None => Ok(()),
        }
    }
}
