//! Which volume suits a claim (pure).

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Written;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{BOUND_BY_CONTROLLER, DEFAULT_CLASS, FORMER_CLASS, annotation};
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

/// Where a volume is wanted: a node's name and labels.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    pub(crate) node: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// The class a claim asks for; `None` if it leaves that to the cluster.
pub(crate) fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    let spec = claim.spec.as_ref();
    annotation(&claim.metadata, FORMER_CLASS).or(spec.and_then(|spec| spec.storage_class_name.as_deref()))
}

/// The class of a volume; empty for none.
pub(crate) fn class_of_volume(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    annotation(&volume.metadata, FORMER_CLASS)
        .or(spec.and_then(|spec| spec.storage_class_name.as_deref()))
        .unwrap_or_default()
}

/// The class for claims that leave it to the cluster: of several the newest.
pub(crate) fn default_class(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let marked = |meta: &ObjectMeta| {
        DEFAULT_CLASS
            .iter()
            .any(|key| annotation(meta, key) == Some("true"))
    };
    classes
        .iter()
        .filter(|class| marked(&class.metadata))
        .max_by(|a, b| {
            let time = |class: &StorageClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
            // Of two of one second the first by name.
            (time(a), &b.metadata.name).cmp(&(time(b), &a.metadata.name))
        })
}

/// Why a claim and a volume that names it, or is named by it, cannot be bound.
pub(crate) fn mismatch(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> Option<&'static str> {
    if volume_mode(volume) != claim_mode(claim) {
        Some("incompatible volumeMode")
    } else if class_of_claim(claim).unwrap_or_default() != class_of_volume(volume) {
        Some("storageClassName does not match")
    } else if size(volume) < request(claim) {
        Some("requested PV is too small")
    } else if !has_modes(claim, volume) {
        Some("incompatible accessMode")
    } else {
        None
    }
}

/// Whether a volume names this claim, and no other of the same name.
pub(crate) fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
        return false;
    };
    reference.name == claim.metadata.name
        && reference.namespace == claim.metadata.namespace
        && reference
            .uid
            .as_deref()
            .is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_deref())
}

/// The volume to bind the claim to: one that names it, or else the smallest that is large enough and offers little more than is
/// asked for. With `only_named` no other than one that names it; with a place only such that can be used there.
pub(crate) fn best<'a>(
    claim: &PersistentVolumeClaim,
    volumes: &'a [Arc<PersistentVolume>],
    place: Option<&Place>,
    only_named: bool,
) -> Option<&'a Arc<PersistentVolume>> {
    let suits = |volume: &&Arc<PersistentVolume>| {
        volume.metadata.deletion_timestamp.is_none()
            && volume_mode(volume) == claim_mode(claim)
            && size(volume) >= request(claim)
    };
    let named = volumes.iter().filter(suits).find(|volume| is_for(volume, claim));
    if named.is_some() || only_named {
        return named;
    }
    let spec = claim.spec.as_ref();
    let selector = spec.and_then(|spec| spec.selector.as_ref());
    let selector = selector.map(|selector| LabelSelector::from_object(Some(selector)));
    let selected = |volume: &PersistentVolume| match &selector {
        None => true,
        Some(Ok(selector)) => selector.matches(&volume.metadata.labels.clone().unwrap_or_default()),
        Some(Err(_)) => false,
    };
    let free = |volume: &PersistentVolume| {
        volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
            && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
    };
    volumes
        .iter()
        .filter(suits)
        .filter(|volume| free(volume) && has_modes(claim, volume) && selected(volume))
        .filter(|volume| class_of_volume(volume) == class_of_claim(claim).unwrap_or_default())
        .filter(|volume| place.is_none_or(|place| can_be_used(volume, place)))
        .min_by(|a, b| {
            let key = |volume: &PersistentVolume| (modes(volume).len(), size(volume));
            key(a)
                .cmp(&key(b))
                .then_with(|| a.metadata.name.cmp(&b.metadata.name))
        })
}

