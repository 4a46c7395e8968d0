//! Strings. Places in them are counted in characters.

use super::{Row, failed, no_such_overload};
use crate::cel::value::{Evaluated, Text, Value};
use crate::cel::{Cost, EvaluationError};

pub(super) const TABLE: &[Row] = &[
    ("contains", contains, &["string.(string) bool"]),
    ("startsWith", starts_with, &["string.(string) bool"]),
    ("endsWith", ends_with, &["string.(string) bool"]),
    ("charAt", char_at, &["string.(int) string"]),
    (
        "indexOf",
        index_of,
        &["string.(string) int", "string.(string, int) int"],
    ),
    (
        "lastIndexOf",
        last_index_of,
        &["string.(string) int", "string.(string, int) int"],
    ),
    ("lowerAscii", lower_ascii, &["string.() string"]),
    ("upperAscii", upper_ascii, &["string.() string"]),
    ("trim", trim, &["string.() string"]),
    ("reverse", reverse, &["string.() string"]),
    (
        "replace",
        replace,
        &[
            "string.(string, string) string",
            "string.(string, string, int) string",
        ],
    ),
    (
        "split",
        split,
        &[
            "string.(string) list(string)",
            "string.(string, int) list(string)",
        ],
    ),
    (
        "substring",
        substring,
        &["string.(int) string", "string.(int, int) string"],
    ),
    (
        "join",
        join,
        &["list(string).() string", "list(string).(string) string"],
    ),
    ("strings.quote", quote, &["(string) string"]),
];

/// A text and another that is looked for in it.
fn pair<'t>(cost: &mut Cost, arguments: &'t [Value<'_>]) -> Result<(&'t str, &'t str), EvaluationError> {
    match arguments {
        [Value::String(text), Value::String(part), ..] => {
            // A long part is prepared for the search even if the text is short.
            cost.traverse(text.len() + part.len())?;
            Ok((text, part))
        }
        _ => Err(EvaluationError::NoSuchOverload),
    }
}

/// The one text that a function is called of.
pub(super) fn only<'t>(cost: &mut Cost, arguments: &'t [Value<'_>]) -> Result<&'t str, EvaluationError> {
    match arguments {
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            Ok(text)
        }
        _ => Err(EvaluationError::NoSuchOverload),
    }
}

fn contains<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = pair(cost, arguments)?;
    Ok(Value::Bool(text.contains(part)))
}

fn starts_with<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::String(text), Value::String(part)] => {
            cost.traverse(part.len())?;
            Ok(Value::Bool(text.starts_with(&**part)))
        }
        _ => no_such_overload(),
    }
}

fn ends_with<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::String(text), Value::String(part)] => {
            cost.traverse(part.len())?;
            Ok(Value::Bool(text.ends_with(&**part)))
        }
        _ => no_such_overload(),
    }
}

fn out_of_range<'a>(place: i64) -> Evaluated<'a> {
    failed(format!("index out of range: {place}"))
}

/// Where the character with a number begins; the end counts as one.
fn offset(text: &str, place: i64) -> Option<usize> {
    let place = usize::try_from(place).ok()?;
    let starts = text.char_indices().map(|(offset, _)| offset);
    starts.chain([text.len()]).nth(place)
}

fn char_at<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text), Value::Int(place)] = arguments else {
        return no_such_overload();
    };
    cost.traverse(text.len())?;
    match offset(text, *place) {
        Some(offset) => Ok(Value::text(
            text[offset..]
                .chars()
                .next()
                .map(String::from)
                .unwrap_or_default(),
        )),
        None => out_of_range(*place),
    }
}

fn index_of<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = pair(cost, arguments)?;
    let start = match arguments {
        [_, _] => 0,
        [_, _, Value::Int(place)] => match offset(text, *place) {
            Some(offset) => offset,
            None => return out_of_range(*place),
        },
        _ => return no_such_overload(),
    };
    let found = text[start..].find(part).map(|found| start + found);
    Ok(found.map_or(Value::Int(-1), |found| {
        Value::count(text[..found].chars().count())
    }))
}

