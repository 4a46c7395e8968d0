//! Loss of power: a disk that forgets any of what it was not told to sync, block by block. What the store acknowledged must be on it.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redb::{Database, StorageBackend};

use super::tests::{RESOURCE, index, put, value};
use super::*;

const CUTS: u64 = 150;
/// Operations of the disk after which it dies at the latest: several commits' worth, and opening it.
const LAST_OPERATION: usize = 120;
/// What a disk writes whole or not at all.
const BLOCK: usize = 512;
const KEYS: usize = 8;

/// What was done since the last sync.
#[derive(Debug)]
enum Change {
    Length(usize),
    Block(usize, Vec<u8>),
}

#[derive(Debug)]
struct Disk {
    now: Vec<u8>,
    synced: Vec<u8>,
    since: Vec<Change>,
    /// Operations until it dies.
    left: usize,
}

impl Disk {
    fn step(&mut self) -> io::Result<()> {
        self.left = self
            .left
            .checked_sub(1)
            .ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }

    /// What is on it after the power is back.
    fn remains(&self, random: &mut StdRng) -> Vec<u8> {
        let mut image = self.synced.clone();
        for change in &self.since {
            match change {
                _ if random.random_bool(0.5) => {}
                Change::Length(length) => image.resize(*length, 0),
                Change::Block(at, bytes) => {
                    let end = at + bytes.len();
                    image.resize(image.len().max(end), 0);
                    image[*at..end].copy_from_slice(bytes);
                }
            }
        }
        image
    }
}

#[derive(Clone, Debug)]
struct Shared(Arc<Mutex<Disk>>);

impl Shared {
    fn new(image: Vec<u8>, operations: usize) -> Self {
        Self(Arc::new(Mutex::new(Disk {
            now: image.clone(),
            synced: image,
            since: Vec::new(),
            left: operations,
        })))
    }

    fn disk(&self) -> std::sync::MutexGuard<'_, Disk> {
        self.0.lock().unwrap()
    }
}

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        let disk = self.disk();
        let bytes = disk.now.get(start..start + out.len());
        out.copy_from_slice(bytes.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        disk.now.resize(length as usize, 0);
        disk.since.push(Change::Length(length as usize));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        disk.synced = disk.now.clone();
        disk.since.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.disk();
        disk.step()?;
        let start = offset as usize;
        disk.now[start..start + data.len()].copy_from_slice(data);
        for (place, block) in data.chunks(BLOCK).enumerate() {
            disk.since
                .push(Change::Block(start + place * BLOCK, block.to_vec()));
        }
        Ok(())
    }
}

fn open(disk: &Shared) -> Result<Embedded, StoreError> {
    let database = Database::builder()
        .create_with_backend(disk.clone())
        .map_err(engine)?;
    Embedded::on(database, index, None)
}

/// A store that was just made: that happens beside its place, so no cut shows it by halves.
fn made() -> Vec<u8> {
    let disk = Shared::new(Vec::new(), usize::MAX);
    let database = Database::builder().create_with_backend(disk.clone());
    make_tables(&database.expect("a disk that works")).expect("a disk that works");
    disk.disk().synced.clone()
}

/// Key → value, or its absence.
type Contents = BTreeMap<String, Option<u32>>;

fn contents(store: &Embedded) -> Contents {
    let list = store.list(RESOURCE, "");
    let mut all: Contents = (0..KEYS).map(|key| (key.to_string(), None)).collect();
    for object in list.items {
        all.insert(object.meta().name.to_string(), Some(value(&object)));
    }
    all
}

/// A transaction and whether it was acknowledged.
type Outcome = (Vec<(String, Option<u32>)>, bool);

/// Writes until the disk dies: transactions of two keys, several at once. Yields what was acknowledged, the last transactions of
/// which nobody knows, and the last revision that was given out.
fn write(store: &Embedded, random: &mut StdRng) -> (Contents, Vec<Outcome>, Revision) {
    let mut known = contents(store);
    let mut revision = store.revision();
    for round in 0.. {
        let mut transactions = Vec::new();
        for pair in 0..random.random_range(1..=KEYS / 2) {
            let keys = [2 * pair, 2 * pair + 1].map(|key| key.to_string());
            let there = known[&keys[0]].is_some();
            let new = (!there || random.random_bool(0.7)).then_some(round);
            let writes: Vec<Write> = keys
                .iter()
                .map(|key| {
                    let found = store.get(RESOURCE, key).map(|object| object.revision());
                    let mut write = put(key, found.map_or(Expect::Absent, Expect::Revision), round);
                    if new.is_none() {
                        write.operation = Operation::Delete;
                    }
                    write
                })
                .collect();
            transactions.push((keys.map(|key| (key, new)).to_vec(), store.commit(writes)));
        }
        let (writes, commits): (Vec<_>, Vec<_>) = transactions.into_iter().unzip();
        let answers = block_on(join_all(commits));
        let dead = answers.iter().any(Result::is_err);
        let mut unknown = Vec::new();
        for (writes, answer) in writes.into_iter().zip(answers) {
            unknown.push((writes.clone(), answer.is_ok()));
            let Ok(objects) = answer else { continue };
            revision = objects
                .iter()
                .map(|object| object.revision())
                .fold(revision, u64::max);
            known.extend(writes);
        }
        if dead {
            unknown.retain(|(_, acknowledged)| !acknowledged);
            return (known, unknown, revision);
        }
    }
    unreachable!("the disk dies")
}

#[test]
fn what_was_acknowledged_is_on_the_disk_when_the_power_fails() {
    let made = made();
    let mut acknowledged = 0;
    for seed in 0..CUTS {
        let mut random = StdRng::seed_from_u64(seed);
        let mut image = made.clone();
        let (mut known, mut unknown, mut revision) = (Contents::new(), Vec::new(), 0);
        // The power fails again and again, over the same disk.
        for _ in 0..4 {
            let disk = Shared::new(image, random.random_range(0..LAST_OPERATION));
            if let Ok(store) = open(&disk) {
                let found = contents(&store);
                check(seed, &known, &unknown, &found);
                assert!(store.revision() >= revision, "seed {seed}: revisions went back");
                (known, unknown, revision) = write(&store, &mut random);
                acknowledged += revision;
            }
            image = disk.disk().remains(&mut random);
        }
        let store = open(&Shared::new(image, usize::MAX)).expect("a disk that works");
        check(seed, &known, &unknown, &contents(&store));
    }
    assert!(acknowledged > CUTS, "hardly anything was written");
}

fn check(seed: u64, known: &Contents, unknown: &[Outcome], found: &Contents) {
    let mut expected = known.clone();
    for (writes, _) in unknown {
        let done = writes.iter().all(|(key, value)| found[key] == *value);
        if done {
            expected.extend(writes.iter().cloned());
        }
    }
    for (key, value) in &expected {
        assert_eq!(
            found[key], *value,
            "seed {seed}, key {key}: {expected:?} and {unknown:?}, not {found:?}"
        );
    }
}
