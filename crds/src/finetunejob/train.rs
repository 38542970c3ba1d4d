//! `train`: which weights move, what training makes small, and when it ends.

use super::{Augmentation, Head, LastLayers, Lora, Method, Optimizer, Schedule};
use crate::common::Decimal;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to train.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.method) && self.method == 'LastLayers') == has(self.lastLayers)").message("train.lastLayers: method LastLayers needs it, no other method takes it"))]
#[x_kube(validation = Rule::new("!has(self.lora) || (has(self.method) && self.method == 'Lora')").message("train.lora: only method Lora takes it"))]
#[x_kube(validation = Rule::new("!has(self.labelSmoothing) || !has(self.loss) || self.loss == 'CrossEntropy'").message("train.labelSmoothing: only the loss CrossEntropy takes it"))]
#[x_kube(validation = Rule::new("!has(self.huberDelta) || (has(self.loss) && self.loss == 'Huber')").message("train.huberDelta: only the loss Huber takes it"))]
#[x_kube(validation = Rule::new("!has(self.augmentation) || has(self.augmentation.copies) || (has(self.method) && self.method in ['Full', 'Lora'])").message("train.augmentation.copies: methods Head and LastLayers run the frozen part once, so they need the number of variants that are kept"))]
pub struct Train {
    /// Which weights move. Default: Head.
    #[serde(default)]
    pub method: Method,
    /// Of method LastLayers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_layers: Option<LastLayers>,
    /// Of method Lora. Default: rank 8 on all layers that can be adapted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// The head that is put on the features.
    #[serde(default)]
    pub head: Head,
    /// Default: CrossEntropy for a Classification, MeanSquaredError for a Regression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// Of the loss Huber: where it turns from a square to a line, in standard deviations of the target. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,3}(\.[0-9]{1,9})?$"))]
    pub huber_delta: Option<Decimal>,
    /// Of the loss CrossEntropy: share of the truth that is spread evenly over all classes, from 0 to below 1. Default: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^0(\.[0-9]{1,6})?$"))]
    pub label_smoothing: Option<Decimal>,
    /// The optimizer and its parameters.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// How the learning rate moves. Default: Constant for Head, else Cosine with a warm-up of 10%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Largest norm of all gradients of a step together; larger ones are scaled down to it. Default: none for Head, else 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,9})?$"))]
    pub clip_norm: Option<Decimal>,
    /// Most passes over the training rows. Default: 100 for Head, else 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub epochs: Option<u32>,
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
    /// Variants of the training rows. Default: none. Validation and test rows always stay as they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub augmentation: Option<Augmentation>,
    /// Keeps to the kernels that all x86 machines with AVX2 and FMA have, so that the same job ends in the same bytes on any
    /// of them; slower on those that have AVX-512. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub portable_kernels: bool,
}

fn default_batch() -> u32 {
    32
}

impl Default for Train {
    fn default() -> Self {
        Self {
            method: Method::Head,
            last_layers: None,
            lora: None,
            head: Head::default(),
            loss: None,
            huber_delta: None,
            label_smoothing: None,
            optimizer: Optimizer::default(),
            schedule: None,
            clip_norm: None,
            epochs: None,
            batch_size: default_batch(),
            early_stopping: EarlyStopping::default(),
            seed: 0,
            class_weights: ClassWeights::None,
            augmentation: None,
            portable_kernels: false,
        }
    }
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
    /// Mean of absolute differences, on standardised targets.
    MeanAbsoluteError,
    /// A square near the target and a line far from it (Huber 1964), on standardised targets.
    Huber,
}

impl Loss {
    /// Whether it belongs to a Regression.
    pub fn is_of_values(self) -> bool {
        matches!(self, Self::MeanSquaredError | Self::MeanAbsoluteError | Self::Huber)
    }
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
