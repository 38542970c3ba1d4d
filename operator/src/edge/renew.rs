//! A Pull agent's token: the hub renews it in the Secret of the cluster's namespace there, and this brings it home, into
//! the Secret that the agent's kubeconfig is mounted from. Nothing but the token is taken over, so that how this cluster
//! reaches the hub stays what the cluster's own people wrote; and a token that the hub does not take is not kept.

use super::apply::{Error as CallError, call};
use super::kubeconfig::{self, KubeconfigError};
use super::metrics::EdgeMetrics;
use crate::runtime::Shutdown;
use crate::runtime::clock::jitter;
use crate::runtime::error::chain;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fleetune_crds::names;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use serde_yaml::Value;
use std::time::Duration;

/// How often the hub is asked. A token is renewed two months before it ends.
const PERIOD: Duration = Duration::from_hours(1);
/// How soon after the first failure; doubled for each further one.
const RETRY: Duration = Duration::from_secs(30);

/// Why a token was not brought home.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An API server.
    #[error(transparent)]
    Call(#[from] CallError),
    /// One of the two kubeconfigs.
    #[error("Secret {secret}: {source}")]
    Kubeconfig {
        /// Which.
        secret: String,
        /// What is wrong with it.
        source: KubeconfigError,
    },
    /// A kubeconfig without a place for a token.
    #[error("Secret {0}: the kubeconfig's current user has no token")]
    NoToken(String),
}

/// Where tokens come from and go to.
pub struct Renewal {
    /// Name of the DeviceCluster.
    pub cluster: String,
    /// Client of the hub.
    pub hub: Client,
    /// Client of the device cluster.
    pub device: Client,
    /// Namespace of this process, which holds the Secret.
    pub namespace: String,
    /// The Secret with the agent's kubeconfig.
    pub secret: String,
}

impl Renewal {
    /// Brings tokens home until the switch is thrown.
    pub async fn keep(&self, metrics: &EdgeMetrics, shutdown: &Shutdown) {
        let mut retry = RETRY;
        loop {
            let wait = match self.once(metrics).await {
                Ok(renewed) => {
                    if renewed {
                        tracing::info!(cluster = self.cluster, "a renewed token for the hub is stored");
                    }
                    retry = RETRY;
                    PERIOD
                }
                Err(error) => {
                    tracing::warn!(cluster = self.cluster, error = chain(&error), "no token was renewed");
                    let wait = retry;
                    retry = (retry * 2).min(PERIOD);
                    wait
                }
            };
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(jitter(wait, 0.2)) => {}
            }
        }
    }

    /// Brings the token home, if it is another one than the one here; whether it is.
    ///
    /// # Errors
    /// When an API server does not answer, or a kubeconfig is not what it should be.
    pub async fn once(&self, metrics: &EdgeMetrics) -> Result<bool, Error> {
        let namespace = names::cluster_namespace(&self.cluster);
        let there: Api<Secret> = Api::namespaced(self.hub.clone(), &namespace);
        let here: Api<Secret> = Api::namespaced(self.device.clone(), &self.namespace);
        let asked = there.get(names::EDGE_ACCOUNT);
        let renewed = call(metrics, "get", "reading the renewed kubeconfig", asked).await?;
        let own = call(metrics, "get", "reading the own kubeconfig", here.get(&self.secret)).await?;
        let renewed = Document::of(&renewed)?;
        let mut document = Document::of(&own)?;
        let token = renewed.token()?;
        if document.token()? == token {
            return Ok(false);
        }
        document.set_token(token)?;
        let text = document.text();
        self.prove(metrics, &text, &namespace).await?;
        let patch = Patch::Merge(json!({
            "metadata": { "resourceVersion": own.resource_version() },
            "data": { kubeconfig::KEY: STANDARD.encode(text) },
        }));
        let params = PatchParams {
            field_manager: Some(names::MANAGER_EDGE.to_owned()),
            ..PatchParams::default()
        };
        let written = here.patch(&self.secret, &params, &patch);
        call(metrics, "patch", "storing the renewed kubeconfig", written).await?;
        Ok(true)
    }

    /// Reads the heartbeat as the renewed kubeconfig would.
    async fn prove(&self, metrics: &EdgeMetrics, text: &str, namespace: &str) -> Result<(), Error> {
        let client = kubeconfig::client(text).await.map_err(|source| Error::Kubeconfig {
            secret: self.secret.clone(),
            source,
        })?;
        let leases: Api<Lease> = Api::namespaced(client.0, namespace);
        let asked = leases.get(names::LEASE_HEARTBEAT);
        call(metrics, "get", "trying the renewed token", asked).await?;
        Ok(())
    }
}

