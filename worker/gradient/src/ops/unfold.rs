//! Images to columns and back: with them a convolution is one matrix product, y = W·unfold(x), and so are its gradients,
//! ∂W = g·unfold(x)ᵀ and ∂x = fold(Wᵀ·g) (Chellapilla et al. 2006).

use super::kernel::{Kernel, Real, add_scaled, filled, operator, values};
use super::window::Window;
use crate::prelude::*;

/// Input x \[n, c, spatial…\]: gives \[c, taps, n, outputs\], for each output what each kernel element sees, 0 in the padding.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unfold {
    window: Window,
}

impl Unfold {
    /// `window` tells what is seen.
    pub fn new(window: Window) -> Self {
        Self { window }
    }
}

impl Kernel for Unfold {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let x = inputs[0];
        ensure!(x.len() == self.window.input_shape().len() + 2, "x has {} axes", x.len());
        Ok(tvec![
            x[1].clone(),
            self.window.taps().to_dim(),
            x[0].clone(),
            self.window.outputs().to_dim()
        ])
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let (n, c) = (inputs[0].shape()[0], inputs[0].shape()[1]);
        let (taps, outputs, pixels) = (self.window.taps(), self.window.outputs(), self.window.inputs());
        let x = values::<T>(&inputs[0])?;
        let runs = self.window.runs();
        filled::<T>(&[c, taps, n, outputs], |columns| {
            for channel in 0..c {
                for sample in 0..n {
                    let x = &x[(sample * c + channel) * pixels..][..pixels];
                    for run in &runs {
                        let line = ((channel * taps + run.tap) * n + sample) * outputs + run.output;
                        let seen = x[run.input..].iter().step_by(run.step);
                        columns[line..][..run.length]
                            .iter_mut()
                            .zip(seen)
                            .for_each(|(y, x)| *y = *x);
                    }
                }
            }
            Ok(())
        })
    }
}

operator!(Unfold, "Unfold");

/// The adjoint of [`Unfold`]. Input \[c, taps, n, outputs\]: gives \[n, c, spatial…\], where each element is the sum of all
/// that saw it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fold {
    window: Window,
}

impl Fold {
    /// `window` tells what is seen.
    pub fn new(window: Window) -> Self {
        Self { window }
    }
}

impl Kernel for Fold {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        let columns = inputs[0];
        ensure!(columns.len() == 4, "columns have {} axes", columns.len());
        let spatial = self.window.input_shape().iter().map(ToDim::to_dim);
        Ok([columns[2].clone(), columns[0].clone()]
            .into_iter()
            .chain(spatial)
            .collect())
    }

    fn run<T: Real>(&self, inputs: TVec<TValue>) -> TractResult<Tensor> {
        let (c, n) = (inputs[0].shape()[0], inputs[0].shape()[2]);
        let (taps, outputs, pixels) = (self.window.taps(), self.window.outputs(), self.window.inputs());
        let columns = values::<T>(&inputs[0])?;
        let runs = self.window.runs();
        let shape: TVec<usize> = [n, c].iter().chain(self.window.input_shape()).copied().collect();
        filled::<T>(&shape, |x| {
            for channel in 0..c {
                for sample in 0..n {
                    let x = &mut x[(sample * c + channel) * pixels..][..pixels];
                    for run in &runs {
                        let line = ((channel * taps + run.tap) * n + sample) * outputs + run.output;
                        let columns = &columns[line..][..run.length];
                        if run.step == 1 {
                            add_scaled(&mut x[run.input..][..run.length], T::one(), columns);
                        } else {
                            let seen = x[run.input..].iter_mut().step_by(run.step);
                            seen.zip(columns).for_each(|(x, y)| *x += *y);
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

operator!(Fold, "Fold");
