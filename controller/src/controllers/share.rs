//! Fields that say a number or a percentage.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which way a percentage that does not come out even goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// To the greater number.
    Up,
    /// To the smaller number.
    Down,
}

/// The number, or the percentage of `total`; never negative, and nothing if it cannot be read.
pub fn share(value: &IntOrString, total: i32, round: Round) -> i32 {
    let percent = |percent: i64| {
        let product = i64::from(total) * percent;
        let rounded = match round {
            Round::Up => (product + 99).div_euclid(100),
            Round::Down => product.div_euclid(100),
        };
        i32::try_from(rounded).unwrap_or(i32::MAX)
    };
    let resolved = match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => match text.strip_suffix('%') {
            Some(number) => number.parse().map_or(0, percent),
            None => text.parse().unwrap_or(0),
        },
    };
    resolved.max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_as_told() {
        let of = |text: &str, total, round| share(&IntOrString::String(text.into()), total, round);
        assert_eq!((of("25%", 10, Round::Up), of("25%", 10, Round::Down)), (3, 2));
        assert_eq!((of("100%", 7, Round::Up), of("0%", 7, Round::Up)), (7, 0));
        assert_eq!((of("3", 10, Round::Up), of("many", 10, Round::Up)), (3, 0));
        assert_eq!(share(&IntOrString::Int(-2), 10, Round::Up), 0);
    }
}
