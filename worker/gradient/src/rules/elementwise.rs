//! Operators that work on each element by itself, with broadcast where they take two tensors.

use crate::ops::{Extremum, Pointwise, PointwiseGrad, Share};
use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::element_wise::ElementWiseOp;
use core_ops::math;
use core_ops::nn::{GeluApproximate, LeakyRelu};

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// The gradient of an operator of one input.
#[allow(clippy::unnecessary_wraps)] // It ends rules, which may fail.
fn one(gradient: OutletId) -> Result {
    Ok(tvec![Some(gradient)])
}

/// y = a + b: ∂a = g, ∂b = g, each summed over its broadcast axes.
pub fn add(site: &mut Site, g: OutletId) -> Result {
    let da = site.when(0, |s| s.sum_to_input(0, g))?;
    let db = site.when(1, |s| s.sum_to_input(1, g))?;
    Ok(tvec![da, db])
}

/// y = a − b: ∂a = g, ∂b = −g.
pub fn sub(site: &mut Site, g: OutletId) -> Result {
    let da = site.when(0, |s| s.sum_to_input(0, g))?;
    let db = site.when(1, |s| {
        let sum = s.sum_to_input(1, g)?;
        s.neg(sum)
    })?;
    Ok(tvec![da, db])
}

/// y = b − a: ∂a = −g, ∂b = g.
pub fn sub_reversed(site: &mut Site, g: OutletId) -> Result {
    let da = site.when(0, |s| {
        let sum = s.sum_to_input(0, g)?;
        s.neg(sum)
    })?;
    let db = site.when(1, |s| s.sum_to_input(1, g))?;
    Ok(tvec![da, db])
}

/// y = a·b: ∂a = g·b, ∂b = g·a.
pub fn mul(site: &mut Site, g: OutletId) -> Result {
    let (a, b) = (site.input(0), site.input(1));
    let da = site.when(0, |s| {
        let part = s.mul(g, b)?;
        s.sum_to_input(0, part)
    })?;
    let db = site.when(1, |s| {
        let part = s.mul(g, a)?;
        s.sum_to_input(1, part)
    })?;
    Ok(tvec![da, db])
}

/// y = a/b: ∂a = g/b, ∂b = −g·y/b.
pub fn div(site: &mut Site, g: OutletId) -> Result {
    let (b, y) = (site.input(1), site.output());
    let over_b = site.div(g, b)?;
    let da = site.when(0, |s| s.sum_to_input(0, over_b))?;
    let db = site.when(1, |s| {
        let part = s.mul(over_b, y)?;
        let sum = s.sum_to_input(1, part)?;
        s.neg(sum)
    })?;
    Ok(tvec![da, db])
}

/// y = aᵇ: ∂a = g·b·aᵇ⁻¹. The exponent cannot be trained: its gradient g·y·ln a exists for a > 0 only.
pub fn pow(site: &mut Site, g: OutletId) -> Result {
    if site.wants(1) {
        return Err(site.refuse("its exponent would have to be trained, and ln a exists for a > 0 only"));
    }
    let (a, b) = (site.input(0), site.input(1));
    let one = site.scalar(b, 1.0)?;
    let less = site.sub(b, one)?;
    let power = site.wire(math::pow(), &[a, less])?;
    let slope = site.mul(power, b)?;
    let part = site.mul(g, slope)?;
    Ok(tvec![Some(site.sum_to_input(0, part)?), None])
}

/// y = max(a, b): ∂a = g·\[a > b\], ∂b = g·\[b > a\]. Where a = b both get g/2 if both are trained, as in PyTorch's maximum;
/// against a tensor that is not trained neither gets anything, as in relu and clamp at their corners.
pub fn max(site: &mut Site, g: OutletId) -> Result {
    extremum(site, g, Extremum::Max)
}

/// y = min(a, b): ∂a = g·\[a < b\], ∂b = g·\[b < a\], with ties as for max.
pub fn min(site: &mut Site, g: OutletId) -> Result {
    extremum(site, g, Extremum::Min)
}

fn extremum(site: &mut Site, g: OutletId, kind: Extremum) -> Result {
    let tie = if site.wants(0) && site.wants(1) { 0.5 } else { 0.0 };
    let share = Share::new(kind, tie);
    let (a, b) = (site.input(0), site.input(1));
    let da = site.when(0, |s| {
        let part = s.wire(share.clone(), &[g, a, b])?;
        s.sum_to_input(0, part)
    })?;
    let db = site.when(1, |s| {
        let part = s.wire(share.clone(), &[g, b, a])?;
        s.sum_to_input(1, part)
    })?;
    Ok(tvec![da, db])
}

/// y = |x|: ∂x = g·sign x, 0 at 0.
pub fn abs(site: &mut Site, g: OutletId) -> Result {
    let sign = site.wire(math::sign(), &[site.input(0)])?;
    one(site.mul(g, sign)?)
}

/// y = −x: ∂x = −g.
pub fn neg(site: &mut Site, g: OutletId) -> Result {
    one(site.neg(g)?)
}

/// y = x²: ∂x = 2·g·x.
pub fn square(site: &mut Site, g: OutletId) -> Result {
    let part = site.mul(g, site.input(0))?;
    one(site.scale(part, 2.0)?)
}

/// y = √x: ∂x = g/(2·y).
pub fn sqrt(site: &mut Site, g: OutletId) -> Result {
    let part = site.div(g, site.output())?;
    one(site.scale(part, 0.5)?)
}

