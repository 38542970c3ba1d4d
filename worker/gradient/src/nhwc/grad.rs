//! The gradients of the channels-last convolution, as operators of the typed graph.
//!
//! Gradients of weights and bias are sums over the pictures of a batch. They are taken over a fixed number of groups of
//! pictures, then over the groups in order, so the number of threads changes no bit.

use super::dense;
use super::depthwise;
use super::gemm::Clip;
use super::op::{FConv, Kind, Weights, pictures, split, values};
use super::output::filled;
use super::shape::Picture;
use rayon::prelude::*;
use std::ops::Range;
use tract_onnx::tract_core::internal::{
    Datum, DatumExt, EvalContext, EvalOp, IntoTValue, Op, StaticName, TValue, TVec, Tensor, TractResult, TypedFact,
    TypedOp, Validation, as_op, ensure, op_as_typed_op, op_out_of_plan, tvec,
};

/// Most groups of pictures whose sums are taken on their own.
const GROUPS: usize = 4;
/// Fewest pictures of a group: with less work the adding up costs more than the threads save.
const LEAST: usize = 4;

/// Calls `sum` with the pictures of a group and `length` zeros of its own for every group, and adds up the groups.
fn grouped(pictures: usize, length: usize, sum: impl Fn(Range<usize>, &mut [f32]) + Sync) -> Vec<f32> {
    let group = pictures.div_ceil(GROUPS).max(LEAST);
    let of = |first: usize| {
        let mut total = vec![0.0; length];
        sum(first..pictures.min(first + group), &mut total);
        total
    };
    if pictures <= group {
        return of(0);
    }
    let groups = (0..pictures).into_par_iter().step_by(group);
    let sums: Vec<Vec<f32>> = groups.map(of).collect();
    let mut sums = sums.into_iter();
    let mut total = sums.next().unwrap_or_default();
    for sum in sums {
        total.iter_mut().zip(sum).for_each(|(t, s)| *t += s);
    }
    total
}

/// The gradient of what lies before a clip: `g` where `low < y < high`, 0 elsewhere. Inputs: g and y, of one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClipGrad {
    /// The bounds.
    pub clip: Clip,
}

/// The gradient of a convolution's pictures. Inputs: the gradient of the sums, the weights, and, with `gate`, the pictures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FConvGradX {
    /// The convolution.
    pub conv: FConv,
    /// Form of its pictures.
    pub shape: TVec<usize>,
    /// Bounds of the clip that made the pictures: the gradient before it is given, as [`ClipGrad`] gives it.
    pub gate: Option<Clip>,
}

/// The gradient of a convolution's weights, in the order O x I x H x W. Inputs: the pictures and the gradient of the sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FConvGradW {
    /// The convolution.
    pub conv: FConv,
    /// Form of its weights.
    pub shape: TVec<usize>,
}

/// The gradient of a convolution's bias: for each channel the sum over all pixels. Input: the gradient of the sums.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FConvGradB {
    /// Form of the bias.
    pub shape: TVec<usize>,
}

impl EvalOp for ClipGrad {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (g, y) = (values(&inputs[0])?, values(&inputs[1])?);
        let Clip { low, high } = self.clip;
        let gradient = filled(inputs[0].shape(), |to| {
            for ((to, g), y) in to.iter_mut().zip(g).zip(y) {
                // Values that were read before, and one choice after the other: so the compiler makes them in vectors.
                let (g, y) = (*g, *y);
                let above = if low < y { g } else { 0.0 };
                *to = if y < high { above } else { 0.0 };
            }
            Ok(())
        })?;
        Ok(tvec!(gradient.into_tvalue()))
    }
}

