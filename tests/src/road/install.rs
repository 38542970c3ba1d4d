//! Installing Fleetune on the lab the way the README tells a user to: `helm install`, `kubectl apply`, a Secret.

use super::Show;
use crate::images::{self, Built};
use crate::lab::{Lab, paths::tree};
use anyhow::{Context, Result};
use base64::Engine;
use fleetune_crds::{DeviceCluster, conditions, names};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use p256::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::time::Duration;
use tokio::sync::OnceCell;

/// Namespace of the operator, on every cluster.
pub const SYSTEM: &str = "fleetune-system";
/// Namespace of the example job and rollout.
pub const SHOP: &str = "shop";

/// The images, built and pushed once in a process.
static BUILT: OnceCell<Built> = OnceCell::const_new();

/// Shorter than the charts' default of a minute, so that tests of cut links take seconds.
fn heartbeat() -> Value {
    json!({ "interval": "5s", "unreachableAfter": "20s" })
}

/// A signing key and its public half, PEM.
pub struct Keys {
    /// PKCS#8.
    pub private: String,
    /// SPKI.
    pub public: String,
}

impl Keys {
    /// The pair of a private key.
    fn of(private: String) -> Result<Self> {
        let public = p256::SecretKey::from_pkcs8_pem(&private)?
            .public_key()
            .to_public_key_pem(LineEnding::LF)?;
        Ok(Self { private, public })
    }

    /// A new random P-256 key.
    ///
    /// # Errors
    /// When it cannot be written as PEM.
    pub fn generate() -> Result<Self> {
        let secret = p256::SecretKey::random(&mut p256::elliptic_curve::rand_core::OsRng);
        Ok(Self {
            private: secret.to_pkcs8_pem(LineEnding::LF)?.to_string(),
            public: secret.public_key().to_public_key_pem(LineEnding::LF)?,
        })
    }
}

/// Fleetune on the lab.
pub struct Road {
    /// The lab that it runs on.
    pub lab: Lab,
    /// The images that the charts were installed with.
    pub images: Built,
    /// The key that the hub signs with and the edges trust.
    pub keys: Keys,
}

impl Road {
    /// Fleetune on the lab, brought up and installed as far as it isn't yet. Doing it again changes nothing.
    ///
    /// # Errors
    /// When the lab, an image or a chart does not come up.
    pub async fn ready(show: &mut Show) -> Result<Self> {
        show.step("lab: a hub and two device clusters");
        let lab = Lab::up_or_attach().await?;
        show.step("images: operator and worker");
        let built = BUILT.get_or_try_init(|| images::build(&lab)).await?.clone();
        let hub = lab.cluster("hub")?.client().await?;
        let keys = match secret_value(&hub, SYSTEM, "fleetune-signing-key", "key.pem").await? {
            Some(private) => Keys::of(private)?,
            None => Keys::generate()?,
        };
        let road = Self {
            lab,
            images: built,
            keys,
        };
        show.step("helm install fleetune on the hub");
        road.install_hub().await?;
        show.step("register edge-a (Pull) and edge-b (Push), helm install fleetune-edge on both");
        road.register_edges().await?;
        apply(&road.lab, "hub", &namespace(SHOP)).await?;
        Ok(road)
    }

    /// Installs the hub chart and waits until it is ready.
    ///
    /// # Errors
    /// When Helm says so, or a Deployment is not ready in three minutes.
    pub async fn install_hub(&self) -> Result<()> {
        let hub = self.lab.cluster("hub")?;
        apply(&self.lab, "hub", &namespace(SYSTEM)).await?;
        let key = secret("fleetune-signing-key", "key.pem", &self.keys.private);
        apply(&self.lab, "hub", &key).await?;
        let values = json!({
            "image": { "ref": self.images.operator.reference },
            "worker": { "image": { "ref": self.images.worker.reference } },
            "insecureRegistries": [self.lab.registry_addr()],
            "hub": { "url": hub.server() },
            "signingKeys": [{ "name": "default", "secret": "fleetune-signing-key", "namespaces": ["*"] }],
            "defaultSigningKey": "default",
            "heartbeat": heartbeat(),
        });
        self.helm_install("hub", "fleetune", "charts/fleetune", &values).await
    }

