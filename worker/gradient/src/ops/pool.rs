//! Gradients of pools.

use super::kernel::{Kernel, Real, filled, operator, values};
use super::window::Window;
use crate::prelude::*;

/// Inputs g \[…, outputs…, inner\] and x \[…, spatial…, inner\]: gives each g to the largest element that its output sees, the
/// first of them where several are equal. The gradient has the shape of x.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPoolGrad {
    window: Window,
    inner: usize,
}

impl MaxPoolGrad {
    /// `window` tells what is seen; `inner` is the number of channels where they are last, 1 where they are first.
    pub fn new(window: Window, inner: usize) -> Self {
        Self { window, inner }
    }
}

impl Kernel for MaxPoolGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        Ok(inputs[1].into())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let inner = self.inner;
        let (outputs, pixels) = (self.window.outputs() * inner, self.window.inputs() * inner);
        let (g, x) = (values::<T>(&inputs[0])?, values::<T>(&inputs[1])?);
        let runs = self.window.runs();
        let places = runs.iter().flat_map(|run| {
            (0..run.length).map(|j| {
                (
                    run.tap as u32,
                    (run.output + j) * inner,
                    (run.input + j * run.step) * inner,
                )
            })
        });
        // The largest element so far, and which element of the kernel sees it.
        let none = u32::MAX;
        let mut best = vec![T::neg_infinity(); outputs];
        let mut seen_by = vec![none; outputs];
        filled::<T>(inputs[1].shape(), |dx| {
            for ((dx, g), x) in dx.chunks_mut(pixels).zip(g.chunks(outputs)).zip(x.chunks(pixels)) {
                best.fill(T::neg_infinity());
                seen_by.fill(none);
                for (tap, output, input) in places.clone() {
                    let known = best[output..][..inner].iter_mut().zip(&mut seen_by[output..][..inner]);
                    for ((best, seen_by), x) in known.zip(&x[input..][..inner]) {
                        let better = *seen_by == none || *best < *x;
                        *best = if better { *x } else { *best };
                        *seen_by = if better { tap } else { *seen_by };
                    }
                }
                for (tap, output, input) in places.clone() {
                    let given = g[output..][..inner].iter().zip(&seen_by[output..][..inner]);
                    for (dx, (g, seen_by)) in dx[input..][..inner].iter_mut().zip(given) {
                        let g = *g;
                        *dx += if *seen_by == tap { g } else { T::zero() };
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
