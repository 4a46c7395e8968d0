use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::scheduler::testing::{node, pod};

fn cluster(cpus: &[i64]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (i, cpu) in cpus.iter().enumerate() {
        snapshot.upsert_node(&node(&format!("n{i}"), *cpu));
    }
    snapshot
}

fn ask(snapshot: &mut Snapshot, pod: &PodInfo, start: &mut usize) -> Decision {
    let plan = snapshot.plan(pod);
    decide(
        snapshot,
        pod,
        &plan,
        &VolumePlan::default(),
        Sampling::default(),
        start,
        &mut Scratch::default(),
    )
}

/// Decides and assumes.
fn schedule(snapshot: &mut Snapshot, pod: PodInfo, start: &mut usize) -> Option<String> {
    let pod = Arc::new(pod);
    match ask(snapshot, &pod, start) {
        Decision::Node(index) => {
            let name = snapshot.node(index).name.clone();
            snapshot.place(&pod, &name);
            Some(name.to_string())
        }
        Decision::Nowhere(_) => None,
    }
}

fn zoned(name: &str, zone: &str) -> k8s_openapi::api::core::v1::Node {
    let mut node = node(name, 64);
    let labels = node.metadata.labels.get_or_insert_default();
    labels.insert("topology.kubernetes.io/zone".into(), zone.into());
    node
}

#[test]
fn the_emptiest_node_wins() {
    let mut snapshot = cluster(&[4, 16, 8]);
    assert_eq!(
        schedule(&mut snapshot, pod("a").cpu("1").build(), &mut 0).unwrap(),
        "n1"
    );
}

#[test]
fn equal_nodes_take_turns() {
    let mut snapshot = cluster(&[4, 4, 4]);
    let mut start = 0;
    let mut all: Vec<String> = ["a", "b", "c"]
        .into_iter()
        .map(|name| schedule(&mut snapshot, pod(name).build(), &mut start).unwrap())
        .collect();
    all.sort();
    assert_eq!(all, ["n0", "n1", "n2"]);
}

#[test]
fn preferences_and_soft_taints() {
    let mut snapshot = cluster(&[4, 4, 4]);
    let mut marked = node("n2", 4);
    let labels = marked.metadata.labels.get_or_insert_default();
    labels.insert("disk".into(), "ssd".into());
    snapshot.upsert_node(&marked);
    let wish =
        json!([{"weight": 10, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]);
    assert_eq!(
        schedule(&mut snapshot, pod("p").preferred(wish).build(), &mut 0).unwrap(),
        "n2"
    );
    for i in 0..2 {
        let mut soft = node(&format!("n{i}"), 4);
        soft.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "k".into(),
            effect: "PreferNoSchedule".into(),
            ..Taint::default()
        }]);
        snapshot.upsert_node(&soft);
    }
    assert_eq!(schedule(&mut snapshot, pod("q").build(), &mut 0).unwrap(), "n2");
}

#[test]
fn zones_are_spread_too() {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("n0", "a"), ("n1", "a"), ("n2", "b")] {
        snapshot.upsert_node(&zoned(name, zone));
    }
    let mut start = 0;
    let mut take = |name: &str| schedule(&mut snapshot, pod(name).owner("o").build(), &mut start).unwrap();
    let (first, second) = (take("a"), take("b"));
    assert!(
        first == "n2" || second == "n2",
        "{first} {second}: one in each zone first"
    );
}

#[test]
fn pods_would_like_company_or_not() {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("n0", "a"), ("n1", "b"), ("n2", "c")] {
        snapshot.upsert_node(&zoned(name, zone));
    }
    let wish = json!([{ "weight": 100, "podAffinityTerm": { "topologyKey": "topology.kubernetes.io/zone",
        "labelSelector": { "matchLabels": { "app": "db" } } } }]);
    snapshot.place(&Arc::new(pod("db").label("app", "db").build()), "n1");
    let choose = |snapshot: &mut Snapshot, pod: PodInfo| match ask(snapshot, &pod, &mut 0) {
        Decision::Node(index) => snapshot.node(index).name.to_string(),
        other @ Decision::Nowhere(_) => panic!("{other:?}"),
    };
    assert_eq!(
        choose(&mut snapshot, pod("p").rather_near(wish.clone()).build()),
        "n1"
    );
    assert_ne!(
        choose(&mut snapshot, pod("p").rather_away(wish.clone()).build()),
        "n1"
    );
    // What a placed pod would like counts for those who come later.
    snapshot.place(
        &Arc::new(pod("fan").label("app", "web").rather_near(wish).build()),
        "n2",
    );
    snapshot.unplace("db");
    assert_eq!(choose(&mut snapshot, pod("db2").label("app", "db").build()), "n2");
}

