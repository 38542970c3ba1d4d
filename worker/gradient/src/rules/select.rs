//! Choice between two tensors by a third.

use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::logic::Iff;

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = a where c, else b: ∂a = g where c, else 0; ∂b = 0 where c, else g.
pub fn iff(site: &mut Site, g: OutletId) -> Result {
    let condition = site.input(0);
    let zero = site.scalar(g, 0.0)?;
    let da = site.when(1, |s| {
        let part = s.wire(Iff, &[condition, g, zero])?;
        s.sum_to_input(1, part)
    })?;
    let db = site.when(2, |s| {
        let part = s.wire(Iff, &[condition, zero, g])?;
        s.sum_to_input(2, part)
    })?;
    Ok(tvec![None, da, db])
}
