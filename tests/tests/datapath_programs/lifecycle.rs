//! What must survive the agent, what must be put back, and what must be gone after an uninstall.

use std::{fs, net::Ipv4Addr, time::Duration};

use aya::{
    maps::{HashMap, Map, MapData},
    programs::{SchedClassifier, tc::TcAttachType},
};
use weft_agent::datapath::{
    maps::{EncapMode, EndpointEntry},
    programs::{Dataplane, Repair, trial::Hook},
    selftest::self_test,
};
use weft_ebpf_common::{Endpoint, Reason, maps};

use crate::{
    packet::Packet,
    world::{NEIGHBOR, POD, REMOTE, World, command, in_namespaces, ip},
};

fn attached(device: &str, direction: TcAttachType) -> Vec<u32> {
    let (_, programs) = SchedClassifier::query_tcx(device, direction).expect("query");
    programs.iter().map(aya::programs::ProgramInfo::id).collect()
}

fn filter(block: u32) -> String {
    command(&format!("tc filter show block {block}"))
}

fn host_veth(world: &World, name: &str) {
    command(&format!("ip link add {name} type veth peer name {name}p"));
    command(&format!(
        "tc qdisc add dev {name} ingress_block {} clsact",
        world.dataplane.filter_block()
    ));
    // Without link-local addresses no end sends frames of its own, which the programs would count.
    for end in [name, &format!("{name}p")] {
        command(&format!("ip link set {end} addrgenmode none"));
        command(&format!("ip link set {end} up"));
    }
}

#[test]
fn a_new_agent_adopts_maps_and_replaces_programs() {
    in_namespaces(|| {
        let world = World::new();
        host_veth(&world, "wv1");
        world.dataplane.ensure_filter().expect("filter");
        let before = attached("under0", TcAttachType::Ingress);
        assert_eq!(before.len(), 1);
        let filter_before = filter(world.dataplane.filter_block());
        assert_eq!(
            filter_before.matches("direct-action").count(),
            1,
            "{filter_before}"
        );
        world.must_drop(
            Hook::FromContainer,
            &Packet::new(NEIGHBOR[0], REMOTE[0]).frame(),
            Reason::SpoofedSource,
        );

        let second = Dataplane::open(&world.options).expect("open again");
        let endpoints = second.endpoints().expect("endpoints");
        assert_eq!(endpoints.len(), 4);
        assert_eq!(second.peers().expect("peers").len(), 4);
        let metrics = second.metrics().expect("metrics");
        let spoofed = metrics
            .iter()
            .find(|m| m.reason == Reason::SpoofedSource)
            .expect("listed");
        assert_eq!(spoofed.packets, 1, "counters go on");
        let after = attached("under0", TcAttachType::Ingress);
        assert_eq!(after.len(), 1, "one program, not one more");
        assert_ne!(before, after, "the new one");
        let filter_after = filter(second.filter_block());
        assert_eq!(filter_after.matches("direct-action").count(), 1);
        assert_ne!(filter_before, filter_after);

        // The old agent ends after the new one has begun; nothing of the new one's goes with it.
        let World { dataplane, .. } = world;
        drop(dataplane);
        assert_eq!(attached("under0", TcAttachType::Ingress), after);
        assert_eq!(second.verify().expect("verify"), vec![]);
    });
}

#[test]
fn what_an_agent_without_slots_has_done_is_taken_in() {
    in_namespaces(|| {
        let world = World::new();
        let pin = MapData::from_pin(world.options.bpffs.join("maps").join(maps::ENDPOINTS_V4)).expect("pin");
        let mut hash: HashMap<MapData, [u8; 4], Endpoint> =
            Map::HashMap(pin).try_into().expect("the endpoints' hash");
        let neighbor: Ipv4Addr = NEIGHBOR[0].parse().expect("address");
        let entry = hash.get(&neighbor.octets(), 0).expect("the neighbor");
        hash.insert([10, 244, 1, 99], entry, 0).expect("insert");
        hash.remove(&neighbor.octets()).expect("remove");

        let again = World {
            dataplane: Dataplane::open(&world.options).expect("open again"),
            ..world
        };
        let to = |address: &str| {
            let frame = Packet::new(POD[0], address).frame();
            again.send(Hook::FromContainer, &frame).reason
        };
        assert_eq!(to("10.244.1.99"), Reason::LocalDelivery);
        assert_eq!(to(NEIGHBOR[0]), Reason::NoPeer);
    });
}

