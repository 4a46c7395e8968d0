//! What the demo prints: titles, notes and progress; colours only on a terminal.

use std::io::IsTerminal as _;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

/// A step that takes longer than this says how long it has taken, again and again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where the demo is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    is_coloured: bool,
}

impl Screen {
    /// Standard output.
    pub(super) fn new() -> Self {
        let is_coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { is_coloured }
    }

    /// Begins a part.
    pub(super) fn title(self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    /// Says that something held.
    pub(super) fn good(self, text: &str) {
        println!("  {} {text}", self.paint("32", "✓"));
    }

    /// Says a detail.
    pub(super) fn note(self, text: &str) {
        println!("    {}", self.paint("2", text));
    }

    /// Prints a line of a table.
    #[expect(clippy::unused_self, reason = "all printing goes through the screen")]
    pub(super) fn plain(self, text: &str) {
        println!("    {text}");
    }

    /// Does `work`, saying what it is and, if it takes long, for how long it has been at it.
    pub(super) fn during<T>(self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("  • {what}");
        let (done, is_done) = mpsc::channel::<()>();
        let screen = self;
        let start = Instant::now();
        let ticker = thread::spawn(move || {
            while let Err(mpsc::RecvTimeoutError::Timeout) = is_done.recv_timeout(PATIENCE) {
                screen.note(&format!("… {:.0} s", start.elapsed().as_secs_f64()));
            }
        });
        let result = work();
        drop(done);
        let _ = ticker.join();
        result
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.is_coloured {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}
