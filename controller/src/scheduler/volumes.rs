//! Volume topology: on which nodes the volumes that a pod claims are, or can be.

mod view;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::NodeSelectorTerm;

use super::filter::node_affinity;
use super::node::NodeInfo;
use super::pod::PodInfo;
use crate::informer::ObjectKey;

pub use view::{ClaimView, ClassView, VolumeView};

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
mod tests;
