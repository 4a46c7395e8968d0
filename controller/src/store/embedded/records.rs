//! The engine's records: how objects become records, and how all of them are read at start.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable};

use super::super::memory::{Memory, Objects};
use super::super::sealing::{Sealer, SealingError};
use super::super::{Meta, Object, Revision, StoreError};
use super::{CHANGES, Indexer, OBJECTS, engine};

/// Records decoded together at start: enough work for all processors, and little enough to pass through memory.
const READ: usize = 4096;
/// Records begin with the revision and the place of the resource version.
const HEADER: usize = 12;

pub(super) fn load(
    database: &Database,
    index: Indexer,
    sealer: Option<&Sealer>,
) -> Result<Memory, StoreError> {
    let transaction = database.begin_read().map_err(engine)?;
    let mut resources: HashMap<Box<str>, (Objects, Revision)> = HashMap::new();
    let mut revision = 0;
    for entry in transaction
        .open_table(CHANGES)
        .map_err(engine)?
        .iter()
        .map_err(engine)?
    {
        let (resource, last) = entry.map_err(engine)?;
        revision = revision.max(last.value());
        resources.insert(resource.value().into(), (BTreeMap::new(), last.value()));
    }
    let table = transaction.open_table(OBJECTS).map_err(engine)?;
    let mut records = table.iter().map_err(engine)?;
    loop {
        let some = records.by_ref().take(READ).map(|entry| {
            let (key, record) = entry.map_err(engine)?;
            Ok((key.value().to_vec(), record.value().to_vec()))
        });
        let some: Vec<Record> = some.collect::<Result<_, StoreError>>()?;
        if some.is_empty() {
            break;
        }
        for loaded in decode_all(&some, index, sealer) {
            let (resource, name, object) = loaded?;
            revision = revision.max(object.revision());
            let (objects, last) = resources.entry(resource).or_default();
            *last = (*last).max(object.revision());
            objects.insert(name, Arc::new(object));
        }
    }
    let resources = resources
        .into_iter()
        .map(|(name, (objects, last))| (name, objects, last));
    Ok(Memory::new(revision, resources))
}

/// A key and its record.
type Record = (Vec<u8>, Vec<u8>);
/// A resource, a key within it, and the object.
type Loaded = Result<(Box<str>, Box<str>, Object), StoreError>;

/// Decodes records on all processors.
fn decode_all(records: &[Record], index: Indexer, sealer: Option<&Sealer>) -> Vec<Loaded> {
    let workers = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let share = records.len().div_ceil(workers).max(1);
    thread::scope(|scope| {
        let decode_part = |part: &[Record]| -> Vec<Loaded> {
            part.iter()
                .map(|record| decode_one(record, index, sealer))
                .collect()
        };
        let parts: Vec<_> = records
            .chunks(share)
            .map(|part| scope.spawn(move || decode_part(part)))
            .collect();
        let joined = parts.into_iter().map(thread::ScopedJoinHandle::join);
        joined
            .flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

fn decode_one((key, record): &Record, index: Indexer, sealer: Option<&Sealer>) -> Loaded {
    let text = String::from_utf8_lossy(key);
    let damaged = |why: String| StoreError::Damaged {
        key: text.clone().into_owned(),
        why,
    };
    let (resource, name) = text
        .split_once('\0')
        .ok_or_else(|| damaged("no resource".to_owned()))?;
    let object = decode(key, record, sealer, |text| index(resource, text)).map_err(damaged)?;
    Ok((resource.into(), name.into(), object))
}

pub(super) fn encode(key: &[u8], object: &Object, sealer: Option<&Sealer>) -> Result<Vec<u8>, SealingError> {
    let sealed = sealer.map(|sealer| sealer.seal(key, object.body())).transpose()?;
    let body = sealed.as_deref().unwrap_or(object.body());
    let mut record = Vec::with_capacity(HEADER + body.len());
    record.extend_from_slice(&object.revision().to_be_bytes());
    record.extend_from_slice(&u32::try_from(object.version_at()).unwrap_or(0).to_be_bytes());
    record.extend_from_slice(body);
    Ok(record)
}

fn decode(
    key: &[u8],
    record: &[u8],
    sealer: Option<&Sealer>,
    index: impl FnOnce(&[u8]) -> Result<Meta, serde_json::Error>,
) -> Result<Object, String> {
    let (revision, rest) = record.split_first_chunk::<8>().ok_or("too short")?;
    let (version_at, body) = rest.split_first_chunk::<4>().ok_or("too short")?;
    let opened = sealer.map(|sealer| sealer.unseal(key, body)).transpose();
    let opened = opened.map_err(|error| error.to_string())?.flatten();
    let body = opened.map_or_else(|| Bytes::copy_from_slice(body), Bytes::from);
    let meta = index(&body).map_err(|error| error.to_string())?;
    Ok(Object::from_record(
        u64::from_be_bytes(*revision),
        u32::from_be_bytes(*version_at) as usize,
        body,
        meta,
    ))
}
