//! Lanes in plain Rust. On x86 multiply and add round twice, so that every x86 machine gives the same bits; elsewhere the
//! architecture's own fused multiply-add is used.
#![allow(unsafe_code)]
// Lanes become instructions of the kernel that uses them.
#![allow(clippy::inline_always)]

use super::{LANES, Lanes};

/// An array that the compiler keeps in registers.
#[derive(Clone, Copy)]
pub struct Plain;

impl Lanes for Plain {
    type V = [f32; LANES];
    // An array takes four registers of 128 bits: x86 has sixteen of them, ARM has 32.
    const ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };
    const PANELS: usize = 1;
    const PIXELS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 2 };

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: the caller vouches for sixteen values; an array of f32 read unaligned has no other needs.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        let mut value = [0.0; LANES];
        // SAFETY: the caller vouches for `count` values, at most sixteen, and the array is a place of its own.
        unsafe { std::ptr::copy_nonoverlapping(from, value.as_mut_ptr(), count) };
        value
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: the caller vouches for room for sixteen values.
        unsafe { to.cast::<Self::V>().write_unaligned(value) };
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: Self::V, count: usize) {
        // SAFETY: the caller vouches for room for `count` values, at most sixteen.
        unsafe { std::ptr::copy_nonoverlapping(value.as_ptr(), to, count) };
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| {
            if cfg!(target_arch = "aarch64") {
                a[i].mul_add(b[i], c[i])
            } else {
                a[i] * b[i] + c[i]
            }
        })
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn clip(value: Self::V, low: f32, high: f32) -> Self::V {
        std::array::from_fn(|i| {
            let v = if low > value[i] { low } else { value[i] };
            if high < v { high } else { v }
        })
    }

    #[inline(always)]
    unsafe fn gate(value: Self::V, gate: Self::V, low: f32, high: f32) -> Self::V {
        std::array::from_fn(|i| if low < gate[i] && gate[i] < high { value[i] } else { 0.0 })
    }
}
