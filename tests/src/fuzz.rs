//! Fuzzing with what there is: a committed corpus that is replayed, and mutations of it that a seed decides.
//!
//! A target is a function that takes any bytes and panics if something is wrong. Its corpus is `corpus/<target>/` of this
//! crate; an input that made it panic belongs there once the mistake is mended. `WEFT_FUZZ_ROUNDS` and
//! `WEFT_FUZZ_SEED` make a run longer, or another one.

use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::random::Random;

/// Mutations of a run that does not say.
const ROUNDS: u64 = 20_000;
/// Most changes that one mutation makes.
const MAX_CHANGES: u64 = 4;
/// Longest input that is made.
const MAX_BYTES: usize = 64 << 10;

/// Words that mean something to one decoder or another.
const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "18446744073709551616",
    "\\u0000",
    "\\ud800",
    "metadata",
    "spec",
    "$patch",
    "$retainKeys",
    "$setElementOrder/containers",
    "$deleteFromPrimitiveList/finalizers",
    "delete",
    "replace",
    "name",
    "k8s\0",
    "&a ",
    "*a",
    "!!binary ",
    "---\n",
    "? ",
    "- ",
    "<<: ",
    "in (",
    "notin",
    "!=",
    "!",
    "~1",
    "~0",
    "/-",
    "..",
    "[?(@.",
    "[*]",
    "\\",
    "\u{0}",
    "\u{fe0f}",
    "%",
    "x-kubernetes-preserve-unknown-fields",
    "properties",
    "items",
    "default",
    "anyOf",
    "type",
    "object",
];

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("a readable directory").path();
            let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path, bytes)
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{} is empty", directory.display());
    inputs
}

/// Runs a target over its corpus.
///
/// # Panics
/// If the target does, or the corpus is empty.
pub fn replay(target: &str, run: fn(&[u8])) {
    for (path, input) in corpus(target) {
        let outcome = catch_unwind(AssertUnwindSafe(|| run(&input)));
        assert!(outcome.is_ok(), "{target} panics on {}", path.display());
    }
}

/// Runs a target over mutations of its corpus.
///
/// # Panics
/// If the target does; the input is kept in a file that the message names.
pub fn mutate(target: &str, run: fn(&[u8])) {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let rounds = number("WEFT_FUZZ_ROUNDS").unwrap_or(ROUNDS);
    let seed = number("WEFT_FUZZ_SEED").unwrap_or(1);
    let inputs: Vec<_> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
    let mut random = Random::new(seed);
    for round in 0..rounds {
        let mut input = random.pick(&inputs).clone();
        for _ in 0..=random.draw() % MAX_CHANGES {
            change(&mut random, &mut input, &inputs);
        }
        input.truncate(MAX_BYTES);
        if catch_unwind(AssertUnwindSafe(|| run(&input))).is_err() {
            let path = env::temp_dir().join(format!("weft-fuzz-{target}-{seed}-{round}"));
            let kept = fs::write(&path, &input);
            panic!(
                "{target} panics in round {round} of seed {seed}; input: {} ({kept:?})",
                path.display()
            );
        }
    }
}

/// Makes one change: in half of the cases to the tree, if the input is one.
fn change(random: &mut Random, input: &mut Vec<u8>, others: &[Vec<u8>]) {
    if random.below(2) == 0
        && let Ok(mut tree) = serde_json::from_slice::<Value>(input)
    {
        let other = serde_json::from_slice(random.pick(others).as_slice()).unwrap_or(Value::Null);
        change_tree(random, &mut tree, &other);
        *input = tree.to_string().into_bytes();
        return;
    }
    let at = random.below(input.len() + 1);
    let end = at + random.below((input.len() - at).min(64) + 1);
    match random.below(7) {
        0 if !input.is_empty() => {
            let at = random.below(input.len());
            input[at] ^= 1 << random.below(8);
        }
        1 => drop(input.drain(at..end)),
        2 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        3 => drop(input.splice(at..at, random.pick(TOKENS).bytes())),
        4 => drop(input.splice(at..end, random.pick(TOKENS).bytes())),
        5 => {
            let other = random.pick(others);
            let from = random.below(other.len() + 1);
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let byte = random.draw().to_le_bytes()[0];
            input.insert(at, byte);
        }
    }
}

fn change_tree(random: &mut Random, tree: &mut Value, other: &Value) {
    let mut places = Vec::new();
    pointers(tree, &mut String::new(), &mut places);
    let place = random.pick(&places).clone();
    let value = match random.below(8) {
        0 => Value::Null,
        1 => json!(*random.pick(TOKENS)),
        2 => json!(random.draw().cast_signed()),
        3 => json!(-0.5),
        4 => json!([]),
        5 => json!({}),
        6 => {
            let mut places = Vec::new();
            pointers(other, &mut String::new(), &mut places);
            other
                .pointer(random.pick(&places).as_str())
                .cloned()
                .unwrap_or_default()
        }
        _ => {
            let from = random.pick(&places).clone();
            tree.pointer(&from).cloned().unwrap_or_default()
        }
    };
    match tree.pointer_mut(&place) {
        Some(Value::Object(map)) if random.below(2) == 0 => {
            let keys: Vec<_> = map.keys().cloned().collect();
            if random.below(2) == 0 && !keys.is_empty() {
                map.remove(random.pick(&keys));
            } else {
                map.insert((*random.pick(TOKENS)).to_owned(), value);
            }
        }
        Some(Value::Array(list)) if random.below(2) == 0 => {
            let at = random.below(list.len() + 1);
            list.insert(at, value);
        }
        Some(target) => *target = value,
        None => {}
    }
}

/// Where all values of a tree are.
fn pointers(value: &Value, path: &mut String, places: &mut Vec<String>) {
    places.push(path.clone());
    let length = path.len();
    let mut below = |key: &str, value: &Value| {
        path.push('/');
        path.push_str(&key.replace('~', "~0").replace('/', "~1"));
        pointers(value, path, places);
        path.truncate(length);
    };
    match value {
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                below(&index.to_string(), value);
            }
        }
        Value::Object(map) => Map::iter(map).for_each(|(key, value)| below(key, value)),
        _ => {}
    }
}
