//! Lookups in tables that a graph may not have the rows for: a text longer than the table of places, a number beyond the
//! vocabulary. The engine's own Gather would end the process there; here the index is looked at first, so that it becomes
//! an error. Tables whose length is not known before the run are left to the engine.

use tract_onnx::Onnx;
use tract_onnx::pb::NodeProto;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::op_out_of_plan;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::internal::{
    DimLike, EvalContext, EvalOp, Expansion, InferenceOp, InferenceResult, Op, Solver, StaticName, TensorProxy,
    TypedOp, as_op, ensure, expand, op_as_typed_op,
};
use tract_onnx::tract_hir::ops::array::Gather;

/// The engine's reader of ONNX files, with lookups that are checked.
pub fn onnx() -> Onnx {
    let mut onnx = tract_onnx::onnx()
        .with_ignore_value_info(true)
        .with_ignore_output_shapes(true);
    onnx.op_register.insert("Gather", lookup);
    onnx
}

fn lookup(_: &tract_onnx::model::ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let axis: i64 = node.get_attr_opt("axis")?.unwrap_or(0);
    let gather = Gather::new(axis);
    Ok((expand(Lookup { axis, gather }), vec![]))
}

/// A Gather whose indices are checked.
#[derive(Clone, Debug)]
struct Lookup {
    axis: i64,
    gather: Gather,
}

impl Expansion for Lookup {
    fn name(&self) -> StaticName {
        "Gather".into()
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let table = model.outlet_fact(inputs[0])?;
        let axis = usize::try_from(self.axis).unwrap_or_else(|_| {
            let from_end = usize::try_from(self.axis.unsigned_abs()).unwrap_or(usize::MAX);
            table.rank().saturating_sub(from_end)
        });
        let rows = table.shape.get(axis).and_then(|rows| rows.to_usize().ok());
        let mut inputs: TVec<OutletId> = inputs.into();
        if let Some(rows) = rows {
            let numbers = cast(i64::datum_type());
            inputs[1] = model.wire_node(format!("{prefix}.numbers"), numbers, &[inputs[1]])?[0];
            inputs[1] = model.wire_node(format!("{prefix}.within"), Within { rows }, &[inputs[1]])?[0];
        }
        self.gather.wire(prefix, model, &inputs)
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        self.gather.rules(s, inputs, outputs)
    }
}

/// Gives indices as they are where each is one of so many rows; those below 0 count from the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Within {
    rows: usize,
}

impl Op for Within {
    fn name(&self) -> StaticName {
        "Within".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Within {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let rows = i64::try_from(self.rows)?;
        for index in inputs[0].view().as_slice::<i64>()? {
            ensure!(
                (-rows..rows).contains(index),
                "it reads row {index} of a table of {rows} rows"
            );
        }
        Ok(inputs)
    }
}

impl TypedOp for Within {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec![inputs[0].without_value()])
    }

    as_op!();
}
