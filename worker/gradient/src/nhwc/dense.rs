//! Convolution over all channels in channels-last layout, by the strided product: a 1x1 convolution reads the picture as
//! it lies, a larger window is unfolded for a block of pixels at a time, so that the block stays in the second cache.

use super::gemm::{self, Clip, Epilogue, Panels, Strided, gemm};
use super::isa::Isa;
use super::shape::{Picture, Window};

/// Values of a block of unfolded pixels, 64 KiB.
const UNFOLDED: usize = 1 << 14;

/// Weights of a convolution in the order of the product: rows are (ky, kx, channel in), columns are channels out. The
/// element (o, i, ky, kx) of `oihw` is read.
pub fn pack(oihw: &[f32], out: usize, channels: usize, kernel: [usize; 2]) -> Vec<f32> {
    let taps = kernel[0] * kernel[1];
    gemm::pack(taps * channels, out, |k, o| {
        oihw[(o * channels + k % channels) * taps + k / channels]
    })
}

/// What is added to a sum and how it is bounded.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a> {
    /// One value for each channel out.
    pub bias: Option<&'a [f32]>,
    /// A picture of the form of the result.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub clip: Clip,
}

/// `y[oy, ox, o] = clip(bias[o] + sum over (ky, kx, i) of x[oy s - top + ky, ox s - left + kx, i] w[ky, kx, i, o] +
/// residual[oy, ox, o])` for one picture, zeros outside it; `weights` are those of [`pack`].
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn forward(
    isa: Isa,
    window: &Window,
    (x, picture): (&[f32], Picture),
    weights: &[f32],
    (y, out): (&mut [f32], usize),
    finish: &Finish,
) {
    let places = window.output(picture);
    let terms = window.kernel[0] * window.kernel[1] * picture.channels;
    let b = Panels::packed(weights, terms);
    let epilogue = |from: usize| Epilogue {
        bias: finish.bias,
        residual: finish.residual.map(|r| &r[from * out..]),
        clip: finish.clip,
        ..Epilogue::NONE
    };
    if window.is_pointwise() {
        let a = Strided {
            data: x,
            row: terms,
            col: 1,
        };
        gemm(isa, [places.pixels(), out, terms], a, b, (y, out), &epilogue(0));
        return;
    }
    let block = (UNFOLDED / terms.max(1)).clamp(12, 480) / 12 * 12;
    let mut unfolded = vec![0.0; block * terms];
    for first in (0..places.pixels()).step_by(block) {
        let rows = block.min(places.pixels() - first);
        unfold(window, (x, picture), first, &mut unfolded[..rows * terms]);
        let a = Strided {
            data: &unfolded,
            row: terms,
            col: 1,
        };
        gemm(
            isa,
            [rows, out, terms],
            a,
            b,
            (&mut y[first * out..], out),
            &epilogue(first),
        );
    }
}

/// Writes what the windows from number `first` on read, a row for each: (ky, kx, channel), zeros outside the picture.
pub(super) fn unfold(window: &Window, (x, picture): (&[f32], Picture), first: usize, to: &mut [f32]) {
    let [ky, kx] = window.kernel;
    let (channels, width) = (picture.channels, picture.width);
    let across = window.output(picture).width;
    for (number, row) in (first..).zip(to.chunks_exact_mut(ky * kx * channels)) {
        let (top, left) = (number / across * window.stride[0], number % across * window.stride[1]);
        // Columns of the window that lie inside the picture.
        let from = window.pads.left.saturating_sub(left).min(kx);
        let end = (width + window.pads.left).saturating_sub(left).clamp(from, kx);
        for (y, part) in (top..).zip(row.chunks_exact_mut(kx * channels)) {
            match y.checked_sub(window.pads.top).filter(|y| *y < picture.height) {
                Some(y) if from < end => {
                    let start = (y * width + left + from - window.pads.left) * channels;
                    part[..from * channels].fill(0.0);
                    part[from * channels..end * channels].copy_from_slice(&x[start..][..(end - from) * channels]);
                    part[end * channels..].fill(0.0);
                }
                _ => part.fill(0.0),
            }
        }
    }
}
