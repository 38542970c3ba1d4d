//! The channels-last convolution as an operator of the typed graph.

use super::dense;
use super::depthwise;
use super::gemm::Clip;
use super::isa::Isa;
use super::output::filled;
use super::shape::{Picture, Window};
use rayon::prelude::*;
use std::borrow::Cow;
use tract_onnx::tract_core::internal::{
    Cost, Datum, DatumExt, DimLike, EvalContext, EvalOp, IntoTValue, Op, StaticName, TDim, TValue, TVec, Tensor, ToDim,
    TractResult, TypedFact, TypedOp, Validation, as_op, ensure, op_as_typed_op, op_out_of_plan, tvec,
};

/// Pixels of small pictures that a product takes together.
const PIXELS: usize = 96;

/// Which channels a result's channel is summed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// All of them.
    Dense,
    /// The one of the same number.
    Depthwise,
}

/// How the weights come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Weights {
    /// As [`dense::pack`] or [`depthwise::pack`] writes them: constants, packed once.
    Packed,
    /// O x I x H x W as in ONNX, packed at each call: weights that are trained.
    Oihw,
}

/// A 2-D convolution of f32 pictures with channels last, H x W x C or N x H x W x C. Inputs: the pictures, the weights, a
/// bias of one value for each channel out, and, with `residual`, pictures of the form of the result that are added before
/// the clip. Pictures of a batch are spread over the threads of the pool that calls; each is computed alone, so their
/// number changes no bit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FConv {
    /// The window.
    pub window: Window,
    /// Which channels are summed.
    pub kind: Kind,
    /// Channels of the result.
    pub out: usize,
    /// Bounds of the result.
    pub clip: Clip,
    /// Whether there is a fourth input.
    pub residual: bool,
    /// How the weights come.
    pub weights: Weights,
    /// The instructions to use.
    pub isa: Isa,
}

impl FConv {
    /// The weights, packed.
    pub(super) fn packed<'a>(&self, weights: &'a [f32], channels: usize) -> Cow<'a, [f32]> {
        let kernel = self.window.kernel;
        match (self.weights, self.kind) {
            (Weights::Packed, _) => Cow::Borrowed(weights),
            (Weights::Oihw, Kind::Dense) => dense::pack(weights, self.out, channels, kernel).into(),
            (Weights::Oihw, Kind::Depthwise) => {
                let taps = kernel[0] * kernel[1];
                depthwise::pack(channels, taps, |c, t| weights[c * taps + t]).into()
            }
        }
    }

    /// Pictures that are taken as one, of `count` with so many pixels: a 1x1 convolution knows no borders, and the product
    /// of many rows is faster. There is still work for each thread, and no value depends on it.
    pub(super) fn together(&self, count: usize, pixels: usize) -> usize {
        match self.kind {
            Kind::Dense if self.window.is_pointwise() => {
                let most = count.div_ceil(rayon::current_num_threads());
                (PIXELS / pixels.max(1)).clamp(1, most.max(1))
            }
            _ => 1,
        }
    }

    /// Computes one picture, or some rows of one with `window` as it is for them. Operands are packed weights, bias and
    /// residual.
    pub(super) fn picture(
        &self,
        window: &Window,
        x: (&[f32], Picture),
        (weights, bias, residual): (&[f32], &[f32], Option<&[f32]>),
        y: &mut [f32],
    ) {
        match self.kind {
            Kind::Dense => {
                let finish = dense::Finish {
                    bias: Some(bias),
                    residual,
                    clip: self.clip,
                };
                dense::forward(self.isa, window, x, weights, (y, self.out), &finish);
            }
            Kind::Depthwise => {
                let finish = depthwise::Finish {
                    bias: Some(bias),
                    residual,
                    clip: self.clip,
                    gate: None,
                };
                depthwise::forward(self.isa, window, x, weights, y, &finish);
            }
        }
    }

    /// Form of the result of pictures of the form `shape`.
    fn shape(&self, shape: &[TDim]) -> TractResult<TVec<TDim>> {
        let (batch, picture) = split(shape)?;
        let places = self.window.output(Picture {
            height: picture[0].to_usize()?,
            width: picture[1].to_usize()?,
            channels: picture[2].to_usize()?,
        });
        let mut out: TVec<TDim> = batch.into();
        out.extend([places.height.to_dim(), places.width.to_dim(), self.out.to_dim()]);
        Ok(out)
    }
}

