use std::{
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use proptest::prelude::*;
use tar::{Builder, Header};

use super::*;

/// A layer of the given entries.
#[derive(Default)]
struct Layer(Vec<(String, EntryType, Vec<u8>, String)>);

impl Layer {
    fn file(self, path: &str, bytes: &[u8]) -> Self {
        self.entry(path, EntryType::Regular, bytes, "")
    }

    fn dir(self, path: &str) -> Self {
        self.entry(path, EntryType::Directory, b"", "")
    }

    fn link(self, path: &str, kind: EntryType, target: &str) -> Self {
        self.entry(path, kind, b"", target)
    }

    fn entry(mut self, path: &str, kind: EntryType, bytes: &[u8], target: &str) -> Self {
        self.0
            .push((path.to_owned(), kind, bytes.to_vec(), target.to_owned()));
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        for (path, kind, bytes, target) in &self.0 {
            let mut header = Header::new_ustar();
            // Set as bytes: the library's own setters refuse the paths that are tried here.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o640);
            header.set_uid(12);
            header.set_gid(34);
            header.set_mtime(1_000_000);
            header.set_size(bytes.len() as u64);
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            header.set_cksum();
            builder.append(&header, bytes.as_slice()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    /// Unpacks it into a directory beside which there is something that must not be touched.
    fn unpack(&self) -> (tempfile::TempDir, Result<(), LayerError>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let result = unpack(self.bytes().as_slice(), &dir.path().join("root"));
        assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        (dir, result)
    }
}

fn layer() -> Layer {
    Layer::default()
}

#[test]
fn entries_are_made_as_they_are_described() {
    let (dir, result) = layer()
        .dir("d/")
        .file("d/f", b"text")
        .file("deep/er/f", b"x")
        .link("d/s", EntryType::Symlink, "/etc/passwd")
        .link("h", EntryType::Link, "d/f")
        .entry("null", EntryType::Char, b"", "")
        .entry("pipe", EntryType::Fifo, b"", "")
        .unpack();
    result.unwrap();
    let root = dir.path().join("root");
    let file = fs::metadata(root.join("d/f")).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (12, 34, 0o640));
    assert_eq!((file.mtime(), file.nlink()), (1_000_000, 2));
    assert_eq!(fs::metadata(root.join("d")).unwrap().mtime(), 1_000_000);
    assert_eq!(fs::read_link(root.join("d/s")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::read(root.join("deep/er/f")).unwrap(), b"x");
    let null = fs::metadata(root.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), makedev(1, 3));
    assert!(fs::metadata(root.join("pipe")).unwrap().file_type().is_fifo());
}

#[test]
fn nothing_leads_out_of_the_layer() {
    for escape in [
        layer().file("../outside", b"x"),
        layer().file("a/../../outside", b"x"),
        layer().link("h", EntryType::Link, "../outside"),
        layer().link("h", EntryType::Link, "/../outside"),
        layer().dir("../new"),
        layer().file("..", b"x"),
        layer().file("../.wh.outside", b""),
    ] {
        let (_, result) = escape.unpack();
        assert!(matches!(result, Err(LayerError::Escape(_))), "{result:?}");
    }
}

#[test]
fn links_on_the_way_are_followed_inside_the_layer_only() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_owned();
    let (dir, result) = layer()
        .link("abs", EntryType::Symlink, &target)
        .file("abs/f", b"x")
        .link("up", EntryType::Symlink, "../../../..")
        .file("up/f", b"x")
        .link("real", EntryType::Symlink, "dir")
        .dir("dir")
        .file("real/f", b"x")
        .unpack();
    // A link that leads nowhere inside the layer is not replaced by a directory.
    assert!(result.is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    drop(dir);

    let (dir, result) = layer()
        .link("up", EntryType::Symlink, "../../../..")
        .file("up/f", b"x")
        .dir("dir")
        .link("real", EntryType::Symlink, "/dir")
        .file("real/f", b"y")
        .unpack();
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"x");
    assert_eq!(fs::read(root.join("dir/f")).unwrap(), b"y");
}

#[test]
fn the_last_entry_of_a_name_is_never_followed() {
    let (dir, result) = layer()
        .link("f", EntryType::Symlink, "../outside")
        .file("f", b"mine")
        .link("d", EntryType::Symlink, "..")
        .dir("d")
        .unpack();
    result.unwrap();
    let root = dir.path().join("root");
    assert_eq!(fs::read(root.join("f")).unwrap(), b"mine");
    assert!(fs::symlink_metadata(root.join("d")).unwrap().is_dir());
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let (dir, result) = layer()
        .file("gone/.wh.file", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"x")
        .file(".wh.replaced", b"")
        .dir("replaced")
        .dir("both")
        .file(".wh.both", b"")
        .file(".wh..wh.plnk", b"")
        .unpack();
    result.unwrap();
    let root = dir.path().join("root");
    let hidden = fs::symlink_metadata(root.join("gone/file")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
    for (path, opaque) in [
        ("gone", None),
        ("opaque", Some(b"y".to_vec())),
        ("replaced", Some(b"y".to_vec())),
        ("both", Some(b"y".to_vec())),
    ] {
        assert_eq!(
            xattr::get(root.join(path), OPAQUE_XATTR).unwrap(),
            opaque,
            "{path}"
        );
    }
    assert!(!root.join(".wh..wh.plnk").exists());
}

#[test]
fn a_layer_cannot_steer_overlayfs() {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Char);
    header.set_path("sneaky").unwrap();
    header.set_mode(0o600);
    header.set_size(0);
    header.set_device_major(0).unwrap();
    header.set_device_minor(0).unwrap();
    header.set_cksum();
    let mut builder = Builder::new(Vec::new());
    builder.append(&header, io::empty()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(builder.into_inner().unwrap().as_slice(), dir.path());
    assert!(matches!(result, Err(LayerError::BadEntry { .. })), "{result:?}");

    let mut builder = Builder::new(Vec::new());
    let attributes = [
        ("SCHILY.xattr.trusted.overlay.opaque", b"y".as_slice()),
        ("SCHILY.xattr.user.kept", b"v".as_slice()),
    ];
    builder.append_pax_extensions(attributes).unwrap();
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::Directory);
    header.set_path("d").unwrap();
    header.set_mode(0o755);
    header.set_size(0);
    header.set_cksum();
    builder.append(&header, io::empty()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    unpack(builder.into_inner().unwrap().as_slice(), dir.path()).unwrap();
    let path = dir.path().join("d");
    assert_eq!(xattr::get(&path, "trusted.overlay.opaque").unwrap(), None);
    assert_eq!(xattr::get(&path, "user.kept").unwrap(), Some(b"v".to_vec()));
}

#[test]
fn a_layer_that_ends_early_is_an_error() {
    let bytes = layer().file("f", &[7; 2000]).bytes();
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(&bytes[..1000], dir.path());
    assert!(matches!(result, Err(LayerError::Read(_))), "{result:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever a layer says, nothing beside its directory changes: `unpack` of the test's layer asserts it.
    #[test]
    fn no_layer_touches_what_is_outside(
        entries in prop::collection::vec(
            ("(\\.\\./|/|a/|b/|l/|\\./){0,4}(a|b|l|\\.\\.|outside|\\.wh\\.a|\\.wh\\.\\.wh\\.\\.opq)", 0_u8..6, "(\\.\\./|/|a/|l/){0,4}(a|b|l|\\.\\.|outside)?"),
            1..12,
        )
    ) {
        let mut made = layer();
        for (path, kind, target) in &entries {
            made = match kind {
                0 | 1 => made.file(path, b"x"),
                2 => made.dir(path),
                3 | 4 => made.link(path, EntryType::Symlink, target),
                _ => made.link(path, EntryType::Link, target),
            };
        }
        let _ = made.unpack();
    }
}
