use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::scheduler::testing::{node, pod};
use crate::scheduler::volumes::Volumes;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Taint};

/// Why `pod` cannot go to a node of the snapshot.
fn why(snapshot: &mut Snapshot, pod: &PodInfo, node: &str) -> Vec<Rejection> {
    let plan = snapshot.plan(pod);
    let volumes = VolumePlan::default();
    let checks = Checks::new(snapshot, pod, &plan, &volumes);
    let index = snapshot.find_node(node).unwrap();
    let reasons = checks.rejections(index);
    assert_eq!(checks.fits(index), reasons.is_empty(), "the quick test agrees");
    reasons
}

fn words(snapshot: &mut Snapshot, pod: &PodInfo, node: &str) -> Vec<String> {
    let reasons = why(snapshot, pod, node);
    reasons.iter().map(ToString::to_string).collect()
}

fn check(pod: &PodInfo, node: &Node) -> Vec<String> {
    let mut snapshot = Snapshot::default();
    snapshot.upsert_node(node);
    words(&mut snapshot, pod, "n")
}

fn zoned(name: &str, zone: &str) -> Node {
    let mut node = node(name, 64);
    let labels = node.metadata.labels.get_or_insert_default();
    labels.insert("zone".into(), zone.into());
    node
}

/// Nodes `a1`, `a2` in zone a, `b1` in zone b, and `x` in none.
fn zones() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, zone) in [("a1", "a"), ("a2", "a"), ("b1", "b")] {
        snapshot.upsert_node(&zoned(name, zone));
    }
    snapshot.upsert_node(&node("x", 64));
    snapshot
}

/// On which of the nodes of [`zones`] the pod fits.
fn fits_on(snapshot: &mut Snapshot, pod: &PodInfo) -> Vec<&'static str> {
    ["a1", "a2", "b1", "x"]
        .into_iter()
        .filter(|node| why(snapshot, pod, node).is_empty())
        .collect()
}

fn term(app: &str) -> Value {
    json!({ "topologyKey": "zone", "labelSelector": { "matchLabels": { "app": app } } })
}

#[test]
fn resources() {
    assert!(check(&pod("p").cpu("4").build(), &node("n", 4)).is_empty());
    assert_eq!(
        check(&pod("p").cpu("4001m").build(), &node("n", 4)),
        ["Insufficient cpu"]
    );
    let greedy = pod("p")
        .request("memory", "100Ti")
        .request("example.com/gpu", "1")
        .build();
    assert_eq!(
        check(&greedy, &node("n", 4)),
        ["Insufficient memory", "Insufficient example.com/gpu"]
    );
    let mut full = node("n", 4);
    let offered = full.status.as_mut().unwrap().allocatable.as_mut().unwrap();
    offered.get_mut("pods").unwrap().0 = "0".into();
    assert_eq!(check(&pod("p").build(), &full), ["Too many pods"]);
    let whole = pod("p")
        .cpu("1")
        .spec("resources", json!({ "requests": { "cpu": "5" } }))
        .build();
    assert_eq!(
        check(&whole, &node("n", 4)),
        ["Insufficient cpu"],
        "the pod's own request stands"
    );
}

#[test]
fn what_preemption_can_mend() {
    let mut snapshot = Snapshot::default();
    snapshot.upsert_node(&node("n", 4));
    snapshot.place(&Arc::new(pod("a").cpu("3").build()), "n");
    let mut resolvable = |cpu: &str| why(&mut snapshot, &pod("p").cpu(cpu).build(), "n")[0].is_resolvable();
    assert!(resolvable("2"));
    assert!(!resolvable("5"), "the node never has so much");
}

#[test]
fn room_that_is_kept_for_another() {
    let mut snapshot = Snapshot::default();
    snapshot.upsert_node(&node("n", 4));
    let important = Arc::new(pod("vip").priority(10).cpu("3").host_port(80, "TCP", "").build());
    snapshot.nominate(&important, "n");
    assert_eq!(
        words(&mut snapshot, &pod("p").cpu("2").build(), "n"),
        ["Insufficient cpu"]
    );
    assert_eq!(
        why(&mut snapshot, &pod("p").host_port(80, "TCP", "").build(), "n"),
        [Rejection::Ports]
    );
    assert!(why(&mut snapshot, &pod("p").priority(11).cpu("2").build(), "n").is_empty());
    assert!(
        why(&mut snapshot, &important, "n").is_empty(),
        "it is kept for itself"
    );
    snapshot.withdraw("vip");
    assert!(why(&mut snapshot, &pod("p").cpu("2").build(), "n").is_empty());
}

