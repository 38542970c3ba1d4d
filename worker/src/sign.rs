//! Signatures: a Sigstore bundle with a DSSE envelope around an in-toto statement of OpenSSF Model Signing, signed with
//! ECDSA P-256. The statement names every file of the version and says for which namespace and model it was published
//! and by which report; a verifier demands all four. Checking needs the pinned public keys and nothing else: no network,
//! no clock.

use crate::error::WorkerError;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetune_crds::common::Digest;
use p256::ecdsa::signature::{Signer as _, Verifier as _};
use p256::ecdsa::{Signature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePublicKey as _, LineEnding};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

/// Media type of the bundle.
const BUNDLE_TYPE: &str = crate::artifact::BUNDLE_TYPE;
/// Type of the envelope's payload.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// Type of the statement.
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// Type of the predicate.
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
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

#[derive(Serialize, Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Predicate {
    serialization: Serialization,
    resources: Vec<Resource>,
    #[serde(rename = "fleetune.dev")]
    claim: Claim,
}

#[derive(Serialize, Deserialize)]
struct Serialization {
    method: String,
    hash_type: String,
    allow_symlinks: bool,
    ignore_paths: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Resource {
    name: String,
    algorithm: String,
    digest: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: Material,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Hint,
    #[serde(default)]
    tlog_entries: Vec<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct Hint {
    hint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<EnvelopeSignature>,
}

#[derive(Serialize, Deserialize)]
struct EnvelopeSignature {
    sig: String,
    #[serde(default)]
    keyid: String,
}

/// A private key.
pub struct Signer(SigningKey);

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

fn statement(claim: &Claim, files: &Files) -> Statement {
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
fn encoded(payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use p256::pkcs8::EncodePrivateKey as _;

    pub(crate) fn signer(seed: u8) -> Signer {
        Signer(SigningKey::from_slice(&[seed; 32]).unwrap())
    }

    pub(crate) fn private_pem(signer: &Signer) -> String {
        signer.0.to_pkcs8_pem(LineEnding::LF).unwrap().to_string()
    }

    fn claim() -> Claim {
        Claim {
            namespace: "shop".into(),
            model_name: "shirts".into(),
            candidate: Digest::of(b"candidate"),
            report: Digest::of(b"report"),
        }
    }

    fn files() -> Files {
        Files::from([("model.onnx".to_owned(), Digest::of(b"m").hex().to_owned())])
    }

    fn ring(signer: &Signer, namespaces: &[&str]) -> Keyring {
        let namespaces = namespaces.iter().map(|n| (*n).to_owned()).collect();
        Keyring::new(vec![
            TrustedKey::new("k", &signer.public_pem().unwrap(), namespaces).unwrap(),
        ])
    }

    #[test]
    fn a_good_signature_holds_and_is_the_same_each_time() {
        let bundle = signer(1).sign(&claim(), &files()).unwrap();
        assert_eq!(bundle, signer(1).sign(&claim(), &files()).unwrap());
        for namespaces in [&["*"][..], &["shop"], &["other", "shop"]] {
            assert_eq!(ring(&signer(1), namespaces).verify(&bundle, &claim()).unwrap(), files());
        }
    }

    #[test]
    fn keys_survive_pem() {
        let pem = signer(1).0.to_pkcs8_pem(LineEnding::LF).unwrap();
        let read = Signer::from_pem(&pem).unwrap();
        assert_eq!(read.public_pem().unwrap(), signer(1).public_pem().unwrap());
        assert!(Signer::from_pem("nonsense").is_err());
        assert_eq!(
            TrustedKey::new("k", "nonsense", vec![]).unwrap_err().reason(),
            "SigningKeyInvalid"
        );
    }

    #[test]
    fn everything_else_is_refused() {
        let bundle = signer(1).sign(&claim(), &files()).unwrap();
        let good = ring(&signer(1), &["*"]);
        let other = |change: &dyn Fn(&mut Claim)| {
            let mut claim = claim();
            change(&mut claim);
            claim
        };
        let cases = [
            ("another key", ring(&signer(2), &["*"]), claim(), "pinned keys"),
            ("no key", Keyring::default(), claim(), "0 pinned keys"),
            (
                "a namespace the key may not sign for",
                ring(&signer(1), &["lab"]),
                claim(),
                "may not sign",
            ),
            (
                "another namespace",
                good.clone(),
                other(&|c| c.namespace = "lab".into()),
                "made for namespace",
            ),
            (
                "another model",
                good.clone(),
                other(&|c| c.model_name = "x".into()),
                "made for model",
            ),
            (
                "another candidate",
                good.clone(),
                other(&|c| c.candidate = Digest::of(b"x")),
                "made for candidate",
            ),
            (
                "another report",
                good.clone(),
                other(&|c| c.report = Digest::of(b"x")),
                "made for report",
            ),
        ];
        for (name, ring, claim, text) in cases {
            let error = ring.verify(&bundle, &claim).unwrap_err();
            assert_eq!(error.reason(), "SignatureInvalid", "{name}");
            assert!(error.to_string().contains(text), "{name}: {error}");
        }
    }

    #[test]
    fn a_changed_payload_or_envelope_is_refused() {
        let bundle = signer(1).sign(&claim(), &files()).unwrap();
        let good = ring(&signer(1), &["*"]);
        let change = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value: serde_json::Value = serde_json::from_slice(&bundle).unwrap();
            change(&mut value);
            good.verify(&serde_json::to_vec(&value).unwrap(), &claim())
                .unwrap_err()
                .to_string()
        };
        let payload = STANDARD.encode(serde_json::to_vec(&statement(&claim(), &Files::new())).unwrap());
        assert!(change(&|v| v["dsseEnvelope"]["payload"] = payload.clone().into()).contains("pinned"));
        assert!(change(&|v| v["dsseEnvelope"]["payloadType"] = "text/plain".into()).contains("type"));
        assert!(change(&|v| v["mediaType"] = "x".into()).contains("type"));
        assert!(change(&|v| v["dsseEnvelope"]["signatures"] = serde_json::json!([])).contains("one signature"));
        assert!(change(&|v| v["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA".into()).contains("ECDSA"));
        assert!(good.verify(b"{}", &claim()).is_err());
        assert!(good.verify(&vec![b' '; MAX_BUNDLE + 1], &claim()).is_err());
    }

    #[test]
    fn files_must_be_those_that_were_signed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "a").unwrap();
        std::fs::write(dir.path().join("b"), "b").unwrap();
        let signed = hash_files(dir.path()).unwrap();
        check_files(dir.path(), &signed).unwrap();
        std::fs::write(dir.path().join("c"), "c").unwrap();
        assert!(
            check_files(dir.path(), &signed)
                .unwrap_err()
                .to_string()
                .contains("file c")
        );
        std::fs::remove_file(dir.path().join("c")).unwrap();
        std::fs::remove_file(dir.path().join("a")).unwrap();
        assert!(
            check_files(dir.path(), &signed)
                .unwrap_err()
                .to_string()
                .contains("file a")
        );
    }
}
