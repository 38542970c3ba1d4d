//! The nets of `make.py` as ONNX graphs, with the same weights. They are written in the ways that exporters write them: a
//! norm as one operator or as primitives, GELU by its error function, SiLU as a product.

use crate::builder::{Builder, int, ints};
use fleetune_gradient::onnx::float_info;
use fleetune_gradient::pb;

pub const CLASSES: usize = 4;

/// A graph with what training needs to know of it.
pub struct Net {
    pub model: pb::ModelProto,
    /// Name of its input.
    pub input: String,
    /// Shape of one sample.
    pub sample: Vec<usize>,
    /// What the data is multiplied with.
    pub gain: f32,
    /// Name of the logits.
    pub output: String,
    /// All weights, in the order of `make.py`.
    pub weights: Vec<String>,
}

/// The net of this name for batches of `n` samples.
pub fn net(name: &str, n: usize) -> Net {
    let mut b = Builder::default();
    let (sample, gain): (&[usize], f32) = match name {
        "mlp" => (mlp(&mut b), 1.0),
        "cnn" => (cnn(&mut b), 1.0),
        "depthwise" => (depthwise(&mut b), 8.0),
        "residual" => (residual(&mut b), 1.0),
        "conv1d" => (conv1d(&mut b), 1.0),
        "transformer" => (transformer(&mut b), 1.0),
        _ => panic!("no net is named {name}"),
    };
    let weights = b.weights.clone();
    let batch: Vec<usize> = [&[n], sample].concat();
    let (model, output) = b.finish(float_info("x", &batch), [n, CLASSES]);
    Net {
        model,
        input: "x".to_owned(),
        sample: sample.to_vec(),
        gain,
        output,
        weights,
    }
}

fn mlp(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[16, 12]);
    b.layer("two", &[16, 16]);
    b.layer("head", &[CLASSES, 16]);
    let x = b.gemm("one", "x");
    let x = b.relu(&x);
    let x = b.gemm("two", &x);
    let x = b.op("Tanh", &[&x], vec![]);
    b.gemm("head", &x);
    &[12]
}

fn cnn(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[6, 3, 3, 3]);
    b.layer("two", &[8, 6, 3, 3]);
    b.layer("head", &[CLASSES, 8]);
    let x = b.conv("one", "x", 2, [1, 1, 1]);
    let x = b.relu(&x);
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
    let x = b.op("MaxPool", &[&x], pool);
    let x = b.conv("two", &x, 2, [2, 1, 1]);
    let x = b.relu(&x);
    let x = b.pooled(&x);
    b.gemm("head", &x);
    &[3, 10, 10]
}

fn depthwise(b: &mut Builder) -> &'static [usize] {
    b.layer("stem", &[6, 3, 3, 3]);
    for (block, out) in [("b1", 6), ("b2", 8)] {
        b.layer(&format!("{block}.expand"), &[18, 6, 1, 1]);
        b.layer(&format!("{block}.depth"), &[18, 1, 3, 3]);
        b.layer(&format!("{block}.project"), &[out, 18, 1, 1]);
    }
    b.layer("last", &[16, 8, 1, 1]);
    b.layer("head", &[CLASSES, 16]);
    let x = b.conv("stem", "x", 2, [2, 1, 1]);
    let mut x = b.relu6(&x);
    for (block, stride) in [("b1", 1), ("b2", 2)] {
        let y = b.conv(&format!("{block}.expand"), &x, 2, [1, 0, 1]);
        let y = b.relu6(&y);
        let y = b.conv(&format!("{block}.depth"), &y, 2, [stride, 1, 18]);
        let y = b.relu6(&y);
        let y = b.conv(&format!("{block}.project"), &y, 2, [1, 0, 1]);
        x = if stride == 1 { b.op("Add", &[&x, &y], vec![]) } else { y };
    }
    let x = b.conv("last", &x, 2, [1, 0, 1]);
    let x = b.relu6(&x);
    let x = b.pooled(&x);
    b.gemm("head", &x);
    &[3, 12, 12]
}

fn residual(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[8, 4, 3, 3]);
    b.layer("two", &[8, 8, 3, 3]);
    b.layer("short", &[8, 4, 1, 1]);
    b.layer("head", &[CLASSES, 8]);
    let y = b.conv("one", "x", 2, [2, 1, 1]);
    let y = b.relu(&y);
    let y = b.conv("two", &y, 2, [1, 1, 1]);
    let short = b.conv("short", "x", 2, [2, 0, 1]);
    let x = b.op("Add", &[&y, &short], vec![]);
    let x = b.relu(&x);
    let x = b.pooled(&x);
    b.gemm("head", &x);
    &[4, 9, 9]
}

fn conv1d(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[6, 3, 5]);
    b.layer("two", &[6, 2, 3]);
    b.layer("head", &[CLASSES, 6]);
    let x = b.conv("one", "x", 1, [2, 2, 1]);
    let gate = b.op("Sigmoid", &[&x], vec![]);
    let x = b.op("Mul", &[&x, &gate], vec![]);
    let x = b.conv("two", &x, 1, [1, 1, 3]);
    let x = b.op("HardSwish", &[&x], vec![]);
    let pool = vec![ints("kernel_shape", &[2]), ints("strides", &[2])];
    let x = b.op("AveragePool", &[&x], pool);
    let x = b.pooled(&x);
    b.gemm("head", &x);
    &[3, 16]
}

fn transformer(b: &mut Builder) -> &'static [usize] {
    b.norm_weights("n1", 12);
    for name in ["q", "k", "v", "out"] {
        b.dense_weights(name, 12, 12);
    }
    b.norm_weights("n2", 12);
    b.dense_weights("up", 12, 24);
    b.dense_weights("down", 24, 12);
    b.norm_weights("n3", 12);
    b.layer("head", &[CLASSES, 12]);
    let y = b.norm_of_parts("n1", "x");
    let mixed = b.attention("", &y, [5, 3, 4]);
    let x = b.op("Add", &["x", &mixed], vec![]);
    let y = b.norm("n2", &x);
    let y = b.dense("up", &y);
    let y = b.gelu(&y);
    let y = b.dense("down", &y);
    let x = b.op("Add", &[&x, &y], vec![]);
    let x = b.norm("n3", &x);
    let x = b.op("ReduceMean", &[&x], vec![ints("axes", &[1]), int("keepdims", 0)]);
    b.gemm("head", &x);
    &[5, 12]
}
