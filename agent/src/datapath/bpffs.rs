//! The BPF file system in which programs' links and maps outlive the agent.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

/// Why there is no BPF file system.
#[derive(Debug, thiserror::Error)]
#[error("bpffs {path} cannot be {verb}")]
pub struct BpffsError {
    path: PathBuf,
    verb: &'static str,
    source: io::Error,
}

fn failed(path: &Path, verb: &'static str) -> impl FnOnce(io::Error) -> BpffsError + use<> {
    let path = path.to_owned();
    move |source| BpffsError { path, verb, source }
}

fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BPF_FS_MAGIC)
}

/// Makes sure that there is a BPF file system at `path`. Whether it had to be mounted.
pub fn ensure(path: &Path) -> Result<bool, BpffsError> {
    fs::create_dir_all(path).map_err(failed(path, "made"))?;
    if is_bpffs(path).map_err(failed(path, "looked at"))? {
        return Ok(false);
    }
    mount(
        Some("weft"),
        path,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| failed(path, "mounted")(errno.into()))?;
    Ok(true)
}

/// Takes away what [`ensure`] made: the mount if there is one, and the directory.
pub fn remove(path: &Path) -> Result<(), BpffsError> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not mounted here: a directory of another BPF file system, or nothing.
        Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
        Err(errno) => return Err(failed(path, "unmounted")(errno.into())),
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(path, "removed")(error)),
        _ => Ok(()),
    }
}
