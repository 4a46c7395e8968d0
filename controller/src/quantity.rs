//! Kubernetes resource quantities: `500m`, `1.5Gi`, `2e3`.
//!
//! Values are kept exactly, as a count of nano-units, together with the notation they were written in; printing gives
//! the canonical form that a Kubernetes server stores.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::iter::Sum;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

/// Nano-units in one unit.
const NANO: i128 = 1_000_000_000;

/// The largest magnitude, in units: quantities saturate at 2^63 - 1.
const MAX_UNITS: i128 = i64::MAX as i128;

/// Why a string is no quantity, in the words of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text is empty or has characters outside the grammar.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The part before the suffix is not a decimal number.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is not one of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// The family of suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// `n u m k M G T P E`.
    DecimalSi,
    /// `Ki Mi Gi Ti Pi Ei`.
    BinarySi,
    /// `e3`.
    DecimalExponent,
}

/// An exact amount of a resource. Equality and order compare the amount only, not the notation.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

impl Quantity {
    /// Nothing, in decimal notation.
    pub const ZERO: Self = Self {
        nanos: 0,
        notation: Notation::DecimalSi,
    };

    /// A whole number of units in decimal notation.
    pub fn from_units(units: i64) -> Self {
        Self {
            nanos: i128::from(units) * NANO,
            notation: Notation::DecimalSi,
        }
    }

    /// A number of thousandths in decimal notation.
    pub fn from_millis(millis: i64) -> Self {
        Self {
            nanos: i128::from(millis) * (NANO / 1000),
            notation: Notation::DecimalSi,
        }
    }

    /// A whole number of bytes in binary notation.
    pub fn from_bytes(bytes: i64) -> Self {
        Self {
            nanos: i128::from(bytes) * NANO,
            notation: Notation::BinarySi,
        }
    }

    /// The amount in nano-units.
    pub fn nanos(self) -> i128 {
        self.nanos
    }

    /// The notation it is printed in.
    pub fn notation(self) -> Notation {
        self.notation
    }

    /// Whether the amount is zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether the amount is below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// The amount in whole units, rounded up and saturated.
    pub fn value(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO))
    }

    /// The amount in thousandths, rounded up and saturated.
    pub fn milli_value(self) -> i64 {
        saturate(div_ceil(self.nanos, NANO / 1000))
    }

    /// The amount as a float, for scoring only.
    #[expect(clippy::cast_precision_loss, reason = "scores need no exactness")]
    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether the amount is a whole number of units.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn div_ceil(value: i128, by: i128) -> i128 {
    let quotient = value.div_euclid(by);
    if value.rem_euclid(by) == 0 {
        quotient
    } else {
        quotient + 1
    }
}

/// What a suffix multiplies by: a power of two or of ten.
enum Scale {
    Binary(u32),
    Decimal(i32),
}

fn scale(suffix: &str) -> Result<(Scale, Notation), QuantityError> {
    use Notation::{BinarySi, DecimalExponent, DecimalSi};
    Ok(match suffix {
        "" => (Scale::Decimal(0), DecimalSi),
        "n" => (Scale::Decimal(-9), DecimalSi),
        "u" => (Scale::Decimal(-6), DecimalSi),
        "m" => (Scale::Decimal(-3), DecimalSi),
        "k" => (Scale::Decimal(3), DecimalSi),
        "M" => (Scale::Decimal(6), DecimalSi),
        "G" => (Scale::Decimal(9), DecimalSi),
        "T" => (Scale::Decimal(12), DecimalSi),
        "P" => (Scale::Decimal(15), DecimalSi),
        "E" => (Scale::Decimal(18), DecimalSi),
        "Ki" => (Scale::Binary(10), BinarySi),
        "Mi" => (Scale::Binary(20), BinarySi),
        "Gi" => (Scale::Binary(30), BinarySi),
        "Ti" => (Scale::Binary(40), BinarySi),
        "Pi" => (Scale::Binary(50), BinarySi),
        "Ei" => (Scale::Binary(60), BinarySi),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent: i32 = digits.parse().map_err(|_| QuantityError::Suffix)?;
            (Scale::Decimal(exponent), DecimalExponent)
        }
    })
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match text.as_bytes().first() {
            None => return Err(QuantityError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let number_end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(number_end);
        check_suffix_grammar(suffix)?;
        if number.is_empty() {
            return Err(QuantityError::Format);
        }
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError::Numeric);
        }
        let (scale, notation) = scale(suffix)?;
        let magnitude = nanos_of(whole, fraction, &scale);
        Ok(Self {
            nanos: if negative { -magnitude } else { magnitude },
            notation,
        })
    }
}

