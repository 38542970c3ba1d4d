//! EdgeNode: one node of a device cluster and the models that it shall serve. The edge controller writes the spec, the
//! node's runtime the status.

use crate::common::{Digest, Span};
use crate::modelversion::Source;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most models on a node.
pub const MAX_MODELS: usize = 32;

/// A node, named as its Node object but not owned by it: a Node that registers again finds its EdgeNode as it was.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "EdgeNode",
    plural = "edgenodes",
    shortname = "en",
    category = "fleetune",
    status = "EdgeNodeStatus",
    derive = "PartialEq",
    printcolumn(name = "Class", type_ = "string", json_path = ".spec.class"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Runtime", type_ = "string", json_path = ".status.build"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.models.all(k, !(k in oldSelf.models) || self.models[k].epoch >= oldSelf.models[k].epoch)").message("epochs only grow"))]
pub struct EdgeNodeSpec {
    /// Hardware class.
    #[schemars(length(min = 1, max = 63))]
    pub class: String,
    /// The models by NAMESPACE/MODEL. A key that is gone is no order: only `state: Remove` unloads.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 32))]
    pub models: BTreeMap<String, ModelOrder>,
}

/// What a node shall do with one model.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ModelOrder {
    /// Grows with each order; the runtime keeps the highest on disk and refuses lower ones.
    #[schemars(range(min = 0))]
    pub epoch: i64,
    /// Number of the rollout's run.
    #[serde(default)]
    pub run: i64,
    /// The version to stage and activate. None: no version (after an abort with nothing proven).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
    /// What to return to when the version fails. None: to nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Source>,
    /// Time without fault before Proven.
    pub min_success_time: Span,
    /// Time from `pickedAt` to Active; the edge controller judges it.
    pub progress_deadline: Span,
    /// When the edge controller picked this node for this version.
    pub picked_at: Time,
    /// Serve, or unload.
    pub state: OrderState,
}

/// Serve, or unload.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OrderState {
    /// Stage, self-test, activate and serve `source`.
    Serve,
    /// Unload the model and forget its versions.
    Remove,
}

/// What a node's runtime says of itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct EdgeNodeStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Version of the runtime.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub build: String,
    /// The models by NAMESPACE/MODEL.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64))]
    pub models: BTreeMap<String, ModelState>,
    /// Summary condition Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One model on one node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelState {
    /// Highest epoch that the runtime has taken.
    pub epoch: i64,
    /// The version that `state` is about; none after an order without a version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// How far that version is.
    pub state: VersionState,
    /// A PascalCase word for Failed and Skipped.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What, where and what to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When this state began.
    pub since: Time,
    /// The version that serves now; with Failed it is the fallback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<Digest>,
}

/// How far a version is on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VersionState {
    /// Nothing has been asked, or the order was to have no version.
    Idle,
    /// Being downloaded, checked and self-tested.
    Staging,
    /// Ready to activate.
    Staged,
    /// Serves, in its soak.
    Active,
    /// Served through its soak.
    Proven,
    /// Was refused, or failed while it served; never loaded again.
    Failed,
    /// This node cannot take it; no fault of the version.
    Skipped,
    /// Unloaded by order.
    Removed,
}
