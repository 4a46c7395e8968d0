//! When the change was made that a write of endpoints shows: what delays are measured from.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::jiff::Timestamp;

use crate::controllers::pod::PodView;
use crate::informer::ObjectKey;

#[derive(Debug, Default)]
struct Known {
    service: Option<Timestamp>,
    pods: HashMap<Arc<str>, Timestamp>,
}

/// What was seen of each Service.
#[derive(Debug, Default)]
pub(crate) struct Triggers {
    by_service: Mutex<HashMap<ObjectKey, Known>>,
}

impl Triggers {
    /// The time of the earliest change since the last call: of a pod's readiness, or the Service's creation.
    pub(crate) fn earliest(
        &self,
        service: &ObjectKey,
        created: Option<Timestamp>,
        pods: &[Arc<PodView>],
    ) -> Option<Timestamp> {
        let mut all = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        let known = all.entry(service.clone()).or_default();
        let changed = pods.iter().filter_map(|pod| {
            let time = pod.ready_changed?;
            let before = known.pods.get(pod.name());
            before.is_none_or(|before| time > *before).then_some(time)
        });
        let mut earliest = changed.min();
        known.pods = pods
            .iter()
            .filter_map(|pod| Some((pod.name().into(), pod.ready_changed?)))
            .collect();
        if known.service != created {
            known.service = created;
            earliest = created.into_iter().chain(earliest).min();
        }
        earliest
    }

    /// The Service is gone.
    pub(crate) fn forget(&self, service: &ObjectKey) {
        let mut all = self.by_service.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_new_change_counts() {
        let time = |second: i8| -> Timestamp { format!("2030-01-01T00:00:{second:02}Z").parse().unwrap() };
        let pod = |name: &str, ready: i8| {
            let mut pod = PodView::default();
            pod.metadata.name = Some(name.to_owned());
            pod.ready_changed = Some(time(ready));
            Arc::new(pod)
        };
        let key = ObjectKey::new("default", "web");
        let triggers = Triggers::default();
        let created = Some(time(1));
        assert_eq!(triggers.earliest(&key, created, &[]), created);
        assert_eq!(triggers.earliest(&key, created, &[pod("a", 5)]), Some(time(5)));
        assert_eq!(
            triggers.earliest(&key, created, &[pod("a", 5), pod("b", 9), pod("c", 8)]),
            Some(time(8))
        );
        assert_eq!(
            triggers.earliest(&key, created, &[pod("a", 5)]),
            None,
            "a pod is gone"
        );
        triggers.forget(&key);
        assert_eq!(triggers.earliest(&key, created, &[pod("a", 5)]), created);
    }
}
