//! Volumes behind claims: what a claim comes to on this node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::{PersistentVolume, Pod, Volume};

use super::{VolumeError, directory, give_to_group, host_path, make_error};
use crate::{local_path, pods::environment::Sources};

/// The names of the claims behind a pod's volumes.
pub fn claims(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| claim_of(pod, volume)).collect()
}

/// The claim behind a volume; one that is made for the pod alone has a name made of the pod's.
pub(super) fn claim_of(pod: &Pod, volume: &Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref();
    named.map(|claim| claim.claim_name.clone()).or_else(|| {
        let pod = pod.metadata.name.as_deref().unwrap_or_default();
        volume
            .ephemeral
            .as_ref()
            .map(|_| format!("{pod}-{}", volume.name))
    })
}

/// What a claim comes to on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// There is no such claim.
    Absent,
    /// It has no volume yet.
    Unbound,
    /// A directory of the node.
    Directory {
        /// Where it is.
        path: PathBuf,
        /// Whether it is made here when it is first used.
        made_here: bool,
    },
    /// Any path of the node, with what it must be.
    HostPath {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        kind: String,
    },
    /// This persistent volume is of another kind.
    NotOffered(String),
}

impl Claimed {
    /// What a bound volume is; `made_in` is where this node makes directories for volumes.
    pub fn by(volume: &PersistentVolume, made_in: &Path) -> Self {
        let name = volume.metadata.name.clone().unwrap_or_default();
        let annotations = volume.metadata.annotations.as_ref();
        let provisioned = annotations.and_then(|all| all.get("pv.kubernetes.io/provisioned-by"));
        let Some(spec) = &volume.spec else {
            return Self::NotOffered(name);
        };
        if let Some(local) = &spec.local {
            let path = PathBuf::from(&local.path);
            let ours = provisioned.is_some_and(|by| by == local_path::PROVISIONER);
            let made_here = ours && path == made_in.join(&name);
            return Self::Directory { path, made_here };
        }
        match &spec.host_path {
            Some(host) => Self::HostPath {
                path: PathBuf::from(&host.path),
                kind: host.type_.clone().unwrap_or_default(),
            },
            None => Self::NotOffered(name),
        }
    }
}

/// Where a claim's volume is on the node.
pub(super) fn claimed(
    pod: &Pod,
    volume: &str,
    claim: String,
    sources: &Sources,
) -> Result<PathBuf, VolumeError> {
    let volume_name = || volume.to_owned();
    match sources.claims.get(&claim).unwrap_or(&Claimed::Absent) {
        Claimed::Absent => Err(VolumeError::NoObject {
            volume: volume_name(),
            what: "persistentvolumeclaim",
            name: claim,
        }),
        Claimed::Unbound => Err(VolumeError::Unbound {
            volume: volume_name(),
            claim,
        }),
        Claimed::NotOffered(persistent) => Err(VolumeError::Persistent {
            volume: volume_name(),
            persistent: persistent.clone(),
        }),
        Claimed::Directory { path, made_here } => {
            if *made_here {
                directory(volume, path, 0o777)?;
            }
            host_path(volume, path, "Directory")?;
            give_to_group(pod, volume, path)?;
            Ok(path.clone())
        }
        Claimed::HostPath { path, kind } => {
            host_path(volume, path, kind)?;
            Ok(path.clone())
        }
    }
}

/// Notes in the pod's directory where a volume is.
pub(super) fn remember(volume: &str, own: &Path, path: &Path) -> Result<(), VolumeError> {
    if fs::read_link(own).is_ok_and(|known| known == path) {
        return Ok(());
    }
    if let Some(parent) = own.parent() {
        directory(volume, parent, 0o755)?;
    }
    match fs::remove_file(own) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(make_error(volume, own, error)),
        Ok(()) | Err(_) => {}
    }
    std::os::unix::fs::symlink(path, own).map_err(|source| make_error(volume, own, source))
}
