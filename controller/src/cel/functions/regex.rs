//! Regular expressions, in the syntax of RE2.

use std::sync::Arc;

use regex::{Error, Regex};

use super::{Row, no_such_overload};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};
use crate::re2;

pub(super) const TABLE: &[Row] = &[
    (
        "matches",
        matches,
        &["string.(string) bool", "(string, string) bool"],
    ),
    ("find", find, &["string.(string) string"]),
    (
        "findAll",
        find_all,
        &[
            "string.(string) list(string)",
            "string.(string, int) list(string)",
        ],
    ),
];

/// Largest compiled form of a pattern that stands in an expression, and of one that is a value.
pub(in crate::cel) const MAX_FIXED_BYTES: usize = 1 << 20;
pub(in crate::cel) const MAX_MADE_BYTES: usize = 1 << 17;

/// How large the compiled form of most patterns is at most.
const SMALL_BYTES: usize = 1 << 13;

/// A compiled pattern.
#[derive(Clone, Debug)]
pub(in crate::cel) struct Pattern {
    pub(in crate::cel) text: String,
    /// In bytes, at most: what a search does at worst for each letter grows with it.
    pub(in crate::cel) size: usize,
    regex: Regex,
}

impl Pattern {
    /// Compiles a pattern, unless it takes more than so many bytes.
    pub(in crate::cel) fn compile(text: &str, most: usize) -> Result<Self, Error> {
        let mut builder = re2::builder(text);
        let mut size = SMALL_BYTES.min(most);
        loop {
            let built = builder
                .size_limit(size)
                .dfa_size_limit(size.max(MAX_MADE_BYTES))
                .build();
            match built {
                Err(Error::CompiledTooBig(_)) if size < most => size = (size * 4).min(most),
                built => {
                    return Ok(Self {
                        text: text.to_owned(),
                        size,
                        regex: built?,
                    });
                }
            }
        }
    }

    /// What a search costs for each few letters.
    fn weight(&self) -> usize {
        self.text.len().div_ceil(4).max(self.size / 1024)
    }
}

/// A pattern to search a text with. The longer the text and the larger the pattern, the more it costs.
fn pattern(cost: &mut Cost, text: &str, pattern: &str) -> Result<Arc<Pattern>, EvaluationError> {
    let found = cost.pattern(pattern)?;
    cost.charge((text.len() + 10) / 10 * found.weight())?;
    Ok(found)
}

fn matches<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::String(text), Value::String(pattern)] => Ok(Value::Bool(
            self::pattern(cost, text, pattern)?.regex.is_match(text),
        )),
        _ => no_such_overload(),
    }
}

fn find<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::String(text), Value::String(pattern)] => {
            let found = self::pattern(cost, text, pattern)?
                .regex
                .find(text)
                .map(|found| found.as_str());
            Ok(Value::text(found.unwrap_or_default()))
        }
        _ => no_such_overload(),
    }
}

fn find_all<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, pattern, most) = match arguments {
        [Value::String(text), Value::String(pattern)] => (text, pattern, -1),
        [Value::String(text), Value::String(pattern), Value::Int(most)] => (text, pattern, *most),
        _ => return no_such_overload(),
    };
    let pattern = self::pattern(cost, text, pattern)?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    for part in pattern.regex.find_iter(text).take(most) {
        // A search may look at all that is left to find the next letter.
        cost.charge(1 + (text.len() - part.start()) / 100 * pattern.weight())?;
        found.push(Value::text(part.as_str()));
    }
    Ok(Value::list(found))
}
