//! Depthwise convolution in channels-last layout: each channel is summed over a window of its own.
//!
//! One kernel sums windows. What a window is stands in two lists of taps, so the same kernel is the forward pass and,
//! with the taps turned round, the gradient of the input; where the stride is above 1, the gradient falls apart into one
//! such sum for every remainder of a pixel's position.

mod kernel;
#[cfg(test)]
pub(super) mod tests;

use super::gemm::Clip;
use super::isa::Isa;
use super::lanes::LANES;
use super::shape::{Pads, Picture, Window};

/// Taps of a window along one axis that fit the kernel's lists.
pub const MAX_TAPS: usize = 16;

/// One place of a window along one axis.
#[derive(Clone, Copy, Debug, Default)]
struct Tap {
    /// Position in the source relative to the window's place.
    offset: isize,
    /// Which row or column of the weights.
    weight: usize,
}

/// Windows along one axis: window q reads the source at `q * step + offset` for every tap and writes position
/// `q * out_step + out_start`.
#[derive(Clone, Debug)]
struct Axis {
    taps: Vec<Tap>,
    step: usize,
    count: usize,
    out_step: usize,
    out_start: usize,
}

/// What happens to a sum before it is written: the clip, then the gate of [`super::gemm::Epilogue`].
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// One value for each channel, where the sum begins.
    pub bias: Option<&'a [f32]>,
    /// Added to the sum; it has the form of the result.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub clip: Clip,
    /// A picture of the form of the result, and bounds: the result is 0 where it is not strictly inside them.
    pub gate: Option<(&'a [f32], Clip)>,
}

impl Finish<'_> {
    /// The sum as it is.
    pub const NONE: Self = Self {
        bias: None,
        residual: None,
        clip: Clip::NONE,
        gate: None,
    };
}

/// Weights of `channels` windows of `taps` places, whose element (channel, tap) is `at(channel, tap)`, in blocks of
/// sixteen channels: element (c, t) lies at `((c / 16) * taps + t) * 16 + c % 16`, and zeros fill the last block.
pub fn pack(channels: usize, taps: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let blocks = channels.div_ceil(LANES);
    let mut packed = Vec::with_capacity(blocks * taps * LANES);
    for block in 0..blocks {
        for tap in 0..taps {
            packed.extend((block * LANES..(block + 1) * LANES).map(|c| if c < channels { at(c, tap) } else { 0.0 }));
        }
    }
    packed
}

/// The weights in the order (channel, tap) from those of [`pack`].
pub fn unpack(packed: &[f32], channels: usize, taps: usize) -> Vec<f32> {
    let at = |i: usize| packed[(i / taps / LANES * taps + i % taps) * LANES + i / taps % LANES];
    (0..channels * taps).map(at).collect()
}

/// `y[oy, ox, c] = finish(sum over (ky, kx) of x[oy s - top + ky, ox s - left + kx, c] w[ky, kx, c])` for one picture,
/// zeros outside it.
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn forward(isa: Isa, window: &Window, x: (&[f32], Picture), weights: &[f32], y: &mut [f32], finish: &Finish) {
    let out = window.output(x.1);
    let axis = |kernel: usize, stride: usize, before: usize, count: usize| Axis {
        taps: (0..kernel)
            .map(|k| Tap {
                offset: k.cast_signed() - before.cast_signed(),
                weight: k,
            })
            .collect(),
        step: stride,
        count,
        out_step: 1,
        out_start: 0,
    };
    let [ky, kx] = window.kernel;
    let Pads { top, left, .. } = window.pads;
    let rows = axis(ky, window.stride[0], top, out.height);
    let columns = axis(kx, window.stride[1], left, out.width);
    sum(isa, x, (weights, window.kernel), (y, out), [&rows, &columns], finish);
}

