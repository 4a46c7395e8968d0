use std::net::IpAddr;

use weft_agent::datapath::{
    maps::EncapMode,
    programs::trial::{Action, Hook, Trial},
};
use weft_ebpf_common::Reason;

use crate::{
    packet::{ETHERNET, Packet, TUNNEL, Tunnelled, checksum, ethernet},
    world::{
        NOBODY, NODE_V4, NODE_V6, OUTSIDE, PEER_V4, PEER_V6, POD, POD_HOST_MAC, POD_MAC, REMOTE, VNI, World,
        in_namespaces,
    },
};

const HOOK: Hook = Hook::FromUnderlay;

fn tunnelled(inner: &Packet) -> Tunnelled {
    Tunnelled::new(PEER_V4.into(), NODE_V4.into(), inner)
}

#[test]
fn a_pod_gets_what_came_for_it() {
    in_namespaces(|| {
        let worlds: [(World, IpAddr, IpAddr); 2] = [
            (World::new(), PEER_V4.into(), NODE_V4.into()),
            // The second world's devices are not needed twice.
            (second_world(), PEER_V6.into(), NODE_V6.into()),
        ];
        for (world, from, to) in &worlds {
            for (remote, pod) in REMOTE.into_iter().zip(POD) {
                let packet = Packet::new(remote, pod);
                let frame = Tunnelled::new(*from, *to, &packet).frame();
                let seen = world.send(HOOK, &frame);
                assert_eq!(
                    (seen.action, seen.reason),
                    (Action::Redirect, Reason::Decapsulated)
                );
                assert_eq!(seen.bytes, frame.len() as u64, "counted as it arrived");
                assert_eq!(
                    seen.frame,
                    ethernet(POD_MAC, POD_HOST_MAC, packet.ethertype(), &packet.ip())
                );
            }
        }
    });
}

fn second_world() -> World {
    crate::world::command("ip link del under0");
    crate::world::command("ip link del weft0");
    World::with(|s| s.tunnel_source = NODE_V6.into())
}

#[test]
fn congestion_outside_shows_inside() {
    in_namespaces(|| {
        let world = World::new();
        for (remote, pod) in REMOTE.into_iter().zip(POD) {
            for (outer, inner, expected) in [
                (0b11, 0b10, 0b11),
                (0b11, 0b01, 0b11),
                (0b01, 0b10, 0b01),
                (0b10, 0b01, 0b01),
                (0b11, 0b11, 0b11),
            ] {
                let packet = |ecn: u8| Packet::new(remote, pod).class(0b1000_1000 | ecn);
                let mut sent = tunnelled(&packet(inner));
                sent.outer.class = outer;
                let seen = world.send(HOOK, &sent.frame());
                assert_eq!(seen.reason, Reason::Decapsulated);
                assert_eq!(
                    seen.frame[ETHERNET..],
                    packet(expected).ip(),
                    "outer {outer:02b} inner {inner:02b}"
                );
                if pod == POD[0] {
                    assert_eq!(checksum(&seen.frame[ETHERNET..ETHERNET + 20]), 0);
                }
            }
            let mut sent = tunnelled(&Packet::new(remote, pod));
            sent.outer.class = 0b11;
            world.must_drop(HOOK, &sent.frame(), Reason::EcnViolation);
        }
    });
}

#[test]
fn only_the_node_that_has_an_address_may_send_from_it() {
    in_namespaces(|| {
        let world = World::new();
        for ((remote, pod), outside) in REMOTE.into_iter().zip(POD).zip(OUTSIDE) {
            let unknown = Packet::new(outside, pod);
            world.must_drop(HOOK, &tunnelled(&unknown).frame(), Reason::UnknownTunnelSource);
            let local = Packet::new(pod, pod);
            world.must_drop(HOOK, &tunnelled(&local).frame(), Reason::UnknownTunnelSource);
            let other = Tunnelled::new(
                "192.0.2.99".parse().expect("address"),
                NODE_V4.into(),
                &Packet::new(remote, pod),
            );
            world.must_drop(HOOK, &other.frame(), Reason::SpoofedTunnelSource);
        }
    });
}

#[test]
fn what_is_for_no_pod_is_left_to_the_overlay_device() {
    in_namespaces(|| {
        let world = World::new();
        let node = [NODE_V4.to_string(), NODE_V6.to_string()];
        for (i, remote) in REMOTE.into_iter().enumerate() {
            for destination in [node[i].as_str(), NOBODY[i]] {
                let frame = tunnelled(&Packet::new(remote, destination)).frame();
                world.must_leave(HOOK, &frame, Reason::TunnelToStack);
            }
        }
        let foreign = Tunnelled {
            vni: VNI + 1,
            ..tunnelled(&Packet::new(REMOTE[0], POD[0]))
        };
        world.must_leave(HOOK, &foreign.frame(), Reason::TunnelToStack);
    });
}

#[test]
fn what_the_kernel_does_not_unwrap_is_left_to_the_overlay_device() {
    in_namespaces(|| {
        let world = World::new();
        for (remote, pod) in REMOTE.into_iter().zip(POD) {
            let mut sent = tunnelled(&Packet::new(remote, pod).class(0b10));
            sent.outer.class = 0b11;
            let frame = sent.frame();
            // An aggregate of neither TCP nor UDP, as SCTP's are.
            let aggregate = Trial {
                segment_size: Some(5),
                ..Trial::new(&frame)
            };
            let seen = world.send_as(HOOK, aggregate);
            assert_eq!(
                (seen.action, seen.reason),
                (Action::NotOurs, Reason::TunnelToStack)
            );
            assert_eq!(seen.frame, frame, "not a byte is touched");
        }
    });
}