#[test]
fn taints_and_tolerations() {
    let tainted = |effect: &str| {
        let mut node = node("n", 4);
        node.spec.get_or_insert_default().taints = Some(vec![Taint {
            key: "k".into(),
            value: Some("v".into()),
            effect: effect.into(),
            time_added: None,
        }]);
        node
    };
    let reason = ["node(s) had untolerated taint {k: v}"];
    assert_eq!(check(&pod("p").build(), &tainted("NoSchedule")), reason);
    assert_eq!(check(&pod("p").build(), &tainted("NoExecute")), reason);
    assert!(check(&pod("p").build(), &tainted("PreferNoSchedule")).is_empty());
    for (toleration, covers) in [
        (json!({"key": "k", "value": "v"}), true),
        (json!({"key": "k", "operator": "Equal", "value": "w"}), false),
        (
            json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}),
            true,
        ),
        (
            json!({"key": "k", "operator": "Exists", "effect": "NoExecute"}),
            false,
        ),
        (json!({"operator": "Exists"}), true),
        (json!({"value": "v"}), false),
    ] {
        let pod = pod("p").toleration(toleration.clone()).build();
        assert_eq!(
            check(&pod, &tainted("NoSchedule")).is_empty(),
            covers,
            "{toleration}"
        );
    }
}

#[test]
fn cordoned_nodes() {
    let mut cordoned = node("n", 4);
    cordoned.spec.get_or_insert_default().unschedulable = Some(true);
    assert_eq!(
        check(&pod("p").build(), &cordoned),
        ["node(s) were unschedulable"]
    );
    let daemon = pod("p")
        .toleration(json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}))
        .build();
    assert!(check(&daemon, &cordoned).is_empty());
}

