//! Lanes of x86-64: one register of AVX-512, or two of AVX2. Both have fused multiply-add, and both give the same bits.
#![allow(unsafe_code)]
// Lanes become instructions of the kernel that uses them.
#![allow(clippy::inline_always, clippy::wildcard_imports)]

use super::Lanes;
use std::arch::x86_64::*;

/// AVX-512F: 32 registers of sixteen values.
#[derive(Clone, Copy)]
pub struct Avx512;

/// The mask of the first `count` lanes.
#[inline(always)]
fn first(count: usize) -> __mmask16 {
    ((1_u32 << count) - 1) as __mmask16
}

// SAFETY (of all blocks here): the caller vouches for the CPU's features and for the pointers, as the trait demands;
// loads and stores are the unaligned ones, masked ones touch the lanes of the mask alone.
impl Lanes for Avx512 {
    type V = __m512;
    const ROWS: usize = 12;
    const PANELS: usize = 2;
    const PIXELS: usize = 8;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_maskz_loadu_ps(first(count), from) }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(to, value) }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: Self::V, count: usize) {
        // SAFETY: see above.
        unsafe { _mm512_mask_storeu_ps(to, first(count), value) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn clip(value: Self::V, low: f32, high: f32) -> Self::V {
        // The second operand is the result where one is NaN.
        // SAFETY: see above.
        unsafe { _mm512_min_ps(_mm512_set1_ps(high), _mm512_max_ps(_mm512_set1_ps(low), value)) }
    }

    #[inline(always)]
    unsafe fn gate(value: Self::V, gate: Self::V, low: f32, high: f32) -> Self::V {
        // SAFETY: see above.
        unsafe {
            let above = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_set1_ps(low), gate);
            let inside = _mm512_mask_cmp_ps_mask::<_CMP_LT_OQ>(above, gate, _mm512_set1_ps(high));
            _mm512_maskz_mov_ps(inside, value)
        }
    }
}

/// AVX2 and FMA: sixteen registers of eight values, taken in pairs.
#[derive(Clone, Copy)]
pub struct Avx2;

/// Any eight in a row are a mask: of the first lanes, from 8 lanes to none.
static MASKS: [i32; 24] = [
    -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The mask of the first `count` (0 to 8) of eight lanes.
#[inline(always)]
fn half_mask(count: usize) -> __m256i {
    // SAFETY: 8 to 16 are offsets with eight values behind them, and the callers of [`Avx2`] vouch for the CPU's features.
    unsafe { _mm256_loadu_si256(MASKS.as_ptr().add(16 - count.min(8)).cast()) }
}

/// The masks of the first `count` of sixteen lanes.
#[inline(always)]
fn pair(count: usize) -> [__m256i; 2] {
    [half_mask(count), half_mask(count.saturating_sub(8))]
}

// SAFETY (of all blocks here): as above; `maskload` and `maskstore` touch the lanes of their mask alone.
impl Lanes for Avx2 {
    type V = [__m256; 2];
    const ROWS: usize = 6;
    const PANELS: usize = 1;
    const PIXELS: usize = 6;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }

    #[inline(always)]
    unsafe fn load_first(from: *const f32, count: usize) -> Self::V {
        let [low, high] = pair(count);
        // SAFETY: see above; the second half may lie outside, then its mask is empty.
        unsafe {
            [
                _mm256_maskload_ps(from, low),
                _mm256_maskload_ps(from.wrapping_add(8), high),
            ]
        }
    }

    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::V) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(to, value[0]);
            _mm256_storeu_ps(to.add(8), value[1]);
        }
    }

    #[inline(always)]
    unsafe fn store_first(to: *mut f32, value: Self::V, count: usize) {
        let [low, high] = pair(count);
        // SAFETY: see above; the second half may lie outside, then its mask is empty.
        unsafe {
            _mm256_maskstore_ps(to, low, value[0]);
            _mm256_maskstore_ps(to.wrapping_add(8), high, value[1]);
        }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }

    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn clip(value: Self::V, low: f32, high: f32) -> Self::V {
        // The second operand is the result where one is NaN.
        // SAFETY: see above.
        unsafe {
            let (low, high) = (_mm256_set1_ps(low), _mm256_set1_ps(high));
            [
                _mm256_min_ps(high, _mm256_max_ps(low, value[0])),
                _mm256_min_ps(high, _mm256_max_ps(low, value[1])),
            ]
        }
    }

    #[inline(always)]
    unsafe fn gate(value: Self::V, gate: Self::V, low: f32, high: f32) -> Self::V {
        [
            half_gate(value[0], gate[0], low, high),
            half_gate(value[1], gate[1], low, high),
        ]
    }
}

/// `value` where `low < gate < high`.
#[inline(always)]
fn half_gate(value: __m256, gate: __m256, low: f32, high: f32) -> __m256 {
    // SAFETY: the callers of [`Avx2`] vouch for the CPU's features.
    unsafe {
        let above = _mm256_cmp_ps::<_CMP_LT_OQ>(_mm256_set1_ps(low), gate);
        let below = _mm256_cmp_ps::<_CMP_LT_OQ>(gate, _mm256_set1_ps(high));
        _mm256_and_ps(value, _mm256_and_ps(above, below))
    }
}
