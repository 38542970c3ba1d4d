//! Turns a job into values that the API server has no reason to refuse, so that `build` cannot fail. What the schema
//! cannot check is checked here: addresses, claims, and the right to a signing key.

use crate::config::{HubConfig, SigningKey};
use fleetune_crds::common::Span;
use fleetune_crds::{FineTuneJob, FineTuneJobSpec};
use kube::ResourceExt;
use std::collections::BTreeSet;
use std::time::Duration;

/// The longest a job may take where its spec says nothing.
const DEFAULT_DEADLINE: Duration = Duration::from_hours(24);

/// A job that can be carried out.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Namespace of the job.
    pub namespace: String,
    /// Name of the job.
    pub name: String,
    /// Uid of the job.
    pub uid: String,
    /// The spec.
    pub spec: FineTuneJobSpec,
    /// The job as the worker reads it.
    pub manifest: String,
    /// Claims that the worker pods mount.
    pub claims: BTreeSet<String>,
    /// Secrets whose keys become environment variables, in order.
    pub credentials: Vec<String>,
    /// Secret with the signing key, in the operator's namespace.
    pub key_secret: String,
    /// Time from the start after which the job fails.
    pub deadline: Duration,
}

/// Why a job cannot be carried out as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An address that worker pods cannot read.
    #[error("{field}: {uri:?} cannot be read in a cluster: use s3://, http(s)://, pvc://CLAIM/PATH{}", if *.models { " or oci://" } else { "" })]
    Uri {
        /// The field.
        field: &'static str,
        /// The address.
        uri: String,
        /// Whether the field also takes `oci://`.
        models: bool,
    },
    /// A claim that no PersistentVolumeClaim can have as name.
    #[error("{field}: {uri:?} must name a claim and a path in it: pvc://CLAIM/PATH")]
    Claim {
        /// The field.
        field: &'static str,
        /// The address.
        uri: String,
    },
    /// No key was named, and the chart has no default.
    #[error("output.signingKey is not set and the operator has no defaultSigningKey: name one of its signingKeys")]
    NoKey,
    /// The key is unknown, or not for this namespace. The two are not told apart: names of keys are not for everyone.
    #[error(
        "output.signingKey: namespace {namespace:?} may not sign with key {key:?}: ask who runs the operator to allow it in the chart's signingKeys"
    )]
    Key {
        /// The key.
        key: String,
        /// The job's namespace.
        namespace: String,
    },
    /// The job cannot be written down for the worker.
    #[error("the job cannot be written as YAML: {0}")]
    Manifest(String),
}

impl Invalid {
    /// The reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Uri { .. } => "UnsupportedUri",
            Self::Claim { .. } => "ClaimInvalid",
            Self::NoKey => "SigningKeyMissing",
            Self::Key { .. } => "SigningKeyNotAllowed",
            Self::Manifest(_) => "ManifestInvalid",
        }
    }
}

/// Checks a job against the configuration.
pub fn validate(job: &FineTuneJob, config: &HubConfig) -> Result<Validated, Invalid> {
    let namespace = job.namespace().unwrap_or_default();
    let spec = &job.spec;
    let mut claims = BTreeSet::new();
    claims.extend(address("baseModel.uri", &spec.base_model.uri, true)?);
    claims.extend(address("dataset.uri", &spec.dataset.uri, false)?);
    if let Some(text) = &spec.input.text {
        claims.extend(address("input.text.tokenizer.uri", &text.tokenizer.uri, true)?);
    }
    let mut credentials = Vec::new();
    for secret in [&spec.base_model.credentials_secret, &spec.dataset.credentials_secret]
        .into_iter()
        .flatten()
    {
        if !credentials.contains(secret) {
            credentials.push(secret.clone());
        }
    }
    Ok(Validated {
        key_secret: signing_key(spec, config, &namespace)?.secret.clone(),
        manifest: manifest(job).map_err(|error| Invalid::Manifest(error.to_string()))?,
        name: job.name_any(),
        uid: job.uid().unwrap_or_default(),
        spec: spec.clone(),
        claims,
        credentials,
        deadline: spec.active_deadline.as_ref().map_or(DEFAULT_DEADLINE, Span::get),
        namespace,
    })
}

/// Refuses what a pod cannot read; the claim of a `pvc://` address.
fn address(field: &'static str, uri: &str, models: bool) -> Result<Option<String>, Invalid> {
    if let Some(rest) = uri.strip_prefix("pvc://") {
        let claim = rest
            .split_once('/')
            .map(|(claim, _)| claim)
            .filter(|claim| is_claim(claim));
        return match claim {
            Some(claim) => Ok(Some(claim.to_owned())),
            None => Err(Invalid::Claim {
                field,
                uri: uri.to_owned(),
            }),
        };
    }
    let known = ["s3://", "http://", "https://"]
        .iter()
        .any(|scheme| uri.starts_with(scheme));
    if known || (models && uri.starts_with("oci://")) {
        return Ok(None);
    }
    Err(Invalid::Uri {
        field,
        uri: uri.to_owned(),
        models,
    })
}

/// Whether `name` can be that of a claim, and so a folder's and, shortened, a volume's.
fn is_claim(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=253).contains(&name.len())
        && name.chars().all(|c| inner(c) || c == '-' || c == '.')
        && name.starts_with(inner)
        && name.ends_with(inner)
        && !name.contains("..")
}

fn signing_key<'a>(spec: &FineTuneJobSpec, config: &'a HubConfig, namespace: &str) -> Result<&'a SigningKey, Invalid> {
    let named = spec.output.signing_key.as_ref().or(config.default_signing_key.as_ref());
    let key = named.ok_or(Invalid::NoKey)?;
    let found = config.signing_keys.iter().find(|known| known.name == *key);
    found
        .filter(|known| known.allows(namespace))
        .ok_or_else(|| Invalid::Key {
            key: key.clone(),
            namespace: namespace.to_owned(),
        })
}

/// The job for the worker: what a person would write, without status and without what the server adds.
fn manifest(job: &FineTuneJob) -> Result<String, serde_yaml::Error> {
    let mut bare = FineTuneJob::new(&job.name_any(), job.spec.clone());
    bare.metadata.namespace = job.namespace();
    serde_yaml::to_string(&bare)
}
