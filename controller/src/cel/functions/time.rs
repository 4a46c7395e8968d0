//! Points and lengths of time.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

use super::operators::in_range;
use super::{Row, failed, no_such_overload, shortened};
use crate::cel::Cost;
use crate::cel::value::{Evaluated, Value};

const PART: &[&str] = &["timestamp.() int", "timestamp.(string) int"];
const PART_OR_LENGTH: &[&str] = &["timestamp.() int", "timestamp.(string) int", "duration.() int"];

pub(super) const TABLE: &[Row] = &[
    (
        "duration",
        duration,
        &["(string) duration", "(duration) duration"],
    ),
    (
        "timestamp",
        timestamp,
        &["(string) timestamp", "(int) timestamp", "(timestamp) timestamp"],
    ),
    ("getFullYear", |_, a| part(a, |time| time.year().into()), PART),
    (
        "getMonth",
        |_, a| part(a, |time| i64::from(time.month()) - 1),
        PART,
    ),
    (
        "getDayOfYear",
        |_, a| part(a, |time| i64::from(time.day_of_year()) - 1),
        PART,
    ),
    (
        "getDayOfMonth",
        |_, a| part(a, |time| i64::from(time.day()) - 1),
        PART,
    ),
    ("getDate", |_, a| part(a, |time| time.day().into()), PART),
    (
        "getDayOfWeek",
        |_, a| part(a, |time| time.weekday().to_sunday_zero_offset().into()),
        PART,
    ),
    (
        "getHours",
        |_, a| part_or_length(a, |time| time.hour().into(), HOUR),
        PART_OR_LENGTH,
    ),
    (
        "getMinutes",
        |_, a| part_or_length(a, |time| time.minute().into(), MINUTE),
        PART_OR_LENGTH,
    ),
    (
        "getSeconds",
        |_, a| part_or_length(a, |time| time.second().into(), SECOND),
        PART_OR_LENGTH,
    ),
    (
        "getMilliseconds",
        |_, a| part_or_length(a, |time| time.millisecond().into(), MILLISECOND),
        PART_OR_LENGTH,
    ),
];

const MILLISECOND: i64 = 1_000_000;
const SECOND: i64 = 1_000 * MILLISECOND;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// No time zone has a longer name.
const MAX_ZONE: usize = 64;

/// The units of Go's durations.
const UNITS: &[(&str, i64)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", MILLISECOND),
    ("s", SECOND),
    ("m", MINUTE),
    ("h", HOUR),
];

/// Further units that the format `duration` of schemas knows.
const WORDS: &[(&str, i64)] = &[
    ("sec", SECOND),
    ("second", SECOND),
    ("seconds", SECOND),
    ("min", MINUTE),
    ("minute", MINUTE),
    ("minutes", MINUTE),
    ("hr", HOUR),
    ("hour", HOUR),
    ("hours", HOUR),
    ("d", DAY),
    ("day", DAY),
    ("days", DAY),
    ("w", 7 * DAY),
    ("wk", 7 * DAY),
    ("week", 7 * DAY),
    ("weeks", 7 * DAY),
];

/// Reads `1h30m`, `1.5s`, `-3ms`.
fn parse_duration(text: &str, lenient: bool) -> Option<i64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (unsigned, 0_i128);
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        let after = if lenient { after.trim_start() } else { after };
        let end = after
            .find(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let words = if lenient { WORDS } else { &[] };
        let (_, nanos) = UNITS.iter().chain(words).find(|(name, _)| *name == unit)?;
        total = total.checked_add(amount(number, *nanos)?)?;
        rest = if lenient { after.trim_start() } else { after };
    }
    let total = if text.starts_with('-') { -total } else { total };
    i64::try_from(total).ok().filter(|_| !unsigned.is_empty())
}

