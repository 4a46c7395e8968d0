//! Load on the API alone: ConfigMaps read and written by many clients, and how soon watchers see a write.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Method;
use memchr::memmem;
use serde_json::json;
use tokio::task::JoinSet;

use super::PATIENCE;
use super::http::{Connection, JSON, Target};

/// Clients at a time.
const CLIENTS: usize = 16;
/// Objects of each client that are read and updated in turn.
const OBJECTS: usize = 64;
/// Data of a ConfigMap.
const BYTES: usize = 256;
/// Writes that a single watcher is measured with.
const SINGLE_WRITES: usize = 500;
/// Watchers of the crowd.
const WATCHERS: usize = 100;
/// Writes a second that the crowd watches.
const WRITES_PER_SECOND: usize = 1000;
/// Clients that share those writes.
const WRITERS: usize = 16;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const WATCHED: &str = "/api/v1/namespaces/kube-public/configmaps";

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Create,
    Get,
    Update,
}

fn config_map(name: &str, fill: usize) -> Bytes {
    let digit = char::from(b'a' + u8::try_from(fill % 26).unwrap_or(0));
    let value: String = std::iter::repeat_n(digit, BYTES).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "value": value },
    })
    .to_string()
    .into()
}

/// Requests a second of all clients together. `Get` and `Update` need what a `Create` has left.
pub(super) async fn config_maps(target: &Target, work: Work, round: usize, length: Duration) -> Result<f64> {
    let mut clients = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        connections.push(Connection::open(target).await?);
    }
    let began = Instant::now();
    for (client, connection) in connections.into_iter().enumerate() {
        clients.spawn(one_client(connection, work, client, round, length));
    }
    let mut requests = 0;
    while let Some(done) = clients.join_next().await {
        requests += done??;
    }
    let requests = u32::try_from(requests).map_or(f64::MAX, f64::from);
    Ok(requests / began.elapsed().as_secs_f64())
}

async fn one_client(
    mut connection: Connection,
    work: Work,
    client: usize,
    round: usize,
    length: Duration,
) -> Result<usize> {
    let deadline = Instant::now() + length;
    let mut done = 0;
    while Instant::now() < deadline || (work == Work::Create && done < OBJECTS) {
        let index = if work == Work::Create {
            done
        } else {
            done % OBJECTS
        };
        let name = format!("bench-{round}-{client}-{index}");
        let path = format!("{CONFIG_MAPS}/{name}");
        match work {
            Work::Create => {
                connection
                    .expect(Method::POST, CONFIG_MAPS, JSON, config_map(&name, done))
                    .await?
            }
            Work::Get => connection.expect(Method::GET, &path, "", Bytes::new()).await?,
            Work::Update => {
                let body = config_map(&name, 1 + done / OBJECTS);
                connection.expect(Method::PUT, &path, JSON, body).await?
            }
        };
        done += 1;
    }
    Ok(done)
}

/// Milliseconds.
fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn percentile(samples: &mut [f64], percent: usize) -> Result<f64> {
    samples.sort_by(f64::total_cmp);
    let index = (samples.len() * percent / 100).min(samples.len().saturating_sub(1));
    samples.get(index).copied().context("nothing was measured")
}

/// The median time of making a page of the store's disk durable.
pub(super) fn fsync(dir: &Path) -> Result<f64> {
    let path = dir.join("fsync");
    let mut file = File::create(&path)?;
    let mut samples = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        samples.push(ms(began.elapsed()));
    }
    std::fs::remove_file(path)?;
    percentile(&mut samples, 50)
}

/// What a single watcher sees.
pub(super) struct Single {
    /// Median milliseconds from sending a write until it is observed.
    pub(super) observed: f64,
    /// Median milliseconds from sending a write until its answer.
    pub(super) answered: f64,
}

/// One watcher, one writer, one write at a time.
pub(super) async fn watch_single(target: &Target, round: usize) -> Result<Single> {
    let watch = Connection::open(target).await?;
    let mut watch = watch
        .watch(&format!("{WATCHED}?watch=true&resourceVersion=0"))
        .await?;
    let mut writer = Connection::open(target).await?;
    let (mut observed, mut answered) = (Vec::new(), Vec::new());
    for write in 0..SINGLE_WRITES {
        let name = format!("single-{round}-{write}");
        let body = config_map(&name, write);
        let began = Instant::now();
        let (written, seen) = tokio::join!(
            async {
                let result = writer.expect(Method::POST, WATCHED, JSON, body).await;
                result.map(|_| began.elapsed())
            },
            async {
                // What was there before comes first.
                while let Some(line) = watch.next().await? {
                    if memmem::find(&line, name.as_bytes()).is_some() {
                        return Ok(began.elapsed());
                    }
                }
                anyhow::bail!("the watch ended")
            }
        );
        answered.push(ms(written?));
        observed.push(ms(seen?));
    }
    Ok(Single {
        observed: percentile(&mut observed, 50)?,
        answered: percentile(&mut answered, 50)?,
    })
}

/// What a crowd of watchers sees.
pub(super) struct Crowd {
    /// The 99th percentile, in milliseconds, over all watchers and writes, from sending a write until a watcher has it.
    pub(super) observed: f64,
    /// The 99th percentile, in milliseconds, over all writes, from sending one until its answer.
    pub(super) answered: f64,
}

