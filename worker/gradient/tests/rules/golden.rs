//! Operators that the engine runs in f32 only: values and gradients of PyTorch in f64, made by `golden.py` beside this file.
#![allow(clippy::unreadable_literal, clippy::excessive_precision)]

use crate::harness::{Case, gradients_f32};
use fleetune_gradient::nhwc::gemm::Clip;
use fleetune_gradient::nhwc::shape::{Pads, Window};
use fleetune_gradient::nhwc::{FConv, Isa, Kind, Weights};
use tract_onnx::prelude::{Tensor, tensor0, tvec};
use tract_onnx::tract_core::internal::{AxisOp, SpecialOps, ToDim};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{self, Reduce, Reducer, RmsNorm};

/// Inputs, of both signs and on both sides of every corner.
const X: [f64; 12] = [
    -4.5, -2.75, -1.5, -0.625, -0.125, 0.25, 0.875, 1.75, 2.5, 3.5, 0.5, 1.25,
];
/// ∂L/∂y.
const R: [f64; 12] = [0.5, -1.0, 0.75, 2.0, -0.25, 1.5, -0.5, 1.0, -1.25, 0.625, 1.125, -0.875];

/// Operator, L = Σ r·y, ∂L/∂x.
pub const GOLDEN: &[(&str, f64, &[f64; 12])] = &[
    (
        "Sigmoid",
        1.47627556727,
        &[
            0.00543311486111,
            -0.0564762446449,
            0.111859839053,
            0.454183409884,
            -0.0622564937534,
            0.369201124106,
            -0.103826261159,
            0.126129225187,
            -0.0876296456814,
            0.0177831399248,
            0.264379176227,
            -0.151466688618,
        ],
    ),
    (
        "Erf",
        -1.27342549301,
        &[
            9.05652947954e-10,
            -0.000586277247094,
            0.0891977169177,
            1.52699907152,
            -0.277721317399,
            1.59002119406,
            -0.262372522645,
            0.0527749959302,
            -0.00272285528794,
            3.37464173587e-06,
            0.988630401302,
            -0.206955982141,
        ],
    ),
    (
        "PowConst",
        16.0016794005,
        &[
            -11.9324269325,
            11.4008977168,
            -3.44459495079,
            -2.47052942201,
            0.0276213586401,
            0.46875,
            -1.0231094417,
            5.78758099295,
            -12.35264711,
            10.231094417,
            0.994368911044,
            -3.05712418799,
        ],
    ),
    (
        "GeluExact",
        -0.342853586193,
        &[
            -3.42645809282e-05,
            0.0220275336443,
            -0.0956018941725,
            0.121769847409,
            -0.100195516075,
            1.04306003233,
            -0.523630585364,
            1.11092615108,
            -1.29701385739,
            0.626763600221,
            0.975932015238,
            -0.982328885186,
        ],
    ),
    (
        "GeluApproximate",
        -0.343857130644,
        &[
            -1.46611352213e-05,
            0.0219489215935,
            -0.0957830948636,
            0.122183925227,
            -0.100196148459,
            1.04303114273,
            -0.523458940188,
            1.11159698139,
            -1.29743947027,
            0.62651415235,
            0.975791141476,
            -0.982181053218,
        ],
    ),
    (
        "Silu",
        -0.357517159271,
        &[
            -0.0189555455597,
            0.0952230225994,
            -0.0309706157244,
            0.41342563949,
            -0.109415594937,
            0.935565032355,
            -0.443740492433,
            1.07267894604,
            -1.37425138918,
            0.668920845517,
            0.832456335715,
            -0.869470739301,
        ],
    ),
    (
        "HardSwish",
        -0.464192708333,
        &[
            0.0,
            0.416666666667,
            0.0,
            0.583333333333,
            -0.114583333333,
            0.875,
            -0.395833333333,
            1.08333333333,
            -1.66666666667,
            0.625,
            0.75,
            -0.802083333333,
        ],
    ),
    (
        "LeakyRelu",
        -0.01171875,
        &[
            0.0625, -0.125, 0.09375, 0.25, -0.03125, 1.5, -0.5, 1.0, -1.25, 0.625, 1.125, -0.875,
        ],
    ),
    (
        "RoundHalfToEven",
        -3.5,
        &[0.5, -1.0, 0.75, 2.0, -0.25, 1.5, -0.5, 1.0, -1.25, 0.625, 1.125, -0.875],
    ),
    (
        "FConv",
        9.421875,
        &[
            0.75, 0.0, -0.75, -0.75, -0.75, 0.0, -0.375, -1.125, -0.75, 1.875, 0.375, 1.125,
        ],
    ),
    (
        "Reduce<MeanOfSquares>",
        6.638671875,
        &[
            -1.125, -0.6875, -0.375, -0.15625, 0.0625, -0.125, -0.4375, -0.875, 0.9375, 1.3125, 0.1875, 0.46875,
        ],
    ),
    (
        "RmsNorm",
        0.407931681672,
        &[
            0.080796477747,
            -0.423785586142,
            0.238344615421,
            0.710896290351,
            -0.197325685602,
            1.40657504142,
            -0.895548458776,
            0.232750422884,
            -0.474481704788,
            0.38965494841,
            0.515273274108,
            -0.348180782406,
        ],
    ),
];

