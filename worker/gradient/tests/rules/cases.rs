//! One or more cases for each operator that the engine runs in f64, over random shapes.

use crate::harness::{Case, Noise};
use crate::windows;
use proptest::prelude::*;
use tract_onnx::prelude::{DatumType, Tensor, tvec};
use tract_onnx::tract_core::internal::{AxisOp, IntoShape, SpecialOps, ToDim};
use tract_onnx::tract_core::ops::array::{Gather, MultiBroadcastTo, Pad, PadMode, Slice, Tile, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_core::ops::downsample::Downsample;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::identity::Identity;
use tract_onnx::tract_core::ops::logic::Iff;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{NearestUpsample, Reduce, Reducer, Softmax, SoftmaxKind};

/// A shape of rank 1 to 4, and which of its axes have length 1 in the first and second of two operands.
#[derive(Clone, Debug)]
pub struct Shape {
    dims: Vec<usize>,
    single: [Vec<bool>; 2],
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            dims: vec![2, 3],
            single: [vec![false, true], vec![false, false]],
        }
    }
}

impl Shape {
    fn operand(&self, i: usize) -> Vec<usize> {
        self.dims
            .iter()
            .zip(&self.single[i])
            .map(|(d, s)| if *s { 1 } else { *d })
            .collect()
    }
}

pub fn shapes() -> impl Strategy<Value = Shape> {
    prop::collection::vec((1..5usize, any::<bool>(), any::<bool>()), 1..5).prop_map(|axes| Shape {
        dims: axes.iter().map(|a| a.0).collect(),
        single: [axes.iter().map(|a| a.1).collect(), axes.iter().map(|a| a.2).collect()],
    })
}

fn unary(op: ElementWiseOp, x: Tensor) -> Vec<Case> {
    vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
}

fn binary(op: TypedBinOp, a: Tensor, b: Tensor) -> Case {
    Case::new(vec![a, b], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))
}

