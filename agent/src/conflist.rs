//! What makes container runtimes call the plugin: the CNI configuration and the plugin's program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::json;
use weft_cni::protocol::PLUGIN_TYPE;

use crate::whole_file;

/// The name of the configuration's file; runtimes take the first by name.
pub const FILE_NAME: &str = "10-weft.conflist";
/// The name of the network.
pub const NETWORK: &str = "weft";

/// Why the plugin cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("{path} cannot be {verb}")]
pub struct InstallError {
    /// Which file.
    pub path: PathBuf,
    /// What was tried.
    pub verb: &'static str,
    /// Why.
    pub source: io::Error,
}

pub(crate) fn failed(path: &Path, verb: &'static str) -> impl FnOnce(io::Error) -> InstallError + use<> {
    let path = path.to_owned();
    move |source| InstallError { path, verb, source }
}

/// Writes a file and the directories above it, unless it holds this already. Whether it did not.
pub(crate) fn write_if_changed(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed(dir, "made"))?;
    }
    whole_file::replace_if_changed(path, content, mode).map_err(failed(path, "written"))
}

/// Puts the configuration into a directory.
pub fn install(dir: &Path, version: &str, socket: &Path, queue_dir: &Path) -> Result<bool, InstallError> {
    let document = json!({
        "cniVersion": version,
        "name": NETWORK,
        "plugins": [{
            "type": PLUGIN_TYPE,
            "agentSocket": socket,
            "queueDir": queue_dir,
        }],
    });
    let mut text = format!("{document:#}");
    text.push('\n');
    write_if_changed(&dir.join(FILE_NAME), text.as_bytes(), 0o644)
}

/// Puts the plugin, which is beside this program, into a directory.
pub fn install_plugin(dir: &Path) -> Result<bool, InstallError> {
    let program = std::env::current_exe().map_err(failed(Path::new("/proc/self/exe"), "read"))?;
    let plugin = program.with_file_name(PLUGIN_TYPE);
    let content = fs::read(&plugin).map_err(failed(&plugin, "read"))?;
    write_if_changed(&dir.join(PLUGIN_TYPE), &content, 0o755)
}

/// Removes a file. One that is not there counts as removed.
pub(crate) fn remove_file(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path, "removed")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_written_once() {
        let dir = tempfile::tempdir().unwrap();
        let put = || {
            install(
                dir.path(),
                "1.0.0",
                Path::new("/run/weft/agent.sock"),
                Path::new("/q"),
            )
            .unwrap()
        };
        assert!(put());
        assert!(!put(), "unchanged");
        let text = fs::read_to_string(dir.path().join(FILE_NAME)).unwrap();
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["plugins"][0]["type"], "weft-cni");
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }
}
