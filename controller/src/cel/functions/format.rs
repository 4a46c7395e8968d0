//! Kubernetes' rules for strings, by name.

use base64::Engine as _;

use super::time::{parse_rfc3339, parse_timestamp};
use super::{Row, no_such_overload};
use crate::cel::Cost;
use crate::cel::value::{Evaluated, Value};
use crate::resources::{dns_1035_problem, label_problem, subdomain_problem};
use crate::selector::{label_key_problem, label_value_problem};

const NONE: &[&str] = &["() format"];

pub(super) const TABLE: &[Row] = &[
    ("format.named", named, &["(string) optional(format)"]),
    ("validate", validate, &["format.(string) optional(list(string))"]),
    ("format.dns1123Label", |_, _| get(0), NONE),
    ("format.dns1123Subdomain", |_, _| get(1), NONE),
    ("format.dns1035Label", |_, _| get(2), NONE),
    ("format.qualifiedName", |_, _| get(3), NONE),
    ("format.dns1123LabelPrefix", |_, _| get(4), NONE),
    ("format.dns1123SubdomainPrefix", |_, _| get(5), NONE),
    ("format.dns1035LabelPrefix", |_, _| get(6), NONE),
    ("format.labelValue", |_, _| get(7), NONE),
    ("format.uri", |_, _| get(8), NONE),
    ("format.uuid", |_, _| get(9), NONE),
    ("format.byte", |_, _| get(10), NONE),
    ("format.date", |_, _| get(11), NONE),
    ("format.datetime", |_, _| get(12), NONE),
];

/// A rule for strings: its name, and what is wrong with a string.
#[derive(Debug)]
pub struct Format(&'static str, fn(&str) -> Option<String>);

/// In the order of the table above.
static FORMATS: &[Format] = &[
    Format("dns1123Label", label_problem),
    Format("dns1123Subdomain", subdomain_problem),
    Format("dns1035Label", dns_1035_problem),
    Format("qualifiedName", label_key_problem),
    Format("dns1123LabelPrefix", |text| label_problem(&finished(text))),
    Format("dns1123SubdomainPrefix", |text| {
        subdomain_problem(&finished(text))
    }),
    Format("dns1035LabelPrefix", |text| dns_1035_problem(&finished(text))),
    Format("labelValue", label_value_problem),
    Format("uri", |text| {
        told(super::url::fits(text), "invalid URI for request")
    }),
    Format("uuid", |text| {
        told(is_uuid(text), "does not match the UUID format")
    }),
    Format("byte", |text| {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        told(decoded.is_ok() && !text.is_empty(), "invalid base64")
    }),
    Format("date", |text| {
        told(
            text.len() == 10 && parse_timestamp(text).is_some(),
            "invalid date",
        )
    }),
    Format("datetime", |text| {
        told(parse_rfc3339(text).is_some(), "invalid datetime")
    }),
];

fn told(fits: bool, problem: &str) -> Option<String> {
    (!fits).then(|| problem.to_owned())
}

/// The beginning of a name as a name: what is generated follows a dash.
fn finished(text: &str) -> String {
    match text.strip_suffix('-') {
        Some(start) => format!("{start}a"),
        None => text.to_owned(),
    }
}

/// Whether it is a UUID in hexadecimal digits, of which any of the dashes may be missing.
pub(crate) fn is_uuid(text: &str) -> bool {
    let mut rest = text;
    let groups = [8, 4, 4, 4, 12].iter().all(|length| {
        let Some((group, after)) = rest.split_at_checked(*length) else {
            return false;
        };
        rest = after.strip_prefix('-').unwrap_or(after);
        group.bytes().all(|c| c.is_ascii_hexdigit())
    });
    groups && rest.is_empty() && !text.ends_with('-')
}

fn get<'a>(index: usize) -> Evaluated<'a> {
    FORMATS
        .get(index)
        .map_or_else(no_such_overload, |format| Ok(Value::Format(format)))
}

fn named<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::String(name)] = arguments else {
        return no_such_overload();
    };
    let found = FORMATS.iter().find(|format| *format.0 == **name);
    Ok(found.map_or(Value::Optional(None), |format| Value::some(Value::Format(format))))
}

fn validate<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::Format(format), Value::String(text)] = arguments else {
        return no_such_overload();
    };
    cost.charge(text.len())?;
    Ok(format.1(text).map_or(Value::Optional(None), |problem| {
        Value::some(Value::list(vec![Value::text(problem)]))
    }))
}
