//! Values of one type made of those of another.

use std::sync::Arc;

use super::printing::{double_text, show};
use super::{Row, failed, no_such_overload, shortened};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};

pub(super) const TABLE: &[Row] = &[
    (
        "int",
        int,
        &[
            "(int) int",
            "(uint) int",
            "(double) int",
            "(string) int",
            "(timestamp) int",
            "(duration) int",
        ],
    ),
    (
        "uint",
        uint,
        &["(uint) uint", "(int) uint", "(double) uint", "(string) uint"],
    ),
    (
        "double",
        double,
        &[
            "(double) double",
            "(int) double",
            "(uint) double",
            "(string) double",
        ],
    ),
    (
        "string",
        string,
        &[
            "(string) string",
            "(bool) string",
            "(int) string",
            "(uint) string",
            "(double) string",
            "(bytes) string",
            "(timestamp) string",
            "(duration) string",
            "(ip) string",
            "(cidr) string",
            "(url) string",
        ],
    ),
    ("bytes", bytes, &["(bytes) bytes", "(string) bytes"]),
    ("bool", bool, &["(bool) bool", "(string) bool"]),
    ("type", type_of, &["(A) type(A)"]),
    ("dyn", dynamic, &["(A) dyn"]),
];

const RANGE: EvaluationError = EvaluationError::Overflow("integer overflow");
const UNSIGNED_RANGE: EvaluationError = EvaluationError::Overflow("unsigned integer overflow");

fn unreadable<'a>(text: &str, of: &str) -> Evaluated<'a> {
    let text = shortened(text);
    failed(format!("type conversion error from 'string' to '{of}': {text:?}"))
}

fn int<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let value = match arguments {
        [Value::Int(value)] => *value,
        [Value::Uint(value)] => i64::try_from(*value).map_err(|_| RANGE)?,
        #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
        [Value::Double(value)] if value.abs() < 9.223_372_036_854_775e18 => *value as i64,
        [Value::Double(_)] => return Err(RANGE),
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            match text.parse() {
                Ok(value) => value,
                Err(_) => return unreadable(text, "int"),
            }
        }
        [Value::Timestamp(time)] => time.as_second(),
        [Value::Duration(nanos)] => *nanos,
        _ => return no_such_overload(),
    };
    Ok(Value::Int(value))
}

fn uint<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let value = match arguments {
        [Value::Uint(value)] => *value,
        [Value::Int(value)] => u64::try_from(*value).map_err(|_| UNSIGNED_RANGE)?,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is in range"
        )]
        [Value::Double(value)] if (0.0..1.844_674_407_370_955e19).contains(value) => *value as u64,
        [Value::Double(_)] => return Err(UNSIGNED_RANGE),
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            match text.parse() {
                Ok(value) => value,
                Err(_) => return unreadable(text, "uint"),
            }
        }
        _ => return no_such_overload(),
    };
    Ok(Value::Uint(value))
}

#[expect(clippy::cast_precision_loss, reason = "that is what the conversion does")]
fn double<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let value = match arguments {
        [Value::Double(value)] => *value,
        [Value::Int(value)] => *value as f64,
        [Value::Uint(value)] => *value as f64,
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            match text.parse() {
                Ok(value) => value,
                Err(_) => return unreadable(text, "double"),
            }
        }
        _ => return no_such_overload(),
    };
    Ok(Value::Double(value))
}

fn string<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::String(text)] => Ok(Value::String(text.clone())),
        [Value::Double(number)] => Ok(Value::text(double_text(*number))),
        [Value::Bytes(bytes)] => {
            cost.traverse(bytes.len())?;
            match std::str::from_utf8(bytes) {
                Ok(text) => Ok(Value::text(text)),
                Err(_) => failed("invalid UTF-8 in bytes, cannot convert to string"),
            }
        }
        [
            value @ (Value::Bool(_)
            | Value::Int(_)
            | Value::Uint(_)
            | Value::Timestamp(_)
            | Value::Duration(_)
            | Value::Ip(_)
            | Value::Cidr(_)
            | Value::Url(_)),
        ] => {
            let mut text = String::new();
            show(cost, value, &mut text)?;
            Ok(Value::text(text))
        }
        _ => no_such_overload(),
    }
}

fn bytes<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Bytes(bytes)] => Ok(Value::Bytes(Arc::clone(bytes))),
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            Ok(Value::Bytes(text.as_bytes().into()))
        }
        _ => no_such_overload(),
    }
}

fn bool<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Bool(value)] => Ok(Value::Bool(*value)),
        [Value::String(text)] => match &**text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            text => unreadable(text, "bool"),
        },
        _ => no_such_overload(),
    }
}

fn type_of<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [value] => Ok(Value::Type(Arc::new(value.type_of()))),
        _ => no_such_overload(),
    }
}

fn dynamic<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [value] => Ok(value.clone()),
        _ => no_such_overload(),
    }
}
