//! What can be trained: one entry per operator of the engine, in the manner of the tables of vector-Jacobian products of
//! other frameworks. This table alone decides which operators a gradient may pass, and the documentation, the refusals
//! and the tests are made from it. An operator that is not listed is refused.

use crate::nhwc::FConv;
use crate::ops::Softplus;
use crate::prelude::*;
use crate::rules::{conv, elementwise, index, matmul, nhwc, norm, pool, reduce, select, shape};
use crate::site::{Gradients, Site};
use core_ops::array::{
    CumSum, Gather, GatherElements, GatherNd, MultiBroadcastTo, Pad, ScatterElements, ScatterNd, Slice, Tile, Topk,
    TypedConcat,
};
use core_ops::binary::{BinMiniOp, TypedBinOp};
use core_ops::cast::Cast;
use core_ops::cnn::{Conv, Deconv, MaxPool, SumPool};
use core_ops::downsample::Downsample;
use core_ops::einsum::EinSum;
use core_ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use core_ops::gru_cell::GruEpilogue;
use core_ops::gru_seq::GruSeq;
use core_ops::identity::Identity;
use core_ops::logic::{IfThenElse, Iff};
use core_ops::lstm_cell::LstmEpilogue;
use core_ops::math;
use core_ops::nn::{self, NearestUpsample, Reduce, Reducer, Resize, RmsNorm, Softmax, SoftmaxKind};
use core_ops::scan::Scan;
use tract_onnx::tract_core::internal::IntoShape;

/// Wires the gradients of a node's inputs from that of its output.
pub type Rule = fn(&mut Site, OutletId) -> Result<Gradients, Refusal>;

/// What a gradient may do at an operator.
#[derive(Clone, Copy)]
pub enum Support {
    /// Pass by this rule.
    Trainable(Rule),
    /// Not pass: the operator may only lie below the frozen cut. The text says why.
    FrozenOnly(&'static str),
}

/// One operator.
pub struct Entry {
    /// The operator's name in the engine, unique in the table.
    pub operator: &'static str,
    /// Whether a node's operator is this one.
    pub recognise: fn(&dyn TypedOp) -> bool,
    /// What a gradient may do there.
    pub support: Support,
    /// The operator and its gradient in one line.
    pub formula: &'static str,
}

/// The entry of an operator, if it has one.
pub fn entry(op: &dyn TypedOp) -> Option<&'static Entry> {
    REGISTRY.iter().find(|entry| (entry.recognise)(op))
}

/// The rule of a node.
///
/// # Errors
/// [`Refusal::UnsupportedOperator`] where there is none.
pub fn rule(node: &TypedNode) -> Result<Rule, Refusal> {
    match entry(&*node.op).map(|e| e.support) {
        Some(Support::Trainable(rule)) => Ok(rule),
        Some(Support::FrozenOnly(reason)) => Err(refusal(node, reason)),
        None => Err(refusal(node, "its gradient is not known")),
    }
}

/// The refusal of a node.
pub(crate) fn refusal(node: &TypedNode, reason: &str) -> Refusal {
    Refusal::UnsupportedOperator {
        operator: node.op.name().into_owned(),
        node: node.name.clone(),
        reason: reason.to_owned(),
    }
}

fn is<O: TypedOp>(op: &dyn TypedOp) -> bool {
    op.downcast_ref::<O>().is_some()
}

fn unary<M: ElementWiseMiniOp>(op: &dyn TypedOp) -> bool {
    op.downcast_ref::<ElementWiseOp>().is_some_and(|e| e.0.is::<M>())
}

fn binary<M: BinMiniOp>(op: &dyn TypedOp) -> bool {
    op.downcast_ref::<TypedBinOp>().is_some_and(|b| b.0.is::<M>())
}

fn reduces(op: &dyn TypedOp, by: &[Reducer]) -> bool {
    op.downcast_ref::<Reduce>().is_some_and(|r| by.contains(&r.reducer))
}

fn softmax(op: &dyn TypedOp, kind: SoftmaxKind) -> bool {
    op.downcast_ref::<Softmax>().is_some_and(|s| s.kind == kind)
}

