//! A client of OCI registries, by the distribution specification: digests are checked while bytes stream, downloads
//! resume where they broke off and never exceed the size that was announced, what is there is not uploaded again, and
//! a version's manifest goes up last, so that no half of one can be seen. It opens no model and signs nothing.

mod auth;
#[cfg(test)]
pub(crate) mod fake;
mod http;
mod pull;
mod push;
#[cfg(test)]
pub(crate) mod tests;

pub use auth::Credentials;
pub use pull::{FetchStats, FetchedSignature, partial_path};

use crate::artifact::ArtifactError;
use crate::error::WorkerError;
use fleetune_crds::common::Digest;
use fleetune_crds::names::{ENV_INSECURE_REGISTRIES, ENV_REGISTRY_CONFIG};
use fleetune_crds::outcome::Code;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why a registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text names no repository.
    #[error("{0:?} is not a repository of the form HOST[:PORT]/PATH")]
    InvalidReference(String),
    /// The credentials file cannot be used.
    #[error("{}: {what}", path.display())]
    BadCredentials {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The registry wants other credentials.
    #[error("{host} refuses {what} with status {status}: {hint}")]
    Unauthorized {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What to do.
        hint: String,
    },
    /// The registry does not have it.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry answered with an error.
    #[error("{host} answers {status} to {what}: {body}")]
    Status {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// The start of its answer.
        body: String,
    },
    /// The registry cannot be reached, or the connection broke.
    #[error("{host}, {what}: {cause}")]
    Unreachable {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What happened.
        cause: String,
    },
    /// The bytes are not those that the digest names.
    #[error("{host} gave bytes with digest {found} for {expected}")]
    DigestMismatch {
        /// The registry.
        host: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        found: Digest,
    },
    /// More bytes than announced or allowed.
    #[error("{host} gives more than {limit} bytes for {what}")]
    TooLarge {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The answer is not what the protocol says.
    #[error("{host}, {what}: {cause}")]
    Protocol {
        /// The registry.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong.
        cause: String,
    },
    /// What came is no artifact of ours, or could not be stored.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl RegistryError {
    /// The PascalCase word for conditions, events and outcomes.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidReference(_) => "InvalidReference",
            Self::BadCredentials { .. } => "RegistryCredentialsInvalid",
            Self::Unauthorized { .. } => "RegistryUnauthorized",
            Self::NotFound { .. } => "ArtifactNotFound",
            Self::Status { .. } if self.class() == Code::Transient => "RegistryUnavailable",
            Self::Status { .. } => "RegistryRefused",
            Self::Unreachable { .. } => "RegistryUnreachable",
            Self::DigestMismatch { .. } => "DigestMismatch",
            Self::TooLarge { .. } => "ArtifactTooLarge",
            Self::Protocol { .. } => "RegistryProtocol",
            Self::Artifact(error) => error.reason(),
        }
    }

    /// Whether trying again can help.
    pub fn class(&self) -> Code {
        match self {
            Self::Unreachable { .. } => Code::Transient,
            Self::Status { status, .. } if *status >= 500 || matches!(status, 408 | 425 | 429) => Code::Transient,
            Self::Artifact(error) => error.class(),
            _ => Code::BadInput,
        }
    }
}

impl From<ArtifactError> for WorkerError {
    fn from(error: ArtifactError) -> Self {
        match error.class() {
            Code::Transient => Self::transient(error.reason(), error.to_string()),
            _ => Self::bad(error.reason(), error.to_string()),
        }
    }
}

impl From<RegistryError> for WorkerError {
    fn from(error: RegistryError) -> Self {
        match error.class() {
            Code::Transient => Self::transient(error.reason(), error.to_string()),
            _ => Self::bad(error.reason(), error.to_string()),
        }
    }
}

/// A repository of a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    /// `HOST[:PORT]` of the registry.
    pub host: String,
    /// The repository's path on it.
    pub path: String,
}

impl std::str::FromStr for Repository {
    type Err = RegistryError;

    fn from_str(text: &str) -> Result<Self, RegistryError> {
        let invalid = || RegistryError::InvalidReference(text.to_owned());
        let (host, path) = text.split_once('/').ok_or_else(invalid)?;
        let good_host = !host.is_empty()
            && host.len() <= 253
            && host
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'));
        let good_path = !path.is_empty()
            && path.len() <= 255
            && path.split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part
                        .bytes()
                        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
            });
        if !good_host || !good_path {
            return Err(invalid());
        }
        Ok(Self {
            host: host.to_owned(),
            path: path.to_owned(),
        })
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.path)
    }
}

/// A client for any number of registries.
#[derive(Clone)]
pub struct Registry {
    http: reqwest::Client,
    insecure: BTreeSet<String>,
    credentials: Credentials,
    tokens: auth::Tokens,
    patience: Patience,
}

/// How long the client tries.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts at one request, or at one download without a byte of progress.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from there.
    pub first: Duration,
    /// Longest wait.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 6,
            first: Duration::from_millis(250),
            longest: Duration::from_secs(5),
        }
    }
}

impl Patience {
    fn wait(&self, attempt: u32) -> Duration {
        self.first.saturating_mul(1 << attempt.min(16)).min(self.longest)
    }
}

impl Registry {
    /// A client with the insecure registries and the credentials that the environment names.
    pub fn from_env() -> Result<Self, RegistryError> {
        let insecure = std::env::var(ENV_INSECURE_REGISTRIES).unwrap_or_default();
        let credentials = match std::env::var_os(ENV_REGISTRY_CONFIG) {
            Some(path) if !path.is_empty() => Credentials::read(Path::new(&path))?,
            _ => Credentials::default(),
        };
        Self::new(
            insecure.split(',').map(str::trim).filter(|host| !host.is_empty()),
            credentials,
        )
    }

    /// A client that reaches the hosts of `insecure` over plain HTTP and all others over HTTPS.
    pub fn new<'a>(
        insecure: impl IntoIterator<Item = &'a str>,
        credentials: Credentials,
    ) -> Result<Self, RegistryError> {
        // Redirects are followed by hand, so that credentials stay with the host they are for. A machine without
        // certificates can still reach registries over plain HTTP.
        let builder = || {
            reqwest::Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(Duration::from_secs(10))
                .read_timeout(Duration::from_secs(30))
                .user_agent(concat!("fleetune-worker/", env!("CARGO_PKG_VERSION")))
        };
        let http = builder()
            .build()
            .or_else(|error| {
                tracing::warn!(%error, "no certificates on this machine: only registries over plain HTTP can be reached");
                builder().tls_certs_only([]).build()
            })
            .map_err(|error| RegistryError::Unreachable {
                host: "HTTP client".into(),
                what: "start".into(),
                cause: http::chain(&error),
            })?;
        Ok(Self {
            http,
            insecure: insecure.into_iter().map(str::to_owned).collect(),
            credentials,
            tokens: auth::Tokens::default(),
            patience: Patience::default(),
        })
    }

    /// The same client with other patience.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    fn base(&self, repository: &Repository) -> String {
        let scheme = if self.insecure.contains(&repository.host) {
            "http"
        } else {
            "https"
        };
        let host = match repository.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        format!("{scheme}://{host}/v2/{}", repository.path)
    }
}
