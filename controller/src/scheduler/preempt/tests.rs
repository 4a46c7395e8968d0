use serde_json::json;

use super::*;
use crate::scheduler::decide::{Decision, Sampling, Scratch, decide};
use crate::scheduler::testing::{PodBuilder, node, pod};

/// A node and the pods on it.
type OnNode<'a> = (&'a str, &'a [(&'a str, i32, &'a str, u32)]);

/// Nodes with four cores and these pods: name, priority, CPU, start.
fn cluster(nodes: &[OnNode]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, pods) in nodes {
        snapshot.upsert_node(&node(name, 4));
        for (pod_name, priority, cpu, since) in *pods {
            let made = pod(pod_name)
                .priority(*priority)
                .cpu(cpu)
                .since(*since)
                .label("app", pod_name);
            snapshot.place(&Arc::new(made.build()), name);
        }
    }
    snapshot
}

fn ask(snapshot: &mut Snapshot, pod: &PodInfo, budgets: &Budgets) -> Preemption {
    let plan = snapshot.plan(pod);
    let volumes = VolumePlan::default();
    let decision = decide(
        snapshot,
        pod,
        &plan,
        &volumes,
        Sampling::default(),
        &mut 0,
        &mut Scratch::default(),
    );
    let Decision::Nowhere(nowhere) = decision else {
        panic!("it fits")
    };
    let before: Vec<String> = world(snapshot);
    let version = snapshot.version();
    let answer = preempt(snapshot, pod, &plan, &volumes, &nowhere, budgets, 0);
    assert_eq!(world(snapshot), before, "asking changes nothing");
    assert_eq!(snapshot.version(), version);
    answer
}

fn world(snapshot: &Snapshot) -> Vec<String> {
    let mut all = Vec::new();
    for &index in snapshot.order() {
        let node = snapshot.node(index);
        let mut pods: Vec<&str> = node.pods.iter().map(|placed| placed.pod.uid()).collect();
        pods.sort_unstable();
        all.push(format!("{} {pods:?} {:?}", node.name, node.requested));
    }
    all
}

fn victims(snapshot: &mut Snapshot, pod: PodBuilder, budgets: &Budgets) -> (String, Vec<String>) {
    match ask(snapshot, &pod.build(), budgets) {
        Preemption::Victims { node, pods } => (
            snapshot.node(node).name.to_string(),
            pods.iter().map(|pod| pod.uid().to_owned()).collect(),
        ),
        other => panic!("{other:?}"),
    }
}

fn vip(cpu: &str) -> PodBuilder {
    pod("vip").priority(100).cpu(cpu)
}

