//! What becomes of a claim and of a volume (pure).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

use super::matching::{Place, best, by_controller, class_of_claim, default_class, is_for, mismatch};
use super::{BIND_COMPLETED, PROVISIONED_BY, annotation};
use crate::controllers::events::Kind;

/// What to tell about an object.
pub(crate) type Notice = (Kind, &'static str, String);

/// What a claim needs done.
#[derive(Debug, PartialEq)]
pub(crate) enum ClaimStep {
    /// Nothing that can be done now; the claim waits.
    Wait(Option<Notice>),
    /// It leaves its class to the cluster, and there is one.
    SetClass(String),
    /// It and the volume belong together.
    Bind(Arc<PersistentVolume>),
    /// A volume has to be made by this provisioner.
    Provision(String),
    /// What it was bound to is gone.
    Lost(Notice),
}

/// What the decision about a claim looks at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scene<'a> {
    pub(crate) volumes: &'a [Arc<PersistentVolume>],
    pub(crate) classes: &'a [Arc<StorageClass>],
    /// The node on which the claim is used first, if that is known.
    pub(crate) place: Option<&'a Place>,
    /// A pod that uses the claim and has no node yet.
    pub(crate) waiting_pod: Option<&'a str>,
}

/// Decides about a claim.
pub(crate) fn claim_step(claim: &PersistentVolumeClaim, scene: Scene<'_>) -> ClaimStep {
    let spec = claim.spec.as_ref();
    let named = spec
        .and_then(|spec| spec.volume_name.as_deref())
        .unwrap_or_default();
    let volume = scene
        .volumes
        .iter()
        .find(|volume| volume.metadata.name.as_deref() == Some(named));
    if annotation(&claim.metadata, BIND_COMPLETED).is_some() {
        return bound_step(claim, named, volume);
    }
    if claim.metadata.deletion_timestamp.is_some() {
        return ClaimStep::Wait(None);
    }
    if named.is_empty() {
        unbound_step(claim, scene)
    } else {
        named_step(claim, named, volume)
    }
}

/// A claim that was bound: it stays so, or it is lost.
fn bound_step(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let lost = |reason, text: &str| ClaimStep::Lost((Kind::Warning, reason, text.to_owned()));
    if named.is_empty() {
        return lost(
            "ClaimLost",
            "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!",
        );
    }
    let Some(volume) = volume else {
        return lost(
            "ClaimLost",
            "Bound claim has lost its PersistentVolume. Data on the volume is lost!",
        );
    };
    let claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    if !claimed || is_for(volume, claim) {
        ClaimStep::Bind(volume.clone())
    } else {
        lost(
            "ClaimMisbound",
            "Two claims are bound to the same volume, this one is bound incorrectly",
        )
    }
}

/// A claim that names its volume.
fn named_step(
    claim: &PersistentVolumeClaim,
    named: &str,
    volume: Option<&Arc<PersistentVolume>>,
) -> ClaimStep {
    let Some(volume) = volume else {
        return ClaimStep::Wait(None);
    };
    let claimed = volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_some());
    if !claimed {
        return match mismatch(claim, volume) {
            None => ClaimStep::Bind(volume.clone()),
            Some(why) => ClaimStep::Wait(Some((
                Kind::Warning,
                "VolumeMismatch",
                format!("Cannot bind to requested volume {named:?}: {why}"),
            ))),
        };
    }
    if is_for(volume, claim) {
        return ClaimStep::Bind(volume.clone());
    }
    ClaimStep::Wait(Some((
        Kind::Warning,
        "FailedBinding",
        format!("volume {named:?} already bound to a different claim."),
    )))
}

/// A claim that is free to have any volume that suits.
fn unbound_step(claim: &PersistentVolumeClaim, scene: Scene<'_>) -> ClaimStep {
    let Some(class_name) = class_of_claim(claim) else {
        if let Some(class) = default_class(scene.classes) {
            return ClaimStep::SetClass(class.metadata.name.clone().unwrap_or_default());
        }
        return choose(claim, None, scene);
    };
    let class = scene
        .classes
        .iter()
        .find(|class| class.metadata.name.as_deref() == Some(class_name));
    choose(claim, class, scene)
}

fn choose(claim: &PersistentVolumeClaim, class: Option<&Arc<StorageClass>>, scene: Scene<'_>) -> ClaimStep {
    let waits =
        class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
    let delayed = waits && scene.place.is_none();
    // Where binding does not wait for a pod, no node has a say in it.
    let place = scene.place.filter(|_| waits);
    if let Some(volume) = best(claim, scene.volumes, place, delayed) {
        return ClaimStep::Bind(volume.clone());
    }
    if delayed {
        return ClaimStep::Wait(Some(match scene.waiting_pod {
            Some(pod) => (
                Kind::Normal,
                "WaitForPodScheduled",
                format!("waiting for pod {pod} to be scheduled"),
            ),
            None => (
                Kind::Normal,
                "WaitForFirstConsumer",
                "waiting for first consumer to be created before binding".to_owned(),
            ),
        }));
    }
    let name = class_of_claim(claim).unwrap_or_default();
    if name.is_empty() {
        let text = "no persistent volumes available for this claim and no storage class is set";
        return ClaimStep::Wait(Some((Kind::Normal, "FailedBinding", text.to_owned())));
    }
    let failed = |text: String| ClaimStep::Wait(Some((Kind::Warning, "ProvisioningFailed", text)));
    match class {
        None => failed(format!("storageclass.storage.k8s.io {name:?} not found")),
        Some(class) if class.provisioner.starts_with("kubernetes.io/") => {
            failed(format!("no volume plugin matched name: {}", class.provisioner))
        }
        Some(class) => ClaimStep::Provision(class.provisioner.clone()),
    }
}

