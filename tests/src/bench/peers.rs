//! The peers, made of the kernel objects that they make, on machines of the lab.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::fabric::{Fabric, Port};
use crate::machine::{Machine, feed, output};
use crate::pods::{Place, make_netns};

/// What a VXLAN header takes from the underlay's MTU.
const TUNNEL_BYTES: u32 = 50;

/// A node without Weft.
#[derive(Debug)]
pub struct PlainNode {
    /// The machine.
    pub machine: Machine,
    /// Its place on the underlay.
    pub port: Port,
    mtu: u32,
}

impl PlainNode {
    /// A machine on the fabric which forwards, with bridged packets kept out of netfilter.
    pub fn new(fabric: &Fabric, name: &str) -> Result<Self> {
        let machine = Machine::new(fabric.machine().lab(), name)?;
        let port = fabric.plug(&machine)?;
        machine.sysctl("net/ipv4/ip_forward", "1")?;
        let node = Self {
            machine,
            port,
            mtu: fabric.mtu(),
        };
        node.set_bridge_netfilter(false)?;
        Ok(node)
    }

    /// The node itself.
    pub fn place(&self) -> Place {
        Place::of_machine(&self.machine, vec![self.port.ipv4.into()])
    }

    fn set_bridge_netfilter(&self, on: bool) -> Result<()> {
        if !Path::new("/proc/sys/net/bridge").exists() {
            return Ok(()); // the kernel is built without it
        }
        self.machine
            .sysctl("net/bridge/bridge-nf-call-iptables", if on { "1" } else { "0" })
    }
}

/// A pod whose network namespace has nothing but a loopback device yet.
fn empty_pod(machine: &Machine, name: &str, ip: Ipv4Addr) -> Result<Place> {
    Ok(Place {
        name: name.to_owned(),
        machine: machine.clone(),
        netns: Some(make_netns(machine, name)?),
        ips: vec![ip.into()],
    })
}

fn netns_of(place: &Place) -> Result<String> {
    Ok(place
        .netns
        .as_ref()
        .context("a pod has a network namespace")?
        .display()
        .to_string())
}

fn batch(place: &Place, lines: &str) -> Result<()> {
    let mut command = place.command("ip");
    command.args(["-batch", "-"]);
    feed(command, lines).with_context(|| format!("{}: ip -batch:\n{lines}", place.name))
}

/// Two pods with nothing but one veth pair between them: the limit of what a node can do for its pods.
pub fn veth(node: &PlainNode) -> Result<(Place, Place)> {
    let ips = [Ipv4Addr::new(10, 251, 0, 1), Ipv4Addr::new(10, 251, 0, 2)];
    let first = empty_pod(&node.machine, "veth-1", ips[0])?;
    let second = empty_pod(&node.machine, "veth-2", ips[1])?;
    let mtu = node.mtu;
    node.machine.batch(&format!(
        "link add eth0 netns {} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n",
        netns_of(&first)?,
        netns_of(&second)?
    ))?;
    for (place, ip) in [(&first, ips[0]), (&second, ips[1])] {
        batch(place, &format!("addr add {ip}/24 dev eth0\nlink set eth0 up\n"))?;
    }
    Ok((first, second))
}

/// Flannel's VXLAN backend on one node of two: a device with a static entry for the other node, and a bridge.
#[derive(Debug)]
pub struct FlannelNode {
    index: u8,
    mac: String,
    pods: u8,
}

impl FlannelNode {
    fn new(node: &PlainNode, index: u8) -> Result<Self> {
        let mtu = node.mtu - TUNNEL_BYTES;
        node.machine.batch(&format!(
            "link add flannel.1 mtu {mtu} type vxlan id 1 dev eth0 local {} dstport 8472 nolearning\n\
             addr add 10.250.{index}.0/32 dev flannel.1\nlink set flannel.1 up\n\
             link add cni0 mtu {mtu} type bridge mcast_snooping 0\n\
             addr add 10.250.{index}.1/24 brd + dev cni0\nlink set cni0 up\n",
            node.port.ipv4
        ))?;
        let mac = node
            .machine
            .run("cat /sys/class/net/flannel.1/address")?
            .trim()
            .to_owned();
        Ok(Self { index, mac, pods: 0 })
    }

    /// Tells a node of this one, as flannel's agent there does.
    fn announce(&self, own_ip: Ipv4Addr, node: &PlainNode) -> Result<()> {
        let (subnet, mac) = (self.index, &self.mac);
        node.machine.batch(&format!(
            "neigh add 10.250.{subnet}.0 lladdr {mac} dev flannel.1 nud permanent\n\
             route add 10.250.{subnet}.0/24 via 10.250.{subnet}.0 dev flannel.1 onlink\n"
        ))?;
        let entry = format!("bridge fdb append {mac} dev flannel.1 dst {own_ip}");
        node.machine.run(&entry).map(drop)
    }

