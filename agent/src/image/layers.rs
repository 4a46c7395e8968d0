//! Layers unpacked for overlayfs.
//!
//! A layer comes from outside, so nothing in it may reach beyond the directory it is unpacked into. Every path is resolved
//! by the kernel with that directory as the root (`openat2`, `RESOLVE_IN_ROOT`), down to the parent; the last component is
//! then made relative to the parent's descriptor and never followed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, Permissions},
    io::{self, Read},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::PermissionsExt,
        },
    },
    path::{Component, Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::{
        stat::{
            FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstatat, makedev, mkdirat,
            mknodat, utimensat,
        },
        time::TimeSpec,
    },
    unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat},
};
use tar::{Archive, Entry, EntryType};

/// Marks a name that the layer takes away from those below.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// Marks a directory that hides those below.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// The aufs bookkeeping that old archives carry.
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// How overlayfs knows an opaque directory.
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// How PAX headers name extended attributes.
const PAX_XATTR_PREFIX: &str = "SCHILY.xattr.";
/// More entries than any image has; a bound on what one archive can make the node do.
const MAX_ENTRIES: u64 = 4_000_000;

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The stream is not a tar archive, or it ends early.
    #[error("reading the layer")]
    Read(#[source] io::Error),
    /// An entry's path or link target leads out of the layer.
    #[error("entry {0:?} leads out of the layer")]
    Escape(PathBuf),
    /// An entry has a path that no file can have.
    #[error("entry {path:?}: {reason}")]
    BadEntry {
        /// The path in the archive.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// The layer has more entries than are taken.
    #[error("the layer has more than {MAX_ENTRIES} entries")]
    TooManyEntries,
    /// The kernel refused to make an entry.
    #[error("making {path:?}")]
    Make {
        /// The path in the archive.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Unpacks a tar stream into `root`, an empty directory.
pub(super) fn unpack(source: impl Read, root: &Path) -> Result<(), LayerError> {
    let directory = File::open(root).map_err(at(Path::new("/")))?;
    let mut unpacker = Unpacker {
        root: OwnedFd::from(directory),
        directory_times: Vec::new(),
    };
    let mut archive = Archive::new(source);
    for (count, entry) in (0_u64..).zip(archive.entries().map_err(LayerError::Read)?) {
        if count >= MAX_ENTRIES {
            return Err(LayerError::TooManyEntries);
        }
        unpacker.entry(entry.map_err(LayerError::Read)?)?;
    }
    unpacker.set_directory_times()
}

struct Unpacker {
    root: OwnedFd,
    /// Times of directories, set last because making an entry changes its directory's.
    directory_times: Vec<(PathBuf, i64)>,
}

/// Where an entry goes: its directory, open, and its name in it.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Place {
    /// A path to the entry that only passes through the open directory.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.parent.as_raw_fd().to_string())
            .join(&self.name)
    }

    fn stat(&self) -> nix::Result<Option<FileStat>> {
        match fstatat(&self.parent, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Unpacker {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<(), LayerError> {
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(());
        }
        let original = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
        let path = inside(&original)?;
        let Some(name) = path.file_name() else {
            return self.root_entry(&original, &entry);
        };
        let name_bytes = name.as_bytes();
        if name_bytes == OPAQUE_MARKER {
            let parent = path.parent().unwrap_or(Path::new(""));
            return self
                .directory(parent)
                .and_then(|fd| set_xattr(&fd_path(&fd), OPAQUE_XATTR, b"y"))
                .map_err(at(&original));
        }
        if name_bytes.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        if let Some(hidden) = name_bytes.strip_prefix(WHITEOUT_PREFIX) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(LayerError::BadEntry {
                    path: original,
                    reason: "a whiteout must name a file",
                });
            }
            let place = self
                .place(&path.with_file_name(OsStr::from_bytes(hidden)))
                .map_err(at(&original))?;
            return whiteout(&place).map_err(at(&original));
        }
        let place = self.place(&path).map_err(at(&original))?;
        self.make(kind, &mut entry, &place, &original)?;
        finish(&mut entry, kind, &place).map_err(at(&original))?;
        if kind.is_dir() {
            let mtime = i64::try_from(entry.header().mtime().unwrap_or(0)).unwrap_or(0);
            self.directory_times.push((path, mtime));
        }
        Ok(())
    }

    /// The archive's entry for the root itself.
    fn root_entry(&mut self, original: &Path, entry: &Entry<'_, impl Read>) -> Result<(), LayerError> {
        if !entry.header().entry_type().is_dir() {
            return Err(LayerError::BadEntry {
                path: original.to_owned(),
                reason: "the root must be a directory",
            });
        }
        let mode = entry.header().mode().map_err(LayerError::Read)? & 0o7777;
        fs::set_permissions(fd_path(&self.root), Permissions::from_mode(mode)).map_err(at(original))
    }

    fn make(
        &self,
        kind: EntryType,
        entry: &mut Entry<'_, impl Read>,
        place: &Place,
        original: &Path,
    ) -> Result<(), LayerError> {
        let bad = |reason| LayerError::BadEntry {
            path: original.to_owned(),
            reason,
        };
        let made = at(original);
        let hides_below = clear(place, kind.is_dir()).map_err(made)?;
        let name = place.name.as_os_str();
        match kind {
            EntryType::Directory => {
                match mkdirat(&place.parent, name, Mode::S_IRWXU) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(error) => return Err(made(error.into())),
                }
                if hides_below {
                    set_xattr(&place.path(), OPAQUE_XATTR, b"y").map_err(made)?;
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags =
                    OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let file = openat(&place.parent, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)
                    .map_err(|error| made(error.into()))?;
                let expected = entry.size();
                let written = io::copy(entry, &mut File::from(file)).map_err(LayerError::Read)?;
                if written == expected || kind == EntryType::GNUSparse {
                    Ok(())
                } else {
                    Err(LayerError::Read(io::ErrorKind::UnexpectedEof.into()))
                }
            }
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| bad("a symbolic link without a target"))?;
                // Its target is a text that only the container's root gives a meaning, so any is taken.
                symlinkat(OsStr::from_bytes(&target), &place.parent, name).map_err(|error| made(error.into()))
            }
            EntryType::Link => {
                let target = entry
                    .link_name_bytes()
                    .ok_or_else(|| bad("a hard link without a target"))?;
                let target = inside(Path::new(OsStr::from_bytes(&target)))?;
                let source = self.place(&target).map_err(made)?;
                linkat(
                    &source.parent,
                    source.name.as_os_str(),
                    &place.parent,
                    name,
                    AtFlags::empty(),
                )
                .map_err(|error| made(error.into()))
            }
            EntryType::Char | EntryType::Block => {
                let number = |n: io::Result<Option<u32>>| n.ok().flatten().map(u64::from);
                let (Some(major), Some(minor)) = (
                    number(entry.header().device_major()),
                    number(entry.header().device_minor()),
                ) else {
                    return Err(bad("a device without numbers"));
                };
                if (major, minor) == (0, 0) {
                    return Err(bad("device 0:0 is overlayfs' whiteout"));
                }
                let flag = if kind == EntryType::Char {
                    SFlag::S_IFCHR
                } else {
                    SFlag::S_IFBLK
                };
                mknodat(&place.parent, name, flag, Mode::S_IRUSR, makedev(major, minor))
                    .map_err(|error| made(error.into()))
            }
            EntryType::Fifo => mknodat(&place.parent, name, SFlag::S_IFIFO, Mode::S_IRUSR, 0)
                .map_err(|error| made(error.into())),
            _ => Err(bad("an entry of an unknown type")),
        }
    }

    /// Opens the directory at `path`, which has no `..`, making what is missing.
    fn directory(&self, path: &Path) -> io::Result<OwnedFd> {
        let how = || {
            OpenHow::new()
                .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
                .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS)
        };
        let target = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        match openat2(&self.root, target, how()) {
            Err(Errno::ENOENT) if !path.as_os_str().is_empty() => {}
            answer => return Ok(answer?),
        }
        let parent = self.directory(path.parent().unwrap_or(Path::new("")))?;
        if let Some(name) = path.file_name() {
            match mkdirat(&parent, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(openat2(&self.root, target, how())?)
    }

    fn place(&self, path: &Path) -> io::Result<Place> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(Place {
            parent: self.directory(path.parent().unwrap_or(Path::new("")))?,
            name: name.to_owned(),
        })
    }

    fn set_directory_times(self) -> Result<(), LayerError> {
        for (path, mtime) in self.directory_times.iter().rev() {
            let place = self.place(path).map_err(at(path))?;
            match place.stat().map_err(|error| at(path)(error.into()))? {
                Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => {
                    set_time(&place, *mtime).map_err(at(path))?;
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }
}

/// The entry's path relative to the layer's root.
fn inside(path: &Path) -> Result<PathBuf, LayerError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(LayerError::Escape(path.to_owned())),
        }
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(LayerError::BadEntry {
            path: path.to_owned(),
            reason: "a path may not contain a zero byte",
        });
    }
    Ok(clean)
}

