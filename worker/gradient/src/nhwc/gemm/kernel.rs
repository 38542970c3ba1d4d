//! The kernel of the product: a tile of rows by panels in registers, written once over [`Lanes`].
#![allow(unsafe_code)]
// Kernels are one function each for their instructions, and loops over registers are unrolled by index.
#![allow(clippy::inline_always, clippy::needless_range_loop)]

use super::super::isa::Isa;
#[cfg(target_arch = "x86_64")]
use super::super::lanes::{Avx2, Avx512};
use super::super::lanes::{LANES, Lanes, Plain};
use super::{Epilogue, Panels, Strided, panels};

/// A product whose slices were checked: A, B and C hold what the sizes and strides reach, and so do the epilogue's.
pub(super) struct Task<'a> {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Strided<'a>,
    pub b: Panels<'a>,
    pub c: *mut f32,
    pub row: usize,
    pub epilogue: &'a Epilogue<'a>,
}

/// Longest sum that runs in one piece; a longer one is cut into blocks of [`K_BLOCK`].
const K_WHOLE: usize = 1536;
/// Terms of a block of a long sum, such that the block's part of B stays in the second cache.
const K_BLOCK: usize = 256;
/// Values of A that one block of rows reads, 128 KiB: they are read once for every panel and should stay in the second
/// cache beside the panel.
const A_BLOCK: usize = 1 << 15;

