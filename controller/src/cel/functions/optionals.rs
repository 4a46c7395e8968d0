//! Values that may be absent.

use super::{Row, failed, no_such_overload};
use crate::cel::Cost;
use crate::cel::value::{Evaluated, Value};

pub(super) const TABLE: &[Row] = &[
    (
        "optional.none",
        |_, _| Ok(Value::Optional(None)),
        &["() optional(A)"],
    ),
    ("optional.of", of, &["(A) optional(A)"]),
    ("optional.ofNonZeroValue", of_non_zero, &["(A) optional(A)"]),
    ("hasValue", has_value, &["optional(A).() bool"]),
    ("value", value, &["optional(A).() A"]),
    ("or", or, &["optional(A).(optional(A)) optional(A)"]),
    ("orValue", or_value, &["optional(A).(A) A"]),
];

fn of<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [value] => Ok(Value::some(value.clone())),
        _ => no_such_overload(),
    }
}

fn of_non_zero<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [value] = arguments else {
        return no_such_overload();
    };
    let zero = match value {
        Value::Null | Value::Bool(false) | Value::Int(0) | Value::Uint(0) | Value::Duration(0) => true,
        Value::Double(value) => *value == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Bytes(bytes) => bytes.is_empty(),
        Value::List(list) => list.len() == 0,
        Value::Map(map) => map.len() == 0,
        Value::Object(fields, _) => fields.is_empty(),
        _ => false,
    };
    Ok(if zero {
        Value::Optional(None)
    } else {
        Value::some(value.clone())
    })
}

fn has_value<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Optional(value)] => Ok(Value::Bool(value.is_some())),
        _ => no_such_overload(),
    }
}

fn value<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Optional(Some(value))] => Ok((**value).clone()),
        [Value::Optional(None)] => failed("optional.none() dereference"),
        _ => no_such_overload(),
    }
}

fn or<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Optional(None), other @ Value::Optional(_)] => Ok(other.clone()),
        [some @ Value::Optional(_), Value::Optional(_)] => Ok(some.clone()),
        _ => no_such_overload(),
    }
}

fn or_value<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Optional(None), other] => Ok(other.clone()),
        [Value::Optional(Some(value)), _] => Ok((**value).clone()),
        _ => no_such_overload(),
    }
}
