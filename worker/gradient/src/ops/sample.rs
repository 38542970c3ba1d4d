//! The gradient of reading every s-th element.

use super::kernel::{Kernel, Real, filled, operator, values};
use crate::prelude::*;

/// Input g: gives zeros of `length` along `axis` with g\[i\] at `first` + i·`stride`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DownsampleGrad {
    axis: usize,
    stride: usize,
    first: usize,
    length: usize,
}

impl DownsampleGrad {
    /// `length` is that of the axis before it was thinned.
    pub fn new(axis: usize, stride: usize, first: usize, length: usize) -> Self {
        Self {
            axis,
            stride,
            first,
            length,
        }
    }
}

impl Kernel for DownsampleGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let mut shape: TVec<TDim> = inputs[0].into();
        shape[self.axis] = self.length.to_dim();
        Ok(shape)
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let mut shape: TVec<usize> = inputs[0].shape().into();
        let thin = shape[self.axis];
        shape[self.axis] = self.length;
        let row: usize = shape[self.axis + 1..].iter().product();
        let g = values::<T>(&inputs[0])?;
        filled::<T>(&shape, |dx| {
            if g.is_empty() {
                return Ok(());
            }
            for (dx, g) in dx.chunks_mut(self.length * row).zip(g.chunks(thin * row)) {
                for (i, g) in g.chunks(row).enumerate() {
                    dx[(self.first + i * self.stride) * row..][..row].copy_from_slice(g);
                }
            }
            Ok(())
        })
    }
}

operator!(DownsampleGrad, "DownsampleGrad");
