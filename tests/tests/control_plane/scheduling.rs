//! Where pods go, and who has to leave for whom: Kubernetes' own scheduling conformance tests, with simulated nodes.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::{World, by_node, deployment, eventually, is_ready, on, pod_template};

/// A resource that nothing but these tests asks for.
const FAKE: &str = "example.com/fakecpu";

/// Nodes with so much of the resource.
async fn world(nodes: &[&str], amount: i64) -> Result<World> {
    let world = World::start().await?;
    world.join(nodes).await?;
    let api: Api<Node> = Api::all(world.client.clone());
    for name in nodes {
        let amounts = json!({ FAKE: amount.to_string() });
        let status = json!({ "status": { "capacity": amounts, "allocatable": amounts } });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status))
            .await?;
    }
    Ok(world)
}

/// A pod that asks for an amount of the resource, with more in its spec.
fn pod(name: &str, amount: i64, more: &Value) -> Value {
    let mut pod = pod_template(name, "img:1");
    pod["metadata"]["name"] = json!(name);
    if amount > 0 {
        let amounts = json!({ FAKE: amount.to_string() });
        pod["spec"]["containers"][0]["resources"] = json!({ "requests": amounts, "limits": amounts });
    }
    for (key, value) in more.as_object().into_iter().flatten() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn node_of(pod: &Pod) -> String {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.clone())
        .unwrap_or_default()
}

/// Waits until a pod runs; its node.
async fn runs(world: &World, name: &str) -> Result<String> {
    let api = world.api::<Pod>();
    eventually(&format!("{name} to run"), || async {
        let pod = api.get(name).await.ok()?;
        is_ready(&pod).then(|| node_of(&pod))
    })
    .await
}

/// Waits until a pod is refused; why.
async fn refused(world: &World, name: &str) -> Result<String> {
    eventually(&format!("{name} to be refused"), || async {
        world.events(name, "FailedScheduling").await.ok()?.pop()
    })
    .await
}

fn condition(pod: &Pod, kind: &str) -> Option<(String, String)> {
    let mut all = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    all.find(|condition| condition.type_ == kind).map(|found| {
        (
            found.reason.clone().unwrap_or_default(),
            found.message.clone().unwrap_or_default(),
        )
    })
}

async fn classes(world: &World, classes: &[(&str, i32)]) -> Result<()> {
    let api: Api<PriorityClass> = Api::all(world.client.clone());
    for (name, value) in classes {
        let class = serde_json::from_value(json!({ "metadata": { "name": name }, "value": value }))?;
        api.create(&PostParams::default(), &class).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_resource_limits_of_pods_that_are_allowed_to_run() -> Result<()> {
    let world = world(&["n1", "n2"], 1000).await?;
    for name in ["filler-1", "filler-2"] {
        world.create::<Pod>(pod(name, 700, &json!({}))).await?;
    }
    let used = [runs(&world, "filler-1").await?, runs(&world, "filler-2").await?];
    assert_ne!(used[0], used[1]);
    world
        .create::<Pod>(pod("additional-pod", 500, &json!({})))
        .await?;
    assert_eq!(
        refused(&world, "additional-pod").await?,
        "0/2 nodes are available: 2 Insufficient example.com/fakecpu. preemption: 0/2 nodes are available: 2 No \
         preemption victims found for incoming pod."
    );
    world.create::<Pod>(pod("small", 300, &json!({}))).await?;
    runs(&world, "small").await?;
    world
        .api::<Pod>()
        .delete("filler-1", &DeleteParams::default())
        .await?;
    world
        .api::<Pod>()
        .delete("small", &DeleteParams::default())
        .await?;
    runs(&world, "additional-pod").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_that_node_selector_is_respected() -> Result<()> {
    let world = world(&["n1", "n2", "n3"], 1).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let selector = json!({ "nodeSelector": { "disk": "fast" } });
    world.create::<Pod>(pod("if-not-matching", 0, &selector)).await?;
    assert_eq!(
        refused(&world, "if-not-matching").await?,
        "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are \
         available: 3 Preemption is not helpful for scheduling."
    );
    let label = Patch::Merge(json!({ "metadata": { "labels": { "disk": "fast" } } }));
    nodes.patch("n2", &PatchParams::default(), &label).await?;
    assert_eq!(
        runs(&world, "if-not-matching").await?,
        "n2",
        "once there is such a node"
    );
    let affinity = json!({ "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "disk", "operator": "NotIn", "values": ["fast"] }],
            "matchFields": [{ "key": "metadata.name", "operator": "NotIn", "values": ["n1"] }] }] } } } });
    world.create::<Pod>(pod("if-matching", 0, &affinity)).await?;
    assert_eq!(runs(&world, "if-matching").await?, "n3");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_that_there_exists_conflict_between_pods_with_same_host_port_and_protocol_but_one_using_0_0_0_0_host_ip()