    fn pod(&mut self, node: &PlainNode) -> Result<Place> {
        self.pods += 1;
        let ip = Ipv4Addr::new(10, 250, self.index, 1 + self.pods);
        let place = empty_pod(&node.machine, &format!("flannel-{}", self.pods), ip)?;
        let mtu = node.mtu - TUNNEL_BYTES;
        let host = format!("fl{}", self.pods);
        node.machine.batch(&format!(
            "link add {host} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}\n\
             link set {host} master cni0 up\n",
            netns_of(&place)?
        ))?;
        let index = self.index;
        batch(
            &place,
            &format!("addr add {ip}/24 dev eth0\nlink set eth0 up\nroute add default via 10.250.{index}.1\n"),
        )?;
        Ok(place)
    }
}

/// The pods of a flannel-style pair: two on the first node, one on the second.
#[derive(Debug)]
pub struct FlannelPods {
    /// On the first node.
    pub first: Place,
    /// Beside it.
    pub beside: Place,
    /// On the second node.
    pub remote: Place,
}

/// Sets flannel's objects up on two nodes.
pub fn flannel(a: &PlainNode, b: &PlainNode) -> Result<FlannelPods> {
    let mut on_a = FlannelNode::new(a, 0)?;
    let mut on_b = FlannelNode::new(b, 1)?;
    on_a.announce(a.port.ipv4, b)?;
    on_b.announce(b.port.ipv4, a)?;
    Ok(FlannelPods {
        first: on_a.pod(a)?,
        beside: on_a.pod(a)?,
        remote: on_b.pod(b)?,
    })
}

/// The rules that kube-proxy (iptables mode) and flannel keep on every node before there is any Service, in Debian's
/// default backend, and bridged packets sent through them, as Kubernetes asks for.
pub fn kube_proxy_rules(node: &PlainNode) -> Result<()> {
    const RULES: &str = "\
*mangle
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
:FLANNEL-POSTRTG - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.250.0.0/24 -d 10.250.0.0/16 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.250.0.0/16 -d 10.250.0.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG ! -s 10.250.0.0/16 -d 10.250.0.0/24 -m comment --comment \"flanneld masq\" -j RETURN
-A FLANNEL-POSTRTG -s 10.250.0.0/16 ! -d 224.0.0.0/4 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
-A FLANNEL-POSTRTG ! -s 10.250.0.0/16 -d 10.250.0.0/16 -m comment --comment \"flanneld masq\" -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
:FLANNEL-FWD - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FLANNEL-FWD -s 10.250.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
-A FLANNEL-FWD -d 10.250.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT
COMMIT
";
    feed(node.machine.command("iptables-nft-restore"), RULES)
        .with_context(|| format!("{}: kube-proxy's rules", node.machine.name()))?;
    node.set_bridge_netfilter(true)
}

/// One of Debian's CNI plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A bridge with a gateway address.
    Bridge,
    /// A routed veth pair.
    Ptp,
}

/// Where Debian's plugins are.
pub const PLUGIN_DIR: &str = "/usr/lib/cni";

impl Reference {
    /// The plugin's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Ptp => "ptp",
        }
    }

    /// Its configuration on a machine, with addresses from `host-local` and no masquerading.
    pub fn conf(self, machine: &Machine) -> Value {
        let third = match self {
            Self::Bridge => 252,
            Self::Ptp => 253,
        };
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": format!("reference-{}", self.name()), "type": self.name(), "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": machine.dir().join("host-local"),
                "ranges": [[{"subnet": format!("10.{third}.0.0/16")}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        });
        if self == Self::Bridge {
            conf["bridge"] = "ref0".into();
            conf["isGateway"] = true.into();
        }
        conf
    }

    /// A pod that the plugin attached.
    pub fn pod(self, node: &PlainNode, name: &str) -> Result<Place> {
        let machine = &node.machine;
        let netns = make_netns(machine, name)?;
        let conf = machine.dir().join(format!("{name}.json"));
        std::fs::write(&conf, self.conf(machine).to_string())?;
        let mut command = machine.command(Path::new(PLUGIN_DIR).join(self.name()));
        command
            .env("CNI_COMMAND", "ADD")
            .env("CNI_CONTAINERID", name)
            .env("CNI_NETNS", &netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGIN_DIR)
            .stdin(Stdio::from(std::fs::File::open(&conf)?));
        let text = output(command).with_context(|| format!("attach {name}"))?;
        let result: Value = serde_json::from_str(&text)?;
        let address = result["ips"][0]["address"]
            .as_str()
            .context("an address in the result")?;
        let ip: IpAddr = address
            .split('/')
            .next()
            .unwrap_or_default()
            .parse()
            .context("the address")?;
        Ok(Place {
            name: name.to_owned(),
            machine: machine.clone(),
            netns: Some(netns),
            ips: vec![ip],
        })
    }
}
