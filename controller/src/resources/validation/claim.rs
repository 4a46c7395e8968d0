//! Persistent volumes, the claims on them, and classes of storage.

use serde_json::{Value, json};

use super::{Problems, immutable, is_set, items, subdomain_problem, supported, text};
use crate::quantity::Quantity;

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];

/// What of a volume's spec is not its source.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn sources(spec: &Value) -> Vec<(&String, &Value)> {
    let fields = spec.as_object().into_iter().flatten();
    fields
        .filter(|(key, value)| !value.is_null() && !NOT_SOURCES.contains(&key.as_str()))
        .collect()
}

/// Checks a PersistentVolume.
pub(crate) fn volume(volume: &Value, old: Option<&Value>, problems: &mut Problems) {
    let spec = &volume["spec"];
    modes(spec, "", problems);
    let capacity = spec["capacity"]
        .as_object()
        .filter(|capacity| !capacity.is_empty());
    match capacity {
        None => problems.required("spec.capacity", ""),
        Some(capacity) if capacity.len() != 1 || !capacity.contains_key("storage") => {
            problems.not_supported("spec.capacity", &spec["capacity"], &["storage"]);
        }
        Some(capacity) => positive(&capacity["storage"], "spec.capacity[storage]", problems),
    }
    let policies = ["Delete", "Recycle", "Retain"];
    supported(spec, "spec", "persistentVolumeReclaimPolicy", &policies, problems);
    supported(spec, "spec", "volumeMode", &["Block", "Filesystem"], problems);
    match &sources(spec)[..] {
        [] => problems.required("spec", "must specify a volume type"),
        [_, others @ ..] => {
            for (kind, _) in others {
                problems.forbidden(&format!("spec.{kind}"), "may not specify more than 1 volume type");
            }
        }
    }
    if spec["local"].is_object() {
        if !is_set(&spec["local"]["path"]) {
            problems.required("spec.local.path", "");
        }
        if spec["nodeAffinity"]["required"].is_null() {
            problems.required("spec.nodeAffinity", "Local volume requires node affinity");
        }
    }
    if spec["hostPath"].is_object() {
        let path = &spec["hostPath"]["path"];
        if !is_set(path) {
            problems.required("spec.hostPath.path", "");
        } else if text(path).split('/').any(|part| part == "..") {
            problems.invalid("spec.hostPath.path", path, "must not contain '..'");
        }
    }
    class_name(spec, problems);
    let Some(old) = old else { return };
    if sources(spec) != sources(&old["spec"]) {
        let detail = "spec.persistentvolumesource is immutable after creation";
        problems.forbidden("spec.persistentvolumesource", detail);
    }
    if spec["volumeMode"] != old["spec"]["volumeMode"] {
        problems.invalid("volumeMode", &spec["volumeMode"], "field is immutable");
    }
    let affinity = &old["spec"]["nodeAffinity"];
    if !affinity.is_null() && *affinity != spec["nodeAffinity"] {
        let detail = "field is immutable, except for updating from beta label to GA label";
        problems.invalid("spec.nodeAffinity", &spec["nodeAffinity"], detail);
    }
}

/// Checks a PersistentVolumeClaim.
pub(crate) fn claim(claim: &Value, old: Option<&Value>, problems: &mut Problems) {
    claim_spec(&claim["spec"], "spec", problems);
    if let Some(old) = old {
        claim_changes(claim, old, problems);
    }
}

/// Checks the spec of a claim, or of a template for claims.
pub(crate) fn claim_spec(spec: &Value, at: &str, problems: &mut Problems) {
    let found = problems.0.len();
    let mut own = Problems::default();
    modes(spec, "at least 1 access mode is required", &mut own);
    let requests = &spec["resources"]["requests"]["storage"];
    if requests.is_null() {
        own.required("spec.resources[storage]", "");
    } else {
        positive(requests, "spec.resources[storage]", &mut own);
    }
    class_name(spec, &mut own);
    supported(spec, "spec", "volumeMode", &["Block", "Filesystem"], &mut own);
    if spec["selector"].is_object() {
        super::label_selector(&spec["selector"], "spec.selector", &mut own);
    }
    problems.0.append(&mut own.0);
    for problem in &mut problems.0[found..] {
        problem.field = problem.field.replacen("spec", at, 1);
    }
}