/// `[eEinumkKMGTP]*[-+]?[0-9]*`
fn check_suffix_grammar(suffix: &str) -> Result<(), QuantityError> {
    let rest = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    if rest.bytes().all(|b| b.is_ascii_digit()) {
        Ok(())
    } else {
        Err(QuantityError::Format)
    }
}

/// The magnitude in nano-units, rounded away from zero below one nano and saturated at [`MAX_UNITS`].
fn nanos_of(whole: &str, fraction: &str, scale: &Scale) -> i128 {
    let max = MAX_UNITS * NANO;
    let digits: String = whole.chars().chain(fraction.chars()).collect();
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let fraction_len = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let (factor, exponent) = match scale {
        Scale::Binary(bits) => (1_i128 << bits, 9 - fraction_len),
        Scale::Decimal(power) => (1, 9_i64.saturating_add(i64::from(*power)) - fraction_len),
    };
    // Digits beyond the first 19 cannot matter exactly: they either exceed the maximum or round up by one nano.
    let digit_count = i64::try_from(digits.len()).unwrap_or(i64::MAX);
    let magnitude = digit_count.saturating_add(exponent);
    if magnitude > 29 {
        return max;
    }
    if magnitude < -20 {
        return 1;
    }
    let kept = digits.len().min(30);
    let dropped_nonzero = digits[kept..].bytes().any(|b| b != b'0');
    let mantissa: i128 = digits[..kept].parse().unwrap_or(i128::MAX);
    let exponent = exponent + i64::try_from(digits.len() - kept).unwrap_or(i64::MAX);
    let value = if exponent >= 0 {
        power_of_ten(exponent)
            .and_then(|power| mantissa.checked_mul(power))
            .and_then(|value| value.checked_mul(factor))
    } else {
        power_of_ten(-exponent).and_then(|power| scaled_ceil(mantissa, factor, power))
    };
    match value {
        Some(value) => value
            .saturating_add(i128::from(dropped_nonzero && exponent <= 0))
            .min(max),
        None => max,
    }
}

/// `mantissa * factor / divisor`, rounded up; `None` when it overflows.
fn scaled_ceil(mantissa: i128, factor: i128, divisor: i128) -> Option<i128> {
    if let Some(product) = mantissa.checked_mul(factor) {
        return Some(div_ceil(product, divisor));
    }
    let whole = (mantissa / divisor).checked_mul(factor)?;
    // The remainder is below the divisor; halve both until the product fits, which loses less than a nano.
    let (mut remainder, mut divisor) = (mantissa % divisor, divisor);
    while remainder.checked_mul(factor).is_none() {
        remainder >>= 1;
        divisor >>= 1;
    }
    whole.checked_add(div_ceil(remainder * factor, divisor.max(1)))
}

