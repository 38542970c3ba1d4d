//! RolloutAction: one person's word on one run of a rollout. An object of its own, so that approving is a right of its own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Approves the next wave of a run, or aborts the run. Immutable. An action for another run or another list of stages
/// is ignored.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "RolloutAction",
    plural = "rolloutactions",
    shortname = "ra",
    category = "fleetune",
    namespaced,
    status = "RolloutActionStatus",
    derive = "PartialEq",
    printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"),
    printcolumn(name = "Run", type_ = "integer", json_path = ".spec.run"),
    printcolumn(name = "Action", type_ = "string", json_path = ".spec.action"),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.by"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("an action is immutable: make a new one"))]
#[x_kube(validation = Rule::new("self.action != 'Approve' || has(self.stage)").message("an Approve names the stage that it lets start"))]
pub struct RolloutActionSpec {
    /// Name of the ModelRollout in this namespace.
    #[schemars(length(min = 1, max = 253))]
    pub rollout: String,
    /// Number of the run (`status.run.number`).
    #[schemars(range(min = 1))]
    pub run: i64,
    /// Hash of the stages (`status.run.stageHash`).
    #[schemars(length(min = 1, max = 64))]
    pub stage_hash: String,
    /// What to do.
    pub action: Action,
    /// Of an Approve: the stage that may start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub stage: Option<String>,
    /// Who says so. The chart's admission policy demands that it is the one who creates this object.
    #[schemars(length(min = 1, max = 253))]
    pub by: String,
}

/// What to do with a run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets the stage that waits for approval start.
    Approve,
    /// Ends the run and takes its nodes back to the proven version.
    Abort,
}

/// What the controller made of an action.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RolloutActionStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Condition Ready: True once taken, False with reason Ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
