//! Image archives: tar files in the OCI layout or in the form of `docker save`.
//!
//! An archive is read in two passes: one finds where each member lies, the other reads members as the manifests ask for
//! them. So their order does not matter, and layers are never held in memory.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Take},
    path::{Component, Path, PathBuf},
};

use serde::Deserialize;
use tar::EntryType;

use super::digest::{Digest, InvalidDigest};

/// Manifests and configurations are a few kilobytes; more than this is not one.
const MAX_DOCUMENT_BYTES: u64 = 8 * 1024 * 1024;
/// An index may lead to another one (image → platforms); deeper is not an image.
const MAX_INDEX_DEPTH: u32 = 3;
/// More layers than overlayfs stacks.
const MAX_LAYERS: usize = 120;

/// Why an archive could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file could not be opened or read.
    #[error("reading the archive {path}")]
    Read {
        /// The archive.
        path: PathBuf,
        /// What the kernel, or the tar reader, said.
        #[source]
        source: io::Error,
    },
    /// The file is neither kind of archive.
    #[error(
        "{0} is not an image archive: it has neither an index.json (OCI layout) nor a manifest.json (docker save)"
    )]
    NotAnImage(PathBuf),
    /// A member that a manifest names is not there.
    #[error("the archive has no {0}")]
    Missing(String),
    /// A document is not what it should be.
    #[error("{member} is not a valid document")]
    Document {
        /// The member of the archive.
        member: String,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// A document is larger than any real one.
    #[error("{member} has {bytes} bytes; at most {MAX_DOCUMENT_BYTES} are read")]
    TooLarge {
        /// The member of the archive.
        member: String,
        /// Its size.
        bytes: u64,
    },
    /// Content does not match its digest.
    #[error("{member} has digest {actual}, not {expected}: the archive is damaged")]
    DigestMismatch {
        /// The member of the archive.
        member: String,
        /// What the manifest says.
        expected: Digest,
        /// What the bytes say.
        actual: Digest,
    },
    /// A digest that cannot be checked.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// The image is for another machine.
    #[error("the archive has no image for linux/{0}")]
    NoPlatform(&'static str),
    /// The manifest and the configuration disagree.
    #[error("the manifest has {layers} layers, the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// More layers than can be stacked.
    #[error("the image has {0} layers; overlayfs stacks at most {MAX_LAYERS} here")]
    TooManyLayers(usize),
    /// An index within an index within an index.
    #[error("image indexes are nested too deeply")]
    NestedTooDeeply,
}

/// One image of an archive.
#[derive(Debug)]
pub(super) struct ArchivedImage {
    /// The names that the archive gives it.
    pub(super) names: Vec<String>,
    /// The manifest as it stands in the archive; a docker archive has none.
    pub(super) manifest: Option<Vec<u8>>,
    /// The configuration, as it stands in the archive.
    pub(super) config: Vec<u8>,
    /// The layers, the lowest first.
    pub(super) layers: Vec<ArchivedLayer>,
}

/// One layer of an archived image.
#[derive(Debug)]
pub(super) struct ArchivedLayer {
    /// The member of the archive.
    pub(super) member: String,
    /// The digest of the member; a docker archive has none.
    pub(super) digest: Option<Digest>,
    /// The digest of the unpacked tar stream.
    pub(super) diff_id: Digest,
}

/// An open archive.
#[derive(Debug)]
pub(super) struct ImageArchive {
    path: PathBuf,
    members: HashMap<String, Member>,
}

#[derive(Debug, Clone)]
enum Member {
    File {
        offset: u64,
        bytes: u64,
    },
    /// Old `docker save` writes a layer that occurs twice as a link.
    Link(String),
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: Digest,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct ConfigLayers {
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

impl ImageArchive {
    /// Finds the members of an archive.
    pub(super) fn open(path: &Path) -> Result<Self, ArchiveError> {
        let read = |source| ArchiveError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let length = file.metadata().map_err(read)?.len();
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(BufReader::new(file));
        for entry in archive.entries_with_seek().map_err(read)? {
            let entry = entry.map_err(read)?;
            let name = normal(Path::new(""), &entry.path().map_err(read)?);
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let (offset, bytes) = (entry.raw_file_position(), entry.size());
                    if offset.saturating_add(bytes) > length {
                        return Err(read(io::ErrorKind::UnexpectedEof.into()));
                    }
                    Member::File { offset, bytes }
                }
                kind @ (EntryType::Symlink | EntryType::Link) => {
                    let Some(target) = entry.link_name().map_err(read)? else {
                        continue;
                    };
                    let base = if kind == EntryType::Symlink {
                        Path::new(&name).parent().unwrap_or(Path::new("")).to_owned()
                    } else {
                        PathBuf::new()
                    };
                    Member::Link(normal(&base, &target))
                }
                _ => continue,
            };
            members.insert(name, member);
        }
        Ok(Self {
            path: path.to_owned(),
            members,
        })
    }

    /// The images in the archive, for this machine's platform.
    pub(super) fn images(&self) -> Result<Vec<ArchivedImage>, ArchiveError> {
        let docker: Option<Vec<DockerManifest>> = match self.members.get("manifest.json") {
            Some(_) => Some(self.document("manifest.json")?),
            None => None,
        };
        if self.members.contains_key("index.json") {
            return self.oci_images(docker.as_deref().unwrap_or_default());
        }
        match docker {
            Some(manifests) => manifests.iter().map(|m| self.docker_image(m)).collect(),
            None => Err(ArchiveError::NotAnImage(self.path.clone())),
        }
    }

    /// A reader of a member's bytes.
    pub(super) fn reader(&self, member: &str) -> Result<Take<File>, ArchiveError> {
        let (offset, bytes) = self.locate(member)?;
        let read = |source| self.read_error(source);
        let mut file = File::open(&self.path).map_err(read)?;
        file.seek(SeekFrom::Start(offset)).map_err(read)?;
        Ok(file.take(bytes))
    }

    /// Wraps an error that came from a member's reader.
    pub(super) fn read_error(&self, source: io::Error) -> ArchiveError {
        ArchiveError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn oci_images(&self, docker: &[DockerManifest]) -> Result<Vec<ArchivedImage>, ArchiveError> {
        let index: Index = self.document("index.json")?;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            if is_attestation(descriptor) {
                continue;
            }
            let mut image = self.oci_image(descriptor, 0)?;
            image.names = names_of(descriptor);
            if image.names.is_empty()
                && let Some(entry) = docker.iter().find(|m| {
                    blob_path(&Digest::of(&image.config)) == normal(Path::new(""), Path::new(&m.config))
                })
            {
                image.names = entry.repo_tags.clone().unwrap_or_default();
            }
            images.push(image);
        }
        if images.is_empty() {
            return Err(ArchiveError::NotAnImage(self.path.clone()));
        }
        Ok(images)
    }

    fn oci_image(&self, descriptor: &Descriptor, depth: u32) -> Result<ArchivedImage, ArchiveError> {
        if depth >= MAX_INDEX_DEPTH {
            return Err(ArchiveError::NestedTooDeeply);
        }
        let bytes = self.blob(&descriptor.digest)?;
        let member = blob_path(&descriptor.digest);
        if descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list") {
            let index: Index = parse(&member, &bytes)?;
            let wanted = index
                .manifests
                .iter()
                .filter(|m| !is_attestation(m))
                .find(|m| {
                    m.platform
                        .as_ref()
                        .is_none_or(|p| p.os == "linux" && p.architecture == architecture())
                })
                .ok_or(ArchiveError::NoPlatform(architecture()))?;
            return self.oci_image(wanted, depth + 1);
        }
        let manifest: Manifest = parse(&member, &bytes)?;
        let config = self.blob(&manifest.config.digest)?;
        let diff_ids = diff_ids(&blob_path(&manifest.config.digest), &config)?;
        let layers = manifest.layers.into_iter().map(|layer| {
            let member = blob_path(&layer.digest);
            (member, Some(layer.digest))
        });
        Ok(ArchivedImage {
            names: Vec::new(),
            manifest: Some(bytes),
            layers: self.layers(layers.collect(), diff_ids)?,
            config,
        })
    }

    fn docker_image(&self, manifest: &DockerManifest) -> Result<ArchivedImage, ArchiveError> {
        let config = self.bytes(&manifest.config)?;
        let diff_ids = diff_ids(&manifest.config, &config)?;
        let layers = manifest.layers.iter().map(|member| (member.clone(), None));
        Ok(ArchivedImage {
            names: manifest.repo_tags.clone().unwrap_or_default(),
            manifest: None,
            layers: self.layers(layers.collect(), diff_ids)?,
            config,
        })
    }

    fn layers(
        &self,
        members: Vec<(String, Option<Digest>)>,
        diff_ids: Vec<Digest>,
    ) -> Result<Vec<ArchivedLayer>, ArchiveError> {
        if members.len() != diff_ids.len() {
            return Err(ArchiveError::LayerCount {
                layers: members.len(),
                diff_ids: diff_ids.len(),
            });
        }
        if members.len() > MAX_LAYERS {
            return Err(ArchiveError::TooManyLayers(members.len()));
        }
        members
            .into_iter()
            .zip(diff_ids)
            .map(|((member, digest), diff_id)| {
                self.locate(&member)?;
                Ok(ArchivedLayer {
                    member,
                    digest,
                    diff_id,
                })
            })
            .collect()
    }

    fn document<T: for<'de> Deserialize<'de>>(&self, member: &str) -> Result<T, ArchiveError> {
        parse(member, &self.bytes(member)?)
    }

    fn blob(&self, digest: &Digest) -> Result<Vec<u8>, ArchiveError> {
        let member = blob_path(digest);
        let bytes = self.bytes(&member)?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(ArchiveError::DigestMismatch {
                member,
                expected: digest.clone(),
                actual,
            })
        }
    }

    fn bytes(&self, member: &str) -> Result<Vec<u8>, ArchiveError> {
        let (_, bytes) = self.locate(member)?;
        if bytes > MAX_DOCUMENT_BYTES {
            return Err(ArchiveError::TooLarge {
                member: member.to_owned(),
                bytes,
            });
        }
        let mut content = Vec::new();
        self.reader(member)?
            .read_to_end(&mut content)
            .map_err(|source| self.read_error(source))?;
        Ok(content)
    }

    fn locate(&self, member: &str) -> Result<(u64, u64), ArchiveError> {
        let mut name = normal(Path::new(""), Path::new(member));
        // One link leads to a file; a chain of a few is odd but harmless, a loop is not.
        for _ in 0..4 {
            match self.members.get(&name) {
                Some(Member::File { offset, bytes }) => return Ok((*offset, *bytes)),
                Some(Member::Link(target)) => name.clone_from(target),
                None => break,
            }
        }
        Err(ArchiveError::Missing(member.to_owned()))
    }
}

fn parse<T: for<'de> Deserialize<'de>>(member: &str, bytes: &[u8]) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|source| ArchiveError::Document {
        member: member.to_owned(),
        source,
    })
}

fn diff_ids(member: &str, config: &[u8]) -> Result<Vec<Digest>, ArchiveError> {
    Ok(parse::<ConfigLayers>(member, config)?.rootfs.diff_ids)
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names that an index entry carries: containerd's annotation has the whole one, the standard's often the tag alone.
fn names_of(descriptor: &Descriptor) -> Vec<String> {
    ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
        .iter()
        .find_map(|key| descriptor.annotations.get(*key))
        .into_iter()
        .cloned()
        .collect()
}

/// Build attestations are listed like images of an unknown platform.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown")
        || descriptor.annotations.contains_key("vnd.docker.reference.type")
}

/// This machine's architecture, as images name it.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// A member's name, relative and without `.` and `..`.
fn normal(base: &Path, path: &Path) -> String {
    let mut clean = base.to_owned();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean.to_string_lossy().into_owned()
}
