//! `kill -9` of the controller at random moments: whatever it acknowledged is there afterwards, nothing is there twice or
//! by halves, and revisions go on. And what changes for a long time without growing takes no more memory or disk for it.

mod store;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;
use tempfile::TempDir;
use weft_lab::random::{Random, seed};
use weft_lab::wait::wait_for;

/// How often it is killed.
const CRASHES: u32 = 12;
/// It is killed within so many milliseconds.
const MOMENTS: u64 = 400;
/// Writers at a time.
const WRITERS: usize = 8;
/// A writer that finds the server dead waits this long.
const PAUSE: Duration = Duration::from_millis(20);

/// What is known of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// Its value was acknowledged.
    Is(u64),
    /// It was acknowledged to be gone.
    Gone,
    /// A write was on its way when the server died: either.
    Either(Box<Known>, Box<Known>),
}

impl Known {
    fn fits(&self, found: Option<u64>) -> bool {
        match self {
            Known::Is(value) => found == Some(*value),
            Known::Gone => found.is_none(),
            Known::Either(before, after) => before.fits(found) || after.fits(found),
        }
    }
}

type Ledger = Arc<Mutex<BTreeMap<String, Known>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_any_crash() -> Result<()> {
    let directory = TempDir::with_prefix("weft-crash-")?;
    let mut random = Random::new(seed("WEFT_CRASH_SEED"));
    let ledger = Ledger::default();
    let mut last_revision = 0;
    for crash in 0..CRASHES {
        let mut server = spawn(directory.path())?;
        let client = connect(directory.path()).await?;
        let found = check(&client, &ledger)
            .await
            .with_context(|| format!("after crash {crash}"))?;
        ensure!(
            found >= last_revision,
            "revisions went back: {found} after {last_revision}"
        );
        last_revision = found;
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                tokio::spawn(write_until_dead(
                    client.clone(),
                    writer,
                    crash,
                    Arc::clone(&ledger),
                ))
            })
            .collect();
        let moment = random.draw() % MOMENTS;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        server.kill()?;
        server.wait()?;
        for writer in writers {
            last_revision = last_revision.max(writer.await??);
        }
    }
    let mut server = spawn(directory.path())?;
    let checked = check(&connect(directory.path()).await?, &ledger).await;
    server.kill()?;
    server.wait()?;
    checked?;
    let written = ledger.lock().unwrap_or_else(PoisonError::into_inner).len();
    ensure!(written >= WRITERS, "only {written} objects were ever written");
    Ok(())
}

/// How long churn goes on.
const CHURN: Duration = Duration::from_mins(10);
/// When the sizes are read that later ones are compared with: rings and caches have filled by then.
const SETTLED: Duration = Duration::from_mins(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: ten minutes of churn"]
async fn ten_minutes_of_churn_grow_neither_memory_nor_store() -> Result<()> {
    let directory = TempDir::with_prefix("weft-churn-")?;
    let mut server = spawn(directory.path())?;
    let watched = churn(directory.path(), server.id()).await;
    server.kill()?;
    server.wait()?;
    watched
}

async fn churn(directory: &Path, pid: u32) -> Result<()> {
    let client = connect(directory).await?;
    let began = Instant::now();
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(rewrite(client.clone(), writer, began + CHURN)))
        .collect();
    tokio::time::sleep_until((began + SETTLED).into()).await;
    let settled = sizes(directory, pid)?;
    let mut written = 0;
    for writer in writers {
        written += writer.await??;
    }
    let later = sizes(directory, pid)?;
    ensure!(written > 10_000, "only {written} writes in {CHURN:?}");
    for ((what, before), (_, after)) in settled.into_iter().zip(later) {
        ensure!(
            after <= before + before / 5,
            "{what} grew from {before} kB to {after} kB over {written} writes"
        );
    }
    Ok(())
}

/// Creates, changes and deletes ConfigMaps and Events over and over; yields how often.
async fn rewrite(client: Client, writer: usize, deadline: Instant) -> Result<u64> {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let events: Api<Event> = Api::default_namespaced(client);
    let mut written = 0;
    while Instant::now() < deadline {
        let name = format!("churn-{writer}-{}", written % 100);
        let map: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": name}, "data": {"v": "x".repeat(500)},
        }))?;
        let event: Event = serde_json::from_value(json!({
            "metadata": {"name": name}, "reason": "Churn", "type": "Normal", "message": "y".repeat(100),
            "involvedObject": {"kind": "ConfigMap", "namespace": "default", "name": name},
        }))?;
        maps.create(&PostParams::default(), &map).await?;
        maps.replace(&name, &PostParams::default(), &map).await?;
        events.create(&PostParams::default(), &event).await?;
        maps.delete(&name, &DeleteParams::default()).await?;
        events.delete(&name, &DeleteParams::default()).await?;
        written += 5;
    }
    Ok(written)
}

