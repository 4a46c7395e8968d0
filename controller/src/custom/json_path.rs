//! The JSON paths of printer columns, selectable fields and scales: `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`.

use std::cmp::Ordering;

use serde_json::Value;

/// Longest path that is read.
const MAX_LENGTH: usize = 1024;
/// Most values that a step can lead to: with `..` in a path there could be more of them than the object has.
const MAX_FOUND: usize = 10_000;

/// Why a path cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It does not begin with a dot.
    #[error("must begin with .")]
    NoDot,
    /// Something in it is not understood.
    #[error("unrecognized character or unterminated expression at {0:?}")]
    Syntax(String),
    /// It is too long.
    #[error("must be no more than {MAX_LENGTH} bytes")]
    TooLong,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    Every,
    /// Every value at any depth.
    Below,
    Filter(Vec<Step>, Option<(Compare, Value)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A path, read.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Reads a path; braces around it may be left out.
    ///
    /// # Errors
    /// If it is not one.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_LENGTH {
            return Err(PathError::TooLong);
        }
        let inner = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
        let inner = inner.unwrap_or(text);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        if !inner.starts_with(['.', '[']) {
            return Err(PathError::NoDot);
        }
        let (steps, rest) = steps(inner)?;
        if rest.is_empty() {
            Ok(Self(steps))
        } else {
            Err(PathError::Syntax(rest.to_owned()))
        }
    }

    /// The names of a path that is made of fields alone.
    pub(crate) fn fields(&self) -> Option<Vec<&str>> {
        let names = self.0.iter().map(|step| match step {
            Step::Field(name) => Some(name.as_str()),
            _ => None,
        });
        names.collect()
    }

    /// What is there, in the object's order.
    pub fn find<'a>(&self, object: &'a Value) -> Vec<&'a Value> {
        walk(&self.0, object)
    }
}

fn walk<'a>(steps: &[Step], object: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![object];
    for step in steps {
        let mut next = Vec::new();
        for value in found {
            if next.len() >= MAX_FOUND {
                break;
            }
            follow(step, value, &mut next);
        }
        found = next;
    }
    found
}

fn follow<'a>(step: &Step, value: &'a Value, next: &mut Vec<&'a Value>) {
    match (step, value) {
        (Step::Field(name), Value::Object(map)) => next.extend(map.get(name)),
        (Step::Index(index), Value::Array(list)) => {
            next.extend(position(*index, list.len()).and_then(|at| list.get(at)));
        }
        (Step::Slice(from, to), Value::Array(list)) => {
            let end = |index: i64| {
                let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let index = if index < 0 { index + length } else { index };
                usize::try_from(index.clamp(0, length)).unwrap_or_default()
            };
            let (from, to) = (from.map_or(0, end), to.map_or(list.len(), end));
            next.extend(list.get(from..to).into_iter().flatten());
        }
        (Step::Every, Value::Array(list)) => next.extend(list),
        (Step::Every, Value::Object(map)) => next.extend(map.values()),
        (Step::Below, _) => below(value, next),
        (Step::Filter(path, condition), Value::Array(list)) => {
            next.extend(list.iter().filter(|item| holds(path, condition.as_ref(), item)));
        }
        _ => {}
    }
}

fn below<'a>(value: &'a Value, next: &mut Vec<&'a Value>) {
    if next.len() >= MAX_FOUND {
        return;
    }
    next.push(value);
    match value {
        Value::Array(list) => list.iter().for_each(|value| below(value, next)),
        Value::Object(map) => map.values().for_each(|value| below(value, next)),
        _ => {}
    }
}

fn position(index: i64, length: usize) -> Option<usize> {
    if index < 0 {
        length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
    } else {
        usize::try_from(index).ok()
    }
}

fn holds(path: &[Step], condition: Option<&(Compare, Value)>, item: &Value) -> bool {
    let Some(left) = walk(path, item).into_iter().next() else {
        return false;
    };
    let Some((compare, right)) = condition else {
        return true;
    };
    let order = match (left, right) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match compare {
        Compare::Equal => order == Some(Ordering::Equal),
        Compare::NotEqual => order != Some(Ordering::Equal),
        Compare::Less => order == Some(Ordering::Less),
        Compare::LessOrEqual => order.is_some_and(Ordering::is_le),
        Compare::Greater => order == Some(Ordering::Greater),
        Compare::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
    }
}

/// Reads steps as far as they go; the rest is left to the caller.
fn steps(text: &str) -> Result<(Vec<Step>, &str), PathError> {
    let mut steps = Vec::new();
    let mut rest = text;
    loop {
        let wrong = || PathError::Syntax(rest.to_owned());
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Below);
            rest = after;
            if !rest.starts_with('[') {
                let (step, after) = name(rest).ok_or_else(wrong)?;
                steps.push(step);
                rest = after;
            }
        } else if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() {
                // The object itself.
                return Ok((steps, after));
            }
            if after.starts_with('[') {
                rest = after;
                continue;
            }
            let (step, after) = name(after).ok_or_else(wrong)?;
            steps.push(step);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (step, after) = bracket(after)?;
            steps.push(step);
            rest = after;
        } else {
            return Ok((steps, rest));
        }
    }
}

