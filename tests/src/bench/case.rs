//! What is measured, and what the product promises of it.

use std::fmt;
use std::str::FromStr;

/// One row of `bench net`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Where the two ends are.
    pub reach: Reach,
    /// What goes between them.
    pub load: Load,
    /// Whether Weft's side has an underlay that allows BIG TCP. The peers have none: it is what they run on.
    pub big: bool,
}

/// Where the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// On one node.
    Same,
    /// On two nodes.
    Cross,
}

/// What goes between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// One bulk stream, both ends on one CPU.
    Tcp1,
    /// Eight bulk streams, wherever the scheduler puts them.
    Tcp8,
    /// Small datagrams that arrive, sender and receiver on a CPU each.
    UdpPps,
    /// A byte there and a byte back, both ends on one CPU.
    Rr,
    /// Connect, a byte there and a byte back, close; both ends on one CPU.
    Crr,
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Tcp1, Self::Tcp8, Self::UdpPps, Self::Rr, Self::Crr];

    /// The unit of its figures. More is better in all of them.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Tcp1 | Self::Tcp8 => "Gbit/s",
            Self::UdpPps => "packets/s",
            Self::Rr => "round trips/s",
            Self::Crr => "connections/s",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Tcp1 => "tcp1",
            Self::Tcp8 => "tcp8",
            Self::UdpPps => "udp-pps",
            Self::Rr => "rr",
            Self::Crr => "crr",
        }
    }
}

impl Case {
    /// Every case, in the order of the report.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for reach in [Reach::Cross, Reach::Same] {
            for load in Load::ALL {
                all.push(Self {
                    reach,
                    load,
                    big: false,
                });
                if matches!(load, Load::Tcp1 | Load::Tcp8) {
                    all.push(Self {
                        reach,
                        load,
                        big: true,
                    });
                }
            }
        }
        all
    }

    /// The cases that `filters` name, or whose names contain one of them that is no case's whole name; all of them if there
    /// is no filter.
    pub fn select(filters: &[String]) -> Vec<Self> {
        let wanted = |case: &Self| {
            let name = case.to_string();
            let fits = |filter: &String| match filter.parse::<Self>() {
                Ok(one) => one == *case,
                Err(_) => name.contains(filter.as_str()),
            };
            filters.is_empty() || filters.iter().any(fits)
        };
        Self::all().into_iter().filter(wanted).collect()
    }

    /// The least ratio to a peer that the product promises, as far as it promises one.
    pub fn floor(self, peer: &str) -> Option<f64> {
        match (self.reach, peer) {
            (Reach::Same, "veth") => return (!self.big).then_some(0.95),
            (Reach::Same, "flannel") => return (!self.big).then_some(1.0),
            (Reach::Same, "flannel-kp") => return (!self.big).then_some(1.2),
            (Reach::Same, _) => return None,
            (Reach::Cross, _) => {}
        }
        let [host, flannel, flannel_kp] = match (self.load, self.big) {
            (Load::Tcp1, false) => [Some(0.78), Some(1.4), Some(1.65)],
            (Load::Tcp1, true) => [Some(1.25), None, Some(2.7)],
            (Load::Tcp8, false) => [Some(0.80), Some(1.35), Some(1.6)],
            (Load::Rr, false) => [Some(0.85), Some(1.3), Some(1.6)],
            (Load::Crr, false) => [Some(0.82), Some(1.4), Some(1.8)],
            (Load::UdpPps, false) => [Some(0.70), Some(1.6), Some(2.1)],
            (_, true) => [None; 3],
        };
        match peer {
            "host" => host,
            "flannel" => flannel,
            "flannel-kp" => flannel_kp,
            _ => None,
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reach = match self.reach {
            Reach::Same => "same-node",
            Reach::Cross => "cross-node",
        };
        let big = if self.big { "+big" } else { "" };
        write!(f, "{reach}/{}{big}", self.load.name())
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::all()
            .into_iter()
            .find(|case| case.to_string() == text)
            .ok_or_else(|| format!("there is no case {text}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_reads_as_it_is_written() {
        for case in Case::all() {
            assert_eq!(case.to_string().parse(), Ok(case));
        }
        assert_eq!(Case::all().len(), 14);
        assert_eq!(Case::select(&["same-node".to_owned()]).len(), 7);
        assert_eq!(Case::select(&["rr".to_owned()]).len(), 4);
        assert_eq!(Case::select(&["tcp1".to_owned()]).len(), 4);
        assert_eq!(Case::select(&["same-node/tcp1".to_owned()]).len(), 1);
        let case: Case = "cross-node/tcp1+big".parse().unwrap();
        assert_eq!(case.floor("flannel-kp"), Some(2.7));
        assert_eq!(case.floor("flannel"), None);
    }
}
