//! Regular expressions, in the syntax of RE2.

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use regex::{Error, Regex, RegexBuilder};

use super::{Row, no_such_overload};
use crate::cel::value::{Evaluated, Value};
use crate::cel::{Cost, EvaluationError};

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

/// The classes that are of all letters and digits otherwise.
const CLASSES: &[(char, &str)] = &[
    ('d', "[0-9]"),
    ('D', "[^0-9]"),
    ('w', "[0-9A-Za-z_]"),
    ('W', "[^0-9A-Za-z_]"),
    ('s', "[\\t\\n\\f\\r ]"),
    ('S', "[^\\t\\n\\f\\r ]"),
];

/// Writes what stands between `\Q` and `\E` so that it stands for itself.
fn quote(rest: &mut Peekable<Chars<'_>>, written: &mut String) {
    let mut quoted = String::new();
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            break;
        }
        quoted.push(c);
    }
    written.push_str(&regex::escape(&quoted));
}

impl Pattern {
    /// Compiles a pattern, unless it takes more than so many bytes.
    pub(in crate::cel) fn compile(text: &str, most: usize) -> Result<Self, Error> {
        let written = translated(text);
        let mut size = SMALL_BYTES.min(most);
        loop {
            let built = RegexBuilder::new(&written)
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

/// Whether a count of repetitions begins here; if not, the bracket stands for itself.
fn is_count(rest: Peekable<Chars<'_>>) -> bool {
    // No count that is allowed is longer.
    let inner: String = rest.take(12).collect();
    let inner = inner.split_once('}').map_or("", |(inner, _)| inner);
    let (least, most) = inner.split_once(',').unwrap_or((inner, ""));
    !least.is_empty()
        && [least, most]
            .iter()
            .all(|part| part.bytes().all(|c| c.is_ascii_digit()))
}

/// A pattern as the crate has it. To RE2 the classes `\d`, `\s` and `\w` are of ASCII characters, sets know no operators,
/// and a brace that counts nothing is a letter.
fn translated(text: &str) -> String {
    let mut written = String::with_capacity(text.len());
    let mut in_set = false;
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let escaped = rest.next().unwrap_or_default();
                let class = CLASSES.iter().find(|(letter, _)| *letter == escaped);
                match (escaped, class) {
                    (_, Some((_, class))) => written.push_str(class),
                    ('b', _) if !in_set => written.push_str("(?-u:\\b)"),
                    ('B', _) if !in_set => written.push_str("(?-u:\\B)"),
                    ('Q', _) => quote(&mut rest, &mut written),
                    ('\0', _) => written.push('\\'),
                    _ => {
                        written.push('\\');
                        written.push(escaped);
                        if matches!(escaped, 'p' | 'P' | 'x') {
                            written.extend(rest.next_if_eq(&'{'));
                        }
                    }
                }
            }
            '[' if !in_set => {
                in_set = true;
                written.push('[');
                if rest.next_if_eq(&'^').is_some() {
                    written.push('^');
                }
                // A bracket in the first place stands for itself.
                if rest.next_if_eq(&']').is_some() {
                    written.push_str("\\]");
                }
            }
            '[' if rest.peek() == Some(&':') => {
                written.push('[');
                for c in rest.by_ref() {
                    written.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            '[' | '&' | '~' if in_set => {
                written.push('\\');
                written.push(c);
            }
            '{' if !in_set && !is_count(rest.clone()) => written.push_str("\\{"),
            c => {
                in_set &= c != ']';
                written.push(c);
            }
        }
    }
    written
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
