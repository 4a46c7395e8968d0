//! Operators: arithmetic that never wraps, comparison across types of numbers, and looking into lists and maps.

use std::cmp::Ordering;

use jiff::{SignedDuration, Timestamp};

use super::{Row, no_such_overload};
use crate::cel::types::ListKind;
use crate::cel::value::{Evaluated, Key, List, Value};
use crate::cel::{Cost, EvaluationError};

const ORDERED: &[&str] = &[
    "(bool, bool) bool",
    "(int, int) bool",
    "(int, uint) bool",
    "(int, double) bool",
    "(uint, uint) bool",
    "(uint, int) bool",
    "(uint, double) bool",
    "(double, double) bool",
    "(double, int) bool",
    "(double, uint) bool",
    "(string, string) bool",
    "(bytes, bytes) bool",
    "(timestamp, timestamp) bool",
    "(duration, duration) bool",
];

const INDEX: &[&str] = &[
    "(optional(list(A)), int) optional(A)",
    "(optional(map(A, B)), A) optional(B)",
];

pub(super) const TABLE: &[Row] = &[
    ("!_", not, &["(bool) bool"]),
    ("-_", negate, &["(int) int", "(double) double"]),
    (
        "_+_",
        add,
        &[
            "(int, int) int",
            "(uint, uint) uint",
            "(double, double) double",
            "(string, string) string",
            "(bytes, bytes) bytes",
            "(list(A), list(A)) list(A)",
            "(timestamp, duration) timestamp",
            "(duration, timestamp) timestamp",
            "(duration, duration) duration",
        ],
    ),
    (
        "_-_",
        subtract,
        &[
            "(int, int) int",
            "(uint, uint) uint",
            "(double, double) double",
            "(timestamp, timestamp) duration",
            "(timestamp, duration) timestamp",
            "(duration, duration) duration",
        ],
    ),
    (
        "_*_",
        multiply,
        &["(int, int) int", "(uint, uint) uint", "(double, double) double"],
    ),
    (
        "_/_",
        divide,
        &["(int, int) int", "(uint, uint) uint", "(double, double) double"],
    ),
    ("_%_", remainder, &["(int, int) int", "(uint, uint) uint"]),
    ("_==_", equal, &["(A, A) bool"]),
    ("_!=_", unequal, &["(A, A) bool"]),
    ("_<_", less, ORDERED),
    ("_<=_", less_or_equal, ORDERED),
    ("_>_", greater, ORDERED),
    ("_>=_", greater_or_equal, ORDERED),
    ("@in", within, &["(A, list(A)) bool", "(A, map(A, B)) bool"]),
    ("_[_]", index, &["(list(A), int) A", "(map(A, B), A) B"]),
    ("_[_]", optional_index, INDEX),
    (
        "_[?_]",
        optional_index,
        &["(list(A), int) optional(A)", "(map(A, B), A) optional(B)"],
    ),
    ("_[?_]", optional_index, INDEX),
    (
        "size",
        size,
        &[
            "(string) int",
            "(bytes) int",
            "(list(A)) int",
            "(map(A, B)) int",
            "string.() int",
            "bytes.() int",
            "list(A).() int",
            "map(A, B).() int",
        ],
    ),
];

const OVERFLOW: EvaluationError = EvaluationError::Overflow("integer overflow");
const UNSIGNED_OVERFLOW: EvaluationError = EvaluationError::Overflow("unsigned integer overflow");

/// Times that CEL knows begin with the year 1; jiff's own range ends with the year 9999.
const FIRST_SECOND: i64 = -62_135_596_800;

/// A time that is in CEL's range.
pub(super) fn in_range(time: Timestamp) -> Option<Timestamp> {
    (time.as_second() >= FIRST_SECOND).then_some(time)
}

fn not<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Bool(value)] => Ok(Value::Bool(!value)),
        _ => no_such_overload(),
    }
}

fn negate<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(value)] => value.checked_neg().map(Value::Int).ok_or(OVERFLOW),
        [Value::Double(value)] => Ok(Value::Double(-value)),
        _ => no_such_overload(),
    }
}

fn shifted<'a>(time: Timestamp, nanos: Option<i64>) -> Evaluated<'a> {
    nanos
        .and_then(|nanos| time.checked_add(SignedDuration::from_nanos(nanos)).ok())
        .and_then(in_range)
        .map(Value::Timestamp)
        .ok_or(EvaluationError::Overflow("timestamp overflow"))
}