    /// Registers `edge-a` (Pull) and `edge-b` (Push) by the example manifests and installs the edge chart on both.
    ///
    /// # Errors
    /// When a cluster's namespace or kubeconfig does not appear, or a chart is not ready in three minutes.
    pub async fn register_edges(&self) -> Result<()> {
        self.install_edge("edge-b", "Push").await?;
        let account = push_kubeconfig(&self.lab, "edge-b").await?;
        apply(&self.lab, "hub", &secret("edge-b", "kubeconfig", &account)).await?;
        self.lab
            .cluster("hub")?
            .kubectl(&["apply", "-f", path("examples/clusters.yaml")?.as_str()])
            .await?;
        let client = self.lab.cluster("hub")?.client().await?;
        super::follow(
            Api::<DeviceCluster>::all(client.clone()),
            "edge-a",
            Duration::from_mins(1),
            |cluster| match cluster.status.as_ref().and_then(|s| s.token_issued_at.as_ref()) {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            },
        )
        .await?;
        let kubeconfig = secret_value(
            &client,
            &names::cluster_namespace("edge-a"),
            names::EDGE_ACCOUNT,
            "kubeconfig",
        )
        .await?
        .context("no kubeconfig in the Secret of edge-a")?;
        apply(&self.lab, "edge-a", &namespace(SYSTEM)).await?;
        apply(&self.lab, "edge-a", &secret("fleetune-hub", "kubeconfig", &kubeconfig)).await?;
        self.install_edge("edge-a", "Pull").await?;
        for name in ["edge-a", "edge-b"] {
            super::follow(
                Api::<DeviceCluster>::all(client.clone()),
                name,
                Duration::from_mins(2),
                |cluster| {
                    let ready = cluster
                        .status
                        .as_ref()
                        .is_some_and(|s| conditions::is_true(&s.conditions, conditions::READY));
                    if ready {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                },
            )
            .await?;
        }
        Ok(())
    }

    async fn install_edge(&self, cluster: &str, mode: &str) -> Result<()> {
        apply(&self.lab, cluster, &namespace(SYSTEM)).await?;
        let values = json!({
            "mode": mode,
            "cluster": cluster,
            "image": { "ref": self.images.operator.reference },
            "worker": { "image": { "ref": self.images.worker.reference } },
            "insecureRegistries": [self.lab.registry_addr()],
            "hub": { "kubeconfigSecret": "fleetune-hub" },
            "trustedKeys": [{ "name": "default", "publicKey": self.keys.public, "namespaces": ["*"] }],
            "node": { "service": { "nodePort": 30080 } },
            "heartbeat": heartbeat(),
        });
        self.helm_install(cluster, "fleetune-edge", "charts/fleetune-edge", &values)
            .await
    }

    async fn helm_install(&self, cluster: &str, release: &str, chart: &str, values: &Value) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        serde_json::to_writer(file.as_file(), values)?;
        let values = file.path().to_str().context("a temporary path")?;
        let args = [
            "upgrade",
            "--install",
            release,
            &path(chart)?,
            "--namespace",
            SYSTEM,
            "--create-namespace",
            "--values",
            values,
            "--wait",
            "--timeout",
            "3m",
        ];
        self.lab
            .cluster(cluster)?
            .helm(&args)
            .await
            .with_context(|| format!("{chart} on {cluster}"))?;
        Ok(())
    }
}

/// Applies one object with kubectl, as a person would.
///
/// # Errors
/// When kubectl says so.
pub async fn apply(lab: &Lab, cluster: &str, object: &Value) -> Result<()> {
    let file = tempfile::Builder::new().suffix(".json").tempfile()?;
    serde_json::to_writer(file.as_file(), object)?;
    let name = file.path().to_str().context("a temporary path")?;
    lab.cluster(cluster)?
        .kubectl(&["apply", "--server-side", "-f", name])
        .await?;
    Ok(())
}

/// A kubeconfig with the account that the edge chart made for the hub, as its notes say.
async fn push_kubeconfig(lab: &Lab, cluster: &str) -> Result<String> {
    let cluster = lab.cluster(cluster)?;
    let client = cluster.client().await?;
    let token = super::follow(
        Api::<Secret>::namespaced(client, SYSTEM),
        "fleetune-edge-token",
        Duration::from_secs(30),
        |secret| match secret.data.as_ref().and_then(|data| data.get("token")) {
            Some(token) => ControlFlow::Break(token.0.clone()),
            None => ControlFlow::Continue(()),
        },
    )
    .await?;
    let ca = base64::engine::general_purpose::STANDARD.encode(cluster.ca_bundle()?);
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "edge",
        "clusters": [{ "name": "edge", "cluster": { "server": cluster.server(), "certificate-authority-data": ca } }],
        "users": [{ "name": "edge", "user": { "token": String::from_utf8(token)? } }],
        "contexts": [{ "name": "edge", "context": { "cluster": "edge", "user": "edge", "namespace": SYSTEM } }],
    });
    Ok(serde_yaml::to_string(&config)?)
}

/// One key of a Secret; none where either is not there.
async fn secret_value(client: &kube::Client, namespace: &str, name: &str, key: &str) -> Result<Option<String>> {
    let secret = Api::<Secret>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await?;
    let value = secret.and_then(|secret| secret.data?.remove(key));
    Ok(value.map(|value| String::from_utf8(value.0)).transpose()?)
}

fn secret(name: &str, key: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": { "name": name, "namespace": SYSTEM },
        "stringData": { key: value },
    })
}

/// A Namespace.
pub fn namespace(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })
}

/// A path in the repository.
///
/// # Errors
/// When it is not UTF-8.
pub fn path(relative: &str) -> Result<String> {
    let root = tree().join(relative);
    Ok(root.to_str().context("the repository's path is not UTF-8")?.to_owned())
}
