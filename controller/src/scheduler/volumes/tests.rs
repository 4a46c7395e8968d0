use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;

use super::*;
use crate::scheduler::testing::{node, pod};

fn claim(name: &str, class: &str, volume: Option<&str>) -> Arc<ClaimView> {
    let claim: PersistentVolumeClaim = serde_json::from_value(json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "storageClassName": class, "volumeName": volume, "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } } },
        "status": { "phase": if volume.is_some() { "Bound" } else { "Pending" } },
    }))
    .unwrap();
    Arc::new(claim.into())
}

fn volume(name: &str, class: &str, size: &str, node: Option<&str>) -> Arc<VolumeView> {
    let affinity = node.map(|node| {
        json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions":
            [{ "key": "kubernetes.io/hostname", "operator": "In", "values": [node] }] }] } })
    });
    let volume: PersistentVolume = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "storageClassName": class, "capacity": { "storage": size }, "accessModes": ["ReadWriteOnce"],
            "nodeAffinity": affinity },
    }))
    .unwrap();
    Arc::new(volume.into())
}

fn class(name: &str, provisioner: &str, waits: bool) -> Arc<ClassView> {
    let mode = if waits {
        "WaitForFirstConsumer"
    } else {
        "Immediate"
    };
    let class: StorageClass = serde_json::from_value(json!({
        "metadata": { "name": name }, "provisioner": provisioner, "volumeBindingMode": mode,
    }))
    .unwrap();
    Arc::new(class.into())
}

fn world() -> Volumes {
    let mut volumes = Volumes::default();
    volumes.set_class("late", Some(class("late", NO_PROVISIONER, true)));
    volumes.set_class("local", Some(class("local", "weft.io/local-path", true)));
    volumes.set_class("now", Some(class("now", "weft.io/local-path", false)));
    volumes
}

fn put(volumes: &mut Volumes, claim: Arc<ClaimView>) {
    volumes.set_claim(ObjectKey::of(&claim.metadata), Some(claim));
}

fn info(name: &str) -> NodeInfo {
    NodeInfo::described_by(&node(name, 4))
}

#[test]
fn a_bound_volume_binds_the_pod_to_its_nodes() {
    let mut volumes = world();
    put(&mut volumes, claim("c", "now", Some("v")));
    volumes.set_volume("v", Some(volume("v", "now", "1Gi", Some("a"))));
    let plan = volumes.plan(&pod("p").claim("c").build()).unwrap();
    assert!(plan.is_settled());
    assert_eq!(plan.rejection(&info("a")), None);
    assert_eq!(plan.rejection(&info("b")), Some(ELSEWHERE));
}

#[test]
fn claims_that_are_not_bound_at_once_hold_the_pod_back() {
    let mut volumes = world();
    let why = |volumes: &Volumes| volumes.plan(&pod("p").claim("c").build()).unwrap_err();
    assert_eq!(why(&volumes), "persistentvolumeclaim \"c\" not found");
    put(&mut volumes, claim("c", "now", None));
    assert_eq!(why(&volumes), "pod has unbound immediate PersistentVolumeClaims");
    put(&mut volumes, claim("c", "no-such-class", None));
    assert_eq!(why(&volumes), "pod has unbound immediate PersistentVolumeClaims");
}

#[test]
fn waiting_claims_take_the_smallest_volume_there_or_have_one_made() {
    let mut volumes = world();
    put(&mut volumes, claim("c", "late", None));
    for (name, size, at) in [("big", "9Gi", "a"), ("fit", "2Gi", "a"), ("small", "1Mi", "b")] {
        volumes.set_volume(name, Some(volume(name, "late", size, Some(at))));
    }
    let pod = pod("p").claim("c").build();
    let plan = volumes.plan(&pod).unwrap();
    assert_eq!(plan.rejection(&info("b")), Some(NONE_TO_BIND));
    let acts = plan.settle(&info("a")).unwrap();
    assert!(
        matches!(&acts[..], [Act::Bind { volume, .. }] if volume == "fit"),
        "{acts:?}"
    );

    volumes.take(&acts);
    put(&mut volumes, claim("d", "late", None));
    let other = crate::scheduler::testing::pod("q").claim("d").build();
    let acts = volumes.plan(&other).unwrap().settle(&info("a")).unwrap();
    assert!(
        matches!(&acts[..], [Act::Bind { volume, .. }] if volume == "big"),
        "{acts:?}"
    );

    put(&mut volumes, claim("c", "local", None));
    let acts = volumes.plan(&pod).unwrap().settle(&info("b")).unwrap();
    assert!(matches!(&acts[..], [Act::Provision { .. }]), "{acts:?}");
}
