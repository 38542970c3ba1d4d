//! Installing Fleetune on the lab the way the README tells a user to: `helm install`, `kubectl apply`, a Secret.

use crate::lab::Lab;
use anyhow::{Context, Result};
use fleetune_crds::{DeviceCluster, conditions, names};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use p256::pkcs8::{EncodePrivateKey, EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

/// Namespace of the operator, on every cluster.
pub const SYSTEM: &str = "fleetune-system";
/// Namespace of the example job and rollout.
pub const SHOP: &str = "shop";

/// A signing key and its public half, PEM.
pub struct Keys {
    /// PKCS#8.
    pub private: String,
    /// SPKI.
    pub public: String,
}

impl Keys {
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

/// Image references by digest.
#[derive(Clone, Debug)]
pub struct Images {
    /// `HOST/PATH@sha256:…` of the operator.
    pub operator: String,
    /// `HOST/PATH@sha256:…` of the worker.
    pub worker: String,
}

/// Fleetune on the lab.
pub struct Road {
    /// The lab that it runs on.
    pub lab: Lab,
    /// The images that the charts were installed with.
    pub images: Images,
    /// The key that the hub signs with and the edges trust.
    pub keys: Keys,
}

impl Road {
    /// Installs the hub chart and waits until it is ready.
    ///
    /// # Errors
    /// When Helm says so, or a Deployment is not ready in three minutes.
    pub async fn install_hub(&self) -> Result<()> {
        let hub = self.lab.cluster("hub")?;
        apply(&self.lab, "hub", &namespace(SYSTEM)).await?;
        let key = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": "fleetune-signing-key", "namespace": SYSTEM },
            "stringData": { "key.pem": self.keys.private },
        });
        apply(&self.lab, "hub", &key).await?;
        let values = json!({
            "image": { "ref": self.images.operator },
            "worker": { "image": { "ref": self.images.worker } },
            "insecureRegistries": [self.lab.registry_addr()],
            "hub": { "url": hub.server() },
            "signingKeys": [{ "name": "default", "secret": "fleetune-signing-key", "namespaces": ["*"] }],
            "defaultSigningKey": "default",
        });
        self.helm_install("hub", "fleetune", "charts/fleetune", &values).await
    }

    /// Registers `edge-a` (Pull) and `edge-b` (Push) by the example manifests and installs the edge chart on both.
    ///
    /// # Errors
    /// When a cluster's namespace or kubeconfig does not appear, or a chart is not ready in three minutes.
    pub async fn register_edges(&self) -> Result<()> {
        self.install_edge("edge-b", "Push").await?;
        let account = self.lab.cluster("edge-b")?.inner_kubeconfig()?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": "edge-b", "namespace": SYSTEM },
            "stringData": { "kubeconfig": account },
        });
        apply(&self.lab, "hub", &secret).await?;
        self.lab.cluster("hub")?.kubectl(&["apply", "-f", path("examples/clusters.yaml")?.as_str()]).await?;
        let client = self.lab.cluster("hub")?.client().await?;
        super::follow(Api::<DeviceCluster>::all(client.clone()), "edge-a", Duration::from_secs(60), |cluster| {
            match cluster.status.as_ref().and_then(|s| s.token_issued_at.as_ref()) {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        })
        .await?;
        let secret = Api::<Secret>::namespaced(client.clone(), &names::cluster_namespace("edge-a"))
            .get(names::EDGE_ACCOUNT)
            .await?;
        let kubeconfig = secret.data.as_ref().and_then(|d| d.get("kubeconfig")).context("no kubeconfig in the Secret")?;
        apply(&self.lab, "edge-a", &namespace(SYSTEM)).await?;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": { "name": "fleetune-hub", "namespace": SYSTEM },
            "stringData": { "kubeconfig": String::from_utf8(kubeconfig.0.clone())? },
        });
        apply(&self.lab, "edge-a", &secret).await?;
        self.install_edge("edge-a", "Pull").await?;
        for name in ["edge-a", "edge-b"] {
            super::follow(Api::<DeviceCluster>::all(client.clone()), name, Duration::from_secs(120), |cluster| {
                let ready = cluster.status.as_ref().is_some_and(|s| conditions::is_true(&s.conditions, conditions::READY));
                if ready { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await?;
        }
        Ok(())
    }

    async fn install_edge(&self, cluster: &str, mode: &str) -> Result<()> {
        apply(&self.lab, cluster, &namespace(SYSTEM)).await?;
        let values = json!({
            "mode": mode,
            "cluster": cluster,
            "image": { "ref": self.images.operator },
            "worker": { "image": { "ref": self.images.worker } },
            "insecureRegistries": [self.lab.registry_addr()],
            "hub": { "kubeconfigSecret": "fleetune-hub" },
            "trustedKeys": [{ "name": "default", "publicKey": self.keys.public, "namespaces": ["*"] }],
            "node": { "service": { "nodePort": 30080 } },
        });
        self.helm_install(cluster, "fleetune-edge", "charts/fleetune-edge", &values).await
    }

    async fn helm_install(&self, cluster: &str, release: &str, chart: &str, values: &Value) -> Result<()> {
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        serde_json::to_writer(file.as_file(), values)?;
        let values = file.path().to_str().context("a temporary path")?;
        let args = [
            "upgrade", "--install", release, &path(chart)?, "--namespace", SYSTEM, "--create-namespace",
            "--values", values, "--wait", "--timeout", "3m",
        ];
        self.lab.cluster(cluster)?.helm(&args).await.with_context(|| format!("{chart} on {cluster}"))?;
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
    lab.cluster(cluster)?.kubectl(&["apply", "--server-side", "-f", name]).await?;
    Ok(())
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
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(relative);
    Ok(root.to_str().context("the repository's path is not UTF-8")?.to_owned())
}