/// What a volume needs done.
#[derive(Debug, PartialEq)]
pub(crate) enum VolumeStep {
    /// It is in this phase.
    Phase(&'static str),
    /// Its claim is to be looked at.
    Claim,
    /// A controller gave it to a claim that went elsewhere: it is free again.
    Unbind,
    /// Its claim is gone; so it goes, too.
    Delete,
}

/// Decides about a volume, given the claim that it names.
pub(crate) fn volume_step(volume: &PersistentVolume, claim: Option<&PersistentVolumeClaim>) -> VolumeStep {
    let spec = volume.spec.as_ref();
    let Some(reference) = spec.and_then(|spec| spec.claim_ref.as_ref()) else {
        return VolumeStep::Phase("Available");
    };
    // A volume that was kept for a name, and nobody of the name was bound yet.
    let reserved = reference.uid.as_deref().is_none_or(str::is_empty);
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let Some(claim) = claim.filter(|claim| is_for(volume, claim)) else {
        return if reserved {
            VolumeStep::Phase("Available")
        } else {
            released(volume)
        };
    };
    let bound_to = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref());
    match bound_to.unwrap_or_default() {
        "" => VolumeStep::Claim,
        other if other == name && !reserved => VolumeStep::Phase("Bound"),
        other if other == name => VolumeStep::Claim,
        _ if reserved || !by_controller(&volume.metadata) => VolumeStep::Phase("Available"),
        // Made for this claim, which meanwhile took another.
        _ if annotation(&volume.metadata, PROVISIONED_BY).is_some() => released(volume),
        _ => VolumeStep::Unbind,
    }
}

