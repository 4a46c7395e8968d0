//! Containers' output as log files in the form that log collectors know from the container runtime interface:
//! `<RFC 3339 time> <stream> <F|P> <text>`.

use std::{
    cell::RefCell,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    rc::Rc,
};

use jiff::Timestamp;
use tokio::{io::AsyncReadExt, net::unix::pipe};

/// A line longer than this is written in pieces, all but the last marked `P`.
const MAX_PIECE_BYTES: usize = 16 * 1024;

/// The stream that a line came from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A log file of bounded size: when it is full it is renamed to `<name>.1`, replacing the one before.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path, max_bytes: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let bytes = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            bytes,
            max_bytes,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + line.len() as u64 > self.max_bytes {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            std::fs::rename(&self.path, old)?;
            *self = Self::open(&self.path, self.max_bytes)?;
        }
        self.file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

/// Cuts a stream of bytes into lines and pieces of lines.
#[derive(Debug, Default)]
struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Takes bytes, and calls `emit` with each piece and whether it ends its line.
    fn feed(&mut self, bytes: &[u8], mut emit: impl FnMut(&[u8], bool)) {
        for part in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            self.pending.extend_from_slice(text);
            while self.pending.len() > MAX_PIECE_BYTES {
                let rest = self.pending.split_off(MAX_PIECE_BYTES);
                emit(&self.pending, false);
                self.pending = rest;
            }
            if ends {
                emit(&self.pending, true);
                self.pending.clear();
            }
        }
    }

    /// Ends the stream: what is left has no end of line.
    fn finish(self, emit: impl FnOnce(&[u8], bool)) {
        if !self.pending.is_empty() {
            emit(&self.pending, false);
        }
    }
}

fn format_line(now: Timestamp, stream: Stream, text: &[u8], full: bool) -> Vec<u8> {
    let tag = if full { 'F' } else { 'P' };
    let mut line = format!("{now:.9} {} {tag} ", stream.name()).into_bytes();
    line.extend_from_slice(text);
    line.push(b'\n');
    line
}

/// Copies a container's stream into its log until the last writer is gone.
///
/// A log that cannot be written must not stop the container, so its output is read and lost then.
pub(super) async fn copy(mut from: pipe::Receiver, stream: Stream, log: Rc<RefCell<LogFile>>) {
    let mut lines = Lines::default();
    let mut buffer = vec![0; MAX_PIECE_BYTES];
    let emit = |text: &[u8], full: bool| {
        let line = format_line(Timestamp::now(), stream, text, full);
        if let Err(error) = log.borrow_mut().write(&line) {
            tracing::warn!(%error, "a line of the container's output is lost");
        }
    };
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(read) => lines.feed(&buffer[..read], emit),
            Err(error) => {
                tracing::warn!(%error, "reading the container's output");
                break;
            }
        }
    }
    lines.finish(emit);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(chunks: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut lines = Lines::default();
        let mut out = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, |text, full| out.push((text.to_vec(), full)));
        }
        lines.finish(|text, full| out.push((text.to_vec(), full)));
        out
    }

    #[test]
    fn lines_do_not_depend_on_how_they_are_read() {
        let expected = vec![
            (b"one".to_vec(), true),
            (b"".to_vec(), true),
            (b"three".to_vec(), false),
        ];
        assert_eq!(pieces(&[b"one\n\nthree"]), expected);
        assert_eq!(pieces(&[b"o", b"ne", b"\n", b"\nth", b"ree"]), expected);
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; MAX_PIECE_BYTES * 2 + 5];
        let got = pieces(&[&long, b"\n"]);
        let shape: Vec<_> = got.iter().map(|(text, full)| (text.len(), *full)).collect();
        assert_eq!(
            shape,
            [(MAX_PIECE_BYTES, false), (MAX_PIECE_BYTES, false), (5, true)]
        );
    }

    #[test]
    fn the_format_is_what_collectors_expect() {
        let now: Timestamp = "2026-01-02T03:04:05.000000006Z".parse().unwrap();
        assert_eq!(
            format_line(now, Stream::Stderr, b"hello", true),
            b"2026-01-02T03:04:05.000000006Z stderr F hello\n"
        );
    }

    #[test]
    fn a_full_log_is_rotated_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::open(&path, 100).unwrap();
        for _ in 0..50 {
            log.write(&[b'x'; 40]).unwrap();
        }
        assert!(std::fs::metadata(&path).unwrap().len() <= 100);
        assert!(std::fs::metadata(dir.path().join("0.log.1")).unwrap().len() <= 100);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
