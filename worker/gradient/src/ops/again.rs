//! A tensor of the forward pass that is read once more by the backward pass.

use crate::prelude::*;

/// Gives its first input as it is, once the second is there: what is computed from it can neither be taken for what the
/// forward pass computed, nor be computed before the backward pass has come so far.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Again;

impl Op for Again {
    fn name(&self) -> StaticName {
        "Again".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Again {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        ensure!(inputs.len() == 2, "it has two inputs");
        inputs.truncate(1);
        Ok(inputs)
    }
}

impl TypedOp for Again {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(inputs.len() == 2, "it has two inputs");
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}
