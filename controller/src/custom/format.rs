//! The formats that schemas can ask of strings and numbers. An unknown format asks nothing.

use std::net::{Ipv4Addr, Ipv6Addr};

use base64::Engine as _;
use serde_json::Value;

use crate::cel::{is_uuid, parse_lenient_duration};

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
        "uuid" => is_uuid(text),
        "uuid3" => is_uuid_of(text, '3'),
        "uuid4" => is_uuid_of(text, '4') && has_variant(text),
        "uuid5" => is_uuid_of(text, '5') && has_variant(text),
        "bsonobjectid" => text.len() == 24 && is_hex(text),
        "isbn" => is_isbn_10(text) || is_isbn_13(text),
        "isbn10" => is_isbn_10(text),
        "isbn13" => is_isbn_13(text),
        "creditcard" => is_credit_card(text),
        "ssn" => is_ssn(text),
        "hexcolor" => is_hex_colour(text),
        "rgbcolor" => is_rgb_colour(text),
        _ => true,
    }
}

fn is_date_time(text: &str) -> bool {
    // A date alone is a date-time to some parsers, but not to Kubernetes.
    text.len() >= 20 && text.parse::<jiff::Timestamp>().is_ok()
}

fn is_mac(text: &str) -> bool {
    let parts: Vec<_> = text.split([':', '-']).collect();
    matches!(parts.len(), 6 | 8 | 20) && parts.iter().all(|part| part.len() == 2 && is_hex(part))
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

fn is_hex(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_hexdigit())
}

fn hex_digit(text: &str, index: usize) -> Option<char> {
    text.chars().filter(char::is_ascii_hexdigit).nth(index)
}

fn is_uuid_of(text: &str, version: char) -> bool {
    is_uuid(text) && hex_digit(text, 12) == Some(version)
}

/// Whether it is laid out as RFC 4122 has it.
fn has_variant(text: &str) -> bool {
    hex_digit(text, 16).is_some_and(|digit| "89abAB".contains(digit))
}

/// Dashes and blanks may stand between the digits; the last one may be ten.
fn is_isbn_10(text: &str) -> bool {
    let text = text.replace(['-', ' '], "");
    let Some((digits, check)) = text.split_at_checked(9) else {
        return false;
    };
    let check = match check {
        "X" => Some(10),
        check => decimals(check)
            .filter(|check| check.len() == 1)
            .map(|check| check[0]),
    };
    let sum = decimals(digits).map(|digits| {
        (1..)
            .zip(digits)
            .map(|(weight, digit)| weight * digit)
            .sum::<u32>()
    });
    sum.zip(check)
        .is_some_and(|(sum, check)| (sum + 10 * check).is_multiple_of(11))
}

fn is_isbn_13(text: &str) -> bool {
    let digits = decimals(&text.replace(['-', ' '], ""));
    digits.filter(|digits| digits.len() == 13).is_some_and(|digits| {
        let weighed = digits.iter().zip([1, 3].iter().cycle());
        weighed
            .map(|(digit, weight)| digit * weight)
            .sum::<u32>()
            .is_multiple_of(10)
    })
}

fn decimals(text: &str) -> Option<Vec<u32>> {
    text.chars().map(|c| c.to_digit(10)).collect()
}

/// Whether the digits, whatever stands between them, are a number that an issuer gives and whose check digit (ISO/IEC 7812-1)
/// is right.
fn is_credit_card(text: &str) -> bool {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(10)).collect();
    let start = |length: usize| {
        digits
            .iter()
            .take(length)
            .fold(0, |number, digit| number * 10 + digit)
    };
    let issued = match digits.len() {
        13 => start(1) == 4,
        14 => matches!(start(3), 300..=305) || matches!(start(2), 36 | 38),
        15 => matches!(start(2), 34 | 37) || matches!(start(4), 2131 | 1800),
        16 => start(1) == 4 || matches!(start(2), 51..=55 | 35 | 65) || start(4) == 6011,
        _ => false,
    };
    let sum: u32 = (digits.iter().rev().zip([1, 2].iter().cycle()))
        .map(|(digit, weight)| digit * weight)
        .map(|digit| digit / 10 + digit % 10)
        .sum();
    issued && sum.is_multiple_of(10)
}

/// Three, two and four digits, with a dash or a blank between them or nothing.
fn is_ssn(text: &str) -> bool {
    let mut rest = text;
    let groups = [3, 2, 4].iter().all(|length| {
        let Some((group, after)) = rest.split_at_checked(*length) else {
            return false;
        };
        rest = after.strip_prefix(['-', ' ']).unwrap_or(after);
        decimals(group).is_some()
    });
    groups && rest.is_empty() && text.ends_with(|c: char| c.is_ascii_digit())
}

fn is_hex_colour(text: &str) -> bool {
    let digits = text.strip_prefix('#').unwrap_or(text);
    matches!(digits.len(), 3 | 6) && is_hex(digits)
}

/// `rgb(0,128,255)`, with blanks around the numbers.
fn is_rgb_colour(text: &str) -> bool {
    let inner = text.strip_prefix("rgb(").and_then(|text| text.strip_suffix(')'));
    let numbers: Option<Vec<u8>> = inner.and_then(|inner| {
        let number = |text: &str| text.trim_matches(' ').parse().ok();
        inner.split(',').map(number).collect()
    });
    numbers.is_some_and(|numbers| numbers.len() == 3)
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
            (
                "uuid",
                json!("6BA7B8109dad-11d180b400c04fd430c8"),
                json!("{6ba7b810-9dad-11d1-80b4-00c04fd430c8}"),
            ),
            (
                "uuid5",
                json!("6ba7b810-9dad-51d1-B0b4-00c04fd430c8"),
                json!("6ba7b810-9dad-51d1-00b4-00c04fd430c8"),
            ),
            (
                "bsonobjectid",
                json!("507f1f77bcf86cd799439011"),
                json!("507f1f77bcf86cd79943901"),
            ),
            ("isbn", json!("978-0321751041"), json!("978-0321751042")),
            ("isbn10", json!("0321751043"), json!("0321751044")),
            ("isbn10", json!("0-8044-2957-X"), json!("978-0321751041")),
            ("isbn13", json!("978-0321751041"), json!("0321751043")),
            (
                "creditcard",
                json!("4111 1111 1111 1111"),
                json!("4111-1111-1111-1112"),
            ),
            ("creditcard", json!("378282246310005"), json!("1234567812345670")),
            ("ssn", json!("123-45-6789"), json!("123-45-678")),
            ("hexcolor", json!("#fff"), json!("#ggg")),
            ("rgbcolor", json!("rgb(0, 128,255)"), json!("rgb(0,128,256)")),
            ("int32", json!(1), json!(1_i64 << 40)),
            ("int64", json!(1_i64 << 40), json!(u64::MAX)),
        ] {
            assert!(fits(format, &good), "{format} {good}");
            assert!(!fits(format, &bad), "{format} {bad}");
        }
        assert!(fits("whatever", &json!("x")));
    }
}