#[test]
fn what_is_no_tunnel_packet_is_not_touched() {
    in_namespaces(|| {
        let world = World::new();
        let good = tunnelled(&Packet::new(REMOTE[0], POD[0]));
        let with = |change: &dyn Fn(&mut Tunnelled)| {
            let mut t = good.clone();
            change(&mut t);
            t.frame()
        };
        for frame in [
            with(&|t| t.port = 4790),
            with(&|t| t.outer.protocol = 6),
            with(&|t| t.outer.destination = "192.0.2.77".parse().expect("address")),
            // Left to the stack, which puts them together and knows options.
            with(&|t| t.outer.fragment = 0x2000),
            with(&|t| t.outer.fragment = 0x0010),
            with(&|t| t.outer.options = 8),
            Tunnelled::new(PEER_V6.into(), NODE_V6.into(), &Packet::new(REMOTE[0], POD[0])).frame(),
            ethernet([2; 6], [4; 6], 0x0806, &[0; 28]),
            good.frame()[..ETHERNET + 27].to_vec(),
        ] {
            world.must_leave(HOOK, &frame, Reason::NotTunnel);
        }
    });
}

#[test]
fn bad_tunnel_packets_are_counted_as_what_they_are() {
    in_namespaces(|| {
        let world = World::new();
        for (remote, pod) in REMOTE.into_iter().zip(POD) {
            let good = tunnelled(&Packet::new(remote, pod));
            let frame = good.frame();
            let changed = |at: usize, bytes: &[u8]| {
                let mut frame = frame.clone();
                frame[at..at + bytes.len()].copy_from_slice(bytes);
                frame
            };
            for flags in [0, 0x10, 0xf7] {
                world.must_drop(
                    HOOK,
                    &Tunnelled {
                        flags,
                        ..good.clone()
                    }
                    .frame(),
                    Reason::BadVxlanHeader,
                );
            }
            for end in [
                ETHERNET + 20 + 8,
                ETHERNET + 20 + 15,
                ETHERNET + 20 + 16,
                ETHERNET + TUNNEL - 1,
            ] {
                world.must_drop(HOOK, &frame[..end], Reason::TruncatedTunnel);
            }
            // The frame ends inside the inner header, so that the outer length is wrong already.
            world.must_drop(HOOK, &frame[..ETHERNET + TUNNEL + 19], Reason::TruncatedTunnel);
            // UDP longer than IP, and too short for VXLAN.
            world.must_drop(
                HOOK,
                &changed(ETHERNET + 24, &[0xff, 0xff]),
                Reason::TruncatedTunnel,
            );
            world.must_drop(HOOK, &changed(ETHERNET + 24, &[0, 29]), Reason::TruncatedTunnel);
            world.must_drop(HOOK, &changed(ETHERNET + 24, &[0, 0]), Reason::TruncatedTunnel);
            let not_ip = changed(ETHERNET + TUNNEL - 2, &[0x08, 0x06]);
            world.must_drop(HOOK, &not_ip, Reason::UnsupportedProtocol);
        }
        let v4 = tunnelled(&Packet::new(REMOTE[0], POD[0]));
        let v6 = tunnelled(&Packet::new(REMOTE[1], POD[1]));
        let inner = |t: &Tunnelled, at: usize, bytes: &[u8]| {
            let mut t = t.clone();
            t.inner[ETHERNET + at..ETHERNET + at + bytes.len()].copy_from_slice(bytes);
            t.frame()
        };
        let short = |t: &Tunnelled, length: usize| {
            let mut t = t.clone();
            t.inner.truncate(ETHERNET + length);
            t.frame()
        };
        world.must_drop(HOOK, &short(&v4, 19), Reason::Truncated);
        world.must_drop(HOOK, &short(&v6, 39), Reason::Truncated);
        world.must_drop(HOOK, &inner(&v4, 0, &[0x65]), Reason::BadIpv4Header);
        world.must_drop(HOOK, &inner(&v4, 0, &[0x41]), Reason::BadIpv4Header);
        world.must_drop(HOOK, &inner(&v4, 2, &[0x10, 0]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &inner(&v4, 2, &[0, 3]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &inner(&v6, 0, &[0x45]), Reason::BadIpv6Header);
        world.must_drop(HOOK, &inner(&v6, 4, &[0x10, 0]), Reason::BadIpv6Length);
    });
}

#[test]
fn all_is_left_to_the_device_where_the_program_does_not_decapsulate() {
    in_namespaces(|| {
        let world = World::with(|s| s.decap = EncapMode::Device);
        for (remote, pod) in REMOTE.into_iter().zip(POD) {
            world.must_leave(
                HOOK,
                &tunnelled(&Packet::new(remote, pod)).frame(),
                Reason::NotTunnel,
            );
        }
    });
}

#[test]
fn a_node_without_settings_leaves_the_underlay_alone() {
    in_namespaces(|| {
        let world = World::with(|s| s.overlay_ifindex = 0);
        world.must_leave(
            HOOK,
            &tunnelled(&Packet::new(REMOTE[0], POD[0])).frame(),
            Reason::NotTunnel,
        );
    });
}
