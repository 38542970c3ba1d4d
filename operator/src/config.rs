//! The configuration files of `hub` and `edge`: YAML, written by the charts. Unknown fields are refused, so that a typo
//! is not a silent default.

use fleetune_crds::common::Span;
use fleetune_crds::names;
use k8s_openapi::api::core::v1::ResourceRequirements;
use serde::Deserialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The configuration of `fleetune-operator hub`.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HubConfig {
    /// Image of worker pods, by digest.
    pub worker_image: String,
    /// Requests and limits of worker pods that name none.
    #[serde(default)]
    pub worker_resources: ResourceRequirements,
    /// Registries that are reached over plain HTTP.
    #[serde(default)]
    pub insecure_registries: Vec<String>,
    /// Versions of a model that are kept although nobody names them: the newest.
    #[serde(default = "default_version_history_limit")]
    pub version_history_limit: u32,
    /// Signing keys and who may use them.
    #[serde(default)]
    pub signing_keys: Vec<SigningKey>,
    /// The key of a job that names none.
    #[serde(default)]
    pub default_signing_key: Option<String>,
    /// Secret (kubernetes.io/dockerconfigjson) in the operator's namespace, with which `publish` pushes.
    #[serde(default)]
    pub publish_push_secret: Option<String>,
    /// Secrets with which worker pods pull their image.
    #[serde(default)]
    pub image_pull_secrets: Vec<String>,
    /// How device clusters reach this hub.
    #[serde(default)]
    pub hub: HubAddress,
    /// What both subcommands have.
    #[serde(flatten)]
    pub common: Common,
}

/// The configuration of `fleetune-operator edge`.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EdgeConfig {
    /// Name of this cluster's DeviceCluster on the hub.
    pub cluster: String,
    /// Path of the kubeconfig for the hub.
    pub hub_kubeconfig: PathBuf,
    /// Secret in this process's namespace that it is mounted from. Renewed tokens are stored there; without it, somebody
    /// else sees to that.
    #[serde(default)]
    pub hub_kubeconfig_secret: Option<String>,
    /// What both subcommands have.
    #[serde(flatten)]
    pub common: Common,
}

/// What both subcommands have.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Common {
    /// Address of `/metrics`, `/healthz` and `/readyz`.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Namespace of the node runtime on device clusters.
    #[serde(default = "default_node_namespace")]
    pub node_namespace: String,
    /// The heartbeat between hub and device clusters.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// Age of the hub's last heartbeat answer above which the edge grants no new activation.
    #[serde(default = "default_activation_ttl")]
    pub activation_ttl: Span,
    /// The Lease of the leader.
    #[serde(default)]
    pub lease: LeaseTiming,
    /// Longest time between two reconciles of an object.
    #[serde(default = "default_resync")]
    pub resync: Span,
}

/// The heartbeat between hub and device clusters.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Heartbeat {
    /// Time between two beats.
    pub interval: Span,
    /// Age of the last beat above which a cluster is unreachable.
    pub unreachable_after: Span,
}

/// The Lease of the leader.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaseTiming {
    /// Without a renewal for this long, another replica takes over.
    pub duration: Span,
    /// Time between two renewals.
    pub renew: Span,
}

/// A signing key.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SigningKey {
    /// The name that jobs use.
    pub name: String,
    /// Secret in the operator's namespace with the key `key.pem`.
    pub secret: String,
    /// Namespaces whose jobs may use it; `*` is any.
    pub namespaces: Vec<String>,
}

/// How device clusters reach this hub.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct HubAddress {
    /// URL of the API server as device clusters see it.
    pub url: Option<String>,
    /// Certificates (PEM) that the URL is checked with. Default: those of the operator's own service account.
    pub ca_bundle: Option<String>,
}

fn seconds(seconds: u64) -> Span {
    Span::from(Duration::from_secs(seconds))
}

fn default_version_history_limit() -> u32 {
    10
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 8080).into()
}

fn default_node_namespace() -> String {
    names::NODE_NAMESPACE.into()
}

fn default_activation_ttl() -> Span {
    seconds(300)
}

fn default_resync() -> Span {
    seconds(900)
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self {
            interval: seconds(60),
            unreachable_after: seconds(300),
        }
    }
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            duration: seconds(15),
            renew: seconds(5),
        }
    }
}

impl LeaseTiming {
    /// The timing for an elector.
    pub fn timing(&self) -> crate::runtime::lease::Timing {
        crate::runtime::lease::Timing {
            duration: self.duration.get(),
            renew: self.renew.get(),
        }
    }
}

impl SigningKey {
    /// Whether jobs of `namespace` may use this key.
    pub fn allows(&self, namespace: &str) -> bool {
        self.namespaces.iter().any(|n| n == "*" || n == namespace)
    }
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("the configuration {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml::Error,
    },
    /// Values that do not go together.
    #[error("the configuration {path} is not valid: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What to change.
        what: &'static str,
    },
}

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read or holds something else.
pub fn read<T: serde::de::DeserializeOwned + AsRef<Common>>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    let config: T = serde_yaml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let invalid = |what| {
        Err(ConfigError::Invalid {
            path: path.to_owned(),
            what,
        })
    };
    let common = config.as_ref();
    if common.lease.renew.get() * 2 > common.lease.duration.get() || common.lease.renew.get().is_zero() {
        return invalid("lease.renew must be above zero and at most half of lease.duration");
    }
    if common.heartbeat.interval.get() > common.heartbeat.unreachable_after.get() {
        return invalid("heartbeat.interval must not be above heartbeat.unreachableAfter");
    }
    Ok(config)
}

impl AsRef<Common> for HubConfig {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

impl AsRef<Common> for EdgeConfig {
    fn as_ref(&self) -> &Common {
        &self.common
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_file_is_enough_and_a_typo_is_refused() {
        let hub: HubConfig = serde_yaml::from_str("workerImage: w@sha256:0").unwrap();
        assert_eq!(hub.common.lease.duration.get(), Duration::from_secs(15));
        assert_eq!(hub.common.listen.port(), 8080);
        let full = "workerImage: w\nsigningKeys: [{name: a, secret: s, namespaces: ['*']}]\nhub: {url: 'https://h:6443'}\n\
                    heartbeat: {interval: 60s, unreachableAfter: 5m}\nlease: {duration: 15s, renew: 5s}\nresync: 15m\n\
                    activationTtl: 5m\nnodeNamespace: n\nlisten: 127.0.0.1:0";
        let hub: HubConfig = serde_yaml::from_str(full).unwrap();
        assert!(hub.signing_keys[0].allows("any"));
        assert_eq!(hub.version_history_limit, 10);
        assert!(serde_yaml::from_str::<HubConfig>("workerImage: w\nworkerImages: x").is_err());
        let edge: EdgeConfig = serde_yaml::from_str("cluster: c\nhubKubeconfig: /k").unwrap();
        assert_eq!(edge.common.node_namespace, "fleetune-node");
        assert!(serde_yaml::from_str::<EdgeConfig>("cluster: c\nhubKubeconfig: /k\nextra: 1").is_err());
    }
}
