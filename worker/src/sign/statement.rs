//! What is signed and how it is wrapped: the statement of OpenSSF Model Signing, the DSSE envelope around it, the Sigstore
//! bundle around that.

use super::{Claim, Files};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;

/// Media type of the bundle.
pub(super) const BUNDLE_TYPE: &str = crate::artifact::BUNDLE_TYPE;
/// Type of the envelope's payload.
pub(super) const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Type of the statement.
pub(super) const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of the predicate.
pub(super) const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";

#[derive(Serialize, Deserialize)]
pub(super) struct Statement {
    #[serde(rename = "_type")]
    pub(super) kind: String,
    pub(super) subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    pub(super) predicate_type: String,
    pub(super) predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Subject {
    pub(super) name: String,
    pub(super) digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Predicate {
    pub(super) serialization: Serialization,
    pub(super) resources: Vec<Resource>,
    #[serde(rename = "fleetune.dev")]
    pub(super) claim: Claim,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Serialization {
    pub(super) method: String,
    pub(super) hash_type: String,
    pub(super) allow_symlinks: bool,
    pub(super) ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) algorithm: String,
    pub(super) digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bundle {
    pub(super) media_type: String,
    pub(super) verification_material: Material,
    pub(super) dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Material {
    pub(super) public_key: Hint,
    #[serde(default)]
    pub(super) tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Hint {
    pub(super) hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope {
    pub(super) payload: String,
    pub(super) payload_type: String,
    pub(super) signatures: Vec<EnvelopeSignature>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct EnvelopeSignature {
    pub(super) sig: String,
    #[serde(default)]
    pub(super) keyid: String,
}

pub(super) fn statement(claim: &Claim, files: &Files) -> Statement {
    let mut root = sha2::Sha256::new();
    for digest in files.values() {
        root.update(hex::decode(digest).unwrap_or_default());
    }
    Statement {
        kind: STATEMENT_TYPE.to_owned(),
        subject: vec![Subject {
            name: claim.model_name.clone(),
            digest: BTreeMap::from([("sha256".to_owned(), hex::encode(root.finalize()))]),
        }],
        predicate_type: PREDICATE_TYPE.to_owned(),
        predicate: Predicate {
            serialization: Serialization {
                method: "files".into(),
                hash_type: "sha256".into(),
                allow_symlinks: false,
                ignore_paths: Vec::new(),
            },
            resources: files
                .iter()
                .map(|(name, digest)| Resource {
                    name: name.clone(),
                    algorithm: "sha256".into(),
                    digest: digest.clone(),
                })
                .collect(),
            claim: claim.clone(),
        },
    }
}

/// DSSE's pre-authentication encoding.
pub(super) fn encoded(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}
