//! Convolutions in a row, computed some rows of the result at a time: what lies between them is a few rows that stay in the
//! second cache, instead of a picture that is written to memory and read back. For graphs that are run without a gradient,
//! which would need the pictures.

use super::op::{FConv, Kind, Weights, pictures, values};
use super::output::filled;
use super::shape::{Pads, Picture, Window};
use rayon::prelude::*;
use std::cmp::Ordering;
use std::ops::Range;
use tract_onnx::tract_core::internal::{
    AxisOp, Cost, DimLike, EvalContext, EvalOp, IntoTValue, Op, OutletId, StaticName, TDim, TValue, TVec, TractResult,
    TypedFact, TypedModel, TypedModelPatch, TypedNode, TypedOp, Validation, as_op, ensure, op_as_typed_op,
    op_out_of_plan, tvec,
};

/// When convolutions are joined, and into how many rows.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bytes of the largest picture between two of them from which on they are joined: a smaller one stays in the cache
    /// by itself, and many rows at once make the faster product.
    pub least: usize,
    /// Most bytes of the rows between them; there is one row of the result at least.
    pub most: usize,
}

impl Sizes {
    /// For a second cache of a megabyte; smaller ones lose little.
    pub const USUAL: Self = Self {
        least: 512 << 10,
        most: 384 << 10,
    };
}

/// Joins each depthwise [`FConv`] with the one before it and with the 1x1 convolution behind it, where nothing else reads
/// what lies between. The results are the same, bit by bit.
///
/// # Errors
/// Where the model is inconsistent.
pub fn stripes(mut model: TypedModel, sizes: Sizes) -> TractResult<TypedModel> {
    for id in model.eval_order()? {
        let Some(chain) = chain(&model, id, sizes.least)? else {
            continue;
        };
        let mut patch = TypedModelPatch::default();
        let nodes: Vec<&TypedNode> = chain.iter().map(|id| model.node(*id)).collect();
        let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
        let mut inputs = tvec!(first.inputs[0]);
        inputs.extend(nodes.iter().flat_map(|n| n.inputs[1..3].iter().copied()));
        inputs.extend(last.inputs.get(3).copied());
        let mut inputs = patch.taps(&model, &inputs)?;
        // The batch of one may come or go between them: that is done behind all, and first to what is added.
        let rank = model.outlet_fact(first.inputs[0])?.rank();
        let last_rank = model.outlet_fact(last.id.into())?.rank();
        if let (Some(op), Some(residual)) = (axis(last_rank, rank), inputs.get_mut(1 + 2 * nodes.len())) {
            *residual = patch.wire_node(format!("{}.residual", last.name), op, &[*residual])?[0];
        }
        let stages = nodes.iter().filter_map(|n| n.op_as::<FConv>().cloned()).collect();
        let op = Stripes {
            stages,
            most: sizes.most,
        };
        let mut wired = patch.wire_node(&last.name, op, &inputs)?[0];
        if let Some(op) = axis(rank, last_rank) {
            wired = patch.wire_node(format!("{}.batch", last.name), op, &[wired])?[0];
        }
        patch.shunt_outside(&model, last.id.into(), wired)?;
        patch.apply(&mut model)?;
    }
    model.compact()?;
    Ok(model)
}

/// What makes a picture of `to` dimensions of one of `from`.
fn axis(from: usize, to: usize) -> Option<AxisOp> {
    match from.cmp(&to) {
        Ordering::Less => Some(AxisOp::Add(0)),
        Ordering::Equal => None,
        Ordering::Greater => Some(AxisOp::Rm(0)),
    }
}