impl EvalOp for FConvGradX {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (batch, picture) = split(&self.shape)?;
        let picture = Picture {
            height: picture[0],
            width: picture[1],
            channels: picture[2],
        };
        let count = batch.iter().product::<usize>();
        let (dz, weights) = (values(&inputs[0])?, values(&inputs[1])?);
        let conv = &self.conv;
        let [ky, kx] = conv.window.kernel;
        let terms = ky * kx * picture.channels;
        let weights = match conv.kind {
            Kind::Dense if conv.weights == Weights::Packed => dense::turn_packed(weights, terms, conv.out).into(),
            Kind::Dense => dense::turn(weights, picture.channels, conv.window.kernel),
            Kind::Depthwise => conv.packed(weights, picture.channels),
        };
        let gate = match self.gate {
            Some(clip) => Some((values(&inputs[2])?, clip)),
            None => None,
        };
        let out = conv.window.output(picture).pixels() * conv.out;
        let together = conv.together(count, conv.window.output(picture).pixels());
        let each = |i: usize, dx: &mut [f32]| {
            let some = dx.len() / picture.len();
            let dz = &dz[i * together * out..][..some * out];
            let gate = gate.map(|(y, clip)| (&y[i * together * picture.len()..][..dx.len()], clip));
            let picture = picture.times(some);
            match conv.kind {
                Kind::Dense => {
                    dense::input_gradient(conv.isa, &conv.window, (dz, conv.out), &weights, (dx, picture), gate);
                }
                Kind::Depthwise => {
                    let finish = depthwise::Finish {
                        gate,
                        ..depthwise::Finish::NONE
                    };
                    depthwise::input_gradient(conv.isa, &conv.window, dz, &weights, (dx, picture), &finish);
                }
            }
        };
        let dx = filled(&self.shape, |dx| {
            if picture.is_empty() {
                return Ok(());
            }
            if count <= together {
                each(0, dx);
            } else {
                let parts = dx.par_chunks_mut(together * picture.len()).enumerate();
                parts.for_each(|(i, dx)| each(i, dx));
            }
            Ok(())
        })?;
        Ok(tvec!(dx.into_tvalue()))
    }
}

impl EvalOp for FConvGradW {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (count, picture) = pictures(&inputs[0])?;
        let (x, dz) = (values(&inputs[0])?, values(&inputs[1])?);
        let conv = &self.conv;
        let [ky, kx] = conv.window.kernel;
        let (length, out) = (picture.len(), conv.window.output(picture).pixels() * conv.out);
        let dw = match conv.kind {
            Kind::Dense => {
                let dw = grouped(count, ky * kx * picture.channels * conv.out, |group, dw| {
                    let x = &x[group.start * length..group.end * length];
                    let dz = &dz[group.start * out..group.end * out];
                    dense::weight_gradient(conv.isa, &conv.window, (x, picture), (dz, conv.out), dw);
                });
                dense::turn_back(dw, picture.channels, conv.window.kernel)
            }
            Kind::Depthwise => {
                let dw = grouped(count, super::gemm::packed_len(ky * kx, conv.out), |group, dw| {
                    for i in group {
                        let (x, dz) = (&x[i * length..][..length], &dz[i * out..][..out]);
                        depthwise::weight_gradient(conv.isa, &conv.window, (x, picture), dz, dw);
                    }
                });
                depthwise::unpack(&dw, conv.out, ky * kx)
            }
        };
        Ok(tvec!(Tensor::from_shape(&self.shape, &dw)?.into_tvalue()))
    }
}

impl EvalOp for FConvGradB {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (count, picture) = pictures(&inputs[0])?;
        let dz = values(&inputs[0])?;
        let db = grouped(count, picture.channels, |group, db| {
            let dz = &dz[group.start * picture.len()..group.end * picture.len()];
            for pixel in dz.chunks_exact(picture.channels.max(1)) {
                db.iter_mut().zip(pixel).for_each(|(b, g)| *b += g);
            }
        });
        Ok(tvec!(Tensor::from_shape(&self.shape, &db)?.into_tvalue()))
    }
}

/// What all four share: a name, and f32 of a known form.
macro_rules! operator {
    ($op: ty, $name: literal, $inputs: expr, |$this: ident, $facts: ident| $shape: expr) => {
        impl Op for $op {
            fn name(&self) -> StaticName {
                $name.into()
            }

            fn validation(&self) -> Validation {
                Validation::Rounding
            }

            op_as_typed_op!();
        }

        impl TypedOp for $op {
            fn output_facts(&self, $facts: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
                let $this = self;
                let inputs = $inputs;
                ensure!($facts.len() == inputs, "{} has {inputs} inputs", $name);
                ensure!(
                    $facts.iter().all(|f| f.datum_type == f32::datum_type()),
                    "f32 is needed"
                );
                Ok(tvec!(f32::fact($shape)))
            }

            as_op!();
        }
    };
}

operator!(ClipGrad, "ClipGrad", 2, |_this, facts| facts[0].shape.clone());
operator!(
    FConvGradX,
    "FConvGradX",
    2 + usize::from(this.gate.is_some()),
    |this, facts| this.shape.clone()
);
operator!(FConvGradW, "FConvGradW", 2, |this, facts| this.shape.clone());
operator!(FConvGradB, "FConvGradB", 1, |this, facts| this.shape.clone());
