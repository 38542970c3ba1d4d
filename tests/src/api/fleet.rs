//! A hub and two device clusters without kubelets, one Pull, one Push, each component with exactly the rights of the
//! access table, and the model `shop/shirts` on three nodes of each.

use super::operator::Running;
use super::runtimes::Runtimes;
use super::{HOME, access, eventually, make};
use crate::lab::ApiServer;
use anyhow::{Context, Result, bail};
use fleetune_crds::access::Actor;
use fleetune_crds::common::Digest;
use fleetune_crds::{DeviceCluster, ModelRollout, ModelRolloutStatus, ModelVersion, names};
use fleetune_operator::testing::model_node::ModelNode;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::NamedTempFile;

/// Short times, so that a test sees them pass.
const HEARTBEAT: &str = "heartbeat: {interval: 1s, unreachableAfter: 10s}\n";
/// A lease for tests in which another process takes over.
pub const SHORT_LEASE: &str = "lease: {duration: 12s, renew: 1s}\n";
/// A lease that outlasts an API server's restart.
pub const LONG_LEASE: &str = "lease: {duration: 60s, renew: 1s}\n";
/// The model's key on nodes.
const KEY: &str = "shop/shirts";

/// Everything; it ends with the value.
pub struct Fleet {
    /// The hub's API server.
    pub server: ApiServer,
    /// The hub, as its administrator.
    pub admin: Client,
    /// The Pull and the Push cluster, as their administrators.
    pub devices: [Client; 2],
    /// The nodes of both.
    pub runtimes: [Runtimes; 2],
    /// The hub operator.
    pub hub: Running,
    /// The agent of the Pull cluster.
    pub agent: Running,
    lease: &'static str,
    _servers: [ApiServer; 2],
    _kubeconfig: NamedTempFile,
}

impl Fleet {
    /// Starts everything and registers the clusters `alpha` (Pull) and `beta` (Push), both with the label `site: shop`.
    /// Every leader holds its Lease as `lease` says.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(lease: &'static str) -> Result<Self> {
        let server = ApiServer::start().await?;
        let admin = server.client().await?;
        prepare(&admin, fleetune_crds::yaml::hub()).await?;
        access::grant(&admin, Actor::Hub, "hub-user").await?;
        access::agents_role(&admin).await?;
        let ((alpha, pull, first), (beta, push, second)) = (device("alpha").await?, device("beta").await?);
        let hub = start_hub(&server, "hub-0", lease).await?;
        let secret = json!({
            "metadata": { "name": "beta", "namespace": HOME },
            "stringData": { "kubeconfig": beta.kubeconfig_of("edge-user", None)? },
        });
        make(&Api::<Secret>::namespaced(admin.clone(), HOME), secret).await?;
        let clusters: Api<DeviceCluster> = Api::all(admin.clone());
        for (name, spec) in [
            ("alpha", json!({ "mode": "Pull" })),
            ("beta", json!({ "mode": "Push", "kubeconfigSecret": "beta" })),
        ] {
            let cluster = json!({
                "apiVersion": "fleetune.dev/v1alpha1", "kind": "DeviceCluster",
                "metadata": { "name": name, "labels": { "site": "shop" } }, "spec": spec,
            });
            make(&clusters, cluster).await?;
        }
        let kubeconfig = agents_kubeconfig(&server, &admin, "alpha").await?;
        let agent = start_agent(alpha.client_of("edge-user", None).await?, kubeconfig.path(), lease)?;
        Ok(Self {
            server,
            admin,
            devices: [pull, push],
            runtimes: [first, second],
            hub,
            agent,
            lease,
            _servers: [alpha, beta],
            _kubeconfig: kubeconfig,
        })
    }

    /// Kills the hub operator and starts another one.
    ///
    /// # Errors
    /// When the other one cannot be set up.
    pub async fn replace_hub(&mut self, name: &str) -> Result<()> {
        self.hub.task.abort();
        self.hub = start_hub(&self.server, name, self.lease).await?;
        Ok(())
    }

    /// The rollouts of the model's namespace.
    pub fn rollouts(&self) -> Api<ModelRollout> {
        Api::namespaced(self.admin.clone(), "shop")
    }

    /// Makes the rollout `shirts`, which follows the latest version, with this strategy.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn roll_out(&self, strategy: Value) -> Result<()> {
        let rollout = json!({
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelRollout",
            "metadata": { "name": "shirts", "namespace": "shop" },
            "spec": {
                "modelName": "shirts", "follow": "LatestPassing", "strategy": strategy,
                "targets": { "clusters": { "matchLabels": { "site": "shop" } } },
            },
        });
        make(&self.rollouts(), rollout).await?;
        Ok(())
    }

    /// Publishes version `n` of the model, `shirts-N`, whose contract is the hash of `contract`.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn publish(&self, n: u32, contract: &str) -> Result<()> {
        let (digest, contract) = (digest(n), Digest::of(contract.as_bytes()));
        let version = json!({
            "metadata": { "name": format!("shirts-{n}"), "namespace": "shop" },
            "apiVersion": "fleetune.dev/v1alpha1", "kind": "ModelVersion",
            "spec": {
                "modelName": "shirts", "sequence": n, "task": "Classification", "job": "j", "dataManifest": digest,
                "baseModelSha256": "0".repeat(64), "publishedAt": "2026-01-01T00:00:00Z",
                "source": { "repository": "registry.test/m", "digest": digest, "report": digest, "signature": digest,
                            "contract": contract },
                "summary": { "samples": 1, "metrics": {}, "baseline": "majority", "baselineMetrics": {}, "bytes": 1,
                             "p95LatencyMs": "1", "peakMemoryBytes": 1, "contract": contract },
            },
        });
        make(&Api::<ModelVersion>::namespaced(self.admin.clone(), "shop"), version).await?;
        Ok(())
    }

    /// Waits until the status of the rollout is as it should be.
    ///
    /// # Errors
    /// When it never is; the message holds the last status.
    pub async fn until(&self, what: &str, holds: impl Fn(&ModelRolloutStatus) -> bool) -> Result<ModelRolloutStatus> {
        let api = self.rollouts();
        let found = eventually(what, || async {
            let status = api.get("shirts").await?.status.unwrap_or_default();
            Ok(holds(&status).then_some(status))
        })
        .await;
        if found.is_err() {
            bail!("no {what}: {:#?}", api.get("shirts").await?.status);
        }
        found
    }

    /// Waits until the run of version `n` is in this phase.
    ///
    /// # Errors
    /// When it never is.
    pub async fn until_phase(&self, phase: &str, n: u32) -> Result<ModelRolloutStatus> {
        let name = format!("shirts-{n}");
        self.until(&format!("{phase} of {name}"), |status| {
            let same = status.run.as_ref().is_some_and(|r| r.version == name);
            same && status.phase.as_deref() == Some(phase)
        })
        .await
    }

    /// All nodes by name.
    pub fn nodes(&self) -> BTreeMap<String, ModelNode> {
        self.runtimes.iter().flat_map(Runtimes::nodes).collect()
    }

    /// The nodes that serve something else than version `n`.
    pub fn astray(&self, n: u32) -> Vec<String> {
        let wanted = Some(digest(n));
        let nodes = self.nodes().into_iter();
        nodes
            .filter(|(_, node)| node.state.active != wanted)
            .map(|(name, _)| name)
            .collect()
    }

    /// Ends the operator's processes in order.
    ///
    /// # Errors
    /// When one does not end, or ends with an error.
    pub async fn end(self) -> Result<()> {
        self.agent.end().await?;
        self.hub.end().await
    }
}