/// The nodes that are joined with the depthwise convolution `id`, in order.
fn chain(model: &TypedModel, id: usize, least: usize) -> TractResult<Option<Vec<usize>>> {
    let joins = |id: usize| {
        let conv = model.node(id).op_as::<FConv>()?;
        let (Pads { top, bottom, .. }, rows) = (conv.window.pads, conv.window.kernel[0]);
        (conv.weights == Weights::Packed && top < rows && bottom < rows).then_some(conv)
    };
    let Some(depthwise) = joins(id).filter(|conv| conv.kind == Kind::Depthwise) else {
        return Ok(None);
    };
    let outputs = model.output_outlets()?;
    // The batch of one comes or goes here.
    let is_batch = |id: usize| matches!(model.node(id).op_as(), Some(AxisOp::Add(0) | AxisOp::Rm(0)));
    // The only reader of a node's result.
    let reader = |mut id: usize| {
        while let ([reader], false) = (model.outlet_successors(id.into()), outputs.contains(&id.into())) {
            id = reader.node;
            if !is_batch(id) {
                return (reader.slot == 0).then_some(id);
            }
        }
        None
    };
    let bytes = |outlet: OutletId| -> TractResult<usize> {
        let shape = &model.outlet_fact(outlet)?.shape;
        let dims = &shape[shape.rank() - 3..];
        Ok(dims.iter().product::<TDim>().to_usize()? * size_of::<f32>())
    };
    let mut nodes = vec![id];
    let mut between = 0;
    let mut before = model.node(id).inputs[0];
    while is_batch(before.node) {
        before = model.node(before.node).inputs[0];
    }
    if reader(before.node) == Some(id) && joins(before.node).is_some_and(|c| c.kind == Kind::Dense && !c.residual) {
        nodes.insert(0, before.node);
        between = bytes(before)?;
    }
    let behind = reader(id).filter(|next| joins(*next).is_some_and(|c| c.window.is_pointwise()));
    if let Some(behind) = behind.filter(|_| !depthwise.residual) {
        nodes.push(behind);
        between = between.max(bytes(id.into())?);
    }
    Ok((nodes.len() > 1 && between >= least).then_some(nodes))
}

/// Convolutions, each of the result of the one before. Inputs: pictures, then weights and bias of each, then, where the
/// last has a residual, that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stripes {
    stages: Vec<FConv>,
    /// Most bytes of the rows between them.
    most: usize,
}

/// A convolution with its operands and the pictures that it goes from and to.
struct Stage<'a> {
    conv: &'a FConv,
    weights: &'a [f32],
    bias: &'a [f32],
    from: Picture,
    to: Picture,
}

/// The rows of a picture between two stages that are read now.
struct Kept {
    values: Vec<f32>,
    rows: Range<usize>,
    /// Values of a row.
    row: usize,
}

impl Kept {
    fn new(picture: Picture, rows: usize) -> Self {
        let row = picture.width * picture.channels;
        Self {
            values: vec![0.0; rows * row],
            rows: 0..0,
            row,
        }
    }

    /// Makes place for `rows`, keeps those that are there, and says which are missing.
    fn move_to(&mut self, rows: &Range<usize>) -> Range<usize> {
        let there = self.rows.start.max(rows.start)..self.rows.end.max(rows.start);
        let from = (there.start - self.rows.start).min(self.rows.len()) * self.row;
        self.values.copy_within(from..self.rows.len() * self.row, 0);
        self.rows = rows.clone();
        there.end..rows.end
    }

    fn place(&self, rows: &Range<usize>) -> Range<usize> {
        (rows.start - self.rows.start) * self.row..(rows.end - self.rows.start) * self.row
    }
}

/// Rows of a picture of `height` rows that the rows `rows` of the windows' result read; `rows` is not empty.
fn reads(window: &Window, rows: &Range<usize>, height: usize) -> Range<usize> {
    let (step, top) = (window.stride[0], window.pads.top);
    let end = ((rows.end - 1) * step + window.kernel[0])
        .saturating_sub(top)
        .min(height);
    (rows.start * step).saturating_sub(top).min(end)..end
}

