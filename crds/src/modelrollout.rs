//! ModelRollout: which version of a model the fleet shall serve, and in which stages it gets there.

use crate::common::{CountOrPercent, Digest, Span};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rolls a version of a model out to the nodes of the selected device clusters, stage by stage.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "fleetune.dev",
    version = "v1alpha1",
    kind = "ModelRollout",
    plural = "modelrollouts",
    shortname = "mr",
    category = "fleetune",
    namespaced,
    status = "ModelRolloutStatus",
    derive = "PartialEq",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Wave", type_ = "string", json_path = ".status.wave"),
    printcolumn(name = "Active", type_ = "integer", json_path = ".status.nodes.active"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.nodes.failed"),
    printcolumn(name = "Unreachable", type_ = "integer", json_path = ".status.nodes.unreachable"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.run.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.version) != has(self.follow)").message("name exactly one of version and follow"))]
#[x_kube(validation = Rule::new("self.modelName == oldSelf.modelName").message("modelName is immutable: make a new rollout"))]
pub struct ModelRolloutSpec {
    /// Name of the model, as in the jobs that make it.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub model_name: String,
    /// Name of the ModelVersion to roll out. Changing it during a run aborts the run and starts a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub version: Option<String>,
    /// Takes each new version by itself, between runs. Versions that this rollout aborted are skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<Follow>,
    /// Where the model goes. Default: every node of every DeviceCluster that allows this namespace.
    #[serde(default)]
    pub targets: Targets,
    /// In which stages. Default: one node, then a tenth, then all.
    #[serde(default)]
    pub strategy: Strategy,
    /// Takes a version whose inputs, outputs or labels differ from those of the version that serves, although clients may
    /// break. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_contract_change: bool,
    /// What becomes of the nodes' models when this object is deleted. Default: Retain.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
    /// Starts no new wave and permits no new activation while true. What serves goes on serving. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// What `follow` takes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Follow {
    /// The ModelVersion of this model with the largest sequence.
    LatestPassing,
}

/// Where a model goes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Targets {
    /// Labels of DeviceClusters. Default: all that allow the namespace.
    #[serde(default)]
    pub clusters: LabelSelector,
    /// Labels of Nodes in those clusters. Default: all.
    #[serde(default)]
    pub nodes: LabelSelector,
}

/// In which stages, and what stops them.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// The waves, in order. Sizes are cumulative: the last one should be `100%`.
    #[serde(default = "default_stages")]
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<Stage>,
    /// Nodes told to activate that have not reported yet, over all clusters: a count, or a share of the wave's nodes.
    /// Default: `25%`.
    #[serde(default = "default_max_unavailable", with = "crate::common::count_or_percent")]
    #[schemars(schema_with = "crate::common::int_or_string")]
    pub max_unavailable: CountOrPercent,
    /// Failed nodes of a run, over all clusters, that do not end it yet. Default: 0, the first failure ends the run.
    #[serde(default)]
    #[schemars(range(min = 0, max = 100_000))]
    pub max_failures: i32,
    /// Time that a reachable node has from its pick to Active; later it counts as failed. Default: 10m.
    #[serde(default = "default_progress_deadline")]
    pub progress_deadline: Span,
    /// Share of a wave's nodes that must be proven, the rest being unreachable. Default: `90%`.
    #[serde(default = "default_quorum")]
    #[schemars(regex(pattern = r"^([1-9]|[1-9][0-9]|100)%$"))]
    pub quorum: CountOrPercent,
    /// What ends a run that failed. Default: Rollback.
    #[serde(default)]
    pub on_failure: OnFailure,
}

fn fixed(text: &str) -> CountOrPercent {
    text.parse().unwrap_or_else(|_| unreachable!("a constant"))
}

fn default_max_unavailable() -> CountOrPercent {
    fixed("25%")
}

fn default_quorum() -> CountOrPercent {
    fixed("90%")
}

fn default_progress_deadline() -> Span {
    Span::from(std::time::Duration::from_mins(10))
}

fn default_stages() -> Vec<Stage> {
    let stage = |name: &str, nodes: &str, soak: u64| Stage {
        name: name.to_owned(),
        nodes: fixed(nodes),
        min_success_time: Span::from(std::time::Duration::from_secs(soak)),
        approval: false,
    };
    vec![
        stage("canary", "1", 600),
        stage("tenth", "10%", 3600),
        stage("all", "100%", 0),
    ]
}

impl Default for Strategy {
    fn default() -> Self {
        Self {
            stages: default_stages(),
            max_unavailable: default_max_unavailable(),
            max_failures: 0,
            progress_deadline: default_progress_deadline(),
            quorum: default_quorum(),
            on_failure: OnFailure::Rollback,
        }
    }
}

