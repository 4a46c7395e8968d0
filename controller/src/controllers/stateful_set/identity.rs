//! What makes a pod of a StatefulSet that pod: its name, labels, host name and claims.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{
    PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::controllers::claim::controller_reference;
use crate::controllers::history::HASH_LABEL;
use crate::controllers::pod::PodView;
use crate::controllers::pod_control::pod_of;

/// Label: the pod's name, so that a Service can select one pod.
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
/// Label: the pod's ordinal.
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The ordinal in the name of a set's pod.
pub fn ordinal(set: &str, pod: &str) -> Option<i32> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let canonical = digits == "0" || !digits.starts_with('0');
    (canonical && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

/// The name of a set's pod.
pub fn pod_name(set: &str, ordinal: i32) -> String {
    format!("{set}-{ordinal}")
}

/// The labels that tell a pod from its siblings.
pub fn labels(set: &str, ordinal: i32) -> BTreeMap<String, String> {
    [
        (POD_NAME.to_owned(), pod_name(set, ordinal)),
        (POD_INDEX.to_owned(), ordinal.to_string()),
    ]
    .into()
}

/// Whether a pod carries them.
pub fn identified(pod: &PodView, ordinal: i32) -> bool {
    pod.label(POD_NAME) == Some(pod.name()) && pod.label(POD_INDEX) == Some(ordinal.to_string().as_str())
}

/// The pod of an ordinal.
pub fn pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_of(
        template,
        namespace,
        &format!("{set_name}-"),
        controller_reference(set),
    );
    let name = pod_name(set_name, ordinal);
    pod.metadata.name = Some(name.clone());
    let own = pod.metadata.labels.get_or_insert_default();
    own.extend(labels(set_name, ordinal));
    own.insert(HASH_LABEL.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set
        .spec
        .as_ref()
        .and_then(|spec| spec.service_name.clone())
        .filter(|name| !name.is_empty());
    let claims = templates(set);
    if !claims.is_empty() {
        let volumes = spec.volumes.get_or_insert_default();
        let replaced = |volume: &Volume| {
            claims
                .iter()
                .any(|claim| claim.metadata.name.as_ref() == Some(&volume.name))
        };
        volumes.retain(|volume| !replaced(volume));
        for claim in claims {
            let volume = claim.metadata.name.clone().unwrap_or_default();
            volumes.push(Volume {
                persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                    claim_name: claim_name(&volume, set_name, ordinal),
                    read_only: None,
                }),
                name: volume,
                ..Volume::default()
            });
        }
    }
    pod
}

fn templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec
        .as_ref()
        .and_then(|spec| spec.volume_claim_templates.as_deref())
        .unwrap_or_default()
}

fn claim_name(template: &str, set: &str, ordinal: i32) -> String {
    format!("{template}-{set}-{ordinal}")
}

/// The claims of an ordinal.
pub fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let set_name = set.metadata.name.as_deref().unwrap_or_default();
    let selector = set
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.match_labels.clone())
        .unwrap_or_default();
    let make = |template: &PersistentVolumeClaim| {
        let name = template.metadata.name.as_deref().unwrap_or_default();
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selector.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(claim_name(name, set_name, ordinal)),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels).filter(|labels| !labels.is_empty()),
                annotations: template.metadata.annotations.clone(),
                finalizers: template.metadata.finalizers.clone(),
                ..ObjectMeta::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    templates(set).iter().map(make).collect()
}

/// What becomes of claims.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retention {
    /// They go with the set.
    pub delete_with_set: bool,
    /// They go when their pod is scaled away.
    pub delete_with_pod: bool,
}

impl Retention {
    /// Reads it.
    pub fn of(set: &StatefulSet) -> Self {
        let policy = set
            .spec
            .as_ref()
            .and_then(|spec| spec.persistent_volume_claim_retention_policy.clone())
            .unwrap_or_default();
        Retention {
            delete_with_set: policy.when_deleted.as_deref() == Some("Delete"),
            delete_with_pod: policy.when_scaled.as_deref() == Some("Delete"),
        }
    }

