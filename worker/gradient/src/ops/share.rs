//! Who gets the gradient of a maximum or minimum.

use super::kernel::{Kernel, Real, changed, filled, operator, values};
use crate::prelude::*;
use tract_onnx::prelude::tract_ndarray::Zip;
use tract_onnx::tract_core::broadcast::multi_broadcast;

/// Which of two values an operator keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extremum {
    /// The greater.
    Max,
    /// The smaller.
    Min,
}

/// Inputs g, a, b: gives g where a is the extremum of a and b, `tie`·g where they are equal, 0 elsewhere. The output has
/// the shape of g, to which a and b broadcast.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    kind: Extremum,
    tie: f64,
}

impl Eq for Share {}

impl Share {
    /// `tie` is the part of g that a gets where a = b.
    pub fn new(kind: Extremum, tie: f64) -> Self {
        Self { kind, tie }
    }

    fn weight<T: Real>(&self, tie: T, a: T, b: T) -> T {
        let wins = match self.kind {
            Extremum::Max => a > b,
            Extremum::Min => a < b,
        };
        if wins {
            T::one()
        } else if a == b {
            tie
        } else {
            T::zero()
        }
    }
}

impl Kernel for Share {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let wide = multi_broadcast(inputs)?;
        ensure!(*wide == *inputs[0], "the gradient is narrower than the operands");
        Ok(wide)
    }

    fn run<T: Real>(&self, mut inputs: TVec<TValue>) -> TractResult<Tensor> {
        let g = inputs.remove(0);
        let (a, b) = (&inputs[0], &inputs[1]);
        let tie = T::of(self.tie);
        if a.len() == g.len() && b.len() == 1 {
            let (a, b) = (values::<T>(a)?, values::<T>(b)?[0]);
            return changed::<T>(g, |g| {
                g.iter_mut().zip(a).for_each(|(g, a)| *g = *g * self.weight(tie, *a, b));
                Ok(())
            });
        }
        let shape: TVec<usize> = g.shape().into();
        let (g, a, b) = (
            g.to_plain_array_view::<T>()?,
            a.to_plain_array_view::<T>()?,
            b.to_plain_array_view::<T>()?,
        );
        let mut out = filled::<T>(&shape, |_| Ok(()))?;
        Zip::from(out.to_plain_array_view_mut::<T>()?)
            .and(&g)
            .and_broadcast(&a)
            .and_broadcast(&b)
            .for_each(|out, g, a, b| *out = *g * self.weight(tie, *a, *b));
        Ok(out)
    }
}

operator!(Share, "Share");
