//! Making signatures.

use super::statement::{
    BUNDLE_TYPE, Bundle, Envelope, EnvelopeSignature, Hint, Material, PAYLOAD_TYPE, encoded, statement,
};
use super::{Claim, Files, SignError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Signer as _;
use p256::ecdsa::{Signature, SigningKey};
use p256::pkcs8::{DecodePrivateKey as _, EncodePublicKey as _, LineEnding};
use sha2::Digest as _;
use std::io::Read as _;
use std::path::Path;

/// A private key.
pub struct Signer(pub(super) SigningKey);

impl Signer {
    /// Reads a PKCS#8 PEM file with a P-256 key.
    pub fn read(path: &Path) -> Result<Self, SignError> {
        let bad = |what: String| SignError::BadKey {
            name: path.display().to_string(),
            what,
        };
        let mut pem = String::new();
        std::fs::File::open(path)
            .map_err(|error| bad(error.to_string()))?
            .take(64 << 10)
            .read_to_string(&mut pem)
            .map_err(|error| bad(error.to_string()))?;
        Self::from_pem(&pem).map_err(bad)
    }

    /// Reads the text of a PKCS#8 PEM file with a P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|error| format!("not a PKCS#8 PEM file with a P-256 key: {error}"))
    }

    /// The public key, as it is pinned on nodes.
    pub fn public_pem(&self) -> Result<String, SignError> {
        self.0
            .verifying_key()
            .to_public_key_pem(LineEnding::LF)
            .map_err(|error| SignError::BadKey {
                name: "public key".into(),
                what: error.to_string(),
            })
    }

    /// The bundle for these files. The same input gives the same bytes (RFC 6979), so that publishing twice is publishing
    /// once.
    pub fn sign(&self, claim: &Claim, files: &Files) -> Result<Vec<u8>, SignError> {
        let refused = |error: serde_json::Error| SignError::Refused(error.to_string());
        let payload = serde_json::to_vec(&statement(claim, files)).map_err(refused)?;
        let signature: Signature = self.0.sign(&encoded(&payload));
        let hint = hex::encode(sha2::Sha256::digest(self.public_pem()?));
        let bundle = Bundle {
            media_type: BUNDLE_TYPE.to_owned(),
            verification_material: Material {
                public_key: Hint { hint },
                tlog_entries: Vec::new(),
            },
            dsse_envelope: Envelope {
                payload: STANDARD.encode(&payload),
                payload_type: PAYLOAD_TYPE.to_owned(),
                signatures: vec![EnvelopeSignature {
                    sig: STANDARD.encode(signature.to_der()),
                    keyid: String::new(),
                }],
            },
        };
        serde_json::to_vec(&bundle).map_err(refused)
    }
}
