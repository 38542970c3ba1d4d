//! What follows a convolution and can be taken into it: a bias, one residual, then bounds.

use super::gemm::Clip;
use tract_onnx::tract_core::internal::{Datum, OutletId, ShapeFact, TractResult, TypedFact, TypedModel, TypedNode};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Max, Min};

/// Nodes behind a convolution, in order, and what they do to its result.
pub(super) struct Chain {
    /// The nodes.
    pub nodes: Vec<usize>,
    /// One value for each channel, added first.
    pub bias: Option<OutletId>,
    /// What is added before the bounds.
    pub residual: Option<OutletId>,
    /// Bounds of the result.
    pub clip: Clip,
}

/// Follows the only reader of each result as long as it can be taken in. `bias` is the convolution's own; what is added
/// must be `known`, that is computed before the convolution.
pub(super) fn follow(
    model: &TypedModel,
    node: &TypedNode,
    bias: Option<OutletId>,
    channel_axis: usize,
    known: impl Fn(OutletId) -> bool,
) -> TractResult<Chain> {
    let mut chain = Chain {
        nodes: Vec::new(),
        bias,
        residual: None,
        clip: Clip::NONE,
    };
    let mut outlet = OutletId::new(node.id, 0);
    let form = model.outlet_fact(outlet)?.shape.clone();
    while let [reader] = model.outlet_successors(outlet) {
        if model.output_outlets()?.contains(&outlet) {
            break;
        }
        let next = model.node(reader.node);
        let Some(TypedBinOp(op, None)) = next.op_as::<TypedBinOp>() else {
            break;
        };
        let other = next.inputs[1 - reader.slot];
        let fact = model.outlet_fact(other)?;
        if other == outlet || model.outlet_fact(OutletId::new(next.id, 0))?.shape != form {
            break;
        }
        let bound = uniform(fact)?;
        let first = chain.clip.is_none() && chain.residual.is_none();
        match bound {
            Some(bound) if op.is::<Max>() => {
                chain.clip.low = chain.clip.low.max(bound);
                chain.clip.high = chain.clip.high.max(bound);
            }
            Some(bound) if op.is::<Min>() => {
                chain.clip.low = chain.clip.low.min(bound);
                chain.clip.high = chain.clip.high.min(bound);
            }
            _ if op.is::<Add>() && first && fact.shape == form && known(other) => chain.residual = Some(other),
            _ if op.is::<Add>()
                && first
                && chain.bias.is_none()
                && by_channel(fact, &form, channel_axis)
                && (fact.konst.is_some() || known(other)) =>
            {
                chain.bias = Some(other);
            }
            _ => break,
        }
        chain.nodes.push(next.id);
        outlet = OutletId::new(next.id, 0);
    }
    Ok(chain)
}

/// Whether a tensor has one value for each channel of a picture.
fn by_channel(fact: &TypedFact, form: &ShapeFact, channel_axis: usize) -> bool {
    fact.rank() == form.rank()
        && fact.datum_type == f32::datum_type()
        && (0..form.rank()).all(|axis| {
            if axis == channel_axis {
                fact.shape[axis] == form[axis]
            } else {
                fact.shape[axis].is_one()
            }
        })
}

/// The value of a constant of f32 that is the same everywhere.
fn uniform(fact: &TypedFact) -> TractResult<Option<f32>> {
    let Some(constant) = &fact.konst else { return Ok(None) };
    if constant.datum_type() != f32::datum_type() {
        return Ok(None);
    }
    let values = constant.try_as_plain_ram()?.as_slice::<f32>()?;
    Ok(values
        .first()
        .copied()
        .filter(|first| !first.is_nan() && values.iter().all(|v| v.to_bits() == first.to_bits())))
}