/// Whether a node can use the volume.
pub(crate) fn can_be_used(volume: &PersistentVolume, place: &Place) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref());
    affinity
        .and_then(|affinity| affinity.required.as_ref())
        .is_none_or(|required| selects(required, place))
}

fn selects(selector: &NodeSelector, place: &Place) -> bool {
    selector
        .node_selector_terms
        .iter()
        .any(|term| term_selects(term, place))
}

fn term_selects(term: &NodeSelectorTerm, place: &Place) -> bool {
    let labels = term.match_expressions.iter().flatten();
    let mut labels = labels.map(|requirement| {
        (
            requirement,
            place.labels.get(&requirement.key).map(String::as_str),
        )
    });
    let fields = term.match_fields.iter().flatten();
    let mut fields = fields.map(|requirement| {
        (
            requirement,
            (requirement.key == "metadata.name").then_some(place.node.as_str()),
        )
    });
    let empty = term.match_expressions.as_ref().is_none_or(Vec::is_empty)
        && term.match_fields.as_ref().is_none_or(Vec::is_empty);
    !empty && labels.all(|(r, value)| holds(r, value)) && fields.all(|(r, value)| holds(r, value))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|one| one == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|text| number(text));
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(value, bound)| value > bound),
        "Lt" => value
            .and_then(number)
            .zip(bound)
            .is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn storage(map: Option<&BTreeMap<String, Written>>) -> i128 {
    let written = map.and_then(|map| map.get("storage"));
    written
        .and_then(|written| written.0.parse::<Quantity>().ok())
        .map_or(0, Quantity::nanos)
}

fn size(volume: &PersistentVolume) -> i128 {
    storage(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

fn request(claim: &PersistentVolumeClaim) -> i128 {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    storage(resources.and_then(|resources| resources.requests.as_ref()))
}

fn modes(volume: &PersistentVolume) -> &[String] {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.access_modes.as_deref())
        .unwrap_or_default()
}

fn has_modes(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref());
    wanted
        .unwrap_or_default()
        .iter()
        .all(|mode| modes(volume).contains(mode))
}

fn volume_mode(volume: &PersistentVolume) -> &str {
    let spec = volume.spec.as_ref();
    spec.and_then(|spec| spec.volume_mode.as_deref())
        .unwrap_or("Filesystem")
}

fn claim_mode(claim: &PersistentVolumeClaim) -> &str {
    let spec = claim.spec.as_ref();
    spec.and_then(|spec| spec.volume_mode.as_deref())
        .unwrap_or("Filesystem")
}

