//! The nets that are timed, as ONNX graphs; `peers/steps.py` has the same ones.

use crate::builder::{Builder, int, ints};
use fleetune_gradient::onnx::float_info;
use fleetune_gradient::pb;
use fleetune_worker::tune::shard::fewest;
use tract_onnx::prelude::DatumType;

/// Outputs of every net.
pub const CLASSES: usize = 10;
/// Words of MiniLM's vocabulary.
pub const VOCABULARY: usize = 30_522;

/// A net with how it is trained.
pub struct Timed {
    pub model: pb::ModelProto,
    pub output: String,
    pub weights: Vec<String>,
    /// Shape of one sample, and what it holds.
    pub sample: Vec<usize>,
    pub datum_type: DatumType,
    /// Rows of a step, and of a shard.
    pub batch: usize,
    pub shard: usize,
    /// Steps of one measurement.
    pub steps: usize,
}

/// What is timed, with the goal for the time relative to the peer's.
pub const ALL: [(&str, f64); 5] = [
    ("mlp", 1.0),
    ("cnn", 1.0),
    ("block", 1.0),
    ("mobilenetv2", 0.8),
    ("minilm", 1.0),
];

/// The net of this name.
pub fn net(name: &str) -> Option<Timed> {
    let mut b = Builder::default();
    let float = DatumType::F32;
    let (batch, steps, sample, datum_type): (usize, usize, &[usize], DatumType) = match name {
        "mlp" => (32, 100, mlp(&mut b), float),
        "cnn" => (32, 5, cnn(&mut b), float),
        "block" => (16, 5, block(&mut b), float),
        "mobilenetv2" => (16, 1, mobilenetv2(&mut b), float),
        "minilm" => (8, 1, minilm(&mut b), DatumType::I64),
        _ => return None,
    };
    let shard = fewest(batch);
    let weights = b.weights.clone();
    let mut input = float_info("x", &[&[shard], sample].concat());
    if datum_type == DatumType::I64 {
        input = integers_info(input);
    }
    let (model, output) = b.finish(input, [shard, CLASSES]);
    Some(Timed {
        model,
        output,
        weights,
        sample: sample.to_vec(),
        datum_type,
        batch,
        shard,
        steps,
    })
}

/// The same input for whole numbers.
fn integers_info(mut info: pb::ValueInfoProto) -> pb::ValueInfoProto {
    use pb::tensor_proto::DataType;
    use pb::type_proto::Value;
    if let Some(Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut()) {
        tensor.elem_type = DataType::Int64 as i32;
    }
    info
}

fn mlp(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[256, 64]);
    b.layer("two", &[256, 256]);
    b.layer("head", &[CLASSES, 256]);
    let x = b.gemm("one", "x");
    let x = b.relu(&x);
    let x = b.gemm("two", &x);
    let x = b.relu(&x);
    b.gemm("head", &x);
    &[64]
}

fn cnn(b: &mut Builder) -> &'static [usize] {
    b.layer("one", &[16, 3, 3, 3]);
    b.layer("two", &[32, 16, 3, 3]);
    b.layer("three", &[64, 32, 3, 3]);
    b.layer("head", &[CLASSES, 64]);
    let x = b.conv("one", "x", 2, [1, 1, 1]);
    let x = b.relu(&x);
    let pool = vec![ints("kernel_shape", &[2, 2]), ints("strides", &[2, 2])];
    let x = b.op("MaxPool", &[&x], pool);
    let x = b.conv("two", &x, 2, [2, 1, 1]);
    let x = b.relu(&x);
    let x = b.conv("three", &x, 2, [2, 1, 1]);
    let x = b.relu(&x);
    let x = b.pooled(&x);
    b.gemm("head", &x);
    &[3, 32, 32]
}