fn names(all: &[&str]) -> Vec<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn as_few_as_possible_and_the_least_important() {
    let mut snapshot = cluster(&[(
        "n",
        &[
            ("a", 1, "1", 0),
            ("b", 2, "1", 0),
            ("c", 3, "1", 0),
            ("d", 4, "1", 0),
        ],
    )]);
    let none = Budgets::new();
    assert_eq!(
        victims(&mut snapshot, vip("1"), &none),
        ("n".into(), names(&["a"]))
    );
    assert_eq!(
        victims(&mut snapshot, vip("2"), &none),
        ("n".into(), names(&["b", "a"]))
    );
    let equal = ask(&mut snapshot, &pod("p").priority(1).cpu("1").build(), &none);
    let Preemption::Useless(why) = equal else {
        panic!("{equal:?}")
    };
    assert_eq!(
        why,
        "0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    let middling = ask(&mut snapshot, &pod("p").priority(2).cpu("2").build(), &none);
    let Preemption::Useless(why) = middling else {
        panic!("{middling:?}")
    };
    assert_eq!(
        why, "0/1 nodes are available: 1 Insufficient cpu.",
        "its victim would leave too little"
    );
}

#[test]
fn the_node_where_it_hurts_least() {
    let none = Budgets::new();
    let chosen = |nodes: &[OnNode]| victims(&mut cluster(nodes), vip("4"), &none).0;
    assert_eq!(
        chosen(&[
            ("n0", &[("a", 5, "4", 0)]),
            ("n1", &[("b", 1, "2", 0), ("c", 1, "2", 0)])
        ]),
        "n1",
        "by priority"
    );
    assert_eq!(
        chosen(&[
            ("n0", &[("a", 5, "2", 0), ("d", 5, "2", 0)]),
            ("n1", &[("b", 5, "2", 0), ("c", 1, "2", 0)])
        ]),
        "n1",
        "by their sum"
    );
    assert_eq!(
        chosen(&[
            ("n0", &[("a", 0, "2", 0), ("b", 0, "2", 0)]),
            ("n1", &[("c", 0, "4", 0)])
        ]),
        "n1",
        "by number"
    );
    assert_eq!(
        chosen(&[("n0", &[("a", 0, "4", 10)]), ("n1", &[("b", 0, "4", 20)])]),
        "n1",
        "the youngest"
    );
}

#[test]
fn budgets_are_kept_where_they_can_be() {
    let budget = |allowed: i32| {
        let view: PodDisruptionBudget = serde_json::from_value(json!({
            "metadata": { "name": "b", "namespace": "default" },
            "spec": { "selector": { "matchLabels": { "app": "a" } } },
            "status": { "disruptionsAllowed": allowed, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1 },
        }))
        .unwrap();
        let view = Arc::new(BudgetView::from(view));
        Budgets::from([("default".to_owned(), [("b".to_owned(), view)].into())])
    };
    let nodes: &[OnNode] = &[("n0", &[("a", 0, "4", 0)]), ("n1", &[("b", 50, "4", 0)])];
    assert_eq!(victims(&mut cluster(nodes), vip("4"), &budget(0)).0, "n1");
    assert_eq!(victims(&mut cluster(nodes), vip("4"), &budget(1)).0, "n0");
    let together: &[OnNode] = &[("n", &[("a", 0, "2", 0), ("b", 50, "2", 0)])];
    assert_eq!(
        victims(&mut cluster(together), vip("2"), &budget(0)).1,
        ["b"],
        "the protected one stays"
    );
    assert_eq!(victims(&mut cluster(together), vip("2"), &budget(1)).1, ["a"]);
    let only: &[OnNode] = &[("n", &[("a", 0, "4", 0)])];
    assert_eq!(
        victims(&mut cluster(only), vip("4"), &budget(0)).1,
        ["a"],
        "rather that than not run"
    );
}

#[test]
fn constraints_among_pods_are_met_by_preemption_too() {
    let mut snapshot = cluster(&[("n", &[("a", 0, "1", 0), ("b", 0, "1", 0)])]);
    let away = json!([{ "topologyKey": "kubernetes.io/hostname", "labelSelector": { "matchLabels": { "app": "b" } } }]);
    assert_eq!(
        victims(&mut snapshot, vip("1").away(away), &Budgets::new()).1,
        ["b"]
    );
    let port = pod("web").priority(1).host_port(80, "TCP", "");
    snapshot.place(&Arc::new(port.clone().build()), "n");
    assert_eq!(
        victims(&mut snapshot, vip("1").host_port(80, "TCP", ""), &Budgets::new()).1,
        ["web"]
    );
}

#[test]
fn not_all_may_preempt() {
    let mut snapshot = cluster(&[("n", &[("a", 0, "4", 0)])]);
    let meek = vip("1").spec("preemptionPolicy", json!("Never")).build();
    let answer = ask(&mut snapshot, &meek, &Budgets::new());
    assert!(
        matches!(answer, Preemption::Useless(why) if why == "not eligible due to preemptionPolicy=Never.")
    );
    let pod_ = Arc::new(vip("1").build());
    snapshot.nominate(&pod_, "n");
    snapshot.place(&Arc::new(pod("a").cpu("4").terminating().build()), "n");
    let answer = ask(&mut snapshot, &pod_, &Budgets::new());
    assert!(
        matches!(answer, Preemption::Waiting(why) if why == "not eligible due to a terminating pod on the nominated node.")
    );
}

#[test]
fn where_it_cannot_help_is_not_tried() {
    let mut snapshot = cluster(&[("n0", &[("a", 0, "4", 0)]), ("n1", &[("b", 100, "4", 0)])]);
    let mut closed = node("n0", 4);
    closed.spec.get_or_insert_default().unschedulable = Some(true);
    snapshot.upsert_node(&closed);
    let answer = ask(&mut snapshot, &vip("2").build(), &Budgets::new());
    let Preemption::Useless(why) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(
        why,
        "0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling."
    );
}