#[test]
fn programs_stay_when_the_agent_goes() {
    in_namespaces(|| {
        let World {
            dataplane,
            options,
            scratch,
        } = World::new();
        drop(dataplane);
        assert_eq!(attached("under0", TcAttachType::Ingress).len(), 1);
        assert_eq!(attached("weft0", TcAttachType::Ingress).len(), 1);
        assert_eq!(attached("weft0", TcAttachType::Egress).len(), 1);
        drop((options, scratch));
    });
}

#[test]
fn what_another_tool_removes_comes_back() {
    in_namespaces(|| {
        let mut world = World::new();
        host_veth(&world, "wv1");
        world.dataplane.ensure_filter().expect("filter");
        assert_eq!(world.dataplane.verify().expect("verify"), vec![]);

        let block = world.dataplane.filter_block();
        command(&format!("tc filter del block {block}"));
        assert_eq!(
            world.dataplane.verify().expect("verify"),
            vec![Repair::FilterReplaced { block }]
        );
        assert!(filter(block).contains("direct-action"));

        fs::remove_file(world.options.bpffs.join("links/from_underlay")).expect("remove pin");
        let repaired = |program, device: &str| {
            vec![Repair::Reattached {
                program,
                device: device.to_owned(),
            }]
        };
        assert_eq!(
            attached("under0", TcAttachType::Ingress).len(),
            1,
            "not for one packet was it away"
        );
        let program = "from_underlay";
        assert_eq!(
            world.dataplane.verify().expect("verify"),
            vec![Repair::Repinned { program }]
        );
        assert_eq!(world.dataplane.verify().expect("verify"), vec![]);

        // A device that went and came back under its name: the pinned link is dead.
        command("ip link del under0");
        command("ip link add under0 type veth peer name under1");
        assert_eq!(
            world.dataplane.verify().expect("verify"),
            repaired("from_underlay", "under0")
        );
        assert_eq!(attached("under0", TcAttachType::Ingress).len(), 1);
        command("ip link del under0");
        command("ip link add under0 type veth peer name under1");
        world.dataplane = Dataplane::open(&world.options).expect("open again");
        assert_eq!(attached("under0", TcAttachType::Ingress).len(), 1);
    });
}

#[test]
fn the_block_has_its_filter_whenever_a_veth_refers_to_it() {
    in_namespaces(|| {
        let world = World::new();
        let block = world.dataplane.filter_block();
        for _ in 0..2 {
            host_veth(&world, "wv1");
            assert!(!filter(block).contains("direct-action"), "a new block is empty");
            world.dataplane.ensure_filter().expect("filter");
            world.dataplane.ensure_filter().expect("filter, again");
            host_veth(&world, "wv2");
            assert_eq!(filter(block).matches("direct-action").count(), 1);
            assert_eq!(world.dataplane.verify().expect("verify"), vec![]);
            command("ip link del wv1");
            command("ip link del wv2");
            assert_eq!(
                world.dataplane.verify().expect("verify"),
                vec![],
                "no block, no filter, no fault"
            );
        }
        assert!(
            world.dataplane.ensure_filter().is_err(),
            "without a veth there is nothing to put a filter on"
        );
    });
}

