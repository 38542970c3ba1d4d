//! Gradients of convolutions in which each channel has a kernel of its own. As a matrix product they would be too thin.

use super::kernel::{Kernel, Real, add_scaled, dot, filled, operator, values};
use super::window::Window;
use crate::prelude::*;

/// Inputs g \[n, c, outputs…\] and x \[n, c, spatial…\]: gives ∂W \[c, 1, kernel…\], Σ g·x over samples and outputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseGradKernel {
    window: Window,
    kernel: TVec<usize>,
}

impl DepthwiseGradKernel {
    /// `kernel` is the shape of W.
    pub fn new(window: Window, kernel: &[usize]) -> Self {
        Self {
            window,
            kernel: kernel.into(),
        }
    }
}

impl Kernel for DepthwiseGradKernel {
    fn shape(&self, _: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        Ok(self.kernel.iter().map(ToDim::to_dim).collect())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let c = inputs[0].shape()[1];
        let (outputs, pixels) = (self.window.outputs(), self.window.inputs());
        let (g, x) = (values::<T>(&inputs[0])?, values::<T>(&inputs[1])?);
        let runs = self.window.runs();
        filled::<T>(&self.kernel, |dw| {
            let taps = dw.len() / c;
            for (plane, (g, x)) in g.chunks(outputs).zip(x.chunks(pixels)).enumerate() {
                let dw = &mut dw[plane % c * taps..][..taps];
                for run in &runs {
                    let g = &g[run.output..][..run.length];
                    if run.step == 1 {
                        dw[run.tap] += dot(g, &x[run.input..][..run.length]);
                    } else {
                        let seen = x[run.input..].iter().step_by(run.step);
                        dw[run.tap] += g.iter().zip(seen).map(|(g, x)| *g * *x).sum();
                    }
                }
            }
            Ok(())
        })
    }
}

operator!(DepthwiseGradKernel, "DepthwiseGradKernel");

/// Inputs g \[n, c, outputs…\] and W \[c, 1, kernel…\]: gives ∂x \[n, c, spatial…\], to which every output adds g·W at what
/// it saw.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DepthwiseGradInput {
    window: Window,
}

impl DepthwiseGradInput {
    /// `window` tells what is seen.
    pub fn new(window: Window) -> Self {
        Self { window }
    }
}

impl Kernel for DepthwiseGradInput {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let spatial = self.window.input_shape().iter().map(ToDim::to_dim);
        Ok(inputs[0][..2].iter().cloned().chain(spatial).collect())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let (n, c) = (inputs[0].shape()[0], inputs[0].shape()[1]);
        let (taps, outputs, pixels) = (self.window.taps(), self.window.outputs(), self.window.inputs());
        let (g, w) = (values::<T>(&inputs[0])?, values::<T>(&inputs[1])?);
        let runs = self.window.runs();
        let shape: TVec<usize> = [n, c].iter().chain(self.window.input_shape()).copied().collect();
        filled::<T>(&shape, |dx| {
            for (plane, (dx, g)) in dx.chunks_mut(pixels).zip(g.chunks(outputs)).enumerate() {
                let w = &w[plane % c * taps..][..taps];
                for run in &runs {
                    let (factor, g) = (w[run.tap], &g[run.output..][..run.length]);
                    if run.step == 1 {
                        add_scaled(&mut dx[run.input..][..run.length], factor, g);
                    } else {
                        let seen = dx[run.input..].iter_mut().step_by(run.step);
                        seen.zip(g).for_each(|(dx, g)| *dx += factor * *g);
                    }
                }
            }
            Ok(())
        })
    }
}

operator!(DepthwiseGradInput, "DepthwiseGradInput");
