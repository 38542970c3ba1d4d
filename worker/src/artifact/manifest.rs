//! OCI manifests: what is written, and what is accepted of one that was read.

use super::{ArtifactError, Kind, MANIFEST_TYPE, MAX_MANIFEST};
use fleetune_crds::common::Digest;
use fleetune_crds::names::{ANNOTATION_FORMAT, ARTIFACT_FORMAT};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A reference to a blob or manifest.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type of what is referred to.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
        }
    }

    /// The descriptor of `bytes`.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }
}

/// An image manifest. Fields are written in this order, which the digest depends on.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Always [`MANIFEST_TYPE`].
    #[serde(default)]
    pub media_type: String,
    /// What a small artifact is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, in order.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// A manifest without subject and annotations.
    pub fn new(config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: MANIFEST_TYPE.to_owned(),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads a manifest of bounded size.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(ArtifactError::BadManifest(format!("larger than {MAX_MANIFEST} bytes")));
        }
        let manifest: Self =
            serde_json::from_slice(bytes).map_err(|error| ArtifactError::BadManifest(error.to_string()))?;
        if manifest.schema_version != 2 {
            return Err(ArtifactError::BadManifest(format!(
                "schemaVersion {}, not 2",
                manifest.schema_version
            )));
        }
        Ok(manifest)
    }

    /// The bytes that are pushed.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ArtifactError> {
        serde_json::to_vec(self).map_err(|error| ArtifactError::BadManifest(error.to_string()))
    }
}

/// A manifest that was found to be one of a version that this build reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionManifest {
    /// The manifest as it was read.
    pub manifest: Manifest,
}

impl VersionManifest {
    /// Reads a version's manifest: format, number, kinds and sizes of its layers are checked.
    pub fn parse(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let manifest = Manifest::parse(bytes)?;
        let bad = |what: String| Err(ArtifactError::BadManifest(what));
        let Some(format) = manifest.annotations.get(ANNOTATION_FORMAT) else {
            return bad(format!("annotation {ANNOTATION_FORMAT} is missing"));
        };
        match format.parse::<u64>() {
            Ok(found) if found > u64::from(ARTIFACT_FORMAT) => {
                return Err(ArtifactError::UnsupportedFormat {
                    found,
                    supported: ARTIFACT_FORMAT,
                });
            }
            Ok(1..) => {}
            _ => {
                return bad(format!(
                    "annotation {ANNOTATION_FORMAT} is {format:?}, not a number from 1"
                ));
            }
        }
        if manifest.layers.len() != Kind::ALL.len() {
            return bad(format!("{} layers, not {}", manifest.layers.len(), Kind::ALL.len()));
        }
        for (layer, kind) in manifest.layers.iter().zip(Kind::ALL) {
            if layer.media_type != super::LAYER_TYPE {
                return bad(format!("layer {} has media type {:?}", layer.digest, layer.media_type));
            }
            if layer.size > kind.limit() {
                return bad(format!(
                    "layer {} has {} bytes, more than the {} that its kind may have",
                    layer.digest,
                    layer.size,
                    kind.limit()
                ));
            }
        }
        Ok(Self { manifest })
    }

    /// The layers with their kinds, in order.
    pub fn layers(&self) -> impl Iterator<Item = (Kind, &Descriptor)> {
        Kind::ALL.into_iter().zip(&self.manifest.layers)
    }

    /// Bytes of all layers.
    pub fn bytes(&self) -> u64 {
        self.manifest.layers.iter().map(|layer| layer.size).sum()
    }
}
