//! `evaluation` and `budget`: what is measured, and what must hold before a version is published.

use super::Task;
use crate::common::{Bytes, Decimal, Span};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to measure, and what must hold.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Evaluation {
    /// The metric that picks the best epoch and that the status shows. Default: macroF1, or mse for a Regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objective: Option<Metric>,
    /// All must hold on the test rows, else nothing is published. Default: none, which passes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["metric".into()]))]
    pub gates: Vec<Gate>,
    /// Fewest test rows for a verdict; with fewer the gates are Inconclusive. Default: 20.
    #[serde(default = "default_min_samples")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_samples: u32,
    /// Whether an Inconclusive verdict lets the version through. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_inconclusive: bool,
}

fn default_min_samples() -> u32 {
    20
}

impl Default for Evaluation {
    fn default() -> Self {
        Self {
            objective: None,
            gates: Vec::new(),
            min_samples: default_min_samples(),
            allow_inconclusive: false,
        }
    }
}

/// A bound on one metric.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.min) || has(self.max) || has(self.overBaseline)").message("evaluation.gates: a gate needs min, max or overBaseline"))]
pub struct Gate {
    /// The metric; one gate for each.
    pub metric: Metric,
    /// The smallest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Decimal>,
    /// The largest value that passes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Decimal>,
    /// By how much the model must be better than the best cheap baseline; for mse and mae, lower by this much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_baseline: Option<Decimal>,
}

/// A metric of the test rows.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Metric {
    /// Share of right answers.
    Accuracy,
    /// Mean over classes of the F1 score.
    MacroF1,
    /// Mean over classes of precision.
    MacroPrecision,
    /// Mean over classes of recall.
    MacroRecall,
    /// Mean squared error, in the target's unit squared.
    Mse,
    /// Mean absolute error, in the target's unit.
    Mae,
    /// Coefficient of determination.
    R2,
}

impl Metric {
    /// The name in the API, in reports and in Prometheus labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::MacroF1 => "macroF1",
            Self::MacroPrecision => "macroPrecision",
            Self::MacroRecall => "macroRecall",
            Self::Mse => "mse",
            Self::Mae => "mae",
            Self::R2 => "r2",
        }
    }

    /// Whether a larger value is a better one.
    pub fn larger_is_better(self) -> bool {
        !matches!(self, Self::Mse | Self::Mae)
    }

    /// The objective where the spec names none.
    pub fn default_for(task: Task) -> Self {
        match task {
            Task::Classification => Self::MacroF1,
            Task::Regression => Self::Mse,
        }
    }
}

/// What a version may cost on a device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Hardware class (the Node label `fleetune.dev/class`, by default its architecture), or `*`.
    #[schemars(length(min = 1, max = 63))]
    pub class: String,
    /// Most bytes of the version's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Bytes>,
    /// Most resident memory of a process that loads the version and answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_peak_memory: Option<Bytes>,
    /// Longest 95th percentile of the time for one sample.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_p95_latency: Option<Span>,
}
