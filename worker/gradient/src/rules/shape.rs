//! Operators that move, repeat or drop elements and change none. Their adjoints move the gradient back, sum what was
//! repeated, and put zeros where elements were dropped.

use crate::ops::DownsampleGrad;
use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::array::{Pad, PadMode, Slice, Tile, TypedConcat};
use core_ops::downsample::Downsample;
use core_ops::nn::NearestUpsample;

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y is x with an axis added, removed or moved, or reshaped: ∂x = g under the inverse operation.
pub fn axis_op(site: &mut Site, g: OutletId) -> Result {
    let op: AxisOp = site.op()?;
    let back = site.wire(op.recip(), &[g])?;
    Ok(tvec![Some(back)])
}

/// y holds the elements of x in the same order under another shape: ∂x = g under the shape of x.
pub fn reshape(site: &mut Site, g: OutletId) -> Result {
    let shape = site.shape(site.input(0))?;
    Ok(tvec![Some(site.reshape(g, &shape)?)])
}

/// y = x repeated along axes of length 1: ∂x = Σ g over them.
pub fn broadcast(site: &mut Site, g: OutletId) -> Result {
    Ok(tvec![Some(site.sum_to_input(0, g)?)])
}

/// y = x side by side, mᵢ times along axis i: ∂x = Σ g over the copies.
pub fn tile(site: &mut Site, g: OutletId) -> Result {
    let op: Tile = site.op()?;
    let times = op
        .multipliers
        .iter()
        .map(|m| known(site, m))
        .collect::<Result<Vec<usize>>>()?;
    let shape = site.shape(site.input(0))?;
    let split = |axis: usize| [times[axis], shape[axis]];
    fold_copies(site, g, split, 0)
}

/// y\[i\] = x\[i / s\] along each axis: ∂x\[j\] = Σ g\[i\] over the s copies of j.
pub fn nearest_upsample(site: &mut Site, g: OutletId) -> Result {
    let op: NearestUpsample = site.op()?;
    let shape = site.shape(site.input(0))?;
    let split = |axis: usize| [shape[axis], op.scales[axis]];
    fold_copies(site, g, split, 1)
}

/// The value of a number that may be a symbol.
fn known(site: &Site, dim: &TDim) -> Result<usize> {
    dim.to_usize()
        .map_err(|_| site.refuse("it depends on an open dimension"))
}

/// Splits each axis of `g` in two and sums over the half that counts copies.
fn fold_copies(site: &mut Site, g: OutletId, split: impl Fn(usize) -> [usize; 2], copies: usize) -> Result {
    let shape = site.shape(site.input(0))?;
    let halves: Vec<usize> = (0..shape.len()).flat_map(split).collect();
    let g = site.reshape(g, &halves)?;
    let g = site.sum(g, (0..shape.len()).map(|axis| 2 * axis + copies))?;
    Ok(tvec![Some(site.reshape(g, &shape)?)])
}

/// y = x\[start..end\] along one axis: ∂x = g with zeros around it.
pub fn slice(site: &mut Site, g: OutletId) -> Result {
    let op: Slice = site.op()?;
    let shape = site.shape(site.input(0))?;
    let (start, end) = (known(site, &op.start)?, known(site, &op.end)?);
    let mut pads = vec![(0, 0); shape.len()];
    pads[op.axis] = (start, shape[op.axis] - end);
    Ok(tvec![Some(site.wire(Pad::new(pads, PadMode::default()), &[g])?)])
}

/// y = x with constant borders: ∂x = g without the borders.
pub fn pad(site: &mut Site, g: OutletId) -> Result {
    let op: Pad = site.op()?;
    if !matches!(op.mode, PadMode::Constant(_)) {
        return Err(site.refuse("it pads with the tensor's own values, only constant padding has a rule"));
    }
    let shape = site.shape(site.input(0))?;
    let mut back = g;
    for (axis, (before, after)) in op.pads.iter().enumerate() {
        if before + after > 0 {
            back = site.wire(Slice::new(axis, *before, before + shape[axis]), &[back])?;
        }
    }
    Ok(tvec![Some(back)])
}

/// y = \[x₁, x₂, …\] along one axis: ∂xᵢ = the part of g at the place of xᵢ.
pub fn concat(site: &mut Site, g: OutletId) -> Result {
    let op: TypedConcat = site.op()?;
    let mut start = 0;
    let mut parts = tvec![];
    for i in 0..site.arity() {
        let end = start + site.shape(site.input(i))?[op.axis];
        parts.push(site.when(i, |s| s.wire(Slice::new(op.axis, start, end), &[g]))?);
        start = end;
    }
    Ok(parts)
}

/// y\[i\] = x\[m + s·i\] along one axis: ∂x\[m + s·i\] = g\[i\], zero between.
pub fn downsample(site: &mut Site, g: OutletId) -> Result {
    let op: Downsample = site.op()?;
    let Ok(stride) = usize::try_from(op.stride) else {
        return Err(site.refuse("it reads an axis backwards"));
    };
    let length = site.shape(site.input(0))?[op.axis];
    let grad = DownsampleGrad::new(op.axis, stride, op.modulo, length);
    Ok(tvec![Some(site.wire(grad, &[g])?)])
}
