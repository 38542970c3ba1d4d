//! Reverse-mode differentiation of a graph: one walk backwards that applies the rule of every node between the wanted
//! tensors and the loss. It knows no operator; the registry does.

use crate::prelude::*;
use crate::recompute::{Activations, Segments};
use crate::registry;
use crate::site::Site;
use std::collections::HashMap;
use tract_onnx::tract_core::model::order::eval_order_for_nodes;

/// Adds to `model` the gradient of `loss`, a tensor of one value, in each tensor of `wrt`, and gives their outlets in the
/// order of `wrt`. Each has the shape and type of its tensor; a tensor that the loss does not depend on gets zeros.
///
/// For a node y = f(x) with ∂L/∂y known the node's rule wires ∂L/∂x = (∂y/∂x)ᵀ·∂L/∂y. A tensor that is read more than
/// once gets the sum of its parts, added in the fixed order of the walk, so that equal graphs give equal bytes. Nodes that
/// depend on no tensor of `wrt` get no work.
///
/// # Errors
/// [`Refusal::UnsupportedOperator`] for the first node, from the loss backwards, that a gradient would have to pass and
/// that has no rule. Nothing is guessed.
pub fn differentiate(model: &mut TypedModel, loss: OutletId, wrt: &[OutletId]) -> Result<Vec<OutletId>, Refusal> {
    differentiate_with(model, loss, wrt, Activations::Kept)
}

/// As [`differentiate`], with `activations` kept or computed again.
///
/// # Errors
/// As [`differentiate`].
pub fn differentiate_with(
    model: &mut TypedModel,
    loss: OutletId,
    wrt: &[OutletId],
    activations: Activations,
) -> Result<Vec<OutletId>, Refusal> {
    let order = eval_order_for_nodes(model.nodes(), &[], &[loss.node], &[])?;
    let active = active_nodes(model, &order, wrt)?;
    let mut segments = match activations {
        Activations::Kept => Segments::default(),
        Activations::Recomputed => Segments::new(model, &order, &active, wrt)?,
    };
    let mut gradients = Accumulator::default();
    let one = ones_like(model, loss)?;
    gradients.add(model, loss, one)?;
    for &id in order.iter().rev() {
        let node = model.node(id).clone();
        let Some(g) = gradients.of(OutletId::new(id, 0)) else {
            continue;
        };
        let wanted = node
            .inputs
            .iter()
            .map(|i| is_active(model, &active, wrt, *i))
            .collect::<Result<TVec<bool>, _>>()?;
        if !wanted.contains(&true) {
            continue;
        }
        if (1..node.outputs.len()).any(|slot| gradients.of(OutletId::new(id, slot)).is_some()) {
            return Err(registry::refusal(
                &node,
                "only the gradient of its first output has a rule",
            ));
        }
        let rule = registry::rule(&node)?;
        let read = segments.node(model, id, g)?;
        let parts = rule(&mut Site::new(model, read, wanted), g)?;
        for (input, part) in node.inputs.into_iter().zip(parts) {
            if let Some(part) = part {
                gradients.add(model, input, part)?;
            }
        }
    }
    wrt.iter()
        .map(|outlet| match gradients.of(*outlet) {
            Some(gradient) => Ok(gradient),
            None => zeros_like(model, *outlet),
        })
        .collect()
}

/// For each node whether a tensor of `wrt` reaches its outputs through floating-point tensors.
fn active_nodes(model: &TypedModel, order: &[usize], wrt: &[OutletId]) -> Result<Vec<bool>, Refusal> {
    let mut active = vec![false; model.nodes().len()];
    for &id in order {
        for input in &model.node(id).inputs {
            active[id] |= is_active(model, &active, wrt, *input)?;
        }
    }
    Ok(active)
}

fn is_active(model: &TypedModel, active: &[bool], wrt: &[OutletId], outlet: OutletId) -> Result<bool, Refusal> {
    // Nodes that the walk added lie behind the end of `active`.
    let reached = wrt.contains(&outlet) || active.get(outlet.node).copied().unwrap_or(false);
    Ok(reached && model.outlet_fact(outlet)?.datum_type.is_float())
}

/// The gradients known so far.
#[derive(Default)]
struct Accumulator(HashMap<OutletId, OutletId>);

impl Accumulator {
    fn of(&self, outlet: OutletId) -> Option<OutletId> {
        self.0.get(&outlet).copied()
    }

    /// Adds `part` to what is known of the gradient in `outlet`.
    fn add(&mut self, model: &mut TypedModel, outlet: OutletId, part: OutletId) -> Result<(), Refusal> {
        let (tensor, gradient) = (model.outlet_fact(outlet)?, model.outlet_fact(part)?);
        if tensor.shape != gradient.shape || tensor.datum_type != gradient.datum_type {
            let node = model.node(outlet.node);
            return Err(Refusal::Unsound(format!(
                "the gradient of node {:?} is {gradient:?}, the tensor {tensor:?}",
                node.name
            )));
        }
        let sum = match self.of(outlet) {
            None => part,
            Some(known) => {
                let name = format!("{}.grad.sum", model.node(outlet.node).name);
                let name = model.unique_name(name).into_owned();
                model.wire_node(name, core_ops::math::add(), &[known, part])?[0]
            }
        };
        self.0.insert(outlet, sum);
        Ok(())
    }
}

fn ones_like(model: &mut TypedModel, outlet: OutletId) -> Result<OutletId, Refusal> {
    filled(model, outlet, 1.0, "one")
}

fn zeros_like(model: &mut TypedModel, outlet: OutletId) -> Result<OutletId, Refusal> {
    filled(model, outlet, 0.0, "zero")
}

/// A constant of the shape and type of `outlet`.
fn filled(model: &mut TypedModel, outlet: OutletId, value: f64, what: &str) -> Result<OutletId, Refusal> {
    let fact = model.outlet_fact(outlet)?.clone();
    let name = &model.node(outlet.node).name;
    let shape = fact.shape.as_concrete().ok_or_else(|| Refusal::OpenShape {
        node: name.clone(),
        shape: format!("{:?}", fact.shape),
    })?;
    let tensor = Tensor::from(value)
        .cast_to_dt(fact.datum_type)?
        .broadcast_scalar_to_shape(shape)?;
    Ok(model.add_const(format!("{name}.grad.{what}"), tensor)?)
}
