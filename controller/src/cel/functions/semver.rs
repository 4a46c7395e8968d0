//! Semantic versions.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Row, failed, no_such_overload};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};

pub(super) const TABLE: &[Row] = &[
    ("semver", semver, &["(string) semver", "(string, bool) semver"]),
    ("isSemver", is_semver, &["(string) bool", "(string, bool) bool"]),
    ("major", |_, a| number(a, 0), &["semver.() int"]),
    ("minor", |_, a| number(a, 1), &["semver.() int"]),
    ("patch", |_, a| number(a, 2), &["semver.() int"]),
];

/// A version: its numbers, and what says that it is not yet the one. The build plays no part.
#[derive(Debug)]
pub struct Version {
    numbers: [u64; 3],
    /// Parts with dots between them; empty if there is none.
    before: String,
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
}

/// Reads a version; `normal` is to take `v1.2` for `1.2.0`.
fn parse(text: &str, normal: bool) -> Option<Version> {
    let text = match text.strip_prefix('v') {
        Some(rest) if normal => rest,
        _ => text,
    };
    let (text, build) = text.split_once('+').unwrap_or((text, "0"));
    let (text, before) = match text.split_once('-') {
        Some((text, before)) => (text, Some(before)),
        None => (text, None),
    };
    let mut numbers = [0; 3];
    let parts: Vec<_> = text.splitn(4, '.').collect();
    if parts.len() > 3 || (parts.len() < 3 && !(normal && before.is_none() && build == "0")) {
        return None;
    }
    let leading_zero = |part: &str| part.len() > 1 && part.starts_with('0');
    let is_number = |part: &str| part.bytes().all(|c| c.is_ascii_digit());
    for (number, part) in numbers.iter_mut().zip(parts) {
        if !is_number(part) || (leading_zero(part) && !normal) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    let fits = build.split('.').all(is_identifier)
        && before.is_none_or(|before| {
            let mut parts = before.split('.');
            parts.all(|part| is_identifier(part) && !(is_number(part) && leading_zero(part)))
        });
    fits.then(|| Version {
        numbers,
        before: before.unwrap_or_default().to_owned(),
    })
}

/// Parts as they are ordered: numbers come before words, and the longer of two is the greater, for they have no leading
/// zeros.
fn ranked(before: &str) -> impl Iterator<Item = (bool, usize, &str)> {
    before.split('.').map(|part| {
        let is_word = !part.bytes().all(|c| c.is_ascii_digit());
        (is_word, if is_word { 0 } else { part.len() }, part)
    })
}

/// The order of two versions.
pub(in crate::cel) fn compare(
    cost: &mut Cost,
    a: &Version,
    b: &Version,
) -> Result<Ordering, EvaluationError> {
    cost.charge(a.before.len().min(b.before.len()))?;
    // A version comes after all that lead to it.
    let finished = a.before.is_empty().cmp(&b.before.is_empty());
    Ok(a.numbers
        .cmp(&b.numbers)
        .then(finished)
        .then_with(|| ranked(&a.before).cmp(ranked(&b.before))))
}

fn read(cost: &mut Cost, arguments: &[Value<'_>]) -> Result<Option<Version>, EvaluationError> {
    let (text, normal) = match arguments {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(normal)] => (text, *normal),
        _ => return Err(EvaluationError::NoSuchOverload),
    };
    cost.traverse(text.len())?;
    Ok(parse(text, normal))
}

fn semver<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match read(cost, arguments)? {
        Some(version) => Ok(Value::Semver(Arc::new(version))),
        None => failed("invalid semantic version"),
    }
}

fn is_semver<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(read(cost, arguments)?.is_some()))
}

fn number<'a>(arguments: &[Value<'a>], index: usize) -> Evaluated<'a> {
    match arguments {
        [Value::Semver(version)] => Ok(Value::Int(
            i64::try_from(version.numbers[index]).unwrap_or(i64::MAX),
        )),
        _ => no_such_overload(),
    }
}