/// The gradient of [`forward`]'s input: `dx[iy, ix, c] = finish(sum of dy[oy, ox, c] w[ky, kx, c])` over the windows that
/// read this pixel, those with `oy s - top + ky = iy` and `ox s - left + kx = ix`.
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn input_gradient(
    isa: Isa,
    window: &Window,
    dy: &[f32],
    weights: &[f32],
    dx: (&mut [f32], Picture),
    finish: &Finish,
) {
    let (dx, picture) = dx;
    let out = window.output(picture);
    // Pixels q s + phase meet the taps with k = phase + before (mod s), at output q + (phase + before - k) / s.
    let axis = |kernel: usize, stride: usize, before: usize, size: usize, phase: usize| Axis {
        taps: (0..kernel)
            .filter(|k| (phase + before).abs_diff(*k).is_multiple_of(stride))
            .map(|k| Tap {
                offset: ((phase + before).cast_signed() - k.cast_signed()) / stride.cast_signed(),
                weight: k,
            })
            .collect(),
        step: 1,
        count: size.saturating_sub(phase).div_ceil(stride),
        out_step: stride,
        out_start: phase,
    };
    let [sy, sx] = window.stride;
    for py in 0..sy {
        let rows = axis(window.kernel[0], sy, window.pads.top, picture.height, py);
        for px in 0..sx {
            let columns = axis(window.kernel[1], sx, window.pads.left, picture.width, px);
            let to = (&mut *dx, picture);
            sum(isa, (dy, out), (weights, window.kernel), to, [&rows, &columns], finish);
        }
    }
}

/// Adds to `dw`, which lies as [`pack`] writes it, the gradient of the weights of one picture:
/// `dw[ky, kx, c] += sum over (oy, ox) of x[oy s - top + ky, ox s - left + kx, c] dy[oy, ox, c]`.
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn weight_gradient(isa: Isa, window: &Window, x: (&[f32], Picture), dy: &[f32], dw: &mut [f32]) {
    let (data, picture) = x;
    let out = window.output(picture);
    assert!(data.len() >= picture.len(), "the picture is too short");
    assert!(dy.len() >= out.len(), "the gradient is too short");
    let taps = window.kernel[0] * window.kernel[1];
    assert!(
        dw.len() >= picture.channels.div_ceil(LANES) * taps * LANES,
        "the weights are too short"
    );
    let dw = dw.as_mut_ptr();
    kernel::weights(
        isa,
        &kernel::Pair {
            window,
            x: data,
            picture,
            dy,
            out,
            dw,
        },
    );
}

/// Checks the slices and runs the kernel.
fn sum(
    isa: Isa,
    (from, source): (&[f32], Picture),
    (weights, [ky, kx]): (&[f32], [usize; 2]),
    (to, target): (&mut [f32], Picture),
    [rows, columns]: [&Axis; 2],
    finish: &Finish,
) {
    let channels = source.channels;
    assert!(channels == target.channels, "channels stay as they are");
    assert!(from.len() >= source.len(), "the source is too short");
    assert!(to.len() >= target.len(), "the target is too short");
    assert!(
        weights.len() >= channels.div_ceil(LANES) * ky * kx * LANES,
        "the weights are too short"
    );
    assert!(finish.bias.is_none_or(|b| b.len() >= channels), "the bias is too short");
    assert!(
        finish.residual.is_none_or(|r| r.len() >= target.len()),
        "the residual is too short"
    );
    assert!(
        finish.gate.is_none_or(|(g, _)| g.len() >= target.len()),
        "the gate is too short"
    );
    for (axis, kernel, size) in [(rows, ky, target.height), (columns, kx, target.width)] {
        assert!(axis.taps.iter().all(|t| t.weight < kernel), "a tap has no weight");
        assert!(
            axis.count == 0 || (axis.count - 1) * axis.out_step + axis.out_start < size,
            "a window writes outside the target"
        );
    }
    assert!(
        rows.taps.len() <= MAX_TAPS && columns.taps.len() <= MAX_TAPS,
        "more than {MAX_TAPS} taps along an axis"
    );
    kernel::run(
        isa,
        &kernel::Task {
            from,
            source,
            weights,
            kernel: [ky, kx],
            to: to.as_mut_ptr(),
            target,
            rows,
            columns,
            finish,
        },
    );
}