/// The batch's dimensions, none or one, and those of a picture.
pub(super) fn split<D>(shape: &[D]) -> TractResult<(&[D], &[D])> {
    ensure!(
        shape.len() == 3 || shape.len() == 4,
        "pictures have three dimensions, a batch of them four"
    );
    Ok(shape.split_at(shape.len() - 3))
}

/// Number of pictures in a tensor, and the form of one.
pub(super) fn pictures(tensor: &Tensor) -> TractResult<(usize, Picture)> {
    let (batch, picture) = split(tensor.shape())?;
    Ok((
        batch.iter().product(),
        Picture {
            height: picture[0],
            width: picture[1],
            channels: picture[2],
        },
    ))
}

/// The values of a tensor of f32.
pub(super) fn values(tensor: &Tensor) -> TractResult<&[f32]> {
    tensor.try_as_plain_ram()?.as_slice()
}

impl Op for FConv {
    fn name(&self) -> StaticName {
        "FConv".into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!(
            "{:?} {:?} to {} {:?}",
            self.kind, self.window, self.out, self.clip
        )])
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl EvalOp for FConv {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (count, picture) = pictures(&inputs[0])?;
        let places = self.window.output(picture);
        let (length, out) = (picture.len(), places.pixels() * self.out);
        let x = values(&inputs[0])?;
        let weights = self.packed(values(&inputs[1])?, picture.channels);
        let bias = values(&inputs[2])?;
        let residual = if self.residual { Some(values(&inputs[3])?) } else { None };
        let together = self.together(count, places.pixels());
        let each = |i: usize, y: &mut [f32]| {
            let some = y.len() / out;
            let x = (&x[i * together * length..][..some * length], picture.times(some));
            let residual = residual.map(|r| &r[i * together * out..][..y.len()]);
            self.picture(&self.window, x, (&weights, bias, residual), y);
        };
        let mut shape: TVec<usize> = split(inputs[0].shape())?.0.into();
        shape.extend([places.height, places.width, self.out]);
        let y = filled(&shape, |y| {
            if out == 0 || y.is_empty() {
                return Ok(());
            }
            if count <= together {
                each(0, y);
            } else {
                let parts = y.par_chunks_mut(together * out).enumerate();
                parts.for_each(|(i, y)| each(i, y));
            }
            Ok(())
        })?;
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for FConv {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(
            inputs.len() == 3 + usize::from(self.residual),
            "a convolution has pictures, weights, bias"
        );
        ensure!(
            inputs.iter().all(|i| i.datum_type == f32::datum_type()),
            "f32 is needed"
        );
        let shape = self.shape(&inputs[0].shape)?;
        let channels = inputs[0].shape[inputs[0].rank() - 1].to_usize()?;
        ensure!(
            self.kind == Kind::Dense || channels == self.out,
            "channels stay as they are"
        );
        ensure!(
            inputs[2].shape.volume() == self.out.to_dim(),
            "the bias has a value for each channel"
        );
        let [ky, kx] = self.window.kernel;
        let weights = match (self.weights, self.kind) {
            (Weights::Oihw, Kind::Dense) => self.out * channels * ky * kx,
            (Weights::Oihw, Kind::Depthwise) => channels * ky * kx,
            (Weights::Packed, Kind::Dense) => super::gemm::packed_len(ky * kx * channels, self.out),
            (Weights::Packed, Kind::Depthwise) => super::gemm::packed_len(ky * kx, channels),
        };
        ensure!(
            inputs[1].shape.volume() == weights.to_dim(),
            "the weights have {weights} values"
        );
        if self.residual {
            ensure!(*inputs[3].shape == *shape, "what is added has the form of the result");
        }
        Ok(tvec!(f32::fact(shape)))
    }

    fn cost(&self, inputs: &[&TypedFact]) -> TractResult<TVec<(Cost, TDim)>> {
        let places = self.shape(&inputs[0].shape)?.iter().product::<TDim>();
        let [ky, kx] = self.window.kernel;
        let channels = match self.kind {
            Kind::Dense => inputs[0].shape[inputs[0].rank() - 1].clone(),
            Kind::Depthwise => 1.to_dim(),
        };
        Ok(tvec!((Cost::FMA(f32::datum_type()), places * channels * ky * kx)))
    }

    as_op!();
}
