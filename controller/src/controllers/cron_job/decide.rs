//! When a CronJob is due, and which of its Jobs to forget: without any IO.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::jiff::tz::TimeZone;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::controllers::job::decide::{condition, finished_at};
use crate::cron::Schedule;

/// So many missed times are worth a warning: clocks may disagree.
const MANY: i64 = 100;

/// The times around now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The last time that was due and has not been dealt with.
    pub at: Option<Timestamp>,
    /// Whether there were too many of them.
    pub too_many: bool,
    /// The next time after now.
    pub next: Option<Timestamp>,
}

/// Finds them. Times before the CronJob was made, before its last run, and those too late to start do not count.
pub fn due(cron: &CronJob, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Due {
    let last = cron
        .status
        .as_ref()
        .and_then(|status| status.last_schedule_time.as_ref());
    let made = cron.metadata.creation_timestamp.as_ref();
    let mut earliest = last.or(made).map_or(now, |time| time.0);
    if let Some(deadline) = deadline(cron) {
        earliest = earliest.max(now - deadline);
    }
    let next = schedule.next_after(now, zone);
    let nothing = Due {
        at: None,
        too_many: false,
        next,
    };
    let Some(first) = schedule.next_after(earliest, zone).filter(|first| *first <= now) else {
        return nothing;
    };
    let Some(second) = schedule.next_after(first, zone).filter(|second| *second <= now) else {
        return Due {
            at: Some(first),
            ..nothing
        };
    };
    // Years of minutes may have been missed: nearly all of the way is guessed, and the rest walked.
    let between = second.duration_since(first).as_secs().max(1);
    let missed = now.duration_since(first).as_secs() / between + 1;
    let leap = first + SignedDuration::from_secs((missed - 2).max(0) * between);
    let mut at = first;
    let mut from = leap - SignedDuration::from_secs(1);
    // Irregular schedules have gaps; where the guess is past the last time, the walk starts from the beginning.
    if schedule.next_after(from, zone).is_none_or(|time| time > now) {
        from = first;
    }
    while let Some(time) = schedule.next_after(from, zone).filter(|time| *time <= now) {
        (at, from) = (time, time);
    }
    Due {
        at: Some(at),
        too_many: missed > MANY,
        next,
    }
}

fn deadline(cron: &CronJob) -> Option<SignedDuration> {
    let seconds = cron.spec.as_ref()?.starting_deadline_seconds?;
    Some(SignedDuration::from_secs(seconds))
}

/// Whether it is too late to start what was due.
pub fn too_late(cron: &CronJob, at: Timestamp, now: Timestamp) -> bool {
    deadline(cron).is_some_and(|deadline| at + deadline < now)
}

/// How long to wait for the next time: a little longer, so that it is not still ahead by a few milliseconds.
pub fn wait(next: Option<Timestamp>, now: Timestamp) -> Option<Duration> {
    let wait = Duration::try_from(next?.duration_since(now)).unwrap_or(Duration::ZERO);
    Some(wait + Duration::from_millis(100))
}

/// The name of the Job of a time: one for each minute, so that two controllers cannot make two.
pub fn job_name(cron: &CronJob, at: Timestamp) -> String {
    format!("{}-{}", cron.name_any(), at.as_second() / 60)
}

/// The finished Jobs beyond the limits, oldest first.
pub fn surplus<'a, J: AsRef<Job>>(cron: &CronJob, jobs: &'a [J]) -> Vec<&'a Job> {
    let Some(spec) = &cron.spec else { return Vec::new() };
    let mut out = Vec::new();
    for (success, limit) in [
        (true, spec.successful_jobs_history_limit),
        (false, spec.failed_jobs_history_limit),
    ] {
        let Some(limit) = limit else { continue };
        let mut finished: Vec<&Job> = jobs
            .iter()
            .map(AsRef::as_ref)
            .filter(|job| job.metadata.deletion_timestamp.is_none())
            .filter(|job| {
                let status = job.status.as_ref();
                status.is_some_and(|status| {
                    finished_at(status).is_some() && condition(status, "Complete").is_some() == success
                })
            })
            .collect();
        finished.sort_by_key(|job| {
            let start = job.status.as_ref().and_then(|status| status.start_time.clone());
            (start.is_none(), start, job.name_any())
        });
        let count = finished.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        out.extend(finished.into_iter().take(count));
    }
    out
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn cron(spec: Value, status: Value) -> CronJob {
        let mut full = json!({ "schedule": "", "jobTemplate": {} });
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "metadata": { "name": "tick", "creationTimestamp": "2030-01-01T00:00:30Z" },
            "spec": full, "status": status,
        }))
        .unwrap()
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn find(cron: &CronJob, schedule: &str, now: &str) -> (Option<String>, bool) {
        let due = due(
            cron,
            &schedule.parse::<Schedule>().unwrap(),
            &TimeZone::UTC,
            time(now),
        );
        (due.at.map(|at| at.to_string()), due.too_many)
    }

    #[test]
    fn the_last_time_that_was_missed() {
        let fresh = cron(json!({}), json!({}));
        assert_eq!(find(&fresh, "* * * * *", "2030-01-01T00:00:59Z"), (None, false));
        let at = |text: &str| Some(text.to_owned());
        assert_eq!(
            find(&fresh, "* * * * *", "2030-01-01T00:01:00Z").0,
            at("2030-01-01T00:01:00Z")
        );
        assert_eq!(
            find(&fresh, "* * * * *", "2030-01-01T00:07:30Z").0,
            at("2030-01-01T00:07:00Z")
        );
        let many = find(&fresh, "* * * * *", "2030-01-01T03:00:00Z");
        assert_eq!(many, (at("2030-01-01T03:00:00Z"), true));
        let ran = cron(json!({}), json!({ "lastScheduleTime": "2030-01-01T00:05:00Z" }));
        assert_eq!(find(&ran, "*/5 * * * *", "2030-01-01T00:09:59Z").0, None);
        assert_eq!(
            find(&ran, "*/5 * * * *", "2030-01-01T00:10:00Z").0,
            at("2030-01-01T00:10:00Z")
        );
        let late = cron(json!({ "startingDeadlineSeconds": 20 }), json!({}));
        assert_eq!(
            find(&late, "@hourly", "2030-01-01T05:00:19Z").0,
            at("2030-01-01T05:00:00Z")
        );
        assert_eq!(find(&late, "@hourly", "2030-01-01T05:00:21Z"), (None, false));
        assert!(too_late(
            &late,
            time("2030-01-01T05:00:00Z"),
            time("2030-01-01T05:00:21Z")
        ));
        assert_eq!(find(&fresh, "59 23 31 2 *", "2031-01-01T00:00:00Z").0, None);
        assert_eq!(job_name(&fresh, time("2030-01-01T00:01:00Z")), "tick-31557601");
    }

    #[test]
    fn finished_jobs_beyond_the_limits() {
        let job = |name: &str, condition: &str, start: &str| {
            let job: Job = serde_json::from_value(
                json!({ "metadata": { "name": name }, "status": { "startTime": start,
                "conditions": [{ "type": condition, "status": "True" }] } }),
            )
            .unwrap();
            Arc::new(job)
        };
        let jobs = [
            job("c", "Complete", "2030-01-03T00:00:00Z"),
            job("a", "Complete", "2030-01-01T00:00:00Z"),
            job("b", "Complete", "2030-01-02T00:00:00Z"),
            job("f", "Failed", "2030-01-01T00:00:00Z"),
            job("runs", "Suspended", "2029-01-01T00:00:00Z"),
        ];
        let names = |spec: Value| {
            surplus(&cron(spec, json!({})), &jobs)
                .iter()
                .map(|job| job.name_any())
                .collect::<Vec<_>>()
        };
        let limits = |good: i32, bad: i32| json!({ "successfulJobsHistoryLimit": good, "failedJobsHistoryLimit": bad });
        assert_eq!(names(limits(1, 1)), ["a", "b"]);
        assert_eq!(names(limits(3, 0)), ["f"]);
        assert!(names(json!({})).is_empty());
    }

    proptest! {
        /// The shortcut finds what walking every time finds.
        #[test]
        fn the_last_missed_time_is_the_last(
            schedule in prop::sample::select(vec![
                "* * * * *", "*/7 * * * *", "0 9-17 * * 1-5", "30 2 * * *", "0 0 1 * *", "@hourly", "5,50 3 */2 * *", "@every 7m",
            ]),
            minutes in 1i64..30_000,
        ) {
            let fresh = cron(json!({}), json!({}));
            let start = fresh.metadata.creation_timestamp.clone().unwrap().0;
            let now = start + SignedDuration::from_mins(minutes);
            let parsed = schedule.parse::<Schedule>().unwrap();
            let (mut last, mut from) = (None, start);
            while let Some(time) = parsed.next_after(from, &TimeZone::UTC).filter(|time| *time <= now) {
                (last, from) = (Some(time), time);
            }
            let found = due(&fresh, &parsed, &TimeZone::UTC, now).at;
            if schedule.starts_with("@every") {
                // Counted from where one starts: any is as good.
                prop_assert_eq!(found.is_some(), last.is_some());
            } else {
                prop_assert_eq!(found, last);
            }
        }
    }
}
