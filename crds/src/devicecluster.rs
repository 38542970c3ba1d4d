//! DeviceCluster: a K3s cluster at the edge, registered on the hub.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A cluster whose nodes can get models. Its labels (site, hardware) are what rollouts select. Registering one makes
/// the namespace `fleetune-dc-NAME`, and for Pull an account with a kubeconfig in the Secret `fleetune-edge` there.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "DeviceCluster",
    plural = "deviceclusters",
    shortname = "dc",
    category = "fleetune",
    status = "DeviceClusterStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.size() <= 51").message("a cluster's name has at most 51 characters, so that its namespace can carry it"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(self.mode == 'Push') == has(self.kubeconfigSecret)").message("kubeconfigSecret belongs to mode Push, and only there"))]
pub struct DeviceClusterSpec {
    /// Pull: an agent in the cluster asks the hub. Push: the hub reaches the cluster.
    pub mode: Mode,
    /// Of Push: Secret in the operator's namespace whose key `kubeconfig` reaches the cluster. Plugins and file
    /// references in it are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub kubeconfig_secret: Option<String>,
    /// Namespaces whose rollouts may use this cluster. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_namespaces: Vec<String>,
}

/// Who reaches whom.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The hub reaches the cluster.
    Push,
    /// The cluster reaches the hub.
    Pull,
}

/// What the hub has seen of a cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct DeviceClusterStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The namespace that the hub made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// When the token in the kubeconfig was made; it is renewed at a third of its life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_issued_at: Option<Time>,
    /// Summary condition Ready: False with reason Unreachable while its heartbeat is older than five minutes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
