//! Small ONNX models for tests.
#![allow(dead_code)]

use fleetune_gradient::onnx::{float_info, floats, node};
use fleetune_gradient::pb;
use std::sync::Arc;
use tract_onnx::prelude::Tensor;

/// Numbers in −1 to 1 that look random and depend on the seed alone.
pub fn noise(count: usize, seed: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.5 - 1.0)
        .collect()
}

pub fn random(name: &str, dims: &[usize], seed: usize) -> pb::TensorProto {
    floats(name, dims, &noise(dims.iter().product(), seed))
}

pub fn tensor(dims: &[usize], seed: usize) -> Arc<Tensor> {
    Arc::new(Tensor::from_shape(dims, &noise(dims.iter().product(), seed)).unwrap())
}

pub fn int(name: &str, value: i64) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        i: value,
        r#type: pb::attribute_proto::AttributeType::Int as i32,
        ..Default::default()
    }
}

pub fn ints(name: &str, values: &[i64]) -> pb::AttributeProto {
    pb::AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ..Default::default()
    }
}

pub fn graph(
    inputs: &[(&str, &[usize])],
    node: Vec<pb::NodeProto>,
    initializer: Vec<pb::TensorProto>,
    output: &str,
) -> pb::GraphProto {
    pb::GraphProto {
        name: "test".to_owned(),
        node,
        initializer,
        input: inputs.iter().map(|(name, dims)| float_info(name, dims)).collect(),
        output: vec![float_info(output, &[])],
        ..Default::default()
    }
}

pub fn model(graph: pb::GraphProto) -> pb::ModelProto {
    pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
        ..Default::default()
    }
}

/// Two layers with ReLU between; the names say nothing about the order.
pub fn mlp() -> pb::GraphProto {
    graph(
        &[("x", &[4, 6])],
        vec![
            node("Gemm", &["x", "z", "z.b"], "hidden", vec![int("transB", 1)]),
            node("Relu", &["hidden"], "relu", vec![]),
            node("MatMul", &["relu", "a"], "product", vec![]),
            node("Add", &["product", "a.b"], "logits", vec![]),
        ],
        vec![
            random("z", &[8, 6], 1),
            random("z.b", &[8], 2),
            random("a", &[8, 3], 3),
            random("a.b", &[3], 4),
        ],
        "logits",
    )
}

/// A residual block between two convolutions of one pixel each, then a mean and a classifier: a cut inside the block
/// needs two tensors.
pub fn residual() -> pb::GraphProto {
    graph(
        &[("x", &[2, 3, 5, 5])],
        vec![
            node("Conv", &["x", "w9", "b9"], "stem", vec![]),
            node("Relu", &["stem"], "in", vec![]),
            node("Conv", &["in", "w1"], "branch", vec![ints("pads", &[1, 1, 1, 1])]),
            node("Relu", &["branch"], "bent", vec![]),
            node("Conv", &["bent", "w5", "b5"], "out", vec![]),
            node("Add", &["in", "out"], "sum", vec![]),
            node("GlobalAveragePool", &["sum"], "pool", vec![]),
            node("Flatten", &["pool"], "flat", vec![]),
            node("Gemm", &["flat", "w2", "b2"], "logits", vec![]),
        ],
        vec![
            random("w9", &[4, 3, 1, 1], 1),
            random("b9", &[4], 2),
            random("w1", &[4, 4, 3, 3], 3),
            random("w5", &[4, 4, 1, 1], 4),
            random("b5", &[4], 5),
            random("w2", &[4, 3], 6),
            random("b2", &[3], 7),
        ],
        "logits",
    )
}

pub fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}
