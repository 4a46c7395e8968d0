//! Volume topology: on which nodes the volumes that a pod claims are, or can be.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    NodeSelectorRequirement, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::filter::node_affinity;
use super::node::NodeInfo;
use super::pod::PodInfo;
use super::resources::units;
use crate::informer::{Cached, IndexKey, ObjectKey};
use crate::selector::LabelSelector;

/// Says that the binder has finished with a claim.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Says on a volume that it was bound by a controller, not by its maker.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Tells the provisioner where the volume is wanted.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The provisioner of volumes that people make.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";
const DEPRECATED_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

const ELSEWHERE: &str = "node(s) had volume node affinity conflict";
const NONE_TO_BIND: &str = "node(s) didn't find available persistent volumes to bind";

/// A claim as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct ClaimView {
    /// Its name, namespace and uid.
    pub metadata: ObjectMeta,
    /// The volume it is bound to, or is to be.
    pub volume: Option<String>,
    /// Whether the binder is done with it.
    pub bound: bool,
    /// Its storage class.
    pub class: String,
    /// Where the provisioner was told to make the volume.
    pub selected_node: Option<String>,
    /// How it wants to use the volume.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
    /// Bytes.
    pub size: i64,
    /// Labels the volume must have.
    pub selector: Option<LabelSelector>,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// A volume as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct VolumeView {
    /// Its name and labels.
    pub metadata: ObjectMeta,
    /// The nodes it can be used from.
    pub nodes: Option<Vec<NodeSelectorTerm>>,
    /// Its storage class.
    pub class: String,
    /// How it can be used.
    pub modes: Vec<String>,
    /// `Filesystem` or `Block`.
    pub volume_mode: String,
    /// Bytes.
    pub size: i64,
    /// Namespace, name and uid of the claim it is kept for.
    pub claim: Option<(ObjectKey, Option<String>)>,
    /// Whether it waits for a claim.
    pub available: bool,
}

/// A storage class as the scheduler sees it.
#[derive(Debug, Clone, Default)]
pub struct ClassView {
    /// Its name.
    pub metadata: ObjectMeta,
    /// Whether volumes are bound when a pod needs them.
    pub waits: bool,
    /// Whether volumes are made on demand.
    pub provisions: bool,
    /// Where they can be made.
    pub topologies: Vec<NodeSelectorTerm>,
}

macro_rules! cached {
    ($($kind:ty),+) => { $(
        impl Cached for $kind {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn index_keys(&self) -> Vec<IndexKey> {
                Vec::new()
            }
        }
    )+ };
}

cached!(ClaimView, VolumeView, ClassView);

fn named(meta: ObjectMeta) -> ObjectMeta {
    ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        labels: meta.labels,
        ..ObjectMeta::default()
    }
}

impl From<PersistentVolumeClaim> for ClaimView {
    fn from(claim: PersistentVolumeClaim) -> Self {
        let spec = claim.spec.unwrap_or_default();
        let phase = claim.status.and_then(|status| status.phase);
        let notes = claim.metadata.annotations.clone().unwrap_or_default();
        let volume = spec.volume_name.filter(|name| !name.is_empty());
        let requests = spec.resources.and_then(|resources| resources.requests);
        ClaimView {
            bound: volume.is_some()
                && (phase.as_deref() == Some("Bound") || notes.contains_key(BIND_COMPLETED)),
            volume,
            class: notes
                .get(DEPRECATED_CLASS)
                .cloned()
                .or(spec.storage_class_name)
                .unwrap_or_default(),
            selected_node: notes.get(SELECTED_NODE).cloned(),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            size: requests
                .and_then(|all| all.get("storage").map(units))
                .unwrap_or(0),
            selector: spec.selector.as_ref().map(|selector| {
                LabelSelector::from_object(Some(selector)).unwrap_or_else(|_| LabelSelector::nothing())
            }),
            terminating: claim.metadata.deletion_timestamp.is_some(),
            metadata: named(claim.metadata),
        }
    }
}

impl From<PersistentVolume> for VolumeView {
    fn from(volume: PersistentVolume) -> Self {
        let spec = volume.spec.unwrap_or_default();
        let phase = volume.status.and_then(|status| status.phase);
        let terminating = volume.metadata.deletion_timestamp.is_some();
        VolumeView {
            nodes: spec
                .node_affinity
                .and_then(|affinity| affinity.required)
                .map(|selector| selector.node_selector_terms),
            class: spec.storage_class_name.unwrap_or_default(),
            modes: spec.access_modes.unwrap_or_default(),
            volume_mode: spec.volume_mode.unwrap_or_else(|| "Filesystem".into()),
            size: spec
                .capacity
                .and_then(|all| all.get("storage").map(units))
                .unwrap_or(0),
            claim: spec.claim_ref.map(|claim| {
                let key = ObjectKey::new(
                    claim.namespace.as_deref().unwrap_or_default(),
                    claim.name.as_deref().unwrap_or_default(),
                );
                (key, claim.uid.filter(|uid| !uid.is_empty()))
            }),
            available: !terminating && matches!(phase.as_deref(), None | Some("" | "Pending" | "Available")),
            metadata: named(volume.metadata),
        }
    }
}

