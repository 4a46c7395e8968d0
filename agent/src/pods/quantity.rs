//! Kubernetes quantities, as far as a cgroup needs them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The value in thousandths, rounded up; `None` if it is not a quantity or does not fit.
pub fn milli(quantity: &Quantity) -> Option<i64> {
    let text = quantity.0.trim();
    let number_end = text
        .find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-')))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(number_end);
    let (numerator, denominator): (i128, i128) = match suffix {
        "" => (1000, 1),
        "n" => (1, 1_000_000),
        "u" => (1, 1000),
        "m" => (1, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "Ki" => (1000 << 10, 1),
        "Mi" => (1000 << 20, 1),
        "Gi" => (1000 << 30, 1),
        "Ti" => (1000 << 40, 1),
        "Pi" => (1000 << 50, 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let scale = 10_i128.checked_pow(power.unsigned_abs())?;
            if power < 0 {
                (1000, scale)
            } else {
                (1000 * scale, 1)
            }
        }
    };
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = 10_i128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let value = digits.checked_mul(numerator)?;
    let divisor = scale.checked_mul(denominator)?;
    let rounded = value / divisor + i128::from(value % divisor != 0);
    i64::try_from(if negative { -rounded } else { rounded }).ok()
}

/// The value in whole units, rounded up.
pub fn units(quantity: &Quantity) -> Option<i64> {
    milli(quantity).map(|value| value.div_euclid(1000) + i64::from(value.rem_euclid(1000) != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("1", Some(1000)),
            ("0.5", Some(500)),
            ("250m", Some(250)),
            ("1u", Some(1)),
            ("128Mi", Some(128 * 1024 * 1024 * 1000)),
            ("1e3", Some(1_000_000)),
            ("1E-1", Some(100)),
            (".5", Some(500)),
            ("1k", Some(1_000_000)),
            ("-1", Some(-1000)),
            ("", None),
            ("x", None),
            ("1.2.3", None),
            ("1Qi", None),
            ("99999999999999999999999P", None),
        ] {
            assert_eq!(milli(&Quantity(text.to_owned())), expected, "{text}");
        }
        assert_eq!(units(&Quantity("1500m".to_owned())), Some(2));
    }
}
