//! `train.method`: which weights move.

use crate::common::Decimal;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which weights move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// Only a new head; the base model is frozen and runs over the data once.
    #[default]
    Head,
    /// A new head, then it and the last layers of the base model together; what lies before them is frozen and runs once.
    LastLayers,
    /// A new head, then it and all weights of the base model together.
    Full,
    /// A new head, then it and a product of two small matrices beside each adapted weight of the base model (LoRA, Hu et
    /// al. 2021). A version carries the small matrices, and nodes hold the base model's bytes already.
    Lora,
}

/// Which layers move.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastLayers {
    /// How many layers of the base model move, counted back from the features along the graph: a layer is a convolution or
    /// a product with constant weights, with its bias and the norms behind it.
    #[schemars(range(min = 1, max = 10_000))]
    pub count: u32,
}

/// Low-rank adapters: a weight W becomes W + alpha/rank · A·B.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Lora {
    /// Columns of A, which are rows of B. Default: 8.
    #[serde(default = "default_rank")]
    #[schemars(range(min = 1, max = 64))]
    pub rank: u32,
    /// Scale of the product. Default: twice the rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9]{1,6}(\.[0-9]{1,9})?$"))]
    pub alpha: Option<Decimal>,
    /// Names of nodes or weights of the base model, with `*` for any characters and `?` for one. Default: all that can be
    /// adapted: MatMul and Gemm with a matrix, and Conv without groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub targets: Vec<String>,
}

fn default_rank() -> u32 {
    8
}

impl Default for Lora {
    fn default() -> Self {
        Self {
            rank: default_rank(),
            alpha: None,
            targets: Vec::new(),
        }
    }
}
