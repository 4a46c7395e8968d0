//! What `/metrics` tells besides counts of the server's own: latencies, queues, decisions. Counting costs a few atomic
//! additions; names are those that dashboards for Kubernetes know wherever the thing is the same.
//!
//! The figures are the process's, as those of any Prometheus client.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// Upper ends of a histogram's buckets, in microseconds.
const BUCKETS: [u64; 14] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 5_000_000,
    30_000_000,
];
/// Series of a family at most: labels come from clients' requests as well.
const SERIES: usize = 4096;

/// Requests answered, by `verb`, `group`, `version`, `resource`, `subresource`, `code`.
pub static REQUESTS: Family<Counter> =
    Family::new("apiserver_request_total", "Requests answered.", "counter");
/// How long answers took, watches apart, by `verb`, `group`, `resource`.
pub static REQUEST_SECONDS: Family<Histogram> = Family::new(
    "apiserver_request_duration_seconds",
    "Time from a request's headers to its answer, watches apart.",
    "histogram",
);
/// Commits of the store: each is one `fsync`.
pub static COMMIT_SECONDS: Family<Histogram> = Family::new(
    "weft_store_commit_duration_seconds",
    "Time a batch of writes took to become durable and visible.",
    "histogram",
);
/// Writes that were committed; by the commits, this is how many share an `fsync`.
pub static WRITES: Family<Counter> = Family::new("weft_store_writes_total", "Writes committed.", "counter");
/// Keys that wait, by controller (`name`).
pub static QUEUE_DEPTH: Family<Gauge> = Family::new("workqueue_depth", "Keys that wait in a queue.", "gauge");
/// How long reconciling a key took, by controller (`name`).
pub static WORK_SECONDS: Family<Histogram> = Family::new(
    "workqueue_work_duration_seconds",
    "Time reconciling a key took.",
    "histogram",
);
/// Reconciles that failed and are tried again, by controller (`name`).
pub static RETRIES: Family<Counter> = Family::new(
    "workqueue_retries_total",
    "Reconciles that failed and are tried again.",
    "counter",
);
/// Whether this process holds a Lease (`name`), by which one of several works.
pub static LEADING: Family<Gauge> = Family::new(
    "leader_election_master_status",
    "Whether this process leads: 1, or 0 while it stands by.",
    "gauge",
);
/// The scheduler's decisions, by `result`.
pub static DECISIONS: Family<Counter> = Family::new(
    "scheduler_schedule_attempts_total",
    "Decisions about pods, by what came of them.",
    "counter",
);
/// How long the scheduler's decisions took.
pub static DECISION_SECONDS: Family<Histogram> = Family::new(
    "scheduler_scheduling_algorithm_duration_seconds",
    "Time a decision about a pod took.",
    "histogram",
);

/// One figure.
pub trait Metric: Default {
    /// Writes its lines; `labels` is empty or `a="b",c="d"`.
    fn write(&self, text: &mut String, name: &str, labels: &str);
}

/// A count that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// So many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }
}

impl Metric for Counter {
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        write_one(&self.0, text, name, labels);
    }
}

/// A figure that is as it is.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// It is so.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Metric for Gauge {
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        write_one(&self.0, text, name, labels);
    }
}

fn write_one(figure: &AtomicU64, text: &mut String, name: &str, labels: &str) {
    let _ = writeln!(
        text,
        "{name}{} {}",
        braced(labels),
        figure.load(Ordering::Relaxed)
    );
}

/// Durations, by how long they were.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS.len()],
    count: AtomicU64,
    micros: AtomicU64,
}

impl Histogram {
    /// One that took so long.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BUCKETS.iter().position(|end| micros <= *end) {
            self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl Metric for Histogram {
    fn write(&self, text: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        let mut below = 0;
        for (bucket, end) in self.buckets.iter().zip(BUCKETS) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(
                text,
                "{name}_bucket{{{labels}{comma}le=\"{}\"}} {below}",
                seconds(end)
            );
        }
        // A count read later than the buckets could be larger than what the last of them says; never smaller.
        let count = self.count.load(Ordering::Relaxed).max(below);
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
        let sum = seconds(self.micros.load(Ordering::Relaxed));
        let _ = writeln!(text, "{name}_sum{} {sum}", braced(labels));
        let _ = writeln!(text, "{name}_count{} {count}", braced(labels));
    }
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn braced(labels: &str) -> String {
    if labels.is_empty() {
        String::new()
    } else {
        format!("{{{labels}}}")
    }
}

/// A metric for each set of labels.
#[derive(Debug)]
pub struct Family<M> {
    name: &'static str,
    help: &'static str,
    kind: &'static str,
    series: RwLock<BTreeMap<String, Arc<M>>>,
}

impl<M: Metric> Family<M> {
    const fn new(name: &'static str, help: &'static str, kind: &'static str) -> Self {
        Self {
            name,
            help,
            kind,
            series: RwLock::new(BTreeMap::new()),
        }
    }