/// A kubeconfig as a document, so that what is not understood here is kept.
struct Document {
    secret: String,
    value: Value,
}

impl Document {
    fn of(secret: &Secret) -> Result<Self, Error> {
        let name = secret.name_any();
        let read = |source| Error::Kubeconfig {
            secret: name.clone(),
            source,
        };
        let text = kubeconfig::of_secret(secret).map_err(read)?;
        let value = serde_yaml::from_str(text).map_err(|e| read(KubeconfigError::Read(e.to_string())))?;
        Ok(Self { secret: name, value })
    }

    /// Where the current user's token stands.
    fn place(&mut self) -> Option<&mut Value> {
        let named = |list: &Value, name: &Value| list.as_sequence()?.iter().position(|item| item["name"] == *name);
        let context = named(&self.value["contexts"], &self.value["current-context"])?;
        let user = self.value["contexts"][context]["context"]["user"].clone();
        let user = named(&self.value["users"], &user)?;
        self.value
            .get_mut("users")?
            .get_mut(user)?
            .get_mut("user")?
            .get_mut("token")
    }

    fn token(&self) -> Result<String, Error> {
        let mut copy = Self {
            secret: self.secret.clone(),
            value: self.value.clone(),
        };
        let token = copy.place().and_then(|token| token.as_str().map(str::to_owned));
        token
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::NoToken(self.secret.clone()))
    }

    fn set_token(&mut self, token: String) -> Result<(), Error> {
        let secret = self.secret.clone();
        *self.place().ok_or(Error::NoToken(secret))? = Value::String(token);
        Ok(())
    }

    fn text(&self) -> String {
        serde_yaml::to_string(&self.value).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(text: &str) -> Document {
        let data = json!({ "kubeconfig": STANDARD.encode(text) });
        let secret = json!({ "metadata": { "name": "s" }, "data": data });
        Document::of(&serde_json::from_value(secret).unwrap()).unwrap()
    }

    /// Another address, a proxy and a second user: what the cluster's own people wrote.
    const OWN: &str = "\
apiVersion: v1
kind: Config
current-context: hub
contexts: [{name: other, context: {cluster: hub, user: old}}, {name: hub, context: {cluster: hub, user: edge}}]
clusters: [{name: hub, cluster: {server: 'https://10.1.1.1:6443', proxy-url: 'http://p', tls-server-name: hub}}]
users: [{name: old, user: {token: first}}, {name: edge, user: {token: second}}]
";

    #[test]
    fn the_token_of_the_current_user_is_replaced_and_nothing_else() {
        let mut own = document(OWN);
        assert_eq!(own.token().unwrap(), "second");
        own.set_token("third".into()).unwrap();
        let mut expected: Value = serde_yaml::from_str(OWN).unwrap();
        expected["users"][1]["user"]["token"] = "third".into();
        assert_eq!(serde_yaml::from_str::<Value>(&own.text()).unwrap(), expected);
    }

    #[test]
    fn a_kubeconfig_without_a_token_is_left_alone() {
        for text in [
            OWN.replace("current-context: hub", "current-context: gone"),
            OWN.replace("token: second", "client-key-data: YQ=="),
            OWN.replace("token: second", "token: ''"),
        ] {
            assert!(matches!(document(&text).token(), Err(Error::NoToken(_))), "{text}");
        }
    }
}