/// `1.5` of a unit.
fn amount(number: &str, unit: i64) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| match text {
        "" => Some(0),
        text if text.len() > 18 => None,
        text => text.parse::<i128>().ok(),
    };
    let unit = i128::from(unit);
    // Digits beyond these are less than a nanosecond of any unit.
    let fraction = &fraction[..fraction.len().min(18)];
    let below = digits(fraction)? * unit / 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    digits(whole.trim_start_matches('0'))?
        .checked_mul(unit)?
        .checked_add(below)
}

/// Reads a duration as the format `duration` of schemas has it, in nanoseconds: days, weeks and words beside what Go knows.
pub(crate) fn parse_lenient_duration(text: &str) -> Option<i64> {
    parse_duration(text.trim(), true)
}

/// Reads a time or a date as the formats of schemas have them.
pub(in crate::cel) fn parse_timestamp(text: &str) -> Option<Timestamp> {
    if text.len() == 10 {
        let date: jiff::civil::Date = text.parse().ok()?;
        return in_range(date.to_zoned(TimeZone::UTC).ok()?.timestamp());
    }
    in_range(text.parse().ok()?)
}

/// Reads an RFC 3339 time.
pub(super) fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    // jiff reads more than that.
    let written = (20..=40).contains(&text.len()) && matches!(text.as_bytes()[10], b'T' | b't');
    let fits = written && !text.contains(['[', ',']);
    in_range(text.parse().ok().filter(|_| fits)?)
}

/// `3600s`, `1.5s`.
pub(super) fn duration_text(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let (whole, below) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
    if below == 0 {
        return format!("{sign}{whole}s");
    }
    let below = format!("{below:09}");
    format!("{sign}{whole}.{}s", below.trim_end_matches('0'))
}

fn duration<'a>(cost: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    match arguments {
        [Value::Duration(nanos)] => Ok(Value::Duration(*nanos)),
        [Value::String(text)] => {
            cost.traverse(text.len())?;
            match parse_duration(text, false) {
                Some(nanos) => Ok(Value::Duration(nanos)),
                None => failed(format!("time: invalid duration {:?}", shortened(text))),
            }
        }
        _ => no_such_overload(),
    }
}

fn timestamp<'a>(_: &mut Cost, arguments: &[Value<'a>]) -> Evaluated<'a> {
    let time = match arguments {
        [Value::Timestamp(time)] => Some(*time),
        [Value::Int(seconds)] => Timestamp::from_second(*seconds).ok().and_then(in_range),
        [Value::String(text)] => parse_rfc3339(text),
        _ => return no_such_overload(),
    };
    match time {
        Some(time) => Ok(Value::Timestamp(time)),
        None => failed("invalid timestamp"),
    }
}

/// `UTC`, `Europe/Berlin`, `+02:00`, `02:00`.
fn zone(name: &str) -> Option<TimeZone> {
    if name.len() > MAX_ZONE {
        return None;
    }
    let unsigned = name.strip_prefix(['-', '+']).unwrap_or(name);
    let Some((hours, minutes)) = unsigned.split_once(':') else {
        return TimeZone::get(name).ok();
    };
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    let seconds = hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?;
    let seconds = if name.starts_with('-') { -seconds } else { seconds };
    Offset::from_seconds(seconds).ok().map(Offset::to_time_zone)
}

fn part<'a>(arguments: &[Value<'a>], of: fn(&DateTime) -> i64) -> Evaluated<'a> {
    let (time, zone) = match arguments {
        [Value::Timestamp(time)] => (time, Some(TimeZone::UTC)),
        [Value::Timestamp(time), Value::String(name)] => (time, zone(name)),
        _ => return no_such_overload(),
    };
    match zone {
        Some(zone) => Ok(Value::Int(of(&zone.to_datetime(*time)))),
        None => failed("unknown time zone"),
    }
}

fn part_or_length<'a>(arguments: &[Value<'a>], of: fn(&DateTime) -> i64, unit: i64) -> Evaluated<'a> {
    match arguments {
        [Value::Duration(nanos)] => Ok(Value::Int(nanos / unit)),
        _ => part(arguments, of),
    }
}
