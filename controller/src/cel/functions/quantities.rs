//! Kubernetes' quantities.

use std::cmp::Ordering;
use std::sync::Arc;

use super::strings::only;
use super::{Row, failed, no_such_overload, semver};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};
use crate::quantity::Quantity;

pub(super) const TABLE: &[Row] = &[
    ("quantity", quantity, &["(string) quantity"]),
    ("isQuantity", is_quantity, &["(string) bool"]),
    ("sign", sign, &["quantity.() int"]),
    ("isInteger", is_integer, &["quantity.() bool"]),
    ("asInteger", as_integer, &["quantity.() int"]),
    ("asApproximateFloat", as_float, &["quantity.() double"]),
    (
        "add",
        add,
        &["quantity.(quantity) quantity", "quantity.(int) quantity"],
    ),
    (
        "sub",
        sub,
        &["quantity.(quantity) quantity", "quantity.(int) quantity"],
    ),
    (
        "compareTo",
        compare_to,
        &["quantity.(quantity) int", "semver.(semver) int"],
    ),
    (
        "isLessThan",
        is_less,
        &["quantity.(quantity) bool", "semver.(semver) bool"],
    ),
    (
        "isGreaterThan",
        is_greater,
        &["quantity.(quantity) bool", "semver.(semver) bool"],
    ),
];

fn quantity<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match only(cost, arguments)?.parse::<Quantity>() {
        Ok(quantity) => Ok(Value::Quantity(Arc::new(quantity))),
        Err(error) => failed(error.to_string()),
    }
}

fn is_quantity<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(only(cost, arguments)?.parse::<Quantity>().is_ok()))
}

fn sign<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Quantity(quantity)] => Ok(Value::Int(quantity.nanos().signum() as i64)),
        _ => no_such_overload(),
    }
}

fn is_integer<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Quantity(quantity)] => Ok(Value::Bool(quantity.is_whole())),
        _ => no_such_overload(),
    }
}

fn as_integer<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Quantity(quantity)] if quantity.is_whole() => Ok(Value::Int(quantity.value())),
        [Value::Quantity(_)] => failed("cannot convert value to integer"),
        _ => no_such_overload(),
    }
}

fn as_float<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Quantity(quantity)] => Ok(Value::Double(quantity.as_f64())),
        _ => no_such_overload(),
    }
}

fn pair(arguments: &[Value<'_>]) -> Option<(Quantity, Quantity)> {
    match arguments {
        [Value::Quantity(a), Value::Quantity(b)] => Some((**a, **b)),
        [Value::Quantity(a), Value::Int(b)] => Some((**a, Quantity::from_units(*b))),
        _ => None,
    }
}

fn add<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match pair(arguments) {
        Some((a, b)) => Ok(Value::Quantity(Arc::new(a + b))),
        None => no_such_overload(),
    }
}

fn sub<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match pair(arguments) {
        Some((a, b)) => Ok(Value::Quantity(Arc::new(a - b))),
        None => no_such_overload(),
    }
}

/// The order of two quantities, or of two versions.
fn order(cost: &mut Cost, arguments: &[Value<'_>]) -> Result<Ordering, EvaluationError> {
    match arguments {
        [Value::Quantity(a), Value::Quantity(b)] => Ok(a.cmp(b)),
        [Value::Semver(a), Value::Semver(b)] => semver::compare(cost, a, b),
        _ => Err(EvaluationError::NoSuchOverload),
    }
}

fn compare_to<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Int(order(cost, arguments)? as i64))
}

fn is_less<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(order(cost, arguments)?.is_lt()))
}

fn is_greater<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(order(cost, arguments)?.is_gt()))
}
