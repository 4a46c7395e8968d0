//! JSON merge patch (RFC 7396) and JSON patch (RFC 6902), and what can be wrong with any patch.

use serde_json::Value;

/// Limit on the operations of one JSON patch, as in Kubernetes.
pub const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Limit on what the copies of one JSON patch add, as in Kubernetes: a few of them, each of what the last made, would fill any
/// memory.
pub const MAX_JSON_PATCH_COPIED_BYTES: usize = 3 << 20;

/// Why a patch could not be used.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of the form its content type asks for. Kubernetes answers 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch is well formed, but does not fit the object. Kubernetes answers 422.
    #[error("{0}")]
    Unprocessable(String),
    /// The JSON patch has too many operations. Kubernetes answers 413.
    #[error("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
    /// The JSON patch copies too much. Kubernetes answers 413.
    #[error("the copies of a JSON patch may add no more than {MAX_JSON_PATCH_COPIED_BYTES} bytes")]
    TooMuchCopied,
}

/// `current` changed as a JSON merge patch says: objects merge, `null` deletes, all else replaces.
pub fn json_merge(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed(
            "a merge patch must be an object".to_owned(),
        ));
    }
    let mut result = current.clone();
    json_patch::merge(&mut result, patch);
    Ok(result)
}

/// `current` changed by the operations of a JSON patch, all or none.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations = patch
        .as_array()
        .ok_or_else(|| PatchError::Malformed("a JSON patch must be a list of operations".to_owned()))?;
    if operations.len() > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations.len()));
    }
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Malformed(error.to_string()))?;
    let mut result = current.clone();
    let mut copied = 0;
    for operation in &operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += result.pointer(copy.from.as_str()).map_or(0, size);
            if copied > MAX_JSON_PATCH_COPIED_BYTES {
                return Err(PatchError::TooMuchCopied);
            }
        }
        // The copy is thrown away on failure, so nothing has to be undone; the undoing variant can panic.
        json_patch::patch_unsafe(&mut result, std::slice::from_ref(operation))
            .map_err(|error| PatchError::Unprocessable(error.to_string()))?;
    }
    Ok(result)
}

