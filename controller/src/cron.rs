//! Cron schedules: five fields, or a descriptor such as `@daily` or `@every 5m`. What is wrong with one is worded as Kubernetes
//! words it. Used where CronJobs are checked, and where they are run.

use std::str::FromStr;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};

/// Why a schedule cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CronError(String);

/// When something is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// At times of the clock.
    Clock(Clock),
    /// Again and again after this long.
    Every(Duration),
}

/// Sets of minutes, hours, days, months and weekdays, a bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether the days of the month, or those of the week, are all of them: otherwise either may match.
    any_day: bool,
}

/// How far ahead a time is looked for: a 29th of February may be eight years away, but not with Kubernetes.
const YEARS_AHEAD: i16 = 5;

struct Bounds {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds {
    least: 0,
    most: 59,
    names: &[],
};
const HOURS: Bounds = Bounds {
    least: 0,
    most: 23,
    names: &[],
};
const DAYS: Bounds = Bounds {
    least: 1,
    most: 31,
    names: &[],
};
const MONTHS: Bounds = Bounds {
    least: 1,
    most: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
};
const WEEKDAYS: Bounds = Bounds {
    least: 0,
    most: 6,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

impl FromStr for Schedule {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        if text.is_empty() {
            return Err(CronError("empty spec string".to_owned()));
        }
        if let Some(period) = text.strip_prefix("@every ") {
            return every(text, period);
        }
        let fields = match text {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ if text.starts_with('@') => return Err(CronError(format!("unrecognized descriptor: {text}"))),
            _ => text,
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(CronError(format!(
                "expected exactly 5 fields, found {}: [{}]",
                fields.len(),
                fields.join(" ")
            )));
        };
        let (minutes, _) = set(minutes, &MINUTES)?;
        let (hours, _) = set(hours, &HOURS)?;
        let (days, all_days) = set(days, &DAYS)?;
        let (months, _) = set(months, &MONTHS)?;
        let (weekdays, all_weekdays) = set(weekdays, &WEEKDAYS)?;
        Ok(Self::Clock(Clock {
            minutes,
            hours,
            days,
            months,
            weekdays,
            any_day: all_days || all_weekdays,
        }))
    }
}

/// The period of `@every 1h30m`, in whole seconds, at least one.
fn every(text: &str, period: &str) -> Result<Schedule, CronError> {
    let wrong = || {
        CronError(format!(
            "failed to parse duration {text}: time: invalid duration {period:?}"
        ))
    };
    let (mut total, mut rest) = (0.0, period);
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(wrong()),
            };
        rest = &rest[unit..];
    }
    if period.is_empty() {
        return Err(wrong());
    }
    let period = Duration::try_from_secs_f64(total).map_err(|_| wrong())?;
    Ok(Schedule::Every(Duration::from_secs(period.as_secs().max(1))))
}

/// The values that a field names, and whether it is all of them.
fn set(field: &str, bounds: &Bounds) -> Result<(u64, bool), CronError> {
    let (mut bits, mut all) = (0, false);
    for part in field.split(',').filter(|part| !part.is_empty()) {
        let (values, star) = range(part, bounds)?;
        bits |= values;
        all |= star;
    }
    Ok((bits, all))
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), CronError> {
    let wrong = |why: String| CronError(format!("{why}: {text}"));
    let mut parts = text.split('/');
    let (span, step, rest) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    let mut ends = span.split('-');
    let (low, high, more) = (ends.next().unwrap_or_default(), ends.next(), ends.next());
    let mut star = false;
    let (low, mut high) = if matches!(low, "*" | "?") {
        star = true;
        (bounds.least, bounds.most)
    } else {
        let low = number(low, bounds.names)?;
        let high = match (high, more) {
            (None, _) => low,
            (Some(high), None) => number(high, bounds.names)?,
            (Some(_), Some(_)) => return Err(wrong("too many hyphens".to_owned())),
        };
        (low, high)
    };
    let step = match (step, rest) {
        (None, _) => 1,
        (Some(step), None) => {
            // `N/step` means `N-max/step`.
            if !span.contains('-') && !star {
                high = bounds.most;
            }
            let step = number(step, &[])?;
            star &= step <= 1;
            step
        }
        (Some(_), Some(_)) => return Err(wrong("too many slashes".to_owned())),
    };
    let Bounds { least, most, .. } = *bounds;
    if low < least {
        return Err(wrong(format!(
            "beginning of range ({low}) below minimum ({least})"
        )));
    }
    if high > most {
        return Err(wrong(format!("end of range ({high}) above maximum ({most})")));
    }
    if low > high {
        return Err(wrong(format!(
            "beginning of range ({low}) beyond end of range ({high})"
        )));
    }
    if step == 0 {
        return Err(wrong("step of range should be a positive number".to_owned()));
    }
    let values = (low..=high).step_by(step as usize);
    Ok((values.fold(0, |bits, value| bits | 1 << value), star))
}

fn number(text: &str, names: &[&str]) -> Result<u32, CronError> {
    let lower = text.to_lowercase();
    if let Some(index) = names.iter().position(|name| *name == lower) {
        // Months begin at 1 and weekdays at 0.
        let first = u32::from(names.len() == MONTHS.names.len());
        return Ok(u32::try_from(index).unwrap_or_default() + first);
    }
    text.parse::<u32>().map_err(|_| {
        CronError(format!(
            "failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"
        ))
    })
}

