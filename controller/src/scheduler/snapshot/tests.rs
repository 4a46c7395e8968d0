use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::scheduler::filter::Checks;
use crate::scheduler::testing::{node, pod};
use crate::scheduler::volumes::VolumePlan;

#[test]
fn a_heartbeat_wakes_nobody() {
    let mut snapshot = Snapshot::default();
    assert!(snapshot.upsert_node(&node("a", 4)));
    assert!(!snapshot.upsert_node(&node("a", 4)));
    assert!(snapshot.upsert_node(&node("a", 8)));
}

#[test]
fn pods_outlive_their_node() {
    let mut snapshot = Snapshot::default();
    snapshot.upsert_node(&node("a", 4));
    snapshot.place(&Arc::new(pod("x").cpu("1").build()), "a");
    snapshot.remove_node("a");
    snapshot.refresh_order();
    assert!(snapshot.order().is_empty());
    snapshot.upsert_node(&node("a", 4));
    let index = snapshot.find_node("a").unwrap();
    assert_eq!(snapshot.node(index).requested.milli_cpu, 1000);
    snapshot.unplace("x");
    snapshot.remove_node("a");
    assert!(snapshot.by_name.is_empty());
}

#[test]
fn zones_take_turns() {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [
        ("a1", "a"),
        ("a2", "a"),
        ("a3", "a"),
        ("b1", "b"),
        ("c1", "c"),
        ("c2", "c"),
    ] {
        let mut node = node(name, 4);
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert("topology.kubernetes.io/zone".into(), zone.into());
        snapshot.upsert_node(&node);
    }
    snapshot.refresh_order();
    let names: Vec<&str> = snapshot
        .order()
        .iter()
        .map(|i| &*snapshot.node(*i).name)
        .collect();
    assert_eq!(names, ["a1", "b1", "c1", "a2", "c2", "a3"]);
}

#[derive(Debug, Clone)]
enum Op {
    Node(u8, u8, bool),
    NodeGone(u8),
    Place(u8, u8),
    Leaving(u8),
    Unplace(u8),
    Namespace(bool),
    Plan(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (0u8..4, 0u8..3, any::<bool>()).prop_map(|(n, zone, open)| Op::Node(n, zone, open)),
        1 => (0u8..4).prop_map(Op::NodeGone),
        6 => (0u8..12, 0u8..4).prop_map(|(p, n)| Op::Place(p, n)),
        1 => (0u8..12).prop_map(Op::Leaving),
        2 => (0u8..12).prop_map(Op::Unplace),
        1 => any::<bool>().prop_map(Op::Namespace),
        2 => (0u8..12).prop_map(Op::Plan),
    ]
}

fn zoned(n: u8, zone: u8, open: bool) -> Node {
    let mut node = node(&format!("n{n}"), 4);
    let labels = node.metadata.labels.get_or_insert_default();
    labels.insert("zone".into(), format!("z{zone}"));
    if !open {
        node.spec.get_or_insert_default().unschedulable = Some(true);
    }
    node
}

/// Twelve pods with every sort of constraint among them.
fn made(p: u8, leaving: bool) -> Arc<PodInfo> {
    let app = format!("app{}", p % 3);
    let mut pod = pod(&format!("p{p}")).cpu("100m").label("app", &app);
    if p % 4 == 3 {
        pod = pod.namespace("other");
    }
    let selector = json!({ "matchLabels": { "app": "app1" } });
    let term = json!({ "topologyKey": "zone", "labelSelector": selector, "namespaceSelector": { "matchLabels": { "team": "blue" } },
        "namespaces": ["default"] });
    let weighted = json!([{ "weight": 7, "podAffinityTerm": term }]);
    pod = match p {
        0 | 7 => pod.away(json!([term])),
        1 => pod.near(json!([term])),
        2 | 8 => pod.spread(
            json!([{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector, "nodeTaintsPolicy": "Honor" }]),
        ),
        3 => pod.rather_near(weighted),
        4 => pod.rather_away(weighted),
        5 => pod
            .selector("zone", "z1")
            .spread(json!([{ "maxSkew": 2, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector }])),
        _ => pod.owner(&format!("o{}", p % 2)),
    };
    if leaving {
        pod = pod.terminating();
    }
    Arc::new(pod.build())
}