/// Runs a task with the instructions of `isa`, if the CPU has them.
pub(super) fn run(isa: Isa, task: &Task) {
    match isa.checked() {
        // SAFETY: the task's slices were checked, and the CPU has the features.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { avx512(task) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { avx2(task) },
        // SAFETY: the task's slices were checked, and plain Rust needs no feature.
        _ => unsafe { blocks::<Plain>(task) },
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn avx512(task: &Task) {
    // SAFETY: the caller's.
    unsafe { blocks::<Avx512>(task) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn avx2(task: &Task) {
    // SAFETY: the caller's.
    unsafe { blocks::<Avx2>(task) }
}

/// A block of the sum: terms `from` to `to`, and whether it is the first and the last one.
#[derive(Clone, Copy)]
struct Terms {
    from: usize,
    to: usize,
    first: bool,
    last: bool,
}

/// Cuts the product into blocks that fit the caches.
#[inline(always)]
unsafe fn blocks<L: Lanes>(task: &Task) {
    let block = if task.k <= K_WHOLE { task.k } else { K_BLOCK };
    let mut from = 0;
    loop {
        let to = (from + block).min(task.k);
        let terms = Terms {
            from,
            to,
            first: from == 0,
            last: to == task.k,
        };
        let rows = (A_BLOCK / (to - from).max(1) / L::ROWS * L::ROWS).clamp(L::ROWS, 40 * L::ROWS);
        let mut i = 0;
        while i < task.m {
            let end = (i + rows).min(task.m);
            let mut panel = 0;
            let count = panels(task.n);
            while panel < count {
                // SAFETY: the caller's; rows and panels are those of the task.
                unsafe {
                    if L::PANELS == 2 && count - panel >= 2 {
                        strip::<L, 2>(task, terms, i, end, panel);
                        panel += 2;
                    } else {
                        strip::<L, 1>(task, terms, i, end, panel);
                        panel += 1;
                    }
                }
            }
            i = end;
        }
        if terms.last {
            return;
        }
        from = to;
    }
}

/// The rows `i` to `end` of `P` panels, in tiles as high as registers allow.
#[inline(always)]
unsafe fn strip<L: Lanes, const P: usize>(task: &Task, terms: Terms, mut i: usize, end: usize, panel: usize) {
    while i < end {
        let left = end - i;
        // SAFETY: the caller's; a tile has at most the rows that are left.
        i += unsafe {
            if L::ROWS >= 12 && left >= 12 {
                tile::<L, 12, P>(task, terms, i, panel)
            } else if L::ROWS >= 8 && left >= 8 {
                tile::<L, 8, P>(task, terms, i, panel)
            } else if L::ROWS == 6 && left >= 6 {
                tile::<L, 6, P>(task, terms, i, panel)
            } else if L::ROWS >= 4 && left >= 4 {
                tile::<L, 4, P>(task, terms, i, panel)
            } else if left >= 2 {
                tile::<L, 2, P>(task, terms, i, panel)
            } else {
                tile::<L, 1, P>(task, terms, i, panel)
            }
        };
    }
}

/// `R` rows from `i` on of `P` panels; returns `R`.
#[inline(always)]
unsafe fn tile<L: Lanes, const R: usize, const P: usize>(task: &Task, terms: Terms, i: usize, panel: usize) -> usize {
    let column = panel * LANES;
    // Columns of the last panel of the tile; those before are full.
    let columns = (task.n - column - (P - 1) * LANES).min(LANES);
    let width = |p: usize| if p + 1 == P { columns } else { LANES };
    let epilogue = task.epilogue;
    // SAFETY: the task's slices reach all rows, columns and terms; of a panel that is not full, only its columns are
    // touched, unless B is padded.
    unsafe {
        let mut sums = [[L::splat(0.0); P]; R];
        let before = !terms.first || epilogue.accumulate;
        if let (false, Some(bias)) = (before, epilogue.bias) {
            for p in 0..P {
                let bias = L::load_first(bias.as_ptr().add(column + p * LANES), width(p));
                for sum in &mut sums {
                    sum[p] = bias;
                }
            }
        }
        let at = panel * task.b.panel + terms.from * task.b.row;
        let right = task.b.data.as_ptr().wrapping_add(at);
        let left = task
            .a
            .data
            .as_ptr()
            .wrapping_add(i * task.a.row + terms.from * task.a.col);
        let count = terms.to - terms.from;
        sums = if columns == LANES || task.b.padded {
            products::<L, R, P, true>(task, sums, left, right, count, columns)
        } else {
            products::<L, R, P, false>(task, sums, left, right, count, columns)
        };
        // One short loop for each step: a loop that the compiler does not unroll would keep the sums in memory.
        let c = task.c.add(i * task.row + column);
        // A block's sum is added as a whole, so that a long sum loses no more digits than its blocks do.
        if before {
            for r in 0..R {
                for p in 0..P {
                    let value = L::load_first(c.add(r * task.row + p * LANES), width(p));
                    sums[r][p] = L::add(sums[r][p], value);
                }
            }
        }
        if terms.last {
            let at = i * task.row + column;
            if let Some(residual) = epilogue.residual {
                let residual = residual.as_ptr().add(at);
                for r in 0..R {
                    for p in 0..P {
                        let value = L::load_first(residual.add(r * task.row + p * LANES), width(p));
                        sums[r][p] = L::add(sums[r][p], value);
                    }
                }
            }
            for sum in &mut sums {
                for value in sum {
                    *value = L::clip(*value, epilogue.clip.low, epilogue.clip.high);
                }
            }
            if let Some((gate, bounds)) = epilogue.gate {
                let gate = gate.as_ptr().add(at);
                for r in 0..R {
                    for p in 0..P {
                        let gate = L::load_first(gate.add(r * task.row + p * LANES), width(p));
                        sums[r][p] = L::gate(sums[r][p], gate, bounds.low, bounds.high);
                    }
                }
            }
        }
        if columns == LANES {
            for r in 0..R {
                for p in 0..P {
                    L::store(c.add(r * task.row + p * LANES), sums[r][p]);
                }
            }
        } else {
            for r in 0..R {
                for p in 0..P {
                    L::store_first(c.add(r * task.row + p * LANES), sums[r][p], width(p));
                }
            }
        }
    }
    R
}

/// Adds to a tile's sums the products of `count` terms, from `left` in A and `right` in B on. With `WHOLE` all lanes of a
/// panel may be read, else of the last one its `columns` alone.
#[inline(always)]
unsafe fn products<L: Lanes, const R: usize, const P: usize, const WHOLE: bool>(
    task: &Task,
    mut sums: [[L::V; P]; R],
    mut left: *const f32,
    mut right: *const f32,
    count: usize,
    columns: usize,
) -> [[L::V; P]; R] {
    // SAFETY: the caller's: A and B hold the terms.
    unsafe {
        for _ in 0..count {
            let mut b = [L::splat(0.0); P];
            for p in 0..P {
                let from = right.add(p * task.b.panel);
                b[p] = if WHOLE || p + 1 < P {
                    L::load(from)
                } else {
                    L::load_first(from, columns)
                };
            }
            for r in 0..R {
                let a = L::splat(*left.add(r * task.a.row));
                for p in 0..P {
                    sums[r][p] = L::mul_add(a, b[p], sums[r][p]);
                }
            }
            left = left.wrapping_add(task.a.col);
            right = right.wrapping_add(task.b.row);
        }
    }
    sums
}
