//! Rewrites a typed graph so that its 2-D convolutions are [`FConv`]s over channels-last pictures, with the bounds and the
//! residual behind them fused. Operators between two convolutions that know no layout, or whose axes can be renamed, are
//! kept in channels-last form too, so axes are moved at the borders only. What is not covered keeps tract's own path.

use super::chain::follow;
use super::isa::Isa;
use super::op::{FConv, Kind, Weights};
use super::plan::{Plan, plan};
use super::{dense, depthwise};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use tract_onnx::tract_core::internal::{
    AxisOp, OutletId, SpecialOps, TVec, Tensor, TractErrorContext, TractResult, TypedModel, TypedNode, TypedOp, tvec,
};
use tract_onnx::tract_core::ops::array::{Pad, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, MaxPool, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::nn::{DataFormat, Reduce};
use tract_onnx::tract_core::ops::source::TypedSource;

/// The model with its convolutions rewritten for the instructions of `isa`. Inputs and outputs keep their order, forms and
/// names. It takes typed models, decluttered or not: after decluttering more is fused, because scales have gone into the
/// weights, a maximum and a minimum bound a result, and 1x1 convolutions are sums of products, which are known too.
/// Weights that are constants are packed once, others at each call.
///
/// # Errors
/// Where the model is inconsistent.
pub fn rewrite(model: &TypedModel, isa: Isa) -> TractResult<TypedModel> {
    let mut rewriter = Rewriter {
        source: model,
        target: TypedModel {
            symbols: model.symbols.clone(),
            ..TypedModel::default()
        },
        as_is: HashMap::new(),
        last: HashMap::new(),
        pictures: HashSet::new(),
        fused: HashSet::new(),
        isa: isa.checked(),
    };
    // Inputs first, so that one which nothing reads is kept too.
    for input in model.input_outlets()? {
        let node = model.node(input.node);
        let outlet = rewriter
            .target
            .add_source(&node.name, model.outlet_fact(*input)?.clone())?;
        rewriter.as_is.insert(*input, outlet);
    }
    // A bias that is an input under another form can be taken in where it is there before the convolution.
    let order = model.eval_order()?;
    let (renamed, others): (Vec<usize>, Vec<usize>) = order.into_iter().partition(|id| is_renamed_input(model, *id));
    for id in renamed.into_iter().chain(others) {
        let node = model.node(id);
        if !rewriter.fused.contains(&id) && !rewriter.as_is.contains_key(&OutletId::new(id, 0)) {
            rewriter.node(node).with_context(|| format!("rewriting {node}"))?;
        }
    }
    let outputs: Vec<OutletId> = model
        .output_outlets()?
        .iter()
        .map(|o| rewriter.plain(*o))
        .collect::<TractResult<_>>()?;
    let inputs: Vec<OutletId> = model.input_outlets()?.iter().map(|i| rewriter.as_is[i]).collect();
    let mut target = rewriter.target;
    target.set_input_outlets(&inputs)?;
    target.select_output_outlets(&outputs)?;
    for (old, new) in model.output_outlets()?.iter().zip(&outputs) {
        if let Some(label) = model.outlet_label(*old) {
            target.set_outlet_label(*new, label.to_owned())?;
        }
    }
    target.properties.clone_from(&model.properties);
    target.compact()?;
    Ok(target)
}

/// Whether a node gives an input of the model with other axes.
fn is_renamed_input(model: &TypedModel, mut id: usize) -> bool {
    while let (true, [input]) = (model.node(id).op_is::<AxisOp>(), &model.node(id).inputs[..]) {
        id = input.node;
        if model.node(id).op_is::<TypedSource>() {
            return true;
        }
    }
    false
}

struct Rewriter<'a> {
    source: &'a TypedModel,
    target: TypedModel,
    /// Outlets of the source as they are there.
    as_is: HashMap<OutletId, OutletId>,
    /// Outlets of the source with channels last.
    last: HashMap<OutletId, OutletId>,
    /// Outlets of the source that are made of a convolution's result, or were turned for one.
    pictures: HashSet<OutletId>,
    /// Nodes that a convolution took in.
    fused: HashSet<usize>,
    isa: Isa,
}

