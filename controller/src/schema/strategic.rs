//! Strategic merge patch: a merge that knows which lists are keyed.
//!
//! Patch and object are walked together with the schema. Maps merge and `null` deletes; a list whose field has the merge
//! strategy merges by its key (or as a set of scalars), any other list is replaced. Directives in the patch: `$patch`
//! (`delete`, `replace`), `$retainKeys`, `$deleteFromPrimitiveList/<field>`, `$setElementOrder/<field>`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::facts::{Field, Shape};
use super::patch::PatchError;

type Object = Map<String, Value>;

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
const ORDER_PREFIX: &str = "$setElementOrder/";

pub(super) fn merge(root: Shape, current: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Object(patch) = patch else {
        let found = match patch {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Number(_) => "number",
            Value::Bool(_) => "bool",
            Value::Null | Value::Object(_) => "null",
        };
        return Err(malformed(format!(
            "json: cannot unmarshal {found} into Go value of type map[string]interface {{}}"
        )));
    };
    let current = current.as_object().cloned().unwrap_or_default();
    merge_object(root, current, patch.clone()).map(Value::Object)
}

fn malformed(message: impl Into<String>) -> PatchError {
    PatchError::Malformed(message.into())
}

/// The field `name` of a value of this shape, if the schema knows it, and the shape under it.
fn lookup(shape: Shape, name: &str) -> (Option<&'static Field>, Shape) {
    match shape.unwrapped() {
        Shape::Struct(id) => match id.definition().field(name) {
            Some(field) => (Some(field), field.shape.unwrapped()),
            None => (None, Shape::Raw),
        },
        Shape::Map(inner) => (None, inner.unwrapped()),
        _ => (None, Shape::Raw),
    }
}

fn merge_object(shape: Shape, mut original: Object, mut patch: Object) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(without_directives(patch)),
            Some("delete") => Ok(Object::new()),
            _ => Err(malformed(format!("unknown patch type: {}", plain(&directive)))),
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_element_orders(shape, &mut original, &mut patch)?;
    for (name, change) in patch {
        if let Some(name) = name.strip_prefix(DELETE_PREFIX) {
            delete_from_primitive_list(&mut original, name, &change)?;
            continue;
        }
        if change.is_null() {
            original.remove(&name);
            continue;
        }
        let (field, inner) = lookup(shape, &name);
        let merged = match (original.remove(&name), change) {
            (Some(Value::Object(old)), Value::Object(change)) => {
                Value::Object(merge_object(inner, old, change)?)
            }
            (Some(Value::Array(old)), Value::Array(change)) if field.is_some_and(|f| f.patch.merge) => {
                Value::Array(merge_list(field, inner, old, change)?)
            }
            (_, change) => without_directives_and_nulls(change),
        };
        original.insert(name, merged);
    }
    Ok(original)
}

/// `$retainKeys` lists the keys that stay; the patch may not set others.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(directive) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let bad = || malformed("invalid patch format of retainKeys");
    let keys: Vec<&str> = directive
        .as_array()
        .ok_or_else(bad)?
        .iter()
        .filter_map(Value::as_str)
        .collect();
    if patch
        .iter()
        .any(|(name, change)| !change.is_null() && !name.starts_with('$') && !keys.contains(&&**name))
    {
        return Err(bad());
    }
    original.retain(|name, _| keys.contains(&&**name));
    Ok(())
}

fn delete_from_primitive_list(original: &mut Object, name: &str, gone: &Value) -> Result<(), PatchError> {
    let gone = gone
        .as_array()
        .ok_or_else(|| malformed("invalid patch format of primitive list"))?;
    let gone: HashSet<&Value> = gone.iter().collect();
    if let Some(Value::Array(items)) = original.get_mut(name) {
        items.retain(|item| !gone.contains(item));
    }
    Ok(())
}

/// Merges each list that has a `$setElementOrder` and orders it as that says; both leave the patch.
fn set_element_orders(shape: Shape, original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let directives: Vec<String> = patch
        .keys()
        .filter(|key| key.starts_with(ORDER_PREFIX))
        .cloned()
        .collect();
    for directive in directives {
        let name = directive[ORDER_PREFIX.len()..].to_owned();
        let Some(Value::Array(order)) = patch.remove(&directive) else {
            return Err(malformed("invalid patch format of setElementOrder list"));
        };
        let (field, inner) = lookup(shape, &name);
        let key = field.and_then(|f| f.merge_key);
        if !field.is_some_and(|f| f.patch.merge) {
            return Err(malformed("invalid patch format of setElementOrder list"));
        }
        // Deletions of scalars belong to the same list and come first.
        if let Some(gone) = patch.remove(&format!("{DELETE_PREFIX}{name}")) {
            delete_from_primitive_list(original, &name, &gone)?;
        }
        let server = match original.get(&name) {
            Some(Value::Array(items)) => items.clone(),
            _ => Vec::new(),
        };
        let merged = match patch.remove(&name) {
            Some(Value::Array(changes)) => {
                check_order(&changes, &order, key, &name)?;
                merge_list(field, inner, server.clone(), changes)?
            }
            Some(Value::Null) => {
                original.remove(&name);
                continue;
            }
            Some(_) => return Err(malformed(format!("expected a list for field {name}"))),
            None if original.contains_key(&name) => server.clone(),
            None => continue,
        };
        original.insert(name, Value::Array(in_order(merged, &order, &server, key)));
    }
    Ok(())
}

