//! What many pods have in common, kept once.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::{Constraints, Labels, PodInfo, Signature};
use crate::scheduler::resources::Demand;

/// What pods that are alike have in common is kept once: a Deployment's pods differ in little but their names.
#[derive(Debug, Default)]
pub(crate) struct Alike {
    /// By a hash of namespace, owner and labels, the latest last.
    known: HashMap<u64, Vec<Common>>,
    count: usize,
    /// When so many are known, those that no pod has any more are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Common {
    namespace: Arc<str>,
    owner: Option<Arc<str>>,
    labels: Arc<Labels>,
    demand: Arc<Demand>,
    constraints: Arc<Constraints>,
    signature: Signature,
}

impl Common {
    fn of(pod: &PodInfo) -> Self {
        Common {
            namespace: pod.key.namespace.clone(),
            owner: pod.owner.clone(),
            labels: pod.labels.clone(),
            demand: pod.demand.clone(),
            constraints: pod.constraints.clone(),
            signature: pod.signature(),
        }
    }

    fn is_of(&self, pod: &PodInfo) -> bool {
        self.namespace == pod.key.namespace
            && self.owner == pod.owner
            && self.labels == pod.labels
            && self.demand == pod.demand
            && self.constraints == pod.constraints
    }

    fn give(&self, pod: &mut PodInfo) {
        pod.key.namespace = self.namespace.clone();
        pod.owner.clone_from(&self.owner);
        pod.labels = self.labels.clone();
        pod.demand = self.demand.clone();
        pod.constraints = self.constraints.clone();
        pod.signature = self.signature.into();
    }
}

impl Alike {
    const SWEEP_AT_LEAST: usize = 1024;
    /// So many of one owner with the same labels are compared; pods with claims of their own are all different.
    const COMPARED: usize = 8;

    /// The pod, with what others have, too, taken from them.
    pub(crate) fn share(&mut self, mut pod: PodInfo) -> PodInfo {
        let mut hasher = DefaultHasher::new();
        (&pod.key.namespace, &pod.owner, &pod.labels).hash(&mut hasher);
        let place = hasher.finish();
        let siblings = self.known.get(&place).map_or(&[][..], Vec::as_slice);
        let mut latest = siblings.iter().rev().take(Self::COMPARED);
        if let Some(common) = latest.find(|common| common.is_of(&pod)) {
            common.give(&mut pod);
            return pod;
        }
        if self.count >= self.sweep_at {
            self.sweep();
        }
        self.known.entry(place).or_default().push(Common::of(&pod));
        self.count += 1;
        pod
    }

    fn sweep(&mut self) {
        self.known.retain(|_, siblings| {
            siblings.retain(|common| Arc::strong_count(&common.constraints) > 1);
            !siblings.is_empty()
        });
        self.count = self.known.values().map(Vec::len).sum();
        self.sweep_at = Self::SWEEP_AT_LEAST.max(2 * self.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::testing::pod;

    #[test]
    fn what_is_alike_is_kept_once_and_not_for_ever() {
        let mut alike = Alike::default();
        let make = |name: &str, app: &str| pod(name).cpu("1").label("app", app).build();
        let (a, b) = (alike.share(make("a", "web")), alike.share(make("b", "web")));
        assert!(Arc::ptr_eq(&a.constraints, &b.constraints) && Arc::ptr_eq(&a.labels, &b.labels));
        let other = alike.share(make("c", "db"));
        assert_ne!(other.signature(), a.signature());
        assert_ne!(
            pod("d").cpu("2").label("app", "web").build().signature(),
            a.signature()
        );
        for i in 0..3 * Alike::SWEEP_AT_LEAST {
            alike.share(make("x", &format!("app{i}")));
        }
        assert!(alike.count <= Alike::SWEEP_AT_LEAST + 1);
        let c = alike.share(make("c", "web"));
        assert!(Arc::ptr_eq(&a.constraints, &c.constraints), "some pods have it");
        assert_eq!(a.signature(), c.signature());
    }
}
