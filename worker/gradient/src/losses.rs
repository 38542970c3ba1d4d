//! Losses, wired from logits so that no probability is ever rounded to 0 or 1.
//!
//! All give L = Σᵢ wᵢ·lᵢ with one weight per row: 0 for a row that only pads a batch. Class weights and label smoothing are
//! made by the caller, in the row weights and in the target; so is the division by Σw.

use crate::prelude::*;
use core_ops::binary::TypedBinOp;
use core_ops::math;
use core_ops::nn::{Reduce, Reducer, Softmax, SoftmaxKind};
use tract_onnx::tract_core::internal::tensor0;

/// What is minimised, for a row of logits z and a row of targets t, both of c numbers.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Loss {
    /// l = −Σⱼ tⱼ·ln softmax(z)ⱼ, where t is a distribution over the classes.
    CrossEntropy,
    /// l = (1/c)·Σⱼ ln(1 + e^zⱼ) − tⱼ·zⱼ, where t is 0 or 1 for each label.
    BinaryCrossEntropy,
    /// l = (1/c)·Σⱼ (zⱼ − tⱼ)².
    MeanSquaredError,
    /// l = (1/c)·Σⱼ |zⱼ − tⱼ|.
    MeanAbsoluteError,
    /// l = (1/c)·Σⱼ h(zⱼ − tⱼ), h(r) = r²/2 for |r| ≤ δ, else δ·(|r| − δ/2) (Huber, 1964).
    Huber {
        /// δ > 0, in the unit of the target.
        delta: f32,
    },
}

/// A graph under construction whose nodes are named "loss.…".
struct Wiring<'m> {
    model: &'m mut TypedModel,
}

impl Wiring<'_> {
    fn wire(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> Result<OutletId, Refusal> {
        let op = op.into();
        let name = self.model.unique_name(format!("loss.{}", op.name())).into_owned();
        Ok(self.model.wire_node(name, op, inputs)?[0])
    }

    fn scalar(&mut self, like: OutletId, value: f64) -> Result<OutletId, Refusal> {
        let fact = self.model.outlet_fact(like)?;
        let tensor = tensor0(value)
            .cast_to_dt(fact.datum_type)?
            .into_owned()
            .broadcast_into_rank(fact.rank())?;
        Ok(self.model.add_const("loss.const", tensor)?)
    }

    fn with_scalar(&mut self, op: TypedBinOp, a: OutletId, value: f64) -> Result<OutletId, Refusal> {
        let value = self.scalar(a, value)?;
        self.wire(op, &[a, value])
    }

    fn sum(&mut self, a: OutletId, axis: usize) -> Result<OutletId, Refusal> {
        self.wire(Reduce::new(tvec![axis], Reducer::Sum), &[a])
    }
}

impl Loss {
    /// Adds the loss of `logits` \[n, c\] against `target` \[n, c\] with the row weights `weights` \[n\] to `model` and gives
    /// its outlet, a tensor of shape \[\].
    ///
    /// # Errors
    /// [`Refusal::Shape`] where the three do not fit.
    pub fn wire(
        self,
        model: &mut TypedModel,
        logits: OutletId,
        target: OutletId,
        weights: OutletId,
    ) -> Result<OutletId, Refusal> {
        let (rows, columns) = dimensions(model, logits)?;
        same_shape(model, "target", target, &[rows, columns])?;
        same_shape(model, "row weights", weights, &[rows])?;
        let mut w = Wiring { model };
        let terms = self.terms(&mut w, logits, target)?;
        let mut row = w.sum(terms, 1)?;
        if self != Self::CrossEntropy {
            row = w.with_scalar(math::mul(), row, 1.0 / columns as f64)?;
        }
        let row = w.wire(AxisOp::Rm(1), &[row])?;
        let weighted = w.wire(math::mul(), &[row, weights])?;
        let total = w.sum(weighted, 0)?;
        w.wire(AxisOp::Rm(0), &[total])
    }

    /// The terms of lᵢ, \[n, c\].
    fn terms(self, w: &mut Wiring, logits: OutletId, target: OutletId) -> Result<OutletId, Refusal> {
        match self {
            Self::CrossEntropy => {
                let softmax = Softmax::new(tvec![1], None, SoftmaxKind::LogSoftmax);
                let log = w.wire(softmax, &[logits])?;
                let likelihood = w.wire(math::mul(), &[log, target])?;
                w.wire(math::neg(), &[likelihood])
            }
            Self::BinaryCrossEntropy => {
                let partition = w.wire(crate::ops::softplus(), &[logits])?;
                let hit = w.wire(math::mul(), &[logits, target])?;
                w.wire(math::sub(), &[partition, hit])
            }
            Self::MeanSquaredError => {
                let residual = w.wire(math::sub(), &[logits, target])?;
                w.wire(math::square(), &[residual])
            }
            Self::MeanAbsoluteError => {
                let residual = w.wire(math::sub(), &[logits, target])?;
                w.wire(math::abs(), &[residual])
            }
            Self::Huber { delta } => {
                // With c = clamp(r, −δ, δ), h(r) = c·(r − c/2).
                let delta = f64::from(delta);
                let residual = w.wire(math::sub(), &[logits, target])?;
                let above = w.with_scalar(math::max(), residual, -delta)?;
                let clamped = w.with_scalar(math::min(), above, delta)?;
                let half = w.with_scalar(math::mul(), clamped, 0.5)?;
                let rest = w.wire(math::sub(), &[residual, half])?;
                w.wire(math::mul(), &[clamped, rest])
            }
        }
    }
}

fn dimensions(model: &TypedModel, logits: OutletId) -> Result<(usize, usize), Refusal> {
    let fact = model.outlet_fact(logits)?;
    let shape = fact.shape.as_concrete().ok_or_else(|| Refusal::OpenShape {
        node: model.node(logits.node).name.clone(),
        shape: format!("{:?}", fact.shape),
    })?;
    match *shape {
        [rows, columns] => Ok((rows, columns)),
        _ => Err(Refusal::Shape {
            name: model.node(logits.node).name.clone(),
            have: shape.to_vec(),
            want: "[samples, values]".to_owned(),
        }),
    }
}

fn same_shape(model: &TypedModel, name: &str, outlet: OutletId, want: &[usize]) -> Result<(), Refusal> {
    let have = model.outlet_fact(outlet)?.shape.as_concrete().unwrap_or_default();
    if have == want {
        return Ok(());
    }
    Err(Refusal::Shape {
        name: name.to_owned(),
        have: have.to_vec(),
        want: format!("{want:?}"),
    })
}