impl From<StorageClass> for ClassView {
    fn from(class: StorageClass) -> Self {
        let topologies = class.allowed_topologies.into_iter().flatten().map(|term| {
            let all = term.match_label_expressions.into_iter().flatten();
            NodeSelectorTerm {
                match_expressions: Some(
                    all.map(|one| NodeSelectorRequirement {
                        key: one.key,
                        operator: "In".into(),
                        values: Some(one.values),
                    })
                    .collect(),
                ),
                match_fields: None,
            }
        });
        ClassView {
            waits: class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            provisions: class.provisioner != NO_PROVISIONER,
            topologies: topologies.collect(),
            metadata: named(class.metadata),
        }
    }
}

/// Claims, volumes and classes, and which volumes decisions have taken that the API does not show yet.
#[derive(Debug, Default)]
pub struct Volumes {
    claims: HashMap<ObjectKey, Arc<ClaimView>>,
    by_name: BTreeMap<String, Arc<VolumeView>>,
    classes: HashMap<String, Arc<ClassView>>,
    taken: HashMap<String, ObjectKey>,
}

/// What becomes of a claim once the pod has its node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A volume is bound to it.
    Bind {
        /// The claim.
        claim: ObjectKey,
        /// Its uid.
        uid: Option<String>,
        /// The volume.
        volume: String,
    },
    /// A volume is made for it.
    Provision {
        /// The claim.
        claim: ObjectKey,
    },
}

#[derive(Debug)]
enum Need {
    /// The volume exists.
    At(Option<Vec<NodeSelectorTerm>>),
    /// One of these volumes, or one that is made.
    OneOf {
        claim: Arc<ClaimView>,
        candidates: Vec<Arc<VolumeView>>,
        class: Arc<ClassView>,
    },
}

/// What a pod's volumes ask of its node.
#[derive(Debug, Default)]
pub struct VolumePlan {
    needs: Vec<Need>,
    /// Claims that one pod alone may use.
    exclusive: Vec<String>,
}

impl Volumes {
    /// Takes in a claim, or that it is gone.
    pub fn set_claim(&mut self, key: ObjectKey, claim: Option<Arc<ClaimView>>) {
        match claim {
            Some(claim) => self.claims.insert(key, claim),
            None => self.claims.remove(&key),
        };
    }

    /// Takes in a volume, or that it is gone.
    pub fn set_volume(&mut self, name: &str, volume: Option<Arc<VolumeView>>) {
        match volume {
            Some(volume) => {
                if volume.claim.is_some() {
                    self.taken.remove(name);
                }
                self.by_name.insert(name.to_owned(), volume)
            }
            None => self.by_name.remove(name),
        };
    }

    /// Takes in a class, or that it is gone.
    pub fn set_class(&mut self, name: &str, class: Option<Arc<ClassView>>) {
        match class {
            Some(class) => self.classes.insert(name.to_owned(), class),
            None => self.classes.remove(name),
        };
    }

    /// Keeps volumes for the claims they were chosen for.
    pub fn take(&mut self, acts: &[Act]) {
        for act in acts {
            if let Act::Bind { claim, volume, .. } = act {
                self.taken.insert(volume.clone(), claim.clone());
            }
        }
    }

    /// Gives back what [`Volumes::take`] kept.
    pub fn give_back(&mut self, acts: &[Act]) {
        for act in acts {
            if let Act::Bind { volume, .. } = act {
                self.taken.remove(volume);
            }
        }
    }

