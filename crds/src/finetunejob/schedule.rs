//! `train.schedule`: how the learning rate moves over a training.

use crate::common::{CountOrPercent, Decimal};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves, step by step.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.name == 'Step' || (!has(self.every) && !has(self.factor))").message("train.schedule: only Step takes every and factor"))]
pub struct Schedule {
    /// The curve.
    pub name: ScheduleName,
    /// Steps at the start that lead up to the learning rate along a line: a count, or a share of all steps. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_up: Option<CountOrPercent>,
    /// Of Step: epochs between two changes. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub every: Option<u32>,
    /// Of Step: what each change multiplies with, above 0 to 1. Default: 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^(0\.[0-9]{1,9}|1)$"))]
    pub factor: Option<Decimal>,
}

/// A curve of the learning rate.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum ScheduleName {
    /// Always the same.
    Constant,
    /// Down to 0 along half a cosine (Loshchilov and Hutter 2017).
    Cosine,
    /// Times `factor` every `every` epochs.
    Step,
    /// From a 25th up to the learning rate in the first 30 % of the steps, then down to a 250,000th of it (Smith and Topin
    /// 2019).
    OneCycle,
}
