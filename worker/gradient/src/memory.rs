//! What a run will need, told from the shapes before anything runs.

use crate::error::Refusal;
use tract_onnx::prelude::{TypedModel, TypedRunnableModel};
use tract_onnx::tract_core::internal::TypedFact;
use tract_onnx::tract_core::ops::konst::Const;

/// Bytes of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// Constants of the plan, frozen weights among them. Shared by all runs.
    pub constants: u64,
    /// Inputs and trained weights that a run is given.
    pub inputs: u64,
    /// The most that intermediate tensors and results take at one time: what the backward pass still needs of the forward
    /// pass is among them.
    pub peak: u64,
}

impl Estimate {
    /// All of it, for `threads` runs at once that share constants and inputs.
    pub fn total(&self, threads: u64) -> u64 {
        self.constants + self.inputs + self.peak * threads
    }
}

/// Follows the order in which `plan` runs and counts the tensors that are alive: from the node that makes one to the last
/// node that reads it, results to the end. Scratch memory inside a node is not seen; a node that works in place is counted
/// as if it did not.
///
/// # Errors
/// [`Refusal::OpenShape`] where a size depends on a symbol.
pub fn estimate(plan: &TypedRunnableModel) -> Result<Estimate, Refusal> {
    let model = plan.model();
    let sources: Vec<usize> = model.input_outlets()?.iter().map(|o| o.node).collect();
    let order: Vec<usize> = plan.order_without_consts().to_vec();
    let mut last_use = vec![0; model.nodes().len()];
    for (step, id) in order.iter().enumerate() {
        last_use[*id] = step;
        for input in &model.node(*id).inputs {
            last_use[input.node] = step;
        }
    }
    for output in model.output_outlets()? {
        last_use[output.node] = order.len();
    }
    let made: Vec<usize> = order.iter().copied().filter(|id| !sources.contains(id)).collect();
    let mut dying: Vec<Vec<usize>> = vec![Vec::new(); order.len() + 1];
    for id in &made {
        dying[last_use[*id]].push(*id);
    }
    let sum = |ids: &[usize]| {
        ids.iter()
            .try_fold(0, |sum, id| Ok::<_, Refusal>(sum + node_bytes(model, *id)?))
    };
    let held = (0..model.nodes().len()).filter(|id| model.node(*id).op_is::<Const>());
    let mut found = Estimate {
        constants: sum(&held.collect::<Vec<_>>())?,
        inputs: sum(&sources)?,
        peak: 0,
    };
    let mut alive = 0;
    for (step, id) in order.iter().enumerate() {
        if !sources.contains(id) {
            alive += node_bytes(model, *id)?;
            found.peak = found.peak.max(alive);
        }
        alive -= sum(&dying[step])?;
    }
    Ok(found)
}

/// Bytes of all that a node gives.
pub(crate) fn node_bytes(model: &TypedModel, id: usize) -> Result<u64, Refusal> {
    let node = model.node(id);
    node.outputs
        .iter()
        .try_fold(0, |sum, outlet| Ok(sum + bytes(&outlet.fact, &node.name)?))
}

fn bytes(fact: &TypedFact, node: &str) -> Result<u64, Refusal> {
    let open = || Refusal::OpenShape {
        node: node.to_owned(),
        shape: format!("{:?}", fact.shape),
    };
    let mut total = 0;
    if let Some(exotic) = &fact.exotic_fact {
        total += exotic.mem_size().to_i64().map_err(|_| open())?;
    } else {
        let shape = fact.shape.as_concrete().ok_or_else(open)?;
        total += (shape.iter().product::<usize>() * fact.datum_type.size_of()) as i64;
    }
    Ok(total.unsigned_abs())
}
