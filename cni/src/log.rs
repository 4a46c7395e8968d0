//! The plugin's log: stderr, since stdout belongs to the result, and a file where the configuration names one.

use std::{
    fmt::Display,
    fs::OpenOptions,
    io::Write,
    path::PathBuf,
    process,
    str::FromStr,
    time::{SystemTime, UNIX_EPOCH},
};

/// How much is logged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What fails.
    Error,
    /// What is odd but works, such as a deletion that had to be queued.
    #[default]
    Warn,
    /// Each request.
    Info,
    /// Each step.
    Debug,
}

impl FromStr for Level {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "error" => Ok(Self::Error),
            "warn" => Ok(Self::Warn),
            "info" => Ok(Self::Info),
            "debug" => Ok(Self::Debug),
            _ => Err(()),
        }
    }
}

/// Where the log goes.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// What is below is not logged.
    pub level: Level,
    /// A file to append to, beside stderr.
    pub file: Option<PathBuf>,
    /// What each line starts with: the verb and the attachment.
    pub context: String,
}

impl Log {
    /// Logs one line. A log that cannot be written is no reason to fail a request.
    pub fn write(&self, level: Level, message: impl Display) {
        if level > self.level {
            return;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = match level {
            Level::Error => "error",
            Level::Warn => "warn",
            Level::Info => "info",
            Level::Debug => "debug",
        };
        let line = format!(
            "{}.{:03} weft-cni[{}] {name}: {}{message}\n",
            now.as_secs(),
            now.subsec_millis(),
            process::id(),
            self.context
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
        if let Some(path) = &self.file {
            let file = OpenOptions::new().create(true).append(true).open(path);
            let _ = file.and_then(|mut file| file.write_all(line.as_bytes()));
        }
    }
}