/// Kilobytes in memory and on the disk.
fn sizes(directory: &Path, pid: u32) -> Result<[(&'static str, u64); 2]> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let memory = memory
        .and_then(|line| line.split_whitespace().next())
        .context("no VmRSS")?
        .parse()?;
    let mut disk = 0;
    for entry in fs::read_dir(directory.join("data"))? {
        disk += entry?.metadata()?.len() >> 10;
    }
    Ok([("memory", memory), ("the store", disk)])
}

/// Creates, changes and deletes objects of its own until the server is gone; yields the last revision it was told.
async fn write_until_dead(client: Client, writer: usize, crash: u32, ledger: Ledger) -> Result<u64> {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let mut last = 0;
    for step in 0_u64.. {
        let name = format!("w{writer}-{}", step % 5);
        let value = u64::from(crash) * 1_000_000 + step;
        let before = ledger
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&name)
            .cloned();
        let before = before.unwrap_or(Known::Gone);
        let object: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": name}, "data": {"v": value.to_string(), "w": value.to_string()},
        }))?;
        let remove = step % 7 == 6;
        let after = if remove { Known::Gone } else { Known::Is(value) };
        let set = |known: Known| {
            ledger
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(name.clone(), known);
        };
        set(Known::Either(Box::new(before.clone()), Box::new(after.clone())));
        let written = if remove {
            api.delete(&name, &DeleteParams::default()).await.map(drop)
        } else {
            let replaced = match api.replace(&name, &PostParams::default(), &object).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    api.create(&PostParams::default(), &object).await
                }
                other => other,
            };
            replaced.map(|object| {
                let version = object.metadata.resource_version.unwrap_or_default();
                last = last.max(version.parse().unwrap_or_default());
            })
        };
        match written {
            Ok(()) => set(after),
            Err(kube::Error::Api(status)) if remove && status.code == 404 => set(Known::Gone),
            Err(kube::Error::Api(status)) if status.code < 500 => {
                anyhow::bail!("{name} was refused: {status:?}")
            }
            Err(_) => return Ok(last),
        }
    }
    Ok(last)
}

/// Compares what is there with what was acknowledged, and settles what was uncertain.
async fn check(client: &Client, ledger: &Ledger) -> Result<u64> {
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let list = api.list(&ListParams::default()).await?;
    let mut found = BTreeMap::new();
    for map in list.items {
        let data = map.data.unwrap_or_default();
        let name = map.metadata.name.unwrap_or_default();
        if !name.starts_with('w') {
            continue;
        }
        ensure!(data.get("v") == data.get("w"), "{name} was written by halves");
        let value: u64 = data.get("v").context("no value")?.parse()?;
        ensure!(
            found.insert(name.clone(), value).is_none(),
            "{name} is there twice"
        );
    }
    let mut ledger = ledger.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, known) in ledger.iter_mut() {
        let value = found.remove(name);
        ensure!(
            known.fits(value),
            "{name}: {known:?} was acknowledged, {value:?} is there"
        );
        *known = value.map_or(Known::Gone, Known::Is);
    }
    ensure!(found.is_empty(), "nobody wrote {found:?}");
    Ok(list.metadata.resource_version.context("no revision")?.parse()?)
}

fn spawn(directory: &Path) -> Result<Child> {
    let ready = directory.join("ready");
    let _ = fs::remove_file(&ready);
    let log = File::options()
        .create(true)
        .append(true)
        .open(directory.join("log"))?;
    let mut child = Command::new(weft_lab::binaries::find("weft")?)
        .args([
            "controller",
            "--api-only",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
        ])
        .arg(directory.join("data"))
        .arg("--ready-file")
        .arg(&ready)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let started = wait_for("the API to be ready", Duration::from_secs(20), || {
        fs::read_to_string(&ready).ok().filter(|text| !text.is_empty())
    });
    if started.is_err() {
        let _ = child.kill();
        let _ = child.wait();
    }
    started.with_context(|| fs::read_to_string(directory.join("log")).unwrap_or_default())?;
    Ok(child)
}

async fn connect(directory: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(directory.join("data/admin.kubeconfig"))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(config)?;
    for _ in 0..50 {
        if client.apiserver_version().await.is_ok() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(client)
}
