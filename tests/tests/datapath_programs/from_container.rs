use weft_agent::datapath::{
    maps::{EncapMode, EndpointEntry},
    programs::trial::{Action, Hook, Trial},
};
use weft_ebpf_common::{GATEWAY_V4, Reason};

use crate::{
    packet::{ETHERNET, Packet, TUNNEL, checksum, ethernet},
    world::{
        LOOPBACK, NEIGHBOR, NEIGHBOR_HOST_MAC, NEIGHBOR_MAC, NOBODY, NODE_V4, NODE_V6, OUTSIDE, PEER_V4,
        PEER_V6, POD, POD_HOST_MAC, POD_MAC, REMOTE, VNI, World, in_namespaces, ip,
    },
};

const HOOK: Hook = Hook::FromContainer;
const OVERLAY_MAC: [u8; 6] = [2, 0x77, 0x65, 0x66, 0x74, 0];

#[test]
fn a_neighbor_on_the_node_is_reached_directly() {
    in_namespaces(|| {
        let world = World::new();
        for (pod, neighbor) in POD.into_iter().zip(NEIGHBOR) {
            let packet = Packet::new(pod, neighbor);
            let seen = world.send(HOOK, &packet.frame());
            assert_eq!(
                (seen.action, seen.reason),
                (Action::Redirect, Reason::LocalDelivery)
            );
            let expected = ethernet(NEIGHBOR_MAC, NEIGHBOR_HOST_MAC, packet.ethertype(), &packet.ip());
            assert_eq!(seen.frame, expected);
            assert_eq!(seen.bytes, packet.frame().len() as u64);
        }
    });
}

/// Addresses that share the low bits of [`NEIGHBOR`]'s.
const NAMESAKE: [&str; 2] = ["10.244.5.11", "fd00:5::11"];

#[test]
fn pods_whose_addresses_end_alike_are_not_taken_for_each_other() {
    in_namespaces(|| {
        let world = World::new();
        let to = |destination: &str, source: &str| {
            let seen = world.send(HOOK, &Packet::new(source, destination).frame());
            let mac: [u8; 6] = seen.frame[..6].try_into().expect("an address");
            (seen.reason, mac)
        };
        let namesake_mac = [2, 0, 0, 0, 0, 0x55];
        for ((pod, neighbor), namesake) in POD.into_iter().zip(NEIGHBOR).zip(NAMESAKE) {
            assert_eq!(to(namesake, pod).0, Reason::NoPeer);
            let entry = EndpointEntry {
                ifindex: LOOPBACK,
                endpoint_id: 3,
                pod_mac: namesake_mac,
                host_mac: NEIGHBOR_HOST_MAC,
            };
            world
                .dataplane
                .upsert_endpoint(ip(namesake), &entry)
                .expect("upsert");
            assert_eq!(to(neighbor, pod), (Reason::LocalDelivery, NEIGHBOR_MAC));
            assert_eq!(to(namesake, pod), (Reason::LocalDelivery, namesake_mac));
            // It may send, as its device is the one of the test, and its neighbour's address is not its own.
            assert_eq!(to(pod, namesake).0, Reason::LocalDelivery);
            assert_eq!(to(pod, neighbor).0, Reason::SpoofedSource);
            // Neither loses its place with the other's end.
            world.dataplane.remove_endpoint(ip(neighbor)).expect("remove");
            assert_eq!(to(neighbor, pod).0, Reason::NoPeer);
            assert_eq!(to(namesake, pod), (Reason::LocalDelivery, namesake_mac));
            world.dataplane.remove_endpoint(ip(namesake)).expect("remove");
            assert_eq!(to(namesake, pod).0, Reason::NoPeer);
            assert_eq!(to(pod, namesake).0, Reason::SpoofedSource);
        }
    });
}