/// Attention and feed-forward, with norms before both.
fn block(b: &mut Builder) -> &'static [usize] {
    b.norm_weights("n1", 384);
    for part in ["q", "k", "v", "out"] {
        b.dense_weights(part, 384, 384);
    }
    b.norm_weights("n2", 384);
    b.dense_weights("up", 384, 1536);
    b.dense_weights("down", 1536, 384);
    b.layer("head", &[CLASSES, 384]);
    let y = b.norm("n1", "x");
    let y = b.attention("", &y, [32, 6, 64]);
    let x = b.op("Add", &["x", &y], vec![]);
    let y = b.norm("n2", &x);
    let y = b.dense("up", &y);
    let y = b.gelu(&y);
    let y = b.dense("down", &y);
    let x = b.op("Add", &[&x, &y], vec![]);
    mean_over_steps(b, &x);
    &[32, 384]
}

fn mean_over_steps(b: &mut Builder, x: &str) {
    let x = b.op("ReduceMean", &[x], vec![ints("axes", &[1]), int("keepdims", 0)]);
    b.gemm("head", &x);
}

/// MobileNetV2 (Sandler et al. 2018, table 2) with its norms folded into the convolutions, for images of 96 x 96.
fn mobilenetv2(b: &mut Builder) -> &'static [usize] {
    // Expansion, channels out, blocks, stride of the first.
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    b.layer("stem", &[32, 3, 3, 3]);
    let x = b.conv("stem", "x", 2, [2, 1, 1]);
    let mut x = b.relu6(&x);
    let (mut channels, mut count) = (32, 0);
    for (expansion, out, blocks, stride) in stages {
        for i in 0..blocks {
            let stride = if i == 0 { stride } else { 1 };
            let wide = channels * expansion;
            let part = |name: &str| format!("block{count}.{name}");
            let mut y = x.clone();
            if expansion > 1 {
                b.layer(&part("expand"), &[wide, channels, 1, 1]);
                y = b.conv(&part("expand"), &y, 2, [1, 0, 1]);
                y = b.relu6(&y);
            }
            b.layer(&part("depth"), &[wide, 1, 3, 3]);
            y = b.conv(&part("depth"), &y, 2, [stride, 1, wide.cast_signed() as i64]);
            y = b.relu6(&y);
            b.layer(&part("project"), &[out, wide, 1, 1]);
            y = b.conv(&part("project"), &y, 2, [1, 0, 1]);
            x = if stride == 1 && channels == out {
                b.op("Add", &[&x, &y], vec![])
            } else {
                y
            };
            (channels, count) = (out, count + 1);
        }
    }
    b.layer("last", &[1280, 320, 1, 1]);
    let x = b.conv("last", &x, 2, [1, 0, 1]);
    let x = b.relu6(&x);
    let x = b.pooled(&x);
    b.layer("head", &[CLASSES, 1280]);
    b.gemm("head", &x);
    &[3, 96, 96]
}

/// The encoder of MiniLM-L6 (Wang et al. 2020) on sentences of 64 words without padding, with a mean and a classifier.
fn minilm(b: &mut Builder) -> &'static [usize] {
    b.weight("words.m", &[VOCABULARY, 384], 5.0, 0.0);
    b.weight("places", &[64, 384], 0.5, 0.0);
    b.norm_weights("n0", 384);
    let x = b.op("Gather", &["words.m", "x"], vec![]);
    let x = b.op("Add", &[&x, "places"], vec![]);
    let mut x = b.norm("n0", &x);
    for layer in 0..6 {
        let part = |name: &str| format!("layer{layer}.{name}");
        for name in ["q", "k", "v", "out"] {
            b.dense_weights(&part(name), 384, 384);
        }
        b.norm_weights(&part("n1"), 384);
        b.dense_weights(&part("up"), 384, 1536);
        b.dense_weights(&part("down"), 1536, 384);
        b.norm_weights(&part("n2"), 384);
        let y = b.attention(&part(""), &x, [64, 12, 32]);
        let sum = b.op("Add", &[&x, &y], vec![]);
        x = b.norm(&part("n1"), &sum);
        let y = b.dense(&part("up"), &x);
        let y = b.gelu(&y);
        let y = b.dense(&part("down"), &y);
        let sum = b.op("Add", &[&x, &y], vec![]);
        x = b.norm(&part("n2"), &sum);
    }
    b.layer("head", &[CLASSES, 384]);
    mean_over_steps(b, &x);
    &[64]
}
