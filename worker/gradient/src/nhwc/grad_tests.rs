//! The rule of the convolution against its gradient by definition, summed in f64. The kernels have f32 alone, so there are
//! no differences in f64 to compare with.

use super::depthwise::tests::joined;
use super::gemm::Clip;
use super::gemm::tests::noise;
use super::op::values;
use super::shape::{Pads, Picture, Window};
use super::*;
use crate::backward::differentiate;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::math::mul;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};

/// One convolution over a batch.
struct Case {
    kind: Kind,
    window: Window,
    picture: Picture,
    batch: usize,
    out: usize,
    clip: Clip,
    residual: bool,
}

impl Case {
    fn places(&self) -> Picture {
        Picture {
            channels: self.out,
            ..self.window.output(self.picture)
        }
    }

    /// Channels in that a channel out reads.
    fn inner(&self) -> usize {
        if self.kind == Kind::Dense {
            self.picture.channels
        } else {
            1
        }
    }

    fn taps(&self) -> usize {
        self.window.kernel[0] * self.window.kernel[1]
    }

    /// Values of x, w, b, r and the weights of the result's values in the loss.
    fn tensors(&self) -> [Vec<f32>; 5] {
        let places = self.places().len() * self.batch;
        [
            noise(self.picture.len() * self.batch, 1),
            noise(self.out * self.inner() * self.taps(), 2),
            noise(self.out, 3),
            noise(if self.residual { places } else { 0 }, 4),
            noise(places, 5),
        ]
    }

    /// Gradients of L = Σ g·clip(W∗x + b + r) in x, W, b and r.
    fn want(&self) -> [Vec<f64>; 4] {
        let [x, w, b, r, g] = self.tensors();
        let (places, taps, inner) = (self.places(), self.taps(), self.inner());
        let mut gradients = [x.len(), w.len(), b.len(), r.len()].map(|n| vec![0.0; n]);
        for image in 0..self.batch {
            let (xs, ys) = (image * self.picture.len(), image * places.len());
            // Number of a weight, of a pixel's value in, and of a pixel's value out, for every product of the sum.
            let mut products = Vec::new();
            joined(&self.window, self.picture, |out, at, tap| {
                for o in 0..self.out {
                    for i in 0..inner {
                        let channel = if self.kind == Kind::Dense { i } else { o };
                        let from = xs + at * self.picture.channels + channel;
                        products.push(((o * inner + i) * taps + tap, from, ys + out * self.out + o));
                    }
                }
            });
            let mut z: Vec<f64> = (0..places.len())
                .map(|i| f64::from(b[i % self.out]) + r.get(ys + i).map_or(0.0, |r| f64::from(*r)))
                .collect();
            for &(weight, from, to) in &products {
                z[to - ys] += f64::from(w[weight]) * f64::from(x[from]);
            }
            let dz: Vec<f64> = z
                .iter()
                .zip(&g[ys..])
                .map(|(z, g)| {
                    let inside = f64::from(self.clip.low) < *z && *z < f64::from(self.clip.high);
                    if inside { f64::from(*g) } else { 0.0 }
                })
                .collect();
            for &(weight, from, to) in &products {
                gradients[0][from] += f64::from(w[weight]) * dz[to - ys];
                gradients[1][weight] += f64::from(x[from]) * dz[to - ys];
            }
            for (i, dz) in dz.iter().enumerate() {
                gradients[2][i % self.out] += dz;
                if self.residual {
                    gradients[3][ys + i] += dz;
                }
            }
        }
        gradients
    }

    fn conv(&self, isa: Isa) -> FConv {
        FConv {
            window: self.window,
            kind: self.kind,
            out: self.out,
            clip: self.clip,
            residual: self.residual,
            weights: Weights::Oihw,
            isa,
        }
    }

