//! Percentiles of what was measured.

use serde::Serialize;

/// A summary of samples, in their unit.
#[derive(Debug, Clone, Default, Serialize, PartialEq)]
pub(crate) struct Summary {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

impl Summary {
    /// Of no samples there is no summary.
    pub(crate) fn of(samples: &mut [f64]) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        let last = samples.len().checked_sub(1)?;
        Some(Self {
            min: samples[0],
            median: samples[last / 2],
            p99: samples[last * 99 / 100],
            max: samples[last],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        assert_eq!(Summary::of(&mut []), None);
        let mut samples: Vec<f64> = (1..=101).rev().map(f64::from).collect();
        assert_eq!(
            Summary::of(&mut samples),
            Some(Summary {
                min: 1.0,
                median: 51.0,
                p99: 100.0,
                max: 101.0
            })
        );
    }
}