    /// The owners that a claim should have so that the garbage collector does what the policy says; `None` if it has them.
    /// `condemned` is the pod while it is one that is scaled away.
    pub fn owners(
        self,
        set: &StatefulSet,
        pod_name: &str,
        condemned: Option<&PodView>,
        known: &[OwnerReference],
    ) -> Option<Vec<OwnerReference>> {
        let of_set = controller_reference(set);
        let of_pod = condemned
            .filter(|_| self.delete_with_pod)
            .map(|pod| OwnerReference {
                api_version: "v1".into(),
                kind: "Pod".into(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            });
        let ours = |owner: &OwnerReference| {
            owner.uid == of_set.uid || (owner.kind == "Pod" && owner.name == pod_name)
        };
        let wanted = match of_pod {
            Some(of_pod) => Some(of_pod),
            None if self.delete_with_set => Some(of_set.clone()),
            None => None,
        };
        let (have, others): (Vec<_>, Vec<_>) = known.iter().cloned().partition(ours);
        let right = have
            .iter()
            .map(|owner| &owner.uid)
            .eq(wanted.iter().map(|owner| &owner.uid));
        // Someone else's controller keeps the claim; two would be refused.
        let taken = others.iter().any(|owner| owner.controller == Some(true));
        if right || (taken && wanted.is_some()) {
            return None;
        }
        Some(others.into_iter().chain(wanted).collect())
    }
}

/// Whether a claim goes with a former pod of this name, so that a new pod must not take it.
pub fn is_leaving(claim: &PersistentVolumeClaim, pod_name: &str) -> bool {
    let owned = claim
        .metadata
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.kind == "Pod" && owner.name == pod_name);
    owned || claim.metadata.deletion_timestamp.is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set() -> StatefulSet {
        serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "a", "uid": "s" },
            "spec": {
                "serviceName": "nginx", "selector": { "matchLabels": { "app": "web" } },
                "template": { "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [],
                    "volumes": [{ "name": "www", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} }] } },
                "volumeClaimTemplates": [{ "metadata": { "name": "www", "labels": { "tier": "x" } },
                    "spec": { "accessModes": ["ReadWriteOnce"] } }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn ordinals_are_read_from_names() {
        assert_eq!(ordinal("web", "web-0"), Some(0));
        assert_eq!(ordinal("web", "web-12"), Some(12));
        for other in [
            "web",
            "web-",
            "web-01",
            "web-x",
            "web-1-2",
            "we-1",
            "web-+1",
            "web-99999999999",
        ] {
            assert_eq!(ordinal("web", other), None, "{other}");
        }
        assert_eq!(ordinal("web-1", "web-1-2"), Some(2));
    }

    #[test]
    fn a_pod_is_told_who_it_is() {
        let set = set();
        let template = set.spec.as_ref().unwrap().template.clone();
        let pod = pod(&set, &template, "web-abc", 3);
        assert_eq!(pod.metadata.name.as_deref(), Some("web-3"));
        let labels = pod.metadata.labels.unwrap();
        assert_eq!(
            (labels[POD_NAME].as_str(), labels[POD_INDEX].as_str()),
            ("web-3", "3")
        );
        assert_eq!(
            (labels[HASH_LABEL].as_str(), labels["app"].as_str()),
            ("web-abc", "web")
        );
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("web-3"), Some("nginx"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(volumes.len(), 2);
        assert_eq!(
            volumes[1].persistent_volume_claim.as_ref().unwrap().claim_name,
            "www-web-3"
        );
        let claim = claims(&set, 3).remove(0);
        assert_eq!(claim.metadata.name.as_deref(), Some("www-web-3"));
        let labels = claim.metadata.labels.unwrap();
        assert_eq!((labels["tier"].as_str(), labels["app"].as_str()), ("x", "web"));
    }

    #[test]
    fn claims_are_owned_as_the_policy_says() {
        let set = set();
        let condemned = PodView {
            metadata: ObjectMeta {
                name: Some("web-3".into()),
                uid: Some("p".into()),
                ..ObjectMeta::default()
            },
            ..PodView::default()
        };
        let owners = |delete_with_set, delete_with_pod, condemned, known: &[OwnerReference]| {
            let retention = Retention {
                delete_with_set,
                delete_with_pod,
            };
            let owners = retention.owners(&set, "web-3", condemned, known);
            owners.map(|owners| owners.into_iter().map(|owner| owner.uid).collect::<Vec<_>>())
        };
        let uids = |uid: &str| Some(vec![uid.to_owned()]);
        assert_eq!(owners(false, false, None, &[]), None);
        assert_eq!(owners(true, false, None, &[]), uids("s"));
        assert_eq!(
            owners(true, false, Some(&condemned), &[controller_reference(&set)]),
            None
        );
        assert_eq!(
            owners(true, true, Some(&condemned), &[controller_reference(&set)]),
            uids("p")
        );
        assert_eq!(owners(false, true, Some(&condemned), &[]), uids("p"));
        assert_eq!(owners(false, true, None, &[]), None);
        assert_eq!(
            owners(false, false, None, &[controller_reference(&set)]),
            Some(vec![])
        );
        let stranger = OwnerReference {
            uid: "x".into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        assert_eq!(owners(true, false, None, &[stranger]), None, "someone else's");
    }
}