    /// What the pod's claims ask of its node.
    ///
    /// # Errors
    /// Why no node can do, in kube-scheduler's words.
    pub fn plan(&self, pod: &PodInfo) -> Result<VolumePlan, String> {
        let (mut needs, mut exclusive) = (Vec::new(), Vec::new());
        let mut immediate = false;
        for name in &pod.constraints.claims {
            let key = ObjectKey::new(pod.namespace(), name);
            let Some(claim) = self.claims.get(&key) else {
                return Err(format!("persistentvolumeclaim {name:?} not found"));
            };
            if claim.terminating {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if claim.modes.iter().any(|mode| mode == "ReadWriteOncePod") {
                exclusive.push(name.clone());
            }
            if let Some(volume) = &claim.volume {
                match self.by_name.get(volume) {
                    Some(volume) if claim.bound => needs.push(Need::At(volume.nodes.clone())),
                    // Its volume was named and is on its way.
                    _ => immediate = true,
                }
                continue;
            }
            let Some(class) = self.classes.get(&claim.class).filter(|class| class.waits) else {
                immediate = true;
                continue;
            };
            needs.push(Need::OneOf {
                candidates: self.candidates(&key, claim),
                claim: claim.clone(),
                class: class.clone(),
            });
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        // What is provisioned anyhow must not take what another claim needs.
        needs.sort_by_key(|need| match need {
            Need::At(_) => 0,
            Need::OneOf { candidates, .. } => candidates.len(),
        });
        Ok(VolumePlan { needs, exclusive })
    }

    /// Volumes that a claim could have, the one kept for it first, then the smallest.
    fn candidates(&self, key: &ObjectKey, claim: &ClaimView) -> Vec<Arc<VolumeView>> {
        let kept = |volume: &VolumeView| volume.claim.as_ref().is_some_and(|(claim, _)| claim == key);
        let mut found: Vec<Arc<VolumeView>> = self
            .by_name
            .iter()
            .filter(|(name, volume)| {
                let free = match &volume.claim {
                    None => self.taken.get(*name).is_none_or(|by| by == key),
                    Some((by, uid)) => {
                        by == key
                            && uid
                                .as_ref()
                                .is_none_or(|uid| Some(uid) == claim.metadata.uid.as_ref())
                    }
                };
                let labels = volume.metadata.labels.clone().unwrap_or_default();
                free && volume.available
                    && volume.class == claim.class
                    && volume.volume_mode == claim.volume_mode
                    && volume.size >= claim.size
                    && claim.modes.iter().all(|mode| volume.modes.contains(mode))
                    && claim
                        .selector
                        .as_ref()
                        .is_none_or(|selector| selector.matches(&labels))
            })
            .map(|(_, volume)| volume.clone())
            .collect();
        found.sort_by_key(|volume| (!kept(volume), volume.size));
        found
    }
}

impl VolumePlan {
    /// Whether something has to be done to volumes before the pod can be bound.
    pub fn is_settled(&self) -> bool {
        self.needs.iter().all(|need| matches!(need, Need::At(_)))
    }

    /// Claims that no other pod may use.
    pub(super) fn exclusive(&self) -> &[String] {
        &self.exclusive
    }

    /// What keeps the pod from the node.
    pub(super) fn rejection(&self, node: &NodeInfo) -> Option<&'static str> {
        if self.needs.is_empty() {
            return None;
        }
        self.settle(node).err()
    }

    /// What has to be done for the pod to run on the node.
    pub(super) fn settle(&self, node: &NodeInfo) -> Result<Vec<Act>, &'static str> {
        let reachable = |nodes: &Option<Vec<NodeSelectorTerm>>| {
            nodes
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| node_affinity::term_matches(term, node)))
        };
        let mut acts: Vec<Act> = Vec::new();
        let mut picked: Vec<&str> = Vec::new();
        for need in &self.needs {
            match need {
                Need::At(nodes) if reachable(nodes) => {}
                Need::At(_) => return Err(ELSEWHERE),
                Need::OneOf {
                    claim,
                    candidates,
                    class,
                } => {
                    let key = ObjectKey::of(&claim.metadata);
                    // The provisioner is at work there: no other node will do until it says that it cannot.
                    if let Some(selected) = &claim.selected_node {
                        if **selected != *node.name {
                            return Err(NONE_TO_BIND);
                        }
                        acts.push(Act::Provision { claim: key });
                        continue;
                    }
                    let name = |volume: &Arc<VolumeView>| volume.metadata.name.clone().unwrap_or_default();
                    let found = candidates.iter().find(|volume| {
                        let name = volume.metadata.name.as_deref().unwrap_or_default();
                        !picked.contains(&name) && reachable(&volume.nodes)
                    });
                    if let Some(volume) = found {
                        picked.push(volume.metadata.name.as_deref().unwrap_or_default());
                        acts.push(Act::Bind {
                            claim: key,
                            uid: claim.metadata.uid.clone(),
                            volume: name(volume),
                        });
                    } else if class.provisions
                        && (class.topologies.is_empty() || reachable(&Some(class.topologies.clone())))
                    {
                        acts.push(Act::Provision { claim: key });
                    } else {
                        return Err(NONE_TO_BIND);
                    }
                }
            }
        }
        Ok(acts)
    }
}

#[cfg(test)]
mod tests {
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
}
