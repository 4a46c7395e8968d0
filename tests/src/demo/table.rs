//! A matrix of who reached whom, as aligned text.

use std::collections::BTreeMap;

use crate::pods::Place;
use crate::probe::check::{Outcome, Protocol};

/// Rows ask columns.
#[derive(Debug)]
pub(super) struct Matrix {
    title: String,
    columns: Vec<String>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    name: String,
    /// Latency of each column over TCP and IPv4, in microseconds; none if any way of asking it failed.
    cells: Vec<Option<u64>>,
    reached: usize,
    kept: usize,
    asked: usize,
    first_failure: Option<String>,
}

impl Matrix {
    /// Makes a matrix of the outcomes of each row's questions.
    pub(super) fn new(
        title: &str,
        from: &[Place],
        to: &[Place],
        answers: &BTreeMap<usize, Vec<Outcome>>,
    ) -> Self {
        let rows = from.iter().enumerate().map(|(at, place)| {
            let outcomes = answers.get(&at).map_or(&[][..], Vec::as_slice);
            let cells = to.iter().map(|target| cell(target, outcomes)).collect();
            Row {
                name: format!("{} ({})", short(&place.name), place.machine.name()),
                cells,
                reached: outcomes.iter().filter(|outcome| outcome.is_reached()).count(),
                kept: outcomes.iter().filter(|outcome| outcome.is_source_kept()).count(),
                asked: outcomes.len(),
                first_failure: outcomes
                    .iter()
                    .find(|outcome| !outcome.is_source_kept())
                    .map(|outcome| {
                        format!(
                            "{:?} {}: {}",
                            outcome.protocol,
                            outcome.target,
                            outcome.error.clone().unwrap_or_else(|| format!(
                                "sent from {:?}, seen as {:?}",
                                outcome.local, outcome.seen
                            ))
                        )
                    }),
            }
        });
        Self {
            title: title.to_owned(),
            rows: rows.collect(),
            columns: to.iter().map(|place| short(&place.name).to_owned()).collect(),
        }
    }

    /// Whether every question was answered and every source address kept.
    pub(super) fn is_complete(&self) -> bool {
        self.rows.iter().all(|row| row.asked > 0 && row.kept == row.asked)
    }

    /// The table's lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let first = self
            .rows
            .iter()
            .map(|row| row.name.chars().count())
            .chain([self.title.chars().count()]);
        let first = first.max().unwrap_or(0);
        let width = self
            .columns
            .iter()
            .map(String::len)
            .max()
            .unwrap_or(0)
            .max("9999 µs".chars().count());
        let mut lines = Vec::new();
        let heads: Vec<String> = self
            .columns
            .iter()
            .map(|name| format!("{name:>width$}"))
            .collect();
        lines.push(format!(
            "{:first$}  {}  source address kept",
            self.title,
            heads.join("  ")
        ));
        for row in &self.rows {
            let cells: Vec<String> = row
                .cells
                .iter()
                .map(|cell| match cell {
                    Some(latency) => format!("{:>width$}", format!("{latency} µs")),
                    None => format!("{:>width$}", "–"),
                })
                .collect();
            let kept = if row.kept == row.asked { "yes" } else { "NO" };
            lines.push(format!("{:first$}  {}  {kept}", row.name, cells.join("  ")));
        }
        let (reached, asked) = self.rows.iter().fold((0, 0), |(reached, asked), row| {
            (reached + row.reached, asked + row.asked)
        });
        lines.push(format!(
            "{reached} of {asked} reached over TCP, UDP, ICMP and both address families (shown: TCP, IPv4)"
        ));
        for row in &self.rows {
            if let Some(failure) = &row.first_failure {
                lines.push(format!("{}: {failure}", row.name));
            }
        }
        lines
    }
}

fn cell(target: &Place, outcomes: &[Outcome]) -> Option<u64> {
    let mut mine = outcomes
        .iter()
        .filter(|outcome| target.ips.contains(&outcome.target.ip()))
        .peekable();
    mine.peek()?;
    if mine.clone().any(|outcome| !outcome.is_source_kept()) {
        return None;
    }
    mine.find(|outcome| outcome.protocol == Protocol::Tcp && outcome.target.is_ipv4())
        .map(|outcome| outcome.latency_us)
}

/// The part of a generated name that tells it from its siblings.
fn short(name: &str) -> &str {
    let mut parts = name.rsplit('-');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(last), Some(_), Some(_)) => last,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::short;

    #[test]
    fn generated_names_are_shortened_and_others_are_not() {
        assert_eq!(short("web-5d8f9c-x2k4q"), "x2k4q");
        assert_eq!(short("node-1"), "node-1");
        assert_eq!(short("edge"), "edge");
    }
}