#[test]
fn nodes_that_hold_the_image_are_preferred() {
    let mut snapshot = cluster(&[4, 4, 4, 4]);
    for name in ["n1", "n2"] {
        let mut holder = node(name, 4);
        let image = json!([{ "names": ["registry/app:latest"], "sizeBytes": 900 << 20 }]);
        holder.status.as_mut().unwrap().images = serde_json::from_value(image).unwrap();
        snapshot.upsert_node(&holder);
    }
    let containers = json!([{ "name": "c", "image": "registry/app" }]);
    let chosen = schedule(
        &mut snapshot,
        pod("p").spec("containers", containers).build(),
        &mut 0,
    )
    .unwrap();
    assert_eq!(chosen, "n1");
}

#[test]
fn room_that_was_made_is_used() {
    let mut snapshot = cluster(&[4, 8]);
    let pod = Arc::new(pod("p").cpu("1").build());
    snapshot.nominate(&pod, "n0");
    let index = snapshot.find_node("n0").unwrap();
    assert_eq!(ask(&mut snapshot, &pod, &mut 0), Decision::Node(index));
}

#[test]
fn says_why_nothing_fits() {
    let mut snapshot = cluster(&[1, 4, 4]);
    for i in 1..3 {
        let mut tainted = node(&format!("n{i}"), 4);
        tainted.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: "NoSchedule".into(),
            time_added: None,
        }]);
        snapshot.upsert_node(&tainted);
    }
    let Decision::Nowhere(nowhere) = ask(&mut snapshot, &pod("p").cpu("2").build(), &mut 0) else {
        panic!("it fits")
    };
    assert_eq!(
        nowhere.explain(),
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint {k: v}."
    );
    assert!(nowhere.blockers.meet(Blockers::ROOM) && !nowhere.blockers.meet(Blockers::VOLUMES));
    assert_eq!(
        Nowhere::default().explain(),
        "no nodes available to schedule pods"
    );
    assert_eq!(
        Nowhere::because(
            3,
            "pod has unbound immediate PersistentVolumeClaims".into(),
            Blockers::VOLUMES
        )
        .explain(),
        "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    );
}

proptest! {
    /// One owner's pods on equal nodes never differ by more than one per node.
    #[test]
    fn an_owners_pods_are_spread_evenly(nodes in 1usize..12, pods in 1usize..60) {
        let mut snapshot = cluster(&vec![64; nodes]);
        let mut start = 0;
        for i in 0..pods {
            let placed = schedule(&mut snapshot, pod(&format!("p{i}")).cpu("10m").owner("o").build(), &mut start);
            prop_assert!(placed.is_some());
        }
        let counts: Vec<usize> = snapshot.order().iter().map(|&i| snapshot.node(i).pod_count()).collect();
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        prop_assert!(most - least <= 1, "{counts:?}");
    }

    /// No node is ever given more than it has, and a pod is refused only if it fits nowhere.
    #[test]
    fn nodes_are_never_overfilled(cpus in prop::collection::vec(1i64..5, 1..6), wants in prop::collection::vec(100i64..3000, 1..40)) {
        let mut snapshot = cluster(&cpus);
        snapshot.refresh_order();
        let mut start = 0;
        for (i, want) in wants.iter().enumerate() {
            let fits_somewhere = snapshot.order().iter().any(|&n| {
                let node = snapshot.node(n);
                node.allocatable.milli_cpu - node.requested.milli_cpu >= *want
            });
            let placed = schedule(&mut snapshot, pod(&format!("p{i}")).cpu(&format!("{want}m")).build(), &mut start);
            prop_assert_eq!(placed.is_some(), fits_somewhere);
            for &n in snapshot.order() {
                let node = snapshot.node(n);
                prop_assert!(node.requested.milli_cpu <= node.allocatable.milli_cpu);
            }
        }
    }

    /// Required spreading holds after every step, whatever the zones' sizes.
    #[test]
    fn required_spreading_holds_at_every_step(zones in prop::collection::vec(1usize..4, 1..4), skew in 1i32..3, pods in 1usize..30) {
        let mut snapshot = Snapshot::default();
        for (zone, nodes) in zones.iter().enumerate() {
            for i in 0..*nodes {
                snapshot.upsert_node(&zoned(&format!("z{zone}n{i}"), &format!("z{zone}")));
            }
        }
        let constraint = json!([{ "maxSkew": skew, "topologyKey": "topology.kubernetes.io/zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": { "matchLabels": { "app": "a" } } }]);
        let mut counts = vec![0i32; zones.len()];
        let mut start = 0;
        for i in 0..pods {
            let placed = schedule(&mut snapshot, pod(&format!("p{i}")).label("app", "a").spread(constraint.clone()).build(), &mut start);
            let zone: usize = placed.unwrap()[1..2].parse().unwrap();
            counts[zone] += 1;
            prop_assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= skew, "{counts:?}");
        }
    }
}
