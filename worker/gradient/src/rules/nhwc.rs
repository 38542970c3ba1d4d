//! Rules of the channels-last convolution, y = clip(W∗x + b + r): with z = W∗x + b + r and ∂z = g·\[low < y < high\],
//! ∂x is the convolution of ∂z with the weights turned round, ∂W the correlation of x with ∂z, ∂b the sum of ∂z over all
//! pixels, and ∂r = ∂z.

use crate::nhwc::{Clip, ClipGrad, FConv, FConvGradB, FConvGradW, FConvGradX, Weights};
use crate::prelude::*;
use crate::site::{Gradients, Site};

/// y = clip(W∗x + b + r): ∂z = g·\[low < y < high\], ∂x = Wᵀ∗∂z, ∂W = x⋆∂z, ∂b = Σ ∂z, ∂r = ∂z
pub fn convolution(site: &mut Site, g: OutletId) -> Result<Gradients, Refusal> {
    let conv = site.op::<FConv>()?;
    if site.wants(1) && conv.weights == Weights::Packed {
        return Err(site.refuse("its weights are constants"));
    }
    let dz = if conv.clip.is_none() {
        g
    } else {
        before_clip(site, g, conv.clip)?
    };
    let (x, weights, bias) = (site.input(0), site.input(1), site.input(2));
    let dx = site.when(0, |site| {
        let shape = site.shape(x)?;
        let conv = conv.clone();
        let gate = None;
        site.wire(FConvGradX { conv, shape, gate }, &[dz, weights])
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

/// g·\[low < y < high\]. The convolution that gives g, if it does no more than that, can do it as it writes.
fn before_clip(site: &mut Site, g: OutletId, clip: Clip) -> Result<OutletId, Refusal> {
    let y = site.output();
    match site.made_by::<FConvGradX>(g) {
        Some((
            FConvGradX {
                conv,
                shape,
                gate: None,
            },
            inputs,
        )) => {
            let gate = Some(clip);
            site.wire(FConvGradX { conv, shape, gate }, &[inputs[0], inputs[1], y])
        }
        _ => site.wire(ClipGrad { clip }, &[g, y]),
    }
}
