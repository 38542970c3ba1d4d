//! Tiny ONNX models for tests.

use super::build::{floats, info, int, node};
use super::pb;
use pb::tensor_proto::DataType;
use prost::Message;

/// Weights that look random and are always the same.
pub fn noise(count: usize) -> Vec<f32> {
    (0..count)
        .map(|i| ((i * 7919 + 13) % 101) as f32 / 50.0 - 1.0)
        .collect()
}

/// A model from its parts; the first dimension of the input is free.
pub fn model(
    input: &[i64],
    nodes: Vec<pb::NodeProto>,
    initializers: Vec<pb::TensorProto>,
    output: &str,
) -> pb::ModelProto {
    pb::ModelProto {
        ir_version: 8,
        opset_import: vec![pb::OperatorSetIdProto {
            domain: String::new(),
            version: 13,
        }],
        graph: Some(pb::GraphProto {
            name: "test".to_owned(),
            node: nodes,
            initializer: initializers,
            input: vec![info("x", DataType::Float, input)],
            output: vec![info(output, DataType::Float, &[-1, -1])],
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Pictures: 1x1 convolution to 24 channels, ReLU, mean over pixels, then an old head of 2 that a cut drops.
pub fn picture_model() -> pb::ModelProto {
    model(
        &[-1, 3, -1, -1],
        vec![
            node("Conv", &["x", "conv/w"], "conv", vec![]),
            node("Relu", &["conv"], "relu", vec![]),
            node("GlobalAveragePool", &["relu"], "pool", vec![]),
            node("Flatten", &["pool"], "flat", vec![int("axis", 1)]),
            node("Gemm", &["flat", "old/w", "old/b"], "logits", vec![int("transB", 1)]),
        ],
        vec![
            floats("conv/w", &[24, 3, 1, 1], &noise(72)),
            floats("old/w", &[2, 24], &noise(48)),
            floats("old/b", &[2], &noise(2)),
        ],
        "logits",
    )
}

/// Windows of 2 channels and 8 samples: MatMul to 40, Tanh, then an old head of 3 that a cut drops.
pub fn window_model() -> pb::ModelProto {
    model(
        &[-1, 2, 8],
        vec![
            node("Flatten", &["x"], "flat", vec![int("axis", 1)]),
            node("MatMul", &["flat", "w"], "linear", vec![]),
            node("Tanh", &["linear"], "hidden", vec![]),
            node("MatMul", &["hidden", "old"], "logits", vec![]),
        ],
        vec![
            floats("w", &[16, 40], &noise(640)),
            floats("old", &[40, 3], &noise(120)),
        ],
        "logits",
    )
}

/// A model's bytes and their SHA-256.
pub fn encoded(model: &pb::ModelProto) -> (Vec<u8>, String) {
    use sha2::Digest;
    let bytes = model.encode_to_vec();
    let hash = hex::encode(sha2::Sha256::digest(&bytes));
    (bytes, hash)
}
