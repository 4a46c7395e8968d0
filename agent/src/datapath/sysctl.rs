//! Settings of the node's netns under `/proc/sys`, and what they were before.
//!
//! `/proc/sys/net` shows the netns of the thread that looks; all callers run in the node's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::whole_file;

const ROOT: &str = "/proc/sys";

/// Why a setting could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("setting {name} cannot be {verb}")]
pub struct SysctlError {
    name: String,
    verb: &'static str,
    source: io::Error,
}

/// The settings that were changed and their former values, kept in a file until [`Sysctls::restore`].
#[derive(Debug)]
pub struct Sysctls {
    record: PathBuf,
    former: BTreeMap<String, String>,
}

impl Sysctls {
    /// Reads the record of an earlier agent, if there is one.
    pub fn open(record: &Path) -> Self {
        let former = fs::read(record)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default();
        Self {
            record: record.to_owned(),
            former,
        }
    }

    /// Makes a setting what it must be. Whether it was not.
    ///
    /// The first value that was found is recorded before it is changed. One of a device that Weft makes need not be.
    pub fn ensure(&mut self, name: &str, wanted: &str, keep: Former) -> Result<bool, SysctlError> {
        let found = read(name)?;
        if found == wanted {
            return Ok(false);
        }
        if keep == Former::Recorded && !self.former.contains_key(name) {
            self.former.insert(name.to_owned(), found);
            self.save(name)?;
        }
        write(name, wanted)?;
        Ok(true)
    }

    /// Gives every setting its former value and removes the record.
    pub fn restore(self) -> Result<(), SysctlError> {
        for (name, value) in &self.former {
            write(name, value)?;
        }
        match fs::remove_file(&self.record) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(SysctlError {
                name: self.record.display().to_string(),
                verb: "removed",
                source,
            }),
            _ => Ok(()),
        }
    }

    fn save(&self, name: &str) -> Result<(), SysctlError> {
        let failed = |source| SysctlError {
            name: name.to_owned(),
            verb: "recorded",
            source,
        };
        let json = serde_json::to_vec(&self.former).map_err(|error| failed(error.into()))?;
        whole_file::replace(&self.record, &json, 0o644).map_err(failed)
    }
}

/// Whether the former value of a setting is to be given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Former {
    /// Written down.
    Recorded,
    /// Goes with the device that it is of.
    Dropped,
}

/// Reads a setting, named by its path under `/proc/sys`.
pub fn read(name: &str) -> Result<String, SysctlError> {
    fs::read_to_string(Path::new(ROOT).join(name))
        .map(|text| text.trim().to_owned())
        .map_err(|source| SysctlError {
            name: name.to_owned(),
            verb: "read",
            source,
        })
}

fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(Path::new(ROOT).join(name), value).map_err(|source| SysctlError {
        name: name.to_owned(),
        verb: "written",
        source,
    })
}

/// Whether the kernel has this setting.
pub fn exists(name: &str) -> bool {
    Path::new(ROOT).join(name).exists()
}
