//! The slopes of functions of one number.

use super::kernel::{Kernel, Real, changed, operator, values};
use crate::prelude::*;
use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};
use tract_onnx::tract_core::internal::ElementWiseMiniOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;

/// Values that are worked on at a time, few enough to stay in cache.
const CHUNK: usize = 1024;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pointwise {
    /// erf x
    Erf,
    /// x·Φ(x)
    Gelu,
    /// The tanh form of GELU with xⁿ inside.
    GeluTanh {
        /// n
        power: i32,
    },
    /// x·σ(x)
    Silu,
    /// x·min(max(x/6 + 1/2, 0), 1)
    HardSwish,
    /// x for x > 0, else α·x
    LeakyRelu {
        /// α
        alpha: f64,
    },
    /// xᶜ
    Power {
        /// c
        exponent: f64,
    },
    /// ln(1 + eˣ)
    Softplus,
}

impl Pointwise {
    /// Leaky ReLU with the slope `alpha` for negative numbers.
    pub fn leaky(alpha: f32) -> Self {
        Self::LeakyRelu { alpha: alpha.into() }
    }

    /// A power with a constant exponent.
    pub fn power(exponent: f32) -> Self {
        Self::Power {
            exponent: exponent.into(),
        }
    }

    /// The derivative at each value of `x`, into `slope` of the same length.
    fn slopes<T: Real>(self, x: &[T], slope: &mut [T]) -> TractResult<()> {
        let each = |slope: &mut [T], f: &dyn Fn(T) -> T| slope.iter_mut().zip(x).for_each(|(s, x)| *s = f(*x));
        let c = T::of;
        match self {
            Self::Erf => each(slope, &|x| c(FRAC_2_SQRT_PI) * (-x * x).exp()),
            Self::Gelu => {
                each(slope, &|x| x * c(FRAC_1_SQRT_2));
                T::erf(slope)?;
                let mut bell: [T; CHUNK] = [T::zero(); CHUNK];
                let bell = &mut bell[..x.len()];
                bell.iter_mut().zip(x).for_each(|(b, x)| *b = c(-0.5) * *x * *x);
                T::exponential(bell)?;
                let density = c(FRAC_1_SQRT_2 * FRAC_2_SQRT_PI / 2.0);
                for ((s, x), bell) in slope.iter_mut().zip(x).zip(bell) {
                    *s = c(0.5) * (T::one() + *s) + *x * density * *bell;
                }
            }
            Self::GeluTanh { power } => each(slope, &|x| {
                let (outer, inner) = (c((2.0 / PI).sqrt()), c(0.044_715));
                let t = (outer * (x + inner * x.powi(power))).tanh();
                let speed = outer * (T::one() + inner * c(power.into()) * x.powi(power - 1));
                c(0.5) * (T::one() + t) + c(0.5) * x * (T::one() - t * t) * speed
            }),
            Self::Silu => {
                each(slope, &|x| -x.abs());
                T::exponential(slope)?;
                for (slope, x) in slope.iter_mut().zip(x) {
                    let s = sigmoid(*x, *slope);
                    *slope = s * (T::one() + *x * (T::one() - s));
                }
            }
            Self::HardSwish => each(slope, &|x| {
                if x <= c(-3.0) {
                    T::zero()
                } else if x >= c(3.0) {
                    T::one()
                } else {
                    x / c(3.0) + c(0.5)
                }
            }),
            Self::LeakyRelu { alpha } => each(slope, &|x| if x > T::zero() { T::one() } else { c(alpha) }),
            Self::Power { exponent } => each(slope, &|x| c(exponent) * x.powf(c(exponent - 1.0))),
            Self::Softplus => each(slope, &|x| sigmoid(x, (-x.abs()).exp())),
        }
        Ok(())
    }
}

/// 1/(1 + e⁻ˣ) without overflow, from x and e = e^−|x|.
fn sigmoid<T: Real>(x: T, e: T) -> T {
    let small = e / (T::one() + e);
    if x >= T::zero() { T::one() - small } else { small }
}

/// Inputs g and x of one shape: gives g·f′(x).
#[derive(Clone, Debug, PartialEq)]
pub struct PointwiseGrad {
    function: Pointwise,
}

impl Eq for PointwiseGrad {}

impl PointwiseGrad {
    /// The gradient of `function`.
    pub fn new(function: Pointwise) -> Self {
        Self { function }
    }
}

impl Kernel for PointwiseGrad {
    fn shape(&self, inputs: &[&[TDim]]) -> TractResult<TVec<TDim>> {
        ensure!(inputs[0] == inputs[1], "g and x differ in shape");
        Ok(inputs[0].into())
    }

    fn run<T: Real>(&self, mut inputs: TVec<TValue>) -> TractResult<Tensor> {
        let g = inputs.remove(0);
        let x = values::<T>(&inputs[0])?;
        let mut slope = vec![T::zero(); CHUNK.min(x.len())];
        changed::<T>(g, |g| {
            for (g, x) in g.chunks_mut(CHUNK).zip(x.chunks(CHUNK)) {
                let slope = &mut slope[..x.len()];
                self.function.slopes(x, slope)?;
                g.iter_mut().zip(slope).for_each(|(g, s)| *g = *g * *s);
            }
            Ok(())
        })
    }
}

operator!(PointwiseGrad, "PointwiseGrad");

/// ln(1 + eˣ) without overflow, which the loss of a 0/1 label is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Softplus;

impl ElementWiseMiniOp for Softplus {
    fn name(&self) -> String {
        "Softplus".to_owned()
    }

    fn eval_in_place(&self, t: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        fn run<T: Real>(t: &mut Tensor) -> TractResult<()> {
            for x in t.try_as_plain_ram_mut()?.as_slice_mut::<T>()? {
                *x = x.max(T::zero()) + (-x.abs()).exp().ln_1p();
            }
            Ok(())
        }
        match t.datum_type() {
            DatumType::F32 => run::<f32>(t),
            DatumType::F64 => run::<f64>(t),
            other => bail!("Softplus works on f32 and f64, not on {other:?}"),
        }
    }
}

/// The operator of [`Softplus`].
pub fn softplus() -> ElementWiseOp {
    ElementWiseOp(Box::new(Softplus), None)
}
