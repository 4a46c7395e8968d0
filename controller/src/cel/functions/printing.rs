//! Values as text, and texts with places for values.

use std::fmt::Write as _;

use super::time::duration_text;
use super::{Row, failed, no_such_overload};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};

pub(super) const TABLE: &[Row] = &[("format", format, &["string.(list(dyn)) string"])];

/// Most digits after the point that a text may ask for.
const MAX_PRECISION: usize = 100;

/// A floating-point number in the shortest form that reads the same.
pub(super) fn double_text(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let exponential = format!("{number:e}");
    let (digits, exponent) = exponential.split_once('e').unwrap_or((&exponential, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..21).contains(&exponent) || number == 0.0 {
        return number.to_string();
    }
    format!("{digits}{}", exponent_text(exponent))
}

fn exponent_text(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("e{sign}{:02}", exponent.unsigned_abs())
}

/// Adds a value as text.
pub(in crate::cel) fn show(
    cost: &mut Cost,
    value: &Value<'_>,
    text: &mut String,
) -> Result<(), EvaluationError> {
    cost.charge(1)?;
    let _ = match value {
        Value::Null => write!(text, "null"),
        Value::Bool(value) => write!(text, "{value}"),
        Value::Int(value) => write!(text, "{value}"),
        Value::Uint(value) => write!(text, "{value}"),
        Value::Double(value) => write!(text, "{}", double_text(*value)),
        Value::String(value) => {
            cost.traverse(value.len())?;
            text.write_str(value)
        }
        Value::Bytes(bytes) => {
            cost.traverse(bytes.len())?;
            text.write_str(&String::from_utf8_lossy(bytes))
        }
        Value::Timestamp(time) => write!(text, "{time}"),
        Value::Duration(nanos) => text.write_str(&duration_text(*nanos)),
        Value::List(list) => {
            text.push('[');
            for (index, item) in list.items(cost)?.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                show(cost, item, text)?;
            }
            text.write_char(']')
        }
        Value::Map(map) => {
            text.push('{');
            for (index, key) in map.keys(cost)?.iter().enumerate() {
                text.push_str(if index > 0 { ", " } else { "" });
                show(cost, key, text)?;
                text.push_str(": ");
                if let Some(value) = map.get(key, cost)? {
                    show(cost, &value, text)?;
                }
            }
            text.write_char('}')
        }
        Value::Type(of) => write!(text, "{of}"),
        Value::Quantity(quantity) => write!(text, "{quantity}"),
        Value::Ip(address) => write!(text, "{address}"),
        Value::Cidr(range) => write!(text, "{range}"),
        Value::Url(url) => {
            cost.traverse(url.whole.len())?;
            text.write_str(&url.whole)
        }
        Value::Object(..) | Value::Optional(_) | Value::Format(_) | Value::Semver(_) => {
            return Err(EvaluationError::NoSuchOverload);
        }
    };
    Ok(())
}

fn format<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(template), Value::List(list)] = arguments else {
        return no_such_overload();
    };
    cost.traverse(template.len())?;
    let values = list.items(cost)?;
    let mut values = values.iter();
    let mut text = String::new();
    let mut rest = &**template;
    while let Some(place) = rest.find('%') {
        text.push_str(&rest[..place]);
        rest = &rest[place + 1..];
        if let Some(after) = rest.strip_prefix('%') {
            text.push('%');
            rest = after;
            continue;
        }
        let mut precision = None;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            let asked = after[..end].parse().ok().filter(|asked| *asked <= MAX_PRECISION);
            if asked.is_none() {
                return failed("could not parse formatting clause: error while parsing precision");
            }
            precision = asked;
            rest = &after[end..];
        }
        let Some(clause) = rest.chars().next() else {
            return failed("could not parse formatting clause: unexpected end of string");
        };
        rest = &rest[clause.len_utf8()..];
        let Some(value) = values.next() else {
            return failed(format!("index {} out of range", list.len()));
        };
        if clause == 's' {
            show(cost, value, &mut text)?;
            continue;
        }
        cost.charge(1)?;
        match formatted(cost, clause, precision.unwrap_or(6), value)? {
            Some(shown) => {
                cost.traverse(shown.len())?;
                text.push_str(&shown);
            }
            None => {
                return failed(format!(
                    "error during formatting: clause '{clause}' cannot be used on a value of type {}",
                    value.type_of()
                ));
            }
        }
    }
    text.push_str(rest);
    Ok(Value::text(text))
}

/// A value as a clause has it; `None` if the clause is unknown or not for such values.
fn formatted(
    cost: &mut Cost,
    clause: char,
    precision: usize,
    value: &Value<'_>,
) -> Result<Option<String>, EvaluationError> {
    let signed = |number: i64, digits: String| {
        let sign = if number < 0 { "-" } else { "" };
        Some(format!("{sign}{digits}"))
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "the text is of a floating-point number"
    )]
    let double = match value {
        Value::Double(number) => Some(*number),
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        _ => None,
    };
    Ok(match (clause, value) {
        ('d', Value::Int(number)) => Some(number.to_string()),
        ('d', Value::Uint(number)) => Some(number.to_string()),
        ('b', Value::Int(number)) => signed(*number, format!("{:b}", number.unsigned_abs())),
        ('b', Value::Uint(number)) => Some(format!("{number:b}")),
        ('b', Value::Bool(value)) => Some(u8::from(*value).to_string()),
        ('o', Value::Int(number)) => signed(*number, format!("{:o}", number.unsigned_abs())),
        ('o', Value::Uint(number)) => Some(format!("{number:o}")),
        ('x', Value::Int(number)) => signed(*number, format!("{:x}", number.unsigned_abs())),
        ('X', Value::Int(number)) => signed(*number, format!("{:X}", number.unsigned_abs())),
        ('x', Value::Uint(number)) => Some(format!("{number:x}")),
        ('X', Value::Uint(number)) => Some(format!("{number:X}")),
        ('x' | 'X', Value::String(_) | Value::Bytes(_)) => {
            let bytes = match value {
                Value::String(text) => text.as_bytes(),
                Value::Bytes(bytes) => bytes,
                _ => &[],
            };
            cost.traverse(bytes.len() * 2)?;
            let mut text = String::new();
            for byte in bytes {
                let _ = if clause == 'x' {
                    write!(text, "{byte:02x}")
                } else {
                    write!(text, "{byte:02X}")
                };
            }
            Some(text)
        }
        ('f', _) => double.map(|number| {
            if number.is_finite() {
                format!("{number:.precision$}")
            } else {
                double_text(number)
            }
        }),
        ('e', _) => double.map(|number| {
            let text = format!("{number:.precision$e}");
            match text.split_once('e') {
                Some((digits, exponent)) => {
                    format!("{digits}{}", exponent_text(exponent.parse().unwrap_or_default()))
                }
                None => double_text(number),
            }
        }),
        _ => None,
    })
}
