//! Image archives made from files, for machines that reach no registry.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// Describes an image of one layer and writes it as an OCI archive.
///
/// The same description gives the same bytes, so a store that has the layer does not unpack it again.
#[derive(Debug, Clone, Default)]
pub struct ImageBuilder {
    name: String,
    entries: BTreeMap<String, Content>,
    entrypoint: Vec<String>,
    cmd: Vec<String>,
    env: Vec<String>,
    user: String,
    working_dir: String,
}

#[derive(Debug, Clone)]
enum Content {
    Copy { from: PathBuf, mode: u32 },
    Bytes { bytes: Vec<u8>, mode: u32 },
    Symlink { target: String },
    Directory { mode: u32 },
}

impl ImageBuilder {
    /// An empty image called `name` (`name:tag`).
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Copies an executable file to `path` in the image.
    #[must_use]
    pub fn program(mut self, path: &str, from: impl Into<PathBuf>) -> Self {
        let content = Content::Copy {
            from: from.into(),
            mode: 0o755,
        };
        self.entries.insert(relative(path), content);
        self
    }

    /// Copies a program of this machine to `path` in the image, with the shared libraries that it needs.
    ///
    /// # Errors
    /// If it is not there, or `ldd` cannot tell what it needs.
    pub fn host_program(mut self, path: &str, from: &Path) -> Result<Self> {
        let from = from
            .canonicalize()
            .with_context(|| format!("finding {}", from.display()))?;
        let output = Command::new("ldd").arg(&from).output().context("running ldd")?;
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace() {
            if word.starts_with('/') && word.contains(".so") {
                self = self.program(word, word);
            }
        }
        Ok(self.program(path, from))
    }

    /// Puts a file with this content into the image.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        let bytes = bytes.into();
        self.entries
            .insert(relative(path), Content::Bytes { bytes, mode });
        self
    }

    /// Puts a symbolic link into the image.
    #[must_use]
    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        let target = target.to_owned();
        self.entries.insert(relative(path), Content::Symlink { target });
        self
    }

    /// Puts an empty directory into the image.
    #[must_use]
    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.entries.insert(relative(path), Content::Directory { mode });
        self
    }

    /// Sets the program that the image runs.
    #[must_use]
    pub fn entrypoint<I: IntoIterator<Item = impl Into<String>>>(mut self, words: I) -> Self {
        self.entrypoint = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the program's default arguments.
    #[must_use]
    pub fn cmd<I: IntoIterator<Item = impl Into<String>>>(mut self, words: I) -> Self {
        self.cmd = words.into_iter().map(Into::into).collect();
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }

    /// Sets the user, `user[:group]`.
    #[must_use]
    pub fn user(mut self, user: &str) -> Self {
        user.clone_into(&mut self.user);
        self
    }

    /// Sets the directory in which the program starts.
    #[must_use]
    pub fn working_dir(mut self, path: &str) -> Self {
        path.clone_into(&mut self.working_dir);
        self
    }

    /// Writes the archive to `out`.
    pub fn write(&self, out: &Path) -> Result<()> {
        let layer = self.layer()?;
        let diff_id = digest(&layer);
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&layer)?;
        let layer = encoder.finish()?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Env": self.env,
                "Entrypoint": self.entrypoint,
                "Cmd": self.cmd,
                "User": self.user,
                "WorkingDir": self.working_dir,
            },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        });
        let config = serde_json::to_vec(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
        });
        let manifest = serde_json::to_vec(&manifest)?;
        let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
        entry["annotations"] = json!({ "io.containerd.image.name": self.name });
        let index = serde_json::to_vec(&json!({ "schemaVersion": 2, "manifests": [entry] }))?;

        let file = File::create(out).with_context(|| format!("creating {}", out.display()))?;
        let mut archive = tar::Builder::new(io::BufWriter::new(file));
        put(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        put(&mut archive, "index.json", &index)?;
        for blob in [&manifest, &config, &layer] {
            let name = format!("blobs/{}", digest(blob).replace(':', "/"));
            put(&mut archive, &name, blob)?;
        }
        archive.into_inner()?.flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, content) in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            match content {
                Content::Copy { from, mode } => {
                    let bytes = std::fs::read(from).with_context(|| format!("reading {}", from.display()))?;
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::Bytes { bytes, mode } => {
                    header.set_mode(*mode);
                    header.set_size(bytes.len() as u64);
                    archive.append_data(&mut header, path, bytes.as_slice())?;
                }
                Content::Symlink { target } => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_mode(0o777);
                    header.set_size(0);
                    archive.append_link(&mut header, path, target)?;
                }
                Content::Directory { mode } => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_mode(*mode);
                    header.set_size(0);
                    archive.append_data(&mut header, path, io::empty())?;
                }
            }
        }
        Ok(archive.into_inner()?)
    }
}

fn relative(path: &str) -> String {
    path.trim_start_matches('/').to_owned()
}

fn digest(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        // Writing to a text cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    format!("sha256:{hex}")
}

fn descriptor(media_type: &str, bytes: &[u8]) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": digest(bytes), "size": bytes.len() })
}

fn put(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    archive.append_data(&mut header, name, bytes)
}