/// Everything that decisions about the twelve pods are made of.
fn view(snapshot: &mut Snapshot) -> Vec<String> {
    let mut out = Vec::new();
    for p in 0..12 {
        let pod = made(p, false);
        let plan = snapshot.plan(&pod);
        let volumes = VolumePlan::default();
        let mut by_node: Vec<String> = Vec::new();
        for &index in snapshot.order() {
            let rejections = Checks::new(snapshot, &pod, &plan, &volumes).rejections(index);
            let census = &snapshot.census;
            let counted = |tally: usize| {
                let tally = census.tally(tally);
                let here = census
                    .key(tally.key)
                    .of(index)
                    .map(|value| tally.counts.at(value));
                (
                    here,
                    tally.counts.least(),
                    tally.counts.values(),
                    tally.counts.pods(),
                )
            };
            let evenness: Vec<_> = plan.evenness.iter().map(|wish| counted(wish.tally)).collect();
            let leanings: Vec<_> = plan.leanings.iter().map(|(_, tally)| counted(*tally)).collect();
            let mut wishes: Vec<_> = census
                .wishes_about(plan.class)
                .map(|carrier| {
                    let here = census
                        .key(carrier.key)
                        .of(index)
                        .map(|value| carrier.counts.at(value));
                    format!("{:?} {here:?}", carrier.wish)
                })
                .filter(|wish| !wish.ends_with("Some(0)") && !wish.ends_with("None"))
                .collect();
            wishes.sort();
            let node = snapshot.node(index);
            by_node.push(format!(
                "{} {:?} {} {rejections:?} {evenness:?} {leanings:?} {wishes:?}",
                node.name,
                node.requested.milli_cpu,
                node.pod_count()
            ));
        }
        by_node.sort();
        out.extend(by_node);
    }
    out
}

proptest! {
    /// Whatever the order of events, the snapshot is the one that a rebuild would give.
    #[test]
    fn incremental_equals_rebuilt(ops in prop::collection::vec(op(), 1..60)) {
        let mut snapshot = Snapshot::default();
        let mut nodes: BTreeMap<u8, (u8, bool)> = BTreeMap::new();
        let mut placed: BTreeMap<u8, (u8, bool)> = BTreeMap::new();
        let mut blue = None;
        let team = |blue: bool| Some([("team".to_owned(), if blue { "blue" } else { "red" }.to_owned())].into());
        for op in ops {
            match op {
                Op::Node(n, zone, open) => { snapshot.upsert_node(&zoned(n, zone, open)); nodes.insert(n, (zone, open)); }
                Op::NodeGone(n) => { snapshot.remove_node(&format!("n{n}")); nodes.remove(&n); }
                Op::Place(p, n) => { snapshot.place(&made(p, false), &format!("n{n}")); placed.insert(p, (n, false)); }
                Op::Leaving(p) => if let Some((n, leaving)) = placed.get_mut(&p) {
                    *leaving = true;
                    snapshot.place(&made(p, true), &format!("n{n}"));
                },
                Op::Unplace(p) => { snapshot.unplace(&format!("p{p}")); placed.remove(&p); }
                Op::Namespace(is_blue) => { snapshot.set_namespace("other", team(is_blue)); blue = Some(is_blue); }
                Op::Plan(p) => { snapshot.plan(&made(p, false)); }
            }
        }
        let mut fresh = Snapshot::default();
        if let Some(blue) = blue {
            fresh.set_namespace("other", team(blue));
        }
        for (n, (zone, open)) in &nodes {
            fresh.upsert_node(&zoned(*n, *zone, *open));
        }
        for (p, (n, leaving)) in &placed {
            fresh.place(&made(*p, *leaving), &format!("n{n}"));
        }
        prop_assert_eq!(snapshot.pods(), placed.len());
        prop_assert_eq!(view(&mut snapshot), view(&mut fresh));
        for p in placed.keys() {
            snapshot.unplace(&format!("p{p}"));
        }
        for n in nodes.keys() {
            snapshot.remove_node(&format!("n{n}"));
        }
        prop_assert!(snapshot.by_name.is_empty() && snapshot.placed.is_empty());
    }
}
