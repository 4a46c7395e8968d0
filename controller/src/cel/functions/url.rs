//! URLs: absolute ones, or absolute paths.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use super::strings::only;
use super::{Row, failed, no_such_overload};
use crate::cel::Cost;
use crate::cel::value::{Evaluated, Key, List, Map, Text, Value};

const PART: &[&str] = &["url.() string"];

pub(super) const TABLE: &[Row] = &[
    ("url", url, &["(string) url"]),
    ("isURL", is_url, &["(string) bool"]),
    ("getScheme", |c, a| part(c, a, |url| url.scheme.clone()), PART),
    ("getHost", |c, a| part(c, a, |url| url.host.clone()), PART),
    (
        "getHostname",
        |c, a| part(c, a, |url| host_and_port(&url.host).0.to_owned()),
        PART,
    ),
    (
        "getPort",
        |c, a| part(c, a, |url| host_and_port(&url.host).1.to_owned()),
        PART,
    ),
    (
        "getEscapedPath",
        |c, a| part(c, a, |url| escaped(&url.path)),
        PART,
    ),
    ("getQuery", query, &["url.() map(string, list(string))"]),
];

/// A URL, read.
#[derive(Debug, PartialEq)]
pub struct Url {
    pub(in crate::cel) whole: String,
    scheme: String,
    host: String,
    path: String,
    query: String,
}

/// Whether each percent sign begins an escape.
fn escapes_fit(text: &str) -> bool {
    text.split('%').skip(1).all(|after| {
        let digits = after.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    })
}

/// Splits a host from its port; an address of IPv6 stands in brackets.
fn host_and_port(host: &str) -> (&str, &str) {
    if let Some(rest) = host.strip_prefix('[')
        && let Some((address, after)) = rest.split_once(']')
    {
        return (address, after.strip_prefix(':').unwrap_or_default());
    }
    host.rsplit_once(':').unwrap_or((host, ""))
}

fn parse(text: &str) -> Option<Url> {
    if text.chars().any(|c| c.is_ascii_control()) {
        return None;
    }
    let (mut scheme, mut rest) = ("", text);
    if !text.starts_with('/') {
        (scheme, rest) = text.split_once(':')?;
        let mut letters = scheme.chars();
        let fits = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
            && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
        // What follows must be absolute too.
        if !fits || rest.is_empty() || !rest.starts_with('/') && scheme.is_empty() {
            return None;
        }
    }
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, path) = match before.strip_prefix("//") {
        Some(after) if !scheme.is_empty() => {
            let end = after.find('/').unwrap_or(after.len());
            (&after[..end], &after[end..])
        }
        _ => ("", before),
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let (name, port) = host_and_port(host);
    let bracketed = host.starts_with('[') && host.contains(']');
    let host_fits = (bracketed || !name.contains([':', '[', ']']))
        && !host.contains([' ', '"', '<', '>', '\\', '^', '`', '{', '|', '}', '#'])
        && port.bytes().all(|c| c.is_ascii_digit());
    (host_fits && escapes_fit(host) && escapes_fit(path)).then(|| Url {
        whole: text.to_owned(),
        scheme: scheme.to_ascii_lowercase(),
        host: unescaped(host, false),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

/// Whether a text is a URL.
pub(super) fn fits(text: &str) -> bool {
    parse(text).is_some()
}

fn escaped(path: &str) -> String {
    let mut text = String::new();
    for c in path.chars() {
        if c.is_ascii_alphanumeric() || "-_.~!$&'()*+,;=:@/%[]".contains(c) {
            text.push(c);
        } else {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    }
    text
}

fn unescaped(text: &str, plus_is_space: bool) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ if *first == b'+' && plus_is_space => bytes.push(b' '),
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn url<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match parse(only(cost, arguments)?) {
        Some(url) => Ok(Value::Url(Arc::new(url))),
        None => failed("URL parse error during conversion from string: invalid URI for request"),
    }
}

fn is_url<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    Ok(Value::Bool(fits(only(cost, arguments)?)))
}

fn part<'a>(cost: &mut Cost, arguments: &[Value<'a>], of: fn(&Url) -> String) -> Evaluated<'a> {
    match arguments {
        [Value::Url(url)] => {
            cost.traverse(url.whole.len())?;
            Ok(Value::text(of(url)))
        }
        _ => no_such_overload(),
    }
}

fn query<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let [Value::Url(url)] = arguments else {
        return no_such_overload();
    };
    cost.traverse(url.query.len())?;
    let mut map: BTreeMap<Key<'a>, Value<'a>> = BTreeMap::new();
    for pair in url.query.split('&').filter(|pair| !pair.is_empty()) {
        cost.charge(3)?;
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !escapes_fit(pair) || pair.contains(';') {
            continue;
        }
        let name = Key::String(Text::Shared(unescaped(name, true).into()));
        let value = Value::text(unescaped(value, true));
        match map.get_mut(&name) {
            Some(Value::List(List::Made(values))) => Arc::make_mut(values).push(value),
            _ => {
                map.insert(name, Value::list(vec![value]));
            }
        }
    }
    Ok(Value::Map(Map::Made(Arc::new(map))))
}