#[test]
fn a_remote_pod_is_reached_through_a_tunnel_over_ipv4() {
    in_namespaces(|| {
        let world = World::new();
        for (pod, remote) in POD.into_iter().zip(REMOTE) {
            // DSCP and ECN: both must show outside.
            let packet = Packet::new(pod, remote).class(0b1010_1010);
            let seen = world.send(HOOK, &packet.frame());
            assert_eq!(
                (seen.action, seen.reason),
                (Action::Redirect, Reason::Encapsulated)
            );
            assert_eq!(
                seen.bytes,
                packet.frame().len() as u64,
                "counted as the pod sent it"
            );
            let outer = &seen.frame[ETHERNET..ETHERNET + 20];
            let total = (packet.ip().len() + TUNNEL) as u16;
            assert_eq!(outer[0..2], [0x45, 0b1010_1010]);
            assert_eq!(outer[2..4], total.to_be_bytes());
            assert_eq!(outer[6..8], [0x40, 0], "don't fragment");
            assert_eq!(outer[8..10], [64, 17]);
            assert_eq!(checksum(outer), 0);
            assert_eq!(outer[12..16], NODE_V4.octets());
            assert_eq!(outer[16..20], PEER_V4.octets());
            check_inside(&seen.frame[ETHERNET + 20..], &packet);
        }
    });
}

#[test]
fn a_remote_pod_is_reached_through_a_tunnel_over_ipv6() {
    in_namespaces(|| {
        let world = World::with(|s| {
            s.tunnel_source = NODE_V6.into();
            s.tunnel_mtu = 1430;
        });
        for (pod, remote) in POD.into_iter().zip(REMOTE) {
            let packet = Packet::new(pod, remote).class(0b1010_1010);
            let seen = world.send(HOOK, &packet.frame());
            assert_eq!(
                (seen.action, seen.reason),
                (Action::Redirect, Reason::Encapsulated)
            );
            let outer = &seen.frame[ETHERNET..ETHERNET + 40];
            assert_eq!(outer[0..4], [0x6a, 0xa0, 0, 0]);
            assert_eq!(outer[4..6], ((packet.ip().len() + 30) as u16).to_be_bytes());
            assert_eq!(outer[6..8], [17, 64]);
            assert_eq!(outer[8..24], NODE_V6.octets());
            assert_eq!(outer[24..40], PEER_V6.octets());
            check_inside(&seen.frame[ETHERNET + 40..], &packet);
        }
    });
}

/// UDP, VXLAN, the inner link header and the packet as it was.
fn check_inside(inside: &[u8], packet: &Packet) {
    assert!(u16::from_be_bytes([inside[0], inside[1]]) >= 32768);
    assert_eq!(inside[2..4], 4789u16.to_be_bytes());
    assert_eq!(inside[4..6], ((packet.ip().len() + 30) as u16).to_be_bytes());
    assert_eq!(inside[6..8], [0, 0]);
    assert_eq!(inside[8..12], [8, 0, 0, 0]);
    assert_eq!(inside[12..16], (VNI << 8).to_be_bytes());
    let inner = ethernet(
        OVERLAY_MAC,
        [2, 0x77, 0x65, 0x66, 0x74, 1],
        packet.ethertype(),
        &packet.ip(),
    );
    assert_eq!(inside[16..], inner);
}

#[test]
fn flows_differ_in_their_outer_port() {
    in_namespaces(|| {
        let world = World::new();
        let port = |source: u16| {
            let packet = Packet::new(POD[0], REMOTE[0]).payload(crate::packet::udp(source, 80, b"x"));
            let frame = world.send(HOOK, &packet.frame()).frame;
            [frame[ETHERNET + 20], frame[ETHERNET + 21]]
        };
        assert_eq!(port(1000), port(1000));
        let ports: std::collections::BTreeSet<_> = (1000..1016).map(port).collect();
        assert!(ports.len() > 8, "{ports:?}");
    });
}

#[test]
fn the_overlay_device_gets_it_where_the_program_does_not_encapsulate() {
    in_namespaces(|| {
        let world = World::with(|s| s.encap = EncapMode::Device);
        for (pod, remote) in POD.into_iter().zip(REMOTE) {
            let frame = Packet::new(pod, remote).frame();
            let seen = world.send(HOOK, &frame);
            assert_eq!(
                (seen.action, seen.reason),
                (Action::Redirect, Reason::ToOverlayDevice)
            );
            assert_eq!(seen.frame, frame);
        }
    });
}

#[test]
fn what_the_tunnel_cannot_carry_goes_to_the_stack() {
    in_namespaces(|| {
        let world = World::new();
        for (i, (pod, remote)) in POD.into_iter().zip(REMOTE).enumerate() {
            let header = [20, 40][i];
            let fits = Packet::new(pod, remote).payload(vec![0; 1450 - header]);
            assert_eq!(world.send(HOOK, &fits.frame()).reason, Reason::Encapsulated);
            let too_big = Packet::new(pod, remote).payload(vec![0; 1451 - header]);
            let seen = world.send(HOOK, &too_big.frame());
            assert_eq!((seen.action, seen.reason), (Action::Redirect, Reason::TooBig));
            assert_eq!(seen.frame[..6], OVERLAY_MAC);
            assert_eq!(seen.frame[6..], too_big.frame()[6..]);
        }
    });
}