pub(super) fn add<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(a), Value::Int(b)] => a.checked_add(*b).map(Value::Int).ok_or(OVERFLOW),
        [Value::Uint(a), Value::Uint(b)] => a.checked_add(*b).map(Value::Uint).ok_or(UNSIGNED_OVERFLOW),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a + b)),
        [Value::String(a), Value::String(b)] => {
            cost.traverse(a.len() + b.len())?;
            Ok(Value::text([&**a, &**b].concat()))
        }
        [Value::Bytes(a), Value::Bytes(b)] => {
            cost.traverse(a.len() + b.len())?;
            Ok(Value::Bytes([&**a, &**b].concat().into()))
        }
        [Value::List(a), Value::List(b)] => joined(cost, a, b),
        [Value::Timestamp(time), Value::Duration(nanos)]
        | [Value::Duration(nanos), Value::Timestamp(time)] => shifted(*time, Some(*nanos)),
        [Value::Duration(a), Value::Duration(b)] => a
            .checked_add(*b)
            .map(Value::Duration)
            .ok_or(EvaluationError::Overflow("duration overflow")),
        _ => no_such_overload(),
    }
}

/// The sum of two lists: sets and lists with keys have no item twice.
fn joined<'a>(cost: &mut Cost, a: &List<'a>, b: &List<'a>) -> Evaluated<'a> {
    let mut items = a.items(cost)?;
    for item in b.items(cost)? {
        match a.kind() {
            ListKind::Atomic => items.push(item),
            ListKind::Set => {
                if !a.contains(&item, cost)? {
                    items.push(item);
                }
            }
            ListKind::Map(keys) => match a.find_keyed(&item, keys, cost)? {
                Some(place) => items[place] = item,
                None => items.push(item),
            },
        }
    }
    Ok(Value::list(items))
}

fn subtract<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(a), Value::Int(b)] => a.checked_sub(*b).map(Value::Int).ok_or(OVERFLOW),
        [Value::Uint(a), Value::Uint(b)] => a.checked_sub(*b).map(Value::Uint).ok_or(UNSIGNED_OVERFLOW),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a - b)),
        [Value::Timestamp(a), Value::Timestamp(b)] => i64::try_from(a.duration_since(*b).as_nanos())
            .map(Value::Duration)
            .map_err(|_| EvaluationError::Overflow("duration overflow")),
        [Value::Timestamp(time), Value::Duration(nanos)] => shifted(*time, nanos.checked_neg()),
        [Value::Duration(a), Value::Duration(b)] => a
            .checked_sub(*b)
            .map(Value::Duration)
            .ok_or(EvaluationError::Overflow("duration overflow")),
        _ => no_such_overload(),
    }
}

fn multiply<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(a), Value::Int(b)] => a.checked_mul(*b).map(Value::Int).ok_or(OVERFLOW),
        [Value::Uint(a), Value::Uint(b)] => a.checked_mul(*b).map(Value::Uint).ok_or(UNSIGNED_OVERFLOW),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a * b)),
        _ => no_such_overload(),
    }
}

fn divide<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvaluationError::DivisionByZero)
        }
        [Value::Int(a), Value::Int(b)] => a.checked_div(*b).map(Value::Int).ok_or(OVERFLOW),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a / b)),
        [Value::Double(a), Value::Double(b)] => Ok(Value::Double(a / b)),
        _ => no_such_overload(),
    }
}

fn remainder<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Int(_), Value::Int(0)] | [Value::Uint(_), Value::Uint(0)] => {
            Err(EvaluationError::ModulusByZero)
        }
        [Value::Int(a), Value::Int(b)] => a.checked_rem(*b).map(Value::Int).ok_or(OVERFLOW),
        [Value::Uint(a), Value::Uint(b)] => Ok(Value::Uint(a % b)),
        _ => no_such_overload(),
    }
}

fn equal<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [a, b] => a.equals(b, cost).map(Value::Bool),
        _ => no_such_overload(),
    }
}

fn unequal<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [a, b] => a.equals(b, cost).map(|equal| Value::Bool(!equal)),
        _ => no_such_overload(),
    }
}

/// The order of two numbers, whatever their types; none with what is not a number.
pub(in crate::cel) fn compare_numbers(a: &Value<'_>, b: &Value<'_>) -> Option<Ordering> {
    let whole = |value: &Value<'_>| match value {
        Value::Int(value) => Some(i128::from(*value)),
        Value::Uint(value) => Some(i128::from(*value)),
        _ => None,
    };
    match (a, b) {
        (Value::Double(a), Value::Double(b)) => a.partial_cmp(b),
        (Value::Double(a), b) => compare_mixed(*a, whole(b)?),
        (a, Value::Double(b)) => compare_mixed(*b, whole(a)?).map(Ordering::reverse),
        (a, b) => Some(whole(a)?.cmp(&whole(b)?)),
    }
}

