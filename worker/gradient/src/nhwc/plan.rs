//! Which nodes are convolutions that can be rewritten.

use super::depthwise::MAX_TAPS;
use super::op::Kind;
use super::shape::{Pads, Picture, Window};
use tract_onnx::tract_core::internal::{
    AxisOp, Datum, DimLike, OutletId, TVec, ToDim, TractError, TractResult, TypedModel, TypedNode,
};
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat};
use tract_onnx::tract_core::ops::einsum::EinSum;

/// A convolution that can be rewritten.
pub(super) struct Plan {
    /// The window.
    pub window: Window,
    /// Which channels are summed.
    pub kind: Kind,
    /// Channels of the result.
    pub out: usize,
    /// Which input is the picture.
    pub picture: OutletId,
    /// Which input is the weights, in the order O x I x H x W.
    pub weights: OutletId,
    /// The convolution's own bias.
    pub bias: Option<OutletId>,
    /// Whether picture and result have their channels last already: decluttering may have moved them.
    pub last: [bool; 2],
    /// What makes the picture's batch of one that of the result: decluttering drops it somewhere and adds it elsewhere.
    pub batch: Option<AxisOp>,
}

/// What a node is rewritten to, if it is a convolution that is covered: 2-D, of f32, over pictures whose size is known,
/// not dilated, dense or depthwise with one result for each channel.
pub(super) fn plan(model: &TypedModel, node: &TypedNode) -> TractResult<Option<Plan>> {
    let f32s = |outlet: &OutletId| {
        let fact = model.outlet_fact(*outlet)?;
        Ok::<_, TractError>(fact.datum_type == f32::datum_type() && fact.exotic_fact.is_none())
    };
    for input in &node.inputs {
        if !f32s(input)? {
            return Ok(None);
        }
    }
    if let Some(conv) = node.op_as::<Conv>() {
        return convolution(model, node, conv);
    }
    if let Some(sum) = node.op_as::<EinSum>() {
        return pointwise(model, node, sum);
    }
    Ok(None)
}

fn convolution(model: &TypedModel, node: &TypedNode, conv: &Conv) -> TractResult<Option<Plan>> {
    let spec = &conv.pool_spec;
    let kind = match conv.group {
        1 => Kind::Dense,
        group if group == spec.input_channels && group == spec.output_channels => Kind::Depthwise,
        _ => return Ok(None),
    };
    let [picture, weights, bias] = node.inputs[..] else {
        return Ok(None);
    };
    if conv.q_params.is_some()
        || spec.rank() != 2
        || spec.dilations().iter().any(|d| *d != 1)
        || conv.kernel_fmt != KernelFormat::OIHW
        || (kind == Kind::Depthwise && spec.kernel_shape.iter().any(|k| *k > MAX_TAPS))
    {
        return Ok(None);
    }
    let fact = model.outlet_fact(bias)?;
    // A constant may stand for all channels; a bias that is trained has them all.
    if fact.konst.is_none() && fact.shape.volume() != spec.output_channels.to_dim() {
        return Ok(None);
    }
    let shape = spec.data_format.shape(&model.outlet_fact(picture)?.shape)?;
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
        picture,
        weights,
        bias: Some(bias),
        last: [spec.data_format.c_is_last(); 2],
        batch: None,
    }))
}

/// Decluttering makes a sum of products of a 1x1 convolution: (N) I H W, O I -> (N) O H W, where a batch of one may come
/// or go, and channels may be last on either side. Weights that are no constants keep their two axes of length 1.
fn pointwise(model: &TypedModel, node: &TypedNode, sum: &EinSum) -> TractResult<Option<Plan>> {
    let [picture, weights] = node.inputs[..] else {
        return Ok(None);
    };
    let x = model.outlet_fact(picture)?;
    let y = model.outlet_fact(OutletId::new(node.id, 0))?;
    let shape = &model.outlet_fact(weights)?.shape;
    let batch = match (x.rank(), y.rank()) {
        (3, 3) | (4, 4) => None,
        (4, 3) if x.shape[0].is_one() => Some(AxisOp::Rm(0)),
        (3, 4) if y.shape[0].is_one() => Some(AxisOp::Add(0)),
        _ => return Ok(None),
    };
    if sum.q_params.is_some() || !(shape.rank() == 2 || shape.rank() == 4 && shape[2].is_one() && shape[3].is_one()) {
        return Ok(None);
    }
    let Some(last) = [[false, false], [true, false], [false, true], [true, true]]
        .into_iter()
        .find(|last| joins(sum, [x.rank(), y.rank()], *last, batch.is_some()))
    else {
        return Ok(None);
    };
    if y.shape[y.rank() - 3..].iter().any(|d| d.to_usize().is_err()) {
        return Ok(None);
    }
    Ok(Some(Plan {
        window: Window {
            kernel: [1, 1],
            stride: [1, 1],
            pads: Pads::default(),
        },
        kind: Kind::Dense,
        out: shape[0].to_usize()?,
        picture,
        weights,
        bias: None,
        last,
        batch,
    }))
}

/// Whether a sum of products joins the axes of a picture and of the result as a 1x1 convolution does.
fn joins(sum: &EinSum, [rank_x, rank_y]: [usize; 2], [x_last, y_last]: [bool; 2], batch: bool) -> bool {
    // What an axis is: 0 is the channels, 1 and 2 are height and width, -1 is the batch.
    let role = |slots: &TVec<usize>, rank: usize, last: bool| match slots[..] {
        [] => Some(None),
        [slot] if slot + 3 < rank => Some(Some(-1)),
        [slot] if last => Some(Some([1, 2, 0][slot + 3 - rank])),
        [slot] => Some(Some([0, 1, 2][slot + 3 - rank])),
        _ => None,
    };
    sum.axes.iter_all_axes().all(|axis| {
        let (Some(x), Some(y)) = (
            role(&axis.inputs[0], rank_x, x_last),
            role(&axis.outputs[0], rank_y, y_last),
        ) else {
            return false;
        };
        match (x, &axis.inputs[1][..], y) {
            // Channels in, channels out, the window; a batch of one that goes or comes; and all others, which stay.
            (Some(0), [1], None) | (None, [0], Some(0)) | (None, [2 | 3], None) => true,
            (Some(-1), [], None) | (None, [], Some(-1)) => batch,
            (Some(a), [], Some(b)) => a == b && a != 0,
            _ => false,
        }
    })
}
