//! The store: what is on disk, and how it gets there whole or not at all.
//!
//! ```text
//! blobs/sha256/<hex>   manifests and configurations, named by digest
//! layers/<id>/         layers, unpacked for overlayfs, named by the beginning of their diff id
//! refs.json            name → image; replaced by rename, so that a reader sees the old or the new table
//! tmp/                 what is being made; emptied by whoever holds the lock
//! lock                 held by the one that writes
//! ```
//!
//! Layers' blobs are not kept: what runs is the unpacked layer, and its digest was checked on the way.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, BufReader, Read, Write},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{
    ImageError,
    archive::{ArchivedImage, ArchivedLayer, ImageArchive},
    digest::{Digest, DigestingReader},
    layers,
    reference::Reference,
};

/// Digits of the diff id that name a layer's directory: enough to never collide, and short, for overlayfs takes all lower
/// directories in one page.
const LAYER_NAME_DIGITS: usize = 26;

/// An image store on disk. Opening it costs nothing; all methods read what is there.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// One line of the table of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The digest of the manifest.
    pub manifest: Digest,
    /// The digest of the configuration: the image's id.
    pub config: Digest,
    /// When it was loaded, seconds since the epoch.
    pub loaded_at: i64,
}

/// An image that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The name it was found under.
    pub reference: Reference,
    /// What the store knows of it.
    pub record: ImageRecord,
    /// How it wants to be run.
    pub run: RunConfig,
    /// The directory that holds the layers.
    pub layers_dir: PathBuf,
    /// The layers' names in it, the lowest first.
    pub layers: Vec<String>,
}

/// The part of an image's configuration that says how to run it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// `user[:group]`, names or numbers.
    #[serde(deserialize_with = "null_default")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_default")]
    pub env: Vec<String>,
    /// The program.
    #[serde(deserialize_with = "null_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, or the program where there is no entry point.
    #[serde(deserialize_with = "null_default")]
    pub cmd: Vec<String>,
    /// Where it starts.
    #[serde(deserialize_with = "null_default")]
    pub working_dir: String,
    /// What asks it to end.
    #[serde(deserialize_with = "null_default")]
    pub stop_signal: String,
}

fn null_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

#[derive(Debug, Deserialize)]
struct ConfigDocument {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

type Table = BTreeMap<Reference, ImageRecord>;

/// Holds the store for writing.
struct WriteLock {
    _file: Flock<File>,
}

impl Store {
    /// The store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Loads all images of an archive and returns the names they got.
    ///
    /// `name` names the archive's only image; without it, the archive's own names are used.
    pub fn load(
        &self,
        archive: &Path,
        name: Option<&str>,
    ) -> Result<Vec<(Reference, ImageRecord)>, ImageError> {
        let archive = ImageArchive::open(archive)?;
        let images = archive.images()?;
        let names = images
            .iter()
            .map(|image| names(image, name, images.len()))
            .collect::<Result<Vec<_>, _>>()?;

        let _lock = self.lock()?;
        let mut loaded = Vec::new();
        for (image, names) in images.iter().zip(names) {
            let record = self.add(&archive, image)?;
            loaded.extend(names.into_iter().map(|name| (name, record.clone())));
        }
        // Content is on disk before a name points at it.
        self.sync()?;
        let mut table = self.table()?;
        table.extend(loaded.iter().cloned());
        let text = serde_json::to_vec_pretty(&table).map_err(|source| ImageError::Table {
            path: self.refs_path(),
            source,
        })?;
        self.write_whole(&self.refs_path(), &text)?;
        Ok(loaded)
    }

    /// The images by name.
    pub fn list(&self) -> Result<Vec<(Reference, ImageRecord)>, ImageError> {
        Ok(self.table()?.into_iter().collect())
    }

