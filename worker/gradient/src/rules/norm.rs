//! Normalisations: softmax and root mean square. Layer normalisation reaches here as Sub, RmsNorm, Mul and Add.

use crate::ops::RmsNormGrad;
use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::nn::{RmsNorm, Softmax};

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = eˣ/Σeˣ: ∂x = y·(g − Σ g·y).
pub fn softmax(site: &mut Site, g: OutletId) -> Result {
    let op: Softmax = site.op()?;
    let y = site.output();
    let weighted = site.mul(g, y)?;
    let mean = site.sum(weighted, op.axes)?;
    let centred = site.sub(g, mean)?;
    Ok(tvec![Some(site.mul(y, centred)?)])
}

/// y = x − ln Σeˣ: ∂x = g − eʸ·Σ g.
pub fn log_softmax(site: &mut Site, g: OutletId) -> Result {
    let op: Softmax = site.op()?;
    let probabilities = site.wire(core_ops::math::exp(), &[site.output()])?;
    let total = site.sum(g, op.axes)?;
    let part = site.mul(probabilities, total)?;
    Ok(tvec![Some(site.sub(g, part)?)])
}

/// y = x·r with r = (mean(x²) + ε)^(−1/2) along one axis: ∂x = r·(g − y·mean(g·y)).
pub fn rms_norm(site: &mut Site, g: OutletId) -> Result {
    let op: RmsNorm = site.op()?;
    let eps = op.eps.cast_to_scalar::<f64>()?;
    let grad = RmsNormGrad::new(op.axis, eps);
    Ok(tvec![Some(site.wire(grad, &[g, site.input(0)])?)])
}