fn released(volume: &PersistentVolume) -> VolumeStep {
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref());
    if !matches!(phase, Some("Released" | "Failed")) {
        return VolumeStep::Phase("Released");
    }
    let policy = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    // What somebody made by hand, only that person takes away: there is nobody here who knows how.
    let ours = annotation(&volume.metadata, PROVISIONED_BY) == Some(super::local_path::PROVISIONER);
    if policy == Some("Delete") && ours && volume.metadata.deletion_timestamp.is_none() {
        VolumeStep::Delete
    } else {
        VolumeStep::Phase(if phase == Some("Failed") {
            "Failed"
        } else {
            "Released"
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::BOUND_BY_CONTROLLER;
    use super::super::matching::tests::{claim, volume};
    use super::*;

    fn class(name: &str, mode: &str, provisioner: &str) -> Arc<StorageClass> {
        let object =
            json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    fn step(
        claim: &PersistentVolumeClaim,
        volumes: &[Arc<PersistentVolume>],
        place: Option<&Place>,
    ) -> String {
        let classes = [
            class("slow", "Immediate", "example.com/p"),
            class("late", "WaitForFirstConsumer", "example.com/p"),
            class("manual", "Immediate", "kubernetes.io/no-provisioner"),
        ];
        let scene = Scene {
            volumes,
            classes: &classes,
            place,
            waiting_pod: None,
        };
        match claim_step(claim, scene) {
            ClaimStep::Wait(None) => "wait".to_owned(),
            ClaimStep::Wait(Some((_, reason, text))) => format!("{reason}: {text}"),
            ClaimStep::SetClass(class) => format!("class {class}"),
            ClaimStep::Bind(volume) => format!("bind {}", volume.metadata.name.clone().unwrap()),
            ClaimStep::Provision(provisioner) => format!("provision by {provisioner}"),
            ClaimStep::Lost((_, reason, _)) => format!("lost {reason}"),
        }
    }

    #[test]
    fn claims_are_bound_or_wait_or_have_a_volume_made() {
        let place = Place::default();
        let volumes = [
            volume("a", "1Gi", json!({})),
            volume("late", "1Gi", json!({"storageClassName": "late"})),
        ];
        for (spec, place, wanted) in [
            (json!({}), None, "bind a"),
            (
                json!({"resources": {"requests": {"storage": "2Gi"}}}),
                None,
                "provision by example.com/p",
            ),
            (
                json!({"storageClassName": "late"}),
                None,
                "WaitForFirstConsumer: waiting for first consumer to be created before binding",
            ),
            (json!({"storageClassName": "late"}), Some(&place), "bind late"),
            (
                json!({"storageClassName": "manual"}),
                None,
                "ProvisioningFailed: no volume plugin matched name: kubernetes.io/no-provisioner",
            ),
            (
                json!({"storageClassName": "none"}),
                None,
                r#"ProvisioningFailed: storageclass.storage.k8s.io "none" not found"#,
            ),
            (
                json!({"storageClassName": ""}),
                None,
                "FailedBinding: no persistent volumes available for this claim and no storage class is set",
            ),
            (json!({"volumeName": "a"}), None, "bind a"),
            (json!({"volumeName": "not-there"}), None, "wait"),
            (
                json!({"volumeName": "late"}),
                None,
                r#"VolumeMismatch: Cannot bind to requested volume "late": storageClassName does not match"#,
            ),
        ] {
            assert_eq!(step(&claim(spec.clone()), &volumes, place), wanted, "{spec}");
        }
    }

    #[test]
    fn what_was_bound_stays_or_is_lost() {
        let bound = |spec: Value| {
            let mut claim = claim(spec);
            claim.metadata.annotations = Some([(BIND_COMPLETED.to_owned(), "yes".to_owned())].into());
            claim
        };
        let own = json!({"claimRef": {"namespace": "default", "name": "data", "uid": "uid-claim"}});
        let other = json!({"claimRef": {"namespace": "default", "name": "other", "uid": "x"}});
        let named = || bound(json!({"volumeName": "v"}));
        assert_eq!(step(&named(), &[volume("v", "1Gi", own)], None), "bind v");
        assert_eq!(
            step(&named(), &[volume("v", "1Gi", other)], None),
            "lost ClaimMisbound"
        );
        assert_eq!(step(&named(), &[], None), "lost ClaimLost");
        assert_eq!(step(&bound(json!({})), &[], None), "lost ClaimLost");
    }

    #[test]
    fn a_default_class_is_set_late() {
        let mut default = StorageClass::clone(&class("std", "Immediate", "example.com/p"));
        default.metadata.annotations =
            Some([(super::super::DEFAULT_CLASS[0].to_owned(), "true".to_owned())].into());
        let classes = [Arc::new(default)];
        let scene = Scene {
            volumes: &[],
            classes: &classes,
            place: None,
            waiting_pod: None,
        };
        let claim = claim(json!({"storageClassName": null}));
        assert_eq!(claim_step(&claim, scene), ClaimStep::SetClass("std".to_owned()));
    }

    #[test]
    fn volumes_follow_their_claims() {
        let to = |uid: &str| json!({"claimRef": {"namespace": "default", "name": "data", "uid": uid}});
        let in_phase = |volume: Arc<PersistentVolume>, phase: &str| {
            let mut volume = PersistentVolume::clone(&volume);
            volume.status.get_or_insert_default().phase = Some(phase.to_owned());
            volume
        };
        let marked = |volume: Arc<PersistentVolume>, key: &str, value: &str| {
            let mut volume = PersistentVolume::clone(&volume);
            volume.metadata.annotations = Some([(key.to_owned(), value.to_owned())].into());
            Arc::new(volume)
        };
        let (unbound, bound) = (claim(json!({})), claim(json!({"volumeName": "v"})));
        let elsewhere = claim(json!({"volumeName": "w"}));
        let free = volume("v", "1Gi", json!({}));
        let reserved = volume(
            "v",
            "1Gi",
            json!({"claimRef": {"namespace": "default", "name": "data"}}),
        );
        let given = volume("v", "1Gi", to("uid-claim"));
        let by_us = marked(given.clone(), BOUND_BY_CONTROLLER, "yes");
        assert_eq!(volume_step(&free, None), VolumeStep::Phase("Available"));
        assert_eq!(volume_step(&reserved, None), VolumeStep::Phase("Available"));
        assert_eq!(volume_step(&reserved, Some(&unbound)), VolumeStep::Claim);
        assert_eq!(volume_step(&given, Some(&unbound)), VolumeStep::Claim);
        assert_eq!(volume_step(&given, Some(&bound)), VolumeStep::Phase("Bound"));
        assert_eq!(volume_step(&by_us, Some(&elsewhere)), VolumeStep::Unbind);
        assert_eq!(volume_step(&given, None), VolumeStep::Phase("Released"));
        assert_eq!(
            volume_step(&volume("v", "1Gi", to("gone")), Some(&bound)),
            VolumeStep::Phase("Released")
        );
        let released = in_phase(given.clone(), "Released");
        assert_eq!(
            volume_step(&released, None),
            VolumeStep::Phase("Released"),
            "it is retained"
        );
        let mut spec = to("gone");
        spec["persistentVolumeReclaimPolicy"] = json!("Delete");
        let ours = marked(
            volume("v", "1Gi", spec.clone()),
            PROVISIONED_BY,
            super::super::local_path::PROVISIONER,
        );
        assert_eq!(volume_step(&in_phase(ours, "Released"), None), VolumeStep::Delete);
        let foreign = in_phase(volume("v", "1Gi", spec), "Released");
        assert_eq!(
            volume_step(&foreign, None),
            VolumeStep::Phase("Released"),
            "its maker deletes it"
        );
    }
}
