//! Convolutions in a row, computed some rows of the result at a time: what lies between them is a few rows that stay in the
//! second cache, instead of a picture that is written to memory and read back. For graphs that are run without a gradient,
//! which would need the pictures.

use super::op::{FConv, Kind, Weights, pictures, split, values};
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
        let convolutions: Vec<FConv> = nodes.iter().filter_map(|n| n.op_as().cloned()).collect();
        let from = picture(model.outlet_fact(first.inputs[0])?)?;
        let height = height(&stages(&convolutions, from), sizes.most);
        let op = Stripes { convolutions, height };
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

/// The form of one picture.
fn picture(fact: &TypedFact) -> TractResult<Picture> {
    let (_, picture) = split(&fact.shape[..])?;
    Ok(Picture {
        height: picture[0].to_usize()?,
        width: picture[1].to_usize()?,
        channels: picture[2].to_usize()?,
    })
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
    let bytes = |outlet: OutletId| TractResult::Ok(picture(model.outlet_fact(outlet)?)?.len() * size_of::<f32>());
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
    convolutions: Vec<FConv>,
    /// Rows of the result that are computed at a time.
    height: usize,
}

/// A convolution and the pictures that it goes from and to.
struct Stage<'a> {
    conv: &'a FConv,
    from: Picture,
    to: Picture,
}

/// Convolutions in a row, of which the first goes from pictures of the form `first`.
fn stages<'a>(convolutions: &'a [FConv], first: Picture) -> Vec<Stage<'a>> {
    let mut from = first;
    let stage = |conv: &'a FConv| {
        let to = Picture {
            channels: conv.out,
            ..conv.window.output(from)
        };
        let from = std::mem::replace(&mut from, to);
        Stage { conv, from, to }
    };
    convolutions.iter().map(stage).collect()
}

/// Rows of each stage's result that are read for the rows `rows` of the last one's.
fn wanted(stages: &[Stage], rows: Range<usize>) -> Vec<Range<usize>> {
    let mut wanted = vec![rows];
    for stage in stages[1..].iter().rev() {
        let (rows, _) = reads(&stage.conv.window, &wanted[wanted.len() - 1], stage.from.height);
        wanted.push(rows);
    }
    wanted.reverse();
    wanted
}

/// The parts of a result of `all` rows that are computed at a time.
fn parts(all: usize, height: usize) -> impl Iterator<Item = Range<usize>> {
    (0..all)
        .step_by(height)
        .map(move |first| first..(first + height).min(all))
}

/// Rows of the result to compute at a time, so that those between take `most` bytes.
fn height(stages: &[Stage], most: usize) -> usize {
    let all = stages[stages.len() - 1].to.height;
    let between = |rows: Range<usize>| -> usize {
        let wanted = wanted(stages, rows);
        let row = |stage: &Stage| stage.from.width * stage.from.channels;
        let values = stages[1..]
            .iter()
            .zip(wanted)
            .map(|(stage, rows)| rows.len() * row(stage));
        values.sum::<usize>() * size_of::<f32>()
    };
    let fits = |height: &usize| parts(all, *height).all(|rows| between(rows) <= most);
    (1..=all).take_while(fits).last().unwrap_or(1)
}

/// The rows of a picture between two stages that are read now.
struct Kept {
    values: Vec<f32>,
    rows: Range<usize>,
    /// Values of a row.
    row: usize,
}

impl Kept {
    fn new(picture: Picture) -> Self {
        Self {
            values: Vec::new(),
            rows: 0..0,
            row: picture.width * picture.channels,
        }
    }

    /// Makes place for `rows`, keeps those that are there, and says which are missing.
    fn move_to(&mut self, rows: &Range<usize>) -> Range<usize> {
        let there = self.rows.start.max(rows.start)..self.rows.end.max(rows.start);
        let from = (there.start - self.rows.start).min(self.rows.len()) * self.row;
        self.values.copy_within(from..self.rows.len() * self.row, 0);
        let values = rows.len() * self.row;
        self.values.resize(values.max(self.values.len()), 0.0);
        self.rows = rows.clone();
        there.end..rows.end
    }

    fn place(&self, rows: &Range<usize>) -> Range<usize> {
        (rows.start - self.rows.start) * self.row..(rows.end - self.rows.start) * self.row
    }
}

