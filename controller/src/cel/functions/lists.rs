//! Lists: Kubernetes' aggregates, and lists as sets.

use std::cmp::Ordering;

use super::operators::{add, compare};
use super::{Row, failed, no_such_overload};
use crate::cel::value::{Evaluated, List, Value};
use crate::cel::{Cost, EvaluationError};

pub(super) const TABLE: &[Row] = &[
    (
        "isSorted",
        is_sorted,
        &[
            "list(int).() bool",
            "list(uint).() bool",
            "list(double).() bool",
            "list(bool).() bool",
            "list(string).() bool",
            "list(bytes).() bool",
            "list(timestamp).() bool",
            "list(duration).() bool",
        ],
    ),
    // By the checker's choice the sum of nothing is of the right type.
    ("sum", |c, a| sum(c, a, Value::Int(0)), &["list(int).() int"]),
    ("sum", |c, a| sum(c, a, Value::Uint(0)), &["list(uint).() uint"]),
    (
        "sum",
        |c, a| sum(c, a, Value::Double(0.0)),
        &["list(double).() double"],
    ),
    (
        "sum",
        |c, a| sum(c, a, Value::Duration(0)),
        &["list(duration).() duration"],
    ),
    ("min", least, EXTREMES),
    ("max", greatest, EXTREMES),
    ("indexOf", index_of, &["list(A).(A) int"]),
    ("lastIndexOf", last_index_of, &["list(A).(A) int"]),
    ("sets.contains", contains, &["(list(A), list(A)) bool"]),
    ("sets.equivalent", equivalent, &["(list(A), list(A)) bool"]),
    ("sets.intersects", intersects, &["(list(A), list(A)) bool"]),
];

const EXTREMES: &[&str] = &[
    "list(int).() int",
    "list(uint).() uint",
    "list(double).() double",
    "list(bool).() bool",
    "list(string).() string",
    "list(bytes).() bytes",
    "list(timestamp).() timestamp",
    "list(duration).() duration",
];

fn is_sorted<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::List(list)] = arguments else {
        return no_such_overload();
    };
    let items = list.items(cost)?;
    for pair in items.windows(2) {
        if compare(&pair[0], &pair[1], cost)? == Some(Ordering::Greater) {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn sum<'a>(cost: &mut Cost, arguments: &[Value<'a>], nothing: Value<'a>) -> Evaluated<'a> {
    let [Value::List(list)] = arguments else {
        return no_such_overload();
    };
    let mut items = list.items(cost)?.into_iter();
    items.try_fold(nothing, |sum, item| add(cost, &[sum, item]))
}

fn extreme<'a>(
    cost: &mut Cost,
    arguments: &[Value<'a>],
    wanted: Ordering,
    name: &'static str,
) -> Evaluated<'a> {
    let [Value::List(list)] = arguments else {
        return no_such_overload();
    };
    let mut items = list.items(cost)?.into_iter();
    let Some(mut found) = items.next() else {
        return failed(format!("{name} called on empty list"));
    };
    for item in items {
        if compare(&item, &found, cost)? == Some(wanted) {
            found = item;
        }
    }
    Ok(found)
}

fn least<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    extreme(cost, arguments, Ordering::Less, "min")
}

fn greatest<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    extreme(cost, arguments, Ordering::Greater, "max")
}

/// The first place of an item among the places given, or -1.
fn position<'a>(
    cost: &mut Cost,
    list: &List<'a>,
    wanted: &Value<'a>,
    mut places: impl Iterator<Item = usize>,
) -> Evaluated<'a> {
    let found = places.find_map(|place| {
        let item = list.item(place, cost);
        match item.and_then(|item| item.equals(wanted, cost)) {
            Ok(false) => None,
            Ok(true) => Some(Ok(Value::count(place))),
            Err(error) => Some(Err(error)),
        }
    });
    found.unwrap_or(Ok(Value::Int(-1)))
}

fn index_of<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::List(list), wanted] => position(cost, list, wanted, 0..list.len()),
        _ => no_such_overload(),
    }
}

fn last_index_of<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::List(list), wanted] => position(cost, list, wanted, (0..list.len()).rev()),
        _ => no_such_overload(),
    }
}

/// Whether all, or any, of one list's items are in another.
fn are_in<'a>(
    cost: &mut Cost,
    items: &List<'a>,
    list: &List<'a>,
    all: bool,
) -> Result<bool, EvaluationError> {
    for item in items.items(cost)? {
        if list.contains(&item, cost)? != all {
            return Ok(!all);
        }
    }
    Ok(all)
}

fn contains<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::List(list), Value::List(items)] => are_in(cost, items, list, true).map(Value::Bool),
        _ => no_such_overload(),
    }
}

fn equivalent<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::List(a), Value::List(b)] => {
            let equal = are_in(cost, a, b, true)? && are_in(cost, b, a, true)?;
            Ok(Value::Bool(equal))
        }
        _ => no_such_overload(),
    }
}

fn intersects<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::List(a), Value::List(b)] => are_in(cost, a, b, false).map(Value::Bool),
        _ => no_such_overload(),
    }
}
