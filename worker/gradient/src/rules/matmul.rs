//! Sums of products over named axes: matrix products of every layout, attention, and pooling that was merged into one.

use crate::prelude::*;
use crate::site::{Gradients, Site};
use core_ops::einsum::EinSum;
use tract_onnx::tract_core::internal::{AxesMapping, Axis, InOut};

type Result<T = Gradients> = std::result::Result<T, Refusal>;

/// y = Σ a·b·… over the axes that y lacks: ∂a = Σ g·b·… over the axes that a lacks. An axis along which a was
/// broadcast is summed, one that only a had is repeated.
pub fn einsum(site: &mut Site, g: OutletId) -> Result {
    let op: EinSum = site.op()?;
    let dt = site.datum_type(g)?;
    let plain = op.q_params.is_none()
        && (0..site.arity()).all(|i| site.datum_type(site.input(i)).is_ok_and(|d| d == op.operating_dt));
    if !plain || dt != op.operating_dt {
        return Err(site.refuse("it works on quantized or mixed types"));
    }
    let repeated = |axis: &Axis| axis.outputs[0].len() > 1 || axis.inputs.iter().any(|i| i.len() > 1);
    if op.axes.iter_all_axes().any(repeated) {
        return Err(site.refuse("it takes a diagonal"));
    }
    let labels = |io: InOut| -> Vec<char> { op.axes.axes(io).map(|axis| axis.repr).collect() };
    (0..site.arity())
        .map(|i| {
            site.when(i, |s| {
                let mut factors = vec![Factor {
                    outlet: g,
                    axes: labels(InOut::Out(0)),
                }];
                for j in (0..s.arity()).filter(|j| *j != i) {
                    factors.push(Factor {
                        outlet: s.input(j),
                        axes: labels(InOut::In(j)),
                    });
                }
                let shape = s.shape(s.input(i))?;
                contract(s, factors, &labels(InOut::In(i)), &shape)
            })
        })
        .collect()
}

/// A tensor and the names of its axes.
#[derive(Clone)]
pub(crate) struct Factor {
    pub(crate) outlet: OutletId,
    pub(crate) axes: Vec<char>,
}

impl Factor {
    fn length(&self, site: &Site, axis: char) -> Result<Option<usize>> {
        let shape = site.shape(self.outlet)?;
        Ok(self.axes.iter().position(|a| *a == axis).map(|at| shape[at]))
    }

    fn remove(&mut self, site: &mut Site, axis: char) -> Result<()> {
        if let Some(at) = self.axes.iter().position(|a| *a == axis) {
            self.outlet = site.wire(AxisOp::Rm(at), &[self.outlet])?;
            self.axes.remove(at);
        }
        Ok(())
    }
}

/// The product of `factors`, summed over all axes but `axes`, as a tensor of `shape`.
pub(crate) fn contract(site: &mut Site, mut factors: Vec<Factor>, axes: &[char], shape: &[usize]) -> Result<OutletId> {
    unrepeat(site, &mut factors, axes)?;
    simplify(site, &mut factors, axes)?;
    let have: Vec<char> = axes
        .iter()
        .copied()
        .filter(|a| factors.iter().any(|f| f.axes.contains(a)))
        .collect();
    let mut product = if let [only] = &factors[..] {
        transpose(site, only, &have)?
    } else {
        let dt = site.datum_type(factors[0].outlet)?;
        let outlets: Vec<OutletId> = factors.iter().map(|f| f.outlet).collect();
        site.wire(EinSum::new(mapping(&factors, &have)?, dt), &outlets)?
    };
    for (at, _) in axes.iter().enumerate().filter(|(_, a)| !have.contains(a)) {
        product = site.wire(AxisOp::Add(at), &[product])?;
    }
    let now = site.shape(product)?;
    let narrower = (0..shape.len()).filter(|a| shape[*a] == 1 && now[*a] != 1);
    let y = site.sum(product, narrower.collect::<Vec<_>>())?;
    site.broadcast(y, shape)
}

/// Takes back repetitions of factors along axes that the product has without them.
fn unrepeat(site: &Site, factors: &mut [Factor], keep: &[char]) -> Result<()> {
    for i in 0..factors.len() {
        let Some(single) = site.unrepeated(factors[i].outlet) else {
            continue;
        };
        let (long, short) = (site.shape(factors[i].outlet)?, site.shape(single)?);
        let grown = (0..long.len()).filter(|at| long[*at] != short[*at]);
        let mut spare = true;
        for axis in grown.map(|at| factors[i].axes[at]) {
            let mut others = factors.iter().enumerate().filter(|(j, _)| *j != i);
            let elsewhere = others.try_fold(false, |found, (_, other)| {
                Ok::<_, Refusal>(found || other.length(site, axis)?.is_some_and(|n| n > 1))
            })?;
            spare &= elsewhere || keep.contains(&axis);
        }
        if spare {
            factors[i].outlet = single;
        }
    }
    Ok(())
}

/// Takes out of each factor the axes of length 1 that another one has in full, and sums those that it alone has, so that
/// what is left is a proper matrix product.
fn simplify(site: &mut Site, factors: &mut [Factor], keep: &[char]) -> Result<()> {
    for i in 0..factors.len() {
        for axis in factors[i].axes.clone() {
            let mut elsewhere = false;
            let mut longer = false;
            for (j, other) in factors.iter().enumerate() {
                let length = if i == j { None } else { other.length(site, axis)? };
                elsewhere |= length.is_some();
                longer |= length.is_some_and(|n| n > 1);
            }
            let single = factors[i].length(site, axis)? == Some(1);
            if single && longer {
                factors[i].remove(site, axis)?;
            } else if !elsewhere && !keep.contains(&axis) {
                let at = factors[i].axes.iter().position(|a| *a == axis);
                factors[i].outlet = site.sum(factors[i].outlet, at)?;
                factors[i].remove(site, axis)?;
            }
        }
    }
    Ok(())
}

fn mapping(factors: &[Factor], axes: &[char]) -> Result<AxesMapping> {
    let mut names: Vec<char> = factors.iter().flat_map(|f| f.axes.clone()).collect();
    names.sort_unstable();
    names.dedup();
    let all: Vec<Axis> = names
        .into_iter()
        .map(|name| {
            let place = |of: &[char]| of.iter().position(|a| *a == name);
            let empty = Axis::new(name, factors.len(), 1);
            let read = factors
                .iter()
                .enumerate()
                .filter_map(|(i, f)| Some((i, place(&f.axes)?)));
            let with_inputs = read.fold(empty, |axis, (i, at)| axis.input(i, at));
            place(axes).into_iter().fold(with_inputs, |axis, at| axis.output(0, at))
        })
        .collect();
    Ok(AxesMapping::new(factors.len(), 1, all)?)
}

/// Brings the axes of `factor` into the order of `axes`.
fn transpose(site: &mut Site, factor: &Factor, axes: &[char]) -> Result<OutletId> {
    let mut now = factor.axes.clone();
    let mut outlet = factor.outlet;
    for (to, axis) in axes.iter().enumerate() {
        if let Some(from) = now.iter().position(|a| a == axis).filter(|from| *from != to) {
            outlet = site.wire(AxisOp::Move(from, to), &[outlet])?;
            let moved = now.remove(from);
            now.insert(to, moved);
        }
    }
    Ok(outlet)
}
