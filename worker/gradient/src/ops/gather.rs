//! The gradient of reading rows at given indices.

use super::kernel::{Kernel, Real, filled, operator, values};
use crate::prelude::*;

/// Inputs g and indices: gives zeros of `length` along `axis` to which each row of g is added at its index, one after the
/// other, so that the sum is the same on every run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherGrad {
    axis: usize,
    length: usize,
    index_rank: usize,
}

impl GatherGrad {
    /// `length` is that of the axis that was read; the indices have the rank `index_rank`.
    pub fn new(axis: usize, length: usize, index_rank: usize) -> Self {
        Self {
            axis,
            length,
            index_rank,
        }
    }

    /// The number of rows, where rows of a table were read.
    pub fn table(&self) -> Option<usize> {
        (self.axis == 0).then_some(self.length)
    }

    fn shape_of<D: Clone>(&self, g: &[D], length: D) -> TVec<D> {
        let (front, back) = (&g[..self.axis], &g[self.axis + self.index_rank..]);
        front
            .iter()
            .cloned()
            .chain([length])
            .chain(back.iter().cloned())
            .collect()
    }
}

impl Kernel for GatherGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        Ok(self.shape_of(inputs[0], self.length.to_dim()))
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let shape = self.shape_of(inputs[0].shape(), self.length);
        let row: usize = shape[self.axis + 1..].iter().product();
        let indices = inputs[1].cast_to::<i64>()?;
        let indices = values::<i64>(&indices)?;
        let g = values::<T>(&inputs[0])?;
        filled::<T>(&shape, |dx| {
            if row == 0 || indices.is_empty() {
                return Ok(());
            }
            for (dx, g) in dx.chunks_mut(self.length * row).zip(g.chunks(indices.len() * row)) {
                for (index, g) in indices.iter().zip(g.chunks(row)) {
                    let Some(at) = inside(*index, self.length) else {
                        bail!("index {index} is outside of 0..{}", self.length);
                    };
                    let dx = &mut dx[at * row..][..row];
                    dx.iter_mut().zip(g).for_each(|(dx, g)| *dx += *g);
                }
            }
            Ok(())
        })
    }
}

/// The place that an index names, which counts from the end where it is negative.
pub fn inside(index: i64, length: usize) -> Option<usize> {
    let at = if index < 0 { index + length as i64 } else { index };
    usize::try_from(at).ok().filter(|at| *at < length)
}

operator!(GatherGrad, "GatherGrad");
