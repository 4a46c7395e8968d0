use std::{net::UdpSocket, time::Duration};

use weft_agent::datapath::{
    maps::EncapMode,
    programs::trial::{Action, Hook},
};
use weft_ebpf_common::Reason;

use crate::{
    packet::{ETHERNET, Packet, Tunnelled, ethernet, vxlan},
    world::{
        NEIGHBOR, NEIGHBOR_HOST_MAC, NEIGHBOR_MAC, NOBODY, NODE_V4, NODE_V6, OUTSIDE, PEER_V4, PEER_V6, POD,
        PORT, REMOTE, VNI, World, command, in_namespaces,
    },
};

const OVERLAY_MAC: [u8; 6] = [2, 0x77, 0x65, 0x66, 0x74, 0];
const INNER_SOURCE: [u8; 6] = [2, 0x77, 0x65, 0x66, 0x74, 1];

fn nodes() -> [String; 2] {
    [NODE_V4.to_string(), NODE_V6.to_string()]
}

#[test]
fn the_node_reaches_its_own_pods() {
    in_namespaces(|| {
        let world = World::new();
        for (node, neighbor) in nodes().iter().zip(NEIGHBOR) {
            let packet = Packet::new(node, neighbor);
            let seen = world.send(Hook::ToOverlay, &packet.frame());
            assert_eq!((seen.action, seen.reason), (Action::Redirect, Reason::NodeToPod));
            assert_eq!(
                seen.frame,
                ethernet(NEIGHBOR_MAC, NEIGHBOR_HOST_MAC, packet.ethertype(), &packet.ip())
            );
        }
    });
}

#[test]
fn the_node_reaches_remote_pods_by_the_device() {
    in_namespaces(|| {
        for source in [NODE_V4.into(), NODE_V6.into()] {
            let world = World::with(|s| s.tunnel_source = source);
            for (node, remote) in nodes().iter().zip(REMOTE) {
                let packet = Packet::new(node, remote);
                let seen = world.send(Hook::ToOverlay, &packet.frame());
                assert_eq!(
                    (seen.action, seen.reason),
                    (Action::Pass, Reason::DeviceEncapsulated)
                );
                assert_eq!(
                    seen.frame,
                    ethernet(OVERLAY_MAC, INNER_SOURCE, packet.ethertype(), &packet.ip())
                );
            }
            drop(world);
            command("ip link del under0");
            command("ip link del weft0");
        }
    });
}

#[test]
fn the_node_sends_nothing_to_nobody() {
    in_namespaces(|| {
        let world = World::new();
        for (node, nobody) in nodes().iter().zip(NOBODY) {
            world.must_drop(
                Hook::ToOverlay,
                &Packet::new(node, nobody).frame(),
                Reason::NoPeer,
            );
        }
        for (node, group) in nodes().iter().zip(["224.0.0.1", "ff02::16"]) {
            world.must_drop(
                Hook::ToOverlay,
                &Packet::new(node, group).frame(),
                Reason::Multicast,
            );
        }
        world.must_drop(
            Hook::ToOverlay,
            &Packet::new(&nodes()[1], "fe80::9").frame(),
            Reason::LinkLocal,
        );
        let arp = ethernet([0xff; 6], OVERLAY_MAC, 0x0806, &[0; 28]);
        world.must_drop(Hook::ToOverlay, &arp, Reason::UnsupportedProtocol);
    });
}

#[test]
fn bad_headers_do_not_leave_the_node() {
    in_namespaces(|| {
        let world = World::new();
        let [v4, v6] = [
            Packet::new(&nodes()[0], REMOTE[0]).frame(),
            Packet::new(&nodes()[1], REMOTE[1]).frame(),
        ];
        let changed = |frame: &[u8], at: usize, byte: u8| {
            let mut frame = frame.to_vec();
            frame[ETHERNET + at] = byte;
            frame
        };
        world.must_drop(Hook::ToOverlay, &changed(&v4, 0, 0x64), Reason::BadIpv4Header);
        world.must_drop(Hook::ToOverlay, &changed(&v4, 2, 0xff), Reason::BadIpv4Length);
        world.must_drop(Hook::ToOverlay, &changed(&v6, 0, 0x50), Reason::BadIpv6Header);
        world.must_drop(Hook::ToOverlay, &changed(&v6, 4, 0xff), Reason::BadIpv6Length);
    });
}

#[test]
fn a_node_without_settings_tunnels_nothing() {
    in_namespaces(|| {
        let world = World::with(|s| s.overlay_ifindex = 0);
        let frame = Packet::new(&nodes()[0], REMOTE[0]).frame();
        world.must_drop(Hook::ToOverlay, &frame, Reason::NotConfigured);
        world.must_drop(Hook::FromOverlay, &frame, Reason::NotConfigured);
    });
}