#[test]
fn entries_come_and_go() {
    in_namespaces(|| {
        let world = World::new();
        let dataplane = &world.dataplane;
        for address in POD {
            assert!(dataplane.remove_endpoint(ip(address)).expect("remove"));
            assert!(!dataplane.remove_endpoint(ip(address)).expect("remove again"));
            let entry = EndpointEntry {
                ifindex: 9,
                endpoint_id: 8,
                pod_mac: [1; 6],
                host_mac: [3; 6],
            };
            dataplane.upsert_endpoint(ip(address), &entry).expect("upsert");
            assert!(
                dataplane
                    .endpoints()
                    .expect("endpoints")
                    .contains(&(ip(address), entry))
            );
        }
        for (cidr, entry) in dataplane.peers().expect("peers") {
            dataplane.upsert_peer(cidr, &entry).expect("upsert");
            assert!(dataplane.remove_peer(cidr).expect("remove"));
            assert!(!dataplane.remove_peer(cidr).expect("remove again"));
        }
        assert_eq!(dataplane.peers().expect("peers"), vec![]);
    });
}

#[test]
fn cluster_cidrs_follow_the_settings() {
    in_namespaces(|| {
        let world = World::new();
        let frame = Packet::new(POD[0], "10.244.9.9").frame();
        world.must_drop(Hook::FromContainer, &frame, Reason::NoPeer);
        let mut settings = world.options.settings.clone();
        settings.cluster_cidrs = vec!["10.245.0.0/16".parse().expect("cidr")];
        world.dataplane.configure(&settings).expect("configure");
        assert_eq!(world.send(Hook::FromContainer, &frame).reason, Reason::ToStack);
        world.must_drop(
            Hook::FromContainer,
            &Packet::new(POD[0], "10.245.9.9").frame(),
            Reason::NoPeer,
        );
    });
}

#[test]
fn a_map_of_another_layout_is_made_anew() {
    in_namespaces(|| {
        let world = World::new();
        let pin = world.options.bpffs.join("maps/ENDPOINTS4_V1");
        fs::remove_file(&pin).expect("remove pin");
        HashMap::<MapData, u32, u32>::create(16, 0)
            .expect("map")
            .pin(&pin)
            .expect("pin");
        let second = Dataplane::open(&world.options).expect("open");
        assert_eq!(
            second.endpoints().expect("endpoints").len(),
            2,
            "the other family's map was kept"
        );
    });
}

#[test]
fn nothing_is_left_after_an_uninstall() {
    in_namespaces(|| {
        let World {
            dataplane,
            options,
            scratch,
        } = World::new();
        command("ip link add wv1 type veth peer name wv1p");
        command(&format!(
            "tc qdisc add dev wv1 ingress_block {} clsact",
            dataplane.filter_block()
        ));
        dataplane.ensure_filter().expect("filter");
        drop(dataplane);
        Dataplane::detach_all(&options.bpffs, options.filter_block).expect("detach");
        // A kernel worker takes them off once their pins are gone.
        weft_lab::wait_for("the programs to go", Duration::from_secs(30), || {
            let left = [
                attached("under0", TcAttachType::Ingress),
                attached("weft0", TcAttachType::Ingress),
                attached("weft0", TcAttachType::Egress),
            ];
            left.iter().all(Vec::is_empty).then_some(())
        })
        .expect("programs left behind");
        assert!(!filter(options.filter_block).contains("direct-action"));
        for directory in ["maps", "links"] {
            assert!(!options.bpffs.join(directory).exists(), "{directory}");
        }
        Dataplane::detach_all(&options.bpffs, options.filter_block).expect("detaching twice is fine");
        drop(scratch);
    });
}

#[test]
fn this_kernel_passes_the_self_test() {
    in_namespaces(|| {
        let world = World::new();
        let test = self_test(&world.options.bpffs);
        assert_eq!(
            (test.encap, test.decap),
            (EncapMode::Program, EncapMode::Program),
            "{}",
            test.reason
        );
        let left: Vec<_> = fs::read_dir(&world.options.bpffs)
            .expect("bpffs")
            .map(|entry| entry.expect("entry").file_name())
            .filter(|name| name.to_string_lossy().starts_with("selftest"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(
            world.dataplane.endpoints().expect("endpoints").len(),
            4,
            "the node's own tables are untouched"
        );
    });
}