fn case(operator: &str) -> Case {
    let x = Tensor::from_shape(&[12], &X).unwrap();
    let pointwise = |op: ElementWiseOp| Case::new(vec![x.clone()], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]));
    let rows = |op: Box<dyn tract_onnx::tract_core::ops::TypedOp>| {
        Case::new(vec![x.clone()], move |m, x| {
            let split = AxisOp::Reshape(0, tvec![12.to_dim()], tvec![3.to_dim(), 4.to_dim()]);
            let x = m.wire_node("rows", split, x)?;
            Ok(m.wire_node("y", op.clone(), &x)?[0])
        })
    };
    match operator {
        "Sigmoid" => pointwise(nn::sigmoid()),
        "Erf" => pointwise(math::erf()),
        "GeluExact" => pointwise(nn::gelu_exact::gelu_exact()),
        "GeluApproximate" => pointwise(nn::gelu_approximate::gelu_approximate(false)),
        "Silu" => pointwise(nn::silu::silu()),
        "HardSwish" => pointwise(nn::hard_swish()),
        "LeakyRelu" => pointwise(nn::leaky_relu(0.125)),
        "PowConst" => Case::new(vec![x], |m, x| {
            let x = m.wire_node("abs", math::abs(), x)?;
            Ok(m.wire_node("y", math::pow_const(2.5), &x)?[0])
        }),
        "RoundHalfToEven" => Case::new(vec![x], |m, x| {
            let step = m.wire_node("step", math::round_half_to_even(), x)?[0];
            Ok(m.wire_node("y", math::add(), &[x[0], step])?[0])
        }),
        "FConv" => convolution(x),
        "Reduce<MeanOfSquares>" => rows(Box::new(Reduce::new(tvec![1], Reducer::MeanOfSquares))),
        "RmsNorm" => rows(Box::new(RmsNorm {
            axis: 1,
            eps: tensor0(1e-5f32).into(),
        })),
        other => panic!("{other} has no case"),
    }
}

/// A bounded 3x3 convolution of a picture of 2 x 3 pixels and two channels, which come last.
fn convolution(x: Tensor) -> Case {
    Case::new(vec![x], |m, x| {
        let op = FConv {
            window: Window {
                kernel: [3, 3],
                stride: [1, 1],
                pads: Pads {
                    top: 1,
                    left: 1,
                    bottom: 1,
                    right: 1,
                },
            },
            kind: Kind::Dense,
            out: 2,
            clip: Clip { low: 0.0, high: 4.0 },
            residual: false,
            weights: Weights::Oihw,
            isa: Isa::native(),
        };
        let weights: Vec<f32> = (0..36_u8).map(|i| (f32::from(i % 7) - 3.0) / 4.0).collect();
        let weights = m.add_const("weights", Tensor::from_shape(&[2, 2, 3, 3], &weights)?)?;
        let bias = m.add_const("bias", Tensor::from_shape(&[2], &[0.25_f32, -0.5])?)?;
        let shape = [1, 2, 3, 2].iter().map(ToDim::to_dim).collect();
        let x = m.wire_node("picture", AxisOp::Reshape(0, tvec![12.to_dim()], shape), x)?[0];
        Ok(m.wire_node("y", op, &[x, weights, bias])?[0])
    })
}

#[test]
fn rules_agree_with_pytorch() {
    for (operator, loss, gradient) in GOLDEN {
        let case = case(operator);
        let count = if *operator == "Reduce<MeanOfSquares>" { 3 } else { 12 };
        let (have, gradients) = gradients_f32(operator, &case, &R[..count]);
        assert!(
            (have - loss).abs() < 1e-5 * loss.abs(),
            "{operator}: loss {have}, PyTorch {loss}"
        );
        for (i, (have, want)) in gradients[0].iter().zip(*gradient).enumerate() {
            assert!(
                (have - want).abs() < 2e-6 * want.abs().max(1.0),
                "{operator}: ∂L/∂x[{i}] = {have}, PyTorch {want}"
            );
        }
    }
}