/// Rows of a picture of `height` rows that the rows `rows` of the windows' result read, and the window for these: it has
/// zeros above and below where they are the picture's first or last. `rows` is not empty.
fn reads(window: &Window, rows: &Range<usize>, height: usize) -> (Range<usize>, Window) {
    let (step, top) = (window.stride[0], window.pads.top);
    // With the zeros above counted.
    let (start, end) = (rows.start * step, (rows.end - 1) * step + window.kernel[0]);
    let last = end.saturating_sub(top).min(height);
    let pads = Pads {
        top: top.saturating_sub(start),
        bottom: end.saturating_sub(top + height),
        ..window.pads
    };
    (start.saturating_sub(top).min(last)..last, Window { pads, ..*window })
}

impl Stripes {
    /// Number of convolutions that were joined.
    pub fn convolutions(&self) -> usize {
        self.convolutions.len()
    }

    /// Form of each convolution's result.
    fn facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let count = self.convolutions.len();
        ensure!(inputs.len() > 2 * count, "each convolution has weights and bias");
        let operands = inputs[1..].chunks_exact(2);
        let mut facts: TVec<TypedFact> = tvec!();
        for (i, (conv, operands)) in self.convolutions.iter().zip(operands).enumerate() {
            let source = facts.last().unwrap_or(inputs[0]);
            let residual = if i + 1 == count { &inputs[1 + 2 * count..] } else { &[] };
            let fact = conv.output_facts(&[&[source], operands, residual].concat())?;
            facts.extend(fact);
        }
        Ok(facts)
    }

    /// Computes one picture. Operands are weights and bias of each stage.
    fn run(&self, stages: &[Stage], operands: &[[&[f32]; 2]], x: &[f32], residual: Option<&[f32]>, y: &mut [f32]) {
        let last = &stages[stages.len() - 1].to;
        let row = last.width * last.channels;
        let mut kept: Vec<Kept> = stages[1..].iter().map(|stage| Kept::new(stage.from)).collect();
        for part in parts(last.height, self.height) {
            let all = stages.iter().zip(operands).zip(wanted(stages, part));
            for (i, ((stage, [weights, bias]), wanted)) in all.enumerate() {
                // The last one's rows go where the result lies.
                let (before, behind) = kept.split_at_mut(i);
                let mut to = behind.first_mut();
                let rows = to.as_mut().map_or(wanted.clone(), |to| to.move_to(&wanted));
                if rows.is_empty() {
                    continue;
                }
                let (read, window) = reads(&stage.conv.window, &rows, stage.from.height);
                let picture = Picture {
                    height: read.len(),
                    ..stage.from
                };
                let source = match before.last() {
                    Some(kept) => &kept.values[kept.place(&read)],
                    None => &x[read.start * stage.from.width * stage.from.channels..][..picture.len()],
                };
                let (target, residual) = if let Some(to) = to {
                    let place = to.place(&rows);
                    (&mut to.values[place], None)
                } else {
                    let place = rows.start * row..rows.end * row;
                    (&mut y[place.clone()], residual.map(|r| &r[place]))
                };
                let operands = (*weights, *bias, residual);
                stage.conv.picture(&window, (source, picture), operands, target);
            }
        }
    }
}

impl Op for Stripes {
    fn name(&self) -> StaticName {
        "Stripes".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        let infos: Vec<_> = self.convolutions.iter().map(Op::info).collect::<TractResult<_>>()?;
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
        let stages = stages(&self.convolutions, picture);
        let to = stages[stages.len() - 1].to;
        let x = values(&inputs[0])?;
        let operands = inputs[1..].chunks_exact(2).take(stages.len());
        let operands = operands.map(|pair| Ok([values(&pair[0])?, values(&pair[1])?]));
        let operands: Vec<[&[f32]; 2]> = operands.collect::<TractResult<_>>()?;
        let residual = inputs.get(1 + 2 * stages.len()).map(|r| values(r)).transpose()?;
        let mut shape: TVec<usize> = split(inputs[0].shape())?.0.into();
        shape.extend([to.height, to.width, to.channels]);
        let y = filled(&shape, |y| {
            if y.is_empty() {
                return Ok(());
            }
            let each = |(i, y): (usize, &mut [f32])| {
                let residual = residual.map(|r| &r[i * to.len()..][..to.len()]);
                let x = &x[i * picture.len()..][..picture.len()];
                self.run(&stages, &operands, x, residual, y);
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
        Ok(self.facts(inputs)?.pop().into_iter().collect())
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let facts = self.facts(inputs)?;
        let sources = std::iter::once(inputs[0]).chain(&facts);
        let costs = self.convolutions.iter().zip(sources);
        let costs = costs.map(|(conv, source)| conv.cost(&[source]));
        Ok(costs.collect::<TractResult<Vec<_>>>()?.concat().into())
    }

    as_op!();
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
        let mut kept = Kept::new(picture);
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