#[test]
fn the_node_and_the_outside_are_reached_through_the_stack() {
    in_namespaces(|| {
        let world = World::new();
        let node = [NODE_V4.to_string(), NODE_V6.to_string()];
        for (i, pod) in POD.into_iter().enumerate() {
            for destination in [node[i].as_str(), OUTSIDE[i]] {
                let frame = Packet::new(pod, destination).frame();
                let seen = world.send(HOOK, &frame);
                assert_eq!((seen.action, seen.reason), (Action::Redirect, Reason::ToStack));
                assert_eq!(seen.frame[..6], OVERLAY_MAC);
                assert_eq!(seen.frame[6..], frame[6..]);
            }
        }
        // A link-local service that a cloud or the node offers.
        let seen = world.send(HOOK, &Packet::new(POD[0], "169.254.169.254").frame());
        assert_eq!(seen.reason, Reason::ToStack);
    });
}

#[test]
fn another_nodes_address_is_behind_the_tunnel() {
    in_namespaces(|| {
        let world = World::new();
        for (pod, node) in POD.into_iter().zip([PEER_V4.to_string(), PEER_V6.to_string()]) {
            assert_eq!(
                world.send(HOOK, &Packet::new(pod, &node).frame()).reason,
                Reason::Encapsulated
            );
        }
    });
}

#[test]
fn options_and_fragments_pass() {
    in_namespaces(|| {
        let world = World::new();
        let options = Packet::new(POD[0], REMOTE[0]).options(8);
        assert_eq!(world.send(HOOK, &options.frame()).reason, Reason::Encapsulated);
        for fragment in [0x2000, 0x2010, 0x0010] {
            let packet = Packet {
                fragment,
                ..Packet::new(POD[0], NEIGHBOR[0])
            };
            assert_eq!(world.send(HOOK, &packet.frame()).reason, Reason::LocalDelivery);
            let packet = Packet {
                fragment,
                ..Packet::new(POD[0], REMOTE[0])
            };
            assert_eq!(world.send(HOOK, &packet.frame()).reason, Reason::Encapsulated);
        }
        // An IPv6 fragment header, and one of unknown kind.
        for next_header in [44, 253] {
            let packet = Packet {
                protocol: next_header,
                ..Packet::new(POD[1], REMOTE[1])
            };
            assert_eq!(world.send(HOOK, &packet.frame()).reason, Reason::Encapsulated);
        }
    });
}

#[test]
fn an_address_that_is_not_the_pods_is_spoofed() {
    in_namespaces(|| {
        let world = World::new();
        for (neighbor, remote) in NEIGHBOR.into_iter().zip(REMOTE) {
            // Another pod's, a remote pod's, and the pod's own on another veth.
            world.must_drop(
                HOOK,
                &Packet::new(neighbor, remote).frame(),
                Reason::SpoofedSource,
            );
            world.must_drop(
                HOOK,
                &Packet::new(remote, neighbor).frame(),
                Reason::SpoofedSource,
            );
        }
        for (pod, remote) in POD.into_iter().zip(REMOTE) {
            let frame = Packet::new(pod, remote).frame();
            let trial = Trial {
                ifindex: world.options.overlay.ifindex,
                ..Trial::new(&frame[..])
            };
            let seen = world.send_as(HOOK, trial);
            assert_eq!((seen.action, seen.reason), (Action::Drop, Reason::SpoofedSource));
        }
    });
}

#[test]
fn noise_has_reasons_of_its_own() {
    in_namespaces(|| {
        let world = World::new();
        for (source, destination, reason) in [
            (POD[0], "224.0.0.22", Reason::Multicast),
            (POD[0], "255.255.255.255", Reason::Multicast),
            ("0.0.0.0", "255.255.255.255", Reason::Multicast),
            (POD[1], "ff02::16", Reason::Multicast),
            ("fe80::10", "ff02::2", Reason::Multicast),
            ("::", "ff02::1:ff00:10", Reason::Multicast),
            (POD[0], "169.254.1.1", Reason::LinkLocal),
            ("169.254.7.7", REMOTE[0], Reason::LinkLocal),
            ("0.0.0.0", REMOTE[0], Reason::LinkLocal),
            (POD[1], "fe80::1", Reason::LinkLocal),
            ("fe80::10", REMOTE[1], Reason::LinkLocal),
            ("::", REMOTE[1], Reason::LinkLocal),
        ] {
            world.must_drop(HOOK, &Packet::new(source, destination).frame(), reason);
        }
    });
}