/// The window for the rows that [`reads`] gives: it has zeros above and below where these are the picture's first or last.
fn part(window: &Window, rows: &Range<usize>, height: usize) -> Window {
    let (step, top) = (window.stride[0], window.pads.top);
    Window {
        pads: Pads {
            top: top.saturating_sub(rows.start * step),
            bottom: ((rows.end - 1) * step + window.kernel[0]).saturating_sub(top + height),
            ..window.pads
        },
        ..*window
    }
}

impl Stripes {
    /// Number of convolutions that were joined.
    pub fn convolutions(&self) -> usize {
        self.stages.len()
    }

    fn stages<'a>(&'a self, picture: Picture, inputs: &'a [TValue]) -> TractResult<Vec<Stage<'a>>> {
        let mut from = picture;
        let operands = self.stages.iter().zip(inputs[1..].chunks_exact(2));
        operands
            .map(|(conv, operands)| {
                let places = conv.window.output(from);
                let to = Picture {
                    channels: conv.out,
                    ..places
                };
                let stage = Stage {
                    conv,
                    weights: values(&operands[0])?,
                    bias: values(&operands[1])?,
                    from,
                    to,
                };
                from = to;
                Ok(stage)
            })
            .collect()
    }

    /// Rows of each stage's result that are read for the rows `rows` of the last one's.
    fn wanted(stages: &[Stage], rows: Range<usize>) -> Vec<Range<usize>> {
        let mut wanted = vec![rows];
        for stage in stages[1..].iter().rev() {
            let rows = reads(&stage.conv.window, &wanted[wanted.len() - 1], stage.from.height);
            wanted.push(rows);
        }
        wanted.reverse();
        wanted
    }

    /// Most rows of each stage's result that are read for `rows` rows of the last one's.
    fn rows_between(stages: &[Stage], rows: usize) -> Vec<usize> {
        let mut most = vec![rows];
        for stage in stages[1..].iter().rev() {
            let Window { kernel, stride, .. } = stage.conv.window;
            let rows = (most[most.len() - 1] - 1) * stride[0] + kernel[0];
            most.push(rows.min(stage.from.height));
        }
        most.reverse();
        most
    }

    /// Rows of the result to compute at a time.
    fn height(&self, stages: &[Stage]) -> usize {
        let bytes = |rows: usize| -> usize {
            let rows = Self::rows_between(stages, rows);
            let of = |(stage, rows): (&Stage, &usize)| rows * stage.from.width * stage.from.channels;
            stages[1..].iter().zip(&rows).map(of).sum::<usize>() * size_of::<f32>()
        };
        let all = stages[stages.len() - 1].to.height;
        (1..=all)
            .take_while(|rows| bytes(*rows) <= self.most)
            .last()
            .unwrap_or(1)
    }
}

/// Computes one picture.
fn run(stages: &[Stage], height: usize, x: &[f32], residual: Option<&[f32]>, y: &mut [f32]) {
    let last = stages.len() - 1;
    let mut rows = Stripes::rows_between(stages, height);
    // The last ones go where the result lies.
    rows[last] = 0;
    let mut kept: Vec<Kept> = stages.iter().zip(rows).map(|(s, rows)| Kept::new(s.to, rows)).collect();
    let all = stages[last].to.height;
    for first in (0..all).step_by(height) {
        let wanted = Stripes::wanted(stages, first..(first + height).min(all));
        for (i, (stage, wanted)) in stages.iter().zip(wanted).enumerate() {
            let (before, behind) = kept.split_at_mut(i);
            let to = &mut behind[0];
            let rows = if i == last { wanted } else { to.move_to(&wanted) };
            if rows.is_empty() {
                continue;
            }
            let read = reads(&stage.conv.window, &rows, stage.from.height);
            let row = stage.from.width * stage.from.channels;
            let source = match before.last() {
                Some(kept) => &kept.values[kept.place(&read)],
                None => &x[read.start * row..read.end * row],
            };
            let picture = Picture {
                height: read.len(),
                ..stage.from
            };
            let (target, residual) = if i == last {
                let place = rows.start * to.row..rows.end * to.row;
                (&mut y[place.clone()], residual.map(|r| &r[place]))
            } else {
                let place = to.place(&rows);
                (&mut to.values[place], None)
            };
            let window = part(&stage.conv.window, &rows, stage.from.height);
            let operands = (stage.weights, stage.bias, residual);
            stage.conv.picture(&window, (source, picture), operands, target);
        }
    }
}