/// One wave.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Name, unique in the list.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Nodes that run the version after this wave, those of earlier waves included: a count, or a share of all
    /// eligible nodes, rounded up, at least 1.
    #[serde(with = "crate::common::count_or_percent")]
    #[schemars(schema_with = "crate::common::int_or_string")]
    pub nodes: CountOrPercent,
    /// Time that a node must serve the version without fault before it counts as proven. Default: 0s.
    #[serde(default = "no_time")]
    pub min_success_time: Span,
    /// Waits before this wave for a RolloutAction with action Approve. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approval: bool,
}

fn no_time() -> Span {
    Span::from(std::time::Duration::ZERO)
}

/// What ends a run that failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OnFailure {
    /// Every node goes back to the newest proven version, or unloads the model where there is none.
    #[default]
    Rollback,
    /// Nothing more is activated; a person decides.
    Pause,
}

/// What becomes of the nodes' models.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum DeletionPolicy {
    /// Nodes go on serving; the next rollout of the model adopts them.
    #[default]
    Retain,
    /// Nodes unload the model.
    Remove,
}

/// What the controller has seen of a rollout.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ModelRolloutStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people: Pending, Progressing, Soaking, WaitingForApproval, Paused, Complete, RollingBack, RolledBack,
    /// Stalled or Removing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// For people: the running wave of all, `2/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<String>,
    /// The running or last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
    /// The newest version that finished all its waves: what rollback and late joiners get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proven: Option<VersionRef>,
    /// The last epoch that was written into placements. It only grows.
    #[serde(default)]
    pub epoch: i64,
    /// Digests of versions that this rollout aborted, newest first, at most 32: never rolled out again by `follow`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub aborted: Vec<Digest>,
    /// Device clusters that the selector matches.
    #[serde(default)]
    pub clusters: ClusterCounts,
    /// Nodes over all clusters, as the running version sees them.
    #[serde(default)]
    pub nodes: NodeCounts,
    /// Summary condition Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A version, by name and digest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VersionRef {
    /// Name of the ModelVersion.
    pub name: String,
    /// Digest of the candidate.
    pub digest: Digest,
}

/// One run: one version through the stages.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Run {
    /// Number of the run, from 1. RolloutActions name it.
    pub number: i64,
    /// Name of the ModelVersion, for the column.
    pub version: String,
    /// Digest of the candidate, pinned at start.
    pub digest: Digest,
    /// Hash of the list of stages that the run started with. RolloutActions name it.
    pub stage_hash: String,
    /// When the run started.
    pub started_at: Time,
    /// When the run ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// How it stands.
    pub state: RunState,
    /// Why it failed or was aborted.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Index of the running wave in `waves`.
    #[serde(default)]
    pub wave: i32,
    /// The waves that have started, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub waves: Vec<Wave>,
}

/// How a run stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Waves are being activated.
    Progressing,
    /// All waves are proven.
    Complete,
    /// The run failed or was aborted; nodes are on their way back.
    RollingBack,
    /// The run failed or was aborted, and no node runs its version any more.
    RolledBack,
    /// The run failed and `onFailure` is Pause.
    Failed,
}

/// A wave that has started.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Wave {
    /// The stage's name.
    pub name: String,
    /// Cumulative number of nodes, fixed when the wave started.
    pub nodes: i32,
    /// When it started.
    pub started_at: Time,
    /// When it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passed_at: Option<Time>,
}

/// Device clusters by state.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct ClusterCounts {
    /// Clusters that the selector matches.
    #[serde(default)]
    pub matched: i32,
    /// Clusters whose heartbeat is older than five minutes.
    #[serde(default)]
    pub unreachable: i32,
    /// Clusters where another rollout owns the model.
    #[serde(default)]
    pub claimed: i32,
}

/// Nodes by state.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct NodeCounts {
    /// Nodes that match the selector and can take the version.
    #[serde(default)]
    pub eligible: i32,
    /// Nodes that the running version has been permitted on.
    #[serde(default)]
    pub picked: i32,
    /// Nodes that serve the running version, proven or in soak.
    #[serde(default)]
    pub active: i32,
    /// Nodes that served it through their soak.
    #[serde(default)]
    pub proven: i32,
    /// Nodes that were touched and are bad.
    #[serde(default)]
    pub failed: i32,
    /// Nodes that cannot take the version; not failed.
    #[serde(default)]
    pub skipped: i32,
    /// Nodes that cannot be reached; not failed.
    #[serde(default)]
    pub unreachable: i32,
}
