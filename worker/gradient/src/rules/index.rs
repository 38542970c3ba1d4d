//! Reads at indices that are data.

use crate::ops::GatherGrad;
use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::array::Gather;

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = x\[.., i, ..\] for each index i along one axis: ∂x\[.., i, ..\] += g, in the order of the indices; rows that no index
/// names get zero.
pub fn gather(site: &mut Site, g: OutletId) -> Result {
    let op: Gather = site.op()?;
    if op.output_type.is_some() {
        return Err(site.refuse("it reads packed weights"));
    }
    let shape = site.shape(site.input(0))?;
    let dx = site.when(0, |s| {
        let grad = GatherGrad::new(op.axis, shape[op.axis], s.shape(s.input(1))?.len());
        s.wire(grad, &[g, s.input(1)])
    })?;
    Ok(tvec![dx, None])
}
