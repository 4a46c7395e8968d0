//! What is kept for a time only: Events, certificate requests that were answered or forgotten, bootstrap tokens, and reports of usage.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Server;
use crate::auth::bootstrap_token;
use crate::store::{Expect, Operation, Write};

/// How often to look.
const INTERVAL: Duration = Duration::from_mins(1);
/// Deletions in flight.
const AT_A_TIME: usize = 64;

/// How long a report of usage counts for what is so now.
const REPORT_LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// Whether an object's time is over.
type IsOver = fn(&Value, Timestamp) -> bool;

/// What is kept for a time: the resource, what its keys begin with, and whether an object's time is over.
const KEPT: &[(&str, &str, IsOver)] = &[
    ("events", "", |event, now| {
        is_older(event, SignedDuration::from_hours(1), now)
    }),
    (
        "certificates.k8s.io/certificatesigningrequests",
        "",
        |request, now| {
            // One that nobody has answered may still be.
            let answered = request["status"]["conditions"]
                .as_array()
                .is_some_and(|conditions| !conditions.is_empty());
            is_older(
                request,
                SignedDuration::from_hours(if answered { 1 } else { 24 }),
                now,
            )
        },
    ),
    (
        "secrets",
        "kube-system/bootstrap-token-",
        bootstrap_token::is_over,
    ),
    ("metrics.k8s.io/nodes", "", is_stale),
    ("metrics.k8s.io/pods", "", is_stale),
];

/// Looks again and again until the server stops.
pub(super) async fn run(server: &Server) {
    loop {
        tokio::select! {
            () = server.shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
        for (storage, prefix, is_over) in KEPT {
            let now = Timestamp::now();
            expire(server, storage, prefix, |object| is_over(object, now)).await;
        }
    }
}

/// Removes objects whose time is over.
async fn expire(server: &Server, storage: &'static str, prefix: &str, is_over: impl Fn(&Value) -> bool) {
    let listing = server.store.list(storage, prefix);
    let old = listing
        .items
        .into_iter()
        .filter(|object| is_over(&object.value()));
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

/// Whether a report of usage tells of a past time.
fn is_stale(report: &Value, now: Timestamp) -> bool {
    let told = report["timestamp"].as_str().and_then(|text| text.parse().ok());
    told.is_none_or(|told: Timestamp| told < now.checked_sub(REPORT_LIFETIME).unwrap_or(Timestamp::MIN))
}

/// Whether the last time that an object names is this long ago.
fn is_older(object: &Value, lifetime: SignedDuration, now: Timestamp) -> bool {
    is_before(object, now.checked_sub(lifetime).unwrap_or(Timestamp::MIN))
}

fn is_before(object: &Value, end: Timestamp) -> bool {
    let times = [
        &object["series"]["lastObservedTime"],
        &object["lastTimestamp"],
        &object["eventTime"],
        &object["status"]["conditions"][0]["lastUpdateTime"],
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
    fn an_answered_request_goes_sooner() {
        let (_, _, is_over) = KEPT[1];
        let request = |conditions: Value| {
            json!({
                "metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}, "status": {"conditions": conditions},
            })
        };
        let at = |time: &str| time.parse::<Timestamp>().unwrap();
        let answered = request(json!([{"type": "Denied", "lastUpdateTime": "2026-01-01T11:00:00Z"}]));
        assert!(!is_over(&answered, at("2026-01-01T11:59:00Z")));
        assert!(is_over(&answered, at("2026-01-01T12:01:00Z")));
        assert!(!is_over(&request(json!([])), at("2026-01-02T09:59:00Z")));
        assert!(is_over(&request(json!([])), at("2026-01-02T10:01:00Z")));
    }

    #[test]
    fn a_report_of_long_ago_goes() {
        let now = "2026-01-01T12:00:00Z".parse().unwrap();
        let report = |time: &str| json!({"timestamp": time});
        assert!(!is_stale(&report("2026-01-01T11:55:00Z"), now));
        assert!(is_stale(&report("2026-01-01T11:54:59Z"), now));
        assert!(is_stale(&json!({}), now), "nobody can tell when it was");
    }

    #[test]
    fn the_last_time_counts() {
        let end = "2026-01-01T12:00:00Z".parse().unwrap();
        let event = |last: &str| json!({"metadata": {"creationTimestamp": "2026-01-01T10:00:00Z"}, "lastTimestamp": last});
        assert!(is_before(&event("2026-01-01T11:59:00Z"), end));
        assert!(!is_before(&event("2026-01-01T12:01:00Z"), end));
        assert!(!is_before(&json!({}), end), "nothing is known");
    }
}
