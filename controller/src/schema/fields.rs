//! Unknown fields, values of the wrong type, and the form in which objects are stored.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::facts::{Field, Shape, TypeDef};
use crate::quantity::Quantity;

/// A value that does not fit its field, in the words of Go's JSON decoder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TypeError {
    message: String,
    converted: Option<String>,
}

impl TypeError {
    fn new(message: String) -> Self {
        Self {
            message,
            converted: None,
        }
    }

    /// The same in the words of Kubernetes' converter, which strategic merge patches go through in place of the decoder.
    pub(crate) fn of_converter(&self) -> &str {
        self.converted.as_deref().unwrap_or(&self.message)
    }
}

/// Lengthens `path` by a field's name while `visit` runs.
fn within<R>(path: &mut String, name: &str, visit: impl FnOnce(&mut String) -> R) -> R {
    let length = path.len();
    if length > 0 {
        path.push('.');
    }
    path.push_str(name);
    let result = visit(path);
    path.truncate(length);
    result
}

pub(super) fn unknown(root: Shape, object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    find_unknown(root, object, &mut String::new(), &mut found);
    found
}

fn find_unknown(shape: Shape, value: &Value, path: &mut String, found: &mut Vec<String>) {
    match (shape.unwrapped(), value) {
        (Shape::Struct(id), Value::Object(object)) => {
            for (name, child) in object {
                within(path, name, |path| match id.definition().field(name) {
                    Some(field) => find_unknown(field.shape, child, path, found),
                    None => found.push(path.clone()),
                });
            }
        }
        (Shape::List(inner), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                let length = path.len();
                path.extend(["[", &index.to_string(), "]"]);
                find_unknown(*inner, item, path, found);
                path.truncate(length);
            }
        }
        (Shape::Map(inner), Value::Object(entries)) => {
            for (key, child) in entries {
                within(path, key, |path| find_unknown(*inner, child, path, found));
            }
        }
        _ => {}
    }
}

/// What becomes of values that mean the same as absent ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeros {
    /// They stay: who applies one wants it and owns it.
    Kept,
    /// They go, as encoding leaves them out.
    Dropped,
}

/// Brings a value into the form that decoding into the Go type and encoding again would give it.
pub(super) fn prune(shape: Shape, value: &mut Value, zeros: Zeros) {
    match shape.unwrapped() {
        Shape::Struct(id) => {
            if let Value::Object(object) = value {
                prune_struct(id.definition(), object, zeros);
            }
        }
        Shape::List(inner) => value
            .as_array_mut()
            .into_iter()
            .flatten()
            .for_each(|item| prune_item(*inner, item, zeros)),
        Shape::Map(inner) => value
            .as_object_mut()
            .into_iter()
            .flat_map(Map::values_mut)
            .for_each(|entry| prune_item(*inner, entry, zeros)),
        Shape::Quantity => {
            let text = match &*value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => return,
            };
            if let Ok(quantity) = text.parse::<Quantity>() {
                *value = Value::String(quantity.to_string());
            }
        }
        Shape::Time => canonical_time(value, false),
        Shape::MicroTime => canonical_time(value, true),
        _ => {}
    }
}

/// Brings a value of a list or map into its form. A null there is no absent value: Go reads it as the zero value, and clients
/// that know the type cannot read it at all.
fn prune_item(shape: Shape, item: &mut Value, zeros: Zeros) {
    if item.is_null() {
        *item = zero(shape);
    }
    prune(shape, item, zeros);
}

fn zero(shape: Shape) -> Value {
    match shape.unwrapped() {
        Shape::Str | Shape::Bytes => "".into(),
        Shape::Bool => false.into(),
        Shape::I32 | Shape::I64 | Shape::F64 | Shape::IntOrString => 0.into(),
        Shape::Quantity => "0".into(),
        Shape::Duration => "0s".into(),
        Shape::Struct(_) | Shape::Map(_) => Value::Object(Map::new()),
        Shape::List(_) => Value::Array(Vec::new()),
        Shape::Raw | Shape::Time | Shape::MicroTime | Shape::FieldsV1 | Shape::Wrapped(_) => Value::Null,
    }
}

fn prune_struct(definition: &TypeDef, object: &mut Map<String, Value>, zeros: Zeros) {
    object.retain(|name, value| {
        let Some(field) = definition.field(name) else {
            return false;
        };
        prune(field.shape, value, zeros);
        match zeros {
            Zeros::Kept => !value.is_null(),
            Zeros::Dropped => !is_omitted(field, value),
        }
    });
}

