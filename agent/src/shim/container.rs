//! Making and taking away one container by libcontainer.
//!
//! libcontainer changes the calling process (working directory, dumpable flag) and forks without telling anyone, which is
//! why it runs here, in a process of one thread, and not in the agent.

use std::{
    error::Error as _,
    ffi::OsString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::Command,
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    error::LibcontainerError,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorValidationError, default::get_executor},
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::protocol::{CreateContainer, Rootfs};

/// Why a container could not be made, started or taken away.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// A file or directory of it could not be used.
    #[error("{operation} {path}: {source}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its root file system could not be mounted.
    #[error("mounting the root file system: {0}")]
    Mount(nix::Error),
    /// The image has no layers.
    #[error("the image has no layers")]
    NoLayers,
    /// libcontainer refused.
    #[error("{}", chain(.0))]
    Runtime(#[from] LibcontainerError),
}

/// The causes of a libcontainer error, each said once.
fn chain(error: &LibcontainerError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Runs the container's program with the signals as a new program expects them: a Rust process ignores SIGPIPE, and what
/// is ignored stays so across exec.
#[derive(Clone)]
struct CleanExecutor;

impl Executor for CleanExecutor {
    fn exec(&self, spec: &oci_spec::runtime::Spec) -> Result<(), ExecutorError> {
        let args = spec
            .process()
            .as_ref()
            .and_then(|process| process.args().as_ref())
            .ok_or(ExecutorError::InvalidArg)?;
        let (program, rest) = args.split_first().ok_or(ExecutorError::InvalidArg)?;
        let error = Command::new(program).args(rest).exec();
        Err(ExecutorError::Execution(
            format!("executing {program}: {error}").into(),
        ))
    }

    fn validate(&self, spec: &oci_spec::runtime::Spec) -> Result<(), ExecutorValidationError> {
        get_executor().validate(spec)
    }
}

fn builder(id: &str, runtime_root: &Path) -> Result<ContainerBuilder, LibcontainerError> {
    ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .with_root_path(runtime_root)?
        .with_executor(CleanExecutor)
        .validate_id()
}

/// Makes a container that waits to be started.
pub(super) fn create(
    request: &CreateContainer,
    runtime_root: &Path,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
) -> Result<Container, ContainerError> {
    mount_rootfs(&request.rootfs)?;
    let made = builder(&request.id, runtime_root).and_then(|builder| {
        builder
            .with_stdin(stdin)
            .with_stdout(stdout)
            .with_stderr(stderr)
            .as_init(&request.bundle)
            .with_systemd(false)
            .with_detach(true)
            .build()
    });
    match made {
        Ok(container) => Ok(container),
        Err(error) => {
            let _ = unmount(&request.rootfs.merged);
            Err(error.into())
        }
    }
}

/// Starts a program in a running container; returns its process.
pub(super) fn exec(
    id: &str,
    args: Vec<String>,
    runtime_root: &Path,
    stdin: OwnedFd,
    output: OwnedFd,
) -> Result<i32, ContainerError> {
    let stderr = output.try_clone().map_err(|source| ContainerError::File {
        operation: "duplicating the output of",
        path: PathBuf::from(id),
        source,
    })?;
    let pid = builder(id, runtime_root)?
        .with_stdin(stdin)
        .with_stdout(output)
        .with_stderr(stderr)
        .as_tenant()
        .with_container_args(args)
        .with_detach(true)
        .build()?;
    Ok(pid.as_raw())
}

/// Takes away what was made for a container whose first process is gone: leftover processes, cgroup, root file system.
///
/// libcontainer's own `delete` is not used: it finds processes by number, and that of a reaped one may be another's.
pub(super) fn delete(rootfs: &Rootfs, cgroup: &str, runtime_dir: &Path) -> Result<(), ContainerError> {
    super::cgroup::remove(cgroup).map_err(|source| ContainerError::File {
        operation: "removing cgroup",
        path: PathBuf::from(cgroup),
        source,
    })?;
    unmount(&rootfs.merged).map_err(ContainerError::Mount)?;
    for path in [&rootfs.upper, &rootfs.work, &rootfs.merged, runtime_dir] {
        match fs::remove_dir_all(path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(ContainerError::File {
                    operation: "removing",
                    path: path.to_owned(),
                    source,
                });
            }
        }
    }
    Ok(())
}

fn mount_rootfs(rootfs: &Rootfs) -> Result<(), ContainerError> {
    let file = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ContainerError::File {
            operation,
            path,
            source,
        }
    };
    if rootfs.layers.is_empty() {
        return Err(ContainerError::NoLayers);
    }
    for path in [&rootfs.upper, &rootfs.work, &rootfs.merged] {
        fs::create_dir_all(path).map_err(file("making", path))?;
    }
    // Relative names keep the list within the page that the kernel takes.
    let lower: Vec<&str> = rootfs.layers.iter().rev().map(String::as_str).collect();
    let mut options = OsString::from("lowerdir=");
    options.push(lower.join(":"));
    for (name, path) in [("upperdir", &rootfs.upper), ("workdir", &rootfs.work)] {
        options.push(format!(",{name}="));
        options.push(escaped(path));
    }
    std::env::set_current_dir(&rootfs.layers_dir).map_err(file("entering", &rootfs.layers_dir))?;
    let mounted = mount(
        Some("overlay"),
        &rootfs.merged,
        Some("overlay"),
        MsFlags::empty(),
        Some(options.as_os_str()),
    );
    std::env::set_current_dir("/").map_err(file("entering", Path::new("/")))?;
    mounted.map_err(ContainerError::Mount)
}

/// A path as overlayfs takes it among its options.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::OsStringExt;

    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b',' | b':') {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

fn unmount(path: &Path) -> nix::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        // Not a mount point, or not there.
        Err(nix::Error::EINVAL | nix::Error::ENOENT) => Ok(()),
        answer => answer,
    }
}
