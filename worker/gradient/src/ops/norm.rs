//! The gradient of normalisation by the root mean square.

use super::kernel::{Kernel, Real, dot, filled, operator, values};
use crate::prelude::*;

/// Inputs g and x of one shape: with r = (mean(x²) + ε)^(−1/2) and y = x·r along `axis`, gives r·(g − y·mean(g·y)).
#[derive(Clone, Debug, PartialEq)]
pub struct RmsNormGrad {
    axis: usize,
    eps: f64,
}

impl Eq for RmsNormGrad {}

impl RmsNormGrad {
    /// `eps` is the ε of the forward pass.
    pub fn new(axis: usize, eps: f64) -> Self {
        Self { axis, eps }
    }
}

impl Kernel for RmsNormGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        ensure!(inputs[0] == inputs[1], "g and x differ in shape");
        ensure!(self.axis < inputs[0].len(), "no axis {}", self.axis);
        Ok(inputs[0].into())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let shape = inputs[0].shape();
        let length = shape[self.axis];
        let step: usize = shape[self.axis + 1..].iter().product();
        let (g, x) = (values::<T>(&inputs[0])?, values::<T>(&inputs[1])?);
        let mean = T::of(1.0 / length as f64);
        filled::<T>(shape, |dx| {
            let blocks = dx
                .chunks_mut(length * step)
                .zip(g.chunks(length * step))
                .zip(x.chunks(length * step));
            for ((dx, g), x) in blocks {
                if step == 1 {
                    let r = (dot(x, x) * mean + T::of(self.eps)).sqrt().recip();
                    let pull = r * r * dot(g, x) * mean;
                    dx.iter_mut()
                        .zip(g.iter().zip(x))
                        .for_each(|(dx, (g, x))| *dx = r * (*g - *x * pull));
                    continue;
                }
                for first in 0..step {
                    let line = || (0..length).map(|i| first + i * step);
                    let squares: T = line().map(|i| x[i] * x[i]).sum();
                    let products: T = line().map(|i| g[i] * x[i]).sum();
                    let r = (squares * mean + T::of(self.eps)).sqrt().recip();
                    let pull = r * r * products * mean;
                    line().for_each(|i| dx[i] = r * (g[i] - x[i] * pull));
                }
            }
            Ok(())
        })
    }
}

operator!(RmsNormGrad, "RmsNormGrad");