    /// The same by the rule.
    fn have(&self, isa: Isa, threads: usize) -> Vec<Vec<f32>> {
        let picture = |p: Picture| [self.batch, p.height, p.width, p.channels];
        let (xs, ys) = (picture(self.picture), picture(self.places()));
        let ws = [self.out, self.inner(), self.window.kernel[0], self.window.kernel[1]];
        let mut model = TypedModel::default();
        let mut sources = vec![
            model.add_source("x", f32::fact(xs)).unwrap(),
            model.add_source("w", f32::fact(ws)).unwrap(),
            model.add_source("b", f32::fact([self.out])).unwrap(),
        ];
        if self.residual {
            sources.push(model.add_source("r", f32::fact(ys)).unwrap());
        }
        let conv = self.conv(isa);
        let [x, w, b, r, g] = self.tensors();
        let tensor = |shape: &[usize], values: &[f32]| Tensor::from_shape(shape, values).unwrap();
        let y = model.wire_node("y", conv, &sources).unwrap()[0];
        let g = model.add_const("g", tensor(&ys, &g)).unwrap();
        let weighted = model.wire_node("weighted", mul(), &[y, g]).unwrap()[0];
        let loss = Reduce::new(tvec!(0, 1, 2, 3), Reducer::Sum);
        let loss = model.wire_node("loss", loss, &[weighted]).unwrap()[0];
        let gradients = differentiate(&mut model, loss, &sources).unwrap();
        model.select_output_outlets(&gradients).unwrap();
        let plan = model.into_optimized().unwrap().into_runnable().unwrap();
        let mut inputs = tvec!(tensor(&xs, &x), tensor(&ws, &w), tensor(&[self.out], &b));
        if self.residual {
            inputs.push(tensor(&ys, &r));
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let inputs: TVec<TValue> = inputs.into_iter().map(Tensor::into_tvalue).collect();
        let results = pool.install(|| plan.run(inputs).unwrap());
        results.iter().map(|r| values(r).unwrap().to_vec()).collect()
    }
}

fn cases() -> Vec<Case> {
    let relu6 = Clip { low: 0.0, high: 0.8 };
    let window = |kernel: usize, stride: usize, pads: [usize; 4]| Window {
        kernel: [kernel; 2],
        stride: [stride; 2],
        pads: Pads {
            top: pads[0],
            left: pads[1],
            bottom: pads[2],
            right: pads[3],
        },
    };
    let case = |kind, window, channels, out, clip, residual| Case {
        kind,
        window,
        picture: Picture {
            height: 7,
            width: 6,
            channels,
        },
        batch: 5,
        out,
        clip,
        residual,
    };
    vec![
        case(Kind::Dense, window(1, 1, [0; 4]), 19, 33, relu6, false),
        case(Kind::Dense, window(1, 1, [0; 4]), 33, 7, Clip::NONE, true),
        case(Kind::Dense, window(1, 2, [0; 4]), 9, 17, Clip::NONE, false),
        case(
            Kind::Dense,
            window(3, 1, [1; 4]),
            5,
            18,
            Clip {
                high: f32::INFINITY,
                ..relu6
            },
            true,
        ),
        case(Kind::Dense, window(3, 2, [0, 1, 1, 0]), 3, 20, relu6, false),
        case(Kind::Depthwise, window(3, 1, [1; 4]), 21, 21, relu6, false),
        case(Kind::Depthwise, window(5, 2, [1, 2, 2, 1]), 16, 16, relu6, true),
        case(Kind::Depthwise, window(3, 2, [0, 0, 1, 1]), 35, 35, Clip::NONE, false),
    ]
}

#[test]
fn the_rule_gives_the_gradients_of_the_definition() {
    for (number, case) in cases().iter().enumerate() {
        let want = case.want();
        for &isa in Isa::available() {
            let have = case.have(isa, 2);
            assert_eq!(have.len(), 3 + usize::from(case.residual));
            for ((have, want), what) in have.iter().zip(&want).zip(["x", "w", "b", "r"]) {
                assert_eq!(have.len(), want.len(), "case {number}, {what}");
                let scale = want.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
                for (i, (h, w)) in have.iter().zip(want).enumerate() {
                    let error = (f64::from(*h) - w).abs() / scale;
                    assert!(error <= 1e-5, "case {number}, {isa:?}, {what} at {i}: {h} is not {w}");
                }
            }
        }
    }
}

#[test]
fn threads_change_no_bit_of_a_gradient() {
    for (number, case) in cases().iter().enumerate() {
        for &isa in Isa::available() {
            let bits = |threads| {
                case.have(isa, threads)
                    .concat()
                    .iter()
                    .map(|v| v.to_bits())
                    .collect::<Vec<_>>()
            };
            assert_eq!(bits(1), bits(3), "case {number}, {isa:?}");
        }
    }
}

/// The gradient that is cut off as it is written is the one that is cut off afterwards.
#[test]
fn a_gate_is_the_gradient_of_the_clip_that_made_the_picture() {
    for (number, case) in cases().iter().enumerate() {
        for &isa in Isa::available() {
            let picture = |p: Picture| [case.batch, p.height, p.width, p.channels];
            let shape: TVec<usize> = picture(case.picture).into();
            let (zs, ws) = (picture(case.places()), [case.out, case.inner(), case.taps(), 1]);
            let mut model = TypedModel::default();
            let mut source = |name: &str, shape: &[usize]| model.add_source(name, f32::fact(shape)).unwrap();
            let [dz, w, x] = [source("dz", &zs), source("w", &ws), source("x", &shape)];
            let grad = |gate| FConvGradX {
                conv: case.conv(isa),
                shape: shape.clone(),
                gate,
            };
            let clip = Clip { low: -0.2, high: 0.6 };
            let gated = model.wire_node("gated", grad(Some(clip)), &[dz, w, x]).unwrap()[0];
            let plain = model.wire_node("plain", grad(None), &[dz, w]).unwrap()[0];
            let cut = model.wire_node("cut", ClipGrad { clip }, &[plain, x]).unwrap()[0];
            model.select_output_outlets(&[gated, cut]).unwrap();
            let [x, w, .., dz] = case.tensors();
            let tensor = |shape: &[usize], values: &[f32]| Tensor::from_shape(shape, values).unwrap().into_tvalue();
            let inputs = tvec!(tensor(&zs, &dz), tensor(&ws, &w), tensor(&shape, &x));
            let results = model.into_runnable().unwrap().run(inputs).unwrap();
            let [gated, cut] = [0, 1].map(|i| values(&results[i]).unwrap().to_vec());
            assert!(gated.contains(&0.0) && gated.iter().any(|g| *g != 0.0));
            assert!(gated == cut, "case {number}, {isa:?}");
        }
    }
}
