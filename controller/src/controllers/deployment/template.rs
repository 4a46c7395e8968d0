//! Pod templates: whether two are the same, and the hash by which a replica set is named.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use crate::typed;

/// Label by which the pods of one revision differ from those of another.
pub const HASH_LABEL: &str = "pod-template-hash";

/// Whether two templates ask for the same pods, the hash label aside. Absent and empty are the same.
pub fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    canonical(a) == canonical(b)
}

/// A hash of the template, spelt so that it makes no words. `collisions` makes another one of the same template.
pub fn hash(template: &PodTemplateSpec, collisions: i32) -> String {
    const OFFSET: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = canonical(template).to_string();
    let mut hash = OFFSET;
    for byte in text.bytes().chain(
        (collisions > 0)
            .then(|| collisions.to_le_bytes())
            .into_iter()
            .flatten(),
    ) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(PRIME);
    }
    hash.to_string()
        .bytes()
        .map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()]))
        .collect()
}

fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = typed::to_value(template).unwrap_or_default();
    if let Some(labels) = value
        .pointer_mut("/metadata/labels")
        .and_then(Value::as_object_mut)
    {
        labels.remove(HASH_LABEL);
    }
    if let Some(meta) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        meta.remove("creationTimestamp");
    }
    prune(&mut value);
    value
}

/// Empty maps that say something by being there: a selector of all, and a volume of no other kind.
const TELLING: &[&str] = &["emptyDir", "labelSelector", "namespaceSelector"];

/// Takes out what is null, and lists and maps that are empty.
fn prune(value: &mut Value) -> bool {
    match value {
        Value::Null => false,
        Value::Array(items) => {
            for item in items.iter_mut() {
                prune(item);
            }
            !items.is_empty()
        }
        Value::Object(fields) => {
            fields.retain(|name, field| {
                let told = TELLING.contains(&name.as_str()) && field.is_object();
                prune(field) || told
            });
            !fields.is_empty()
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn template(value: Value) -> PodTemplateSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_hash_label_and_empty_fields_make_no_difference() {
        let plain = template(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}),
        );
        let noisy = template(
            json!({"metadata": {"labels": {"a": "b", "pod-template-hash": "x"}, "creationTimestamp": null},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {}, "env": []}], "securityContext": {}}}),
        );
        assert!(same(&plain, &noisy));
        assert_eq!(hash(&plain, 0), hash(&noisy, 0));
        let other = template(
            json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "j"}]}}),
        );
        assert!(!same(&plain, &other));
        assert_ne!(hash(&plain, 0), hash(&other, 0));
        assert_ne!(hash(&plain, 0), hash(&plain, 1), "a collision gives another name");
    }
}
