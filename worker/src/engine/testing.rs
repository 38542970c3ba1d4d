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

/// Pictures of 16x16 pixels: two convolutions with a residual connection, mean over pixels, then an old head of 2 that a
/// cut drops. Four layers with a depthwise one among them.
pub fn conv_model() -> pb::ModelProto {
    let small = |n: usize| noise(n).iter().map(|v| v * 0.3).collect::<Vec<f32>>();
    let ints = |name: &str, values: &[i64]| pb::AttributeProto {
        name: name.to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..Default::default()
    };
    let pads = || ints("pads", &[1, 1, 1, 1]);
    model(
        &[-1, 3, -1, -1],
        vec![
            node(
                "Conv",
                &["x", "one/w", "one/b"],
                "one",
                vec![pads(), ints("strides", &[2, 2])],
            ),
            node("Relu", &["one"], "one/relu", vec![]),
            node("Conv", &["one/relu", "deep/w"], "deep", vec![pads(), int("group", 6)]),
            node("Relu", &["deep"], "deep/relu", vec![]),
            node("Conv", &["deep/relu", "two/w", "two/b"], "two", vec![]),
            node("Add", &["one/relu", "two"], "sum", vec![]),
            node("Conv", &["sum", "three/w", "three/b"], "three", vec![]),
            node("Relu", &["three"], "three/relu", vec![]),
            node("GlobalAveragePool", &["three/relu"], "pool", vec![]),
            node("Flatten", &["pool"], "flat", vec![int("axis", 1)]),
            node("Gemm", &["flat", "old/w", "old/b"], "logits", vec![int("transB", 1)]),
        ],
        vec![
            floats("one/w", &[6, 3, 3, 3], &small(162)),
            floats("one/b", &[6], &small(6)),
            floats("deep/w", &[6, 1, 3, 3], &small(54)),
            floats("two/w", &[6, 6, 1, 1], &small(36)),
            floats("two/b", &[6], &small(6)),
            floats("three/w", &[12, 6, 1, 1], &small(72)),
            floats("three/b", &[12], &small(12)),
            floats("old/w", &[2, 12], &small(24)),
            floats("old/b", &[2], &small(2)),
        ],
        "logits",
    )
}

/// Windows of 2 channels and 8 samples as a sequence of 8 tokens: projection to 16, one block of self-attention with its
/// norm, and a feed-forward net with a residual connection, mean over tokens; then an old head of 3 that a cut drops.
pub fn attention_model() -> pb::ModelProto {
    let small = |n: usize, seed: usize| {
        (0..n)
            .map(|i| (((i + seed) * 7919 + 13) % 101) as f32 / 250.0 - 0.2)
            .collect::<Vec<f32>>()
    };
    let perm = |values: &[i64]| pb::AttributeProto {
        name: "perm".to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: values.to_vec(),
        ..Default::default()
    };
    let axes = |values: &[i64]| pb::AttributeProto {
        name: "axes".to_owned(),
        ..perm(values)
    };
    let dense = |from: &str, name: &str, to: &str| {
        [
            node(
                "MatMul",
                &[from, &format!("{name}/w")],
                &format!("{name}/product"),
                vec![],
            ),
            node("Add", &[&format!("{name}/product"), &format!("{name}/b")], to, vec![]),
        ]
    };
    let mut nodes = vec![node("Transpose", &["x"], "tokens", vec![perm(&[0, 2, 1])])];
    nodes.extend(dense("tokens", "embed", "embedded"));
    for part in ["query", "key", "value"] {
        nodes.extend(dense("embedded", part, part));
    }
    nodes.extend([
        node("Transpose", &["key"], "key/t", vec![perm(&[0, 2, 1])]),
        node("MatMul", &["query", "key/t"], "scores", vec![]),
        node("Div", &["scores", "four"], "scaled", vec![]),
        node("Softmax", &["scaled"], "attention", vec![int("axis", -1)]),
        node("MatMul", &["attention", "value"], "mixed", vec![]),
        node("Add", &["embedded", "mixed"], "residual", vec![]),
        node(
            "ReduceMean",
            &["residual"],
            "mean",
            vec![axes(&[-1]), int("keepdims", 1)],
        ),
        node("Sub", &["residual", "mean"], "centred", vec![]),
        node("Mul", &["centred", "centred"], "squares", vec![]),
        node(
            "ReduceMean",
            &["squares"],
            "variance",
            vec![axes(&[-1]), int("keepdims", 1)],
        ),
        node("Add", &["variance", "epsilon"], "variance/e", vec![]),
        node("Sqrt", &["variance/e"], "deviation", vec![]),
        node("Div", &["centred", "deviation"], "normed", vec![]),
        node("Mul", &["normed", "norm/scale"], "norm/scaled", vec![]),
        node("Add", &["norm/scaled", "norm/shift"], "norm", vec![]),
    ]);
    nodes.extend(dense("norm", "up", "wide"));
    nodes.push(node("Tanh", &["wide"], "active", vec![]));
    nodes.extend(dense("active", "down", "narrow"));
    nodes.extend([
        node("Add", &["norm", "narrow"], "block", vec![]),
        node("ReduceMean", &["block"], "pooled", vec![axes(&[1]), int("keepdims", 0)]),
        node("MatMul", &["pooled", "old"], "logits", vec![]),
    ]);
    let mut weights = Vec::new();
    for (i, (name, inputs, outputs)) in [
        ("embed", 2, 16),
        ("query", 16, 16),
        ("key", 16, 16),
        ("value", 16, 16),
        ("up", 16, 32),
        ("down", 32, 16),
    ]
    .into_iter()
    .enumerate()
    {
        weights.push(floats(
            &format!("{name}/w"),
            &[inputs, outputs],
            &small(inputs * outputs, i * 17),
        ));
        weights.push(floats(&format!("{name}/b"), &[outputs], &small(outputs, i * 31)));
    }
    weights.extend([
        floats("four", &[], &[4.0]),
        floats("epsilon", &[], &[1e-5]),
        // Ones and zeros: an engine that simplifies would delete them.
        floats("norm/scale", &[16], &[1.0; 16]),
        floats("norm/shift", &[16], &[0.0; 16]),
        floats("old", &[16, 3], &small(48, 5)),
    ]);
    model(&[-1, 2, 8], nodes, weights, "logits")
}