-> Result<()> {
    let world = world(&["n1"], 1).await?;
    let port = |ip: &str, protocol: &str| {
        json!({ "containers": [{ "name": "c", "image": "img:1", "ports": [{ "containerPort": 80, "hostPort": 54322,
            "protocol": protocol, "hostIP": ip }] }] })
    };
    world.create::<Pod>(pod("pod4", 0, &port("", "TCP"))).await?;
    runs(&world, "pod4").await?;
    world
        .create::<Pod>(pod("pod5", 0, &port("127.0.0.1", "TCP")))
        .await?;
    let why = refused(&world, "pod5").await?;
    assert!(
        why.starts_with(
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        ),
        "{why}"
    );
    world
        .create::<Pod>(pod("other-protocol", 0, &port("127.0.0.1", "UDP")))
        .await?;
    runs(&world, "other-protocol").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_basic_preemption_works() -> Result<()> {
    let world = world(&["n1", "n2"], 5).await?;
    classes(&world, &[("low", 1), ("medium", 100), ("high", 1000)]).await?;
    let with = |class: &str| json!({ "priorityClassName": class });
    world.create::<Pod>(pod("pod0-low", 3, &with("low"))).await?;
    let place = runs(&world, "pod0-low").await?;
    world
        .create::<Pod>(pod("pod1-medium", 3, &with("medium")))
        .await?;
    runs(&world, "pod1-medium").await?;
    let meek = json!({ "priorityClassName": "high", "preemptionPolicy": "Never" });
    let refusal = world.create::<Pod>(pod("meek", 3, &meek)).await.unwrap_err();
    assert!(
        format!("{refusal:#}").contains("the string value of PreemptionPolicy (Never) must not be provided")
    );

    world
        .create::<Pod>(pod("preemptor-pod", 3, &with("high")))
        .await?;
    assert_eq!(runs(&world, "preemptor-pod").await?, place);
    let api = world.api::<Pod>();
    assert!(
        api.get_opt("pod0-low").await?.is_none(),
        "the least important had to leave"
    );
    assert!(
        api.get("pod1-medium")
            .await?
            .metadata
            .deletion_timestamp
            .is_none()
    );
    let preemptor = api.get("preemptor-pod").await?;
    let told = format!(
        "Preempted by pod {} on node {place}",
        preemptor.metadata.uid.unwrap_or_default()
    );
    eventually("the victim's event", || async {
        (world.events("pod0-low", "Preempted").await.ok()? == [told.clone()]).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_lower_priority_pod_preemption_by_critical_pod() -> Result<()> {
    let world = world(&["n1"], 5).await?;
    classes(&world, &[("low", 1)]).await?;
    world
        .create::<Pod>(pod("low", 3, &json!({ "priorityClassName": "low" })))
        .await?;
    runs(&world, "low").await?;
    let system: Api<Pod> = Api::namespaced(world.client.clone(), "kube-system");
    let critical = pod(
        "critical-pod",
        3,
        &json!({ "priorityClassName": "system-cluster-critical" }),
    );
    system
        .create(&PostParams::default(), &serde_json::from_value(critical)?)
        .await?;
    let made = eventually("the critical pod to run", || async {
        system.get("critical-pod").await.ok().filter(is_ready)
    })
    .await?;
    assert_eq!(made.spec.and_then(|spec| spec.priority), Some(2_000_000_000));
    assert!(world.api::<Pod>().get_opt("low").await?.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn validates_pod_disruption_condition_is_added_to_the_preempted_pod() -> Result<()> {
    let world = world(&["n1"], 1).await?;
    classes(&world, &[("low", 1), ("high", 2)]).await?;
    let mut victim = pod("victim-pod", 1, &json!({ "priorityClassName": "low" }));
    victim["metadata"]["finalizers"] = json!(["example.com/test-finalizer"]);
    world.create::<Pod>(victim).await?;
    runs(&world, "victim-pod").await?;
    world
        .create::<Pod>(pod("preemptor-pod", 1, &json!({ "priorityClassName": "high" })))
        .await?;
    let api = world.api::<Pod>();
    let found = eventually("the condition", || async {
        let victim = api.get("victim-pod").await.ok()?;
        victim.metadata.deletion_timestamp.as_ref()?;
        condition(&victim, "DisruptionTarget")
    })
    .await?;
    let expected = (
        "PreemptionByScheduler".to_owned(),
        "default-scheduler: preempting to accommodate a higher priority pod".to_owned(),
    );
    assert_eq!(found, expected);
    eventually("the nomination", || async {
        let status = api.get("preemptor-pod").await.ok()?.status?;
        (status.nominated_node_name? == "n1").then_some(())
    })
    .await?;
    world
        .merge::<Pod>("victim-pod", json!({ "metadata": { "finalizers": null } }))
        .await?;
    runs(&world, "preemptor-pod").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_replica_sets_to_verify_preemption_running_path() -> Result<()> {
    let world = world(&["n1"], 1000).await?;
    classes(&world, &[("p1", 1), ("p2", 2), ("p3", 3), ("p4", 4)]).await?;
    for (name, class, replicas, amount) in [
        ("rs-pod1", "p1", 2, 200),
        ("rs-pod2", "p2", 1, 300),
        ("rs-pod3", "p3", 1, 300),
    ] {
        let mut template = pod(name, amount, &json!({ "priorityClassName": class }));
        template["metadata"] = json!({ "labels": { "app": name } });
        let set = json!({ "metadata": { "name": name }, "spec": { "replicas": replicas,
            "selector": { "matchLabels": { "app": name } }, "template": template } });
        world.create::<ReplicaSet>(set).await?;
        world.wait_ready(&format!("app={name}"), replicas).await?;
    }
    let before = world.pods("").await?;
    world
        .create::<Pod>(pod("rs-pod4", 350, &json!({ "priorityClassName": "p4" })))
        .await?;
    runs(&world, "rs-pod4").await?;
    let after = world.pods("").await?;
    let uids = |pods: &[Pod], app: &str| -> BTreeSet<String> {
        pods.iter()
            .filter(|pod| {
                pod.metadata
                    .labels
                    .as_ref()
                    .is_some_and(|labels| labels["app"] == app)
            })
            .filter_map(|pod| pod.metadata.uid.clone())
            .collect()
    };
    for spared in ["rs-pod2", "rs-pod3"] {
        assert_eq!(
            uids(&before, spared),
            uids(&after, spared),
            "{spared} was more important"
        );
    }
    assert!(
        uids(&before, "rs-pod1").is_disjoint(&uids(&after, "rs-pod1")),
        "both had to leave"
    );
    eventually("their successors to wait", || async {
        let pods = world.pods("app=rs-pod1").await.ok()?;
        let waiting =
            |pod: &Pod| condition(pod, "PodScheduled").is_some_and(|(reason, _)| reason == "Unschedulable");
        (pods.len() == 2 && pods.iter().all(waiting)).then_some(())
    })
    .await?;
    world
        .api::<Pod>()
        .delete("rs-pod4", &DeleteParams::default())
        .await?;
    world.wait_ready("app=rs-pod1", 2).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_priority_class_endpoints_can_be_operated_with_different_http_methods() -> Result<()> {
    let world = World::start().await?;
    let api: Api<PriorityClass> = Api::all(world.client.clone());
    let seeded = |class: PriorityClass| (class.metadata.name.unwrap_or_default(), class.value);
    let list = api.list(&ListParams::default()).await?;
    assert_eq!(
        list.items.into_iter().map(seeded).collect::<Vec<_>>(),
        [
            ("system-cluster-critical".to_owned(), 2_000_000_000),
            ("system-node-critical".to_owned(), 2_000_001_000)
        ]
    );
    classes(&world, &[("p1", 1), ("p2", 2)]).await?;
    let mut class = api.get("p1").await?;
    assert_eq!(class.preemption_policy.as_deref(), Some("PreemptLowerPriority"));
    class.description = Some("updated".into());
    class = api.replace("p1", &PostParams::default(), &class).await?;
    assert_eq!(class.description.as_deref(), Some("updated"));
    let patched = api
        .patch(
            "p2",
            &PatchParams::default(),
            &Patch::Merge(json!({ "description": "patched" })),
        )
        .await?;
    assert_eq!(patched.description.as_deref(), Some("patched"));
    class.value = 7;
    let refusal = api
        .replace("p1", &PostParams::default(), &class)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refusal.contains("value: Forbidden: may not be changed in an update."),
        "{refusal}"
    );
    let make = async |name: &str, value: i32, default: bool| {
        let class = json!({ "metadata": { "name": name }, "value": value, "globalDefault": default });
        let class: PriorityClass = serde_json::from_value(class)?;
        anyhow::Ok(
            api.create(&PostParams::default(), &class)
                .await
                .map(|_| ())
                .map_err(|error| error.to_string()),
        )
    };
    let refusal = make("system-mine", 1, false).await?.unwrap_err();
    assert!(
        refusal.contains("priority class names with 'system-' prefix are reserved for system use only"),
        "{refusal}"
    );
    let refusal = make("greedy", 1_000_000_001, false).await?.unwrap_err();
    assert!(
        refusal.contains("maximum allowed value of a user defined priority is 1000000000"),
        "{refusal}"
    );
    make("usual", 5, true).await?.unwrap();
    let refusal = make("second", 6, true).await?.unwrap_err();
    assert!(
        refusal.contains("PriorityClass usual is already marked as default. Only one default can exist"),
        "{refusal}"
    );

    let plain = world
        .create::<Pod>(pod("plain", 0, &json!({})))
        .await?
        .spec
        .unwrap_or_default();
    assert_eq!(
        (plain.priority, plain.priority_class_name.as_deref()),
        (Some(5), Some("usual"))
    );
    let refusal = world
        .create::<Pod>(pod("lost", 0, &json!({ "priorityClassName": "nope" })))
        .await
        .unwrap_err();
    let refusal = format!("{refusal:#}");
    assert!(
        refusal.contains("pods \"lost\" is forbidden: no PriorityClass with name nope was found"),
        "{refusal}"
    );
    api.delete("usual", &DeleteParams::default()).await?;
    let plain = world
        .create::<Pod>(pod("plain-2", 0, &json!({})))
        .await?
        .spec
        .unwrap_or_default();
    assert_eq!((plain.priority, plain.priority_class_name), (Some(0), None));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_keep_away_from_each_other_and_gated_ones_wait() -> Result<()> {
    let world = world(&["n1", "n2", "n3"], 1).await?;
    let mut lonely = deployment("lonely", 4, "img:1");
    lonely["spec"]["template"]["spec"]["affinity"] = json!({ "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{ "topologyKey": "kubernetes.io/hostname",
            "labelSelector": { "matchLabels": { "app": "lonely" } } }] } });
    world.create::<Deployment>(lonely).await?;
    let pods = world.wait_ready("app=lonely", 3).await?;
    assert_eq!(by_node(&pods).values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    let why = eventually("the fourth to be refused", || async {
        let pods = world.pods("app=lonely").await.ok()?;
        let (_, message) = condition(pods.iter().find(|pod| !is_ready(pod))?, "PodScheduled")?;
        Some(message)
    })
    .await?;
    assert_eq!(
        why,
        "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules. preemption: 0/3 nodes are \
         available: 3 No preemption victims found for incoming pod."
    );
    let gated = json!({ "schedulingGates": [{ "name": "example.com/ready" }] });
    let gated = world.create::<Pod>(pod("gated", 0, &gated)).await?;
    assert_eq!(
        condition(&gated, "PodScheduled"),
        Some((
            "SchedulingGated".to_owned(),
            "Scheduling is blocked due to non-empty scheduling gates".to_owned()
        ))
    );
    world
        .merge::<Pod>("gated", json!({ "spec": { "schedulingGates": [] } }))
        .await?;
    runs(&world, "gated").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_made_where_the_pod_can_run() -> Result<()> {
    let world = world(&["n1", "n2"], 1).await?;
    let classes: Api<StorageClass> = Api::all(world.client.clone());
    let class = json!({ "metadata": { "name": "slow" }, "provisioner": "example.com/by-hand",
        "volumeBindingMode": "WaitForFirstConsumer" });
    classes
        .create(&PostParams::default(), &serde_json::from_value(class)?)
        .await?;
    world.create::<Pod>(pod("filler", 1, &json!({}))).await?;
    let full = runs(&world, "filler").await?;
    let user = json!({ "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] });
    world.create::<Pod>(pod("user", 1, &user)).await?;
    let why = refused(&world, "user").await?;
    assert!(
        why.starts_with("0/2 nodes are available: persistentvolumeclaim \"data\" not found. preemption: 0/2"),
        "{why}"
    );
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "storageClassName": "slow",
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    world.create::<PersistentVolumeClaim>(claim).await?;
    let claims = world.api::<PersistentVolumeClaim>();
    let chosen = eventually("the node to be chosen", || async {
        let claim = claims.get("data").await.ok()?;
        claim
            .metadata
            .annotations?
            .remove("volume.kubernetes.io/selected-node")
    })
    .await?;
    assert_ne!(chosen, full);
    assert_eq!(
        node_of(&world.api::<Pod>().get("user").await?),
        "",
        "bound only when its volume is"
    );

    // What a provisioner and the binder do.
    let volumes: Api<PersistentVolume> = Api::all(world.client.clone());
    let uid = claims.get("data").await?.metadata.uid;
    let volume = json!({ "metadata": { "name": "made" }, "spec": { "storageClassName": "slow",
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/data" },
        "claimRef": { "namespace": "default", "name": "data", "uid": uid },
        "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions":
            [{ "key": "kubernetes.io/hostname", "operator": "In", "values": [chosen] }] }] } } } });
    volumes
        .create(&PostParams::default(), &serde_json::from_value(volume)?)
        .await?;
    let bound = json!({ "metadata": { "annotations": { "pv.kubernetes.io/bind-completed": "yes" } }, "spec": { "volumeName": "made" } });
    world.merge::<PersistentVolumeClaim>("data", bound).await?;
    assert_eq!(runs(&world, "user").await?, chosen);
    Ok(())
}

// ------ Taints that make pods leave.

async fn taint(world: &World, node: &str, taints: &Value) -> Result<()> {
    let api: Api<Node> = Api::all(world.client.clone());
    let patch = Patch::Merge(json!({ "spec": { "taints": taints } }));
    api.patch(node, &PatchParams::default(), &patch).await?;
    Ok(())
}

fn tolerating(seconds: i64) -> Value {
    json!({ "tolerations": [{ "key": "evict", "operator": "Equal", "value": "yes", "effect": "NoExecute",
        "tolerationSeconds": seconds }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_execute_taint_manager_removing_taint_cancels_eviction() -> Result<()> {
    let world = world(&["n1"], 1).await?;
    world.create::<Pod>(pod("patient", 0, &tolerating(3600))).await?;
    world.create::<Pod>(pod("impatient", 0, &json!({}))).await?;
    runs(&world, "patient").await?;
    runs(&world, "impatient").await?;
    taint(
        &world,
        "n1",
        &json!([{ "key": "evict", "value": "yes", "effect": "NoExecute" }]),
    )
    .await?;
    let api = world.api::<Pod>();
    eventually("who does not tolerate it to leave", || async {
        api.get_opt("impatient").await.ok()?.is_none().then_some(())
    })
    .await?;
    taint(&world, "n1", &json!(null)).await?;
    eventually("the eviction to be cancelled", || async {
        let told = world.events("patient", "TaintManagerEviction").await.ok()?;
        (told == ["Cancelling deletion of Pod default/patient"]).then_some(())
    })
    .await?;
    assert!(api.get("patient").await?.metadata.deletion_timestamp.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_execute_taint_manager_evicts_pods_with_min_toleration_seconds() -> Result<()> {
    let world = world(&["n1"], 1).await?;
    for (name, seconds) in [("short", 1), ("long", 3600)] {
        let mut pod = pod(name, 0, &tolerating(seconds));
        pod["metadata"]["finalizers"] = json!(["example.com/test-finalizer"]);
        world.create::<Pod>(pod).await?;
        runs(&world, name).await?;
    }
    taint(
        &world,
        "n1",
        &json!([{ "key": "evict", "value": "yes", "effect": "NoExecute" }]),
    )
    .await?;
    let api = world.api::<Pod>();
    let why = eventually("the first pod to leave", || async {
        let pod = api.get("short").await.ok()?;
        pod.metadata.deletion_timestamp.as_ref()?;
        condition(&pod, "DisruptionTarget")
    })
    .await?;
    assert_eq!(
        why,
        (
            "DeletionByTaintManager".to_owned(),
            "Taint manager: deleting due to NoExecute taint".to_owned()
        )
    );
    let long = api.get("long").await?;
    assert!(long.metadata.deletion_timestamp.is_none() && on(&long, "n1"));
    Ok(())
}