/// Exactly: a large integer has no floating-point number of its own.
fn compare_mixed(a: f64, b: i128) -> Option<Ordering> {
    if a.is_nan() {
        return None;
    }
    if a.abs() > 1e20 {
        return a.partial_cmp(&0.0);
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    let whole = a.trunc() as i128;
    Some(whole.cmp(&b).then(a.fract().partial_cmp(&0.0)?))
}

/// The order of two values of one type, or of two numbers.
pub(super) fn compare(
    a: &Value<'_>,
    b: &Value<'_>,
    cost: &mut Cost,
) -> Result<Option<Ordering>, EvaluationError> {
    Ok(match (a, b) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::String(a), Value::String(b)) => {
            cost.traverse(a.len().min(b.len()))?;
            Some((**a).cmp(&**b))
        }
        (Value::Bytes(a), Value::Bytes(b)) => {
            cost.traverse(a.len().min(b.len()))?;
            Some(a.cmp(b))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Double(a), b) | (b, Value::Double(a)) if a.is_nan() => match b {
            // Nothing is before or after what is not a number.
            Value::Int(_) | Value::Uint(_) | Value::Double(_) => None,
            _ => return Err(EvaluationError::NoSuchOverload),
        },
        (a, b) => match compare_numbers(a, b) {
            None if !matches!((a, b), (Value::Double(_), Value::Double(_))) => {
                return Err(EvaluationError::NoSuchOverload);
            }
            order => order,
        },
    })
}

fn ordered<'a>(cost: &mut Cost, arguments: &[Value<'a>], wanted: fn(Ordering) -> bool) -> Evaluated<'a> {
    match arguments {
        [a, b] => Ok(Value::Bool(compare(a, b, cost)?.is_some_and(wanted))),
        _ => no_such_overload(),
    }
}

fn less<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    ordered(cost, arguments, Ordering::is_lt)
}

fn less_or_equal<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    ordered(cost, arguments, Ordering::is_le)
}

fn greater<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    ordered(cost, arguments, Ordering::is_gt)
}

fn greater_or_equal<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    ordered(cost, arguments, Ordering::is_ge)
}

fn within<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let found = match arguments {
        [value, Value::List(list)] => list.contains(value, cost)?,
        // What cannot be a key is none of the keys.
        [key, Value::Map(map)] => match map.get(key, cost) {
            Err(EvaluationError::KeyType(_)) => false,
            found => found?.is_some(),
        },
        _ => return no_such_overload(),
    };
    Ok(Value::Bool(found))
}

/// A place in a list that a value means.
fn place(value: &Value<'_>) -> Option<i64> {
    match value {
        Value::Int(place) => Some(*place),
        Value::Uint(place) => i64::try_from(*place).ok(),
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
        Value::Double(place) if place.fract() == 0.0 && place.abs() < 1e15 => Some(*place as i64),
        _ => None,
    }
}

fn shown(key: &Value<'_>) -> String {
    Key::of(key).map_or_else(|| key.type_of().to_string(), |key| key.shown())
}

/// What is in a list or map; `None` if it is not there.
fn look_up<'a>(
    cost: &mut Cost,
    container: &Value<'a>,
    key: &Value<'a>,
) -> Result<Option<Value<'a>>, EvaluationError> {
    match container {
        Value::List(list) => {
            let Some(place) = place(key) else {
                return Err(EvaluationError::NoSuchOverload);
            };
            match usize::try_from(place) {
                Ok(index) if index < list.len() => list.item(index, cost).map(Some),
                _ => Ok(None),
            }
        }
        Value::Map(map) => map.get(key, cost),
        _ => Err(EvaluationError::NoSuchOverload),
    }
}

fn index<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [container, key] = arguments else {
        return no_such_overload();
    };
    match look_up(cost, container, key)? {
        Some(found) => Ok(found),
        None if matches!(container, Value::List(_)) => Err(EvaluationError::Index(shown(key))),
        None => Err(EvaluationError::NoSuchKey(shown(key))),
    }
}

fn optional_index<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let found = match arguments {
        [Value::Optional(None), _] => None,
        [Value::Optional(Some(container)), key] => look_up(cost, container, key)?,
        [container, key] => look_up(cost, container, key)?,
        _ => return no_such_overload(),
    };
    Ok(Value::Optional(found.map(std::sync::Arc::new)))
}

fn size<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let size = match arguments {
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            text.chars().count()
        }
        [Value::Bytes(bytes)] => bytes.len(),
        [Value::List(list)] => list.len(),
        [Value::Map(map)] => map.len(),
        _ => return no_such_overload(),
    };
    Ok(Value::count(size))
}