/// Whether a controller tied the object to the other one.
pub(crate) fn by_controller(meta: &ObjectMeta) -> bool {
    annotation(meta, BOUND_BY_CONTROLLER).is_some()
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A claim `default/data` of 1Gi with more in its spec.
    pub(crate) fn claim(spec: Value) -> PersistentVolumeClaim {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "slow",
            "resources": {"requests": {"storage": "1Gi"}}});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        serde_json::from_value(json!({
            "metadata": {"name": "data", "namespace": "default", "uid": "uid-claim"}, "spec": all,
        }))
        .unwrap()
    }

    /// A volume that is available, with more in its spec.
    pub(crate) fn volume(name: &str, size: &str, spec: Value) -> Arc<PersistentVolume> {
        let mut all = json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "slow", "capacity": {"storage": size},
            "persistentVolumeReclaimPolicy": "Retain"});
        for (key, value) in spec.as_object().unwrap() {
            all[key] = value.clone();
        }
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"name": name}},
                "spec": all, "status": {"phase": "Available"},
            }))
            .unwrap(),
        )
    }

    fn chosen(
        claim: &PersistentVolumeClaim,
        volumes: &[Arc<PersistentVolume>],
        place: Option<&Place>,
    ) -> Option<String> {
        best(claim, volumes, place, false).and_then(|volume| volume.metadata.name.clone())
    }

    #[test]
    fn the_smallest_volume_that_suits() {
        let volumes = [
            volume("large", "10Gi", json!({})),
            volume("small", "500Mi", json!({})),
            volume("right", "2Gi", json!({})),
            volume(
                "versatile",
                "1Gi",
                json!({"accessModes": ["ReadWriteOnce", "ReadWriteMany"]}),
            ),
            volume("fast", "1Gi", json!({"storageClassName": "fast"})),
            volume("raw", "1Gi", json!({"volumeMode": "Block"})),
            volume(
                "taken",
                "1Gi",
                json!({"claimRef": {"namespace": "default", "name": "other"}}),
            ),
        ];
        for (spec, wanted) in [
            (json!({}), Some("right")),
            (json!({"accessModes": ["ReadWriteMany"]}), Some("versatile")),
            (json!({"storageClassName": "fast"}), Some("fast")),
            (json!({"storageClassName": ""}), None),
            (json!({"volumeMode": "Block"}), Some("raw")),
            (
                json!({"resources": {"requests": {"storage": "3Gi"}}}),
                Some("large"),
            ),
            (json!({"resources": {"requests": {"storage": "11Gi"}}}), None),
            (
                json!({"selector": {"matchLabels": {"name": "large"}}}),
                Some("large"),
            ),
        ] {
            let found = chosen(&claim(spec.clone()), &volumes, None);
            assert_eq!(found.as_deref(), wanted, "{spec}");
        }
    }

    #[test]
    fn a_volume_that_names_the_claim_wins() {
        let named =
            json!({"claimRef": {"namespace": "default", "name": "data"}, "storageClassName": "other"});
        let volumes = [volume("right", "1Gi", json!({})), volume("named", "5Gi", named)];
        assert_eq!(
            chosen(&claim(json!({})), &volumes, None).as_deref(),
            Some("named")
        );
        assert!(best(&claim(json!({})), &volumes[..1], None, true).is_none());
        let stale = json!({"claimRef": {"namespace": "default", "name": "data", "uid": "of-another-life"}});
        assert!(chosen(&claim(json!({})), &[volume("stale", "1Gi", stale)], None).is_none());
    }

    #[test]
    fn a_volume_is_where_its_affinity_says() {
        let at = |node: &str| {
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]},
            ]}}})
        };
        let volumes = [volume("here", "2Gi", at("n1")), volume("there", "1Gi", at("n2"))];
        let place = Place {
            node: "n1".to_owned(),
            labels: [("kubernetes.io/hostname".to_owned(), "n1".to_owned())].into(),
        };
        assert_eq!(
            chosen(&claim(json!({})), &volumes, Some(&place)).as_deref(),
            Some("here")
        );
        assert_eq!(
            chosen(&claim(json!({})), &volumes, None).as_deref(),
            Some("there")
        );
    }

    #[test]
    fn the_newest_default_class() {
        let class = |name: &str, time: &str, default: &str| -> Arc<StorageClass> {
            let object = json!({"metadata": {"name": name, "creationTimestamp": time, "annotations": {DEFAULT_CLASS[0]: default}},
                "provisioner": "p"});
            Arc::new(serde_json::from_value(object).unwrap())
        };
        let classes = [
            class("old", "2030-01-01T00:00:00Z", "true"),
            class("new-b", "2030-01-02T00:00:00Z", "true"),
            class("new-a", "2030-01-02T00:00:00Z", "true"),
            class("newest", "2030-01-03T00:00:00Z", "false"),
        ];
        let name = |class: Option<&Arc<StorageClass>>| class.and_then(|class| class.metadata.name.clone());
        assert_eq!(name(default_class(&classes)).as_deref(), Some("new-a"));
        assert_eq!(name(default_class(&classes[3..])), None);
    }
}
