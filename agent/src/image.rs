//! The node's images: a store on disk, filled from archives, and read when a container is made.
//!
//! `weft image` works on the store itself and needs no running agent; a lock file keeps writers apart.

use std::{
    io::{self, Write},
    path::PathBuf,
};

pub use archive::ArchiveError;
pub use digest::{Digest, InvalidDigest};
pub use layers::LayerError;
pub use reference::{InvalidReference, Reference};
pub use store::{Image, ImageRecord, RunConfig, Store};

mod archive;
mod digest;
mod layers;
mod reference;
mod store;

/// `weft image …`.
#[derive(Debug, clap::Args)]
pub struct ImageArgs {
    /// The node's state directory.
    #[arg(long, env = "WEFT_STATE_DIR", default_value = "/var/lib/weft", global = true)]
    pub state_dir: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// The verbs of `weft image`.
#[derive(Debug, clap::Subcommand)]
pub enum ImageCommand {
    /// Load the images of an OCI or docker archive (tar) into the node's store.
    Load {
        /// The archive.
        file: PathBuf,
        /// A name for the image, where the archive has none or another is wanted.
        #[arg(long)]
        name: Option<String>,
    },
    /// List the images of the node's store.
    List,
}

/// Why an image could not be loaded or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The archive is not usable.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A name is not an image reference.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// The archive gives the image no name.
    #[error("the archive does not name its image; give it one with --name")]
    Unnamed,
    /// `--name` with more than one image.
    #[error("--name names one image, but the archive has {0}")]
    NameForMany(usize),
    /// The image's configuration is not one.
    #[error("the image's configuration is not valid")]
    Config(#[source] serde_json::Error),
    /// The image is for another machine.
    #[error("the image is for {found}; this node is {wanted}")]
    Platform {
        /// The image's.
        found: String,
        /// The node's.
        wanted: String,
    },
    /// A layer's bytes do not match its digest.
    #[error("layer {member} has digest {actual}, not {expected}: the archive is damaged")]
    LayerDigest {
        /// The member of the archive.
        member: String,
        /// What the manifest or the configuration says.
        expected: Digest,
        /// What the bytes say.
        actual: Digest,
    },
    /// A layer is compressed in a way that is not read.
    #[error("layer {member} is compressed with zstd; save the image with gzip or uncompressed layers")]
    Compression {
        /// The member of the archive.
        member: String,
    },
    /// A layer could not be unpacked.
    #[error("unpacking layer {member}")]
    Layer {
        /// The member of the archive.
        member: String,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// The table of images cannot be read or written.
    #[error("the table of images {path} is not valid")]
    Table {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
    /// The store's directory could not be used.
    #[error("{operation} {path}")]
    Store {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The answer could not be printed.
    #[error("printing the answer")]
    Print(#[source] io::Error),
}

/// Runs `weft image`.
pub fn cli(args: ImageArgs) -> Result<(), ImageError> {
    let ImageArgs { state_dir, command } = args;
    let store = Store::new(state_dir.join("images"));
    let images = match &command {
        ImageCommand::Load { file, name } => store.load(file, name.as_deref())?,
        ImageCommand::List => store.list()?,
    };
    let mut out = io::stdout().lock();
    images
        .iter()
        .try_for_each(|(reference, record)| writeln!(out, "{reference} {}", record.config))
        .map_err(ImageError::Print)
}
