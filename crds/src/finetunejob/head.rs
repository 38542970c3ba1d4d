//! `train.head`: what is put on the features.

use crate::common::Decimal;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The head on the features: hidden layers, then one linear layer.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Head {
    /// Widths of the hidden layers. Default: none, a linear head.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4), inner(range(min = 1, max = 4096)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub layers: Vec<u32>,
    /// After each hidden layer. Default: Relu.
    #[serde(default)]
    pub activation: Activation,
    /// Share of the values before each linear layer that a training step drops, from 0 to below 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0(\.[0-9]{1,6})?$"))]
    pub dropout: Option<Decimal>,
}

/// A function between layers.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// max(0, x)
    #[default]
    Relu,
    /// 1 / (1 + exp(-x))
    Sigmoid,
    /// tanh(x)
    Tanh,
}
