//! Feeds a differentiable model with the rows of a shard, so that the trainer can have its gradients.

use crate::error::Refusal;
use crate::model::Differentiable;
use crate::params::Param;
use crate::trainer::{Gradient, Gradients, Shard};
use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// Data by the number of its row.
pub trait Rows: Sync {
    /// The inputs of the graph for the rows of a shard, in the order of the model's; masks of dropout are among them.
    fn inputs(&self, shard: &Shard) -> Result<Vec<Arc<Tensor>>, Refusal>;

    /// What the rows should be answered with, \[n, c\].
    fn target(&self, shard: &Shard) -> Result<Arc<Tensor>, Refusal>;
}

/// A model with its data.
pub struct Feed<'m, R> {
    /// The model, made for as many samples as a shard has rows.
    pub model: &'m Differentiable,
    /// The data.
    pub rows: R,
}

impl<R: Rows> Gradients for Feed<'_, R> {
    type Error = Refusal;

    fn of(&self, params: &[Param], shard: &Shard) -> Result<Gradient, Refusal> {
        let weights: Vec<Arc<Tensor>> = params.iter().map(|p| p.tensor().clone()).collect();
        let row_weights = Tensor::from_shape(&[shard.weights.len()], &shard.weights)?;
        let outcome = self.model.run(
            &weights,
            &self.rows.inputs(shard)?,
            &self.rows.target(shard)?,
            &Arc::new(row_weights),
        )?;
        Ok(Gradient {
            loss: f64::from(outcome.loss),
            slopes: outcome.gradients,
        })
    }
}
