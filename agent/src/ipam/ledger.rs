//! The leases on disk: a journal of what was given and freed since the boot.
//!
//! Each change is one appended line, which costs microseconds. Nothing is synced to the disk, and need not be: what is
//! written survives the death of the process at any moment, and when the kernel dies every pod dies with it. The boot id
//! in the first line tells the two apart; a journal of an earlier boot holds no lease. A line that was cut short by a
//! full disk fails the lease that it stands for, and is cut off before the next is written.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::BootTime;
use crate::endpoint::AttachmentKey;

/// Why the ledger could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("ledger {path} cannot be {verb}")]
pub struct LedgerError {
    path: PathBuf,
    verb: &'static str,
    source: io::Error,
}

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Line {
    /// The first line.
    Boot { id: String },
    /// An address was leased.
    Lease { ip: IpAddr, key: AttachmentKey },
    /// An address was freed, and rests until so many milliseconds after boot.
    Free { ip: IpAddr, rest_until_ms: u64 },
}

/// What the journal says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leases {
    /// Who has which address.
    pub held: BTreeMap<IpAddr, AttachmentKey>,
    /// When a freed address has rested.
    pub resting: BTreeMap<IpAddr, BootTime>,
}

impl Leases {
    fn apply(&mut self, line: Line) {
        match line {
            Line::Boot { .. } => {}
            Line::Lease { ip, key } => {
                self.resting.remove(&ip);
                self.held.insert(ip, key);
            }
            Line::Free { ip, rest_until_ms } => {
                self.held.remove(&ip);
                self.resting.insert(ip, Duration::from_millis(rest_until_ms));
            }
        }
    }
}

/// The open journal.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    boot_id: String,
    file: File,
    /// How many bytes of the file are whole lines.
    whole: u64,
    lines: usize,
    state: Leases,
}

/// A journal longer than this, and far longer than its content, is written anew.
const COMPACT_ABOVE_LINES: usize = 4096;

impl Ledger {
    /// Opens the journal at `path`; one of another boot is emptied.
    ///
    /// A line that makes no sense ends the reading: it can only be the last one, cut short.
    pub fn open(path: &Path, boot_id: &str, now: BootTime) -> Result<Self, LedgerError> {
        let failed = |verb| {
            move |source| LedgerError {
                path: path.to_owned(),
                verb,
                source,
            }
        };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read")(error)),
        };
        let mut state = read(&text, boot_id);
        state.resting.retain(|_, end| *end > now);
        let (file, whole) = rewrite(path, boot_id, &state).map_err(failed("written"))?;
        let lines = state.held.len() + state.resting.len() + 1;
        Ok(Self {
            path: path.to_owned(),
            boot_id: boot_id.to_owned(),
            file,
            whole,
            lines,
            state,
        })
    }

    /// What the journal says.
    pub fn leases(&self) -> &Leases {
        &self.state
    }

    /// Notes that an attachment has these addresses.
    pub fn lease(&mut self, key: &AttachmentKey, ips: &[IpAddr], now: BootTime) -> Result<(), LedgerError> {
        self.append(
            ips.iter()
                .map(|ip| Line::Lease {
                    ip: *ip,
                    key: key.clone(),
                })
                .collect(),
            now,
        )
    }

    /// Notes that these addresses are free, and rest until `rest_until`.
    pub fn free(&mut self, ips: &[IpAddr], rest_until: BootTime, now: BootTime) -> Result<(), LedgerError> {
        let rest_until_ms = u64::try_from(rest_until.as_millis()).unwrap_or(u64::MAX);
        self.append(
            ips.iter()
                .map(|ip| Line::Free {
                    ip: *ip,
                    rest_until_ms,
                })
                .collect(),
            now,
        )
    }

    fn append(&mut self, lines: Vec<Line>, now: BootTime) -> Result<(), LedgerError> {
        let mut text = String::new();
        for line in &lines {
            push(&mut text, line);
        }
        let failed = |source| LedgerError {
            path: self.path.clone(),
            verb: "written",
            source,
        };
        let cut_off = self.file.set_len(self.whole);
        cut_off
            .and_then(|()| self.file.write_all(text.as_bytes()))
            .map_err(failed)?;
        self.whole += text.len() as u64;
        self.lines += lines.len();
        for line in lines {
            self.state.apply(line);
        }
        let content = self.state.held.len() + self.state.resting.len();
        if self.lines > COMPACT_ABOVE_LINES.max(4 * content) {
            self.state.resting.retain(|_, end| *end > now);
            (self.file, self.whole) = rewrite(&self.path, &self.boot_id, &self.state).map_err(failed)?;
            self.lines = self.state.held.len() + self.state.resting.len() + 1;
        }
        Ok(())
    }
}

/// Reads the journal at `path` without changing it. One of another boot is empty.
pub fn inspect(path: &Path, boot_id: &str) -> Result<Leases, LedgerError> {
    fs::read_to_string(path)
        .map(|text| read(&text, boot_id))
        .map_err(|source| LedgerError {
            path: path.to_owned(),
            verb: "read",
            source,
        })
}

fn read(text: &str, boot_id: &str) -> Leases {
    let mut lines = text
        .lines()
        .map_while(|line| serde_json::from_str::<Line>(line).ok());
    let mut leases = Leases::default();
    if matches!(lines.next(), Some(Line::Boot { id }) if id == boot_id) {
        lines.for_each(|line| leases.apply(line));
    }
    leases
}

