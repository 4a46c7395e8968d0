//! The node's images: a store on disk, filled from archives, and read by the pods' shims.

use std::path::PathBuf;

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
pub enum ImageError {}

/// Runs `weft image`.
pub fn cli(args: ImageArgs) -> Result<(), ImageError> {
    drop(args);
    Ok(())
}
