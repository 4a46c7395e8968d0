//! Persistent volumes and the claims on them.

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::Subresource::Status;
use crate::resources::{NAME, Resource, printing, row, text, validation, wide};

pub(super) const PERSISTENT_VOLUME: Resource = Resource {
    short_names: &["pv"],
    namespaced: false,
    subresources: &[Status],
    columns: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        text("Age"),
        wide("VolumeMode"),
    ],
    cells: volume_cells,
    validate: validation::claim::volume,
    ..row(
        "",
        "v1",
        "PersistentVolume",
        ("persistentvolumes", "persistentvolume"),
        "persistentvolumes",
    )
};

pub(super) const PERSISTENT_VOLUME_CLAIM: Resource = Resource {
    short_names: &["pvc"],
    subresources: &[Status],
    columns: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Age"),
        wide("VolumeMode"),
    ],
    cells: claim_cells,
    validate: validation::claim::claim,
    ..row(
        "",
        "v1",
        "PersistentVolumeClaim",
        ("persistentvolumeclaims", "persistentvolumeclaim"),
        "persistentvolumeclaims",
    )
};

fn volume_cells(volume: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let claim = &spec["claimRef"];
    let part = |key: &str| claim[key].as_str().unwrap_or_default();
    let claimed = claim.is_object();
    vec![
        volume["metadata"]["name"].clone(),
        spec["capacity"]["storage"].as_str().unwrap_or("0").into(),
        modes(&spec["accessModes"]).into(),
        spec["persistentVolumeReclaimPolicy"].clone(),
        phase(volume),
        if claimed {
            format!("{}/{}", part("namespace"), part("name"))
        } else {
            String::new()
        }
        .into(),
        class(volume),
        unset(&spec["volumeAttributesClassName"]),
        status["reason"].as_str().unwrap_or_default().into(),
        printing::age(volume, now),
        unset(&spec["volumeMode"]),
    ]
}

fn claim_cells(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let volume = spec["volumeName"].as_str().unwrap_or_default();
    let (capacity, access) = if volume.is_empty() {
        ("", String::new())
    } else {
        (
            status["capacity"]["storage"].as_str().unwrap_or("0"),
            modes(&status["accessModes"]),
        )
    };
    vec![
        claim["metadata"]["name"].clone(),
        phase(claim),
        volume.into(),
        capacity.into(),
        access.into(),
        class(claim),
        unset(&spec["volumeAttributesClassName"]),
        printing::age(claim, now),
        unset(&spec["volumeMode"]),
    ]
}

fn phase(object: &Value) -> Value {
    if object["metadata"]["deletionTimestamp"].is_string() {
        "Terminating".into()
    } else {
        object["status"]["phase"].clone()
    }
}

/// The storage class; an annotation is its former place.
fn class(object: &Value) -> Value {
    let former = &object["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"];
    let named = former
        .as_str()
        .or_else(|| object["spec"]["storageClassName"].as_str());
    named.unwrap_or_default().into()
}

fn unset(value: &Value) -> Value {
    value.as_str().unwrap_or("<unset>").into()
}

/// The access modes, abbreviated.
fn modes(modes: &Value) -> String {
    let has = |mode: &str| {
        modes
            .as_array()
            .is_some_and(|list| list.iter().any(|m| m == mode))
    };
    let short: Vec<_> = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ]
    .into_iter()
    .filter(|(mode, _)| has(mode))
    .map(|(_, short)| short)
    .collect();
    short.join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_and_claims_print_as_kubectl_shows_them() {
        let now = "2025-01-01T00:00:30Z".parse().unwrap();
        let volume = json!({
            "metadata": {"name": "pv1", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "volumeMode": "Filesystem",
                "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "slow", "claimRef": {"namespace": "default", "name": "data"}},
            "status": {"phase": "Bound"},
        });
        assert_eq!(
            volume_cells(&volume, now),
            [
                "pv1",
                "1Gi",
                "RWO,RWX",
                "Retain",
                "Bound",
                "default/data",
                "slow",
                "<unset>",
                "",
                "30s",
                "Filesystem"
            ]
        );
        let mut claim = json!({
            "metadata": {"name": "data", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem"},
            "status": {"phase": "Pending"},
        });
        assert_eq!(
            claim_cells(&claim, now),
            ["data", "Pending", "", "", "", "", "<unset>", "30s", "Filesystem"]
        );
        claim["spec"]["volumeName"] = json!("pv1");
        claim["status"] =
            json!({"phase": "Bound", "capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"]});
        assert_eq!(
            claim_cells(&claim, now),
            [
                "data",
                "Bound",
                "pv1",
                "2Gi",
                "RWO",
                "",
                "<unset>",
                "30s",
                "Filesystem"
            ]
        );
        claim["metadata"]["deletionTimestamp"] = json!("2025-01-01T00:00:00Z");
        assert_eq!(claim_cells(&claim, now)[1], "Terminating");
    }
}
