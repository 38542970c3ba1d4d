//! Gradients of pools.

use super::kernel::{Kernel, Real, filled, operator, values};
use super::window::Window;
use crate::prelude::*;

/// Inputs g \[n, c, outputs…\] and x \[n, c, spatial…\]: gives each g to the largest element that its output sees, the first
/// of them where several are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPoolGrad {
    window: Window,
}

impl MaxPoolGrad {
    /// `window` tells what is seen.
    pub fn new(window: Window) -> Self {
        Self { window }
    }
}

impl Kernel for MaxPoolGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        Ok(inputs[1].into())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let (outputs, pixels) = (self.window.outputs(), self.window.inputs());
        let (g, x) = (values::<T>(&inputs[0])?, values::<T>(&inputs[1])?);
        let runs = self.window.runs();
        let mut best = vec![(T::neg_infinity(), None); outputs];
        filled::<T>(inputs[1].shape(), |dx| {
            for ((dx, g), x) in dx.chunks_mut(pixels).zip(g.chunks(outputs)).zip(x.chunks(pixels)) {
                best.fill((T::neg_infinity(), None));
                for run in &runs {
                    for (j, best) in best[run.output..][..run.length].iter_mut().enumerate() {
                        let at = run.input + j * run.step;
                        if best.1.is_none() || best.0 < x[at] {
                            *best = (x[at], Some(at));
                        }
                    }
                }
                for (g, best) in g.iter().zip(&best) {
                    if let Some(at) = best.1 {
                        dx[at] += *g;
                    }
                }
            }
            Ok(())
        })
    }
}

operator!(MaxPoolGrad, "MaxPoolGrad");

/// Input g \[n, c, outputs…\]: gives \[n, c, spatial…\], to which every output adds g times its factor at all that it saw.
#[derive(Clone, Debug, PartialEq)]
pub struct SumPoolGrad {
    window: Window,
    factors: Vec<f64>,
}

impl Eq for SumPoolGrad {}

impl SumPoolGrad {
    /// `factors` has one number for each output of a channel: 1 in a sum, one by the number of elements in a mean.
    pub fn new(window: Window, factors: Vec<f64>) -> Self {
        Self { window, factors }
    }
}

impl Kernel for SumPoolGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let spatial = self.window.input_shape().iter().map(ToDim::to_dim);
        Ok(inputs[0][..2].iter().cloned().chain(spatial).collect())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let (n, c) = (inputs[0].shape()[0], inputs[0].shape()[1]);
        let (outputs, pixels) = (self.window.outputs(), self.window.inputs());
        let g = values::<T>(&inputs[0])?;
        let factors: Vec<T> = self.factors.iter().map(|f| T::of(*f)).collect();
        let runs = self.window.runs();
        let shape: TVec<usize> = [n, c].iter().chain(self.window.input_shape()).copied().collect();
        filled::<T>(&shape, |dx| {
            for (dx, g) in dx.chunks_mut(pixels).zip(g.chunks(outputs)) {
                for run in &runs {
                    let seen = dx[run.input..].iter_mut().step_by(run.step);
                    let parts = g[run.output..].iter().zip(&factors[run.output..]);
                    seen.zip(parts).take(run.length).for_each(|(dx, (g, f))| *dx += *g * *f);
                }
            }
            Ok(())
        })
    }
}

operator!(SumPoolGrad, "SumPoolGrad");
