//! Where the time of a run goes, by operator of the engine.

use crate::error::Refusal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tract_onnx::prelude::{TValue, TVec, TypedNode, TypedRunnableModel};
use tract_onnx::tract_core::plan::eval;

/// One operator's part of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The operator's name.
    pub operator: String,
    /// Nodes with it that ran.
    pub nodes: usize,
    /// Wall time of all of them.
    pub time: Duration,
}

/// Runs `plan` once and gives its operators, the slowest first; those that `label` calls the same are one.
///
/// # Errors
/// What fails in the run.
pub fn profile(
    plan: &Arc<TypedRunnableModel>,
    given: TVec<TValue>,
    label: impl Fn(&TypedNode) -> String,
) -> Result<Vec<Part>, Refusal> {
    let mut parts: BTreeMap<String, Part> = BTreeMap::new();
    let mut state = plan.spawn()?;
    state.run_plan_with_eval(given, |context, state, node, inputs| {
        let start = Instant::now();
        let outputs = eval(context, state, node, inputs);
        let operator = label(node);
        let part = parts.entry(operator.clone()).or_insert(Part {
            operator,
            nodes: 0,
            time: Duration::ZERO,
        });
        part.nodes += 1;
        part.time += start.elapsed();
        outputs
    })?;
    let mut parts: Vec<Part> = parts.into_values().collect();
    parts.sort_by_key(|part| std::cmp::Reverse(part.time));
    Ok(parts)
}