impl Schedule {
    /// The first time after `after` at which it is due in `zone`; `None` if there is none within five years.
    ///
    /// Times that a clock skips are skipped, and those that it shows twice are due twice.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let clock = match self {
            Self::Clock(clock) => clock,
            Self::Every(period) => {
                let whole = Timestamp::from_second(after.as_second()).ok()?;
                return whole.checked_add(*period).ok();
            }
        };
        let minute = after.as_second().div_euclid(60) * 60;
        let mut at = Timestamp::from_second(minute + 60).ok()?.to_zoned(zone.clone());
        let last = at.year() + YEARS_AHEAD;
        while at.year() <= last {
            at = if !has(clock.months, at.month()) {
                at.checked_add(1.month())
                    .ok()?
                    .first_of_month()
                    .ok()?
                    .start_of_day()
                    .ok()?
            } else if !clock.has_day(at.day(), at.weekday().to_sunday_zero_offset()) {
                at.tomorrow().ok()?.start_of_day().ok()?
            } else if !has(clock.hours, at.hour()) {
                let past = i64::from(at.minute());
                at.checked_add((60 - past).minutes()).ok()?
            } else if !has(clock.minutes, at.minute()) {
                at.checked_add(1.minute()).ok()?
            } else {
                return Some(at.timestamp());
            };
        }
        None
    }
}

fn has(set: u64, value: i8) -> bool {
    set >> value & 1 == 1
}

impl Clock {
    fn has_day(&self, day: i8, weekday: i8) -> bool {
        let (day, weekday) = (has(self.days, day), has(self.weekdays, weekday));
        if self.any_day {
            day && weekday
        } else {
            day || weekday
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_are_due_when_cron_says() {
        for (schedule, zone, after, due) in [
            ("* * * * *", "UTC", "2025-01-01T00:00:00Z", "2025-01-01T00:01:00Z"),
            ("* * * * *", "UTC", "2025-01-01T00:00:59Z", "2025-01-01T00:01:00Z"),
            (
                "*/15 * * * *",
                "UTC",
                "2025-01-01T00:46:00Z",
                "2025-01-01T01:00:00Z",
            ),
            (
                "5/20 * * * *",
                "UTC",
                "2025-01-01T00:26:00Z",
                "2025-01-01T00:45:00Z",
            ),
            (
                "0 9-17/4 * * MON-FRI",
                "UTC",
                "2025-01-03T17:00:00Z",
                "2025-01-06T09:00:00Z",
            ),
            (
                "30 6 29 2 *",
                "UTC",
                "2025-01-01T00:00:00Z",
                "2028-02-29T06:30:00Z",
            ),
            // A day of the month or a day of the week, where both are named.
            (
                "0 0 13 * 5",
                "UTC",
                "2025-01-03T00:00:00Z",
                "2025-01-10T00:00:00Z",
            ),
            (
                "0 0 */13 * 5",
                "UTC",
                "2025-01-03T00:00:00Z",
                "2025-01-10T00:00:00Z",
            ),
            ("0 0 * * 5", "UTC", "2025-01-03T00:00:00Z", "2025-01-10T00:00:00Z"),
            ("@monthly", "UTC", "2025-01-31T12:00:00Z", "2025-02-01T00:00:00Z"),
            (
                "@every 90m",
                "UTC",
                "2025-01-01T00:00:01.5Z",
                "2025-01-01T01:30:01Z",
            ),
            (
                "0 8 * * *",
                "Asia/Tokyo",
                "2025-01-01T00:00:00Z",
                "2025-01-01T23:00:00Z",
            ),
            // 02:30 does not exist on the day on which clocks go forward, and 01:30 comes twice when they go back.
            (
                "30 2 * * *",
                "America/New_York",
                "2025-03-08T08:00:00Z",
                "2025-03-10T06:30:00Z",
            ),
            (
                "30 1 * * *",
                "America/New_York",
                "2025-11-02T05:30:00Z",
                "2025-11-02T06:30:00Z",
            ),
        ] {
            let zone = TimeZone::get(zone).unwrap();
            let parsed: Schedule = schedule.parse().unwrap();
            let next = parsed.next_after(after.parse().unwrap(), &zone);
            assert_eq!(next, Some(due.parse().unwrap()), "{schedule} after {after}");
        }
        let never: Schedule = "0 0 30 2 *".parse().unwrap();
        assert_eq!(never.next_after(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn what_is_wrong_is_said_as_kubernetes_says_it() {
        for (schedule, expected) in [
            ("", "empty spec string"),
            ("error", "expected exactly 5 fields, found 1: [error]"),
            ("* * * * * *", "expected exactly 5 fields, found 6: [* * * * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            (
                "9-3 * * * *",
                "beginning of range (9) beyond end of range (3): 9-3",
            ),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("1/2/3 * * * *", "too many slashes: 1/2/3"),
            (
                "x * * * *",
                "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            ("@often", "unrecognized descriptor: @often"),
            (
                "@every x",
                "failed to parse duration @every x: time: invalid duration \"x\"",
            ),
        ] {
            assert_eq!(schedule.parse::<Schedule>().unwrap_err().to_string(), expected);
        }
    }
}
