use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::store::Encoded;

pub(super) const RESOURCE: &str = "configmaps";

pub(super) fn index(_: &str, text: &[u8]) -> Result<Meta, serde_json::Error> {
    let object: Value = serde_json::from_slice(text)?;
    Ok(named(object["metadata"]["name"].as_str().unwrap_or_default()))
}

fn named(name: &str) -> Meta {
    Meta {
        name: name.into(),
        ..Meta::default()
    }
}

pub(super) fn put(key: &str, expect: Expect, value: u32) -> Write {
    let object = json!({"metadata": {"name": key}, "data": {"v": value.to_string()}});
    let meta = named(key);
    Write {
        resource: RESOURCE,
        key: key.to_owned(),
        expect,
        operation: Operation::Put(Encoded::new(&object, meta)),
    }
}

fn commit(store: &Embedded, writes: Vec<Write>) -> Committed {
    futures::executor::block_on(store.commit(writes))
}

pub(super) fn value(object: &Object) -> u32 {
    object.value()["data"]["v"].as_str().unwrap().parse().unwrap()
}

/// One write of the model: a key, what is expected (`None`: absence; else the current revision or a wrong one) and the
/// new value (`None`: deletion).
type Step = (u8, Option<bool>, Option<u32>);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The store agrees with a map, its watch tells every change in order, and a reopened store is the same.
    #[test]
    fn behaves_as_a_map_and_remembers(transactions in prop::collection::vec(
        prop::collection::vec((0u8..4, prop::option::of(any::<bool>()), prop::option::of(0u32..100)), 1..4),
        1..20,
    )) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("store");
        let store = Embedded::open(&file, index).unwrap();
        let mut watch = store.watch(RESOURCE, 0).unwrap();
        let mut model: BTreeMap<String, (u64, u32)> = BTreeMap::new();
        let mut revision = 0;
        let mut told: BTreeMap<String, (u64, u32)> = BTreeMap::new();
        for transaction in &transactions {
            let mut keys: Vec<_> = transaction.iter().map(|step: &Step| step.0).collect();
            keys.sort_unstable();
            keys.dedup();
            if keys.len() != transaction.len() {
                continue; // A transaction names a key once.
            }
            let mut holds = true;
            let mut after = model.clone();
            let mut next = revision;
            let mut writes = Vec::new();
            for (key, expect, new) in transaction {
                let key = format!("ns/{key}");
                let current = model.get(&key).map(|(revision, _)| *revision);
                let expect = match expect {
                    None => Expect::Absent,
                    Some(true) => Expect::Revision(current.unwrap_or(9999)),
                    Some(false) => Expect::Revision(current.unwrap_or(0) + 1000),
                };
                holds &= match expect {
                    Expect::Absent => current.is_none(),
                    Expect::Revision(revision) => current == Some(revision),
                };
                if let Some(value) = new {
                    next += 1;
                    after.insert(key.clone(), (next, *value));
                    writes.push(put(&key, expect, *value));
                } else {
                    if current.is_some() {
                        next += 1;
                    }
                    after.remove(&key);
                    writes.push(Write { resource: RESOURCE, key, expect, operation: Operation::Delete });
                }
            }
            let result = commit(&store, writes);
            prop_assert_eq!(result.is_ok(), holds);
            if holds {
                model = after;
                revision = next;
            }
            prop_assert_eq!(store.revision(), revision);
            let mut last = 0;
            for event in watch.ready().unwrap() {
                prop_assert!(event.revision() > last);
                last = event.revision();
                let key = event.object.meta().name.to_string();
                if event.deleted {
                    told.remove(&key);
                } else {
                    told.insert(key, (event.revision(), value(&event.object)));
                }
            }
            prop_assert_eq!(&told, &model);
        }
        let state = |store: &Embedded| -> BTreeMap<String, (u64, u32)> {
            let listing = store.list(RESOURCE, "");
            let items = listing.items.iter();
            items.map(|o| (o.meta().name.to_string(), (o.revision(), value(o)))).collect()
        };
        prop_assert_eq!(&state(&store), &model);
        drop(watch);
        let memory = Arc::downgrade(&store.memory);
        drop(store);
        while memory.strong_count() > 0 {
            thread::yield_now(); // The writer closes the file.
        }
        let store = Embedded::open(&file, index).unwrap();
        prop_assert_eq!(&state(&store), &model);
        prop_assert_eq!(store.revision(), revision);
    }
}

