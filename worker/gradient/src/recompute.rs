//! Activations that are computed once more instead of kept. The forward pass is cut into about √n segments of its n nodes;
//! the backward pass keeps what goes from one segment to the next and computes the inside of a segment again when it comes
//! to it, so that the inside of one is in memory at a time (Chen et al. 2016, "Training Deep Nets with Sublinear Memory
//! Cost"). That costs one more forward pass. The engine may lay the second one's tensors out otherwise, so sums over several
//! axes can differ in their last bits.

use crate::memory::node_bytes;
use crate::ops::Again;
use crate::prelude::*;
use std::collections::HashMap;

/// What becomes of the forward pass's tensors until the backward pass reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activations {
    /// They stay in memory.
    Kept,
    /// They are computed again.
    Recomputed,
}

/// The segments, and the copy of the one that the backward pass is in.
#[derive(Default)]
pub(crate) struct Segments {
    /// The segment of each node; none for one that is not computed again.
    of: HashMap<usize, usize>,
    /// Tensors that are at hand anyway.
    given: Vec<OutletId>,
    order: Vec<usize>,
    current: Option<usize>,
    copies: HashMap<OutletId, OutletId>,
}

impl Segments {
    /// Cuts the nodes of `order` that are `active` into segments of about equal bytes. What follows the last cut is at hand
    /// when the backward pass begins. `given` are the trained weights.
    pub(crate) fn new(
        model: &TypedModel,
        order: &[usize],
        active: &[bool],
        given: &[OutletId],
    ) -> Result<Self, Refusal> {
        let nodes: Vec<usize> = order
            .iter()
            .copied()
            .filter(|id| active[*id] && !model.node(*id).inputs.is_empty())
            .collect();
        let bytes = nodes
            .iter()
            .map(|id| node_bytes(model, *id))
            .collect::<Result<Vec<_>, _>>()?;
        let count = (nodes.len() as f64).sqrt().ceil().max(1.0) as u64;
        let most = bytes.iter().sum::<u64>() / count + 1;
        let (mut of, mut sum) = (HashMap::new(), 0);
        for (id, bytes) in nodes.iter().zip(bytes) {
            of.insert(*id, (sum / most) as usize);
            sum += bytes;
        }
        let last = of.values().copied().max();
        of.retain(|_, segment| Some(*segment) != last);
        Ok(Self {
            of,
            given: given.to_vec(),
            order: nodes,
            ..Self::default()
        })
    }

    /// Node `id` as the backward pass should read it, which has come to the gradient `g` of its output.
    pub(crate) fn node(&mut self, model: &mut TypedModel, id: usize, g: OutletId) -> Result<TypedNode, Refusal> {
        let Some(&segment) = self.of.get(&id) else {
            return Ok(model.node(id).clone());
        };
        if self.current != Some(segment) {
            self.copy(model, segment, g)?;
        }
        let copy = self.copies.get(&id.into()).map_or(id, |outlet| outlet.node);
        Ok(model.node(copy).clone())
    }

    /// Computes a segment again, once `g` is there.
    fn copy(&mut self, model: &mut TypedModel, segment: usize, g: OutletId) -> Result<(), Refusal> {
        self.current = Some(segment);
        self.copies.clear();
        for id in self.order.clone() {
            if self.of.get(&id) != Some(&segment) {
                continue;
            }
            let node = model.node(id).clone();
            let mut inputs = TVec::new();
            for input in &node.inputs {
                inputs.push(self.input(model, *input, g)?);
            }
            let name = model.unique_name(format!("{}.again", node.name)).into_owned();
            let outlets = model.wire_node(name, node.op, &inputs)?;
            for (slot, outlet) in outlets.into_iter().enumerate() {
                self.copies.insert(OutletId::new(id, slot), outlet);
            }
        }
        Ok(())
    }

    /// What the copy of a node reads in place of `outlet`.
    fn input(&mut self, model: &mut TypedModel, outlet: OutletId, g: OutletId) -> Result<OutletId, Refusal> {
        if let Some(copy) = self.copies.get(&outlet) {
            return Ok(*copy);
        }
        if self.given.contains(&outlet) || model.outlet_fact(outlet)?.konst.is_some() {
            return Ok(outlet);
        }
        let name = format!("{}.again", model.node(outlet.node).name);
        let name = model.unique_name(name).into_owned();
        let copy = model.wire_node(name, Again, &[outlet, g])?[0];
        self.copies.insert(outlet, copy);
        Ok(copy)
    }
}