/// Whether Go leaves the value out: `null`, and zero values of optional fields that are no pointers.
fn is_omitted(field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) if text.is_empty() && matches!(field.shape, Shape::Time | Shape::MicroTime) => {
            true
        }
        _ if field.zero_written || field.pointer => false,
        // An empty list of managed fields is an instruction, see `track_update`.
        Value::Array(items) => items.is_empty() && field.name != "managedFields",
        Value::Object(entries) => entries.is_empty() && matches!(field.shape, Shape::Map(_)),
        Value::String(text) => text.is_empty() && matches!(field.shape, Shape::Str | Shape::Bytes),
        Value::Number(number) => {
            number.as_f64() == Some(0.0) && matches!(field.shape, Shape::I32 | Shape::I64 | Shape::F64)
        }
        Value::Bool(set) => !set,
    }
}

fn canonical_time(value: &mut Value, micro: bool) {
    let Some(time) = value
        .as_str()
        .and_then(|text| text.parse::<jiff::Timestamp>().ok())
    else {
        return;
    };
    *value = Value::String(format_time(time, micro));
}

/// A time as Kubernetes writes it: whole seconds, or six digits of a second.
pub(super) fn format_time(time: jiff::Timestamp, micro: bool) -> String {
    time.strftime(if micro {
        "%Y-%m-%dT%H:%M:%S.%6fZ"
    } else {
        "%Y-%m-%dT%H:%M:%SZ"
    })
    .to_string()
}

pub(super) fn check_types(root: Shape, object: &Value) -> Result<(), TypeError> {
    let top = Place {
        owner: "",
        name: "",
        parent: None,
    };
    check(root, object, &top)
}

/// Where a value stands: the struct it is a field of, and the path there. Written out only for an error.
struct Place<'a> {
    owner: &'static str,
    name: &'a str,
    parent: Option<&'a Place<'a>>,
}

impl Place<'_> {
    fn path(&self) -> String {
        match self.parent {
            Some(parent) if parent.parent.is_some() => format!("{}.{}", parent.path(), self.name),
            _ => self.name.to_owned(),
        }
    }
}

fn check(shape: Shape, value: &Value, place: &Place<'_>) -> Result<(), TypeError> {
    let ok = match (shape.unwrapped(), value) {
        (_, Value::Null)
        | (Shape::Raw | Shape::FieldsV1, _)
        | (Shape::Bool, Value::Bool(_))
        | (Shape::Str | Shape::Duration | Shape::IntOrString, Value::String(_))
        | (Shape::F64, Value::Number(_)) => true,
        (Shape::I32 | Shape::IntOrString, Value::Number(n)) => {
            n.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
        }
        (Shape::I64, Value::Number(n)) => n.as_i64().is_some(),
        (Shape::Bytes, Value::String(text)) => {
            return base64::engine::general_purpose::STANDARD
                .decode(text)
                .map(drop)
                .map_err(|error| {
                    let position = match error {
                        base64::DecodeError::InvalidByte(at, _)
                        | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                        _ => text.len(),
                    };
                    TypeError::new(format!("illegal base64 data at input byte {position}"))
                });
        }
        (Shape::Quantity, Value::String(text)) => return check_quantity(text),
        (Shape::Quantity, Value::Number(number)) => return check_quantity(&number.to_string()),
        (Shape::Time | Shape::MicroTime, Value::String(text)) => {
            if text.is_empty() || text.parse::<jiff::Timestamp>().is_ok() {
                true
            } else {
                let layout = if shape == Shape::Time {
                    "2006-01-02T15:04:05Z07:00"
                } else {
                    "2006-01-02T15:04:05.000000Z07:00"
                };
                let message =
                    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"");
                return Err(TypeError::new(message));
            }
        }
        (Shape::Struct(id), Value::Object(object)) => {
            let definition = id.definition();
            let owner = definition.name.rsplit('.').next().unwrap_or(definition.name);
            for (name, child) in object {
                if let Some(field) = definition.field(name) {
                    check(
                        field.shape,
                        child,
                        &Place {
                            owner,
                            name,
                            parent: Some(place),
                        },
                    )?;
                }
            }
            true
        }
        (Shape::List(inner), Value::Array(items)) => {
            items.iter().try_for_each(|item| check(*inner, item, place))?;
            true
        }
        (Shape::Map(inner), Value::Object(entries)) => {
            entries.values().try_for_each(|item| check(*inner, item, place))?;
            true
        }
        _ => false,
    };
    if ok {
        Ok(())
    } else {
        Err(mismatch(shape.unwrapped(), value, place))
    }
}

