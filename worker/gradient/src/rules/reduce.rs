//! Reductions over axes, which stay with length 1.

use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::binary::TypedBinOp;
use core_ops::cast::cast;
use core_ops::logic::comp_eq;
use core_ops::nn::Reduce;

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = Σ x: ∂x = g, repeated.
pub fn sum(site: &mut Site, g: OutletId) -> Result {
    let shape = site.shape(site.input(0))?;
    Ok(tvec![Some(site.broadcast(g, &shape)?)])
}

/// y = (1/n)·Σ x² over n elements: ∂x = (2/n)·g·x.
pub fn mean_of_squares(site: &mut Site, g: OutletId) -> Result {
    let op: Reduce = site.op()?;
    let shape = site.shape(site.input(0))?;
    let count: usize = op.axes.iter().map(|a| shape[*a]).product();
    let g = site.scale(g, 2.0 / count as f64)?;
    Ok(tvec![Some(site.mul(site.input(0), g)?)])
}

/// y = max x or min x: ∂x = g·m/Σm with m = \[x = y\]: equal extrema share alike, as in PyTorch's amax.
pub fn extremum(site: &mut Site, g: OutletId) -> Result {
    let op: Reduce = site.op()?;
    let (x, y) = (site.input(0), site.output());
    let hit = site.wire(TypedBinOp(comp_eq(), None), &[x, y])?;
    let hit = site.wire(cast(site.datum_type(x)?), &[hit])?;
    let count = site.sum(hit, op.axes)?;
    let each = site.div(g, count)?;
    Ok(tvec![Some(site.mul(hit, each)?)])
}