/// The digest that stands for version `n`.
pub fn digest(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

async fn prepare(client: &Client, kinds: Vec<(&str, CustomResourceDefinition)>) -> Result<()> {
    for name in [HOME, "shop", names::NODE_NAMESPACE] {
        let namespace = json!({ "metadata": { "name": name } });
        make(&Api::<Namespace>::all(client.clone()), namespace).await?;
    }
    for (_, crd) in kinds {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        api.create(&PostParams::default(), &crd).await?;
    }
    Ok(())
}

/// A device cluster with three nodes of two classes.
async fn device(cluster: &str) -> Result<(ApiServer, Client, Runtimes)> {
    let server = ApiServer::start().await?;
    let client = server.client().await?;
    prepare(&client, fleetune_crds::yaml::edge()).await?;
    access::grant(&client, Actor::Edge, "edge-user").await?;
    let classes = ["amd64", "arm64", "amd64"].into_iter().enumerate();
    let nodes: Vec<(String, &str)> = classes.map(|(n, class)| (format!("{cluster}-{n}"), class)).collect();
    let runtimes = Runtimes::start(&client, KEY, &nodes).await?;
    Ok((server, client, runtimes))
}

async fn start_hub(server: &ApiServer, name: &str, lease: &str) -> Result<Running> {
    let client = server.client_of("hub-user", None).await?;
    Running::hub(
        name,
        client,
        &format!("hub: {{url: '{}'}}\n{HEARTBEAT}{lease}", server.url()),
    )
}

/// The kubeconfig that registration made for an agent, with the certificates of the test's server: no ConfigMap holds them
/// here.
async fn agents_kubeconfig(server: &ApiServer, admin: &Client, cluster: &str) -> Result<NamedTempFile> {
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), &names::cluster_namespace(cluster));
    let secret = eventually("the agent's kubeconfig", || async {
        Ok(secrets.get_opt(names::EDGE_ACCOUNT).await?)
    })
    .await?;
    let mut kubeconfig: Value = serde_json::from_slice(&secret.data.context("data")?["kubeconfig"].0)?;
    let own: Value = serde_yaml::from_str(&server.kubeconfig()?)?;
    let authority = "certificate-authority-data";
    kubeconfig["clusters"][0]["cluster"][authority] = own["clusters"][0]["cluster"][authority].clone();
    let file = NamedTempFile::new()?;
    std::fs::write(file.path(), kubeconfig.to_string())?;
    Ok(file)
}

fn start_agent(client: Client, kubeconfig: &Path, lease: &str) -> Result<Running> {
    let config = format!(
        "cluster: alpha\nhubKubeconfig: {}\n{HEARTBEAT}{lease}",
        kubeconfig.display()
    );
    Running::edge("edge-0", client, &config)
}