fn last_index_of<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, part) = pair(cost, arguments)?;
    let last = match arguments {
        [_, _] => text.len(),
        [_, _, Value::Int(place)] => match offset(text, *place) {
            Some(offset) => offset,
            None => return out_of_range(*place),
        },
        _ => return no_such_overload(),
    };
    // The part may begin at the last place and go beyond it.
    let mut end = text.len().min(last.saturating_add(part.len()));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let found = text[..end].rfind(part);
    Ok(found.map_or(Value::Int(-1), |found| {
        Value::count(text[..found].chars().count())
    }))
}

fn lower_ascii<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::text(only(cost, arguments)?.to_ascii_lowercase()))
}

fn upper_ascii<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::text(only(cost, arguments)?.to_ascii_uppercase()))
}

fn trim<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::text(only(cost, arguments)?.trim()))
}

fn reverse<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::text(
        only(cost, arguments)?.chars().rev().collect::<String>(),
    ))
}

fn replace<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, old, new, most) = match arguments {
        [Value::String(text), Value::String(old), Value::String(new)] => (text, old, new, -1),
        [
            Value::String(text),
            Value::String(old),
            Value::String(new),
            Value::Int(most),
        ] => (text, old, new, *most),
        _ => return no_such_overload(),
    };
    cost.traverse(text.len() + old.len())?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let count = text.matches(&**old).take(most).count();
    // Paid for before it is made: each part can become a much longer one.
    cost.traverse(count.saturating_mul(new.len()).saturating_add(text.len()))?;
    Ok(Value::text(text.replacen(&**old, new, count)))
}

fn split<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (text, separator) = pair(cost, arguments)?;
    let most = match arguments {
        [_, _] => usize::MAX,
        [_, _, Value::Int(most)] => usize::try_from(*most).unwrap_or(usize::MAX),
        _ => return no_such_overload(),
    };
    let mut parts = Vec::new();
    if separator.is_empty() {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            if parts.len() + 1 >= most {
                break;
            }
            cost.charge(1)?;
            let (head, tail) = rest.split_at(first.len_utf8());
            parts.push(Value::text(head));
            rest = tail;
        }
        if !rest.is_empty() && most > 0 {
            parts.push(Value::text(rest));
        }
    } else {
        for part in text.splitn(most, separator) {
            cost.charge(1)?;
            parts.push(Value::text(part));
        }
    }
    Ok(Value::list(parts))
}

fn substring<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(text), Value::Int(start), rest @ ..] = arguments else {
        return no_such_overload();
    };
    cost.traverse(text.len())?;
    let Some(first) = offset(text, *start) else {
        return out_of_range(*start);
    };
    let last = match rest {
        [] => text.len(),
        [Value::Int(end)] => match offset(text, *end) {
            Some(_) if end < start => {
                return failed(format!("invalid substring range. start: {start}, end: {end}"));
            }
            Some(last) => last,
            None => return out_of_range(*end),
        },
        _ => return no_such_overload(),
    };
    Ok(match text {
        Text::Borrowed(text) => Value::String(Text::Borrowed(&text[first..last])),
        Text::Shared(text) => Value::text(&text[first..last]),
    })
}

fn join<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let (list, separator) = match arguments {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return no_such_overload(),
    };
    let mut joined = String::new();
    for (index, item) in list.items(cost)?.into_iter().enumerate() {
        let Value::String(text) = item else {
            return no_such_overload();
        };
        if index > 0 {
            joined.push_str(separator);
        }
        cost.traverse(text.len() + separator.len())?;
        joined.push_str(&text);
    }
    Ok(Value::text(joined))
}

fn quote<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let text = only(cost, arguments)?;
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '"' | '\\' => quoted.extend(['\\', c]),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(Value::text(quoted))
}