impl Op for Stripes {
    fn name(&self) -> StaticName {
        "Stripes".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let infos: Vec<_> = self.stages.iter().map(Op::info).collect::<TractResult<_>>()?;
        Ok(infos.concat())
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for Stripes {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (count, picture) = pictures(&inputs[0])?;
        let stages = self.stages(picture, &inputs)?;
        let to = stages[stages.len() - 1].to;
        let x = values(&inputs[0])?;
        let residual = inputs.get(1 + 2 * stages.len()).map(|r| values(r)).transpose()?;
        let height = self.height(&stages);
        let mut shape: TVec<usize> = inputs[0].shape()[..inputs[0].rank() - 3].into();
        shape.extend([to.height, to.width, to.channels]);
        let y = filled(&shape, |y| {
            if y.is_empty() {
                return Ok(());
            }
            let each = |(i, y): (usize, &mut [f32])| {
                let residual = residual.map(|r| &r[i * to.len()..][..to.len()]);
                run(&stages, height, &x[i * picture.len()..][..picture.len()], residual, y);
            };
            if count == 1 {
                each((0, y));
            } else {
                y.par_chunks_mut(to.len()).enumerate().for_each(each);
            }
            Ok(())
        })?;
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for Stripes {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        self.facts(inputs)
            .map(|facts| facts[facts.len() - 1].clone().into_iter().collect())
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let facts = self.facts(inputs)?;
        let sources = std::iter::once(inputs[0]).chain(facts.iter().map(|f| &f[0]));
        let costs = self
            .stages
            .iter()
            .zip(sources)
            .map(|(conv, source)| conv.cost(&[source]));
        Ok(costs.collect::<TractResult<Vec<_>>>()?.concat().into())
    }

    as_op!();
}

impl Stripes {
    /// Form of each stage's result.
    fn facts(&self, inputs: &[&TypedFact]) -> TractResult<Vec<TVec<TypedFact>>> {
        ensure!(
            inputs.len() > 2 * self.stages.len(),
            "each convolution has weights and bias"
        );
        let (operands, residual) = inputs[1..].split_at(2 * self.stages.len());
        let mut facts: Vec<TVec<TypedFact>> = Vec::new();
        for (i, (conv, operands)) in self.stages.iter().zip(operands.chunks_exact(2)).enumerate() {
            let source = facts.last().map_or(inputs[0], |f| &f[0]);
            let mut all: TVec<&TypedFact> = tvec!(source, operands[0], operands[1]);
            if i + 1 == self.stages.len() {
                all.extend(residual.iter().copied());
            }
            let fact = conv.output_facts(&all)?;
            drop(all);
            facts.push(fact);
        }
        Ok(facts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_there_are_kept_and_not_computed_again() {
        let picture = Picture {
            height: 9,
            width: 1,
            channels: 1,
        };
        let mut kept = Kept::new(picture, 4);
        let mut fill = |rows: Range<usize>| {
            let missing = kept.move_to(&rows);
            let place = kept.place(&missing);
            kept.values[place]
                .iter_mut()
                .zip(missing.clone())
                .for_each(|(v, row)| *v = row as f32);
            (missing, kept.values[kept.place(&rows)].to_vec())
        };
        assert_eq!(fill(0..4), (0..4, vec![0.0, 1.0, 2.0, 3.0]));
        assert_eq!(fill(2..6), (4..6, vec![2.0, 3.0, 4.0, 5.0]));
        assert_eq!(fill(3..6), (6..6, vec![3.0, 4.0, 5.0]));
        // A stride beyond the window leaves rows out.
        assert_eq!(fill(8..9), (8..9, vec![8.0]));
    }
}