/// 100 watchers of what 16 writers write.
pub(super) async fn watch_crowd(target: &Target, round: usize, length: Duration) -> Result<Crowd> {
    let mut list = Connection::open(target).await?;
    let version = list.get(WATCHED).await?["metadata"]["resourceVersion"]
        .as_str()
        .context("no resource version")?
        .to_owned();
    let mut watchers = JoinSet::new();
    let seconds = usize::try_from(length.as_secs()).unwrap_or(1).max(1);
    // All writers send as many, and the watchers wait for no more than are sent.
    let writes_each = WRITES_PER_SECOND * seconds / WRITERS;
    let writes = writes_each * WRITERS;
    let epoch = Instant::now();
    let prefix: Arc<str> = format!("crowd-{round}-").into();
    for _ in 0..WATCHERS {
        let watch = Connection::open(target).await?;
        let path = format!("{WATCHED}?watch=true&resourceVersion={version}");
        let mut watch = watch.watch(&path).await?;
        let prefix = Arc::clone(&prefix);
        watchers.spawn(async move {
            let mut delays = Vec::with_capacity(writes);
            while delays.len() < writes {
                let line = watch.next().await?.context("a watch ended")?;
                if let Some(sent) = sent_at(&line, prefix.as_bytes()) {
                    delays.push(ms(epoch.elapsed().saturating_sub(sent)));
                }
            }
            Ok::<_, anyhow::Error>(delays)
        });
    }
    let mut writers = JoinSet::new();
    let pace = Duration::from_secs(1) * u32::try_from(WRITERS)? / u32::try_from(WRITES_PER_SECOND)?;
    let start = tokio::time::Instant::now();
    for writer in 0..WRITERS {
        let mut connection = Connection::open(target).await?;
        let prefix = Arc::clone(&prefix);
        writers.spawn(async move {
            let offset = pace * u32::try_from(writer)? / u32::try_from(WRITERS)?;
            let mut late = 0;
            let mut answers = Vec::with_capacity(writes_each);
            for write in 0..writes_each {
                let due = start + offset + pace * u32::try_from(write)?;
                tokio::time::sleep_until(due).await;
                late += usize::from(due.elapsed() > pace);
                // The name says when the write was sent, so that watchers need no table.
                let sent = epoch.elapsed();
                let name = format!("{prefix}{writer}-{}", sent.as_micros());
                connection
                    .expect(Method::POST, WATCHED, JSON, config_map(&name, write))
                    .await?;
                answers.push(ms(epoch.elapsed().saturating_sub(sent)));
            }
            Ok::<_, anyhow::Error>((late, answers))
        });
    }
    let (mut late, mut answered) = (0, Vec::new());
    while let Some(done) = writers.join_next().await {
        let (too_late, answers) = done??;
        late += too_late;
        answered.extend(answers);
    }
    ensure!(
        late < writes / 4,
        "{late} of {writes} writes were sent late: the server takes fewer than {WRITES_PER_SECOND} a second"
    );
    let mut observed = Vec::new();
    let all_seen = async {
        while let Some(done) = watchers.join_next().await {
            observed.extend(done??);
        }
        Ok::<_, anyhow::Error>(())
    };
    let seen = tokio::time::timeout(PATIENCE, all_seen).await;
    seen.context("a watcher has not seen all that was written")??;
    Ok(Crowd {
        observed: percentile(&mut observed, 99)?,
        answered: percentile(&mut answered, 99)?,
    })
}

/// When the write that a line tells about was sent, since the epoch.
fn sent_at(line: &[u8], prefix: &[u8]) -> Option<Duration> {
    let at = memmem::find(line, prefix)?;
    let rest = &line[at + prefix.len()..];
    let rest = &rest[rest.iter().position(|byte| *byte == b'-')? + 1..];
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit());
    let micros = digits.fold(0_u64, |all, digit| all * 10 + u64::from(digit - b'0'));
    Some(Duration::from_micros(micros))
}

/// Milliseconds of reading a list whole; the median of some.
pub(super) async fn list(target: &Target, path: &str, least: usize) -> Result<f64> {
    let mut connection = Connection::open(target).await?;
    let mut samples = Vec::new();
    for _ in 0..10 {
        let began = Instant::now();
        let body = connection.expect(Method::GET, path, "", Bytes::new()).await?;
        samples.push(ms(began.elapsed()));
        ensure!(body.len() > least, "{path} has only {} bytes", body.len());
    }
    percentile(&mut samples, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_when_they_were_sent() {
        let line = br#"{"type":"ADDED","object":{"metadata":{"name":"crowd-2-11-123456"}}}"#;
        assert_eq!(sent_at(line, b"crowd-2-"), Some(Duration::from_micros(123_456)));
        assert_eq!(sent_at(line, b"crowd-3-"), None);
    }

    #[test]
    fn percentiles() {
        let mut samples: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert!((percentile(&mut samples, 50).unwrap() - 101.0).abs() < 0.01);
        assert!((percentile(&mut samples, 99).unwrap() - 199.0).abs() < 0.01);
        assert!(percentile(&mut [], 99).is_err());
    }
}