#[test]
fn selectors_and_affinity() {
    let mut labelled = node("n", 4);
    let labels = labelled.metadata.labels.get_or_insert_default();
    labels.insert("disk".into(), "ssd".into());
    labels.insert("gen".into(), "7".into());
    let no = ["node(s) didn't match Pod's node affinity/selector"];
    assert!(check(&pod("p").selector("disk", "ssd").build(), &labelled).is_empty());
    assert_eq!(check(&pod("p").selector("disk", "hdd").build(), &labelled), no);
    let one = |key: &str, operator: &str, values: &[&str]| json!([{ "matchExpressions": [{ "key": key, "operator": operator, "values": values }] }]);
    let named = |name: &str| json!([{ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": [name] }] }]);
    for (terms, matches) in [
        (one("disk", "In", &["ssd", "nvme"]), true),
        (one("disk", "NotIn", &["ssd"]), false),
        (one("nope", "NotIn", &["x"]), true),
        (one("gen", "Gt", &["6"]), true),
        (one("gen", "Lt", &["7"]), false),
        (
            json!([{"matchExpressions": [{"key": "nope", "operator": "Exists"}]},
                {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}]),
            true,
        ),
        (one("disk", "DoesNotExist", &[]), false),
        (named("n"), true),
        (named("m"), false),
        (json!([{}]), false),
    ] {
        let pod = pod("p").required(terms.clone()).build();
        assert_eq!(check(&pod, &labelled).is_empty(), matches, "{terms}");
    }
    assert_eq!(
        check(&pod("p").required(named("m")).build(), &labelled),
        ["node(s) didn't satisfy plugin(s) [NodeAffinity]"]
    );
}

#[test]
fn host_ports() {
    let mut snapshot = Snapshot::default();
    snapshot.upsert_node(&node("n", 4));
    snapshot.place(&Arc::new(pod("a").host_port(80, "TCP", "10.0.0.1").build()), "n");
    let mut free = |port, protocol, ip| {
        why(
            &mut snapshot,
            &pod("b").host_port(port, protocol, ip).build(),
            "n",
        )
        .is_empty()
    };
    assert!(!free(80, "TCP", "0.0.0.0"));
    assert!(!free(80, "TCP", "10.0.0.1"));
    assert!(free(80, "TCP", "10.0.0.2"));
    assert!(free(80, "UDP", "10.0.0.1"));
    assert!(free(81, "TCP", "10.0.0.1"));
    snapshot.unplace("a");
    assert!(
        why(
            &mut snapshot,
            &pod("b").host_port(80, "TCP", "0.0.0.0").build(),
            "n"
        )
        .is_empty()
    );
}

#[test]
fn required_affinity_and_the_first_pod() {
    let mut snapshot = zones();
    let follower = pod("f").label("app", "web").near(json!([term("db")])).build();
    assert_eq!(fits_on(&mut snapshot, &follower), [""; 0]);
    assert_eq!(
        words(&mut snapshot, &follower, "a1"),
        ["node(s) didn't match pod affinity rules"]
    );
    let group = pod("g").label("app", "db").near(json!([term("db")])).build();
    assert_eq!(
        fits_on(&mut snapshot, &group),
        ["a1", "a2", "b1"],
        "the first of its kind may go anywhere in a zone"
    );
    snapshot.place(&Arc::new(pod("db").label("app", "db").build()), "a1");
    assert_eq!(fits_on(&mut snapshot, &follower), ["a1", "a2"]);
    assert_eq!(fits_on(&mut snapshot, &group), ["a1", "a2"]);
    let both = pod("h")
        .label("app", "db")
        .near(json!([term("db"), term("web")]))
        .build();
    assert_eq!(
        fits_on(&mut snapshot, &both),
        [""; 0],
        "one pod has to be what both terms mean"
    );
}

#[test]
fn anti_affinity_works_both_ways() {
    let mut snapshot = zones();
    let loner = Arc::new(pod("l").label("app", "web").away(json!([term("db")])).build());
    snapshot.place(&loner, "b1");
    let db = pod("db").label("app", "db").build();
    assert_eq!(fits_on(&mut snapshot, &db), ["a1", "a2", "x"]);
    assert_eq!(
        words(&mut snapshot, &db, "b1"),
        ["node(s) didn't satisfy existing pods anti-affinity rules"]
    );
    snapshot.place(&Arc::new(db), "a2");
    let other = pod("m").away(json!([term("db")])).build();
    assert_eq!(fits_on(&mut snapshot, &other), ["b1", "x"]);
    assert_eq!(
        words(&mut snapshot, &other, "a1"),
        ["node(s) didn't match pod anti-affinity rules"]
    );
    snapshot.unplace("l");
    assert_eq!(
        fits_on(&mut snapshot, &pod("db2").label("app", "db").build()).len(),
        4
    );
}

#[test]
fn other_namespaces_are_named_or_selected() {
    let mut snapshot = zones();
    let db = Arc::new(pod("db").namespace("data").label("app", "db").build());
    snapshot.place(&db, "a1");
    let with = |more: Value| {
        let mut term = term("db");
        for (key, value) in more.as_object().unwrap() {
            term[key] = value.clone();
        }
        pod("p").label("app", "web").away(json!([term])).build()
    };
    let selected = with(json!({ "namespaceSelector": { "matchLabels": { "team": "blue" } } }));
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({}))).len(),
        4,
        "its own namespace only"
    );
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({ "namespaces": ["data"] }))),
        ["b1", "x"]
    );
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({ "namespaceSelector": {} }))),
        ["b1", "x"]
    );
    assert_eq!(fits_on(&mut snapshot, &selected).len(), 4);
    snapshot.set_namespace("data", Some([("team".to_owned(), "blue".to_owned())].into()));
    assert_eq!(fits_on(&mut snapshot, &selected), ["b1", "x"]);
    snapshot.set_namespace("data", Some([("team".to_owned(), "red".to_owned())].into()));
    assert_eq!(fits_on(&mut snapshot, &selected).len(), 4);
    let versioned = |version: &str| {
        let mut term = term("web");
        term["matchLabelKeys"] = json!(["version"]);
        pod(version)
            .label("app", "web")
            .label("version", version)
            .away(json!([term]))
            .build()
    };
    snapshot.place(&Arc::new(versioned("1")), "b1");
    assert_eq!(fits_on(&mut snapshot, &versioned("1")), ["a1", "a2", "x"]);
    assert_eq!(
        fits_on(&mut snapshot, &versioned("2")).len(),
        4,
        "another version is another group"
    );
}