fn push(text: &mut String, line: &Line) {
    // Strings and numbers always have a JSON form.
    if let Ok(json) = serde_json::to_string(line) {
        text.push_str(&json);
        text.push('\n');
    }
}

/// Writes the journal anew beside the old one, then puts it in its place: a crash leaves one or the other. Returns it, and how
/// long it is.
fn rewrite(path: &Path, boot_id: &str, state: &Leases) -> io::Result<(File, u64)> {
    let mut text = String::new();
    push(
        &mut text,
        &Line::Boot {
            id: boot_id.to_owned(),
        },
    );
    for (ip, key) in &state.held {
        push(
            &mut text,
            &Line::Lease {
                ip: *ip,
                key: key.clone(),
            },
        );
    }
    for (ip, end) in &state.resting {
        let rest_until_ms = u64::try_from(end.as_millis()).unwrap_or(u64::MAX);
        push(
            &mut text,
            &Line::Free {
                ip: *ip,
                rest_until_ms,
            },
        );
    }
    let beside = path.with_extension("new");
    fs::write(&beside, &text)?;
    let file = File::options().append(true).open(&beside)?;
    fs::rename(&beside, path)?;
    Ok((file, text.len() as u64))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    const BOOT: &str = "boot-a";

    fn key(number: u8) -> AttachmentKey {
        AttachmentKey::new(format!("c{number}"), "eth0")
    }

    fn ip(number: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, number])
    }

    fn now(seconds: u64) -> BootTime {
        Duration::from_secs(seconds)
    }

    #[test]
    fn leases_and_rests_survive_the_process() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut ledger = Ledger::open(&path, BOOT, now(0)).unwrap();
        ledger.lease(&key(1), &[ip(1)], now(0)).unwrap();
        ledger.lease(&key(2), &[ip(2)], now(0)).unwrap();
        ledger.free(&[ip(1)], now(40), now(10)).unwrap();
        drop(ledger);

        let ledger = Ledger::open(&path, BOOT, now(20)).unwrap();
        assert_eq!(ledger.leases().held, BTreeMap::from([(ip(2), key(2))]));
        assert_eq!(ledger.leases().resting, BTreeMap::from([(ip(1), now(40))]));
        drop(ledger);

        let ledger = Ledger::open(&path, BOOT, now(40)).unwrap();
        assert!(ledger.leases().resting.is_empty(), "it has rested");
    }

    #[test]
    fn a_reboot_empties_the_ledger() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ipam.journal");
        Ledger::open(&path, BOOT, now(0))
            .unwrap()
            .lease(&key(1), &[ip(1)], now(0))
            .unwrap();
        assert_eq!(
            *Ledger::open(&path, "boot-b", now(0)).unwrap().leases(),
            Leases::default()
        );
    }

    #[test]
    fn a_line_that_was_cut_short_hides_none_that_follows() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut ledger = Ledger::open(&path, BOOT, now(0)).unwrap();
        ledger.lease(&key(1), &[ip(1)], now(0)).unwrap();
        // As much as a full disk takes of a line.
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(br#"{"lease":{"ip":"10.0"#).unwrap();
        ledger.lease(&key(2), &[ip(2)], now(0)).unwrap();
        assert_eq!(
            inspect(&path, BOOT).unwrap().held,
            BTreeMap::from([(ip(1), key(1)), (ip(2), key(2))])
        );
    }

    #[test]
    fn a_long_journal_is_compacted() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("ipam.journal");
        let mut ledger = Ledger::open(&path, BOOT, now(0)).unwrap();
        for _ in 0..COMPACT_ABOVE_LINES {
            ledger.lease(&key(1), &[ip(1)], now(0)).unwrap();
            ledger.free(&[ip(1)], now(0), now(0)).unwrap();
        }
        ledger.lease(&key(2), &[ip(2)], now(0)).unwrap();
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines < COMPACT_ABOVE_LINES + 2, "{lines} lines");
        assert_eq!(
            inspect(&path, BOOT).unwrap().held,
            BTreeMap::from([(ip(2), key(2))])
        );
    }

    proptest! {
        /// A crash may leave any prefix of what was written.
        #[test]
        fn any_cut_of_the_journal_gives_a_state_that_was(changes in proptest::collection::vec((0_u8..4, any::<bool>()), 0..20), cut: proptest::sample::Index) {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("ipam.journal");
            let mut ledger = Ledger::open(&path, BOOT, now(0)).unwrap();
            let mut states = vec![ledger.leases().clone()];
            for (number, lease) in changes {
                if lease {
                    ledger.lease(&key(number), &[ip(number)], now(0)).unwrap();
                } else {
                    ledger.free(&[ip(number)], now(60), now(0)).unwrap();
                }
                states.push(ledger.leases().clone());
            }
            let bytes = fs::read(&path).unwrap();
            let header = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
            let length = header + cut.index(bytes.len() - header + 1);
            fs::write(&path, &bytes[..length]).unwrap();
            let found = Ledger::open(&path, BOOT, now(0)).unwrap();
            prop_assert!(states.contains(found.leases()));
        }
    }
}
