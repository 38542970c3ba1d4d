//! Turns a registration into values that the API server has no reason to refuse.

use crate::config::HubConfig;
use fleetune_crds::common::Digest;
use fleetune_crds::{DeviceCluster, Mode, names};
use kube::ResourceExt;
use std::time::Duration;

/// A registration that can be carried out.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Name of the cluster.
    pub name: String,
    /// The namespace that belongs to it.
    pub namespace: String,
    /// Of Pull: how its agent reaches this hub.
    pub hub: Option<Hub>,
    /// Of Push: where the kubeconfig lies, as `NAMESPACE/NAME`.
    pub kubeconfig: Option<String>,
    /// Age of the last beat above which it is unreachable.
    pub unreachable_after: Duration,
}

/// How an agent reaches this hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// URL of the API server.
    pub url: String,
    /// Certificates (PEM) of the configuration; those of the hub's own cluster where it has none.
    pub ca_bundle: Option<String>,
}

impl Hub {
    /// Changes when a kubeconfig must be written anew.
    pub fn hash(&self) -> String {
        let text = format!("{}\n{}", self.url, self.ca_bundle.as_deref().unwrap_or_default());
        Digest::of(text.as_bytes()).short().to_owned()
    }
}

/// Why a registration cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// An agent would not know where the hub is.
    #[error("mode Pull needs the hub's address: set hub.url in the chart's values to what this cluster reaches it by")]
    NoHubUrl,
}

impl Invalid {
    /// The reason of the condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoHubUrl => "HubUrlMissing",
        }
    }
}

/// Checks a registration against the configuration of a hub in the namespace `home`.
pub fn validate(cluster: &DeviceCluster, config: &HubConfig, home: &str) -> Result<Validated, Invalid> {
    let name = cluster.name_any();
    let hub = match cluster.spec.mode {
        Mode::Push => None,
        Mode::Pull => Some(Hub {
            url: config
                .hub
                .url
                .clone()
                .filter(|url| !url.is_empty())
                .ok_or(Invalid::NoHubUrl)?,
            ca_bundle: config.hub.ca_bundle.clone().filter(|pem| !pem.trim().is_empty()),
        }),
    };
    Ok(Validated {
        namespace: names::cluster_namespace(&name),
        name,
        kubeconfig: cluster
            .spec
            .kubeconfig_secret
            .as_ref()
            .map(|name| format!("{home}/{name}")),
        hub,
        unreachable_after: config.common.heartbeat.unreachable_after.get(),
    })
}
