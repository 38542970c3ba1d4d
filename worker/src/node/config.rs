//! The runtime's configuration: the store, the keys it trusts, the registries without TLS, and the self-test's bounds.

use crate::error::{Result, WorkerError};
use crate::sign::{Keyring, TrustedKey};
use fleetune_crds::common::{Bytes, Span};
use fleetune_crds::names;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Reason: the configuration cannot be used.
const INVALID_CONFIG: &str = "InvalidConfig";

/// The configuration file.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Folder of the store.
    #[serde(default = "default_store")]
    pub store: PathBuf,
    /// Public keys whose signatures are accepted.
    #[serde(default)]
    pub keys: Vec<Key>,
    /// Registries that are reached over plain HTTP, beside those that the environment names.
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// Where to serve.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Bounds of the self-test.
    #[serde(default)]
    pub self_test: SelfTest,
}

/// A public key.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    /// Its name, for messages.
    pub name: String,
    /// SPKI PEM.
    pub public_key: String,
    /// Namespaces whose models it may sign; `*` is all.
    #[serde(default)]
    pub namespaces: Vec<String>,
}

/// Bounds of the self-test.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelfTest {
    deadline: Option<Span>,
    memory_reserve: Option<Bytes>,
}

impl SelfTest {
    /// The longest that a self-test may take.
    pub fn deadline(&self) -> Duration {
        self.deadline.as_ref().map_or(Duration::from_mins(1), Span::get)
    }

    /// Memory that a self-test must leave to the serving process, in bytes.
    pub fn memory_reserve(&self) -> u64 {
        self.memory_reserve.as_ref().map_or(32 << 20, Bytes::get)
    }
}

fn default_store() -> PathBuf {
    names::NODE_STORE.into()
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], names::NODE_PORT))
}

impl Config {
    /// Reads the file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| WorkerError::io("reading", path, &error))?;
        serde_yaml::from_str(&text)
            .map_err(|error| WorkerError::bad(INVALID_CONFIG, format!("{}: {error}", path.display())))
    }

    /// The keys as a ring. A key that cannot be read stops the runtime: going on without it would refuse good versions.
    pub fn keyring(&self) -> Result<Keyring> {
        let keys = self
            .keys
            .iter()
            .map(|key| Ok(TrustedKey::new(&key.name, &key.public_key, key.namespaces.clone())?))
            .collect::<Result<_>>()?;
        Ok(Keyring::new(keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_has_defaults_and_a_typo_is_refused() {
        let config: Config = serde_yaml::from_str("{}").unwrap();
        assert_eq!(config.store, Path::new("/var/lib/fleetune"));
        assert_eq!(config.listen.port(), 8080);
        assert_eq!(config.self_test.deadline(), Duration::from_mins(1));
        assert!(serde_yaml::from_str::<Config>("keyz: []").is_err());
        let config: Config = serde_yaml::from_str("keys: [{name: a, publicKey: x, namespaces: ['*']}]").unwrap();
        assert_eq!(config.keyring().unwrap_err().reason(), "SigningKeyInvalid");
    }
}
