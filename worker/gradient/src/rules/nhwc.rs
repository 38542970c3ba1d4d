//! Rules of the channels-last convolution, y = clip(W∗x + b + r): with z = W∗x + b + r and ∂z = g·\[low < y < high\],
//! ∂x is the convolution of ∂z with the weights turned round, ∂W the correlation of x with ∂z, ∂b the sum of ∂z over all
//! pixels, and ∂r = ∂z.

use crate::nhwc::{ClipGrad, FConv, FConvGradB, FConvGradW, FConvGradX, Weights};
use crate::prelude::*;
use crate::site::{Gradients, Site};

/// y = clip(W∗x + b + r): ∂z = g·\[low < y < high\], ∂x = Wᵀ∗∂z, ∂W = x⋆∂z, ∂b = Σ ∂z, ∂r = ∂z
pub fn convolution(site: &mut Site, g: OutletId) -> Result<Gradients, Refusal> {
    let conv = site.op::<FConv>()?;
    if site.wants(1) && conv.weights == Weights::Packed {
        return Err(site.refuse("its weights are constants"));
    }
    let y = site.output();
    let dz = if conv.clip.is_none() {
        g
    } else {
        site.wire(ClipGrad { clip: conv.clip }, &[g, y])?
    };
    let (x, weights, bias) = (site.input(0), site.input(1), site.input(2));
    let dx = site.when(0, |site| {
        let shape = site.shape(x)?;
        let conv = conv.clone();
        site.wire(FConvGradX { conv, shape }, &[dz, weights])
    })?;
    let dw = site.when(1, |site| {
        let shape = site.shape(weights)?;
        let conv = conv.clone();
        site.wire(FConvGradW { conv, shape }, &[x, dz])
    })?;
    let db = site.when(2, |site| {
        let shape = site.shape(bias)?;
        site.wire(FConvGradB { shape }, &[dz])
    })?;
    let mut gradients = tvec![dx, dw, db];
    if conv.residual {
        gradients.push(site.wants(3).then_some(dz));
    }
    Ok(gradients)
}
