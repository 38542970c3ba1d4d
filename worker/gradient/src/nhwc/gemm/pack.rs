//! The right-hand matrix of a product, in panels of sixteen columns.

use super::super::lanes::LANES;
use super::panels;

/// A matrix of `k` rows in panels of sixteen columns: element (k, j) lies at `(j / 16) * panel + k * row + j % 16`. A
/// matrix whose rows lie as they are has panels of distance 16.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a> {
    /// Where the elements lie.
    pub data: &'a [f32],
    /// Distance of two rows of a panel.
    pub row: usize,
    /// Distance of two panels.
    pub panel: usize,
    /// Whether the last panel is filled up to sixteen columns.
    pub padded: bool,
}

impl<'a> Panels<'a> {
    /// A matrix of `k` rows that [`pack`] wrote.
    pub fn packed(data: &'a [f32], k: usize) -> Self {
        Self {
            data,
            row: LANES,
            panel: k * LANES,
            padded: true,
        }
    }

    /// A matrix that lies row after row, `row` values apart.
    pub fn rows(data: &'a [f32], row: usize) -> Self {
        Self {
            data,
            row,
            panel: LANES,
            padded: false,
        }
    }

    /// Whether `data` holds `k` rows of `n` columns, both above 0.
    pub(super) fn fits(&self, n: usize, k: usize) -> bool {
        let last = if self.padded {
            LANES
        } else {
            n - (panels(n) - 1) * LANES
        };
        self.data.len() >= (panels(n) - 1) * self.panel + (k - 1) * self.row + last
    }
}

/// Length of a packed matrix of `k` rows and `n` columns.
pub fn packed_len(k: usize, n: usize) -> usize {
    panels(n) * k * LANES
}

/// Packs a matrix of `k` rows and `n` columns, whose element (k, j) is `at(k, j)`; the last panel is filled with zeros.
pub fn pack(k: usize, n: usize, at: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = Vec::with_capacity(packed_len(k, n));
    for panel in 0..panels(n) {
        for row in 0..k {
            packed.extend((panel * LANES..(panel + 1) * LANES).map(|j| if j < n { at(row, j) } else { 0.0 }));
        }
    }
    packed
}
