//! `storage.k8s.io`: kinds of storage, and the drivers that provide it.

use serde_json::{Value, json};

use super::Subresource::Status;
use super::{NAME, Resource, boolean, number, printing, row, text, validation};

pub(super) static RESOURCES: &[Resource] = &[
    Resource {
        namespaced: false,
        columns: &[
            NAME,
            boolean("AttachRequired"),
            boolean("PodInfoOnMount"),
            boolean("StorageCapacity"),
            text("TokenRequests"),
            boolean("RequiresRepublish"),
            text("Modes"),
            text("Age"),
        ],
        cells: |driver, now| {
            let spec = &driver["spec"];
            let join = |key: &str, part: Option<&str>| {
                let list = spec[key].as_array().into_iter().flatten();
                let texts: Vec<_> = list
                    .filter_map(|item| part.map_or(item, |part| &item[part]).as_str())
                    .collect();
                texts.join(",")
            };
            let tokens = if spec["tokenRequests"].is_null() {
                "<unset>".to_owned()
            } else {
                join("tokenRequests", Some("audience"))
            };
            vec![
                driver["metadata"]["name"].clone(),
                (spec["attachRequired"] != false).into(),
                (spec["podInfoOnMount"] == true).into(),
                (spec["storageCapacity"] == true).into(),
                tokens.into(),
                (spec["requiresRepublish"] == true).into(),
                join("volumeLifecycleModes", None).into(),
                printing::age(driver, now),
            ]
        },
        ..row(
            GROUP,
            "v1",
            "CSIDriver",
            ("csidrivers", "csidriver"),
            "storage.k8s.io/csidrivers",
        )
    },
    Resource {
        namespaced: false,
        columns: &[NAME, number("Drivers"), text("Age")],
        cells: |node, now| {
            vec![
                node["metadata"]["name"].clone(),
                json!(node["spec"]["drivers"].as_array().map_or(0, Vec::len)),
                printing::age(node, now),
            ]
        },
        ..row(
            GROUP,
            "v1",
            "CSINode",
            ("csinodes", "csinode"),
            "storage.k8s.io/csinodes",
        )
    },
    Resource {
        columns: &[NAME, text("StorageClassName"), text("Capacity"), text("Age")],
        cells: |capacity, now| {
            vec![
                capacity["metadata"]["name"].clone(),
                capacity["storageClassName"].clone(),
                capacity["capacity"].as_str().unwrap_or("<unset>").into(),
                printing::age(capacity, now),
            ]
        },
        ..row(
            GROUP,
            "v1",
            "CSIStorageCapacity",
            ("csistoragecapacities", "csistoragecapacity"),
            "storage.k8s.io/csistoragecapacities",
        )
    },
    Resource {
        short_names: &["sc"],
        namespaced: false,
        columns: &[
            NAME,
            text("Provisioner"),
            text("ReclaimPolicy"),
            text("VolumeBindingMode"),
            boolean("AllowVolumeExpansion"),
            text("Age"),
        ],
        cells: |class, now| {
            let mut name = class["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if is_default(class) {
                name.push_str(" (default)");
            }
            vec![
                name.into(),
                class["provisioner"].clone(),
                class["reclaimPolicy"].as_str().unwrap_or("Delete").into(),
                class["volumeBindingMode"].as_str().unwrap_or("Immediate").into(),
                (class["allowVolumeExpansion"] == true).into(),
                printing::age(class, now),
            ]
        },
        validate: validation::claim::storage_class,
        ..row(
            GROUP,
            "v1",
            "StorageClass",
            ("storageclasses", "storageclass"),
            "storage.k8s.io/storageclasses",
        )
    },
    Resource {
        namespaced: false,
        subresources: &[Status],
        columns: &[
            NAME,
            text("Attacher"),
            text("PV"),
            text("Node"),
            boolean("Attached"),
            text("Age"),
        ],
        cells: |attachment, now| {
            let spec = &attachment["spec"];
            let volume = spec["source"]["persistentVolumeName"].as_str();
            vec![
                attachment["metadata"]["name"].clone(),
                spec["attacher"].clone(),
                volume.unwrap_or_default().into(),
                spec["nodeName"].clone(),
                (attachment["status"]["attached"] == true).into(),
                printing::age(attachment, now),
            ]
        },
        ..row(
            GROUP,
            "v1",
            "VolumeAttachment",
            ("volumeattachments", "volumeattachment"),
            "storage.k8s.io/volumeattachments",
        )
    },
];

const GROUP: &str = "storage.k8s.io";

/// Whether claims that name no class get this one.
fn is_default(class: &Value) -> bool {
    let annotations = &class["metadata"]["annotations"];
    [
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ]
    .iter()
    .any(|key| annotations[key] == "true")
}
