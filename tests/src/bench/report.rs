//! Medians, ratios and spreads, as a table for people or as one JSON object a line.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value, json};

/// The name of our own column.
pub const WEFT: &str = "weft";

/// One row: the samples of every variant.
#[derive(Clone, Debug)]
pub struct Row {
    /// The case's name.
    pub case: String,
    /// The unit of its samples.
    pub unit: &'static str,
    /// Whether more is better. Ratios are `weft ÷ peer` either way.
    pub more_is_better: bool,
    /// The samples, one a round, by variant.
    pub samples: BTreeMap<String, Vec<f64>>,
    /// The promised ratio by peer: the least if more is better, else the largest.
    pub promised: BTreeMap<String, f64>,
}

/// A median and how far the middle half of the samples is spread around it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    /// The median.
    pub median: f64,
    /// Half the distance of the quartiles, as a share of the median.
    pub spread: f64,
}

impl Figure {
    /// Of no samples there is no figure.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let median = f64::midpoint(sorted[last / 2], sorted[last.div_ceil(2)]);
        let (low, high) = (sorted[last / 4], sorted[last - last / 4]);
        Some(Self {
            median,
            spread: if median == 0.0 {
                0.0
            } else {
                (high - low) / 2.0 / median
            },
        })
    }
}

impl Row {
    fn figure(&self, variant: &str) -> Option<Figure> {
        Figure::of(self.samples.get(variant)?)
    }

    fn peers(&self) -> impl Iterator<Item = (&str, Figure)> {
        let peers = self.samples.keys().filter(|name| *name != WEFT);
        peers.filter_map(|name| Some((name.as_str(), self.figure(name)?)))
    }

    /// `weft ÷ peer`, and whether it is as promised, if it is.
    fn ratio(&self, peer: &str) -> Option<(f64, Option<bool>)> {
        let ratio = self.figure(WEFT)?.median / self.figure(peer)?.median;
        let kept = self.promised.get(peer).map(|promised| {
            if self.more_is_better {
                ratio >= *promised
            } else {
                ratio <= *promised
            }
        });
        Some((ratio, kept))
    }

    /// The row as one JSON object.
    pub fn json(&self, bench: &str) -> Value {
        let rounds = self.samples.values().map(Vec::len).max().unwrap_or_default();
        let mut ratios = Map::new();
        let mut peers = Map::new();
        let mut spread = Map::new();
        for (name, figure) in self.peers() {
            peers.insert(name.to_owned(), json!(rounded(figure.median)));
            spread.insert(name.to_owned(), json!(rounded(figure.spread)));
            if let Some((ratio, _)) = self.ratio(name) {
                ratios.insert(name.to_owned(), json!(rounded(ratio)));
            }
        }
        let own = self.figure(WEFT);
        if let Some(figure) = own {
            spread.insert(WEFT.to_owned(), json!(rounded(figure.spread)));
        }
        json!({
            "bench": bench, "case": self.case, "unit": self.unit, "rounds": rounds,
            "weft": own.map(|figure| rounded(figure.median)),
            "peers": peers, "ratio": ratios, "spread": spread,
        })
    }
}

/// The rows as a table. `peers` gives the order of the columns.
pub fn table(rows: &[Row], peers: &[&str]) -> String {
    let columns: Vec<&str> = [WEFT].iter().chain(peers).copied().collect();
    let columns: Vec<&str> = columns
        .into_iter()
        .filter(|name| rows.iter().any(|row| row.samples.contains_key(*name)))
        .collect();
    let mut lines = vec![
        ["case".to_owned(), "unit".to_owned()]
            .into_iter()
            .chain(columns.iter().map(ToString::to_string))
            .collect(),
    ];
    for row in rows {
        let mut figures = vec![row.case.clone(), row.unit.to_owned()];
        let mut ratios = vec![String::new(), "  weft ÷".to_owned()];
        for column in &columns {
            figures.push(row.figure(column).map_or_else(String::new, |figure| {
                format!("{} ±{:.0}%", short(figure.median), figure.spread * 100.0)
            }));
            ratios.push(match row.ratio(column) {
                Some((ratio, kept)) if *column != WEFT => {
                    let sign = if row.more_is_better { '≥' } else { '≤' };
                    let promise = row
                        .promised
                        .get(*column)
                        .map(|promised| format!(" {sign}{promised:.2}"));
                    let mark = match kept {
                        Some(true) => " ✓",
                        Some(false) => " ✗",
                        None => "",
                    };
                    format!("{ratio:.2}{}{mark}", promise.unwrap_or_default())
                }
                _ => String::new(),
            });
        }
        lines.push(figures);
        lines.push(ratios);
    }
    aligned(&lines)
}

/// Columns of equal width, the first two to the left.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let _ = if column < 2 {
                write!(row, "{cell}{padding}  ")
            } else {
                write!(row, "{padding}{cell}  ")
            };
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        0.0..10.0 => format!("{value:.2}"),
        10.0..100.0 => format!("{value:.1}"),
        100.0..10_000.0 => format!("{value:.0}"),
        _ => format!("{:.1}k", value / 1e3),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(Figure::of(&[]), None);
        assert_eq!(
            Figure::of(&[2.0]),
            Some(Figure {
                median: 2.0,
                spread: 0.0
            })
        );
        assert_eq!(
            Figure::of(&[3.0, 1.0]),
            Some(Figure {
                median: 2.0,
                spread: 0.5
            })
        );
        assert_eq!(
            Figure::of(&[5.0, 1.0, 2.0, 4.0, 3.0]),
            Some(Figure {
                median: 3.0,
                spread: 1.0 / 3.0
            })
        );
    }

    #[test]
    fn rows_print_as_documented() {
        let row = Row {
            case: "cross-node/tcp1".to_owned(),
            unit: "Gbit/s",
            more_is_better: true,
            samples: BTreeMap::from([
                ("weft".to_owned(), vec![30.0, 32.0]),
                ("host".to_owned(), vec![40.0, 40.0]),
            ]),
            promised: BTreeMap::from([("host".to_owned(), 0.78)]),
        };
        assert_eq!(
            row.json("net"),
            json!({"bench": "net", "case": "cross-node/tcp1", "unit": "Gbit/s", "rounds": 2, "weft": 31.0,
                   "peers": {"host": 40.0}, "ratio": {"host": 0.775}, "spread": {"host": 0.0, "weft": 0.0323}})
        );
        let table = table(&[row], &["host", "flannel"]);
        assert!(
            table.contains("0.78 ≥0.78 ✗") && !table.contains("flannel"),
            "{table}"
        );
    }
}
