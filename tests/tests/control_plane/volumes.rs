//! Claims and volumes: how they come together, and how they end.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::world::{World, eventually, pod_template};

/// The agents' half of local-path volumes is played by the test.
const DIRECTORY: &str = "weft.dev/local-path";
const REMOVE: &str = "weft.dev/local-path-remove";
const REMOVED: &str = "weft.dev/local-path-removed";

fn claim(name: &str, spec: Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"metadata": {"name": name}, "spec": all})
}

fn volumes(world: &World) -> Api<PersistentVolume> {
    Api::all(world.client.clone())
}

async fn create_volume(world: &World, name: &str, size: &str) -> Result<()> {
    let volume = json!({"metadata": {"name": name}, "spec": {
        "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual",
        "hostPath": {"path": format!("/data/{name}")},
    }});
    volumes(world)
        .create(&PostParams::default(), &serde_json::from_value(volume)?)
        .await?;
    Ok(())
}

async fn volume_phase(world: &World, name: &str) -> Option<String> {
    volumes(world).get(name).await.ok()?.status?.phase
}

async fn bound_to(world: &World, name: &str) -> Option<String> {
    let claim = world.api::<PersistentVolumeClaim>().get(name).await.ok()?;
    let bound = claim.status?.phase.as_deref() == Some("Bound");
    claim.spec?.volume_name.filter(|_| bound)
}

