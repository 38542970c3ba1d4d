//! The kernels of the depthwise convolution: sixteen channels and some pixels in registers, written once over [`Lanes`].
#![allow(unsafe_code)]
// Kernels are one function each for their instructions, and loops over registers are unrolled by index.
#![allow(clippy::inline_always, clippy::needless_range_loop)]

use super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::lanes::{Avx2, Avx512};
use super::super::lanes::{LANES, Lanes, Plain};
use super::super::shape::{Picture, Window};
use super::{Axis, Finish, MAX_TAPS};

/// A sum of windows whose slices and axes were checked: the pictures have their sizes, taps have weights, windows write
/// inside the target. Taps may read outside the source: there are zeros.
pub(super) struct Task<'a> {
    pub from: &'a [f32],
    pub source: Picture,
    pub weights: &'a [f32],
    pub kernel: [usize; 2],
    pub to: *mut f32,
    pub target: Picture,
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    pub finish: &'a Finish<'a>,
}

/// A picture, the gradient of its windows, and where the gradient of the weights is added, of checked sizes.
pub(super) struct Pair<'a> {
    pub window: &'a Window,
    pub x: &'a [f32],
    pub picture: Picture,
    pub dy: &'a [f32],
    pub out: Picture,
    pub dw: *mut f32,
}

