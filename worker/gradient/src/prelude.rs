//! The names of tract that this crate uses.

pub(crate) use crate::error::Refusal;
pub(crate) use tract_onnx::tract_core::internal::{
    AxisOp, Datum, DatumType, DatumTypeExt, DimLike, EvalContext, EvalOp, IntoTensor, Op, OutletId, SpecialOps,
    StaticName, TDim, TValue, TVec, Tensor, ToDim, TractResult, TypedFact, TypedModel, TypedNode, as_op, bail, ensure,
    op_as_typed_op, op_out_of_plan, tvec,
};
pub(crate) use tract_onnx::tract_core::ops::{self as core_ops, TypedOp};