/// Width of what [`text_model`] gives.
pub const TEXT_WIDTH: usize = 24;

/// Texts of `words` different tokens: one layer of attention over 24 features a token, given as last_hidden_state.
pub fn text_model(words: usize) -> pb::ModelProto {
    let width = i64::try_from(TEXT_WIDTH).unwrap();
    let perm = pb::AttributeProto {
        name: "perm".to_owned(),
        r#type: pb::attribute_proto::AttributeType::Ints as i32,
        ints: vec![0, 2, 1],
        ..Default::default()
    };
    let nodes = vec![
        node("Gather", &["words", "input_ids"], "word", vec![]),
        node("Gather", &["types", "token_type_ids"], "type", vec![]),
        node("Add", &["word", "type"], "x", vec![]),
        node("MatMul", &["x", "query"], "q", vec![]),
        node("MatMul", &["x", "key"], "k", vec![]),
        node("Transpose", &["k"], "turned", vec![perm]),
        node("MatMul", &["q", "turned"], "scores", vec![]),
        node(
            "Cast",
            &["attention_mask"],
            "own",
            vec![int("to", i64::from(DataType::Float as i32))],
        ),
        node("Reshape", &["own", "wide"], "own/wide", vec![]),
        node("Sub", &["own/wide", "one"], "padding", vec![]),
        node("Mul", &["padding", "far"], "far/padding", vec![]),
        node("Add", &["scores", "far/padding"], "masked", vec![]),
        node("Softmax", &["masked"], "shares", vec![int("axis", -1)]),
        node("MatMul", &["shares", "x"], "mixed", vec![]),
        node("Add", &["x", "mixed"], "sum", vec![]),
        node("Tanh", &["sum"], "last_hidden_state", vec![]),
    ];
    // Noise that begins at another place for each tensor.
    let weights = |name: &str, rows: usize, from: usize| {
        let values = noise(from + rows * TEXT_WIDTH).split_off(from);
        floats(name, &[rows, TEXT_WIDTH], &values)
    };
    let wide = pb::TensorProto {
        name: "wide".to_owned(),
        dims: vec![3],
        data_type: DataType::Int64 as i32,
        int64_data: vec![0, 1, -1],
        ..Default::default()
    };
    let input = |name: &str| info(name, DataType::Int64, &[-1, -1]);
    let mut model = model(&[], nodes, vec![], "last_hidden_state");
    let graph = model.graph.get_or_insert_default();
    graph.input = ["input_ids", "attention_mask", "token_type_ids"].map(input).to_vec();
    graph.output = vec![info("last_hidden_state", DataType::Float, &[-1, -1, width])];
    graph.initializer = vec![
        weights("words", words, 0),
        weights("types", 2, 17),
        weights("query", TEXT_WIDTH, 31),
        weights("key", TEXT_WIDTH, 43),
        floats("one", &[], &[1.0]),
        floats("far", &[], &[1e4]),
        wide,
    ];
    model
}

/// A model's bytes and their SHA-256.
pub fn encoded(model: &pb::ModelProto) -> (Vec<u8>, String) {
    use sha2::Digest;
    let bytes = model.encode_to_vec();
    let hash = hex::encode(sha2::Sha256::digest(&bytes));
    (bytes, hash)
}
