//! One strided matrix product for all passes of a convolution: `C = epilogue(A B)`.
//!
//! | pass | M x N x K | A | B |
//! | --- | --- | --- | --- |
//! | forward | pixels x out x in | the picture | weights, packed |
//! | gradient of the input | pixels x in x out | gradient of the output | weights as they lie |
//! | gradient of the weights | out x in x pixels | gradient of the output read transposed | the picture as it lies |
//!
//! A is read value by value and broadcast, so it may have any strides and is never copied. B is read sixteen columns at a
//! time. A sum runs over k in order, in blocks of a fixed length, so its bits depend on K and the instructions alone.

mod kernel;
mod pack;
#[cfg(test)]
pub(super) mod tests;

pub use pack::{Panels, pack, packed_len};

use super::isa::Isa;
use super::lanes::LANES;

/// A matrix whose element (i, k) lies at `i * row + k * col`.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a> {
    /// Where the elements lie.
    pub data: &'a [f32],
    /// Distance of two rows.
    pub row: usize,
    /// Distance of two columns.
    pub col: usize,
}

/// Bounds of a clip; one that is infinite bounds nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clip {
    /// Lower bound.
    pub low: f32,
    /// Upper bound.
    pub high: f32,
}

// Bounds are constants of a graph, never NaN.
impl Eq for Clip {}

impl Clip {
    /// Bounds nothing.
    pub const NONE: Self = Self {
        low: f32::NEG_INFINITY,
        high: f32::INFINITY,
    };

    /// Whether every number stays as it is.
    pub fn is_none(&self) -> bool {
        *self == Self::NONE
    }
}

/// What happens to a sum before it is written, in this order: `bias` is added (or C's old value, with `accumulate`), then
/// `residual`, then the result is clipped, then gated.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// One value for each of the N columns.
    pub bias: Option<&'a [f32]>,
    /// An M x N matrix of the same row stride as C.
    pub residual: Option<&'a [f32]>,
    /// Bounds of the result.
    pub clip: Clip,
    /// An M x N matrix of the same row stride as C, and bounds: the result is 0 where it is not strictly inside them.
    pub gate: Option<(&'a [f32], Clip)>,
    /// Adds to what C holds.
    pub accumulate: bool,
}

impl Epilogue<'_> {
    /// The sum as it is.
    pub const NONE: Self = Self {
        bias: None,
        residual: None,
        clip: Clip::NONE,
        gate: None,
        accumulate: false,
    };
}

/// `C = epilogue(A B)`, with A `m` x `k`, B `k` x `n` and C `m` x `n` with rows `row` apart.
///
/// # Panics
/// Where a slice is too short for the sizes and strides: that is an error of the caller.
pub fn gemm(
    isa: Isa,
    [m, n, k]: [usize; 3],
    a: Strided,
    b: Panels,
    (c, row): (&mut [f32], usize),
    epilogue: &Epilogue,
) {
    if m == 0 || n == 0 {
        return;
    }
    let end = (m - 1) * row + n;
    assert!(row >= n && c.len() >= end, "C is too short");
    if k > 0 {
        assert!(a.data.len() > (m - 1) * a.row + (k - 1) * a.col, "A is too short");
        assert!(b.fits(n, k), "B is too short");
    }
    assert!(epilogue.bias.is_none_or(|b| b.len() >= n), "the bias is too short");
    assert!(
        epilogue.residual.is_none_or(|r| r.len() >= end),
        "the residual is too short"
    );
    assert!(
        epilogue.gate.is_none_or(|(g, _)| g.len() >= end),
        "the gate is too short"
    );
    assert!(
        epilogue.bias.is_none() || !epilogue.accumulate,
        "a bias and an old value"
    );
    kernel::run(
        isa,
        &kernel::Task {
            m,
            n,
            k,
            a,
            b,
            c: c.as_mut_ptr(),
            row,
            epilogue,
        },
    );
}

/// Panels that `n` columns take.
pub fn panels(n: usize) -> usize {
    n.div_ceil(LANES)
}
