//! What is kept for a time only: Events, and certificate requests that were answered or forgotten.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Server;
use crate::store::{Expect, Operation, Write};

/// How often to look.
const INTERVAL: Duration = Duration::from_mins(1);
/// Deletions in flight.
const AT_A_TIME: usize = 64;

/// What is kept for how long, counted from the last time that the object names, as in Kubernetes.
const KEPT: &[(&str, SignedDuration)] = &[
    ("events", SignedDuration::from_hours(1)),
    (
        "certificates.k8s.io/certificatesigningrequests",
        SignedDuration::from_hours(24),
    ),
];

/// Looks again and again until the server stops.
pub(super) async fn run(server: &Server) {
    loop {
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        for (storage, lifetime) in KEPT {
            let end = Timestamp::now().checked_sub(*lifetime).unwrap_or(Timestamp::MIN);
            expire(server, storage, end).await;
        }
    }
}

/// Removes objects whose last time is before `end`.
async fn expire(server: &Server, storage: &'static str, end: Timestamp) {
    let listing = server.store.list(storage, "");
    let old = listing
        .items
        .into_iter()
        .filter(|object| is_before(&object.value(), end));
    let removals = old.filter_map(|object| {
        let row = crate::resources::stored_as(storage)?;
        let meta = object.meta();
        let write = Write {
            resource: storage,
            key: row.key(&meta.namespace, &meta.name),
            expect: Expect::Revision(object.revision()),
            operation: Operation::Delete,
        };
        Some(server.store.commit(vec![write]))
    });
    // One that fails has changed meanwhile, or comes up again next time.
    let removed = stream::iter(removals)
        .buffer_unordered(AT_A_TIME)
        .filter(|result| std::future::ready(result.is_ok()))
        .count()
        .await;
    if removed > 0 {
        tracing::debug!(removed, storage, "expired");
    }
}

fn is_before(object: &Value, end: Timestamp) -> bool {
    let times = [
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["eventTime"],
        &object["metadata"]["creationTimestamp"],
    ];
    let last = times
        .iter()
        .filter_map(|time| time.as_str()?.parse::<Timestamp>().ok())
        .max();
    last.is_some_and(|last| last < end)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_last_time_counts() {
        let end = "2026-01-01T12:00:00Z".parse().unwrap();
        let event = |last: &str| json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}, "lastTimestamp": last});
        assert!(is_before(&event("2026-01-01T11:59:00Z"), end));
        assert!(!is_before(&event("2026-01-01T12:01:00Z"), end));
        assert!(!is_before(&json!({}), end), "nothing is known");
    }
}
