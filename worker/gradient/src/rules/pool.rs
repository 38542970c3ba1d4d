//! Pools over windows.

use crate::ops::{MaxPoolGrad, SumPoolGrad, Window};
use crate::prelude::*;
use crate::rules::conv::{as_format, channels_first};
use crate::site::{Gradients, Site};
use core_ops::cnn::{MaxPool, PaddingSpec, PoolSpec, SumPool};

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = max of what the window sees: ∂x = g at the largest element, the first where several are equal.
pub fn max_pool(site: &mut Site, g: OutletId) -> Result {
    let op: MaxPool = site.op()?;
    let (x, format) = (site.input(0), op.pool_spec.data_format);
    let shape = format.shape(site.shape(x)?)?;
    let window = Window::of(&op.pool_spec, shape.hw_dims());
    let inner = if format.c_is_last() { *shape.c_dim() } else { 1 };
    Ok(tvec![Some(site.wire(MaxPoolGrad::new(window, inner), &[g, x])?)])
}

/// y = Σ of what the window sees, divided by its number of elements in a mean: ∂x = Σ g over the windows that saw x,
/// divided alike.
pub fn sum_pool(site: &mut Site, g: OutletId) -> Result {
    let op: SumPool = site.op()?;
    let format = op.pool_spec.data_format;
    let x = channels_first(site, site.input(0), format)?;
    let g = channels_first(site, g, format)?;
    let spatial = site.shape(x)?;
    let window = Window::of(&op.pool_spec, &spatial[2..]);
    let counts = if !op.normalize {
        vec![1; window.outputs()]
    } else if op.count_include_pad {
        padded_counts(&op.pool_spec, &window)
    } else {
        window.counts()
    };
    let factors = counts.into_iter().map(|n| 1.0 / n.max(1) as f64).collect();
    let dx = site.wire(SumPoolGrad::new(window, factors), &[g])?;
    Ok(tvec![Some(as_format(site, dx, format)?)])
}

/// Elements of each window with the padding counted. Where the output was rounded up, the last window can reach past the
/// padding, and what lies there does not count.
fn padded_counts(spec: &PoolSpec, window: &Window) -> Vec<usize> {
    let PaddingSpec::ExplicitOnnxPool(before, after, true) = &spec.padding else {
        return vec![window.taps(); window.outputs()];
    };
    let (strides, dilations) = (spec.strides(), spec.dilations());
    let along = |axis: usize| -> Vec<usize> {
        let end = before[axis] + window.input_shape()[axis] + after[axis];
        let inside = |output: usize| {
            let taps = 0..spec.kernel_shape[axis];
            taps.filter(|tap| output * strides[axis] + tap * dilations[axis] < end)
                .count()
        };
        (0..window.output_shape()[axis]).map(inside).collect()
    };
    (0..spec.rank()).map(along).fold(vec![1], |outer, counts| {
        outer.iter().flat_map(|n| counts.iter().map(move |m| n * m)).collect()
    })
}
