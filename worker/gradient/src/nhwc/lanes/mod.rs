//! Sixteen f32 values in registers: the one type that all kernels are written over, once for every set of instructions.
#![allow(unsafe_code)]

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use portable::Plain;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Values in one vector, and columns in one panel of a packed matrix.
pub const LANES: usize = 16;

/// Sixteen f32 values and what kernels do with them.
///
/// # Safety
/// The CPU must have the instructions of the implementation when a method is called; pointers must be valid for what is
/// read or written, alignment is not needed. The methods are inlined always, so that they become instructions of the
/// caller, which enables the features.
pub(super) trait Lanes: Copy {
    /// The vector.
    type V: Copy;
    /// Rows of the matrix product's register tile: with [`Lanes::PANELS`], as many accumulators as registers allow.
    const ROWS: usize;
    /// Panels of sixteen columns of the register tile, 1 or 2.
    const PANELS: usize;
    /// Pixels that the depthwise kernel sums at a time.
    const PIXELS: usize;

    /// Sixteen times `value`.
    unsafe fn splat(value: f32) -> Self::V;
    /// The sixteen values at `from`.
    unsafe fn load(from: *const f32) -> Self::V;
    /// The first `count` (0 to 16) values at `from`, then zeros; what lies behind is not touched.
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V;
    /// Writes all values.
    unsafe fn store(to: *mut f32, value: Self::V);
    /// Writes the first `count` (0 to 16) values; what lies behind is not touched.
    unsafe fn store_first(to: *mut f32, value: Self::V, count: usize);
    /// `a b + c`.
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// `a + b`.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// `min(max(value, low), high)`; NaN stays NaN.
    unsafe fn clip(value: Self::V, low: f32, high: f32) -> Self::V;
    /// `value` where `low < gate < high`, 0 elsewhere: the gradient of a clip whose result is `gate`.
    unsafe fn gate(value: Self::V, gate: Self::V, low: f32, high: f32) -> Self::V;
}
