//! Convolution over all channels in channels-last layout, by the strided product: a 1x1 convolution reads the picture as
//! it lies, a larger window is unfolded for a block of pixels at a time, so that the block stays in the second cache.

use super::gemm::{self, Clip, Epilogue, Panels, Strided, gemm};
use super::isa::Isa;
use super::lanes::LANES;
use super::shape::{Picture, Window};
use std::borrow::Cow;

/// Values of a block of unfolded pixels, 64 KiB.
const UNFOLDED: usize = 1 << 14;

/// Channels that are packed at a time: their part of a panel stays in the first cache.
const PACKED: usize = 64;

/// Weights of a convolution in the order of the product: rows are (ky, kx, channel in), columns are channels out. The
/// element (o, i, ky, kx) of `oihw` is read.
pub fn pack(oihw: &[f32], out: usize, channels: usize, kernel: [usize; 2]) -> Vec<f32> {
    let taps = kernel[0] * kernel[1];
    let terms = taps * channels;
    let mut packed = vec![0.0; gemm::packed_len(terms, out)];
    let panels = packed.chunks_exact_mut((terms * LANES).max(1));
    for (panel, weights) in panels.zip(oihw.chunks((terms * LANES).max(1))) {
        let (rows, _) = panel.as_chunks_mut::<LANES>();
        for first in (0..channels).step_by(PACKED) {
            let count = PACKED.min(channels - first);
            for (lane, weights) in weights.chunks_exact(terms).enumerate() {
                for tap in 0..taps {
                    let rows = &mut rows[tap * channels + first..][..count];
                    let weights = weights[first * taps + tap..].iter().step_by(taps);
                    rows.iter_mut()
                        .zip(weights)
                        .for_each(|(row, weight)| row[lane] = *weight);
                }
            }
        }
    }
    packed
}

/// The weights turned round for the gradient of the input: rows are channels out, columns (ky, kx, channel in). Those of
/// a 1x1 convolution lie so already.
pub fn turn(oihw: &[f32], channels: usize, kernel: [usize; 2]) -> Cow<'_, [f32]> {
    let taps = kernel[0] * kernel[1];
    if taps == 1 {
        return oihw.into();
    }
    let mut rows = Vec::with_capacity(oihw.len());
    for weights in oihw.chunks_exact((taps * channels).max(1)) {
        for tap in 0..taps {
            rows.extend(weights[tap..].iter().step_by(taps));
        }
    }
    rows.into()
}

/// The same from weights that [`pack`] wrote.
pub fn turn_packed(packed: &[f32], terms: usize, out: usize) -> Vec<f32> {
    let row = |o: usize| (0..terms).map(move |k| packed[(o / LANES * terms + k) * LANES + o % LANES]);
    (0..out).flat_map(row).collect()
}

