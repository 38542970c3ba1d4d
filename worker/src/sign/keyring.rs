//! Checking signatures against pinned keys.

use super::statement::{BUNDLE_TYPE, Bundle, PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE, Statement, encoded};
use super::{Claim, Files, MAX_BUNDLE, SignError};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;

/// A public key and the namespaces whose models it may sign; `*` is all.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    name: String,
    key: VerifyingKey,
    namespaces: Vec<String>,
}

impl TrustedKey {
    /// A key from its SPKI PEM text.
    pub fn new(name: &str, public_pem: &str, namespaces: Vec<String>) -> Result<Self, SignError> {
        let key = VerifyingKey::from_public_key_pem(public_pem.trim()).map_err(|error| SignError::BadKey {
            name: name.to_owned(),
            what: format!("not a PEM file with a P-256 public key: {error}"),
        })?;
        Ok(Self {
            name: name.to_owned(),
            key,
            namespaces,
        })
    }

    fn may_sign(&self, namespace: &str) -> bool {
        self.namespaces
            .iter()
            .any(|allowed| allowed == "*" || allowed == namespace)
    }
}

/// The keys that a node trusts.
#[derive(Clone, Debug, Default)]
pub struct Keyring(Vec<TrustedKey>);

impl Keyring {
    /// A ring of these keys.
    pub fn new(keys: Vec<TrustedKey>) -> Self {
        Self(keys)
    }

    /// Checks that a trusted key has signed exactly this claim, and returns the files that it covers.
    pub fn verify(&self, bundle: &[u8], expected: &Claim) -> Result<Files, SignError> {
        let refused = |what: &str| SignError::Refused(what.to_owned());
        if bundle.len() > MAX_BUNDLE {
            return Err(SignError::Refused(format!(
                "the bundle has more than {MAX_BUNDLE} bytes"
            )));
        }
        let bundle: Bundle = serde_json::from_slice(bundle)
            .map_err(|error| SignError::Refused(format!("not a Sigstore bundle: {error}")))?;
        if bundle.media_type != BUNDLE_TYPE || bundle.dsse_envelope.payload_type != PAYLOAD_TYPE {
            return Err(refused("another type of bundle or payload than ours"));
        }
        let [signature] = bundle.dsse_envelope.signatures.as_slice() else {
            return Err(refused("not exactly one signature"));
        };
        let signature = STANDARD
            .decode(&signature.sig)
            .ok()
            .and_then(|der| Signature::from_der(&der).ok())
            .ok_or_else(|| refused("not an ECDSA signature"))?;
        let payload = STANDARD
            .decode(&bundle.dsse_envelope.payload)
            .map_err(|_| refused("the payload is not base64"))?;
        // Nothing of the payload is looked at before its signature holds.
        let signed = encoded(&payload);
        let signers: Vec<&TrustedKey> = self
            .0
            .iter()
            .filter(|k| k.key.verify(&signed, &signature).is_ok())
            .collect();
        if signers.is_empty() {
            return Err(SignError::Refused(format!(
                "none of the {} pinned keys made it",
                self.0.len()
            )));
        }
        if !signers.iter().any(|key| key.may_sign(&expected.namespace)) {
            return Err(SignError::Refused(format!(
                "key {} may not sign for namespace {}",
                signers[0].name, expected.namespace
            )));
        }
        let statement: Statement = serde_json::from_slice(&payload)
            .map_err(|error| SignError::Refused(format!("not a statement of ours: {error}")))?;
        if statement.kind != STATEMENT_TYPE || statement.predicate_type != PREDICATE_TYPE {
            return Err(refused("another type of statement than ours"));
        }
        let claim = &statement.predicate.claim;
        for (what, found, wanted) in [
            ("namespace", claim.namespace.as_str(), expected.namespace.as_str()),
            ("model", claim.model_name.as_str(), expected.model_name.as_str()),
            ("candidate", claim.candidate.as_str(), expected.candidate.as_str()),
            ("report", claim.report.as_str(), expected.report.as_str()),
        ] {
            if found != wanted {
                return Err(SignError::Refused(format!("made for {what} {found}, not {wanted}")));
            }
        }
        let mut files = Files::new();
        for resource in statement.predicate.resources {
            if resource.algorithm != "sha256" {
                return Err(refused("a file is not hashed with sha256"));
            }
            files.insert(resource.name, resource.digest);
        }
        Ok(files)
    }
}
