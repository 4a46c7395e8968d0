//! How long a Job waits after its pods failed.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// The longest wait.
const LONGEST: Duration = Duration::from_mins(10);

/// Failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Record {
    /// Since the last success.
    pub failures: u32,
    /// When the last one was.
    pub last: Option<Timestamp>,
}

impl Record {
    /// Takes in pods that ended, as when and whether well. Without a time of its end, a pod ended `now`.
    pub fn note(&mut self, mut ends: Vec<(Option<Timestamp>, bool)>, now: Timestamp) {
        ends.sort_by_key(|(at, _)| at.unwrap_or(now));
        for (at, success) in ends {
            if success {
                *self = Record::default();
            } else {
                self.failures += 1;
                self.last = Some(at.unwrap_or(now));
            }
        }
    }

    /// How much of the wait is left: `base` after the first failure, twice as long after each further one.
    pub fn left(&self, base: Duration, now: Timestamp) -> Option<Duration> {
        let doublings = self.failures.checked_sub(1)?.min(20);
        let wait = base.saturating_mul(1 << doublings).min(LONGEST);
        let since = Duration::try_from(now.duration_since(self.last?)).unwrap_or(Duration::ZERO);
        wait.checked_sub(since).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::SignedDuration;

    use super::*;

    #[test]
    fn each_failure_in_a_row_doubles_the_wait() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let ago = |seconds| Some(now - SignedDuration::from_secs(seconds));
        let base = Duration::from_secs(10);
        let mut record = Record::default();
        assert_eq!(record.left(base, now), None);
        record.note(vec![(ago(4), false)], now);
        assert_eq!(record.left(base, now), Some(Duration::from_secs(6)));
        record.note(vec![(ago(1), false), (ago(2), false)], now);
        assert_eq!(record.left(base, now), Some(Duration::from_secs(39)));
        let mut many = Record {
            failures: 500,
            last: ago(0),
        };
        assert_eq!(many.left(base, now), Some(LONGEST));
        many.note(vec![(ago(1), false), (None, true)], now);
        assert_eq!(many, Record::default(), "a success ends it");
        many.note(vec![(ago(2), true), (ago(20), false), (ago(11), false)], now);
        assert_eq!(many, Record::default(), "in the order of their ends");
    }
}
