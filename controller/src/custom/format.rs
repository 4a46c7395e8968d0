//! The formats that schemas can ask of strings and numbers. An unknown format asks nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use serde_json::Value;

use crate::cel::parse_lenient_duration;

/// Whether a value is of a format.
pub(super) fn fits(format: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => text_fits(format, text),
        Value::Number(number) => match format {
            "int32" => number.as_i64().is_none_or(|number| i32::try_from(number).is_ok()),
            "int64" => number.as_u64().is_none_or(|number| i64::try_from(number).is_ok()),
            _ => true,
        },
        _ => true,
    }
}

fn text_fits(format: &str, text: &str) -> bool {
    match format {
        "date-time" | "datetime" => is_date_time(text),
        "date" => text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok(),
        "duration" => parse_lenient_duration(text).is_some(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "cidr" => text.contains('/') && text.parse::<ipnetwork::IpNetwork>().is_ok(),
        "mac" => is_mac(text),
        "hostname" => is_hostname(text),
        "email" => is_email(text),
        "uri" => is_uri(text),
        "uuid" => is_uuid(text, None),
        "uuid3" => is_uuid(text, Some('3')),
        "uuid4" => is_uuid(text, Some('4')),
        "uuid5" => is_uuid(text, Some('5')),
        "hexcolor" => is_hex_colour(text),
        _ => true,
    }
}

fn is_date_time(text: &str) -> bool {
    // A date alone is a date-time to some parsers, but not to Kubernetes.
    text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok()
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20)
        && parts
            .iter()
            .all(|part| part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_alphanumeric() || c == '-')
    };
    text.len() <= 253 && text.strip_suffix('.').unwrap_or(text).split('.').all(label)
}

fn is_email(text: &str) -> bool {
    text.rsplit_once('@').is_some_and(|(local, domain)| {
        !local.is_empty() && !local.contains(char::is_whitespace) && is_hostname(domain)
    })
}

fn is_uri(text: &str) -> bool {
    text.parse::<http::Uri>()
        .is_ok_and(|uri| uri.scheme().is_some() || text.starts_with('/'))
        || text.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
                && !rest.contains(char::is_whitespace)
        })
}

fn is_uuid(text: &str, version: Option<char>) -> bool {
    uuid::Uuid::try_parse(text).is_ok()
        && version.is_none_or(|version| {
            let mut digits = text.chars().filter(char::is_ascii_hexdigit);
            digits.nth(12) == Some(version)
        })
}

fn is_hex_colour(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && digits.bytes().all(|c| c.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats_tell_good_from_bad() {
        for (format, good, bad) in [
            (
                "date-time",
                json!("2020-01-02T03:04:05.6+01:00"),
                json!("2020-01-02"),
            ),
            ("date", json!("2020-02-29"), json!("2021-02-29")),
            ("duration", json!("1h30m"), json!("1x")),
            ("byte", json!("YQ=="), json!("!")),
            ("ipv4", json!("1.2.3.4"), json!("1.2.3")),
            ("ipv6", json!("fd00::1"), json!("1.2.3.4")),
            ("cidr", json!("10.0.0.0/8"), json!("10.0.0.1")),
            ("mac", json!("01:23:45:67:89:ab"), json!("01:23")),
            ("hostname", json!("a.example.com"), json!("-a")),
            ("email", json!("a@example.com"), json!("a")),
            ("uri", json!("https://example.com/a?b"), json!("not a uri")),
            ("uri", json!("urn:isbn:1"), json!("")),
            (
                "uuid",
                json!("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
                json!("6ba7"),
            ),
            (
                "uuid4",
                json!("6ba7b810-9dad-41d1-80b4-00c04fd430c8"),
                json!("6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
            ),
            ("hexcolor", json!("#fff"), json!("#ggg")),
            ("int32", json!(1), json!(1_i64 << 40)),
            ("int64", json!(1_i64 << 40), json!(u64::MAX)),
        ] {
            assert!(fits(format, &good), "{format} {good}");
            assert!(!fits(format, &bad), "{format} {bad}");
        }
        assert!(fits("whatever", &json!("x")));
    }
}
