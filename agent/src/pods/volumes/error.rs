//! Why a container does not get its volumes, said so that the pod's author can mend it.

use std::{io, path::PathBuf};

/// Why a container does not get its volumes.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A kind of volume that this runtime does not have.
    #[error(
        "volume {0}: this runtime offers emptyDir, hostPath, configMap, secret, downwardAPI, projected and \
         persistentVolumeClaim volumes only"
    )]
    NotOffered(String),
    /// A memory-backed directory.
    #[error("volume {0}: this runtime does not offer emptyDir with medium Memory")]
    Memory(String),
    /// A way of mounting that this runtime does not have.
    #[error("mount {path}: this runtime does not offer {what}")]
    MountOption {
        /// Where it would be.
        path: String,
        /// What is not offered.
        what: &'static str,
    },
    /// A mount of a volume that the pod does not have.
    #[error("mount {path}: the pod has no volume {name}")]
    Unknown {
        /// Where it would be.
        path: String,
        /// The volume.
        name: String,
    },
    /// An object that a volume is made of is not there.
    #[error("volume {volume}: {what} {name} does not exist")]
    NoObject {
        /// The volume.
        volume: String,
        /// `config map` or `secret`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A claim has no volume yet.
    #[error("volume {volume}: persistentvolumeclaim {claim:?} is not bound")]
    Unbound {
        /// The volume.
        volume: String,
        /// The claim.
        claim: String,
    },
    /// A claim's volume is of a kind that this runtime does not have.
    #[error(
        "volume {volume}: this runtime offers persistent volumes of type local and hostPath; {persistent} is another"
    )]
    Persistent {
        /// The volume.
        volume: String,
        /// The persistent volume.
        persistent: String,
    },
    /// A key that a volume asks for is not there.
    #[error("volume {volume}: {what} {name} has no key {key:?}")]
    NoKey {
        /// The volume.
        volume: String,
        /// `config map` or `secret`.
        what: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field of the pod that cannot be a file.
    #[error("volume {volume}: field {field:?} is not offered by this runtime")]
    Field {
        /// The volume.
        volume: String,
        /// The field.
        field: String,
    },
    /// A path that leads out of its volume.
    #[error("volume {volume}: {path:?} leads out of it")]
    Escape {
        /// The volume.
        volume: String,
        /// The path.
        path: String,
    },
    /// The node's path is not what the volume says it is.
    #[error("volume {volume}: {path:?} on the node is not {wanted}")]
    HostPath {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// What it should be.
        wanted: String,
    },
    /// Files could not be made.
    #[error("volume {volume}: making {path:?}")]
    Make {
        /// The volume.
        volume: String,
        /// What was made.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}