fn pod(name: &str, claim: &str) -> Value {
    let mut pod = pod_template("data", "img:1");
    pod["metadata"]["name"] = json!(name);
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_get_the_smallest_volume_that_suits_and_keep_it_while_it_is_used() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let claims = world.api::<PersistentVolumeClaim>();
    create_volume(&world, "large", "5Gi").await?;
    create_volume(&world, "small", "500Mi").await?;
    world
        .create::<PersistentVolumeClaim>(claim("data", json!({"storageClassName": "manual"})))
        .await?;
    eventually("the claim to be bound", || async {
        (bound_to(&world, "data").await? == "large").then_some(())
    })
    .await?;
    eventually("the volume to say so", || async {
        (volume_phase(&world, "large").await? == "Bound").then_some(())
    })
    .await?;
    let status = claims.get("data").await?.status.unwrap();
    assert_eq!(status.capacity.unwrap()["storage"].0, "5Gi");
    assert_eq!(volume_phase(&world, "small").await.as_deref(), Some("Available"));

    // Too large for what is left: it waits, and a volume that comes is taken at once.
    world
        .create::<PersistentVolumeClaim>(claim("more", json!({"storageClassName": "manual"})))
        .await?;
    let events = || async {
        let events = world.events("more", "ProvisioningFailed").await.ok()?;
        events
            .iter()
            .any(|text| text == "storageclass.storage.k8s.io \"manual\" not found")
            .then_some(())
    };
    eventually("the reason to be told", events).await?;
    create_volume(&world, "late", "1Gi").await?;
    eventually("the volume that came", || async {
        (bound_to(&world, "more").await? == "late").then_some(())
    })
    .await?;

    // What a pod uses is not deleted under it.
    world.create::<Pod>(pod("user", "data")).await?;
    world.wait_ready("app=data", 1).await?;
    claims.delete("data", &DeleteParams::default()).await?;
    volumes(&world).delete("large", &DeleteParams::default()).await?;
    world
        .api::<Pod>()
        .delete("user", &DeleteParams::default())
        .await?;
    eventually("claim and volume to end with their user", || async {
        let gone = claims.get_opt("data").await.ok()?.is_none();
        (gone && volumes(&world).get_opt("large").await.ok()?.is_none()).then_some(())
    })
    .await?;

    // Retained: nobody else gets what was written.
    claims.delete("more", &DeleteParams::default()).await?;
    eventually("the volume to be released", || async {
        (volume_phase(&world, "late").await? == "Released").then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_is_made_where_the_pod_is_and_goes_with_its_claim() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1", "n2"]).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    for node in ["n1", "n2"] {
        let patch = json!({"metadata": {"annotations": {DIRECTORY: format!("/state/{node}")}}});
        nodes
            .patch(node, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
    }
    let claims = world.api::<PersistentVolumeClaim>();
    let made = world
        .create::<PersistentVolumeClaim>(claim("data", json!({})))
        .await?;
    assert_eq!(
        made.spec.unwrap().storage_class_name.as_deref(),
        Some("local-path"),
        "the default class"
    );
    assert_eq!(
        made.metadata.finalizers,
        Some(vec!["kubernetes.io/pvc-protection".to_owned()])
    );
    eventually("the claim to wait", || async {
        let events = world.events("data", "WaitForFirstConsumer").await.ok()?;
        (!events.is_empty()).then_some(())
    })
    .await?;
    world.create::<Pod>(pod("user", "data")).await?;
    let volume = eventually("a volume", || async { bound_to(&world, "data").await }).await?;
    let pods = world.wait_ready("app=data", 1).await?;
    let node = pods[0].spec.as_ref().unwrap().node_name.clone().unwrap();
    let found = volumes(&world).get(&volume).await?;
    let spec = found.spec.unwrap();
    assert_eq!(volume, format!("pvc-{}", made.metadata.uid.unwrap()));
    assert_eq!(spec.local.unwrap().path, format!("/state/{node}/{volume}"));
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    let terms = json!(spec.node_affinity.unwrap().required.unwrap().node_selector_terms);
    assert_eq!(terms[0]["matchExpressions"][0]["values"], json!([node]));

    world
        .api::<Pod>()
        .delete("user", &DeleteParams::default())
        .await?;
    claims.delete("data", &DeleteParams::default()).await?;
    let annotation = |key: &'static str| {
        let (nodes, node) = (nodes.clone(), node.clone());
        async move {
            let found = nodes.get(&node).await.ok()?;
            Some(
                found
                    .metadata
                    .annotations
                    .unwrap_or_default()
                    .remove(key)
                    .unwrap_or_default(),
            )
        }
    };
    eventually("the node to be asked", || async {
        (annotation(REMOVE).await? == volume).then_some(())
    })
    .await?;
    assert!(
        volumes(&world).get_opt(&volume).await?.is_some(),
        "it stays until its directory is gone"
    );
    let patch = json!({"metadata": {"annotations": {REMOVED: volume}}});
    nodes
        .patch(&node, &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    eventually("the volume to be gone", || async {
        let gone = volumes(&world).get_opt(&volume).await.ok()?.is_none();
        (gone && annotation(REMOVE).await?.is_empty()).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_one_pod_alone_comes_and_goes_with_it() -> Result<()> {
    let world = World::start().await?;
    world.join(&["n1"]).await?;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let patch = json!({"metadata": {"annotations": {DIRECTORY: "/state/n1"}}});
    nodes
        .patch("n1", &PatchParams::default(), &Patch::Merge(patch))
        .await?;
    let claims = world.api::<PersistentVolumeClaim>();
    let own = |name: &str| {
        let mut pod = pod(name, "");
        pod["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {
            "metadata": {"labels": {"of": "pod"}}, "spec": claim("", json!({}))["spec"],
        }}}]);
        pod
    };
    // A claim of somebody else that has the name is not touched.
    world
        .create::<PersistentVolumeClaim>(claim("late-data", json!({})))
        .await?;
    world.create::<Pod>(own("late")).await?;
    eventually("it to be said whose the claim is", || async {
        let events = world.events("late", "FailedBinding").await.ok()?;
        let told = "ephemeral volume data: PVC default/late-data was not created for pod default/late (pod is not the owner)";
        events.iter().any(|event| event == told).then_some(())
    })
    .await?;
    let foreign = claims.get("late-data").await?;
    assert_eq!(foreign.metadata.owner_references, None);

    let made = world.create::<Pod>(own("quick")).await?;
    eventually("the volume to be bound", || async {
        bound_to(&world, "quick-data").await
    })
    .await?;
    let found = claims.get("quick-data").await?;
    assert_eq!(found.metadata.labels.unwrap()["of"], "pod");
    let owner = &found.metadata.owner_references.unwrap()[0];
    assert_eq!(
        (owner.kind.as_str(), Some(&owner.uid), owner.controller),
        ("Pod", made.metadata.uid.as_ref(), Some(true))
    );
    eventually("the pod to run", || async {
        let pod = world.api::<Pod>().get("quick").await.ok()?;
        crate::world::is_ready(&pod).then_some(())
    })
    .await?;
    world
        .api::<Pod>()
        .delete("quick", &DeleteParams::default())
        .await?;
    eventually("the claim to go", || async {
        claims.get_opt("quick-data").await.ok()?.is_none().then_some(())
    })
    .await
}