fn power_of_ten(exponent: i64) -> Option<i128> {
    10_i128.checked_pow(u32::try_from(exponent).ok()?)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.notation == Notation::BinarySi && !small && self.is_whole() {
            let (mut units, mut index) = (self.nanos / NANO, 0);
            while units % 1024 == 0 && index < 6 {
                units /= 1024;
                index += 1;
            }
            return write!(f, "{units}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][index]);
        }
        let (mut mantissa, mut exponent) = (self.nanos, -9);
        while mantissa % 1000 == 0 && exponent < 18 {
            mantissa /= 1000;
            exponent += 3;
        }
        if self.notation == Notation::DecimalExponent {
            if exponent == 0 {
                return write!(f, "{mantissa}");
            }
            return write!(f, "{mantissa}e{exponent}");
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        write!(f, "{mantissa}{suffix}")
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl Hash for Quantity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nanos.hash(state);
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;

    /// The sum, in the notation of the left side unless that is zero.
    fn add(self, other: Self) -> Self {
        let notation = if self.is_zero() {
            other.notation
        } else {
            self.notation
        };
        Self {
            nanos: self.nanos.saturating_add(other.nanos),
            notation,
        }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            nanos: self.nanos.saturating_neg(),
            notation: self.notation,
        }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().expect(text).to_string()
    }

    #[test]
    fn prints_the_canonical_form() {
        for (text, expected) in [
            ("0", "0"),
            ("0m", "0"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("+5", "5"),
            ("-0.1", "-100m"),
            ("1500m", "1500m"),
            ("1.5Gi", "1536Mi"),
            ("0.5Mi", "512Ki"),
            ("1024Ki", "1Mi"),
            ("1024", "1024"),
            ("1000", "1k"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("0.1Mi", "104857600m"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e2", "1200"),
            ("1E", "1E"),
            ("100k", "100k"),
            ("1.0e-3", "1e-3"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("100000000000000000000000", "9223372036854775807"),
            ("8Ei", "9223372036854775807"),
            ("-9Ei", "-9223372036854775807"),
            ("1435076Ki", "1435076Ki"),
            ("156340231n", "156340231n"),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_quantity() {
        for (text, error) in [
            ("", QuantityError::Format),
            ("abc", QuantityError::Format),
            ("1 Gi", QuantityError::Format),
            ("1Gb", QuantityError::Format),
            ("1.2.3", QuantityError::Numeric),
            (".", QuantityError::Numeric),
            ("1Kii", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("--1", QuantityError::Format),
            ("1m5", QuantityError::Suffix),
        ] {
            assert_eq!(text.parse::<Quantity>(), Err(error), "{text}");
        }
    }

    #[test]
    fn rounds_up_to_whole_units_and_thousandths() {
        let parse = |text: &str| text.parse::<Quantity>().expect(text);
        assert_eq!(parse("1100m").value(), 2);
        assert_eq!(parse("-1100m").value(), -1);
        assert_eq!(parse("1u").milli_value(), 1);
        assert_eq!(parse("2").milli_value(), 2000);
    }

    #[test]
    fn a_sum_keeps_the_notation_of_its_first_part() {
        let parse = |text: &str| text.parse::<Quantity>().expect(text);
        assert_eq!((parse("1Gi") + parse("512Mi")).to_string(), "1536Mi");
        assert_eq!((Quantity::ZERO + parse("4Ki")).to_string(), "4Ki");
        assert_eq!((parse("1") - parse("100m")).to_string(), "900m");
    }

    proptest! {
        #[test]
        fn canonical_text_means_the_same_amount(units in any::<i64>(), suffix in prop::sample::select(
            vec!["n", "u", "m", "", "k", "M", "Ki", "Mi", "Gi", "e2", "e-4"]))
        {
            let first: Quantity = format!("{units}{suffix}").parse().expect("in the grammar");
            let again: Quantity = first.to_string().parse().expect("canonical");
            prop_assert_eq!(first, again);
            prop_assert_eq!(first.to_string(), again.to_string());
        }

        #[test]
        fn addition_is_exact(a in -1_000_000_000_i64..1_000_000_000, b in -1_000_000_000_i64..1_000_000_000) {
            let sum = Quantity::from_millis(a) + Quantity::from_millis(b);
            prop_assert_eq!(sum, Quantity::from_millis(a + b));
            prop_assert_eq!(sum - Quantity::from_millis(b), Quantity::from_millis(a));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.eEinumkKMGTP]{0,60}") {
            let _ = text.parse::<Quantity>().map(|q| (q.to_string(), q.value(), q.milli_value()));
        }
    }
}
