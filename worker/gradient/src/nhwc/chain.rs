//! What follows a convolution and can be taken into it: one residual, then bounds.

use super::gemm::Clip;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::math::{Add, Max, Min};

/// Nodes behind a convolution, in order, and what they do to its result.
pub(super) struct Chain {
    /// The nodes.
    pub nodes: Vec<usize>,
    /// Bounds of the result.
    pub clip: Clip,
    /// What is added before.
    pub residual: Option<OutletId>,
}

/// Follows the only reader of each result as long as it can be taken in. What is added must be `known`, that is computed
/// before the convolution.
pub(super) fn follow(model: &TypedModel, node: &TypedNode, known: impl Fn(OutletId) -> bool) -> TractResult<Chain> {
    let mut chain = Chain {
        nodes: Vec::new(),
        clip: Clip::NONE,
        residual: None,
    };
    let mut outlet = OutletId::new(node.id, 0);
    loop {
        let [reader] = model.outlet_successors(outlet) else { break };
        if model.output_outlets()?.contains(&outlet) {
            break;
        }
        let next = model.node(reader.node);
        let Some(TypedBinOp(op, None)) = next.op_as::<TypedBinOp>() else { break };
        let other = next.inputs[1 - reader.slot];
        let form = model.outlet_fact(outlet)?;
        if model.outlet_fact(OutletId::new(next.id, 0))?.shape != form.shape {
            break;
        }
        let bound = uniform(model.outlet_fact(other)?)?;
        match bound {
            Some(bound) if op.is::<Max>() => {
                chain.clip.low = chain.clip.low.max(bound);
                chain.clip.high = chain.clip.high.max(bound);
            }
            Some(bound) if op.is::<Min>() => {
                chain.clip.low = chain.clip.low.min(bound);
                chain.clip.high = chain.clip.high.min(bound);
            }
            None if op.is::<Add>()
                && chain.clip.is_none()
                && chain.residual.is_none()
                && other != outlet
                && model.outlet_fact(other)?.shape == form.shape
                && known(other) =>
            {
                chain.residual = Some(other);
            }
            _ => break,
        }
        chain.nodes.push(next.id);
        outlet = OutletId::new(next.id, 0);
    }
    Ok(chain)
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
        .filter(|first| !first.is_nan() && values.iter().all(|v| v == first)))
}