    /// Finds an image; `None` if it was never loaded.
    pub fn image(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        let Some(record) = self.table()?.remove(reference) else {
            return Ok(None);
        };
        let path = self.blob_path(&record.config);
        let bytes = fs::read(&path).map_err(self.io("reading", &path))?;
        let document = config_document(&bytes)?;
        let layers: Vec<String> = document.rootfs.diff_ids.iter().map(layer_name).collect();
        let layers_dir = self.root.join("layers");
        for layer in &layers {
            let path = layers_dir.join(layer);
            fs::symlink_metadata(&path).map_err(self.io("finding layer", &path))?;
        }
        Ok(Some(Image {
            reference: reference.clone(),
            record,
            run: document.config.unwrap_or_default(),
            layers_dir,
            layers,
        }))
    }

    fn add(&self, archive: &ImageArchive, image: &ArchivedImage) -> Result<ImageRecord, ImageError> {
        let document = config_document(&image.config)?;
        let here = super::archive::architecture();
        if (!document.os.is_empty() && document.os != "linux")
            || (!document.architecture.is_empty() && document.architecture != here)
        {
            return Err(ImageError::Platform {
                found: format!("{}/{}", document.os, document.architecture),
                wanted: format!("linux/{here}"),
            });
        }
        for layer in &image.layers {
            self.add_layer(archive, layer)?;
        }
        let config = self.add_blob(&image.config)?;
        let manifest = match &image.manifest {
            Some(bytes) => self.add_blob(bytes)?,
            None => self.add_blob(&made_manifest(image, &config))?,
        };
        Ok(ImageRecord {
            manifest,
            config,
            loaded_at: jiff::Timestamp::now().as_second(),
        })
    }

    fn add_layer(&self, archive: &ImageArchive, layer: &ArchivedLayer) -> Result<(), ImageError> {
        let target = self.root.join("layers").join(layer_name(&layer.diff_id));
        if fs::symlink_metadata(&target).is_ok() {
            return Ok(());
        }
        let scratch = self.root.join("tmp").join(layer_name(&layer.diff_id));
        DirBuilder::new()
            .mode(0o755)
            .create(&scratch)
            .map_err(self.io("making", &scratch))?;
        // What a failure leaves is in `tmp`, which the next writer empties; doing it at once is kinder.
        unpack_checked(archive, layer, &scratch).inspect_err(|_| drop(fs::remove_dir_all(&scratch)))?;
        // A layer that is in its place is taken as whole, after a loss of power too.
        self.sync()?;
        fs::rename(&scratch, &target).map_err(self.io("placing", &target))
    }

    fn sync(&self) -> Result<(), ImageError> {
        let directory = File::open(&self.root).map_err(self.io("opening", &self.root))?;
        nix::unistd::syncfs(&directory).map_err(|e| self.io("syncing", &self.root)(e.into()))
    }

    fn add_blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        let path = self.blob_path(&digest);
        if !path.exists() {
            self.write_whole(&path, bytes)?;
        }
        Ok(digest)
    }

    fn table(&self) -> Result<Table, ImageError> {
        let path = self.refs_path();
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| ImageError::Table { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Table::new()),
            Err(error) => Err(self.io("reading", &path)(error)),
        }
    }

    fn lock(&self) -> Result<WriteLock, ImageError> {
        for directory in ["", "blobs/sha256", "layers", "tmp"] {
            let path = self.root.join(directory);
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .map_err(self.io("making", &path))?;
        }
        // Set-user-id programs of images are for containers, not for the node's users.
        fs::set_permissions(&self.root, Permissions::from_mode(0o700))
            .map_err(self.io("closing", &self.root))?;
        let path = self.root.join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(self.io("opening", &path))?;
        let file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| self.io("locking", &path)(error.into()))?;
        let scratch = self.root.join("tmp");
        for entry in fs::read_dir(&scratch).map_err(self.io("reading", &scratch))? {
            let path = entry.map_err(self.io("reading", &scratch))?.path();
            let removed = if path.is_dir() {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            };
            removed.map_err(self.io("clearing", &path))?;
        }
        Ok(WriteLock { _file: file })
    }

    /// Writes a file so that it is there whole or not at all. The lock must be held.
    fn write_whole(&self, path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
        let scratch = self.root.join("tmp").join("file");
        let mut file = File::create(&scratch).map_err(self.io("making", &scratch))?;
        file.write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(self.io("writing", &scratch))?;
        fs::rename(&scratch, path).map_err(self.io("placing", path))?;
        let parent = path.parent().unwrap_or(&self.root);
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(self.io("syncing", parent))
    }

    fn refs_path(&self) -> PathBuf {
        self.root.join("refs.json")
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    #[expect(clippy::unused_self, reason = "reads as part of the store at each use")]
    fn io<'a>(&self, operation: &'static str, path: &'a Path) -> impl Fn(io::Error) -> ImageError + 'a {
        move |source| ImageError::Store {
            operation,
            path: path.to_owned(),
            source,
        }
    }
}

