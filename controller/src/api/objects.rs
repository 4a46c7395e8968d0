//! The rules of metadata: what the server sets, what clients may change.

use jiff::Timestamp;
use rand::RngExt as _;
use serde_json::{Value, json};

/// Characters of generated names, chosen by Kubernetes so that no words come out.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Characters added to `generateName`.
const SUFFIX: usize = 5;
/// Longest prefix that is kept of `generateName`.
const MAX_PREFIX: usize = 63 - SUFFIX;

/// The time as metadata has it.
pub(crate) fn timestamp(now: Timestamp) -> String {
    let seconds = Timestamp::from_second(now.as_second()).unwrap_or(now);
    seconds.to_string()
}

/// A name made from `generateName`.
pub(crate) fn generated_name(prefix: &str) -> String {
    let mut random = rand::rng();
    let mut name: String = prefix.chars().take(MAX_PREFIX).collect();
    for _ in 0..SUFFIX {
        name.push(char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    }
    name
}

/// The name of an object.
pub(crate) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Whether the object is on its way out.
pub(crate) fn is_terminating(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// Whether anything must be done before the object may go.
pub(crate) fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|list| !list.is_empty())
}

/// Gives a new object its identity.
pub(crate) fn stamp_new(object: &mut Value, generation: bool, now: Timestamp) {
    let metadata = &mut object["metadata"];
    if !metadata.is_object() {
        *metadata = json!({});
    }
    if let Some(fields) = metadata.as_object_mut() {
        for key in [
            "resourceVersion",
            "selfLink",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generation",
        ] {
            fields.remove(key);
        }
    }
    metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = json!(timestamp(now));
    if generation {
        metadata["generation"] = json!(1);
    }
}

/// What of metadata only the server writes.
const SERVER_OWNED: &[&str] = &[
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "selfLink",
    "resourceVersion",
];

/// What of metadata a write through a subresource may change.
const THROUGH_STATUS: &[&str] = &["labels", "annotations", "finalizers", "managedFields"];

/// Takes what only the server writes from the object as it was.
pub(crate) fn carry_over(new: &mut Value, old: &Value) {
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    for key in SERVER_OWNED {
        copy(&mut new["metadata"], &old["metadata"], key);
    }
    for key in ["apiVersion", "kind"] {
        copy(new, old, key);
    }
}

/// The object as it was, with the status and the labels of `new`; not the owners, whose loss would be the object's.
pub(crate) fn with_status_of(old: &Value, new: &Value) -> Value {
    let mut result = old.clone();
    copy(&mut result, new, "status");
    for key in THROUGH_STATUS {
        copy(&mut result["metadata"], &new["metadata"], key);
    }
    result
}

/// Makes `key` in `to` what it is in `from`, absent if it is absent there.
pub(crate) fn copy(to: &mut Value, from: &Value, key: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) if !value.is_null() => drop(fields.insert(key.to_owned(), value.clone())),
        _ => drop(fields.remove(key)),
    }
}

/// Whether two states differ in what users write: everything but metadata and status.
pub(crate) fn spec_differs(a: &Value, b: &Value) -> bool {
    let significant = |value: &Value| -> Vec<(String, Value)> {
        let fields = value.as_object().into_iter().flatten();
        fields
            .filter(|(key, value)| {
                !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind") && !value.is_null()
            })
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    };
    significant(a) != significant(b)
}

/// Whether a write changes nothing: managers' times and the resource version do not count.
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    same_but(a, b, &|key, a, b| {
        (key == "metadata").then(|| {
            same_but(a, b, &|key, a, b| match key {
                "resourceVersion" => Some(true),
                "managedFields" => Some(same_managers(a, b)),
                _ => None,
            })
        })
    })
}

fn same_managers(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_array(), b.as_array()) else {
        return a == b;
    };
    let same = |(a, b): (&Value, &Value)| same_but(a, b, &|key, _, _| (key == "time").then_some(true));
    a.len() == b.len() && a.iter().zip(b).all(same)
}

/// Whether two objects are the same; where `judge` has an opinion about a member, that counts.
fn same_but(a: &Value, b: &Value, judge: &dyn Fn(&str, &Value, &Value) -> Option<bool>) -> bool {
    let (Some(left), Some(right)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let same = |key: &String, of_left: &Value, of_right: &Value| {
        judge(key, of_left, of_right).unwrap_or_else(|| of_left == of_right)
    };
    let absent = &Value::Null;
    left.iter()
        .all(|(key, value)| same(key, value, right.get(key).unwrap_or(absent)))
        && right
            .iter()
            .all(|(key, value)| left.contains_key(key) || same(key, absent, value))
}

/// Drops nulls of metadata, which clients send for times that they do not know.
pub(crate) fn drop_nulls(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|_, value| !value.is_null());
    }
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
}
