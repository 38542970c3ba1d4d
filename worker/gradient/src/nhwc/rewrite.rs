//! Rewrites a typed graph so that its 2-D convolutions are [`FConv`]s over channels-last pictures, with the bounds and the
//! residual behind them fused. Operators between two convolutions that know no layout, or whose axes can be renamed, are
//! kept in channels-last form too, so axes are moved at the borders only. What is not covered keeps tract's own path.

use super::chain::{Chain, follow};
use super::depthwise::{self, MAX_TAPS};
use super::dense;
use super::isa::Isa;
use super::op::{FConv, Kind, Weights};
use super::shape::{Pads, Picture, Window};
use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Pad, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::nn::{DataFormat, Reduce};

/// The model with its convolutions rewritten for the instructions of `isa`. Inputs and outputs keep their order, forms and
/// names. Decluttered models only: there, bounds are a maximum and a minimum, and a bias lies inside its convolution. The
/// result must not be decluttered with convolutions of 1x1 left in batches, which become sums of products; at a batch of
/// one, and after this rewrite, there are none.
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
        fused: HashSet::new(),
        isa: isa.checked(),
    };
    // Inputs first, so that one which nothing reads is kept too.
    for input in model.input_outlets()? {
        let node = model.node(input.node);
        let outlet = rewriter.target.add_source(&node.name, model.outlet_fact(*input)?.clone())?;
        rewriter.as_is.insert(*input, outlet);
    }
    for id in model.eval_order()? {
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

struct Rewriter<'a> {
    source: &'a TypedModel,
    target: TypedModel,
    /// Outlets of the source as they are there.
    as_is: HashMap<OutletId, OutletId>,
    /// Outlets of the source with channels last.
    last: HashMap<OutletId, OutletId>,
    /// Nodes that a convolution took in.
    fused: HashSet<usize>,
    isa: Isa,
}