/// Takes away what an earlier entry of this layer left at the place, and says whether that was a whiteout.
fn clear(place: &Place, for_directory: bool) -> io::Result<bool> {
    let Some(stat) = place.stat()? else {
        return Ok(false);
    };
    if is_kind(&stat, SFlag::S_IFDIR) {
        if !for_directory {
            fs::remove_dir_all(place.path())?;
        }
        return Ok(false);
    }
    unlinkat(&place.parent, place.name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
    Ok(is_whiteout(&stat))
}

/// Hides the name from the layers below, in the way overlayfs knows.
fn whiteout(place: &Place) -> io::Result<()> {
    match place.stat()? {
        // The same layer has the name: it hides what is below anyway, and a directory hides it when opaque.
        Some(stat) if is_kind(&stat, SFlag::S_IFDIR) => set_xattr(&place.path(), OPAQUE_XATTR, b"y"),
        Some(_) => Ok(()),
        None => Ok(mknodat(
            &place.parent,
            place.name.as_os_str(),
            SFlag::S_IFCHR,
            Mode::empty(),
            0,
        )?),
    }
}

/// Owner, mode, attributes and times; the owner first, for changing it clears set-user-id and capabilities.
fn finish(entry: &mut Entry<'_, impl Read>, kind: EntryType, place: &Place) -> io::Result<()> {
    if kind == EntryType::Link {
        return Ok(());
    }
    let fields = entry.header().as_old();
    let uid = owner(entry.header().uid(), &fields.uid)?;
    let gid = owner(entry.header().gid(), &fields.gid)?;
    let name = place.name.as_os_str();
    fchownat(
        &place.parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )?;
    if kind != EntryType::Symlink {
        let mode = Mode::from_bits_truncate(entry.header().mode()? & 0o7777);
        fchmodat(&place.parent, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            let Some(attribute) = extension
                .key()
                .ok()
                .and_then(|k| k.strip_prefix(PAX_XATTR_PREFIX))
            else {
                continue;
            };
            // `trusted.overlay.*` would steer overlayfs itself.
            if attribute.starts_with("trusted.") {
                continue;
            }
            if let Err(error) = set_xattr(&place.path(), attribute, extension.value_bytes()) {
                tracing::debug!(%error, attribute, "extended attribute left out");
            }
        }
    }
    if kind.is_dir() {
        return Ok(());
    }
    let mtime = entry.header().mtime().unwrap_or(0);
    set_time(place, i64::try_from(mtime).unwrap_or(0))
}

/// A user or group number; some writers leave the field blank and mean root.
fn owner(number: io::Result<u64>, field: &[u8]) -> io::Result<u32> {
    match number {
        Ok(number) => u32::try_from(number).map_err(io::Error::other),
        Err(_) if field.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
        Err(error) => Err(error),
    }
}

fn set_time(place: &Place, mtime: i64) -> io::Result<()> {
    let time = TimeSpec::new(mtime, 0);
    Ok(utimensat(
        &place.parent,
        place.name.as_os_str(),
        &time,
        &time,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    xattr::set(path, name, value)
}

fn fd_path(fd: &impl AsFd) -> PathBuf {
    // The dot: a path that ended in the magic link would name the link to calls that do not follow.
    PathBuf::from(format!("/proc/self/fd/{}/.", fd.as_fd().as_raw_fd()))
}

fn is_kind(stat: &FileStat, kind: SFlag) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == kind.bits()
}

fn is_whiteout(stat: &FileStat) -> bool {
    is_kind(stat, SFlag::S_IFCHR) && stat.st_rdev == 0
}

fn at(path: &Path) -> impl Fn(io::Error) -> LayerError + Copy + '_ {
    move |source| LayerError::Make {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
