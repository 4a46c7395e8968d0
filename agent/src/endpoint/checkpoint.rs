//! What the agent writes down of each attachment, so that another agent can go on with it or undo it.
//!
//! Files are written beside and renamed. They are not synced: they must survive the process, not the kernel, since no
//! pod does. The boot id in each file tells a file of another boot.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Attached, AttachmentKey, PodRef};
use crate::{datapath::netns::NetnsId, whole_file};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("checkpoint {path} cannot be {verb}")]
pub struct CheckpointError {
    path: PathBuf,
    verb: &'static str,
    source: io::Error,
}

/// How far an attachment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Something of it may be in the kernel.
    Creating,
    /// All of it is.
    Ready,
}

/// All that is needed to mend or undo an attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The boot in which it was made.
    pub boot_id: String,
    /// How far it is.
    pub phase: Phase,
    /// The attachment.
    pub key: AttachmentKey,
    /// The pod it is for.
    pub pod: Option<PodRef>,
    /// The network of the runtime that asked.
    pub network: Option<String>,
    /// Where the netns was.
    pub netns: PathBuf,
    /// Which netns it was.
    pub netns_id: NetnsId,
    /// The MTU that was asked for.
    pub wanted_mtu: Option<u32>,
    /// Index of the pod's interface in it; 0 until it is made.
    pub pod_ifindex: u32,
    /// What was made.
    pub attached: Attached,
}

/// The directory of checkpoints.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    dir: PathBuf,
}

impl Checkpoints {
    /// Uses a directory, which is made if it is missing.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        fs::create_dir_all(dir).map_err(failed(dir, "written"))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Writes a checkpoint, or replaces it.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let path = self.path(&checkpoint.key);
        let json = serde_json::to_vec(checkpoint).map_err(|error| failed(&path, "written")(error.into()))?;
        whole_file::replace(&path, &json, 0o644).map_err(failed(&path, "written"))
    }

    /// Removes a checkpoint. One that is not there counts as removed.
    pub fn remove(&self, key: &AttachmentKey) -> Result<(), CheckpointError> {
        let path = self.path(key);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(&path, "removed")(error)),
            _ => Ok(()),
        }
    }

    /// All checkpoints, of whatever boot. A file that holds none is removed: it was never complete.
    pub fn load(&self) -> Result<Vec<Checkpoint>, CheckpointError> {
        let (checkpoints, others) = inspect(&self.dir)?;
        for path in others {
            fs::remove_file(&path).map_err(failed(&path, "removed"))?;
        }
        Ok(checkpoints)
    }

    fn path(&self, key: &AttachmentKey) -> PathBuf {
        self.dir.join(format!("{}.json", digest(key)))
    }
}

/// All checkpoints in the directory of an agent that may run, and the files that hold none.
pub fn inspect(dir: &Path) -> Result<(Vec<Checkpoint>, Vec<PathBuf>), CheckpointError> {
    let (mut checkpoints, mut others) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(failed(dir, "read"))? {
        let path = entry.map_err(failed(dir, "read"))?.path();
        let text = match fs::read(&path) {
            // Its attachment was deleted in this moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            text => text.map_err(failed(&path, "read"))?,
        };
        match serde_json::from_slice(&text) {
            Ok(checkpoint) if path.extension().is_some_and(|extension| extension == "json") => {
                checkpoints.push(checkpoint);
            }
            _ => others.push(path),
        }
    }
    Ok((checkpoints, others))
}

fn failed(path: &Path, verb: &'static str) -> impl FnOnce(io::Error) -> CheckpointError + use<> {
    let path = path.to_owned();
    move |source| CheckpointError { path, verb, source }
}

/// A name that fits a file and, cut, an interface.
fn digest(key: &AttachmentKey) -> String {
    let mut hash = Sha256::new();
    hash.update(&key.container_id);
    hash.update([0]);
    hash.update(&key.ifname);
    hex::encode(&hash.finalize()[..16])
}

/// The name of the node's end of an attachment's veth.
pub fn host_ifname(key: &AttachmentKey) -> String {
    format!("wv{}", &digest(key)[..12])
}
