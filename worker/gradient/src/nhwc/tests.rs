use super::gemm::tests::noise;
use super::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::{Pad, PadMode};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec};
use tract_onnx::tract_core::ops::math::{add, max, min, mul};
use tract_onnx::tract_core::ops::nn::{DataFormat, Reduce, Reducer, sigmoid};
use tract_onnx::tract_core::ops::source::TypedSource;

mod stripes;

/// A network that is wired by hand.
struct Net {
    model: TypedModel,
    names: usize,
}

/// One convolution.
#[derive(Clone)]
struct Layer {
    out: usize,
    kernel: [usize; 2],
    stride: usize,
    padding: PaddingSpec,
    depthwise: bool,
}

impl Net {
    fn new(shape: &[usize]) -> (Self, OutletId) {
        let mut model = TypedModel::default();
        let source = model.add_source("x", f32::fact(shape)).unwrap();
        (Self { model, names: 0 }, source)
    }

    fn wire(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> OutletId {
        self.names += 1;
        self.model.wire_node(format!("node{}", self.names), op, inputs).unwrap()[0]
    }

    fn constant(&mut self, shape: &[usize], values: &[f32]) -> OutletId {
        self.names += 1;
        let tensor = Tensor::from_shape(shape, values).unwrap();
        self.model.add_const(format!("constant{}", self.names), tensor).unwrap()
    }

    fn channels(&self, x: OutletId) -> usize {
        let shape = &self.model.outlet_fact(x).unwrap().shape;
        shape[shape.rank() - 3].to_usize().unwrap()
    }

    fn conv(&mut self, x: OutletId, layer: &Layer) -> OutletId {
        let channels = self.channels(x);
        let (group, inner) = if layer.depthwise { (channels, 1) } else { (1, channels) };
        let [ky, kx] = layer.kernel;
        let count = layer.out * inner * ky * kx;
        let seed = self.names as u32;
        let weights = self.constant(&[layer.out, inner, ky, kx], &noise(count, seed));
        let bias = self.constant(&[layer.out], &noise(layer.out, seed + 100));
        let batch = self.model.outlet_fact(x).unwrap().rank() == 4;
        let op = Conv {
            pool_spec: PoolSpec {
                data_format: if batch { DataFormat::NCHW } else { DataFormat::CHW },
                kernel_shape: layer.kernel[..].into(),
                padding: layer.padding.clone(),
                dilations: None,
                strides: Some(tvec!(layer.stride; 2)),
                input_channels: channels,
                output_channels: layer.out,
            },
            kernel_fmt: KernelFormat::OIHW,
            group,
            q_params: None,
        };
        self.wire(op, &[x, weights, bias])
    }

    fn bound(&mut self, op: TypedBinOp, x: OutletId, bound: f32) -> OutletId {
        let rank = self.model.outlet_fact(x).unwrap().rank();
        let bound = self.constant(&vec![1; rank], &[bound]);
        self.wire(op, &[x, bound])
    }

    fn relu6(&mut self, x: OutletId) -> OutletId {
        let x = self.bound(max(), x, 0.0);
        self.bound(min(), x, 6.0)
    }

    /// Checks the rewritten network, decluttered before or not, against tract's own; returns the operators of the latter.
    fn check(mut self, outputs: &[OutletId]) -> Vec<String> {
        self.model.select_output_outlets(outputs).unwrap();
        let shape: Vec<usize> = self.model.input_fact(0).unwrap().shape.as_concrete().unwrap().into();
        let x = Tensor::from_shape(&shape, &noise(shape.iter().product(), 7)).unwrap();
        let run = |model: TypedModel| {
            let plan = model.into_optimized().unwrap().into_runnable().unwrap();
            plan.run(tvec![x.clone().into_tvalue()]).unwrap()
        };
        let want = run(self.model.clone());
        let mut operators = Vec::new();
        let decluttered = self.model.clone().into_decluttered().unwrap();
        for (model, &isa) in [decluttered, self.model]
            .iter()
            .flat_map(|m| Isa::available().iter().map(move |i| (m, i)))
        {
            let rewritten = rewrite(model, isa).unwrap();
            let names: Vec<String> = rewritten.nodes.iter().map(|n| n.op.name().into_owned()).collect();
            assert!(
                operators.is_empty() || count(&operators, "FConv") == count(&names, "FConv"),
                "{names:?}"
            );
            operators = names;
            let have = run(rewritten);
            assert_eq!(have.len(), want.len());
            for (have, want) in have.iter().zip(&want) {
                assert_eq!(have.shape(), want.shape());
                let scale = op::values(want).unwrap().iter().fold(1.0_f32, |m, v| m.max(v.abs()));
                for (h, w) in op::values(have).unwrap().iter().zip(op::values(want).unwrap()) {
                    assert!((h - w).abs() <= 1e-5 * scale, "{isa:?}: {h} is not {w}");
                }
            }
        }
        operators
    }
}

fn count(operators: &[String], name: &str) -> usize {
    operators.iter().filter(|o| *o == name).count()
}

fn layer(out: usize, kernel: usize, stride: usize, padding: PaddingSpec, depthwise: bool) -> Layer {
    Layer {
        out,
        kernel: [kernel; 2],
        stride,
        padding,
        depthwise,
    }
}

/// Stem, two inverted residual blocks and a mean over pixels, as in EfficientNet-Lite0.
#[test]
fn inverted_residual_blocks_move_axes_at_the_borders_only() {
    for shape in [&[3, 33, 33][..], &[1, 3, 24, 31], &[3, 3, 17, 16]] {
        let (mut net, mut x) = Net::new(shape);
        x = net.conv(x, &layer(20, 3, 2, PaddingSpec::SameUpper, false));
        x = net.relu6(x);
        for (out, kernel, stride) in [(24, 5, 2), (24, 3, 1)] {
            let start = x;
            x = net.conv(x, &layer(57, 1, 1, PaddingSpec::Valid, false));
            x = net.relu6(x);
            x = net.conv(x, &layer(57, kernel, stride, PaddingSpec::SameUpper, true));
            x = net.relu6(x);
            x = net.conv(x, &layer(out, 1, 1, PaddingSpec::Valid, false));
            if stride == 1 {
                x = net.wire(add(), &[x, start]);
            }
        }
        let rank = shape.len();
        x = net.wire(Reduce::new(tvec!(rank - 2, rank - 1), Reducer::Sum), &[x]);
        let operators = net.check(&[x]);
        assert_eq!(count(&operators, "FConv"), 7, "{operators:?}");
        assert_eq!(
            count(&operators, "Add") + count(&operators, "Max") + count(&operators, "Min"),
            0
        );
        let moves = operators
            .iter()
            .filter(|o| o.starts_with("MoveAxis") || o.starts_with("Move"))
            .count();
        assert_eq!(moves, 2, "{operators:?}");
    }
}

/// The picture comes with channels last, as a program has it: then decluttering moves the layout of some convolutions and
/// of the sums of products between them.
#[test]
fn a_picture_that_comes_with_channels_last_moves_once() {
    let (mut net, mut x) = Net::new(&[1, 24, 31, 3]);
    x = net.wire(AxisOp::Move(3, 1), &[x]);
    x = net.conv(x, &layer(20, 3, 2, PaddingSpec::SameUpper, false));
    x = net.relu6(x);
    x = net.conv(x, &layer(20, 3, 1, PaddingSpec::SameUpper, true));
    x = net.relu6(x);
    for out in [16, 33] {
        x = net.conv(x, &layer(out, 1, 1, PaddingSpec::Valid, false));
    }
    x = net.relu6(x);
    x = net.conv(x, &layer(33, 5, 2, PaddingSpec::SameUpper, true));
    x = net.wire(Reduce::new(tvec!(2, 3), Reducer::Sum), &[x]);
    x = net.wire(AxisOp::Rm(0), &[x]);
    let operators = net.check(&[x]);
    assert_eq!(count(&operators, "FConv"), 5, "{operators:?}");
}

/// Two 3x3 convolutions, a 1x1 with stride beside them, the sum bounded afterwards, pools and uneven padding around.
#[test]
fn residual_blocks_with_a_bound_behind_the_sum() {
    let (mut net, mut x) = Net::new(&[2, 3, 19, 21]);
    x = net.conv(
        x,
        &layer(18, 7, 2, PaddingSpec::Explicit(tvec!(3, 2), tvec!(2, 3)), false),
    );
    x = net.bound(max(), x, 0.0);
    let pool = PoolSpec {
        data_format: DataFormat::NCHW,
        kernel_shape: tvec!(3, 3),
        padding: PaddingSpec::Explicit(tvec!(1, 1), tvec!(1, 1)),
        dilations: None,
        strides: Some(tvec!(2, 2)),
        input_channels: 18,
        output_channels: 18,
    };
    x = net.wire(
        MaxPool {
            pool_spec: pool,
            with_index_outputs: None,
        },
        &[x],
    );
    let beside = net.conv(x, &layer(35, 1, 2, PaddingSpec::Valid, false));
    let mut y = net.conv(
        x,
        &layer(35, 3, 2, PaddingSpec::Explicit(tvec!(1, 1), tvec!(1, 1)), false),
    );
    y = net.bound(max(), y, 0.0);
    y = net.conv(
        y,
        &layer(35, 3, 1, PaddingSpec::Explicit(tvec!(1, 1), tvec!(1, 1)), false),
    );
    y = net.wire(add(), &[beside, y]);
    y = net.bound(max(), y, 0.0);
    let operators = net.check(&[y]);
    assert_eq!(
        (count(&operators, "FConv"), count(&operators, "Add")),
        (4, 0),
        "{operators:?}"
    );
}

/// Results that are read twice, a bound before a sum, gates, padding and scaling by channel: all stay right.
#[test]
fn what_cannot_be_fused_is_left_beside() {
    let (mut net, x) = Net::new(&[1, 8, 9, 9]);
    let a = net.conv(x, &layer(8, 3, 1, PaddingSpec::SameUpper, false));
    let bounded = net.bound(max(), a, 0.0);
    // A bound comes before this sum, and the convolution is read by two.
    let sum = net.wire(add(), &[bounded, a]);
    let gate = net.wire(sigmoid(), &[sum]);
    let gated = net.wire(mul(), &[sum, gate]);
    let scale = net.constant(&[1, 8, 1, 1], &noise(8, 3));
    let scaled = net.wire(mul(), &[gated, scale]);
    let zero = Tensor::zero_scalar::<f32>().unwrap().into_arc_tensor();
    let pads = vec![(0, 0), (0, 0), (1, 0), (0, 2)];
    let padded = net.wire(
        Pad {
            pads,
            mode: PadMode::Constant(zero),
        },
        &[scaled],
    );
    let b = net.conv(padded, &layer(8, 2, 1, PaddingSpec::Valid, true));
    let twice = net.wire(add(), &[b, b]);
    // The first convolution's own result is an output too.
    let operators = net.check(&[twice, a]);
    assert_eq!(count(&operators, "FConv"), 2, "{operators:?}");
}

#[test]
fn convolutions_that_are_not_covered_keep_their_own_path() {
    let (mut net, x) = Net::new(&[1, 8, 12, 12]);
    let mut y = net.conv(x, &layer(16, 3, 1, PaddingSpec::SameUpper, false));
    let weights = net.constant(&[16, 4, 3, 3], &noise(16 * 4 * 9, 1));
    let bias = net.constant(&[], &[0.5]);
    let mut op = Conv {
        pool_spec: PoolSpec {
            data_format: DataFormat::NCHW,
            kernel_shape: tvec!(3, 3),
            padding: PaddingSpec::Valid,
            dilations: None,
            strides: None,
            input_channels: 16,
            output_channels: 16,
        },
        kernel_fmt: KernelFormat::OIHW,
        group: 4,
        q_params: None,
    };
    y = net.wire(op.clone(), &[y, weights, bias]);
    op.pool_spec.dilations = Some(tvec!(2, 2));
    op.group = 16;
    let weights = net.constant(&[16, 1, 3, 3], &noise(16 * 9, 2));
    y = net.wire(op, &[y, weights, bias]);
    let operators = net.check(&[y]);
    assert_eq!(
        (count(&operators, "FConv"), count(&operators, "Conv")),
        (1, 2),
        "{operators:?}"
    );
}

/// Weights that are trained are inputs of the graph: convolutions are covered all the same, and packed at each call.
#[test]
fn weights_may_be_inputs() {
    let (mut net, x) = Net::new(&[2, 5, 9, 8]);
    let mut y = net.conv(x, &layer(18, 3, 2, PaddingSpec::SameUpper, false));
    y = net.relu6(y);
    y = net.conv(y, &layer(18, 3, 1, PaddingSpec::SameUpper, true));
    y = net.conv(y, &layer(7, 1, 1, PaddingSpec::Valid, false));
    net.model.select_output_outlets(&[y]).unwrap();
    let x = Tensor::from_shape(&[2, 5, 9, 8], &noise(720, 7)).unwrap();
    let want = run(net.model.clone(), tvec![x.clone().into_tvalue()]);
    // The same graph with its weights as sources behind the picture.
    let mut inputs = tvec![x.into_tvalue()];
    let mut sources = net.model.input_outlets().unwrap().to_vec();
    for id in 0..net.model.nodes().len() {
        let fact = net.model.node(id).outputs[0].fact.clone();
        let Some(weights) = fact.konst.filter(|k| k.volume() > 1) else {
            continue;
        };
        let shape: Vec<usize> = weights.shape().into();
        let node = &mut net.model.nodes[id];
        node.op = Box::new(TypedSource::new(f32::fact(&shape)));
        node.outputs[0].fact = f32::fact(&shape);
        inputs.push(weights.into_tvalue());
        sources.push(id.into());
    }
    net.model.set_input_outlets(&sources).unwrap();
    let decluttered = net.model.clone().into_decluttered().unwrap();
    for model in [net.model, decluttered] {
        let rewritten = rewrite(&model, Isa::native()).unwrap();
        let convolutions = rewritten.nodes().iter().filter_map(|n| n.op_as::<FConv>());
        let packed: Vec<Weights> = convolutions.map(|c| c.weights).collect();
        assert_eq!(packed, [Weights::Oihw; 3]);
        let have = run(rewritten, inputs.clone());
        for (h, w) in op::values(&have).unwrap().iter().zip(op::values(&want).unwrap()) {
            assert!((h - w).abs() <= 1e-5 * w.abs().max(1.0), "{h} is not {w}");
        }
    }
}

/// The only result of a model.
fn run(model: TypedModel, inputs: TVec<TValue>) -> Tensor {
    let plan = model.into_optimized().unwrap().into_runnable().unwrap();
    plan.run(inputs).unwrap().remove(0).into_tensor()
}

#[test]
fn threads_change_no_bit() {
    let (mut net, mut x) = Net::new(&[5, 3, 20, 20]);
    x = net.conv(x, &layer(33, 3, 2, PaddingSpec::SameUpper, false));
    x = net.conv(x, &layer(33, 3, 1, PaddingSpec::SameUpper, true));
    net.model.select_output_outlets(&[x]).unwrap();
    let input = Tensor::from_shape(&[5, 3, 20, 20], &noise(6000, 7)).unwrap();
    for &isa in Isa::available() {
        let run = |threads: usize| {
            let plan = rewrite(&net.model, isa)
                .unwrap()
                .into_optimized()
                .unwrap()
                .into_runnable()
                .unwrap();
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let result = pool.install(|| plan.run(tvec![input.clone().into_tvalue()]).unwrap());
            op::values(&result[0])
                .unwrap()
                .iter()
                .map(|v| v.to_bits())
                .collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(3), "{isa:?}");
    }
}
