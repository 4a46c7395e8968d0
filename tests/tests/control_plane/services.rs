//! Where the pods of Services are: Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use anyhow::Result;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::world::{World, deployment, eventually, pod_template};

fn service(name: &str, spec: Value) -> Value {
    let mut all =
        json!({"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

async fn slices(world: &World, service: &str) -> Option<Vec<EndpointSlice>> {
    let selector = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    Some(world.api::<EndpointSlice>().list(&selector).await.ok()?.items)
}

/// Addresses in the slices of a Service of one type, with whether they are ready.
async fn members(world: &World, service: &str, kind: &str) -> Option<BTreeSet<(String, bool)>> {
    let slices = slices(world, service).await?;
    let endpoints = slices.iter().filter(|slice| slice.address_type == kind);
    Some(
        endpoints
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| {
                let ready = endpoint
                    .conditions
                    .as_ref()
                    .and_then(|conditions| conditions.ready);
                (endpoint.addresses[0].clone(), ready == Some(true))
            })
            .collect(),
    )
}

/// Ready and other addresses in the Endpoints of a Service.
async fn subsets(world: &World, service: &str) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let endpoints = world.api::<Endpoints>().get(service).await.ok()?;
    let subsets = endpoints.subsets.unwrap_or_default();
    let ips = |list: &[k8s_openapi::api::core::v1::EndpointAddress]| -> Vec<String> {
        list.iter().map(|address| address.ip.clone()).collect()
    };
    let all = |ready: bool| {
        let lists = subsets.iter().filter_map(|subset| {
            if ready {
                subset.addresses.as_deref()
            } else {
                subset.not_ready_addresses.as_deref()
            }
        });
        lists.flat_map(ips).collect()
    };
    Some((all(true), all(false)))
}

fn addresses(pods: &[Pod], index: usize) -> BTreeSet<String> {
    pods.iter()
        .filter_map(|pod| Some(pod.status.as_ref()?.pod_ips.as_ref()?[index].ip.clone()))
        .collect()
}

/// "EndpointSlice should create Endpoints and EndpointSlices for Pods matching a Service", and follow them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_follow_the_pods_of_a_service() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    world
        .create::<Service>(service("web", json!({"ipFamilyPolicy": "RequireDualStack"})))
        .await?;
    // "should create and delete EndpointSlices for a Service with a selector that matches no pods".
    eventually("an empty slice for each family", || async {
        let slices = slices(&world, "web").await?;
        let empty = slices.len() == 2 && slices.iter().all(|slice| slice.endpoints.is_empty());
        (empty && subsets(&world, "web").await?.0.is_empty()).then_some(())
    })
    .await?;

    // More than one slice takes: 100 are the limit.
    world
        .create::<Deployment>(deployment("web", 105, "img:1"))
        .await?;
    eventually("every pod to be an endpoint", || async {
        // Read each time: on a busy machine a node may be missed for a moment, and its pods are replaced.
        let pods = world.ready("app=web").await.ok()?;
        let (four, six) = (addresses(&pods, 0), addresses(&pods, 1));
        let ready = |set: &BTreeSet<String>| set.iter().map(|ip| (ip.clone(), true)).collect::<BTreeSet<_>>();
        let same = members(&world, "web", "IPv4").await? == ready(&four)
            && members(&world, "web", "IPv6").await? == ready(&six)
            && subsets(&world, "web").await? == (four, BTreeSet::new());
        (same && pods.len() == 105).then_some(())
    })
    .await?;
    let made = slices(&world, "web").await.unwrap();
    assert!(made.iter().all(|slice| slice.endpoints.len() <= 100));
    let slice = &made[0];
    let labels = slice.metadata.labels.as_ref().unwrap();
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
    assert_eq!(
        slice.metadata.owner_references.as_ref().unwrap()[0].kind,
        "Service"
    );
    let told = made
        .iter()
        .filter_map(|slice| slice.metadata.annotations.as_ref());
    assert!(
        told.clone()
            .any(|all| all.contains_key("endpoints.kubernetes.io/last-change-trigger-time"))
    );
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let endpoint = &slice.endpoints[0];
    assert_eq!(endpoint.target_ref.as_ref().unwrap().kind.as_deref(), Some("Pod"));
    assert!(endpoint.node_name.is_some());

    world
        .merge::<Deployment>("web", json!({"spec": {"replicas": 2}}))
        .await?;
    eventually("the others to be gone", || async {
        let pods = world.ready("app=web").await.ok().filter(|pods| pods.len() == 2)?;
        let four = addresses(&pods, 0);
        let left: BTreeSet<String> = members(&world, "web", "IPv4")
            .await?
            .into_iter()
            .map(|(ip, _)| ip)
            .collect();
        (left == four && subsets(&world, "web").await?.0 == four).then_some(())
    })
    .await?;

    world
        .api::<Service>()
        .delete("web", &DeleteParams::default())
        .await?;
    eventually("nothing to be left", || async {
        let gone = world.api::<Endpoints>().get_opt("web").await.ok()?.is_none();
        (gone && slices(&world, "web").await?.is_empty()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_are_not_ready_are_endpoints_only_where_asked_for() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    world.create::<Service>(service("plain", json!({}))).await?;
    world
        .create::<Service>(service(
            "early",
            json!({"clusterIP": "None", "publishNotReadyAddresses": true}),
        ))
        .await?;
    let mut pod = pod_template("web", "img:1");
    pod["metadata"]["name"] = json!("a");
    pod["metadata"]["annotations"] = json!({"test/never-ready": ""});
    let made = world.create::<Pod>(pod).await?;
    let status = json!({"metadata": {"uid": made.metadata.uid}, "status": {"phase": "Running",
        "podIP": "10.244.7.7", "podIPs": [{"ip": "10.244.7.7"}]}});
    let patch = kube::api::Patch::Merge(status);
    world
        .api::<Pod>()
        .patch_status("a", &kube::api::PatchParams::default(), &patch)
        .await?;
    let ip = || BTreeSet::from(["10.244.7.7".to_owned()]);
    eventually("one Service to list it and one not", || async {
        let right = subsets(&world, "plain").await? == (BTreeSet::new(), ip())
            && subsets(&world, "early").await? == (ip(), BTreeSet::new())
            && members(&world, "plain", "IPv4").await? == BTreeSet::from([("10.244.7.7".to_owned(), false)])
            && members(&world, "early", "IPv4").await? == BTreeSet::from([("10.244.7.7".to_owned(), true)]);
        right.then_some(())
    })
    .await
}

/// "EndpointSliceMirroring should mirror a custom Endpoints resource through create update and delete".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_written_by_hand_are_mirrored() -> Result<()> {
    let world = World::start().await?;
    world
        .create::<Service>(service("custom", json!({"selector": null})))
        .await?;
    let endpoints = |ip: &str| -> Endpoints {
        serde_json::from_value(json!({"metadata": {"name": "custom", "labels": {"mine": "yes"}},
            "subsets": [{"addresses": [{"ip": ip}], "ports": [{"name": "http", "port": 80}]}]}))
        .unwrap()
    };
    let api = world.api::<Endpoints>();
    api.create(&PostParams::default(), &endpoints("10.1.2.3")).await?;
    let only = |ip: &str| BTreeSet::from([(ip.to_owned(), true)]);
    eventually("a mirror", || async {
        (members(&world, "custom", "IPv4").await? == only("10.1.2.3")).then_some(())
    })
    .await?;
    let made = slices(&world, "custom").await.unwrap().remove(0);
    let labels = made.metadata.labels.unwrap();
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        "endpointslicemirroring-controller.k8s.io"
    );
    assert_eq!(labels["mine"], "yes");
    api.replace("custom", &PostParams::default(), &endpoints("10.2.3.4"))
        .await?;
    eventually("its change", || async {
        (members(&world, "custom", "IPv4").await? == only("10.2.3.4")).then_some(())
    })
    .await?;
    let changed = slices(&world, "custom").await.unwrap().remove(0);
    assert_eq!(
        changed.metadata.uid, made.metadata.uid,
        "one slice lived through both"
    );
    api.delete("custom", &DeleteParams::default()).await?;
    eventually("its end", || async {
        slices(&world, "custom").await?.is_empty().then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_of_addresses_outlives_the_services_that_need_it() -> Result<()> {
    let world = World::start().await?;
    let ranges: Api<ServiceCIDR> = Api::all(world.client.clone());
    let range = json!({"metadata": {"name": "more"}, "spec": {"cidrs": ["10.97.0.0/24"]}});
    ranges
        .create(&PostParams::default(), &serde_json::from_value(range)?)
        .await?;
    let ready = |wanted: &'static str| {
        let ranges = ranges.clone();
        async move {
            let conditions = ranges.get("more").await.ok()?.status?.conditions?;
            (conditions[0].type_ == "Ready" && conditions[0].status == wanted).then_some(())
        }
    };
    eventually("it to be ready", || ready("True")).await?;
    world
        .create::<Service>(service("web", json!({"clusterIP": "10.97.0.9"})))
        .await?;
    ranges.delete("more", &DeleteParams::default()).await?;
    eventually("it to give out no more", || ready("False")).await?;
    let refused = world
        .create::<Service>(service("late", json!({"clusterIP": "10.97.0.10"})))
        .await;
    assert!(
        refused
            .unwrap_err()
            .to_string()
            .contains("does not match the current range")
    );
    world
        .api::<Service>()
        .delete("web", &DeleteParams::default())
        .await?;
    eventually("it to be gone", || async {
        ranges.get_opt("more").await.ok()?.is_none().then_some(())
    })
    .await
}

/// Traffic is turned from one pod to another by their labels alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_joins_and_leaves_a_service_by_its_labels() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let mut template = pod_template("web", "img:1");
    template["metadata"]["name"] = json!("solo");
    world.create::<Pod>(template).await?;
    world.create::<Service>(service("web", json!({}))).await?;
    let there = |wanted: usize| {
        let world = &world;
        async move {
            eventually(&format!("{wanted} endpoints"), || async {
                let slices = members(world, "web", "IPv4").await?.len();
                let legacy = subsets(world, "web").await?.0.len();
                ((slices, legacy) == (wanted, wanted)).then_some(())
            })
            .await
        }
    };
    there(1).await?;
    for (app, wanted) in [("apart", 0), ("web", 1)] {
        world
            .merge::<Pod>("solo", json!({"metadata": {"labels": {"app": app}}}))
            .await?;
        there(wanted).await?;
    }
    Ok(())
}