/// A gradient of weights in the order O x I x H x W from one that lies as [`turn`] writes weights.
pub fn turn_back(rows: Vec<f32>, channels: usize, kernel: [usize; 2]) -> Vec<f32> {
    let taps = kernel[0] * kernel[1];
    if taps == 1 {
        return rows;
    }
    let mut oihw = Vec::with_capacity(rows.len());
    for weights in rows.chunks_exact((taps * channels).max(1)) {
        for channel in 0..channels {
            oihw.extend(weights[channel..].iter().step_by(channels));
        }
    }
    oihw
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
    let block = block(terms);
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
fn unfold(window: &Window, (x, picture): (&[f32], Picture), first: usize, to: &mut [f32]) {
    let [ky, kx] = window.kernel;
    let channels = picture.channels;
    let across = window.output(picture).width;
    for (number, row) in (first..).zip(to.chunks_exact_mut(ky * kx * channels)) {
        for (y, part) in row.chunks_exact_mut(kx * channels).enumerate() {
            if let Some((inside, start)) = line(window, picture, [number / across, number % across], y) {
                let (from, end) = (inside.start * channels, inside.end * channels);
                part[..from].fill(0.0);
                part[from..end].copy_from_slice(&x[start..][..end - from]);
                part[end..].fill(0.0);
            } else {
                part.fill(0.0);
            }
        }
    }
}

/// The gradient of [`forward`]'s input: `dx[iy, ix, i] = sum of dz[oy, ox, o] w[ky, kx, i, o]` over the windows that read
/// this pixel, where `dz` is the gradient of the sums; `weights` are those of [`turn`]. With a `gate`, a picture of the form
/// of `dx` and bounds, the result is 0 where it is not strictly inside them.
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn input_gradient(
    isa: Isa,
    window: &Window,
    (dz, out): (&[f32], usize),
    weights: &[f32],
    (dx, picture): (&mut [f32], Picture),
    gate: Option<(&[f32], Clip)>,
) {
    let places = window.output(picture);
    let terms = window.kernel[0] * window.kernel[1] * picture.channels;
    let b = Panels::rows(weights, terms);
    if window.is_pointwise() {
        let a = Strided {
            data: dz,
            row: out,
            col: 1,
        };
        let epilogue = Epilogue { gate, ..Epilogue::NONE };
        gemm(isa, [places.pixels(), terms, out], a, b, (dx, terms), &epilogue);
        return;
    }
    dx.fill(0.0);
    let block = block(terms);
    let mut unfolded = vec![0.0; block * terms];
    for first in (0..places.pixels()).step_by(block) {
        let rows = block.min(places.pixels() - first);
        let a = Strided {
            data: &dz[first * out..],
            row: out,
            col: 1,
        };
        gemm(isa, [rows, terms, out], a, b, (&mut unfolded, terms), &Epilogue::NONE);
        fold(window, &unfolded[..rows * terms], first, (dx, picture));
    }
    if let Some((y, Clip { low, high })) = gate {
        for (dx, y) in dx.iter_mut().zip(y) {
            *dx = if low < *y { *dx } else { 0.0 };
            *dx = if *y < high { *dx } else { 0.0 };
        }
    }
}

/// The gradient of the weights, summed over the pictures that `x` holds one after the other, as [`turn`] writes weights:
/// `dw[o, ky, kx, i] = sum over (oy, ox) of dz[oy, ox, o] x[oy s - top + ky, ox s - left + kx, i]`.
///
/// # Panics
/// Where a slice is too short for the sizes.
pub fn weight_gradient(
    isa: Isa,
    window: &Window,
    (x, picture): (&[f32], Picture),
    (dz, out): (&[f32], usize),
    dw: &mut [f32],
) {
    let pixels = window.output(picture).pixels();
    let terms = window.kernel[0] * window.kernel[1] * picture.channels;
    // Adds what `rows` pixels give, beginning with the first ones of all.
    let mut add = |begun: bool, dz: &[f32], x: &[f32], rows: usize| {
        let a = Strided {
            data: dz,
            row: 1,
            col: out,
        };
        let epilogue = Epilogue {
            accumulate: begun,
            ..Epilogue::NONE
        };
        gemm(
            isa,
            [out, terms, rows],
            a,
            Panels::rows(x, terms),
            (&mut *dw, terms),
            &epilogue,
        );
    };
    if window.is_pointwise() {
        add(false, dz, x, dz.len() / out.max(1));
        return;
    }
    let block = block(terms);
    let mut unfolded = vec![0.0; block * terms];
    let pictures = x
        .chunks_exact(picture.len().max(1))
        .zip(dz.chunks_exact((pixels * out).max(1)));
    for (number, (x, dz)) in pictures.enumerate() {
        for first in (0..pixels).step_by(block) {
            let rows = block.min(pixels - first);
            unfold(window, (x, picture), first, &mut unfolded[..rows * terms]);
            add(number + first > 0, &dz[first * out..], &unfolded, rows);
        }
    }
}

/// Adds each value of the rows, which lie as [`unfold`] writes them, to the pixel that its window reads.
fn fold(window: &Window, rows: &[f32], first: usize, (dx, picture): (&mut [f32], Picture)) {
    let [ky, kx] = window.kernel;
    let across = window.output(picture).width;
    for (number, row) in (first..).zip(rows.chunks_exact(ky * kx * picture.channels)) {
        for (y, part) in row.chunks_exact(kx * picture.channels).enumerate() {
            if let Some((inside, start)) = line(window, picture, [number / across, number % across], y) {
                let part = &part[inside.start * picture.channels..inside.end * picture.channels];
                dx[start..].iter_mut().zip(part).for_each(|(to, from)| *to += from);
            }
        }
    }
}

/// Pixels that are unfolded at a time.
fn block(terms: usize) -> usize {
    (UNFOLDED / terms.max(1)).clamp(12, 480) / 12 * 12
}

/// Of row `y` of the window at the place (row, column): which of its columns lie inside the picture, and where the first
/// of them begins there; `None` where none does.
fn line(
    window: &Window,
    picture: Picture,
    [row, column]: [usize; 2],
    y: usize,
) -> Option<(std::ops::Range<usize>, usize)> {
    let y = (row * window.stride[0] + y).checked_sub(window.pads.top)?;
    let left = column * window.stride[1];
    let from = window.pads.left.saturating_sub(left);
    let end = (picture.width + window.pads.left)
        .saturating_sub(left)
        .min(window.kernel[1]);
    let start = (y * picture.width + left + from).wrapping_sub(window.pads.left) * picture.channels;
    (y < picture.height && from < end).then_some((from..end, start))
}