#[test]
fn secrets_are_sealed_on_disk_and_plain_ones_of_old_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let (file, key) = (directory.path().join("store"), directory.path().join("key"));
    let write = |key: &str, text: &str| Write {
        resource: "secrets",
        key: key.to_owned(),
        expect: Expect::Absent,
        operation: Operation::Put(Encoded::new(&json!({"data": text}), Meta::default())),
    };
    let closed = |store: Embedded| {
        let memory = Arc::downgrade(&store.memory);
        drop(store);
        while memory.strong_count() > 0 {
            thread::yield_now();
        }
        String::from_utf8_lossy(&fs::read(&file).unwrap()).into_owned()
    };
    let plain = Embedded::open(&file, index).unwrap();
    commit(&plain, vec![write("old", "plainly-visible")]).unwrap();
    assert!(closed(plain).contains("plainly-visible"));
    let open = || Embedded::open_sealed(&file, index, Some(Sealer::open(&key).unwrap()));
    let sealed = open().unwrap();
    assert!(sealed.get("secrets", "old").is_some());
    commit(&sealed, vec![write("new", "well-hidden")]).unwrap();
    assert!(!closed(sealed).contains("well-hidden"));
    let again = open().unwrap();
    assert_eq!(
        again.get("secrets", "new").unwrap().value()["data"],
        "well-hidden"
    );
    closed(again);
    // Without the key the store does not pretend that there is nothing.
    fs::remove_file(&key).unwrap();
    assert!(matches!(open(), Err(StoreError::Damaged { .. })));
}

#[test]
fn many_writers_share_commits_and_one_of_each_race_wins() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(&directory.path().join("store"), index).unwrap());
    let wins: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let store = Arc::clone(&store);
                scope.spawn(move || {
                    let created =
                        |n: u32| commit(&store, vec![put(&n.to_string(), Expect::Absent, n)]).is_ok();
                    (0..50).filter(|n| created(*n)).count()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(wins, 50);
    assert_eq!(store.revision(), 50);
}

#[test]
fn whoever_is_told_of_a_conflict_can_see_what_it_is_with() {
    let directory = tempfile::tempdir().unwrap();
    let store = Embedded::open(&directory.path().join("store"), index).unwrap();
    commit(&store, vec![put("n", Expect::Absent, 0)]).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for value in 0..100 {
                    let known = store.get(RESOURCE, "n").unwrap().revision();
                    let written = commit(&store, vec![put("n", Expect::Revision(known), value)]);
                    if let Err(StoreError::Conflict { found, .. }) = written {
                        let visible = store.get(RESOURCE, "n").unwrap().revision();
                        assert!(found.unwrap().revision() <= visible);
                    }
                }
            });
        }
    });
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("store.new"), [0; 4096]).unwrap();
    let store = Embedded::open(&directory.path().join("store"), index).unwrap();
    commit(&store, vec![put("a", Expect::Absent, 1)]).unwrap();
    assert!(!directory.path().join("store.new").exists());
}

/// Pages that a commit sets free are used again, so the file needs no compaction while it is in use.
#[test]
fn a_file_that_is_rewritten_over_and_over_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store");
    let store = Embedded::open(&file, index).unwrap();
    let mut revisions = vec![None; 100];
    let mut rewrite = |value| {
        let writes: Vec<Write> = revisions
            .iter()
            .enumerate()
            .map(|(place, known)| {
                let expect = known.map_or(Expect::Absent, Expect::Revision);
                put(&format!("object-{place}"), expect, value)
            })
            .collect();
        let written = commit(&store, writes).unwrap();
        for (known, object) in revisions.iter_mut().zip(written) {
            *known = Some(object.revision());
        }
        fs::metadata(&file).unwrap().len()
    };
    let settled = (0..50).map(&mut rewrite).max().unwrap();
    let later = (50..250).map(rewrite).max().unwrap();
    assert!(later <= settled * 5 / 4, "{settled} bytes grew to {later}");
}

#[test]
fn a_watch_from_before_the_ring_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("store");
    let store = Embedded::open(&file, index).unwrap();
    commit(&store, vec![put("a", Expect::Absent, 1)]).unwrap();
    commit(&store, vec![put("b", Expect::Absent, 1)]).unwrap();
    let memory = Arc::downgrade(&store.memory);
    drop(store);
    while memory.strong_count() > 0 {
        thread::yield_now();
    }
    let store = Embedded::open(&file, index).unwrap();
    assert!(store.watch(RESOURCE, 2).is_ok());
    assert!(matches!(
        store.watch(RESOURCE, 1),
        Err(StoreError::Expired { asked: 1, oldest: 2 })
    ));
}