fn claim_changes(claim: &Value, old: &Value, problems: &mut Problems) {
    let (mut new_spec, mut old_spec) = (claim["spec"].clone(), old["spec"].clone());
    // The binder names the volume once, and the default class is filled in late.
    let named = !text(&old_spec["volumeName"]).is_empty();
    let classed = !old_spec["storageClassName"].is_null();
    for (key, kept) in [
        ("volumeName", named),
        ("storageClassName", classed),
        ("volumeAttributesClassName", false),
    ] {
        for spec in [&mut new_spec, &mut old_spec] {
            if let Some(fields) = spec.as_object_mut().filter(|_| !kept) {
                fields.remove(key);
            }
        }
    }
    let size = |spec: &Value| {
        let storage = spec["resources"]["requests"]["storage"].as_str();
        storage.and_then(|storage| storage.parse::<Quantity>().ok())
    };
    let (wanted, before) = (size(&new_spec), size(&old_spec));
    if claim["status"]["phase"] == "Bound" && new_spec["resources"]["requests"].is_object() {
        let before = old_spec["resources"]["requests"]["storage"].clone();
        new_spec["resources"]["requests"]["storage"] = before;
    }
    if new_spec != old_spec {
        problems.forbidden(
            "spec",
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    let capacity = claim["status"]["capacity"]["storage"].as_str();
    let capacity = capacity.and_then(|capacity| capacity.parse::<Quantity>().ok());
    if wanted < before && capacity.is_none_or(|capacity| wanted.is_some_and(|wanted| wanted <= capacity)) {
        let detail = "field can not be less than status.capacity";
        problems.forbidden("spec.resources.requests.storage", detail);
    }
}

fn modes(spec: &Value, missing: &str, problems: &mut Problems) {
    let modes = spec["accessModes"].as_array().map_or(&[][..], Vec::as_slice);
    if modes.is_empty() {
        problems.required("spec.accessModes", missing);
    }
    for mode in modes.iter().filter(|mode| !MODES.contains(&text(mode))) {
        problems.not_supported("spec.accessModes", mode, MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        let detail = "may not use ReadWriteOncePod with other access modes";
        problems.forbidden("spec.accessModes", detail);
    }
}

fn class_name(spec: &Value, problems: &mut Problems) {
    let class = &spec["storageClassName"];
    if is_set(class)
        && let Some(problem) = subdomain_problem(text(class))
    {
        problems.invalid("spec.storageClassName", class, &problem);
    }
}

fn positive(value: &Value, field: &str, problems: &mut Problems) {
    match text(value).parse::<Quantity>() {
        Ok(quantity) if quantity > Quantity::ZERO => {}
        Ok(_) => problems.invalid(field, value, "must be greater than zero"),
        Err(error) => problems.invalid(field, value, &error.to_string()),
    }
}

/// Checks a StorageClass.
pub(crate) fn storage_class(class: &Value, old: Option<&Value>, problems: &mut Problems) {
    let provisioner = &class["provisioner"];
    if !is_set(provisioner) {
        problems.required("provisioner", "");
    } else if let Some(problem) = crate::selector::label_key_problem(&text(provisioner).to_lowercase()) {
        problems.invalid("provisioner", provisioner, &problem);
    }
    for key in class["parameters"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, _)| key)
    {
        if key.is_empty() {
            problems.invalid("parameters", &json!(key), "field can not be empty.");
        }
    }
    supported(class, "", "reclaimPolicy", &["Delete", "Retain"], problems);
    let binding = ["Immediate", "WaitForFirstConsumer"];
    supported(class, "", "volumeBindingMode", &binding, problems);
    let Some(old) = old else { return };
    for key in ["parameters", "provisioner", "reclaimPolicy"] {
        if class[key] != old[key] {
            problems.forbidden(key, &format!("updates to {key} are forbidden."));
        }
    }
    immutable(class, Some(old), "volumeBindingMode", problems);
}

/// Checks the templates of a StatefulSet's claims.
pub(crate) fn claim_templates(templates: &Value, at: &str, problems: &mut Problems) {
    for (field, template) in items(templates, at) {
        claim_spec(&template["spec"], &format!("{field}.spec"), problems);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::said;
    use super::*;

    #[test]
    fn claims_are_checked_as_kubernetes_does() {
        let make = |modes: Value, size: Value| json!({"spec": {"accessModes": modes, "resources": {"requests": {"storage": size}}, "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}});
        let good = make(json!(["ReadWriteOnce"]), json!("1Gi"));
        assert!(said(claim, &good, None).is_empty());
        for (object, expected) in [
            (
                make(json!([]), json!("1Gi")),
                "spec.accessModes: Required value: at least 1 access mode is required",
            ),
            (
                make(json!(["Often"]), json!("1Gi")),
                "spec.accessModes: Unsupported value: \"Often\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \
                 \"ReadWriteOnce\", \"ReadWriteOncePod\"",
            ),
            (
                make(json!(["ReadWriteOnce"]), json!(null)),
                "spec.resources[storage]: Required value",
            ),
            (
                make(json!(["ReadWriteOnce"]), json!("0")),
                "spec.resources[storage]: Invalid value: \"0\": must be greater than zero",
            ),
        ] {
            assert_eq!(said(claim, &object, None), [expected]);
        }
        let mut bound = good.clone();
        bound["spec"]["volumeName"] = json!("pv1");
        bound["spec"]["storageClassName"] = json!("fast");
        assert!(
            said(claim, &bound, Some(&good)).is_empty(),
            "bound once, class filled in"
        );
        let immutable = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                         volumeAttributesClassName for bound claims";
        assert_eq!(
            said(claim, &make(json!(["ReadWriteOnce"]), json!("2Gi")), Some(&good)),
            [immutable]
        );
        bound["status"] = json!({"phase": "Bound", "capacity": {"storage": "1Gi"}});
        let mut grown = bound.clone();
        grown["spec"]["resources"]["requests"]["storage"] = json!("2Gi");
        assert!(
            said(claim, &grown, Some(&bound)).is_empty(),
            "a bound claim may grow"
        );
        grown["spec"]["volumeName"] = json!("pv2");
        assert_eq!(said(claim, &grown, Some(&bound)), [immutable]);
    }

    #[test]
    fn volumes_and_classes_are_checked_as_kubernetes_does() {
        let good = json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}});
        assert!(said(volume, &good, None).is_empty());
        let with = |changes: Value| {
            let mut object = good.clone();
            for (key, value) in changes.as_object().cloned().unwrap_or_default() {
                object["spec"][key.as_str()] = value;
            }
            object
        };
        for (object, expected) in [
            (with(json!({"capacity": null})), "spec.capacity: Required value"),
            (
                with(json!({"accessModes": []})),
                "spec.accessModes: Required value",
            ),
            (
                with(json!({"hostPath": null})),
                "spec: Required value: must specify a volume type",
            ),
            (
                with(json!({"nfs": {"server": "s", "path": "/"}})),
                "spec.nfs: Forbidden: may not specify more than 1 volume type",
            ),
            (
                with(json!({"hostPath": null, "local": {"path": "/d"}})),
                "spec.nodeAffinity: Required value: Local volume requires node affinity",
            ),
            (
                with(json!({"persistentVolumeReclaimPolicy": "Burn"})),
                "spec.persistentVolumeReclaimPolicy: Unsupported value: \"Burn\": supported values: \"Delete\", \"Recycle\", \"Retain\"",
            ),
        ] {
            assert_eq!(said(volume, &object, None), [expected]);
        }
        assert_eq!(
            said(volume, &with(json!({"hostPath": {"path": "/y"}})), Some(&good)),
            [
                "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"
            ]
        );
        let class = json!({"provisioner": "example.com/p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
        assert!(said(storage_class, &class, None).is_empty());
        let mut other = class.clone();
        other["provisioner"] = json!("x");
        assert_eq!(
            said(storage_class, &other, Some(&class)),
            ["provisioner: Forbidden: updates to provisioner are forbidden."]
        );
        other["provisioner"] = json!("");
        assert_eq!(said(storage_class, &other, None), ["provisioner: Required value"]);
    }
}