impl Rewriter<'_> {
    /// The outlet in the layout of the source.
    fn plain(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(known) = self.as_is.get(&outlet) {
            return Ok(*known);
        }
        let last = *self.last.get(&outlet).context("an outlet that was not wired")?;
        let rank = self.source.outlet_fact(outlet)?.rank();
        let name = format!("{}.channels_first", self.name(outlet));
        let moved = self.target.wire_node(name, AxisOp::Move(rank - 1, rank - 3), &[last])?[0];
        self.as_is.insert(outlet, moved);
        Ok(moved)
    }

    /// The outlet with channels last.
    fn last(&mut self, outlet: OutletId) -> TractResult<OutletId> {
        if let Some(known) = self.last.get(&outlet) {
            return Ok(*known);
        }
        let plain = self.plain(outlet)?;
        let rank = self.source.outlet_fact(outlet)?.rank();
        let name = format!("{}.channels_last", self.name(outlet));
        let moved = self
            .target
            .wire_node(name, AxisOp::Move(rank - 3, rank - 1), &[plain])?[0];
        self.last.insert(outlet, moved);
        Ok(moved)
    }

    /// A name for what is made of an outlet.
    fn name(&self, outlet: OutletId) -> String {
        let node = self.source.node(outlet.node);
        match outlet.slot {
            0 => node.name.clone(),
            slot => format!("{}.{slot}", node.name),
        }
    }

    fn node(&mut self, node: &TypedNode) -> TractResult<()> {
        if let Some(plan) = plan(self.source, node)? {
            // A sum of products may be something else, but behind a convolution it is another one.
            if node.op_is::<Conv>() || self.pictures.contains(&plan.picture) {
                return self.convolution(node, &plan);
            }
        }
        let outlet = OutletId::new(node.id, 0);
        // A picture that comes with channels last and is turned for the model is taken as it came.
        if let Some(AxisOp::Move(from, to)) = node.op_as::<AxisOp>() {
            let rank = self.source.outlet_fact(outlet)?.rank();
            if (rank == 3 || rank == 4) && (*from, *to) == (rank - 1, rank - 3) {
                let input = self.plain(node.inputs[0])?;
                self.last.insert(outlet, input);
                self.pictures.insert(outlet);
                return Ok(());
            }
        }
        if let Some(op) = self.renamed(node)? {
            let inputs = self.all(&node.inputs, Self::last)?;
            let wired = self.target.wire_node(&node.name, op, &inputs)?;
            self.last.insert(outlet, wired[0]);
            self.pictures.insert(outlet);
            return Ok(());
        }
        let inputs = self.all(&node.inputs, Self::plain)?;
        let wired = self.target.wire_node(&node.name, node.op.clone(), &inputs)?;
        for (slot, wire) in wired.into_iter().enumerate() {
            self.as_is.insert(OutletId::new(node.id, slot), wire);
        }
        Ok(())
    }

    fn all(
        &mut self,
        outlets: &[OutletId],
        each: fn(&mut Self, OutletId) -> TractResult<OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        outlets.iter().map(|o| each(self, *o)).collect()
    }

    /// Whether the outlet is there with channels last alone.
    fn only_last(&self, outlet: OutletId) -> bool {
        self.last.contains_key(&outlet) && !self.as_is.contains_key(&outlet)
    }

    /// The operator of `node` for pictures with channels last, where an input is one and the operator has such a form.
    fn renamed(&self, node: &TypedNode) -> TractResult<Option<Box<dyn TypedOp>>> {
        if !node.inputs.iter().any(|i| self.only_last(*i)) || node.outputs.len() != 1 {
            return Ok(None);
        }
        let rank = self.source.outlet_fact(node.inputs[0])?.rank();
        for input in &node.inputs {
            if self.source.outlet_fact(*input)?.rank() != rank {
                return Ok(None);
            }
        }
        // The axis of a picture with channels first, in one with channels last.
        let axis = |axis: usize| match axis.cmp(&(rank - 3)) {
            Ordering::Less => axis,
            Ordering::Equal => rank - 1,
            Ordering::Greater => axis - 1,
        };
        if node.op_is::<ElementWiseOp>() || node.op_is::<TypedBinOp>() {
            return Ok(Some(node.op.clone()));
        }
        if let Some(op) = node.op_as::<Reduce>() {
            let mut renamed: TVec<usize> = op.axes.iter().map(|a| axis(*a)).collect();
            renamed.sort_unstable();
            return Ok(Some(Box::new(Reduce {
                axes: renamed,
                ..op.clone()
            })));
        }
        if let Some(op) = node.op_as::<Downsample>() {
            return Ok(Some(Box::new(Downsample {
                axis: axis(op.axis),
                ..op.clone()
            })));
        }
        if let Some(op) = node.op_as::<TypedConcat>() {
            return Ok(Some(Box::new(TypedConcat { axis: axis(op.axis) })));
        }
        if let Some(op) = node.op_as::<Pad>() {
            let mut pads = op.pads.clone();
            for (a, pad) in op.pads.iter().enumerate() {
                pads[axis(a)] = *pad;
            }
            return Ok(Some(Box::new(Pad { pads, ..op.clone() })));
        }
        let spec = |spec: &PoolSpec| {
            let data_format = match spec.data_format {
                DataFormat::NCHW => DataFormat::NHWC,
                DataFormat::CHW => DataFormat::HWC,
                _ => return None,
            };
            (spec.rank() == 2).then(|| PoolSpec {
                data_format,
                ..spec.clone()
            })
        };
        if let Some(op) = node.op_as::<MaxPool>()
            && op.with_index_outputs.is_none()
        {
            let pool = spec(&op.pool_spec).map(|pool_spec| MaxPool {
                pool_spec,
                ..op.clone()
            });
            return Ok(pool.map(|op| Box::new(op) as Box<dyn TypedOp>));
        }
        if let Some(op) = node.op_as::<SumPool>() {
            let pool = spec(&op.pool_spec).map(|pool_spec| SumPool {
                pool_spec,
                ..op.clone()
            });
            return Ok(pool.map(|op| Box::new(op) as Box<dyn TypedOp>));
        }
        Ok(None)
    }

    /// Wires a convolution and what it takes in.
    fn convolution(&mut self, node: &TypedNode, plan: &Plan) -> TractResult<()> {
        let rank = self.source.outlet_fact(OutletId::new(node.id, 0))?.rank();
        let axis = if plan.last[1] { rank - 1 } else { rank - 3 };
        let known = |outlet: OutletId| self.as_is.contains_key(&outlet) || self.last.contains_key(&outlet);
        let chain = follow(self.source, node, plan.bias, axis, known)?;
        let mut x = self.with_channels_last(plan.picture, plan.last[0])?;
        if let Some(op) = &plan.batch {
            x = self
                .target
                .wire_node(format!("{}.batch", node.name), op.clone(), &[x])?[0];
        }
        let mut inputs = tvec!(x);
        let (weights, form) = self.weights(node, plan)?;
        inputs.push(weights);
        inputs.push(self.bias(node, plan, chain.bias)?);
        if let Some(residual) = chain.residual {
            inputs.push(self.with_channels_last(residual, plan.last[1])?);
        }
        let op = FConv {
            window: plan.window,
            kind: plan.kind,
            out: plan.out,
            clip: chain.clip,
            residual: chain.residual.is_some(),
            weights: form,
            isa: self.isa,
        };
        // The result is that of the last node that was taken in.
        let end = chain.nodes.last().copied().unwrap_or(node.id);
        let wired = self.target.wire_node(&self.source.node(end).name, op, &inputs)?[0];
        self.fused.extend(chain.nodes);
        let outlet = OutletId::new(end, 0);
        self.pictures.insert(outlet);
        if plan.last[1] {
            self.as_is.insert(outlet, wired);
        } else {
            self.last.insert(outlet, wired);
        }
        Ok(())
    }

    /// The outlet with channels last; `already` says that it is so in the source.
    fn with_channels_last(&mut self, outlet: OutletId, already: bool) -> TractResult<OutletId> {
        if already { self.plain(outlet) } else { self.last(outlet) }
    }

    /// Constant weights are packed here, others at each call.
    fn weights(&mut self, node: &TypedNode, plan: &Plan) -> TractResult<(OutletId, Weights)> {
        let Some(constant) = self.source.outlet_fact(plan.weights)?.konst.clone() else {
            return Ok((self.plain(plan.weights)?, Weights::Oihw));
        };
        let weights = constant.try_as_plain_ram()?.as_slice::<f32>()?;
        let [ky, kx] = plan.window.kernel;
        let packed = match plan.kind {
            Kind::Dense => dense::pack(weights, plan.out, weights.len() / (plan.out * ky * kx), [ky, kx]),
            Kind::Depthwise => depthwise::pack(plan.out, ky * kx, |c, t| weights[c * ky * kx + t]),
        };
        Ok((
            self.constant(format!("{}.weights_packed", node.name), &packed)?,
            Weights::Packed,
        ))
    }

    /// A constant bias has a value for each channel; a scalar stands for all of them, and none is zeros.
    fn bias(&mut self, node: &TypedNode, plan: &Plan, bias: Option<OutletId>) -> TractResult<OutletId> {
        let name = format!("{}.bias_vector", node.name);
        let Some(bias) = bias else {
            return self.constant(name, &vec![0.0; plan.out]);
        };
        let Some(constant) = self.source.outlet_fact(bias)?.konst.clone() else {
            return self.plain(bias);
        };
        let values = constant.try_as_plain_ram()?.as_slice::<f32>()?;
        let all: Vec<f32> = (0..plan.out).map(|o| values[o % values.len()]).collect();
        self.constant(name, &all)
    }

    fn constant(&mut self, name: String, values: &[f32]) -> TractResult<OutletId> {
        let tensor = Tensor::from_shape(&[values.len()], values)?;
        Ok(self.target.wire_node(name, Const::new(tensor.into())?, &[])?[0])
    }
}
