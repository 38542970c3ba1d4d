//! Convolutions over any number of spatial axes, in all groupings, with or without a batch axis, channels first or last.

use crate::ops::{DepthwiseGradInput, DepthwiseGradKernel, Fold, Unfold, Window};
use crate::prelude::*;
use crate::rules::matmul::{Factor, contract};
use crate::site::{Gradients, Site};
use core_ops::cnn::{Conv, Deconv, KernelFormat};
use core_ops::nn::DataFormat;

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// A tensor as \[n, c, spatial…\], whatever the format says.
pub(crate) fn channels_first(site: &mut Site, x: OutletId, format: DataFormat) -> Result<OutletId> {
    let x = if format.has_n() {
        x
    } else {
        site.wire(AxisOp::Add(0), &[x])?
    };
    let last = site.shape(x)?.len() - 1;
    if format.c_is_last() && last > 1 {
        site.wire(AxisOp::Move(last, 1), &[x])
    } else {
        Ok(x)
    }
}

/// The inverse of [`channels_first`].
pub(crate) fn as_format(site: &mut Site, x: OutletId, format: DataFormat) -> Result<OutletId> {
    let last = site.shape(x)?.len() - 1;
    let x = if format.c_is_last() && last > 1 {
        site.wire(AxisOp::Move(1, last), &[x])?
    } else {
        x
    };
    if format.has_n() {
        Ok(x)
    } else {
        site.wire(AxisOp::Rm(0), &[x])
    }
}

/// y = W ⋆ x + b, that is W·unfold(x) + b for each group of channels:
/// ∂x = fold(Wᵀ·g), ∂W = g·unfold(x)ᵀ, ∂b = Σ g over samples and positions.
pub fn conv(site: &mut Site, g: OutletId) -> Result {
    let op: Conv = site.op()?;
    plain(site, op.q_params.is_none(), op.kernel_fmt)?;
    let format = op.pool_spec.data_format;
    let g = channels_first(site, g, format)?;
    let x = channels_first(site, site.input(0), format)?;
    let window = Window::of(&op.pool_spec, &site.shape(x)?[2..]);
    let kernel = site.shape(site.input(1))?;
    let db = site.when(2, |s| bias(s, g))?;
    let channels = site.shape(x)?[1];
    if op.group == channels && kernel[0] == channels && channels > 1 {
        let dx = site.when(0, |s| {
            let dx = s.wire(DepthwiseGradInput::new(window.clone()), &[g, s.input(1)])?;
            as_format(s, dx, format)
        })?;
        let dw = site.when(1, |s| s.wire(DepthwiseGradKernel::new(window, &kernel), &[g, x]))?;
        return Ok(tvec![dx, dw, db]);
    }
    let g = positions(site, g, op.group)?;
    let dx = site.when(0, |s| {
        let w = grouped_kernel(s, s.input(1), op.group)?;
        let dx = gathered(s, w, g, &window)?;
        as_format(s, dx, format)
    })?;
    let dw = site.when(1, |s| {
        let columns = columns(s, x, &window, op.group)?;
        kernel_gradient(s, (g, "gonp"), (columns, "giknp"), &kernel, op.group)
    })?;
    Ok(tvec![dx, dw, db])
}

/// y = fold(Wᵀ·x) + b, the adjoint of a convolution: ∂x = W·unfold(g), ∂W = x·unfold(g)ᵀ, ∂b = Σ g.
pub fn deconv(site: &mut Site, g: OutletId) -> Result {
    let op: Deconv = site.op()?;
    plain(site, true, op.kernel_format)?;
    let format = op.pool_spec.data_format;
    let g = channels_first(site, g, format)?;
    let x = channels_first(site, site.input(0), format)?;
    let shape = site.shape(x)?;
    let window = Window::transposed(&op.pool_spec, &op.adjustments, &shape[2..])?;
    let kernel = site.shape(site.input(1))?;
    let db = site.when(2, |s| bias(s, g))?;
    let g = columns(site, g, &window, op.group)?;
    let dx = site.when(0, |s| {
        let w = grouped_kernel(s, s.input(1), op.group)?;
        let inputs = shape[1] / op.group;
        let flat = [op.group, inputs, shape[0], window.outputs()];
        let dx = contract(s, vec![factor(w, "goik"), factor(g, "goknp")], &axes("ginp"), &flat)?;
        let dx = s.reshape(dx, &[shape[1], shape[0], window.outputs()])?;
        let dx = s.wire(AxisOp::Move(1, 0), &[dx])?;
        let dx = s.reshape(dx, &shape)?;
        as_format(s, dx, format)
    })?;
    let dw = site.when(1, |s| {
        let x = positions(s, x, op.group)?;
        kernel_gradient(s, (x, "ginp"), (g, "goknp"), &kernel, op.group)
    })?;
    Ok(tvec![dx, dw, db])
}