/// The items of the patch must stand in the order that the directive lists them in.
fn check_order(changes: &[Value], order: &[Value], key: Option<&str>, name: &str) -> Result<(), PatchError> {
    let mut rest = order.iter();
    for change in changes.iter().filter(|change| change.get(PATCH).is_none()) {
        if !rest.any(|listed| same_item(listed, change, key)) {
            return Err(malformed(format!(
                "The order in patch list:\n{}\n doesn't match {ORDER_PREFIX}{name} list:\n{}\n",
                Value::from(changes),
                Value::from(order),
            )));
        }
    }
    Ok(())
}

/// What an item of a list is known by.
fn identity<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    match key {
        Some(key) => item.get(key),
        None => Some(item),
    }
}

fn same_item(a: &Value, b: &Value, key: Option<&str>) -> bool {
    identity(a, key).is_some_and(|a| identity(b, key) == Some(a))
}

/// Orders `merged`: items of `order` as it lists them, the others as the server had them, interleaved so that an item
/// only the server knows stays in front of those it stood in front of.
fn in_order<'a>(
    merged: Vec<Value>,
    order: &'a [Value],
    server: &'a [Value],
    key: Option<&str>,
) -> Vec<Value> {
    let places = |list: &'a [Value]| {
        let mut places: HashMap<&Value, usize> = HashMap::new();
        for (place, item) in list.iter().enumerate() {
            if let Some(item) = identity(item, key) {
                places.entry(item).or_insert(place);
            }
        }
        move |item: &Value| identity(item, key).and_then(|item| places.get(item).copied())
    };
    let (in_order, in_server) = (places(order), places(server));
    let (mut listed, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| in_order(item).is_some());
    listed.sort_by_cached_key(&in_order);
    others.sort_by_cached_key(|item| in_server(item).unwrap_or(usize::MAX));
    let mut result = Vec::with_capacity(listed.len() + others.len());
    let (mut listed, mut others) = (listed.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (others.peek(), listed.peek()) {
            (None, None) => return result,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(other), Some(item)) => {
                matches!((in_server(other), in_server(item)), (Some(o), Some(i)) if o < i)
            }
        };
        result.extend(if other_first { others.next() } else { listed.next() });
    }
}

fn merge_list(
    field: Option<&Field>,
    list_shape: Shape,
    original: Vec<Value>,
    patch: Vec<Value>,
) -> Result<Vec<Value>, PatchError> {
    let inner = match list_shape {
        Shape::List(inner) => inner.unwrapped(),
        _ => Shape::Raw,
    };
    if !patch.iter().chain(&original).any(Value::is_object) {
        let mut seen = HashSet::new();
        let all = original.iter().chain(&patch);
        let merged = all.filter(|item| seen.insert(*item)).cloned().collect();
        return Ok(in_order(merged, &patch, &original, None));
    }
    let name = field.map_or("", |f| f.name);
    let key = field
        .and_then(|f| f.merge_key)
        .ok_or_else(|| malformed(format!("cannot merge lists without merge key for {name}")))?;
    let mut gone = HashSet::new();
    let (mut changes, mut replaced) = (Vec::new(), false);
    for item in patch {
        let Value::Object(mut item) = item else {
            return Err(malformed(format!(
                "expected a map in the list {name}, found {}",
                plain(&item)
            )));
        };
        match item.remove(PATCH) {
            None => changes.push(item),
            Some(Value::String(directive)) if directive == "replace" => replaced = true,
            Some(Value::String(directive)) if directive == "delete" => {
                gone.insert(merge_key_of(&item, key)?.clone());
            }
            Some(Value::String(directive)) if directive == "merge" => {
                return Err(malformed("merging lists cannot yet be specified in the patch"));
            }
            Some(other) => return Err(malformed(format!("unknown patch type: {}", plain(&other)))),
        }
    }
    if replaced {
        return Ok(changes
            .into_iter()
            .map(|item| Value::Object(without_directives(item)))
            .collect());
    }
    let stays = |item: &&Value| item.get(key).is_none_or(|value| !gone.contains(value));
    let mut merged: Vec<Value> = original.iter().filter(stays).cloned().collect();
    let mut places: HashMap<Value, usize> = HashMap::new();
    for (place, item) in merged.iter().enumerate() {
        if let Some(value) = item.get(key) {
            places.entry(value.clone()).or_insert(place);
        }
    }
    let mut order = Vec::with_capacity(changes.len());
    for change in changes {
        let value = merge_key_of(&change, key)?.clone();
        order.push(Value::Object(Object::from_iter([(
            key.to_owned(),
            value.clone(),
        )])));
        let known = places.get(&value).and_then(|place| merged.get_mut(*place));
        if let Some(Value::Object(item)) = known {
            *item = merge_object(inner, std::mem::take(item), change)?;
        } else {
            places.insert(value, merged.len());
            merged.push(Value::Object(merge_object(inner, Object::new(), change)?));
        }
    }
    Ok(in_order(merged, &order, &original, Some(key)))
}