#[test]
fn spreading() {
    let mut snapshot = zones();
    let web = |name: &str| pod(name).label("app", "web");
    let with = |more: Value| {
        let mut constraint = json!({ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": "web" } } });
        for (key, value) in more.as_object().unwrap() {
            constraint[key] = value.clone();
        }
        web("p").spread(json!([constraint]))
    };
    let plain = with(json!({})).build();
    assert_eq!(fits_on(&mut snapshot, &plain), ["a1", "a2", "b1"]);
    assert_eq!(
        words(&mut snapshot, &plain, "x"),
        ["node(s) didn't match pod topology spread constraints (missing required label)"]
    );
    snapshot.place(&Arc::new(web("w1").build()), "a1");
    assert_eq!(fits_on(&mut snapshot, &plain), ["b1"]);
    assert_eq!(
        words(&mut snapshot, &plain, "a2"),
        ["node(s) didn't match pod topology spread constraints"]
    );
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({ "maxSkew": 2 })).build()),
        ["a1", "a2", "b1"]
    );
    let stranger = pod("s").spread(
        json!([{ "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "web" } } }]),
    );
    assert_eq!(
        fits_on(&mut snapshot, &stranger.build()),
        ["a1", "a2", "b1"],
        "it adds nothing to the skew"
    );
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({ "minDomains": 3 })).build()),
        ["b1"],
        "a zone that is still to come has no pod"
    );
    snapshot.place(&Arc::new(web("w2").build()), "b1");
    assert_eq!(fits_on(&mut snapshot, &plain), ["a1", "a2", "b1"]);
    assert_eq!(
        fits_on(&mut snapshot, &with(json!({ "minDomains": 3 })).build()),
        [""; 0]
    );
    snapshot.place(&Arc::new(web("w2").terminating().build()), "b1");
    assert_eq!(
        fits_on(&mut snapshot, &plain),
        ["b1"],
        "who is leaving does not count"
    );

    // Zone b is out of bounds for the pod: with the policy that ignores this, it counts all the same.
    let confined = |policy: &str| {
        with(json!({ "nodeAffinityPolicy": policy }))
            .required(json!([{ "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["a"] }] }]))
            .build()
    };
    assert_eq!(fits_on(&mut snapshot, &confined("Honor")), ["a1", "a2"]);
    assert_eq!(fits_on(&mut snapshot, &confined("Ignore")), [""; 0]);
    let mut closed = zoned("b1", "b");
    closed.spec.get_or_insert_default().taints = Some(vec![Taint {
        key: "k".into(),
        effect: "NoSchedule".into(),
        ..Taint::default()
    }]);
    snapshot.upsert_node(&closed);
    assert_eq!(fits_on(&mut snapshot, &plain), [""; 0]);
    assert_eq!(
        fits_on(
            &mut snapshot,
            &with(json!({ "nodeTaintsPolicy": "Honor" })).build()
        ),
        ["a1", "a2"]
    );
}

#[test]
fn a_claim_for_one_pod_alone() {
    let mut snapshot = zones();
    snapshot.place(&Arc::new(pod("a").priority(1).claim("c").build()), "a1");
    let mut claims = Volumes::default();
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": "c", "namespace": "default" },
        "spec": { "volumeName": "v", "accessModes": ["ReadWriteOncePod"] }, "status": { "phase": "Bound" },
    }))
    .unwrap();
    let key = crate::informer::ObjectKey::new("default", "c");
    claims.set_claim(key, Some(Arc::new(claim.into())));
    claims.set_volume("v", Some(Arc::default()));
    let other = pod("b").claim("c").build();
    let plan = snapshot.plan(&other);
    let volumes = claims.plan(&other).unwrap();
    let node = snapshot.find_node("b1").unwrap();
    let refused = |snapshot: &Snapshot| Checks::new(snapshot, &other, &plan, &volumes).rejections(node);
    assert_eq!(refused(&snapshot), [Rejection::ClaimInUse]);
    snapshot.unplace("a");
    assert_eq!(refused(&snapshot), []);
}