/// y = x^(−1/2): ∂x = −g·y³/2.
pub fn rsqrt(site: &mut Site, g: OutletId) -> Result {
    let y = site.output();
    let squared = site.mul(y, y)?;
    let cubed = site.mul(squared, y)?;
    let part = site.mul(g, cubed)?;
    one(site.scale(part, -0.5)?)
}

/// y = 1/x: ∂x = −g·y².
pub fn recip(site: &mut Site, g: OutletId) -> Result {
    let y = site.output();
    let squared = site.mul(y, y)?;
    let part = site.mul(g, squared)?;
    one(site.neg(part)?)
}

/// y = eˣ: ∂x = g·y.
pub fn exp(site: &mut Site, g: OutletId) -> Result {
    one(site.mul(g, site.output())?)
}

/// y = ln x: ∂x = g/x.
pub fn ln(site: &mut Site, g: OutletId) -> Result {
    one(site.div(g, site.input(0))?)
}

/// y = sin x: ∂x = g·cos x.
pub fn sin(site: &mut Site, g: OutletId) -> Result {
    let slope = site.wire(math::cos(), &[site.input(0)])?;
    one(site.mul(g, slope)?)
}

/// y = cos x: ∂x = −g·sin x.
pub fn cos(site: &mut Site, g: OutletId) -> Result {
    let slope = site.wire(math::sin(), &[site.input(0)])?;
    let part = site.mul(g, slope)?;
    one(site.neg(part)?)
}

/// y = tanh x: ∂x = g·(1 − y²).
pub fn tanh(site: &mut Site, g: OutletId) -> Result {
    let y = site.output();
    let squared = site.mul(y, y)?;
    let part = site.mul(g, squared)?;
    one(site.sub(g, part)?)
}

/// y = σ(x) = 1/(1 + e⁻ˣ): ∂x = g·y·(1 − y).
pub fn sigmoid(site: &mut Site, g: OutletId) -> Result {
    let y = site.output();
    let first = site.mul(g, y)?;
    let second = site.mul(first, y)?;
    one(site.sub(first, second)?)
}

/// y = erf x: ∂x = g·(2/√π)·e^(−x²).
pub fn erf(site: &mut Site, g: OutletId) -> Result {
    pointwise(site, g, Pointwise::Erf)
}

/// y = x·Φ(x), Φ the normal distribution: ∂x = g·(Φ(x) + x·φ(x)).
pub fn gelu(site: &mut Site, g: OutletId) -> Result {
    pointwise(site, g, Pointwise::Gelu)
}

/// y = x·(1 + t)/2 with t = tanh(√(2/π)·(x + 0.044715·xⁿ)), n = 3, or 2 in the fast form:
/// ∂x = g·((1 + t)/2 + x·(1 − t²)/2·√(2/π)·(1 + 0.044715·n·xⁿ⁻¹)).
pub fn gelu_approximate(site: &mut Site, g: OutletId) -> Result {
    let gelu: GeluApproximate = mini(site)?;
    let power = if gelu.fast_impl { 2 } else { 3 };
    pointwise(site, g, Pointwise::GeluTanh { power })
}

/// y = x·σ(x): ∂x = g·σ(x)·(1 + x·(1 − σ(x))).
pub fn silu(site: &mut Site, g: OutletId) -> Result {
    pointwise(site, g, Pointwise::Silu)
}

/// y = x·min(max(x/6 + 1/2, 0), 1): ∂x = g·{0 for x ≤ −3; x/3 + 1/2; 1 for x ≥ 3}.
pub fn hard_swish(site: &mut Site, g: OutletId) -> Result {
    pointwise(site, g, Pointwise::HardSwish)
}

/// y = x for x > 0, α·x elsewhere: ∂x = g·{1 for x > 0; α}.
pub fn leaky_relu(site: &mut Site, g: OutletId) -> Result {
    let relu: LeakyRelu = mini(site)?;
    pointwise(site, g, Pointwise::leaky(relu.alpha))
}

/// y = xᶜ for a constant c: ∂x = g·c·xᶜ⁻¹.
pub fn pow_const(site: &mut Site, g: OutletId) -> Result {
    let pow: math::PowConst = mini(site)?;
    pointwise(site, g, Pointwise::power(pow.exponent))
}

/// y = ln(1 + eˣ): ∂x = g·σ(x).
pub fn softplus(site: &mut Site, g: OutletId) -> Result {
    pointwise(site, g, Pointwise::Softplus)
}

fn pointwise(site: &mut Site, g: OutletId, function: Pointwise) -> Result {
    one(site.wire(PointwiseGrad::new(function), &[g, site.input(0)])?)
}

/// The function inside an element-wise operator.
fn mini<M: core_ops::element_wise::ElementWiseMiniOp + Clone>(site: &Site) -> Result<M> {
    let op: ElementWiseOp = site.op()?;
    op.0.downcast_ref::<M>()
        .cloned()
        .ok_or_else(|| site.refuse("the registry recognised another function"))
}

/// y = x: ∂x = g.
#[allow(clippy::unnecessary_wraps)] // Rules may fail.
pub fn identity(_site: &mut Site, g: OutletId) -> Result {
    one(g)
}

/// y = x in another floating-point type: ∂x = g in the type of x.
pub fn cast(site: &mut Site, g: OutletId) -> Result {
    let to = site.datum_type(site.input(0))?;
    one(site.wire(core_ops::cast::cast(to), &[g])?)
}

/// y is piecewise constant (rounding, sign): ∂x = 0 wherever it exists.
#[allow(clippy::unnecessary_wraps)] // Rules may fail.
pub fn constant(site: &mut Site, _g: OutletId) -> Result {
    Ok(tvec![None; site.arity()])
}
