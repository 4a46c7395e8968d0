//! What many pods have in common, kept once.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Constraints, Labels, PodInfo, Signature};
use crate::scheduler::resources::Demand;

/// What pods that are alike have in common is kept once: a Deployment's pods differ in little but their names.
#[derive(Debug, Default)]
pub(in crate::scheduler) struct Alike {
    known: HashMap<Signature, Common>,
    /// When so many are known, those that no pod has any more are forgotten.
    sweep_at: usize,
}

#[derive(Debug)]
struct Common {
    labels: Arc<Labels>,
    demand: Arc<Demand>,
    constraints: Arc<Constraints>,
}

impl Alike {
    const SWEEP_AT_LEAST: usize = 1024;

    /// The pod, with what others have, too, taken from them.
    pub(in crate::scheduler) fn share(&mut self, mut pod: PodInfo) -> PodInfo {
        let signature = pod.signature();
        if let Some(common) = self.known.get(&signature) {
            pod.labels = common.labels.clone();
            pod.demand = common.demand.clone();
            pod.constraints = common.constraints.clone();
            return pod;
        }
        if self.known.len() >= self.sweep_at {
            self.known
                .retain(|_, common| Arc::strong_count(&common.constraints) > 1);
            self.sweep_at = Self::SWEEP_AT_LEAST.max(2 * self.known.len());
        }
        let common = Common {
            labels: pod.labels.clone(),
            demand: pod.demand.clone(),
            constraints: pod.constraints.clone(),
        };
        self.known.insert(signature, common);
        pod
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
        assert!(alike.known.len() <= Alike::SWEEP_AT_LEAST + 1);
        assert!(alike.known.contains_key(&a.signature()), "some pods have it");
    }
}
