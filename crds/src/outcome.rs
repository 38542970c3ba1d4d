//! What a worker pod tells the operator: progress while it runs, and one outcome at the end, in the termination message.

use crate::common::{Decimal, Digest};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Exit code: the step did its work; the outcome says what came of it.
pub const EXIT_DONE: i32 = 0;
/// Exit code: the input is bad; trying again changes nothing.
pub const EXIT_BAD_INPUT: i32 = 2;
/// Exit code: a passing cause; trying again can help.
pub const EXIT_TRANSIENT: i32 = 3;
/// The largest termination message that Kubernetes keeps, in bytes.
pub const MAX_TERMINATION_MESSAGE: usize = 4096;

/// Reason of a finished step that did what it should.
pub const REASON_DONE: &str = "Done";
/// Reason of `validate`: every gate and the budget held.
pub const REASON_PASSED: &str = "Passed";
/// Reason of `validate`: a gate failed; `gate` names it.
pub const REASON_GATE_FAILED: &str = "GateFailed";
/// Reason of `validate`: too few test rows for a verdict, and the spec does not allow that.
pub const REASON_INCONCLUSIVE: &str = "Inconclusive";
/// Reason of `validate`: the version costs more than its budget; `gate` names the bound.
pub const REASON_BUDGET_EXCEEDED: &str = "BudgetExceeded";
/// Reason of `validate`: the data set is no longer the one that `finetune` read.
pub const REASON_DATA_CHANGED: &str = "DataChanged";

/// How a step ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The step did its work.
    Done,
    /// Bad input: no retry.
    BadInput,
    /// A passing cause: retry.
    Transient,
}

impl Code {
    /// The exit code of the process.
    pub fn exit(self) -> i32 {
        match self {
            Self::Done => EXIT_DONE,
            Self::BadInput => EXIT_BAD_INPUT,
            Self::Transient => EXIT_TRANSIENT,
        }
    }
}

/// The termination message of a worker pod.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// How the step ended.
    pub code: Code,
    /// A PascalCase word: the reason of conditions and events.
    pub reason: String,
    /// What, where and what to do; at most [`crate::conditions::MAX_MESSAGE`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The gate or bound that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gate: Option<String>,
    /// What the step made: the candidate of `finetune`, the report of `validate`, the signature of `publish`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Of `finetune`: the digest of the list of samples.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_manifest: Option<Digest>,
    /// Of `validate`: what it measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
}

impl Outcome {
    /// An outcome with a code, a reason and a message, and nothing made.
    pub fn new(code: Code, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: crate::conditions::cut(message.into()),
            gate: None,
            digest: None,
            data_manifest: None,
            summary: None,
        }
    }
}

/// What `validate` measured, in few numbers; the report has the rest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Test rows.
    pub samples: u32,
    /// Metrics of the candidate by name.
    #[schemars(extend("maxProperties" = 16))]
    pub metrics: BTreeMap<String, Decimal>,
    /// Name of the best cheap baseline by the objective.
    pub baseline: String,
    /// Its metrics by name.
    #[schemars(extend("maxProperties" = 16))]
    pub baseline_metrics: BTreeMap<String, Decimal>,
    /// Bytes of the version's files.
    pub bytes: i64,
    /// 95th percentile of the time for one sample on the machine of `validate`, in milliseconds.
    pub p95_latency_ms: Decimal,
    /// Peak resident memory of a process that loads the version and answers, in bytes.
    pub peak_memory_bytes: i64,
    /// Hash of inputs, shapes, units and labels: a rollout refuses a version whose contract differs.
    pub contract: Digest,
}

/// What `GET /progress` of a worker pod answers.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What runs: `data`, `features`, `train`, `push`, `evaluate`, …
    pub stage: String,
    /// Units of the stage that are done: samples, or epochs.
    pub done: u64,
    /// Units of the stage in all.
    pub total: u64,
    /// Samples a second of the running stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples_per_second: Option<f64>,
    /// Metrics so far by split and name, such as `validation.macroF1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}