#[test]
fn a_local_pods_packet_passes_to_the_stack() {
    in_namespaces(|| {
        let world = World::new();
        for (pod, outside) in POD.into_iter().zip(OUTSIDE) {
            world.must_leave(
                Hook::FromOverlay,
                &Packet::new(pod, outside).frame(),
                Reason::PodToNode,
            );
        }
    });
}

/// Sends VXLAN payloads through a real socket, as the program cannot be tried with a tunnel key by a made packet.
struct Peer {
    world: World,
    socket: UdpSocket,
    destination: String,
}

impl Peer {
    fn over_v4() -> Self {
        let world = World::with(|s| s.decap = EncapMode::Device);
        for address in [
            format!("{NODE_V4}/32"),
            format!("{PEER_V4}/32"),
            "192.0.2.99/32".to_owned(),
        ] {
            command(&format!("ip address add {address} dev lo"));
        }
        let socket = UdpSocket::bind((PEER_V4, 0)).expect("socket");
        Self {
            world,
            socket,
            destination: format!("{NODE_V4}:{PORT}"),
        }
    }

    fn over_v6() -> Self {
        let world = World::with(|s| {
            s.decap = EncapMode::Device;
            s.tunnel_source = NODE_V6.into();
        });
        for address in [NODE_V6, PEER_V6] {
            command(&format!("ip address add {address}/128 dev lo nodad"));
        }
        let socket = UdpSocket::bind((PEER_V6, 0)).expect("socket");
        Self {
            world,
            socket,
            destination: format!("[{NODE_V6}]:{PORT}"),
        }
    }

    /// The reason that `from_overlay` counts the packet under, which must be this one.
    fn expect(&self, payload: &[u8], reason: Reason) {
        let count = || {
            let all = self.world.dataplane.metrics().expect("metrics");
            all.iter()
                .find(|m| m.reason == reason)
                .expect("every reason is listed")
                .packets
        };
        let before = count();
        self.socket.send_to(payload, &self.destination).expect("send");
        weft_lab::wait_for(&format!("{reason:?}"), Duration::from_secs(5), || {
            (count() == before + 1).then_some(())
        })
        .expect("the packet was not counted");
    }

    fn inner(packet: &Packet) -> Vec<u8> {
        Tunnelled::new(PEER_V4.into(), NODE_V4.into(), packet).inner
    }
}

#[test]
fn what_the_device_decapsulated_is_judged_and_delivered() {
    in_namespaces(|| {
        for peer in [Peer::over_v4 as fn() -> Peer, Peer::over_v6] {
            let peer = peer();
            for i in 0..2 {
                let to_pod = Peer::inner(&Packet::new(REMOTE[i], NEIGHBOR[i]));
                peer.expect(&vxlan(8, VNI, &to_pod), Reason::DeviceDecapsulated);
                let to_node = Peer::inner(&Packet::new(REMOTE[i], &nodes()[i]));
                peer.expect(&vxlan(8, VNI, &to_node), Reason::TunnelToNode);
                peer.expect(&vxlan(8, VNI + 1, &to_pod), Reason::ForeignVni);
                let unknown = Peer::inner(&Packet::new(OUTSIDE[i], NEIGHBOR[i]));
                peer.expect(&vxlan(8, VNI, &unknown), Reason::UnknownTunnelSource);
                let nobody = Peer::inner(&Packet::new(REMOTE[i], NOBODY[i]));
                peer.expect(&vxlan(8, VNI, &nobody), Reason::NotLocal);
            }
            let arp = ethernet(OVERLAY_MAC, INNER_SOURCE, 0x0806, &[0; 28]);
            peer.expect(&vxlan(8, VNI, &arp), Reason::UnsupportedProtocol);
            let mut bad = Peer::inner(&Packet::new(REMOTE[0], NEIGHBOR[0]));
            bad[ETHERNET] = 0x41;
            peer.expect(&vxlan(8, VNI, &bad), Reason::BadIpv4Header);
            drop(peer);
            command("ip link del under0");
            command("ip link del weft0");
        }
    });
}

#[test]
fn a_peer_may_not_send_from_another_peers_address() {
    in_namespaces(|| {
        let mut peer = Peer::over_v4();
        peer.socket = UdpSocket::bind(("192.0.2.99", 0)).expect("socket");
        for i in 0..2 {
            let frame = Peer::inner(&Packet::new(REMOTE[i], NEIGHBOR[i]));
            peer.expect(&vxlan(8, VNI, &frame), Reason::SpoofedTunnelSource);
        }
    });
}
