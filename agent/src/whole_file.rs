//! Files that are there whole or as they were before, whoever reads them and whenever.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Puts a new file in the place of one that may be there. Whoever has the old one open, or mounted, keeps it as it was.
///
/// It survives a crash of the program; a loss of power may leave it empty. Two writers of one path get in each other's way.
///
/// # Errors
/// If it, or `<path>.new` beside it, cannot be written.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    replace_by(Path::new(&beside), path, content, mode)
}

/// [`replace`], by the file `beside`, which must be on the same file system.
///
/// # Errors
/// As of [`replace`].
pub fn replace_by(beside: &Path, path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(beside)?;
    // The umask took its part of the mode; a file that a crash left has another one.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content)?;
    fs::rename(beside, path)
}

/// [`replace`], unless the file holds this already. Whether it did not.
///
/// # Errors
/// As of [`replace`].
pub fn replace_if_changed(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    if fs::read(path).is_ok_and(|found| found == content) {
        return Ok(false);
    }
    replace(path, content, mode)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::MetadataExt as _};

    use super::*;

    #[test]
    fn a_reader_keeps_the_file_that_it_has_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        replace(&path, b"before", 0o600).unwrap();
        let mut reader = fs::File::open(&path).unwrap();
        assert!(replace_if_changed(&path, b"after", 0o666).unwrap());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "before");
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o666);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_there_already_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        assert!(replace_if_changed(&path, b"text", 0o644).unwrap());
        let inode = path.metadata().unwrap().ino();
        assert!(!replace_if_changed(&path, b"text", 0o644).unwrap());
        assert_eq!(path.metadata().unwrap().ino(), inode);
    }
}