fn check_quantity(text: &str) -> Result<(), TypeError> {
    match text.parse::<Quantity>() {
        Ok(_) => Ok(()),
        Err(_) if text.is_empty() => Ok(()),
        Err(error) => Err(TypeError::new(error.to_string())),
    }
}

fn mismatch(shape: Shape, value: &Value, place: &Place<'_>) -> TypeError {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) if matches!(shape, Shape::I32 | Shape::I64 | Shape::IntOrString) => {
            format!("number {number}")
        }
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let expected = go_name(shape);
    let message = if place.owner.is_empty() {
        format!("json: cannot unmarshal {found} into Go value of type {expected}")
    } else {
        format!(
            "json: cannot unmarshal {found} into Go struct field {}.{} of type {expected}",
            place.owner,
            place.path()
        )
    };
    TypeError {
        message,
        converted: converter_words(shape, value),
    }
}

/// What the converter says; nothing of its own about types that decode themselves.
fn converter_words(shape: Shape, value: &Value) -> Option<String> {
    let (kind, number) = match value {
        Value::Null => return None,
        Value::Bool(_) => ("bool", false),
        Value::Number(number) if number.is_f64() => ("float64", true),
        Value::Number(_) => ("int64", true),
        Value::String(_) => ("string", false),
        Value::Array(_) => ("slice", false),
        Value::Object(_) => ("map", false),
    };
    match shape {
        Shape::Struct(_) => Some(format!("cannot restore struct from: {kind}")),
        Shape::List(_) | Shape::Bytes => Some(format!("cannot restore slice from {kind}")),
        Shape::Map(_) => Some(format!("cannot restore map from {kind}")),
        Shape::Str | Shape::Bool | Shape::I32 | Shape::I64 | Shape::F64 => {
            let wanted = go_name(shape);
            // Go converts any number to any other, and a whole one to a string.
            let convertible = match shape {
                Shape::Str => kind == "int64",
                Shape::Bool => false,
                _ => number,
            };
            Some(if convertible {
                format!("cannot convert {kind} to {wanted}")
            } else {
                format!("unrecognized type: {wanted}")
            })
        }
        _ => None,
    }
}

/// A value as Go prints it.
pub(crate) fn go_text(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(go_text).collect();
            format!("[{}]", items.join(" "))
        }
        Value::Object(entries) => {
            let mut entries: Vec<_> = entries.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| *key);
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(key, value)| format!("{key}:{}", go_text(value)))
                .collect();
            format!("map[{}]", entries.join(" "))
        }
    }
}

fn go_name(shape: Shape) -> String {
    match shape {
        Shape::Str | Shape::Time | Shape::MicroTime | Shape::Duration => "string".to_owned(),
        Shape::Bool => "bool".to_owned(),
        Shape::I32 | Shape::IntOrString => "int32".to_owned(),
        Shape::I64 => "int64".to_owned(),
        Shape::F64 => "float64".to_owned(),
        Shape::Bytes => "[]uint8".to_owned(),
        Shape::Quantity => "resource.Quantity".to_owned(),
        Shape::Raw => "runtime.RawExtension".to_owned(),
        Shape::FieldsV1 => "v1.FieldsV1".to_owned(),
        Shape::Struct(id) => {
            // `core.v1.PodSpec` is `v1.PodSpec` in Go.
            let name = id.definition().name;
            name.split_once('.').map_or(name, |(_, rest)| rest).to_owned()
        }
        Shape::List(inner) => format!("[]{}", go_name(*inner)),
        Shape::Map(inner) => format!("map[string]{}", go_name(*inner)),
        Shape::Wrapped(inner) => go_name(*inner),
    }
}

#[cfg(test)]
mod tests {
    use super::super::kind;
    use serde_json::json;