/// A field's name up to the next step; a backslash takes away what a character means.
fn name(text: &str) -> Option<(Step, &str)> {
    if let Some(rest) = text.strip_prefix('*') {
        return Some((Step::Every, rest));
    }
    let (mut name, mut escaped) = (String::new(), false);
    let mut end = text.len();
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => {
                name.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '.' | '[' | ']' | ' ' | '=' | '!' | '<' | '>' | ')' | '(' | '{' | '}' => {
                end = at;
                break;
            }
            _ => name.push(c),
        }
    }
    (!name.is_empty() && !escaped).then(|| (Step::Field(name), &text[end..]))
}

/// What stands between brackets, of which the first is read already.
fn bracket(text: &str) -> Result<(Step, &str), PathError> {
    let wrong = || PathError::Syntax(text.to_owned());
    if let Some(rest) = text.strip_prefix("?(") {
        let (step, rest) = filter(rest)?;
        let rest = rest.strip_prefix(")]").ok_or_else(wrong)?;
        return Ok((step, rest));
    }
    if let Some((quoted, rest)) = quoted(text) {
        let rest = rest.strip_prefix(']').ok_or_else(wrong)?;
        return Ok((Step::Field(quoted), rest));
    }
    let (inner, rest) = text.split_once(']').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse::<i64>().map_err(|_| wrong());
    let bound = |text: &str| {
        if text.trim().is_empty() {
            Ok(None)
        } else {
            number(text).map(Some)
        }
    };
    let step = if inner == "*" {
        Step::Every
    } else if let Some((from, to)) = inner.split_once(':') {
        Step::Slice(bound(from)?, bound(to)?)
    } else {
        Step::Index(number(inner)?)
    };
    Ok((step, rest))
}

/// `@.path == value`, or the path alone, up to the closing parenthesis.
fn filter(text: &str) -> Result<(Step, &str), PathError> {
    let wrong = || PathError::Syntax(text.to_owned());
    let rest = text.trim_start().strip_prefix('@').ok_or_else(wrong)?;
    let (path, rest) = steps(rest)?;
    let rest = rest.trim_start();
    if rest.starts_with(')') {
        return Ok((Step::Filter(path, None), rest));
    }
    let operators = [
        ("==", Compare::Equal),
        ("!=", Compare::NotEqual),
        ("<=", Compare::LessOrEqual),
        (">=", Compare::GreaterOrEqual),
        ("<", Compare::Less),
        (">", Compare::Greater),
    ];
    let (compare, rest) = operators
        .iter()
        .find_map(|(text, compare)| Some((*compare, rest.strip_prefix(text)?.trim_start())))
        .ok_or_else(wrong)?;
    let (value, rest) = if let Some((text, rest)) = quoted(rest) {
        (Value::String(text), rest)
    } else {
        let end = rest.find([')', ' ']).ok_or_else(wrong)?;
        let value = serde_json::from_str(&rest[..end]).map_err(|_| wrong())?;
        (value, &rest[end..])
    };
    Ok((Step::Filter(path, Some((compare, value))), rest.trim_start()))
}

fn quoted(text: &str) -> Option<(String, &str)> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let (mut inner, mut escaped) = (String::new(), false);
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => {
                inner.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            _ if c == quote => return Some((inner, &text[at + 1..])),
            _ => inner.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_values() {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "x"}},
            "spec": {"list": [1, 2, 3], "map": {"k": "v"}},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "age": 5}, {"type": "Other", "status": "False", "age": 7}]},
        });
        for (path, found) in [
            (".spec.map.k", json!(["v"])),
            ("{.spec.map.k}", json!(["v"])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([3])),
            (".spec.list[9]", json!([])),
            (".spec.list[-9]", json!([])),
            (".spec.list[*]", json!([1, 2, 3])),
            (".spec.list[1:]", json!([2, 3])),
            (".spec.list[:-1]", json!([1, 2])),
            (".spec.list[5:2]", json!([])),
            (".metadata.annotations.a\\.b/c", json!(["x"])),
            (".metadata.annotations['a.b/c']", json!(["x"])),
            (".metadata.annotations['a\\.b/c']", json!(["x"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (
                ".status.conditions[?(@.type != 'Ready')].status",
                json!(["False"]),
            ),
            (
                ".status.conditions[?(@.age >= 5)].type",
                json!(["Ready", "Other"]),
            ),
            (".status.conditions[?(@.age < 6)].type", json!(["Ready"])),
            (".status.conditions[?(@.none)].type", json!([])),
            ("..k", json!(["v"])),
            (".none.at.all", json!([])),
        ] {
            let parsed = JsonPath::parse(path).expect(path);
            assert_eq!(json!(parsed.find(&object)), found, "{path}");
        }
        assert_eq!(
            JsonPath::parse(".spec.a").unwrap().fields(),
            Some(vec!["spec", "a"])
        );
        assert_eq!(JsonPath::parse(".spec[0]").unwrap().fields(), None);
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for bad in [
            "",
            "spec",
            ".a[",
            ".a[x]",
            ".a[?(@.b=)]",
            ".a[?(b)]",
            ".a]",
            "...",
            ".a['b]",
            ".a\\",
        ] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[.\\[\\]?(@)=a'\"0-9:*<\\\\-]{0,24}|\\PC{0,12}") {
            if let Ok(path) = JsonPath::parse(&text) {
                path.find(&json!({"a": [1, {"a": "b"}]}));
            }
        }
    }
}
