//! What a version is as an OCI artifact: which files lie in which layer, how a directory becomes layers, configuration
//! and manifest, and how layers become a directory again. The same directory gives the same digest, on every machine
//! and at every time. This module moves no bytes over a network and opens no model.

mod layer;
mod manifest;
mod pack;

pub use layer::{Kind, Layer, extract};
pub use manifest::{Descriptor, Manifest, VersionManifest};
pub use pack::{Packed, files, pack, verify};

use fleetune_crds::outcome::Code;
use std::path::{Path, PathBuf};

/// Media type of every manifest that is written or read.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a version's configuration.
pub const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a version's layers.
pub const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// Media type of the empty configuration of small artifacts, whose content is `{}`.
pub const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
/// Artifact type of a report.
pub const REPORT_TYPE: &str = "application/vnd.fleetune.report.v1";
/// Media type of a signature's bundle, and artifact type of its manifest.
pub const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Path of the frozen weights in a version.
pub const BACKBONE: &str = "weights/backbone.bin";
/// Path of the tuned weights in a version.
pub const TUNED: &str = "weights/tuned.bin";
/// Path of the graph in a version.
pub const GRAPH: &str = "model.onnx";

/// Largest manifest that is read, in bytes.
pub const MAX_MANIFEST: u64 = 1 << 20;
/// Largest layer of frozen weights, in bytes.
pub const MAX_BACKBONE: u64 = 4 << 30;
/// Largest layer of tuned weights, in bytes.
pub const MAX_TUNED: u64 = 4 << 30;
/// Largest layer of everything else, in bytes.
pub const MAX_REST: u64 = 256 << 20;
/// Most files in a version.
pub const MAX_FILES: usize = 1024;

/// Why a directory is no version, or an artifact none of ours. Trying again changes nothing, but for [`Self::Io`].
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The directory misses a file, or holds one that no version has.
    #[error("{}: {what}", path.display())]
    NotAVersion {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The manifest is not one of a version.
    #[error("not a version's manifest: {0}")]
    BadManifest(String),
    /// The artifact was written by a newer release.
    #[error("the artifact has format {found}, this build reads up to {supported}: update the runtime")]
    UnsupportedFormat {
        /// The format of the artifact.
        found: u64,
        /// The newest format of this build.
        supported: u32,
    },
    /// A layer holds what no layer of ours holds: a link, a path outside the version, too much.
    #[error("layer refused: {0}")]
    BadLayer(String),
    /// The files do not have the digest they should have.
    #[error("{}: the files have digest {found}, not {expected}", path.display())]
    DigestMismatch {
        /// The directory.
        path: PathBuf,
        /// The digest of the files.
        found: String,
        /// The digest that was asked for.
        expected: String,
    },
}

impl ArtifactError {
    /// The PascalCase word for conditions, events and outcomes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "StorageError",
            Self::NotAVersion { .. } => "NotAVersion",
            Self::BadManifest(_) | Self::BadLayer(_) => "ArtifactInvalid",
            Self::UnsupportedFormat { .. } => "UnsupportedFormat",
            Self::DigestMismatch { .. } => "DigestMismatch",
        }
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Code {
        match self {
            Self::Io { .. } => Code::Transient,
            _ => Code::BadInput,
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