const fn trainable(
    operator: &'static str,
    recognise: fn(&dyn TypedOp) -> bool,
    rule: Rule,
    formula: &'static str,
) -> Entry {
    Entry {
        operator,
        recognise,
        support: Support::Trainable(rule),
        formula,
    }
}

const fn frozen(
    operator: &'static str,
    recognise: fn(&dyn TypedOp) -> bool,
    formula: &'static str,
    reason: &'static str,
) -> Entry {
    Entry {
        operator,
        recognise,
        support: Support::FrozenOnly(reason),
        formula,
    }
}

const RECURRENT: &str = "a gradient through time is not supported";
const BY_DATA: &str = "elements are placed by data, and no rule is written for it";

/// All operators.
pub static REGISTRY: &[Entry] = &[
    // Element by element, two tensors
    trainable(
        "Add",
        binary::<math::Add>,
        elementwise::add,
        "y = a + b: ∂a = g, ∂b = g",
    ),
    trainable(
        "Sub",
        binary::<math::Sub>,
        elementwise::sub,
        "y = a − b: ∂a = g, ∂b = −g",
    ),
    trainable(
        "SubF",
        binary::<math::SubF>,
        elementwise::sub_reversed,
        "y = b − a: ∂a = −g, ∂b = g",
    ),
    trainable(
        "Mul",
        binary::<math::Mul>,
        elementwise::mul,
        "y = a·b: ∂a = g·b, ∂b = g·a",
    ),
    trainable(
        "Div",
        binary::<math::Div>,
        elementwise::div,
        "y = a/b: ∂a = g/b, ∂b = −g·y/b",
    ),
    trainable(
        "Pow",
        binary::<math::Pow>,
        elementwise::pow,
        "y = aᵇ: ∂a = g·b·aᵇ⁻¹, b frozen",
    ),
    trainable(
        "Max",
        binary::<math::Max>,
        elementwise::max,
        "y = max(a, b): ∂a = g·[a > b], ∂b = g·[b > a]",
    ),
    trainable(
        "Min",
        binary::<math::Min>,
        elementwise::min,
        "y = min(a, b): ∂a = g·[a < b], ∂b = g·[b < a]",
    ),
    // Element by element, one tensor
    trainable("Abs", unary::<math::Abs>, elementwise::abs, "y = |x|: ∂x = g·sign x"),
    trainable("Neg", unary::<math::Neg>, elementwise::neg, "y = −x: ∂x = −g"),
    trainable(
        "Square",
        unary::<math::Square>,
        elementwise::square,
        "y = x²: ∂x = 2·g·x",
    ),
    trainable("Sqrt", unary::<math::Sqrt>, elementwise::sqrt, "y = √x: ∂x = g/(2·y)"),
    trainable(
        "Rsqrt",
        unary::<math::Rsqrt>,
        elementwise::rsqrt,
        "y = 1/√x: ∂x = −g·y³/2",
    ),
    trainable("Recip", unary::<math::Recip>, elementwise::recip, "y = 1/x: ∂x = −g·y²"),
    trainable("Exp", unary::<math::Exp>, elementwise::exp, "y = eˣ: ∂x = g·y"),
    trainable("Ln", unary::<math::Ln>, elementwise::ln, "y = ln x: ∂x = g/x"),
    trainable("Sin", unary::<math::Sin>, elementwise::sin, "y = sin x: ∂x = g·cos x"),
    trainable("Cos", unary::<math::Cos>, elementwise::cos, "y = cos x: ∂x = −g·sin x"),
    trainable(
        "Tanh",
        unary::<math::Tanh>,
        elementwise::tanh,
        "y = tanh x: ∂x = g·(1 − y²)",
    ),
    trainable(
        "Sigmoid",
        unary::<nn::Sigmoid>,
        elementwise::sigmoid,
        "y = σ(x): ∂x = g·y·(1 − y)",
    ),
    trainable(
        "Erf",
        unary::<math::Erf>,
        elementwise::erf,
        "y = erf x: ∂x = g·(2/√π)·exp(−x²)",
    ),
    trainable(
        "PowConst",
        unary::<math::PowConst>,
        elementwise::pow_const,
        "y = xᶜ: ∂x = g·c·xᶜ⁻¹",
    ),
    trainable(
        "GeluExact",
        unary::<nn::GeluExact>,
        elementwise::gelu,
        "y = x·Φ(x): ∂x = g·(Φ(x) + x·φ(x))",
    ),
    trainable(
        "GeluApproximate",
        unary::<nn::GeluApproximate>,
        elementwise::gelu_approximate,
        "y = x·(1 + t)/2, t = tanh u: ∂x = g·((1 + t)/2 + x·(1 − t²)·u′/2)",
    ),
    trainable(
        "Silu",
        unary::<nn::Silu>,
        elementwise::silu,
        "y = x·σ(x): ∂x = g·σ·(1 + x·(1 − σ))",
    ),
    trainable(
        "HardSwish",
        unary::<nn::HardSwish>,
        elementwise::hard_swish,
        "y = x·clamp(x/6 + 1/2, 0, 1): ∂x = g·(x/3 + 1/2) within ±3, else 0 or g",
    ),
    trainable(
        "LeakyRelu",
        unary::<nn::LeakyRelu>,
        elementwise::leaky_relu,
        "y = x or α·x: ∂x = g or α·g",
    ),
    trainable(
        "Softplus",
        unary::<Softplus>,
        elementwise::softplus,
        "y = ln(1 + eˣ): ∂x = g·σ(x)",
    ),
    trainable("Floor", unary::<math::Floor>, elementwise::constant, "y = ⌊x⌋: ∂x = 0"),
    trainable("Ceil", unary::<math::Ceil>, elementwise::constant, "y = ⌈x⌉: ∂x = 0"),
    trainable(
        "Round",
        unary::<math::Round>,
        elementwise::constant,
        "y = round x: ∂x = 0",
    ),
    trainable(
        "RoundHalfToEven",
        unary::<math::RoundHalfToEven>,
        elementwise::constant,
        "y = round x: ∂x = 0",
    ),
    trainable("Sign", unary::<math::Sign>, elementwise::constant, "y = sign x: ∂x = 0"),
    trainable(
        "Identity",
        is::<Identity>,
        elementwise::identity,
        "y = x, Dropout included: ∂x = g",
    ),
    trainable(
        "Cast",
        is::<Cast>,
        elementwise::cast,
        "y = x in another type: ∂x = g in the type of x",
    ),
    // Products
    trainable(
        "EinSum",
        is::<EinSum>,
        matmul::einsum,
        "y = Σ a·b: ∂a = Σ g·b, ∂b = Σ g·a over the axes they lack",
    ),
    // Windows
    trainable(
        "Conv",
        is::<Conv>,
        conv::conv,
        "y = W ⋆ x + b: ∂x = fold(Wᵀ·g), ∂W = g·unfold(x)ᵀ, ∂b = Σ g",
    ),
    trainable(
        "Deconv",
        is::<Deconv>,
        conv::deconv,
        "y = fold(Wᵀ·x) + b: ∂x = W·unfold(g), ∂W = x·unfold(g)ᵀ, ∂b = Σ g",
    ),
    trainable(
        "MaxPool",
        is::<MaxPool>,
        pool::max_pool,
        "y = max over a window: ∂x = g at the largest, the first of equals",
    ),
    trainable(
        "SumPool",
        is::<SumPool>,
        pool::sum_pool,
        "y = Σ or mean over a window: ∂x = Σ g of the windows, divided alike",
    ),
    trainable(
        "FConv",
        is::<FConv>,
        nhwc::convolution,
        "y = clip(W∗x + b + r): ∂z = g·[low < y < high], ∂x = Wᵀ∗∂z, ∂W = x⋆∂z, ∂b = Σ ∂z, ∂r = ∂z",
    ),
    // Reductions
    trainable(
        "Reduce<Sum>",
        |op| reduces(op, &[Reducer::Sum]),
        reduce::sum,
        "y = Σ x: ∂x = g repeated",
    ),
    trainable(
        "Reduce<MeanOfSquares>",
        |op| reduces(op, &[Reducer::MeanOfSquares]),
        reduce::mean_of_squares,
        "y = (1/n)·Σ x²: ∂x = (2/n)·g·x",
    ),
    trainable(
        "Reduce<Max>",
        |op| reduces(op, &[Reducer::Max]),
        reduce::extremum,
        "y = max x: ∂x = g shared by the largest",
    ),
    trainable(
        "Reduce<Min>",
        |op| reduces(op, &[Reducer::Min]),
        reduce::extremum,
        "y = min x: ∂x = g shared by the smallest",
    ),
    // Normalisations
    trainable(
        "Softmax",
        |op| softmax(op, SoftmaxKind::Softmax),
        norm::softmax,
        "y = eˣ/Σeˣ: ∂x = y·(g − Σ g·y)",
    ),
    trainable(
        "LogSoftmax",
        |op| softmax(op, SoftmaxKind::LogSoftmax),
        norm::log_softmax,
        "y = x − ln Σeˣ: ∂x = g − eʸ·Σ g",
    ),
    trainable(
        "RmsNorm",
        is::<RmsNorm>,
        norm::rms_norm,
        "y = x·r, r = (mean(x²) + ε)^(−1/2): ∂x = r·(g − y·mean(g·y))",
    ),
    // Shapes
    trainable(
        "AxisOp",
        is::<AxisOp>,
        shape::axis_op,
        "axes added, removed, moved, reshaped: ∂x = g moved back",
    ),
    trainable(
        "IntoShape",
        is::<IntoShape>,
        shape::reshape,
        "another shape: ∂x = g in the shape of x",
    ),
    trainable(
        "MultiBroadcastTo",
        is::<MultiBroadcastTo>,
        shape::broadcast,
        "y = x repeated: ∂x = Σ g",
    ),
    trainable(
        "Tile",
        is::<Tile>,
        shape::tile,
        "y = copies of x: ∂x = Σ g over the copies",
    ),
    trainable(
        "NearestUpsample",
        is::<NearestUpsample>,
        shape::nearest_upsample,
        "y[i] = x[i/s]: ∂x = Σ g over the copies",
    ),
    trainable(
        "Downsample",
        is::<Downsample>,
        shape::downsample,
        "y[i] = x[m + s·i]: ∂x[m + s·i] = g[i], else 0",
    ),
    trainable(
        "Slice",
        is::<Slice>,
        shape::slice,
        "y = x[a..b]: ∂x = g with zeros around",
    ),
    trainable(
        "Pad",
        is::<Pad>,
        shape::pad,
        "y = x with constant borders: ∂x = g without them",
    ),
    trainable(
        "Concat",
        is::<TypedConcat>,
        shape::concat,
        "y = [x₁, x₂, …]: ∂xᵢ = its part of g",
    ),
    // Reads and choices
    trainable("Gather", is::<Gather>, index::gather, "y = x[i]: ∂x[i] += g"),
    trainable(
        "Iff",
        is::<Iff>,
        select::iff,
        "y = a where c, else b: ∂a = g where c, ∂b = g where not c",
    ),
    // Below the frozen cut only
    frozen(
        "Scan",
        is::<Scan>,
        "a graph run once per step: loops, LSTM, GRU, RNN",
        RECURRENT,
    ),
    frozen("GruSeq", is::<GruSeq>, "a GRU over a sequence", RECURRENT),
    frozen("GruEpilogue", is::<GruEpilogue>, "the gates of a GRU", RECURRENT),
    frozen("LstmEpilogue", is::<LstmEpilogue>, "the gates of an LSTM", RECURRENT),
    frozen(
        "IfThenElse",
        is::<IfThenElse>,
        "one of two graphs",
        "which graph runs depends on data",
    ),
    frozen(
        "Reduce<Prod>",
        |op| reduces(op, &[Reducer::Prod]),
        "y = Π x",
        "no rule is written for it",
    ),
    frozen(
        "CumSum",
        is::<CumSum>,
        "y = running sum of x",
        "no rule is written for it",
    ),
    frozen("GatherElements", is::<GatherElements>, "y = x at indices", BY_DATA),
    frozen("GatherNd", is::<GatherNd>, "y = x at indices", BY_DATA),
    frozen(
        "ScatterElements",
        is::<ScatterElements>,
        "y = x with parts replaced",
        BY_DATA,
    ),
    frozen("ScatterNd", is::<ScatterNd>, "y = x with parts replaced", BY_DATA),
    frozen("Topk", is::<Topk>, "y = the largest of x", BY_DATA),
    frozen(
        "Resize",
        is::<Resize>,
        "y = x interpolated",
        "no rule is written for it",
    ),
];