fn plain(site: &Site, float: bool, kernel: KernelFormat) -> Result<()> {
    if !float {
        return Err(site.refuse("it works on quantized types"));
    }
    if kernel != KernelFormat::OIHW {
        return Err(site.refuse("its kernel has channels last"));
    }
    Ok(())
}

fn axes(names: &str) -> Vec<char> {
    names.chars().collect()
}

fn factor(outlet: OutletId, names: &str) -> Factor {
    Factor {
        outlet,
        axes: axes(names),
    }
}

/// Σ g \[n, o, spatial…\] over samples and positions, in the shape of the bias.
fn bias(site: &mut Site, g: OutletId) -> Result<OutletId> {
    let (wide, bias) = (site.shape(g)?, site.shape(site.input(2))?);
    let all = bias.iter().product::<usize>() == 1;
    let summed = site.sum(g, (0..wide.len()).filter(|axis| *axis != 1 || all))?;
    site.reshape(summed, &bias)
}

/// W \[o, i/groups, kernel…\] as \[groups, o/groups, i/groups, taps\].
fn grouped_kernel(site: &mut Site, w: OutletId, groups: usize) -> Result<OutletId> {
    let shape = site.shape(w)?;
    site.reshape(w, &[groups, shape[0] / groups, shape[1], shape[2..].iter().product()])
}

/// \[n, c, spatial…\] as \[groups, c/groups, n, positions\].
fn positions(site: &mut Site, x: OutletId, groups: usize) -> Result<OutletId> {
    let shape = site.shape(x)?;
    let (n, c, positions) = (shape[0], shape[1], shape[2..].iter().product());
    let flat = site.reshape(x, &[n, c, positions])?;
    let moved = site.wire(AxisOp::Move(1, 0), &[flat])?;
    site.reshape(moved, &[groups, c / groups, n, positions])
}

/// What each kernel element sees of x \[n, c, spatial…\], as \[groups, c/groups, taps, n, positions\].
fn columns(site: &mut Site, x: OutletId, window: &Window, groups: usize) -> Result<OutletId> {
    let shape = site.shape(x)?;
    let seen = site.wire(Unfold::new(window.clone()), &[x])?;
    site.reshape(
        seen,
        &[groups, shape[1] / groups, window.taps(), shape[0], window.outputs()],
    )
}

/// fold(Σ w·g), \[n, c, spatial…\].
fn gathered(site: &mut Site, w: OutletId, g: OutletId, window: &Window) -> Result<OutletId> {
    let (kernel, given) = (site.shape(w)?, site.shape(g)?);
    let (groups, inputs, taps) = (kernel[0], kernel[2], kernel[3]);
    let (n, outputs) = (given[2], given[3]);
    let shape = [groups, inputs, taps, n, outputs];
    let columns = contract(site, vec![factor(w, "goik"), factor(g, "gonp")], &axes("giknp"), &shape)?;
    let columns = site.reshape(columns, &[groups * inputs, taps, n, outputs])?;
    site.wire(Fold::new(window.clone()), &[columns])
}

/// Σ a·b over samples and positions, in the shape of the kernel.
fn kernel_gradient(
    site: &mut Site,
    a: (OutletId, &str),
    b: (OutletId, &str),
    kernel: &[usize],
    groups: usize,
) -> Result<OutletId> {
    let taps = kernel[2..].iter().product();
    let shape = [groups, kernel[0] / groups, kernel[1], taps];
    let dw = contract(site, vec![factor(a.0, a.1), factor(b.0, b.1)], &axes("goik"), &shape)?;
    site.reshape(dw, kernel)
}