/// A convolution that can be rewritten.
struct Plan {
    window: Window,
    kind: Kind,
    out: usize,
    weights: Arc<Tensor>,
    bias: Arc<Tensor>,
    /// Whether the picture comes with channels last already.
    last: bool,
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
        let moved = self.target.wire_node(name, AxisOp::Move(rank - 3, rank - 1), &[plain])?[0];
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
        if let Some(plan) = self.plan(node)? {
            return self.convolution(node, &plan);
        }
        let outlet = OutletId::new(node.id, 0);
        // A picture that comes with channels last and is turned for the model is taken as it came.
        if let Some(AxisOp::Move(from, to)) = node.op_as::<AxisOp>() {
            let rank = self.source.outlet_fact(outlet)?.rank();
            if (rank == 3 || rank == 4) && (*from, *to) == (rank - 1, rank - 3) {
                let input = self.plain(node.inputs[0])?;
                self.last.insert(outlet, input);
                return Ok(());
            }
        }
        if let Some(op) = self.renamed(node)? {
            let inputs = self.all(&node.inputs, Self::last)?;
            let wired = self.target.wire_node(&node.name, op, &inputs)?;
            self.last.insert(outlet, wired[0]);
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
            let mut axes: TVec<usize> = op.axes.iter().map(|a| axis(*a)).collect();
            axes.sort_unstable();
            return Ok(Some(Box::new(Reduce { axes, ..op.clone() })));
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
            let pool = spec(&op.pool_spec).map(|pool_spec| MaxPool { pool_spec, ..op.clone() });
            return Ok(pool.map(|op| Box::new(op) as Box<dyn TypedOp>));
        }
        if let Some(op) = node.op_as::<SumPool>() {
            let pool = spec(&op.pool_spec).map(|pool_spec| SumPool { pool_spec, ..op.clone() });
            return Ok(pool.map(|op| Box::new(op) as Box<dyn TypedOp>));
        }
        Ok(None)
    }

    /// What a node is rewritten to, if it is a convolution that is covered.
    fn plan(&self, node: &TypedNode) -> TractResult<Option<Plan>> {
        let Some(conv) = node.op_as::<Conv>() else { return Ok(None) };
        let spec = &conv.pool_spec;
        let fact = |i: usize| self.source.outlet_fact(node.inputs[i]);
        let kind = match conv.group {
            1 => Kind::Dense,
            group if group == spec.input_channels && group == spec.output_channels => Kind::Depthwise,
            _ => return Ok(None),
        };
        if conv.q_params.is_some()
            || spec.rank() != 2
            || spec.dilations().iter().any(|d| *d != 1)
            || conv.kernel_fmt != KernelFormat::OIHW
            || (kind == Kind::Depthwise && spec.kernel_shape.iter().any(|k| *k > MAX_TAPS))
            || (0..3).any(|i| fact(i).map_or(true, |f| f.datum_type != f32::datum_type()))
        {
            return Ok(None);
        }
        let (Some(weights), Some(bias)) = (fact(1)?.konst.clone(), fact(2)?.konst.clone()) else {
            return Ok(None);
        };
        let shape = spec.data_format.shape(&fact(0)?.shape)?;
        let (Ok(height), Ok(width)) = (shape.hw_dims()[0].to_usize(), shape.hw_dims()[1].to_usize()) else {
            return Ok(None);
        };
        let pads = spec.computed_padding(&[height, width]);
        let window = Window {
            kernel: [spec.kernel_shape[0], spec.kernel_shape[1]],
            stride: [spec.stride(0), spec.stride(1)],
            pads: Pads {
                top: pads[0].pad_before,
                left: pads[1].pad_before,
                bottom: pads[0].pad_after,
                right: pads[1].pad_after,
            },
        };
        let places = window.output(Picture {
            height,
            width,
            channels: spec.input_channels,
        });
        if [places.height, places.width] != [pads[0].convoluted, pads[1].convoluted] {
            return Ok(None);
        }
        Ok(Some(Plan {
            window,
            kind,
            out: spec.output_channels,
            weights,
            bias,
            last: spec.data_format.c_is_last(),
        }))
    }

    /// Wires a convolution and what it takes in.
    fn convolution(&mut self, node: &TypedNode, plan: &Plan) -> TractResult<()> {
        let known = |outlet: OutletId| self.as_is.contains_key(&outlet) || self.last.contains_key(&outlet);
        let Chain { nodes, clip, residual } = follow(self.source, node, known)?;
        let picture = |this: &mut Self, outlet| if plan.last { this.plain(outlet) } else { this.last(outlet) };
        let x = picture(self, node.inputs[0])?;
        let weights = plan.weights.try_as_plain_ram()?.as_slice::<f32>()?;
        let [ky, kx] = plan.window.kernel;
        let packed = match plan.kind {
            Kind::Dense => dense::pack(weights, plan.out, weights.len() / (plan.out * ky * kx), [ky, kx]),
            Kind::Depthwise => depthwise::pack(plan.out, ky * kx, |c, t| weights[c * ky * kx + t]),
        };
        let bias = plan.bias.try_as_plain_ram()?.as_slice::<f32>()?;
        // A scalar stands for all channels.
        let bias: Vec<f32> = (0..plan.out).map(|o| bias[o % bias.len()]).collect();
        let name = &node.name;
        let mut inputs = tvec!(
            x,
            self.constant(format!("{name}.weights_packed"), &packed)?,
            self.constant(format!("{name}.bias_vector"), &bias)?,
        );
        if let Some(residual) = residual {
            inputs.push(picture(self, residual)?);
        }
        let op = FConv {
            window: plan.window,
            kind: plan.kind,
            out: plan.out,
            clip,
            residual: residual.is_some(),
            weights: Weights::Packed,
            isa: self.isa,
        };
        // The result is that of the last node that was taken in.
        let end = nodes.last().copied().unwrap_or(node.id);
        let wired = self.target.wire_node(&self.source.node(end).name, op, &inputs)?[0];
        self.fused.extend(nodes);
        let outlet = OutletId::new(end, 0);
        if plan.last {
            self.as_is.insert(outlet, wired);
        } else {
            self.last.insert(outlet, wired);
        }
        Ok(())
    }

    fn constant(&mut self, name: String, values: &[f32]) -> TractResult<OutletId> {
        let tensor = Tensor::from_shape(&[values.len()], values)?;
        Ok(self.target.wire_node(name, Const::new(tensor.into())?, &[])?[0])
    }
}
