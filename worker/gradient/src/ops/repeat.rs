//! Repetition of a tensor along axes of length 1.

use super::kernel::{Kernel, Real, operator};
use crate::prelude::*;
use tract_onnx::tract_core::broadcast::multi_broadcast;

/// Gives the input in the shape `shape`. The engine has an operator for this, but moves it into sums of products where it
/// does not belong when the other factor lacks the axis, and then fails.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Repeat {
    shape: TVec<usize>,
}

impl Repeat {
    /// `shape` is that of the output, of the same rank as the input.
    pub fn new(shape: &[usize]) -> Self {
        Self { shape: shape.into() }
    }
}

impl Kernel for Repeat {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let shape: TVec<TDim> = self.shape.iter().map(ToDim::to_dim).collect();
        ensure!(shape.len() == inputs[0].len(), "another rank");
        ensure!(
            multi_broadcast(&[inputs[0], &*shape])? == shape,
            "{:?} does not repeat to {shape:?}",
            inputs[0]
        );
        Ok(shape)
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        inputs[0].broadcast_to_shape(&self.shape)
    }
}

operator!(Repeat, "Repeat");
