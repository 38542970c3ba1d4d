//! `train`: which weights move, what training makes small, and when it ends.

use super::{Head, Optimizer};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to train.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Train {
    /// Which weights move. Default: Head.
    #[serde(default)]
    pub method: Method,
    /// The head that is put on the features.
    #[serde(default)]
    pub head: Head,
    /// Default: CrossEntropy for a Classification, MeanSquaredError for a Regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// The optimizer and its parameters.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Most passes over the training rows. Default: 100.
    #[serde(default = "default_epochs")]
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: u32,
    /// Rows in a step. Default: 32.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 65_536))]
    pub batch_size: u32,
    /// Ends the training when the objective on the validation rows no longer gets better.
    #[serde(default)]
    pub early_stopping: EarlyStopping,
    /// Seed of initial weights, order of rows and dropout. Default: 0.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub seed: i64,
    /// Default: None.
    #[serde(default)]
    pub class_weights: ClassWeights,
}

fn default_epochs() -> u32 {
    100
}

fn default_batch() -> u32 {
    32
}

impl Default for Train {
    fn default() -> Self {
        Self {
            method: Method::Head,
            head: Head::default(),
            loss: None,
            optimizer: Optimizer::default(),
            epochs: default_epochs(),
            batch_size: default_batch(),
            early_stopping: EarlyStopping::default(),
            seed: 0,
            class_weights: ClassWeights::None,
        }
    }
}

/// Which weights move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Only a new head; the base model is frozen and runs over the data once.
    #[default]
    Head,
}

/// What training makes small.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[schemars(description = "")] // Else it hides that of the field.
pub enum Loss {
    /// Negative log-likelihood of the softmax, from logits.
    CrossEntropy,
    /// Mean over classes of the binary cross-entropy of each sigmoid, from logits.
    BinaryCrossEntropy,
    /// Mean of squared differences, on standardised targets.
    MeanSquaredError,
}

/// When training ends early. The weights of the best epoch are kept in any case.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct EarlyStopping {
    /// Epochs without a better objective after which training ends. Default: 10.
    #[serde(default = "default_patience")]
    #[schemars(range(min = 1, max = 10_000))]
    pub patience: u32,
}

fn default_patience() -> u32 {
    10
}

impl Default for EarlyStopping {
    fn default() -> Self {
        Self {
            patience: default_patience(),
        }
    }
}

/// How much each class counts in the loss.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ClassWeights {
    /// Every row counts the same.
    #[default]
    None,
    /// Every class counts the same: rows / (classes × rows of the class).
    Balanced,
}
