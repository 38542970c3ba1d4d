//! Signatures: a Sigstore bundle with a DSSE envelope around an in-toto statement of OpenSSF Model Signing, signed with
//! ECDSA P-256. The statement names every file of the version and says for which namespace and model it was published
//! and by which report; a verifier demands all four. Checking needs the pinned public keys and nothing else: no network,
//! no clock.

mod keyring;
mod signer;
mod statement;
#[cfg(test)]
pub(crate) mod tests;

pub use keyring::{Keyring, TrustedKey};
pub use signer::Signer;

use crate::error::WorkerError;
use fleetune_crds::common::Digest;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Largest bundle that is read, in bytes.
pub const MAX_BUNDLE: usize = 1 << 20;

/// Why a version cannot be signed, or its signature is refused.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// A key cannot be used.
    #[error("key {name}: {what}")]
    BadKey {
        /// Its name or path.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// The signature does not hold.
    #[error("signature refused: {0}")]
    Refused(String),
    /// A file of the version could not be read.
    #[error(transparent)]
    Artifact(#[from] crate::artifact::ArtifactError),
}

impl SignError {
    /// The PascalCase word for conditions, events and outcomes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::BadKey { .. } => "SigningKeyInvalid",
            Self::Refused(_) => "SignatureInvalid",
            Self::Artifact(error) => error.reason(),
        }
    }
}

impl From<SignError> for WorkerError {
    fn from(error: SignError) -> Self {
        match error {
            SignError::Artifact(error) => error.into(),
            error => Self::bad(error.reason(), error.to_string()),
        }
    }
}

/// What a signature is for. All four must be as expected.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Claim {
    /// Namespace of the model.
    pub namespace: String,
    /// Name of the model.
    pub model_name: String,
    /// Digest of the version's manifest.
    pub candidate: Digest,
    /// Digest of the report's manifest.
    pub report: Digest,
}

/// SHA-256 of a version's files by path.
pub type Files = BTreeMap<String, String>;

/// SHA-256 of every file of a version. Reads bytes, opens no model.
pub fn hash_files(dir: &Path) -> Result<Files, SignError> {
    let mut files = Files::new();
    for path in crate::artifact::files(dir)? {
        let file = dir.join(&path);
        let error = |source| crate::artifact::ArtifactError::Io {
            path: file.clone(),
            source,
        };
        let mut hash = sha2::Sha256::new();
        io::copy(&mut std::fs::File::open(&file).map_err(error)?, &mut hash).map_err(error)?;
        files.insert(path, hex::encode(hash.finalize()));
    }
    Ok(files)
}

/// Checks that `dir` holds exactly the files that were signed.
pub fn check_files(dir: &Path, signed: &Files) -> Result<(), SignError> {
    let found = hash_files(dir)?;
    if found == *signed {
        return Ok(());
    }
    let odd = found
        .iter()
        .find(|(path, digest)| signed.get(*path) != Some(digest))
        .map(|(path, _)| path)
        .or_else(|| signed.keys().find(|path| !found.contains_key(*path)));
    Err(SignError::Refused(format!(
        "file {} is not as it was signed",
        odd.map_or("", String::as_str)
    )))
}
