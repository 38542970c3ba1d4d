//! The status of a job.

use super::Metric;
use crate::common::{Decimal, Digest, Span};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Condition: the data set was read and met its requirements.
pub const DATA_READY: &str = "DataReady";
/// Condition: a candidate was trained and pushed.
pub const TRAINED: &str = "Trained";
/// Condition: the candidate was evaluated on the test split.
pub const EVALUATED: &str = "Evaluated";
/// Condition: every gate held.
pub const GATES_PASSED: &str = "GatesPassed";
/// Condition: the version is signed, tagged and has a ModelVersion.
pub const PUBLISHED: &str = "Published";

/// What the controller has seen of a job.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct FineTuneJobStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// For people: Pending, Suspended, FineTuning, Validating, Publishing, Succeeded or Failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// For people: what runs and how far it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// When the first worker Job was made; from then on the spec is immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// Since when the started job has been suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_at: Option<Time>,
    /// How long it had been suspended before that, since its start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended_for: Option<Span>,
    /// When the job succeeded or failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Digest of the list of samples (sorted key, size, sha256) that the first pod read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_manifest: Option<Digest>,
    /// Digest of the candidate in `output.repository`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub candidate: Option<Digest>,
    /// Digest of the report in `output.repository`; there also after a failed gate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Digest>,
    /// Name of the ModelVersion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The objective on the test rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Objective>,
    /// What `validate` measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<crate::outcome::Summary>,
    /// Summary condition Succeeded; domain conditions DataReady, Trained, Evaluated, GatesPassed, Published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The objective on the test rows, beside the best cheap baseline.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Objective {
    /// The metric.
    pub metric: Metric,
    /// Its value for the candidate.
    pub value: Decimal,
    /// Its value for the best cheap baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Decimal>,
}