fn merge_key_of<'a>(item: &'a Object, key: &str) -> Result<&'a Value, PatchError> {
    item.get(key).ok_or_else(|| {
        let item = Value::Object(item.clone());
        malformed(format!("map: {item} does not contain declared merge key: {key}"))
    })
}

fn is_directive(key: &str) -> bool {
    key == PATCH || key == RETAIN_KEYS || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX)
}

/// What a patch says about something that is not there: its values without its directives.
fn without_directives(patch: Object) -> Object {
    patch
        .into_iter()
        .filter(|(key, _)| !is_directive(key))
        .map(|(key, value)| (key, without_directives_and_nulls(value)))
        .collect()
}

fn without_directives_and_nulls(value: Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            without_directives(object)
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect(),
        ),
        Value::Array(items) => Value::Array(
            items
                .into_iter()
                .filter(|item| item.get(PATCH).is_none())
                .map(without_directives_and_nulls)
                .collect(),
        ),
        other => other,
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::{PatchError, kind};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn pod(current: Value, patch: &Value) -> Result<Value, PatchError> {
        kind("", "v1", "Pod")
            .expect("known")
            .strategic_merge(&json!({"spec": current}), &json!({"spec": patch}))
    }

    fn check(current: Value, patch: Value, expected: Value) {
        assert_eq!(
            pod(current, &patch).expect("a good patch"),
            json!({"spec": expected}),
            "{patch}"
        );
    }

    #[test]
    fn maps_merge_and_null_deletes() {
        check(
            json!({"nodeSelector": {"a": "1", "b": "2"}, "hostname": "x", "nodeName": "n"}),
            json!({"nodeSelector": {"b": null, "c": "3"}, "hostname": null, "subdomain": "s", "gone": null}),
            json!({"nodeSelector": {"a": "1", "c": "3"}, "nodeName": "n", "subdomain": "s"}),
        );
    }

    #[test]
    fn keyed_lists_merge_and_new_items_come_first() {
        check(
            json!({"containers": [{"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}]}, {"name": "c"}]}),
            json!({"containers": [
                {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]},
                {"name": "c"}, {"name": "b"}]}),
        );
    }

    #[test]
    fn other_lists_are_replaced() {
        check(
            json!({"tolerations": [{"key": "a"}], "containers": [{"name": "a", "args": ["1", "2"]}]}),
            json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]}),
            json!({"tolerations": [{"key": "b"}], "containers": [{"name": "a", "args": ["3"]}]}),
        );
    }

    #[test]
    fn items_are_deleted_by_key_or_replaced_together() {
        let current = json!({"containers": [{"name": "a"}, {"name": "b", "image": "x"}]});
        check(
            current.clone(),
            json!({"containers": [{"$patch": "delete", "name": "a"}]}),
            json!({"containers": [{"name": "b", "image": "x"}]}),
        );
        check(
            current.clone(),
            json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
            json!({"containers": [{"name": "c"}]}),
        );
        check(
            current.clone(),
            json!({"$patch": "replace", "hostname": "h"}),
            json!({"hostname": "h"}),
        );
        check(current.clone(), json!({"$patch": "delete"}), json!({}));
        check(
            json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]}),
            json!({"containers": [{"name": "a", "securityContext": {"$patch": "replace", "runAsUser": 1}}]}),
            json!({"containers": [{"name": "a", "securityContext": {"runAsUser": 1}}]}),
        );
    }

    #[test]
    fn retained_keys_push_the_others_out() {
        check(
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        );
        let strategy = kind("apps", "v1", "Deployment").expect("known").strategic_merge(
            &json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            &json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
        );
        assert_eq!(
            strategy.expect("good"),
            json!({"spec": {"strategy": {"type": "Recreate"}}})
        );
        let refused = pod(
            json!({"volumes": [{"name": "v"}]}),
            &json!({"volumes": [{"name": "v", "$retainKeys": ["name"], "hostPath": {}}]}),
        );
        assert!(matches!(refused, Err(PatchError::Malformed(_))));
    }

    #[test]
    fn scalars_merge_as_a_set_and_are_deleted_by_name() {
        let merge = |current: Value, patch: Value| {
            kind("", "v1", "Namespace")
                .expect("known")
                .strategic_merge(&current, &patch)
                .expect("good")
        };
        assert_eq!(
            merge(
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"finalizers": ["c", "a"]}})
            ),
            json!({"metadata": {"finalizers": ["c", "a", "b"]}})
        );
        assert_eq!(
            merge(
                json!({"metadata": {"finalizers": ["a", "b", "c"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b", "z"]}})
            ),
            json!({"metadata": {"finalizers": ["a", "c"]}})
        );
        assert_eq!(
            merge(
                json!({"metadata": {"finalizers": ["a", "b"]}}),
                json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["b"],
                    "$setElementOrder/finalizers": ["c", "a"], "finalizers": ["c"]}})
            ),
            json!({"metadata": {"finalizers": ["c", "a"]}})
        );
    }

    #[test]
    fn the_order_of_elements_can_be_set() {
        let current = json!({"containers": [{"name": "server"}, {"name": "a"}, {"name": "b"}]});
        check(
            current.clone(),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}),
            json!({"containers": [{"name": "server"}, {"name": "b"}, {"name": "a"}]}),
        );
        check(
            current.clone(),
            json!({"$setElementOrder/containers": [{"name": "a"}, {"name": "c"}],
                "containers": [{"name": "c"}, {"$patch": "delete", "name": "b"}]}),
            json!({"containers": [{"name": "server"}, {"name": "a"}, {"name": "c"}]}),
        );
        let refused = pod(
            current,
            &json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "z"}]}),
        );
        assert!(
            refused
                .expect_err("order")
                .to_string()
                .starts_with("The order in patch list:")
        );
        check(
            json!({}),
            json!({"$setElementOrder/containers": [{"name": "a"}],
                "containers": [{"name": "a", "$setElementOrder/env": [{"name": "X"}], "env": [{"name": "X", "value": null}]}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "X"}]}]}),
        );
    }

    #[test]
    fn service_ports_merge_by_port() {
        let merged = kind("", "v1", "Service").expect("known").strategic_merge(
            &json!({"spec": {"ports": [{"port": 80, "protocol": "TCP"}]}}),
            &json!({"spec": {"ports": [{"port": 80, "name": "web"}, {"port": 443}]}}),
        );
        assert_eq!(
            merged.expect("good"),
            json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "name": "web"}, {"port": 443}]}})
        );
    }

    #[test]
    fn bad_patches_are_refused() {
        for patch in [
            json!({"containers": [{"image": "no name"}]}),
            json!({"containers": ["x"]}),
            json!({"containers": [{"$patch": "explode", "name": "a"}]}),
            json!({"$patch": 7}),
            json!({"$retainKeys": "x"}),
            json!({"$deleteFromPrimitiveList/containers": "x"}),
            json!({"$setElementOrder/containers": 1}),
            json!({"$setElementOrder/tolerations": []}),
        ] {
            let refused = pod(json!({"containers": [{"name": "a"}]}), &patch);
            assert!(matches!(refused, Err(PatchError::Malformed(_))), "{patch}");
        }
        let schema = kind("", "v1", "Pod").expect("known");
        assert!(matches!(
            schema.strategic_merge(&json!({}), &json!([])),
            Err(PatchError::Malformed(_))
        ));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i8>().prop_map(Value::from),
            prop::sample::select(vec!["delete", "replace", "a", "b"]).prop_map(Value::from),
        ];
        let key = prop::sample::select(vec![
            "spec",
            "containers",
            "name",
            "env",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
            "metadata",
            "finalizers",
        ]);
        leaf.prop_recursive(5, 40, 4, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((key.clone(), inner), 0..4).prop_map(|pairs| pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(current in any_json(), patch in any_json()) {
            let _ = kind("", "v1", "Pod").expect("known").strategic_merge(&current, &patch);
        }

        #[test]
        fn an_empty_patch_changes_nothing(object in any_json()) {
            if object.is_object() {
                let merged = kind("", "v1", "Pod").expect("known").strategic_merge(&object, &json!({}));
                prop_assert_eq!(merged.ok(), Some(object));
            }
        }
    }
}