#[allow(clippy::too_many_lines)] // One line or two for each operator.
/// The cases of `operator`; none where it is checked by golden values or not known here.
pub fn cases(operator: &str, shape: &Shape, seed: u64) -> Vec<Case> {
    let mut n = Noise(seed ^ 0x5eed);
    let dims = &shape.dims;
    let (a, b) = (n.tensor(&shape.operand(0)), n.tensor(&shape.operand(1)));
    let x = n.tensor(dims);
    let positive = n.map(dims, |v| 1.0 + 0.5 * v);
    let rank = dims.len();
    let axis = n.below(rank);
    let two = |op: TypedBinOp| vec![binary(op, a.clone(), b.clone())];
    match operator {
        "Add" => two(math::add()),
        "Sub" => two(math::sub()),
        "SubF" => two(math::subf()),
        "Mul" => two(math::mul()),
        "Div" => vec![binary(math::div(), a, n.map(&shape.operand(1), |v| 1.5 + v))],
        "Pow" => vec![binary(math::pow(), n.map(&shape.operand(0), |v| 1.5 + v), b).frozen(1)],
        "Max" => extremum(&math::max(), shape, &mut n),
        "Min" => extremum(&math::min(), shape, &mut n),
        "Abs" => unary(math::abs(), n.apart(dims)),
        "Neg" => unary(math::neg(), x),
        "Square" => unary(math::square(), x),
        "Sqrt" => unary(math::sqrt(), positive),
        "Rsqrt" => unary(math::rsqrt(), positive),
        "Recip" => unary(math::recip(), positive),
        "Exp" => unary(math::exp(), x),
        "Ln" => unary(math::ln(), positive),
        "Sin" => unary(math::sin(), x),
        "Cos" => unary(math::cos(), x),
        "Tanh" => unary(math::tanh(), x),
        "Softplus" => unary(fleetune_gradient::ops::softplus(), n.map(dims, |v| 30.0 * v)),
        "Floor" => steps(math::floor(), dims, &mut n),
        "Ceil" => steps(math::ceil(), dims, &mut n),
        "Round" => steps(math::round(), dims, &mut n),
        "Sign" => unary(math::sign(), n.apart(dims)),
        "Identity" => vec![Case::new(vec![x], |m, x| Ok(m.wire_node("y", Identity, x)?[0]))],
        "Cast" => vec![Case::new(vec![x], |m, x| {
            let wide = m.wire_node("y", cast(DatumType::F64), x)?[0];
            let dt = m.outlet_fact(x[0])?.datum_type;
            Ok(m.wire_node("back", cast(dt), &[wide])?[0])
        })],
        "EinSum" => products(&mut n),
        "Conv" => windows::convolutions(&mut n),
        "Deconv" => windows::transposed(&mut n),
        "MaxPool" => windows::max_pools(&mut n),
        "SumPool" => windows::sum_pools(&mut n),
        "Reduce<Sum>" => reduction(Reducer::Sum, x, &mut n),
        "Reduce<Max>" => reduction(Reducer::Max, n.apart(dims), &mut n),
        "Reduce<Min>" => reduction(Reducer::Min, n.apart(dims), &mut n),
        "Softmax" => softmax(SoftmaxKind::Softmax, x, axis),
        "LogSoftmax" => softmax(SoftmaxKind::LogSoftmax, x, axis),
        "AxisOp" => axis_ops(&mut n),
        "IntoShape" => {
            let count: usize = dims.iter().product();
            let op = IntoShape {
                mapping: "a->a".parse().unwrap(),
                len: count,
                dims: tvec![count],
                strides: tvec![1],
            };
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "MultiBroadcastTo" => {
            let to: Vec<_> = [2].iter().chain(dims).map(ToDim::to_dim).collect();
            vec![Case::new(vec![a], move |m, x| {
                let op = MultiBroadcastTo::new(to.clone().into());
                Ok(m.wire_node("y", op, x)?[0])
            })]
        }
        "Tile" => {
            let multipliers = (0..rank).map(|_| (1 + n.below(3)).to_dim()).collect();
            let op = Tile::new(multipliers);
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "NearestUpsample" => {
            let op = NearestUpsample {
                scales: (0..rank).map(|_| 1 + n.below(3)).collect(),
            };
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "Downsample" => {
            let length = dims[axis];
            // The engine takes stride 1 for the identity whatever its start is.
            let op = Downsample::new(axis, 2 + n.below(2).cast_signed(), n.below(length));
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "Slice" => {
            let start = n.below(dims[axis]);
            let end = start + 1 + n.below(dims[axis] - start);
            let op = Slice::new(axis, start, end);
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "Pad" => {
            let pads = (0..rank).map(|_| (n.below(3), n.below(3))).collect();
            let op = Pad::new(pads, PadMode::default());
            vec![Case::new(vec![x], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0]))]
        }
        "Concat" => {
            let mut other = dims.clone();
            other[axis] = 1 + n.below(3);
            let parts = vec![x, n.tensor(&other), n.tensor(dims)];
            vec![Case::new(parts, move |m, x| Ok(m.wire_node("y", TypedConcat::new(axis), x)?[0])).frozen(n.below(3))]
        }
        "Gather" => {
            let length = dims[axis];
            let indices: Vec<i64> = (0..4).map(|_| n.below(2 * length) as i64 - length as i64).collect();
            let indices = Tensor::from_shape(&[2, 2], &indices).unwrap();
            vec![Case::new(vec![x, indices], move |m, x| {
                Ok(m.wire_node("y", Gather::new(axis), x)?[0])
            })]
        }
        "Iff" => {
            let condition: Vec<bool> = (0..dims.iter().product()).map(|_| n.value() > 0.0).collect();
            let condition = Tensor::from_shape(dims, &condition).unwrap();
            vec![Case::new(
                vec![condition, a, b],
                |m, x| Ok(m.wire_node("y", Iff, x)?[0]),
            )]
        }
        _ => vec![],
    }
}

/// Both operands trained, and one against a frozen one.
fn extremum(op: &TypedBinOp, shape: &Shape, n: &mut Noise) -> Vec<Case> {
    let a = n.apart(&shape.operand(0));
    // Halfway between the values of a: never equal, never nearer than a step.
    let b = n.apart(&shape.operand(1));
    let b = b.cast_to::<f64>().unwrap().into_owned();
    let shifted: Vec<f64> = b.view().as_slice::<f64>().unwrap().iter().map(|v| v + 0.025).collect();
    let b = Tensor::from_shape(b.shape(), &shifted).unwrap();
    vec![
        binary(op.clone(), a.clone(), b.clone()),
        binary(op.clone(), a.clone(), b.clone()).frozen(0),
        binary(op.clone(), a, b).frozen(1),
    ]
}

/// A step function beside the identity, whose gradient alone is left.
fn steps(op: ElementWiseOp, dims: &[usize], n: &mut Noise) -> Vec<Case> {
    vec![Case::new(vec![n.apart(dims)], move |m, x| {
        let step = m.wire_node("step", op.clone(), x)?[0];
        Ok(m.wire_node("y", math::add(), &[x[0], step])?[0])
    })]
}

fn reduction(reducer: Reducer, x: Tensor, n: &mut Noise) -> Vec<Case> {
    let mut axes: Vec<usize> = (0..x.rank()).filter(|_| n.value() > 0.0).collect();
    if axes.is_empty() {
        axes.push(0);
    }
    vec![Case::new(vec![x], move |m, x| {
        let op = Reduce::new(axes.iter().copied().collect(), reducer);
        Ok(m.wire_node("y", op, x)?[0])
    })]
}

fn softmax(kind: SoftmaxKind, x: Tensor, axis: usize) -> Vec<Case> {
    vec![Case::new(vec![x], move |m, x| {
        Ok(m.wire_node("y", Softmax::new(tvec![axis], None, kind), x)?[0])
    })]
}

/// Matrix products of all layouts, attention, operands of length 1, axes that one operand alone has.
fn products(n: &mut Noise) -> Vec<Case> {
    let sizes: Vec<(char, usize)> = "abkmn".chars().map(|c| (c, 1 + n.below(4))).collect();
    let shape = |axes: &str, n: &mut Noise, may_be_single: &str| -> Vec<usize> {
        axes.chars()
            .map(|c| {
                let single = may_be_single.contains(c) && n.value() > 0.0;
                if single {
                    1
                } else {
                    sizes.iter().find(|s| s.0 == c).unwrap().1
                }
            })
            .collect()
    };
    let (m, k, n_out) = (2 + n.below(3), 1 + n.below(4), 1 + n.below(4));
    // A sum behind the product: its gradient is repeated along an axis that one operand alone has.
    let summed = [vec![0], vec![1], vec![0, 1]].map(|axes| {
        let inputs = vec![n.tensor(&[m, k]), n.tensor(&[k, n_out])];
        Case::new(inputs, move |model, x| {
            let dt = model.outlet_fact(x[0])?.datum_type;
            let y = model.wire_node("product", EinSum::new("mk,kn->mn".parse()?, dt), x)?;
            let sum = Reduce::new(axes.iter().copied().collect(), Reducer::Sum);
            Ok(model.wire_node("y", sum, &y)?[0])
        })
    });
    // Expression, and the axes along which the first or second operand may have length 1.
    let expressions = [
        ("mk,kn->mn", "", ""),
        ("km,nk->nm", "", ""),
        ("abmk,abnk->abmn", "b", "a"),
        ("amk,kn->amn", "", ""),
        ("bmka,kn->bmn", "", ""),
        ("mk,k->m", "", ""),
        ("m,n->mn", "", ""),
        ("abm,abm->abm", "m", "b"),
        ("amk,ak->m", "", ""),
    ];
    expressions
        .into_iter()
        .map(|(expression, first, second)| {
            let (left, _) = expression.split_once("->").unwrap();
            let (l, r) = left.split_once(',').unwrap();
            let (l, r) = (shape(l, n, first), shape(r, n, second));
            let inputs = vec![n.tensor(&l), n.tensor(&r)];
            Case::new(inputs, move |m, x| {
                let dt = m.outlet_fact(x[0])?.datum_type;
                Ok(m.wire_node("y", EinSum::new(expression.parse()?, dt), x)?[0])
            })
        })
        .chain(summed)
        .collect()
}

fn axis_ops(n: &mut Noise) -> Vec<Case> {
    let x = n.tensor(&[2, 1, 6, 3]);
    let reshape = AxisOp::Reshape(2, tvec![6.to_dim(), 3.to_dim()], tvec![2.to_dim(), 9.to_dim()]);
    [
        AxisOp::Add(1),
        AxisOp::Rm(1),
        AxisOp::Move(0, 3),
        AxisOp::Move(3, 1),
        reshape,
    ]
    .into_iter()
    .map(|op| Case::new(vec![x.clone()], move |m, x| Ok(m.wire_node("y", op.clone(), x)?[0])))
    .collect()
}
