//! ModelPlacement: one model in one device cluster, as counts. The hub writes the spec, the cluster's edge controller
//! the status; neither ever names a single node, but for a capped sample of failures.

use crate::common::{Digest, Span};
use crate::modelversion::Source;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most entries of `status.failures`.
pub const MAX_FAILURE_SAMPLES: usize = 20;

/// A model in one device cluster. Lies on the hub in the cluster's namespace, under the name NAMESPACE.MODEL.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "ModelPlacement",
    plural = "modelplacements",
    shortname = "mp",
    category = "fleetune",
    namespaced,
    status = "ModelPlacementStatus",
    derive = "PartialEq",
    printcolumn(name = "State", type_ = "string", json_path = ".spec.state"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedEpoch"),
    printcolumn(name = "Digest", type_ = "string", json_path = ".spec.source.digest", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.epoch >= oldSelf.epoch").message("epochs only grow"))]
pub struct ModelPlacementSpec {
    /// Namespace of the model.
    // The rule sits on the field: `namespace` is a reserved word of CEL, and escaped it is too dear for the server.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a placement's model is immutable"))]
    pub namespace: String,
    /// Name of the model.
    #[schemars(length(min = 1, max = 40))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("a placement's model is immutable"))]
    pub model_name: String,
    /// Uid of the ModelRollout that owns the model in this cluster; empty while none does.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub rollout_uid: String,
    /// Grows with each order. An order with a lower epoch than one seen is refused.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Number of the rollout's run; picks and failures are counted per run.
    #[serde(default)]
    pub run: i64,
    /// The version that picked nodes get. None: picked nodes unload (after an abort with nothing proven).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// The proven version: what a node returns to by itself, and what late joiners get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Source>,
    /// Digests of versions that were aborted: a node that has one returns to `fallback` at once, without permission.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub aborted: Vec<Digest>,
    /// Labels of the nodes that are meant.
    #[serde(default)]
    pub node_selector: LabelSelector,
    /// Per hardware class, how many nodes may have the version.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub classes: BTreeMap<String, ClassOrder>,
    /// Time that a node must serve the version without fault before it is proven.
    pub min_success_time: Span,
    /// Time that a reachable node has from its pick to Active.
    pub progress_deadline: Span,
    /// Nodes of the wave told to activate that have not reported yet.
    #[schemars(range(min = 1))]
    pub max_in_flight: i32,
    /// Late joiners told to activate `fallback` that have not reported yet. 0: they wait for their turn.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0))]
    pub max_late: i32,
    /// Failed nodes of this run after which the edge permits no further activation: it stops once failures exceed it.
    #[schemars(range(min = 0))]
    pub max_failed: i32,
    /// What to do.
    pub state: PlacementState,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// How many nodes of a class may have the version.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClassOrder {
    /// Nodes permitted to activate.
    #[schemars(range(min = 0))]
    pub activate: i32,
}

/// What an edge controller does with a placement.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PlacementState {
    /// Picks nodes up to the permitted counts.
    Run,
    /// Picks no further node.
    Hold,
    /// Unloads the model everywhere.
    Remove,
}

/// What the edge controller has seen in its cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ModelPlacementStatus {
    /// Epoch of the order that this status is about.
    #[serde(default)]
    pub observed_epoch: i64,
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of the run that the counts are about.
    #[serde(default)]
    pub run: i64,
    /// Highest epoch that any node of this cluster has been ordered or has taken. The hub goes on from there.
    #[serde(default)]
    pub highest_epoch: i64,
    /// `maxLate` of the order that this status is about.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub max_late: i32,
    /// Nodes per hardware class.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 16))]
    pub classes: BTreeMap<String, ClassCounts>,
    /// Nodes per runtime build.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 8))]
    pub runtimes: BTreeMap<String, i32>,
    /// A sample of the failures of this run, at most 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["node".into()]))]
    pub failures: Vec<Failure>,
    /// Summary condition Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Nodes of one class, with respect to `spec.source`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClassCounts {
    /// Match the selector, Node and runtime Ready, not cordoned, not skipped.
    #[serde(default)]
    pub eligible: i32,
    /// Eligible and not picked yet.
    #[serde(default)]
    pub free: i32,
    /// Picked in this run; a pick that left the cluster still counts, a skipped one does not.
    #[serde(default)]
    pub picked: i32,
    /// Serve the version, proven or in soak.
    #[serde(default)]
    pub active: i32,
    /// Served it through their soak.
    #[serde(default)]
    pub proven: i32,
    /// Picked, reachable, and bad: the runtime said so, or the progress deadline passed.
    #[serde(default)]
    pub failed: i32,
    /// Cannot take the version: out of budget or of an unsupported format.
    #[serde(default)]
    pub skipped: i32,
    /// Picked, neither proven nor failed, and not to be reached or gone.
    #[serde(default)]
    pub unreachable: i32,
    /// Reachable, and still with a version that `spec.aborted` names.
    #[serde(default)]
    pub aborted: i32,
    /// Serve any version of this model.
    #[serde(default)]
    pub serving: i32,
    /// Late joiners: without `spec.fallback`, waiting for their turn or on their way to it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub late: i32,
}

/// One failed node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// Name of the node.
    pub node: String,
    /// The version that failed there.
    pub digest: Digest,
    /// A PascalCase word: DigestMismatch, SignatureInvalid, SelfTestFailed, BudgetExceeded, CrashLoop, Errors, …
    pub reason: String,
    /// What, where and what to do.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}