fn names(image: &ArchivedImage, name: Option<&str>, images: usize) -> Result<Vec<Reference>, ImageError> {
    if let Some(name) = name {
        if images != 1 {
            return Err(ImageError::NameForMany(images));
        }
        return Ok(vec![Reference::parse(name)?]);
    }
    if image.names.is_empty() {
        return Err(ImageError::Unnamed);
    }
    Ok(image
        .names
        .iter()
        .map(|name| Reference::parse(name))
        .collect::<Result<_, _>>()?)
}

/// Unpacks a layer, and checks the digests of the compressed and of the plain stream.
fn unpack_checked(archive: &ImageArchive, layer: &ArchivedLayer, target: &Path) -> Result<(), ImageError> {
    let mismatch = |expected: &Digest, actual| ImageError::LayerDigest {
        member: layer.member.clone(),
        expected: expected.clone(),
        actual,
    };
    let mut stored = DigestingReader::new(BufReader::new(archive.reader(&layer.member)?));
    let mut magic = [0; 4];
    let known = read_up_to(&mut stored, &mut magic).map_err(|e| archive.read_error(e))?;
    let plain: Box<dyn Read + '_> = match magic {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(magic[..known].chain(&mut stored))),
        [0x28, 0xb5, 0x2f, 0xfd] => {
            return Err(ImageError::Compression {
                member: layer.member.clone(),
            });
        }
        _ => Box::new(magic[..known].chain(&mut stored)),
    };
    let mut plain = DigestingReader::new(plain);
    let unpacked = layers::unpack(&mut plain, target);
    let diff_id = plain.finish().map_err(|e| archive.read_error(e));
    // Damage explains whatever unpacking stumbled over, so it is looked for first.
    if let Some(expected) = &layer.digest {
        let actual = stored.finish().map_err(|e| archive.read_error(e))?;
        if actual != *expected {
            return Err(mismatch(expected, actual));
        }
    }
    unpacked.map_err(|source| ImageError::Layer {
        member: layer.member.clone(),
        source,
    })?;
    let diff_id = diff_id?;
    if diff_id == layer.diff_id {
        Ok(())
    } else {
        Err(mismatch(&layer.diff_id, diff_id))
    }
}

fn read_up_to(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn layer_name(diff_id: &Digest) -> String {
    diff_id.hex()[..LAYER_NAME_DIGITS].to_owned()
}

fn config_document(bytes: &[u8]) -> Result<ConfigDocument, ImageError> {
    serde_json::from_slice(bytes).map_err(ImageError::Config)
}

/// The manifest that a docker archive lacks: its layers are named by what they are unpacked.
fn made_manifest(image: &ArchivedImage, config: &Digest) -> Vec<u8> {
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            serde_json::json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer.diff_id,
            })
        })
        .collect();
    serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config,
            "size": image.config.len(),
        },
        "layers": layers,
    })
    .to_string()
    .into_bytes()
}

#[cfg(test)]
mod tests;
