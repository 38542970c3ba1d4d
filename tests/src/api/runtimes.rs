//! The nodes of a device cluster without kubelets: Nodes and runtime pods are objects, and the runtimes' part is played by
//! the nodes of the model cluster, which write EdgeNode statuses as the runtime would.

use super::make;
use anyhow::Result;
use fleetune_crds::common::Digest;
use fleetune_crds::{EdgeNode, names};
use fleetune_operator::testing::model_node::{Fate, ModelNode};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How often each runtime looks at its EdgeNode.
const LOOK: Duration = Duration::from_millis(300);

/// The runtimes of one cluster, for one model. They stop with the value.
pub struct Runtimes {
    nodes: Arc<Mutex<BTreeMap<String, ModelNode>>>,
    player: JoinHandle<()>,
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        self.player.abort();
    }
}

impl Runtimes {
    /// Makes Ready Nodes with Ready runtime pods, by name and architecture, and plays the runtimes for the model `key`.
    ///
    /// # Errors
    /// When the server refuses an object.
    pub async fn start(client: &Client, key: &str, nodes: &[(String, &str)]) -> Result<Self> {
        // Pods are admitted with a ServiceAccount only where no controller makes one.
        let account: Api<ServiceAccount> = Api::namespaced(client.clone(), names::NODE_NAMESPACE);
        make(&account, json!({ "metadata": { "name": "default" } })).await?;
        let mut all = BTreeMap::new();
        for (name, arch) in nodes {
            node(client, name, arch).await?;
            all.insert(name.clone(), ModelNode::new(arch, Timestamp::now()));
        }
        let nodes = Arc::new(Mutex::new(all));
        let player = tokio::spawn(play(client.clone(), key.to_owned(), nodes.clone()));
        Ok(Self { nodes, player })
    }

    /// Says how a version fares on every node.
    pub fn fate(&self, digest: &Digest, fate: Fate) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        for node in nodes.values_mut() {
            node.fate(digest, fate);
        }
    }

    /// The nodes as they are.
    pub fn nodes(&self) -> BTreeMap<String, ModelNode> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A Ready Node with a Ready runtime pod.
async fn node(client: &Client, name: &str, arch: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    make(&nodes, json!({ "metadata": { "name": name } })).await?;
    let now = Timestamp::now();
    let info = json!({
        "architecture": arch, "bootID": "", "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "",
        "kubeletVersion": "", "machineID": "", "operatingSystem": "linux", "osImage": "", "systemUUID": "",
    });
    let ready = json!({
        "type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": now, "lastHeartbeatTime": now,
    });
    let params = PatchParams::default();
    let status = json!({ "status": { "nodeInfo": info, "conditions": [ready] } });
    nodes.patch_status(name, &params, &Patch::Merge(status)).await?;
    let taints = json!({ "spec": { "taints": null, "unschedulable": null } });
    nodes.patch(name, &params, &Patch::Merge(taints)).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), names::NODE_NAMESPACE);
    let called = format!("runtime-{name}");
    let pod = json!({
        "metadata": { "name": called, "labels": { "app.kubernetes.io/name": "fleetune-node" } },
        "spec": { "nodeName": name, "containers": [{ "name": "node", "image": "worker" }] },
    });
    make(&pods, pod).await?;
    let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": now });
    let status = json!({ "status": { "phase": "Running", "conditions": [ready] } });
    pods.patch_status(&called, &params, &Patch::Merge(status)).await?;
    Ok(())
}

async fn play(client: Client, key: String, nodes: Arc<Mutex<BTreeMap<String, ModelNode>>>) {
    let api: Api<EdgeNode> = Api::all(client);
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(all) = api.list(&ListParams::default()).await else {
            continue;
        };
        for edge_node in all {
            let name = edge_node.name_any();
            let state = {
                let mut nodes = nodes.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(node) = nodes.get_mut(&name) else { continue };
                node.look(edge_node.spec.models.get(&key), Timestamp::now());
                node.was_told().then(|| node.state.clone())
            };
            let Some(state) = state else { continue };
            let old = edge_node.status.unwrap_or_default();
            if old.models.get(&key) == Some(&state) {
                continue;
            }
            let models = BTreeMap::from([(key.clone(), state)]);
            let status = json!({
                "apiVersion": EdgeNode::api_version(&()), "kind": EdgeNode::kind(&()),
                "status": { "build": "0.1.0", "models": models },
            });
            let params = PatchParams::apply(names::MANAGER_NODE).force();
            // What is refused now is written at the next look.
            let _ = api.patch_status(&name, &params, &Patch::Apply(&status)).await;
        }
    }
}