#[test]
fn a_cluster_address_that_nobody_has_does_not_leave_the_cluster() {
    in_namespaces(|| {
        let world = World::new();
        for (pod, nobody) in POD.into_iter().zip(NOBODY) {
            world.must_drop(HOOK, &Packet::new(pod, nobody).frame(), Reason::NoPeer);
        }
    });
}

#[test]
fn bad_headers_are_counted_as_what_they_are() {
    in_namespaces(|| {
        let world = World::new();
        let v4 = Packet::new(POD[0], REMOTE[0]).frame();
        let v6 = Packet::new(POD[1], REMOTE[1]).frame();
        let changed = |frame: &[u8], at: usize, bytes: &[u8]| {
            let mut frame = frame.to_vec();
            frame[ETHERNET + at..ETHERNET + at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        world.must_drop(HOOK, &changed(&v4, 0, &[0x55]), Reason::BadIpv4Header);
        world.must_drop(HOOK, &changed(&v4, 0, &[0x44]), Reason::BadIpv4Header);
        world.must_drop(HOOK, &changed(&v4, 2, &[0xff, 0xff]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &changed(&v4, 2, &[0, 19]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &changed(&v4, 2, &[0, 0]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &changed(&v4, 0, &[0x4f]), Reason::BadIpv4Length);
        world.must_drop(HOOK, &changed(&v6, 0, &[0x40]), Reason::BadIpv6Header);
        world.must_drop(HOOK, &changed(&v6, 4, &[0xff, 0xff]), Reason::BadIpv6Length);
        world.must_drop(HOOK, &changed(&v6, 4, &[0, 14]), Reason::BadIpv6Length);
        // Padding after the packet is no fault: short frames have it.
        let mut padded = v4.clone();
        padded.resize(60, 0);
        assert_eq!(world.send(HOOK, &padded).reason, Reason::Encapsulated);
    });
}

#[test]
fn an_aggregate_may_have_no_total_length() {
    in_namespaces(|| {
        let world = World::new();
        let mut frame = Packet::new(POD[0], NEIGHBOR[0]).frame();
        frame[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&[0, 0]);
        let trial = Trial {
            segment_size: Some(5),
            ..Trial::new(&frame[..])
        };
        assert_eq!(world.send_as(HOOK, trial).reason, Reason::LocalDelivery);
    });
}

#[test]
fn an_aggregate_is_judged_by_its_segments() {
    in_namespaces(|| {
        // By the device, as a made packet is no TCP aggregate in the kernel's eyes and gets no tunnel header.
        let world = World::with(|s| s.encap = EncapMode::Device);
        for (i, (pod, remote)) in POD.into_iter().zip(REMOTE).enumerate() {
            // A TCP header of 32 bytes: timestamps.
            let mut payload = vec![0; 3000];
            payload[12] = 0x80;
            let packet = Packet {
                protocol: 6,
                ..Packet::new(pod, remote).payload(payload)
            };
            let headers = [20, 40][i] + 32;
            for (size, reason) in [
                (1450 - headers, Reason::ToOverlayDevice),
                (1451 - headers, Reason::TooBig),
            ] {
                let frame = packet.frame();
                let trial = Trial {
                    segment_size: Some(size),
                    ..Trial::new(&frame[..])
                };
                assert_eq!(world.send_as(HOOK, trial).reason, reason, "segments of {size}");
            }
        }
    });
}

#[test]
fn other_protocols_are_dropped() {
    in_namespaces(|| {
        let world = World::new();
        let inside = Packet::new(POD[0], REMOTE[0]).ip();
        for ethertype in [0x8847, 0x8100, 0x88cc] {
            let frame = ethernet(POD_HOST_MAC, POD_MAC, ethertype, &inside);
            world.must_drop(HOOK, &frame, Reason::UnsupportedProtocol);
        }
    });
}

#[test]
fn a_node_without_settings_forwards_nothing() {
    in_namespaces(|| {
        let world = World::with(|s| s.overlay_ifindex = 0);
        world.must_drop(
            HOOK,
            &Packet::new(POD[0], REMOTE[0]).frame(),
            Reason::NotConfigured,
        );
        world.must_drop(
            HOOK,
            &Packet::new(POD[1], OUTSIDE[1]).frame(),
            Reason::NotConfigured,
        );
    });
}

fn arp(operation: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut p = vec![0, 1, 8, 0, 6, 4, 0, operation];
    p.extend(POD_MAC);
    p.extend(sender);
    p.extend([0; 6]);
    p.extend(target);
    ethernet([0xff; 6], POD_MAC, 0x0806, &p)
}

#[test]
fn arp_for_the_gateway_is_answered() {
    in_namespaces(|| {
        let world = World::new();
        let seen = world.send(HOOK, &arp(1, [10, 244, 1, 10], GATEWAY_V4));
        assert_eq!(
            (seen.action, seen.reason),
            (Action::Redirect, Reason::GatewayReply)
        );
        let mut reply = vec![0, 1, 8, 0, 6, 4, 0, 2];
        reply.extend(POD_HOST_MAC);
        reply.extend(GATEWAY_V4);
        reply.extend(POD_MAC);
        reply.extend([10, 244, 1, 10]);
        assert_eq!(seen.frame, ethernet(POD_MAC, POD_HOST_MAC, 0x0806, &reply));

        for (operation, sender, target) in [
            (1, [10, 244, 1, 10], [10, 244, 1, 11]),
            (1, [10, 244, 1, 11], GATEWAY_V4),
            (1, [0; 4], GATEWAY_V4),
            (2, [10, 244, 1, 10], GATEWAY_V4),
        ] {
            world.must_drop(HOOK, &arp(operation, sender, target), Reason::UnhandledArp);
        }
        world.must_drop(
            HOOK,
            &arp(1, [10, 244, 1, 10], GATEWAY_V4)[..41],
            Reason::Truncated,
        );
    });
}

fn solicitation(source: &str, target: &str) -> Packet {
    let target: std::net::Ipv6Addr = target.parse().expect("address");
    let mut message = vec![135, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.octets());
    message.extend([1, 1]);
    message.extend(POD_MAC);
    Packet {
        protocol: 58,
        ..Packet::new(source, "ff02::1:ff00:1").payload(message)
    }
}

#[test]
fn a_solicitation_for_the_gateway_is_answered() {
    in_namespaces(|| {
        let world = World::new();
        for (source, mac) in [(POD[1], POD_HOST_MAC), ("fe80::aa", OVERLAY_MAC)] {
            let seen = world.send(HOOK, &solicitation(source, "fe80::1").frame());
            assert_eq!(
                (seen.action, seen.reason),
                (Action::Redirect, Reason::GatewayReply)
            );
            assert_eq!(seen.frame[..6], [2, 0, 0, 0, 0, 0x10]);
            assert_eq!(seen.frame[6..12], mac);
            let ip = &seen.frame[ETHERNET..];
            assert_eq!(ip[7], 255, "hop limit");
            assert_eq!(
                ip[8..24],
                "fe80::1".parse::<std::net::Ipv6Addr>().expect("address").octets()
            );
            assert_eq!(
                ip[24..40],
                source.parse::<std::net::Ipv6Addr>().expect("address").octets()
            );
            let message = &ip[40..];
            assert_eq!(message[..2], [136, 0]);
            assert_eq!(message[4..8], [0xe0, 0, 0, 0]);
            assert_eq!(message[24..26], [2, 1]);
            assert_eq!(message[26..32], mac);
            let pseudo: Vec<u8> = ip[8..40]
                .iter()
                .chain(&[0, 0, 0, 32, 0, 0, 0, 58])
                .chain(message)
                .copied()
                .collect();
            assert_eq!(checksum(&pseudo), 0);
        }
        world.must_drop(HOOK, &solicitation(POD[1], "fe80::2").frame(), Reason::Multicast);
        // Duplicate address detection by someone who wants to be the gateway, and another pod's address.
        world.must_drop(HOOK, &solicitation("::", "fe80::1").frame(), Reason::LinkLocal);
        world.must_drop(
            HOOK,
            &solicitation(NEIGHBOR[1], "fe80::1").frame(),
            Reason::LinkLocal,
        );
    });
}