/// Runs a sum with the instructions of `isa`, if the CPU has them.
pub(super) fn run(isa: Isa, task: &Task) {
    match isa.checked() {
        // SAFETY: the task was checked, and the CPU has the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(task) },
        // SAFETY: the task was checked, and plain Rust needs no feature.
        _ => unsafe { picture::<Plain, { Plain::PIXELS }>(task) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(task: &Task) {
    // SAFETY: the caller's.
    unsafe { picture::<Avx512, { Avx512::PIXELS }>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(task: &Task) {
    // SAFETY: the caller's.
    unsafe { picture::<Avx2, { Avx2::PIXELS }>(task) }
}

/// Runs the gradient of the weights with the instructions of `isa`, if the CPU has them.
pub(super) fn weights(isa: Isa, pair: &Pair) {
    match isa.checked() {
        // SAFETY: sizes were checked, and the CPU has the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { weights_avx512(pair) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { weights_avx2(pair) },
        // SAFETY: sizes were checked, and plain Rust needs no feature.
        _ => unsafe { correlate::<Plain>(pair) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn weights_avx512(pair: &Pair) {
    // SAFETY: the caller's.
    unsafe { correlate::<Avx512>(pair) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn weights_avx2(pair: &Pair) {
    // SAFETY: the caller's.
    unsafe { correlate::<Avx2>(pair) }
}

/// A tap whose position in the source is known: distance in values, and place in the block of weights.
#[derive(Clone, Copy, Default)]
struct Place {
    from: isize,
    weight: usize,
}

/// The windows that read no pixel outside `0..size`, as a range.
fn inside(axis: &Axis, size: usize) -> std::ops::Range<usize> {
    let (mut first, mut end) = (0, axis.count);
    for tap in &axis.taps {
        let step = axis.step.cast_signed();
        let low = (-tap.offset).max(0) + step - 1;
        first = first.max((low / step).cast_unsigned());
        // q step + offset <= size - 1
        let room = size.cast_signed() - 1 - tap.offset;
        end = end.min(if room < 0 { 0 } else { (room / step).cast_unsigned() + 1 });
    }
    first.min(end)..end
}

/// All windows, row by row, block of channels by block, tile of pixels by tile. The rows under the window stay in the second
/// cache, and what is read from further away lies together; going down all rows of a block first, at steps of a pixel, its
/// lines met in the same sets of the first cache and took 15 % longer in EfficientNet-Lite0.
#[inline(always)]
unsafe fn picture<L: Lanes, const P: usize>(task: &Task) {
    let channels = task.source.channels;
    let [ky, kx] = task.kernel;
    let safe = inside(task.columns, task.source.width);
    for q in 0..task.rows.count {
        let (rows, count) = rows_inside(task, q);
        for channel in (0..channels).step_by(LANES) {
            let line = Line {
                rows: &rows[..count],
                weights: task.weights.as_ptr().wrapping_add(channel * ky * kx),
                from: task.from.as_ptr().wrapping_add(channel),
                channel,
                lanes: (channels - channel).min(LANES),
                out: (q * task.rows.out_step + task.rows.out_start) * task.target.width,
            };
            let mut x = 0;
            while x < task.columns.count {
                // SAFETY: the task was checked; the tile without masks reads pixels inside the picture alone, and full
                // blocks of channels.
                x += unsafe {
                    if line.lanes == LANES && safe.start <= x && x + P <= safe.end {
                        tile::<L, P, true>(task, &line, x, P)
                    } else {
                        tile::<L, P, false>(task, &line, x, (task.columns.count - x).min(P))
                    }
                };
            }
        }
    }
}

/// The taps of the windows of row `q` whose row lies inside the source, and how many these are.
#[inline(always)]
fn rows_inside(task: &Task, q: usize) -> ([Place; MAX_TAPS], usize) {
    let pitch = (task.source.width * task.source.channels).cast_signed();
    let mut rows = [Place::default(); MAX_TAPS];
    let mut count = 0;
    for tap in &task.rows.taps {
        let y = (q * task.rows.step).cast_signed() + tap.offset;
        if (0..task.source.height.cast_signed()).contains(&y) {
            rows[count] = Place {
                from: y * pitch,
                weight: tap.weight * task.kernel[1] * LANES,
            };
            count += 1;
        }
    }
    (rows, count)
}

/// What all tiles of one row and one block of channels share.
struct Line<'a> {
    /// Taps whose row lies inside the source.
    rows: &'a [Place],
    /// The block's weights.
    weights: *const f32,
    /// The block's first channel in the source.
    from: *const f32,
    /// Number of that channel.
    channel: usize,
    /// Channels of the block.
    lanes: usize,
    /// First pixel of the target's row.
    out: usize,
}

/// The windows `x` to `x + count` (at most `P`) of a line. With `FULL` all of them lie inside, there are `P` of them, and
/// the block has all its channels. Returns `count`.
#[inline(always)]
unsafe fn tile<L: Lanes, const P: usize, const FULL: bool>(task: &Task, line: &Line, x: usize, count: usize) -> usize {
    let channels = task.source.channels;
    let width = task.source.width.cast_signed();
    let finish = task.finish;
    // SAFETY: the task was checked: rows lie inside the source, columns do with `FULL` or else are masked away, the target
    // has all pixels that are written.
    unsafe {
        let start = match finish.bias {
            Some(bias) => L::load_first(bias.as_ptr().add(line.channel), line.lanes),
            None => L::splat(0.0),
        };
        let mut sums = [start; P];
        let step = task.columns.step * channels;
        for tap in &task.columns.taps {
            let first = (x * task.columns.step).cast_signed() + tap.offset;
            let from = line.from.wrapping_offset(first * channels.cast_signed());
            let weights = line.weights.wrapping_add(tap.weight * LANES);
            if FULL {
                for row in line.rows {
                    let weight = L::load(weights.add(row.weight));
                    let from = from.wrapping_offset(row.from);
                    for p in 0..P {
                        sums[p] = L::mul_add(weight, L::load(from.wrapping_add(p * step)), sums[p]);
                    }
                }
            } else {
                let mut lanes = [0; P];
                for p in 0..P {
                    let at = first + (p * task.columns.step).cast_signed();
                    if p < count && 0 <= at && at < width {
                        lanes[p] = line.lanes;
                    }
                }
                for row in line.rows {
                    let weight = L::load(weights.add(row.weight));
                    let from = from.wrapping_offset(row.from);
                    for p in 0..P {
                        let value = L::load_first(from.wrapping_add(p * step), lanes[p]);
                        sums[p] = L::mul_add(weight, value, sums[p]);
                    }
                }
            }
        }
        let pixel = line.out + x * task.columns.out_step + task.columns.out_start;
        let at = pixel * channels + line.channel;
        let step = task.columns.out_step * channels;
        if let Some(residual) = finish.residual {
            let residual = residual.as_ptr().add(at);
            for p in 0..P {
                let lanes = if p < count { line.lanes } else { 0 };
                sums[p] = L::add(sums[p], L::load_first(residual.wrapping_add(p * step), lanes));
            }
        }
        for sum in &mut sums {
            *sum = L::clip(*sum, finish.clip.low, finish.clip.high);
        }
        if let Some((gate, bounds)) = finish.gate {
            let gate = gate.as_ptr().add(at);
            for p in 0..P {
                let lanes = if p < count { line.lanes } else { 0 };
                let gate = L::load_first(gate.wrapping_add(p * step), lanes);
                sums[p] = L::gate(sums[p], gate, bounds.low, bounds.high);
            }
        }
        let to = task.to.add(at);
        if FULL {
            for p in 0..P {
                L::store(to.add(p * step), sums[p]);
            }
        } else {
            for p in 0..P {
                let lanes = if p < count { line.lanes } else { 0 };
                L::store_first(to.wrapping_add(p * step), sums[p], lanes);
            }
        }
    }
    count
}

/// The gradient of the weights: block of channels by block, row of the window by row, up to [`SPAN`] taps of it at a time.
#[inline(always)]
unsafe fn correlate<L: Lanes>(pair: &Pair) {
    let [ky, kx] = pair.window.kernel;
    for channel in (0..pair.picture.channels).step_by(LANES) {
        for row in 0..ky {
            let mut column = 0;
            while column < kx {
                // SAFETY: the caller's; taps lie inside the window.
                column += unsafe {
                    match kx - column {
                        1 => taps::<L, 1, 4>(pair, channel, row, column),
                        2 => taps::<L, 2, 2>(pair, channel, row, column),
                        3 => taps::<L, 3, 2>(pair, channel, row, column),
                        4 => taps::<L, 4, 1>(pair, channel, row, column),
                        _ => taps::<L, 5, 1>(pair, channel, row, column),
                    }
                };
            }
        }
    }
}

/// Adds the gradients of `T` taps of a window's row; `U` pixels have sums of their own, so that a sum need not wait for
/// the one before. Returns `T`.
#[inline(always)]
unsafe fn taps<L: Lanes, const T: usize, const U: usize>(pair: &Pair, channel: usize, ky: usize, kx: usize) -> usize {
    let channels = pair.picture.channels;
    let lanes = (channels - channel).min(LANES);
    let [sy, sx] = pair.window.stride;
    let pads = &pair.window.pads;
    let width = pair.picture.width;
    // Outputs whose taps all lie inside a row.
    let first = pads.left.saturating_sub(kx).div_ceil(sx).min(pair.out.width);
    let end = (width + pads.left)
        .checked_sub(kx + T)
        .map_or(0, |room| room / sx + 1)
        .clamp(first, pair.out.width);
    // SAFETY: sizes were checked; pixels are read where row and column lie inside the picture, of a block its channels.
    unsafe {
        let mut sums = [[L::splat(0.0); T]; U];
        for oy in 0..pair.out.height {
            let Some(iy) = (oy * sy + ky)
                .checked_sub(pads.top)
                .filter(|y| *y < pair.picture.height)
            else {
                continue;
            };
            let x = pair.x.as_ptr().add(iy * width * channels + channel);
            let dy = pair.dy.as_ptr().add(oy * pair.out.width * channels + channel);
            for ox in (0..first).chain(end..pair.out.width) {
                let gradient = L::load_first(dy.add(ox * channels), lanes);
                for t in 0..T {
                    if let Some(ix) = (ox * sx + kx + t).checked_sub(pads.left).filter(|x| *x < width) {
                        let value = L::load_first(x.add(ix * channels), lanes);
                        sums[0][t] = L::mul_add(gradient, value, sums[0][t]);
                    }
                }
            }
            let mut ox = first;
            if lanes == LANES {
                while ox + U <= end {
                    for u in 0..U {
                        let gradient = L::load(dy.add((ox + u) * channels));
                        let x = x.add(((ox + u) * sx + kx - pads.left) * channels);
                        for t in 0..T {
                            sums[u][t] = L::mul_add(gradient, L::load(x.add(t * channels)), sums[u][t]);
                        }
                    }
                    ox += U;
                }
            }
            while ox < end {
                let gradient = L::load_first(dy.add(ox * channels), lanes);
                let x = x.add((ox * sx + kx - pads.left) * channels);
                for t in 0..T {
                    let value = L::load_first(x.add(t * channels), lanes);
                    sums[0][t] = L::mul_add(gradient, value, sums[0][t]);
                }
                ox += 1;
            }
        }
        let [taps_y, taps_x] = pair.window.kernel;
        for t in 0..T {
            let to = pair
                .dw
                .add((channel * taps_y * taps_x) + (ky * taps_x + kx + t) * LANES);
            let mut sum = L::load(to);
            for part in &sums {
                sum = L::add(sum, part[t]);
            }
            L::store(to, sum);
        }
    }
    T
}