    /// The metric with these labels. Their values must need no escaping.
    pub fn with(&self, labels: &[(&str, &str)]) -> Arc<M> {
        let mut key = String::with_capacity(96);
        for (name, value) in labels {
            let comma = if key.is_empty() { "" } else { "," };
            let _ = write!(key, "{comma}{name}=\"{value}\"");
        }
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = series.get(&key) {
            return Arc::clone(found);
        }
        drop(series);
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        if series.len() >= SERIES && !series.contains_key(&key) {
            // What is not told apart any more is at least counted.
            key = labels
                .iter()
                .map(|(name, _)| format!("{name}=\"other\""))
                .collect::<Vec<_>>()
                .join(",");
        }
        Arc::clone(series.entry(key).or_default())
    }

    fn write(&self, text: &mut String) {
        let series = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if series.is_empty() {
            return;
        }
        let Self { name, help, kind, .. } = self;
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, metric) in series.iter() {
            metric.write(text, name, labels);
        }
    }
}

/// Asks a queue how long it is; `None` once it is gone.
type Depth = Box<dyn Fn() -> Option<usize> + Send>;

static QUEUES: Mutex<Vec<(&str, Depth)>> = Mutex::new(Vec::new());

/// Tells of a queue's depth whenever somebody asks.
pub(crate) fn tell_depth(name: &'static str, depth: impl Fn() -> Option<usize> + Send + 'static) {
    let mut queues = QUEUES.lock().unwrap_or_else(PoisonError::into_inner);
    queues.retain(|(_, depth)| depth().is_some());
    queues.push((name, Box::new(depth)));
}

/// All of it in Prometheus's text form.
pub(crate) fn text() -> String {
    let mut depths: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, depth) in QUEUES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        if let Some(depth) = depth() {
            *depths.entry(name).or_default() += depth as u64;
        }
    }
    for (name, depth) in depths {
        QUEUE_DEPTH.with(&[("name", name)]).set(depth);
    }
    let mut text = String::new();
    REQUESTS.write(&mut text);
    REQUEST_SECONDS.write(&mut text);
    COMMIT_SECONDS.write(&mut text);
    WRITES.write(&mut text);
    QUEUE_DEPTH.write(&mut text);
    WORK_SECONDS.write(&mut text);
    RETRIES.write(&mut text);
    LEADING.write(&mut text);
    DECISIONS.write(&mut text);
    DECISION_SECONDS.write(&mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_written_as_prometheus_reads_them() {
        let family: Family<Histogram> = Family::new("x_seconds", "Help.", "histogram");
        let metric = family.with(&[("verb", "get"), ("resource", "pods")]);
        for micros in [1, 250, 251, 40_000_000] {
            metric.observe(Duration::from_micros(micros));
        }
        let mut text = String::new();
        family.write(&mut text);
        assert!(
            text.starts_with("# HELP x_seconds Help.\n# TYPE x_seconds histogram\n"),
            "{text}"
        );
        for line in [
            "x_seconds_bucket{verb=\"get\",resource=\"pods\",le=\"0.00025\"} 2",
            "x_seconds_bucket{verb=\"get\",resource=\"pods\",le=\"0.0005\"} 3",
            "x_seconds_bucket{verb=\"get\",resource=\"pods\",le=\"30\"} 3",
            "x_seconds_bucket{verb=\"get\",resource=\"pods\",le=\"+Inf\"} 4",
            "x_seconds_sum{verb=\"get\",resource=\"pods\"} 40.000502",
            "x_seconds_count{verb=\"get\",resource=\"pods\"} 4",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is missing in {text}"
            );
        }
    }

    #[test]
    fn there_are_never_too_many_series() {
        let family: Family<Counter> = Family::new("y_total", "Help.", "counter");
        for index in 0..SERIES + 10 {
            family.with(&[("resource", &index.to_string())]).increment();
        }
        let mut text = String::new();
        family.write(&mut text);
        assert!(text.contains("y_total{resource=\"other\"} 10\n"));
        assert_eq!(text.lines().count(), SERIES + 3);
    }
}