    #[test]
    fn unknown_fields_are_named_by_path() {
        let schema = kind("apps", "v1", "Deployment").expect("known");
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "foo": 1,
            "metadata": {"name": "x", "labels": {"any": "thing"}, "unknownMeta": ""},
            "spec": {"replicaz": 1, "template": {"spec": {"containers": [
                {"name": "a", "imagee": "x"}, {"name": "b", "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "v", "emptyDir": {"size": 1}, "emptyDirr": {}}]}}}});
        let mut found = schema.unknown_fields(&object);
        found.sort();
        assert_eq!(
            found,
            [
                "foo",
                "metadata.unknownMeta",
                "spec.replicaz",
                "spec.template.spec.containers[0].imagee",
                "spec.template.spec.volumes[0].emptyDir.size",
                "spec.template.spec.volumes[0].emptyDirr",
            ]
        );
    }

    #[test]
    fn pruning_gives_the_stored_form() {
        let schema = kind("", "v1", "Pod").expect("known");
        let mut object = json!({"metadata": {"name": "x", "creationTimestamp": null, "labels": {}, "bogus": 1,
                "annotations": {"a": null}, "deletionTimestamp": "2024-01-01T01:00:00.5+01:00"},
            "spec": {"hostNetwork": false, "nodeName": "", "priority": 0, "enableServiceLinks": false,
                "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [],
                "containers": [{"name": "c", "resources": {"limits": {"cpu": 1.50, "memory": "1024Ki"}}, "env": null}]}});
        schema.prune(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "x", "annotations": {"a": ""}, "deletionTimestamp": "2024-01-01T00:00:00Z"},
                "spec": {"priority": 0, "enableServiceLinks": false, "volumes": [{"name": "v", "emptyDir": {}}],
                    "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Mi"}}}]}})
        );
    }

    #[test]
    fn a_null_among_others_is_what_go_reads_it_as() {
        let schema = kind("", "v1", "Pod").expect("known");
        let mut object = json!({"metadata": {"name": "x"}, "spec": {"containers": [null,
            {"name": "c", "args": ["a", null], "env": [null], "resources": {"limits": {"cpu": null}}}]},
            "status": {"conditions": [null]}});
        schema.check_types(&object).expect("well typed");
        schema.prune(&mut object);
        assert_eq!(
            object,
            json!({"metadata": {"name": "x"}, "spec": {"containers": [{},
                {"name": "c", "args": ["a", ""], "env": [{}], "resources": {"limits": {"cpu": "0"}}}]},
                "status": {"conditions": [{}]}})
        );
    }

    #[test]
    fn wrong_types_in_strategic_patches_are_worded_as_the_converter_words_them() {
        let check = |kind_name, object| {
            let schema = kind("", "v1", kind_name).expect("known");
            let error = schema.check_types(&object).expect_err("refused");
            error.of_converter().to_owned()
        };
        let pod = |spec| check("Pod", json!({"spec": spec}));
        assert_eq!(pod(json!({"priority": "x"})), "unrecognized type: int32");
        assert_eq!(pod(json!({"priority": 1.5})), "cannot convert float64 to int32");
        assert_eq!(pod(json!({"hostNetwork": "true"})), "unrecognized type: bool");
        assert_eq!(pod(json!({"nodeName": 1})), "cannot convert int64 to string");
        assert_eq!(pod(json!({"nodeName": true})), "unrecognized type: string");
        assert_eq!(pod(json!({"containers": {}})), "cannot restore slice from map");
        assert_eq!(
            pod(json!({"containers": ["c"]})),
            "cannot restore struct from: string"
        );
        assert_eq!(pod(json!({"nodeSelector": []})), "cannot restore map from slice");
        assert!(pod(json!({"overhead": {"cpu": "x"}})).starts_with("quantities must match"));
        assert_eq!(
            super::go_text(&json!({"b": [1, "x y", null], "a": {"c": true}})),
            "map[a:map[c:true] b:[1 x y <nil>]]"
        );
    }

    #[test]
    fn wrong_types_are_worded_as_go_words_them() {
        let check = |group, kind_name, object| {
            kind(group, "v1", kind_name)
                .expect("known")
                .check_types(&object)
                .expect_err("refused")
                .to_string()
        };
        assert_eq!(
            check("apps", "Deployment", json!({"spec": {"replicas": "x"}})),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
        assert_eq!(
            check("", "Pod", json!({"spec": {"containers": {"name": "x"}}})),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container"
        );
        assert_eq!(
            check("", "ConfigMap", json!({"data": {"a": 1}})),
            "json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
        );
        assert_eq!(
            check("", "Pod", json!([])),
            "json: cannot unmarshal array into Go value of type v1.Pod"
        );
        assert!(
            check("", "Pod", json!({"spec": {"overhead": {"cpu": "x"}}}))
                .starts_with("quantities must match")
        );
        assert_eq!(
            check("", "Secret", json!({"data": {"a": "%"}})),
            "illegal base64 data at input byte 0"
        );
        let fine = json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80}],
            "livenessProbe": {"httpGet": {"port": "http"}}}], "activeDeadlineSeconds": 5}});
        kind("", "v1", "Pod")
            .expect("known")
            .check_types(&fine)
            .expect("well typed");
    }
}