// ------ The filters against a model that counts pods one by one.

#[derive(Debug, Clone)]
struct Case {
    nodes: Vec<Option<u8>>,
    placed: Vec<(u8, u8, u8)>,
    app: u8,
    wish: u8,
    skew: i32,
}

fn case() -> impl Strategy<Value = Case> {
    (
        prop::collection::vec(prop::option::of(0u8..3), 1..6),
        prop::collection::vec((0u8..6, 0u8..3, 0u8..4), 0..12),
        0u8..3,
        0u8..4,
        1i32..3,
    )
        .prop_map(|(nodes, placed, app, wish, skew)| Case {
            nodes,
            placed,
            app,
            wish,
            skew,
        })
}

/// A pod with label `app`, and a wish about pods of the next app: 0 none, 1 near, 2 away, 3 spread among its own.
fn wishful(name: &str, app: u8, wish: u8, skew: i32) -> PodInfo {
    let next = format!("app{}", (app + 1) % 3);
    let own = format!("app{app}");
    let pod = pod(name).label("app", &own);
    match wish {
        1 => pod.near(json!([term(&next)])),
        2 => pod.away(json!([term(&next)])),
        3 => pod.spread(
            json!([{ "maxSkew": skew, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": { "matchLabels": { "app": own } } }]),
        ),
        _ => pod,
    }
    .build()
}

fn model(case: &Case, node: usize) -> Option<Rejection> {
    let zone = |node: usize| case.nodes[node];
    let placed: Vec<(u8, u8, usize)> = case
        .placed
        .iter()
        .map(|(app, wish, at)| (*app % 3, *wish, usize::from(*at) % case.nodes.len()))
        .collect();
    let here = zone(node);
    let in_zone = |app: u8, z: u8| {
        placed
            .iter()
            .filter(|(a, _, at)| *a == app && zone(*at) == Some(z))
            .map(|_| 1i64)
            .sum::<i64>()
    };
    if case.wish == 3 {
        let Some(here) = here else {
            return Some(Rejection::SpreadLabel);
        };
        let zones: std::collections::BTreeSet<u8> = case.nodes.iter().flatten().copied().collect();
        let least = zones.iter().map(|z| in_zone(case.app, *z)).min().unwrap_or(0);
        if in_zone(case.app, here) + 1 - least > i64::from(case.skew) {
            return Some(Rejection::Spread);
        }
    }
    let next = (case.app + 1) % 3;
    if case.wish == 1 && here.is_none_or(|here| in_zone(next, here) == 0) {
        return Some(Rejection::PodAffinity);
    }
    if case.wish == 2 && here.is_some_and(|here| in_zone(next, here) > 0) {
        return Some(Rejection::PodAntiAffinity);
    }
    let unwanted = placed.iter().any(|(app, wish, at)| {
        *wish == 2 && (app + 1) % 3 == case.app && here.is_some() && zone(*at) == here
    });
    unwanted.then_some(Rejection::ExistingAntiAffinity)
}

proptest! {
    #[test]
    fn filters_agree_with_counting_one_by_one(case in case(), plan_first in any::<bool>()) {
        let mut snapshot = Snapshot::default();
        for (i, zone) in case.nodes.iter().enumerate() {
            let name = format!("n{i}");
            let made = zone.map_or_else(|| node(&name, 64), |zone| zoned(&name, &zone.to_string()));
            snapshot.upsert_node(&made);
        }
        let pod = wishful("p", case.app, case.wish, case.skew);
        // Counts that are kept up and counts that are made afresh have to be the same.
        if plan_first {
            snapshot.plan(&pod);
        }
        for (i, (app, wish, at)) in case.placed.iter().enumerate() {
            let at = usize::from(*at) % case.nodes.len();
            snapshot.place(&Arc::new(wishful(&format!("p{i}"), app % 3, *wish, 1)), &format!("n{at}"));
        }
        for i in 0..case.nodes.len() {
            let expected: Vec<Rejection> = model(&case, i).into_iter().collect();
            prop_assert_eq!(why(&mut snapshot, &pod, &format!("n{i}")), expected, "node {}", i);
        }
    }
}
