//! Sliding windows over the spatial axes of images and series: which input elements an output element sees. Any number of
//! spatial axes.

use crate::prelude::*;
use core_ops::cnn::PoolSpec;

/// The geometry of a window. All lists have one entry per spatial axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    kernel: TVec<usize>,
    strides: TVec<usize>,
    dilations: TVec<usize>,
    before: TVec<usize>,
    input: TVec<usize>,
    output: TVec<usize>,
}

/// Neighbouring outputs that one element of the kernel sees through: output `output` + j sees input `input` + j·`step`, for
/// j below `length`. Indices are within one channel in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Element of the kernel.
    pub tap: usize,
    /// The first output.
    pub output: usize,
    /// The input that it sees.
    pub input: usize,
    /// Distance of the next input.
    pub step: usize,
    /// Number of outputs.
    pub length: usize,
}

impl Window {
    /// The window of a convolution or pool over inputs of the spatial shape `input`.
    pub fn of(spec: &PoolSpec, input: &[usize]) -> Self {
        let padding = spec.computed_padding(input);
        Self {
            kernel: spec.kernel_shape.clone(),
            strides: spec.strides().as_ref().into(),
            dilations: spec.dilations().as_ref().into(),
            before: padding.iter().map(|p| p.pad_before).collect(),
            input: input.into(),
            output: padding.iter().map(|p| p.convoluted).collect(),
        }
    }

    /// The window of a transposed convolution, seen from what it makes: its output is the window's input.
    pub fn transposed(spec: &PoolSpec, adjustments: &[usize], input: &[usize]) -> TractResult<Self> {
        let (strides, dilations) = (spec.strides(), spec.dilations());
        let padding = spec
            .padding
            .compute_for_deconv(input, &spec.kernel_shape, &dilations, &strides, adjustments)?;
        Ok(Self {
            kernel: spec.kernel_shape.clone(),
            strides: strides.as_ref().into(),
            dilations: dilations.as_ref().into(),
            before: padding.iter().map(|p| p.pad_before).collect(),
            input: padding.iter().map(|p| p.deconvoluted).collect(),
            output: input.into(),
        })
    }

    /// Elements of the kernel.
    pub fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    /// Elements of one channel of the input.
    pub fn inputs(&self) -> usize {
        self.input.iter().product()
    }

    /// Elements of one channel of the output.
    pub fn outputs(&self) -> usize {
        self.output.iter().product()
    }

    /// The spatial shape of the input.
    pub fn input_shape(&self) -> &[usize] {
        &self.input
    }

    /// The spatial shape of the output.
    pub fn output_shape(&self) -> &[usize] {
        &self.output
    }

    /// Everything that is seen, by kernel element and then by output. What lies in the padding is left out.
    pub fn runs(&self) -> Vec<Run> {
        let Some(last) = self.kernel.len().checked_sub(1) else {
            return vec![];
        };
        let mut runs = vec![];
        for (tap, at) in coordinates(&self.kernel).enumerate() {
            let (first, reach) = self.reach(last, at[last]);
            if reach == 0 {
                continue;
            }
            for (row, outer) in coordinates(&self.output[..last]).enumerate() {
                let seen = (0..last).map(|axis| self.seen(axis, outer[axis], at[axis]));
                let Some(seen) = seen.collect::<Option<TVec<usize>>>() else {
                    continue;
                };
                let line = seen
                    .iter()
                    .zip(&self.input)
                    .fold(0, |sum, (i, length)| sum * length + i);
                let start = first * self.strides[last] + at[last] * self.dilations[last] - self.before[last];
                runs.push(Run {
                    tap,
                    output: row * self.output[last] + first,
                    input: line * self.input[last] + start,
                    step: self.strides[last],
                    length: reach,
                });
            }
        }
        runs
    }

    /// Kernel elements that each output sees inside the input.
    pub fn counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.outputs()];
        for run in self.runs() {
            counts[run.output..][..run.length].iter_mut().for_each(|c| *c += 1);
        }
        counts
    }

    /// The input that output `output` sees through the kernel's element `tap` along one axis.
    fn seen(&self, axis: usize, output: usize, tap: usize) -> Option<usize> {
        let at = output * self.strides[axis] + tap * self.dilations[axis];
        at.checked_sub(self.before[axis]).filter(|at| *at < self.input[axis])
    }

    /// The outputs along one axis that see an input through `tap`: the first, and how many.
    fn reach(&self, axis: usize, tap: usize) -> (usize, usize) {
        let hits = |output: &usize| self.seen(axis, *output, tap).is_some();
        let first = (0..self.output[axis]).find(hits).unwrap_or(0);
        (first, (first..self.output[axis]).take_while(hits).count())
    }
}

/// All coordinates of a shape in row-major order.
fn coordinates(shape: &[usize]) -> impl Iterator<Item = TVec<usize>> {
    let shape: TVec<usize> = shape.into();
    (0..shape.iter().product()).map(move |mut index: usize| {
        let mut at: TVec<usize> = tvec![0; shape.len()];
        for axis in (0..shape.len()).rev() {
            at[axis] = index % shape[axis];
            index /= shape[axis];
        }
        at
    })
}
