//! `train.optimizer`: the rule of a step, and its parameters.

use crate::common::Decimal;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An optimizer and its parameters.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.nesterov) || !self.nesterov || (has(self.name) && self.name == 'Sgd')").message("train.optimizer.nesterov: only Sgd takes it"))]
pub struct Optimizer {
    /// Default: AdamW.
    #[serde(default)]
    pub name: OptimizerName,
    /// Default: of Adam and AdamW 0.001 for Head and Lora, 0.0001 for LastLayers and Full; of Sgd 0.05 for Head and Lora,
    /// 0.005 for LastLayers and Full. The head that the other methods start from is always trained with the defaults of
    /// Head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,9})?$"))]
    pub learning_rate: Option<Decimal>,
    /// Of Sgd. Default: 0.9.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0(\.[0-9]{1,9})?$"))]
    pub momentum: Option<Decimal>,
    /// Of Sgd: whether the gradient looks ahead by the momentum (Sutskever et al. 2013). Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub nesterov: bool,
    /// L2 penalty on weights, not on biases: decoupled for AdamW, in the gradient for Sgd and Adam. Default: 0.01 for AdamW, else 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,9})?$"))]
    pub weight_decay: Option<Decimal>,
}

/// The name of an optimizer.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// Adam (Kingma and Ba 2015).
    Adam,
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    #[default]
    AdamW,
}
