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

/// What of metadata a write through the status of a built-in kind may change.
pub(crate) const THROUGH_STATUS: &[&str] = &["labels", "annotations", "finalizers", "managedFields"];

/// What of an object a write through its status may change.
const STATUS: &[&str] = &["metadata", "status"];

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

/// Of a new state leaves what a write through the status may change, and puts everything else back; the owners, too, whose loss
/// would be the object's.
pub(crate) fn keep_status_alone(new: &mut Value, old: &Value, of_metadata: &[&str]) {
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    put_back(&mut new["metadata"], &old["metadata"], of_metadata);
    put_back(new, old, STATUS);
    for key in of_metadata {
        drop_null(&mut new["metadata"], key);
    }
    drop_null(new, "status");
}

fn put_back(new: &mut Value, old: &Value, but: &[&str]) {
    if let (Some(new), Some(old)) = (new.as_object_mut(), old.as_object()) {
        new.retain(|key, _| but.contains(&key.as_str()) || old.contains_key(key));
        for (key, value) in old.iter().filter(|(key, _)| !but.contains(&key.as_str())) {
            // What is the same already need not be copied, and that is nearly everything.
            if new.get(key) != Some(value) {
                new.insert(key.clone(), value.clone());
            }
        }
    }
}

fn drop_null(object: &mut Value, key: &str) {
    if let Some(fields) = object.as_object_mut()
        && fields.get(key).is_some_and(Value::is_null)
    {
        fields.remove(key);
    }
}

/// Makes `key` in `to` what it is in `from`, absent if it is absent there.
pub(crate) fn copy(to: &mut Value, from: &Value, key: &str) {
    let Some(fields) = to.as_object_mut() else { return };
    match from.get(key) {
        Some(value) if !value.is_null() => {
            if fields.get(key) != Some(value) {
                fields.insert(key.to_owned(), value.clone());
            }
        }
        _ => drop(fields.remove(key)),
    }
}

/// Whether two states differ in what users write: everything but metadata and status.
pub(crate) fn spec_differs(a: &Value, b: &Value) -> bool {
    fn significant(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
        let fields = value.as_object().into_iter().flatten();
        fields.filter(|(key, value)| {
            !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind") && !value.is_null()
        })
    }
    !significant(a).eq(significant(b))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_through_the_status_changes_the_status_and_the_labels_alone() {
        let old = json!({
            "kind": "Pod", "metadata": {"name": "a", "uid": "u", "labels": {"x": "1"}, "generation": 2},
            "spec": {"nodeName": "n"}, "status": {"phase": "Pending"},
        });
        let mut new = json!({
            "kind": "Other", "metadata": {"uid": "v", "labels": {"x": "2"}, "selfLink": "s", "finalizers": null},
            "spec": {"nodeName": "m"}, "extra": 1, "status": {"phase": "Running"},
        });
        keep_status_alone(&mut new, &old, THROUGH_STATUS);
        let mut expected = old.clone();
        expected["status"]["phase"] = json!("Running");
        expected["metadata"]["labels"]["x"] = json!("2");
        assert_eq!(new, expected);
        let mut emptied = json!({"metadata": {}, "status": null});
        keep_status_alone(&mut emptied, &old, THROUGH_STATUS);
        assert!(emptied.get("status").is_none() && emptied["metadata"].get("labels").is_none());
        assert_eq!(emptied["spec"], old["spec"]);
    }

    #[test]
    fn what_users_write_is_neither_metadata_nor_status_nor_null() {
        let object =
            |spec: i32| json!({"metadata": {"uid": spec}, "status": spec, "spec": spec, "data": null});
        assert!(spec_differs(&object(1), &object(2)));
        let same = json!({"kind": "X", "spec": 1, "status": 7});
        assert!(!spec_differs(&object(1), &same));
    }
}