/// About how long a value is as text.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 8,
        Value::String(text) => text.len() + 2,
        Value::Array(list) => 2 + list.iter().map(|value| size(value) + 1).sum::<usize>(),
        Value::Object(map) => {
            2 + map
                .iter()
                .map(|(key, value)| key.len() + 4 + size(value))
                .sum::<usize>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn merge_patch_examples_of_rfc_7396() {
        for (current, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            assert_eq!(
                json_merge(&current, &patch).expect("good"),
                expected,
                "{current} {patch}"
            );
        }
        assert!(matches!(
            json_merge(&json!({}), &json!(["c"])),
            Err(PatchError::Malformed(_))
        ));
    }

    #[test]
    fn copies_of_copies_end_before_memory_does() {
        let doubling: Vec<_> = (0..60)
            .map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"}))
            .collect();
        let patched = json_patch(&json!({"a": ["x"]}), &Value::Array(doubling));
        assert!(matches!(patched, Err(PatchError::TooMuchCopied)));
    }

    #[test]
    fn patch_examples_of_rfc_6902() {
        for (current, patch, expected) in [
            (
                json!({"foo": "bar"}),
                json!([{"op": "add", "path": "/baz", "value": "qux"}]),
                Some(json!({"baz": "qux", "foo": "bar"})),
            ),
            (
                json!({"foo": ["bar", "baz"]}),
                json!([{"op": "add", "path": "/foo/1", "value": "qux"}]),
                Some(json!({"foo": ["bar", "qux", "baz"]})),
            ),
            (
                json!({"foo": ["a"]}),
                json!([{"op": "add", "path": "/foo/-", "value": ["b"]}]),
                Some(json!({"foo": ["a", ["b"]]})),
            ),
            (
                json!({"baz": "qux", "foo": 1}),
                json!([{"op": "remove", "path": "/baz"}]),
                Some(json!({"foo": 1})),
            ),
            (
                json!({"foo": ["a", "b", "c"]}),
                json!([{"op": "remove", "path": "/foo/1"}]),
                Some(json!({"foo": ["a", "c"]})),
            ),
            (
                json!({"baz": "qux"}),
                json!([{"op": "replace", "path": "/baz", "value": "boo"}]),
                Some(json!({"baz": "boo"})),
            ),
            (
                json!({"foo": {"bar": 1}, "qux": {}}),
                json!([{"op": "move", "from": "/foo/bar", "path": "/qux/thud"}]),
                Some(json!({"foo": {}, "qux": {"thud": 1}})),
            ),
            (
                json!({"foo": [1, 2, 3]}),
                json!([{"op": "move", "from": "/foo/0", "path": "/foo/2"}]),
                Some(json!({"foo": [2, 3, 1]})),
            ),
            (
                json!({"a": {"x/y~z": 1}}),
                json!([{"op": "copy", "from": "/a/x~1y~0z", "path": "/b"}]),
                Some(json!({"a": {"x/y~z": 1}, "b": 1})),
            ),
            (
                json!({"a": "b"}),
                json!([{"op": "test", "path": "/a", "value": "b"}]),
                Some(json!({"a": "b"})),
            ),
            (
                json!({"a": 1}),
                json!([{"op": "replace", "path": "", "value": {"b": 2}}]),
                Some(json!({"b": 2})),
            ),
            (
                json!({"a": "b"}),
                json!([{"op": "test", "path": "/a", "value": "c"}]),
                None,
            ),
            (
                json!({"a": "b"}),
                json!([{"op": "add", "path": "/x/y", "value": 1}]),
                None,
            ),
            (
                json!({"a": [1]}),
                json!([{"op": "add", "path": "/a/7", "value": 1}]),
                None,
            ),
            (json!({}), json!([{"op": "remove", "path": "/a"}]), None),
            (
                json!({}),
                json!([{"op": "replace", "path": "/a", "value": 1}]),
                None,
            ),
        ] {
            match (json_patch(&current, &patch), expected) {
                (Ok(result), Some(expected)) => assert_eq!(result, expected, "{patch}"),
                (Err(PatchError::Unprocessable(_)), None) => {}
                (result, _) => panic!("{patch}: {result:?}"),
            }
        }
        let undone =
            json!([{"op": "move", "from": "/a", "path": ""}, {"op": "move", "from": "/a", "path": "/a/0"}]);
        assert!(
            json_patch(&json!({"a": [1]}), &undone).is_err(),
            "a failure after the root was moved"
        );
        for patch in [
            json!({}),
            json!([{"op": "fly", "path": "/a"}]),
            json!([{"op": "add"}]),
        ] {
            assert!(
                matches!(json_patch(&json!({}), &patch), Err(PatchError::Malformed(_))),
                "{patch}"
            );
        }
        let many = Value::Array(vec![
            json!({"op": "test", "path": "", "value": {}});
            MAX_JSON_PATCH_OPERATIONS + 1
        ]);
        assert!(matches!(
            json_patch(&json!({}), &many),
            Err(PatchError::TooManyOperations(10_001))
        ));
    }

    proptest! {
        #[test]
        fn no_operation_makes_it_panic(
            op in prop::sample::select(vec!["add", "remove", "replace", "move", "copy", "test"]),
            path in "(/[a-c0-9~\\-]{0,3}){0,3}|[a-z/]{0,4}", from in "(/[a-c0-9]{0,2}){0,3}", index in any::<u64>(),
        ) {
            let current = json!({"a": [1, {"b": null}], "b": {"c": "x"}});
            let operation = json!([{"op": op, "path": path, "from": from, "value": 1},
                {"op": op, "path": format!("/a/{index}"), "from": "/a", "value": 2}]);
            let _ = json_patch(&current, &operation);
        }
    }
}
